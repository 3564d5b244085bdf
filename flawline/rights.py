"""What each role must be allowed to do on the broker: an authoriser's rules, and what `flawline doctor` asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from flawline import topics
from flawline.topics import Topic


class Operation(StrEnum):
    """An operation of Kafka's ACLs; the values are the names that `kafka-acls.sh` takes."""

    CREATE = "Create"  # of no role: topics are created once, by a user who may
    READ = "Read"
    WRITE = "Write"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"


TRANSACTIONAL_ID = "transactional-id"
"""The kind of a name under which a producer writes transactions."""


def transactional_id(prefix: str, member: str) -> str:
    """Return the transactional id of a worker; without its name, what the ids of all workers of the line begin with."""
    return f"{prefix}{topics.WORKERS_GROUP}.{member}"


@dataclass(frozen=True)
class Right:
    """An operation on a topic, a group or a transactional id, named as on the broker; a prefix stands for many."""

    operation: Operation
    kind: str
    name: str
    is_prefix: bool = False

    def __str__(self) -> str:
        return f"{self.operation.upper()} on {self.kind} {self.name}{'*' * self.is_prefix}"


@dataclass(frozen=True)
class Role:
    """The topics and groups of a command. Every role sees all topics of the line: one that it misses would be made."""

    reads: tuple[Topic, ...] = ()
    writes: tuple[Topic, ...] = ()
    member_of: str | None = None
    looks_at: str | None = None
    has_transactions: bool = False

    def rights(self, prefix: str, *, exactly_once: bool = False) -> list[Right]:
        """Return the rights that the role needs on a line whose topics have a prefix."""
        needed = [Right(Operation.READ, "topic", prefix + topic.name) for topic in self.reads]
        needed += [Right(Operation.WRITE, "topic", prefix + topic.name) for topic in self.writes]
        for operation in (Operation.DESCRIBE, Operation.DESCRIBE_CONFIGS):
            needed += [Right(operation, "topic", name) for name, _ in topics.named(prefix)]
        if self.member_of:
            needed.append(Right(Operation.READ, "group", prefix + self.member_of, self.member_of.endswith(".")))
        if self.looks_at:
            needed.append(Right(Operation.DESCRIBE, "group", prefix + self.looks_at))
        if self.has_transactions and exactly_once:
            needed.append(Right(Operation.WRITE, TRANSACTIONAL_ID, transactional_id(prefix, ""), is_prefix=True))
        return needed


_ACCOUNTS = (topics.LEDGER, topics.LEDGER_SNAPSHOTS, topics.FRAMES, topics.VERDICTS, topics.DEAD_LETTERS)

ROLES = {
    "produce": Role(
        reads=(topics.PARTITIONS,),
        writes=(topics.FRAMES, topics.LEDGER, topics.PARTITIONS),
        looks_at=topics.WORKERS_GROUP,  # for producer.overload
    ),
    "work": Role(
        reads=(topics.FRAMES, topics.VERDICTS, topics.MODELS),
        writes=(
            topics.VERDICTS,
            topics.DEFECTS,
            topics.DEAD_LETTERS,
            topics.MODEL_REPORTS,
            topics.SHADOW_VERDICTS,
            topics.LEDGER,
        ),
        member_of=topics.WORKERS_GROUP,
        has_transactions=True,
    ),
    "discover": Role(
        reads=(topics.VERDICTS, topics.DEFECTS, topics.FRAMES),  # frames for the pictures that it keeps
        writes=(topics.CLASSES, topics.JUDGEMENTS),
        member_of=topics.DISCOVERY_GROUP,
    ),
    "ledger": Role(reads=_ACCOUNTS, writes=(topics.LEDGER_SNAPSHOTS,), looks_at=topics.WORKERS_GROUP),
    "console": Role(reads=_ACCOUNTS, writes=(topics.LEDGER_SNAPSHOTS,), looks_at=topics.WORKERS_GROUP),
    "notify": Role(reads=(*_ACCOUNTS, topics.CLASSES), member_of=topics.NOTIFY_GROUPS, looks_at=topics.WORKERS_GROUP),
    "replay": Role(reads=_ACCOUNTS, writes=(topics.FRAMES,), looks_at=topics.WORKERS_GROUP),
    "publish": Role(
        reads=(topics.MODELS, topics.MODEL_REPORTS, topics.SHADOW_VERDICTS), writes=(topics.MODELS,)
    ),  # and promote, rollback, models
}
"""The role of each command that talks to the broker."""


def grants(rights: Iterable[Right], principal: str) -> list[str]:
    """Return arguments of `kafka-acls.sh` that give `principal` these rights: a line for each operation and kind."""
    names: dict[tuple[Operation, str, bool], list[str]] = {}
    for right in rights:
        names.setdefault((right.operation, right.kind, right.is_prefix), []).append(right.name)
    return [
        f"--add --allow-principal {principal} --operation {operation} "
        + " ".join(f"--{kind} {name}" for name in resources)
        + " --resource-pattern-type prefixed" * is_prefix
        for (operation, kind, is_prefix), resources in names.items()
    ]
