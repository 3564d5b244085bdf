"""Dead letters: list them, and send their original frames again.

A replay sends the original key, value and headers to the original partition, and adds the header `replayed-from`, which
names the dead letter. That header alone makes a second replay harmless, because a replayed frame is in one of three
places:

1. in the log after the workers' committed offset, with the header: it waits for a worker;
2. among the verdicts: it is scored;
3. among the dead letters again, with the header: the new letter stands for the old one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError

from flawline import kafka_clients, topics
from flawline.clock import UtcNs, utc_ns
from flawline.errors import FlawlineError
from flawline.messages import REPLAYED_FROM, DeadLetter, DeadLetterReason, decode
from flawline.settings.tree import Settings
from ledger.accounting import Identity
from ledger.reader import LedgerReader, Progress, Record, parse_identity

CONFIRM_TIMEOUT_S = 60.0  # a judgement, not measured

IN_FLIGHT_LIMIT_BYTES = 64 << 20
"""Limit of the bytes that a replay has sent without an acknowledgement; the client itself has no limit."""


class Status(StrEnum):
    """Where a dead letter stands."""

    OPEN = "open"
    SCORED = "scored"  # its frame has a verdict
    IN_LOG = "in-log"  # its replay waits for a worker
    SUPERSEDED = "superseded"  # there is a later letter of the same record


@dataclass(frozen=True)
class Letter:
    """A dead letter without its value, which may be many megabytes; `at` is UTC ns."""

    partition: int
    offset: int
    at: int
    reason: DeadLetterReason
    error: str
    origin: tuple[str, int, int]  # topic, partition and offset of the original record
    identity: Identity | None
    camera: str | None
    size_bytes: int
    replayed_from: str | None
    status: Status = Status.OPEN

    @property
    def name(self) -> str:
        """The name of the letter in the header `replayed-from`."""
        return f"{topics.DEAD_LETTERS.name}/{self.partition}/{self.offset}"

    def as_dict(self) -> dict[str, Any]:
        """Return what `flawline replay --json` prints of a letter."""
        return {
            "letter": self.name,
            "status": str(self.status),
            "reason": str(self.reason),
            "error": self.error,
            "camera": self.camera,
            "frame_id": ":".join(map(str, self.identity)) if self.identity else None,
            "at": self.at,
            "size_bytes": self.size_bytes,
            "replayed_from": self.replayed_from,
        }


@dataclass(frozen=True)
class Filter:
    """Which letters to choose: by reason, by camera and by age; an empty set or None chooses all."""

    reasons: frozenset[DeadLetterReason] = frozenset()
    cameras: frozenset[str] = frozenset()
    youngest_s: float | None = None  # the least age
    oldest_s: float | None = None  # the greatest age

    def matches(self, letter: Letter, now_ns: int) -> bool:
        """Tell whether the filter chooses a letter at `now_ns` (UTC)."""
        age_s = (now_ns - letter.at) / 1e9
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.cameras or letter.camera in self.cameras)
            and (self.youngest_s is None or age_s >= self.youngest_s)
            and (self.oldest_s is None or age_s <= self.oldest_s)
        )


def letter_of(record: Record, message: DeadLetter) -> Letter:
    """Return a record of the topic `dead-letters`, with its decoded `message`, as a letter."""
    identity = parse_identity(message.frame_id)
    replayed_from = dict(message.headers).get(REPLAYED_FROM)
    key = message.key.decode("utf-8", "replace") if message.key else None
    return Letter(
        partition=record.partition,
        offset=record.offset,
        at=message.at,
        reason=message.reason,
        error=message.error,
        origin=(message.topic, message.partition, message.offset),
        identity=identity,
        camera=identity[0] if identity else key,
        size_bytes=len(message.value),
        replayed_from=replayed_from.decode("utf-8", "replace") if replayed_from else None,
    )


def with_status(
    letters: Iterable[Letter], is_scored: Callable[[Identity], bool], in_log: Iterable[str]
) -> list[Letter]:
    """Return the letters with their status; `in_log` names those whose replay waits for a worker."""
    letters = list(letters)
    waiting = set(in_log)
    replayed_and_back = {letter.replayed_from for letter in letters}
    newest: dict[Any, Letter] = {}
    for letter in letters:
        newest[letter.identity or letter.origin] = letter

    def status(letter: Letter) -> Status:
        if letter.identity and is_scored(letter.identity):
            return Status.SCORED
        if letter.name in replayed_and_back or newest[letter.identity or letter.origin] is not letter:
            return Status.SUPERSEDED
        return Status.IN_LOG if letter.name in waiting else Status.OPEN

    return [replace(letter, status=status(letter)) for letter in letters]


def find(settings: Settings, wanted: Filter, progress: Progress | None = None, clock: UtcNs = utc_ns) -> list[Letter]:
    """Return the dead letters of the line that match, oldest first, with their status. Raises FlawlineError."""
    letters: list[Letter] = []
    with LedgerReader(settings) as reader:
        reader.poll(progress, lambda record, message: letters.append(letter_of(record, message)))
        in_log = [origin.decode("utf-8", "replace") for origin in reader.replays_in_log()]
        letters = with_status(letters, reader.is_scored, in_log)
    return [letter for letter in letters if wanted.matches(letter, clock())]


def send(settings: Settings, letters: Iterable[Letter], progress: Progress | None = None) -> int:
    """Send the frames of the open letters again and return their number, once the broker has acknowledged each.

    Raises FlawlineError when a letter is no longer in its topic, or when the broker does not acknowledge a frame.
    """
    own_topics = {settings.topic(topics.FRAMES.name)}
    chosen = [letter for letter in letters if letter.status is Status.OPEN and letter.origin[0] in own_topics]
    if not chosen:
        return 0
    reader = kafka_clients.consumer(settings, max_poll_records=1)
    writer = kafka_clients.producer(settings, topics.FRAMES.name)
    pending: list[tuple[Letter, int, Any]] = []
    try:
        for done, letter in enumerate(chosen):
            message = _fetch(settings, reader, letter)
            headers = [pair for pair in message.headers if pair[0] != REPLAYED_FROM]
            future = writer.send(
                message.topic,
                key=message.key,
                value=message.value,
                headers=[*headers, (REPLAYED_FROM, letter.name.encode())],
                partition=message.partition,
            )
            pending.append((letter, len(message.value), future))
            while sum(size for _, size, _ in pending) > IN_FLIGHT_LIMIT_BYTES:
                _confirm(*pending.pop(0))
            if progress:
                progress(done + 1, len(chosen))
        for item in pending:
            _confirm(*item)
    except KafkaError as error:
        raise FlawlineError(f"replay: broker {settings.bootstrap_servers}: {error}: run it again") from error
    finally:
        reader.close()
        kafka_clients.close_producer(writer)
    return len(chosen)


def count_by_reason(letters: Iterable[Letter]) -> dict[str, int]:
    """Return the number of letters by reason."""
    return dict(sorted(Counter(str(letter.reason) for letter in letters).items()))


def _fetch(settings: Settings, reader: Any, letter: Letter) -> DeadLetter:
    place = TopicPartition(settings.topic(topics.DEAD_LETTERS.name), letter.partition)
    reader.assign([place])
    reader.seek(place, letter.offset)
    for records in reader.poll(timeout_ms=int(CONFIRM_TIMEOUT_S * 1000)).values():
        for record in records:
            if record.offset == letter.offset:
                return decode(DeadLetter, record.value or b"")
    raise FlawlineError(f"dead letter {letter.name} is no longer in its topic: list the dead letters again")


def _confirm(letter: Letter, _size: int, future: Any) -> None:
    try:
        future.get(timeout=CONFIRM_TIMEOUT_S)
    except KafkaError as error:
        raise FlawlineError(
            f"replay of {letter.name}: not acknowledged ({error}): run it again, no frame is sent twice"
        ) from error
