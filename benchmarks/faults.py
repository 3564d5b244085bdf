"""A whole line under load, and faults one after the other: is any frame lost, and does anything contradict itself?

    python -m benchmarks.faults [--minutes N] [--seed S] [--broker apache] [--every SECONDS] [--only KIND ...]

`flawline up` runs on a broker behind a proxy. Every few seconds one fault of a random kind begins; some last for a
while, so that they overlap. Then the line is left alone, the cameras end, and everything is audited from the topics
and the store. The kinds: `kill-ROLE` (SIGKILL) and `pause-ROLE` (SIGSTOP for some seconds) of the producers, an actor,
the workers' supervisor, discovery, the ledger and the broker, `stop-broker` (in order), `cut` (every connection is
reset), `hold` (the network drops every packet), `slow` (64 kB/s per connection), `corrupt` (bytes that are no message
on every topic of cameras), `duplicate` (messages of these topics are written once more), `disk` (no byte can be
written: the producers' files, or those of the broker), `clock-ROLE` (the wall clock is seconds to hours wrong for some
seconds, and then right again).

A clock needs a C compiler, the disk of Apache Kafka the right to mount a file system; without them these kinds are left
out, and the report says so.

SIGKILL of the producers costs the frames in their memory, which the journal counted: those are gaps. With
`--durability disk`, the default, every frame is on disk before it counts, and there must be none. Only what a full
disk refuses is in memory until it works again: `gaps_without_disk` are captures since a disk was full, of producers
that were killed before they could write again. The journals on disk tell which these are; `gaps` are all others.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from benchmarks import clocks
from benchmarks.clocks import Clocks
from benchmarks.kafka_cluster import KafkaCluster
from benchmarks.report import Goal, add_json_option, emit
from benchmarks.running_line import ROLES, Footprint, RunningLine
from benchmarks.small_disk import SmallDisk
from discovery.store.store import Store
from flawline import kafka_clients, messages
from flawline.errors import FlawlineError
from flawline.messages import DeadLetter, DeadLetterReason, Frame, Verdict
from ledger.accounting import Report, SequenceRange

PAUSE_S: Final = (1.0, 6.0)
AWAY_S: Final = (0.5, 4.0)
WRONG_S: Final = (2.0, 8.0)
OFFSETS_S: Final = (-7200.0, -600.0, -60.0, -5.0, 5.0, 60.0, 600.0, 7200.0)
"""How wrong a clock is: a drift that a time server corrects, an operator's mistake, a wrong time zone. Two hours stay
below the six that frames are kept."""

ROLES_LIMIT_S: Final = 300.0
LEVEL: Final = 1.5
"""How much more than before a role may hold: its processes are others, of another age. After 245 and 281 faults in ten
minutes it was 1.21 times the memory and 1.33 times the descriptors, at most."""

NOTICED_S: Final = 3.0
"""Apache Kafka ends so long after its disk was full, at most: seen, not specified."""

DUPLICATES: Final = 5
DISK_BYTES: Final = 2 << 30
SLOW_BYTES_PER_S: Final = 64_000.0
QUIET_S: Final = 20.0
SETTLE_S: Final = 600.0
GARBAGE: Final = (b"", b"\x00" * 40, b"\x93\x01\x02", b"\xff" * 2_000, b"not a message at all")

WEIGHTS: Final[dict[str, float]] = {
    "kill-produce": 3,
    "kill-actor": 4,
    "kill-work": 1,
    "kill-discover": 2,
    "kill-ledger": 2,
    "kill-broker": 2,
    "stop-broker": 1,
    "pause-produce": 2,
    "pause-actor": 3,
    "pause-work": 1,
    "pause-discover": 2,
    "pause-broker": 2,
    "cut": 4,
    "hold": 2,
    "slow": 2,
    "corrupt": 3,
    "duplicate": 2,
    "disk-produce": 2,
    "disk-broker": 1,
    "clock-produce": 2,
    "clock-work": 2,
    "clock-discover": 1,
    "clock-ledger": 1,
    "clock-broker": 1,
}


@dataclass(frozen=True)
class UnsafeCaptures:
    """Captures that were in memory only when their process was killed: from a sequence on, in epochs of a camera."""

    camera: str
    first_epoch: int
    last_epoch: int
    first: int

    def among(self, camera: str, gap: SequenceRange) -> int:
        """Return how many of the captures of a gap these are."""
        if camera != self.camera or not self.first_epoch <= gap.epoch <= self.last_epoch:
            return 0
        return max(0, gap.last + 1 - max(gap.first, self.first))


@dataclass
class Faults:
    """Does faults to a line and counts them. Those that last end on threads of their own."""

    line: RunningLine
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    corrupted: int = 0
    duplicated: set[str] = field(default_factory=set)
    unsafe: list[UnsafeCaptures] = field(default_factory=list)
    _noted: dict[int, dict[str, tuple[int, int]]] = field(default_factory=dict)
    _broker: threading.Lock = field(default_factory=threading.Lock)
    _clocks: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    _running: list[threading.Thread] = field(default_factory=list)

    def do(self, kind: str) -> None:
        """Begin one fault; `missed` counts those for which there was nothing to disturb."""
        action, _, target = kind.partition("-")
        work: Callable[[], bool]
        if action == "clock":
            work = partial(self._set_clock, target)
        elif target == "broker":
            work = {"kill": self._kill_broker, "stop": self._stop_broker, "pause": self._pause_broker}.get(
                action, self._fill_broker
            )
        elif target:
            victims = self.line.processes(target)
            victim = self.chance.choice(victims) if victims else None
            work = {"kill": self._kill, "pause": self._pause, "disk": self._fill}[action](victim)
        else:
            work = {
                "cut": self._cut,
                "hold": self._hold,
                "slow": self._slow,
                "corrupt": self._corrupt,
                "duplicate": self._duplicate,
            }[action]
        thread = threading.Thread(target=self._count, args=(kind, work), daemon=True)
        thread.start()
        self._running.append(thread)

    def end(self) -> None:
        """Wait until every fault is over, and leave nothing disturbed."""
        for thread in self._running:
            thread.join(60)
        self.line.proxy.resume()
        if not self.line.broker_runs:
            self.line.start_broker()

    def _count(self, kind: str, work: Callable[[], bool]) -> None:
        try:
            happened = work()
        except (psutil.Error, OSError, FlawlineError, KafkaError, RuntimeError) as error:
            print(f"{kind}: {error}", file=sys.stderr)
            happened = False
        (self.done if happened else self.missed)[kind] += 1

    def _between(self, bounds: tuple[float, float]) -> float:
        return self.chance.uniform(*bounds)

    # Processes

    def _kill(self, process: psutil.Process | None) -> Callable[[], bool]:
        def work() -> bool:
            if process is None:
                return False
            if process.pid in self._noted:
                process.suspend()  # else it could write between the look and the kill
                self.unsafe += self._unsafe_captures(process)
            process.kill()
            return True

        return work

    def _unsafe_captures(self, process: psutil.Process) -> list[UnsafeCaptures]:
        """Return the captures of producers, whose disk was full, that they have not noted on disk since then."""
        started_ms, now_ms = int(process.create_time() * 1000), time.time_ns() // 1_000_000
        then, now, unsafe = self._noted[process.pid], self.line.noted_captures(), []
        for camera in (settings.name for settings in self.line.settings.cameras):
            epoch, count = now.get(camera, (0, 0))
            if epoch < started_ms:  # the disk was full before the first capture
                unsafe.append(UnsafeCaptures(camera, started_ms, now_ms, 0))
            elif then.get(camera) == (epoch, count):
                unsafe.append(UnsafeCaptures(camera, epoch, epoch, count))
        return unsafe

    def _pause(self, process: psutil.Process | None) -> Callable[[], bool]:
        pause_s = self._between(PAUSE_S)

        def work() -> bool:
            if process is None:
                return False
            process.suspend()
            time.sleep(pause_s)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
            return True

        return work

    def _fill(self, process: psutil.Process | None) -> Callable[[], bool]:
        full_s = self._between(PAUSE_S)

        def work() -> bool:
            if process is None:
                return False
            _let_write(process.pid, 0)
            self._noted[process.pid] = self.line.noted_captures()
            time.sleep(full_s)
            with contextlib.suppress(ProcessLookupError):
                _let_write(process.pid, resource.RLIM_INFINITY)
            return True

        return work

    # The broker: one fault at a time. None waits for the one before it, or a slow start would keep the broker away.

    @contextlib.contextmanager
    def _free_broker(self) -> Iterator[bool]:
        is_free = self._broker.acquire(blocking=False)
        try:
            yield is_free
        finally:
            if is_free:
                self._broker.release()

    def _away(self, end: Callable[[], None]) -> bool:
        with self._free_broker() as is_free:
            if is_free:
                end()
                time.sleep(self._between(AWAY_S))
                self.line.start_broker()
            return is_free

    def _kill_broker(self) -> bool:
        return self._away(lambda: self.line.end_broker(kill=True))

    def _stop_broker(self) -> bool:
        return self._away(lambda: self.line.end_broker(kill=False))

    def _broker_pid(self) -> int:
        broker = self.line.broker
        assert not isinstance(broker, KafkaCluster), "faults are for one broker"
        return broker.pid

    def _pause_broker(self) -> bool:
        with self._free_broker() as is_free:
            return is_free and self._pause(psutil.Process(self._broker_pid()))()

    def _fill_broker(self) -> bool:
        with self._free_broker() as is_free:
            if not is_free:
                return False
            if (disk := self.line.disk) is None:
                return self._fill(psutil.Process(self._broker_pid()))()
            disk.fill()
            time.sleep(self._between(PAUSE_S))
            disk.relieve()
            time.sleep(NOTICED_S)
            if not self.line.broker_runs:  # Apache Kafka ends when its disk fails, sooner or later
                self.line.end_broker(kill=True)
                self.line.start_broker()
            return True

    def _set_clock(self, role: str) -> bool:
        if self.line.clocks is None:
            return False
        with self._clocks[role]:
            self.line.clocks.jump(role, self.chance.choice(OFFSETS_S))
            time.sleep(self._between(WRONG_S))
            self.line.clocks.jump(role, 0.0)
        return True

    # The network, and what comes over it

    def _cut(self) -> bool:
        self.line.proxy.cut()
        return True

    def _hold(self) -> bool:
        self.line.proxy.hold()
        time.sleep(self._between(AWAY_S))
        self.line.proxy.resume()
        return True

    def _slow(self) -> bool:
        self.line.proxy.slow(SLOW_BYTES_PER_S)
        time.sleep(self._between(PAUSE_S))
        self.line.proxy.resume()
        return True

    def _corrupt(self) -> bool:
        producer = kafka_clients.producer(self.line.settings)
        try:
            names = [self.line.settings.topic(name) for name in ("frames", "verdicts", "defects", "ledger")]
            sent = [producer.send(name, value=value, partition=0) for name in names for value in GARBAGE]
            for future in sent:
                future.get(timeout=30)
            self.corrupted += len(GARBAGE)
        finally:
            kafka_clients.close_producer(producer)
        return True

    def _duplicate(self) -> bool:
        """Write the newest messages of a partition of each topic once more, as a client without idempotence does."""
        consumer, producer = kafka_clients.consumer(self.line.settings), kafka_clients.producer(self.line.settings)
        try:
            for name in ("frames", "verdicts", "defects", "ledger"):
                place = TopicPartition(topic := self.line.settings.topic(name), 0)
                places = [
                    TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or [])
                ]
                ends = consumer.end_offsets(places)
                place = self.chance.choice([place for place in places if ends[place]] or places)
                consumer.assign([place])
                consumer.seek(place, max(0, ends[place] - DUPLICATES))
                for record in consumer.poll(timeout_ms=2000).get(place, []):
                    self.duplicated.update(value.decode() for key, value in record.headers if key == "frame-id")
                    producer.send(topic, record.value, record.key, list(record.headers), place.partition).get(
                        timeout=30
                    )
        finally:
            consumer.close(autocommit=False)
            kafka_clients.close_producer(producer)
        return True


def _let_write(pid: int, limit_bytes: int) -> None:
    """Let a process write files up to this size; 0 is a full disk."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))


def run(
    broker: str,
    minutes: float,
    seed: int,
    *,
    cameras: int = 4,
    rate_hz: float = 4.0,
    every_s: float = 2.5,
    durability: str = "disk",
    delivery: str = "at-least-once",
    kinds: list[str] | None = None,
    quiet_s: float = QUIET_S,
    settle_s: float = SETTLE_S,
    log: Path | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the figures of the audit, and the details: how often each fault happened.

    `quiet_s` is the time without faults before and behind them, after which memory and descriptors are compared;
    `settle_s` the longest wait for the frames that are in flight when the cameras have ended.
    """
    chance = random.Random(seed)
    chosen = kinds or possible(broker)
    weights = [WEIGHTS[kind] for kind in chosen]
    with (
        tempfile.TemporaryDirectory(prefix="flawline-faults-") as name,
        RunningLine(
            Path(name),
            broker,
            cameras=cameras,
            rate_hz=rate_hz,
            clocks=Clocks(Path(name) / "clocks") if any(kind.startswith("clock") for kind in chosen) else None,
            disk=SmallDisk(Path(name) / "broker", DISK_BYTES) if _needs_mount(broker) & set(chosen) else None,
            producer={"durability": durability},
            kafka={"delivery": delivery},
        ) as line,
    ):
        try:
            line.wait_for_verdicts(20)
            time.sleep(quiet_s / 2)
            before = settled_footprint(line)
            faults = Faults(line, chance)
            end = time.monotonic() + minutes * 60
            while time.monotonic() < end:
                faults.do(chance.choices(chosen, weights)[0])
                time.sleep(chance.uniform(0.5, 1.5) * every_s)
            faults.end()
            back_at = time.monotonic()
            line.wait_for_verdicts(1, timeout_s=120)
            resumed_after_s = time.monotonic() - back_at
            time.sleep(quiet_s)
            after = settled_footprint(line)
            report = line.settle(settle_s)
            total = report.total
            without_disk = gaps_without_disk(report, faults.unsafe)
            figures: dict[str, float] = {
                "faults": sum(faults.done.values()),
                "resumed_after_s": resumed_after_s,
                "captured": total.captured,
                "scored": total.scored,
                "dropped": sum(total.dropped.values()),
                "in_flight": total.in_flight,
                "gaps": total.gaps - without_disk,
                "gaps_without_disk": without_disk,
                "ledger_conflicts": total.conflicts,
                "balanced": float(report.total.balanced),
                "up_runs": float(line.up_runs),
                **audit(line, faults),
                **{f"{role}_rss_growth": _growth(before[role].rss_bytes, after[role].rss_bytes) for role in before},
                **{
                    f"{role}_descriptors_growth": _growth(before[role].descriptors, after[role].descriptors)
                    for role in before
                },
            }
        finally:
            if log is not None:
                log.write_bytes((line.folder / "up.log").read_bytes())
    return figures, {
        "broker": broker,
        "seed": seed,
        "minutes": minutes,
        "durability": durability,
        "faults": dict(faults.done),
        "without_effect": dict(faults.missed),
        "left_out": sorted(WEIGHTS.keys() - chosen),
        "gap_ranges": {
            name: [asdict(span) for span in account.gap_ranges]
            for name, account in report.cameras.items()
            if account.gap_ranges
        },
        "conflict_ranges": {
            name: [asdict(span) for span in account.conflict_ranges]
            for name, account in report.cameras.items()
            if account.conflict_ranges
        },
        "killed_without_disk": [asdict(captures) for captures in faults.unsafe],
        "dropped": dict(total.dropped),
        "dead_lettered": dict(total.dead_lettered),
        "before": {role: asdict(held) for role, held in before.items()},
        "after": {role: asdict(held) for role, held in after.items()},
        "load_average": os.getloadavg(),
    }


def gaps_without_disk(report: Report, unsafe: Sequence[UnsafeCaptures]) -> int:
    """Return how many of the gaps are `unsafe` captures."""
    return sum(
        max((captures.among(camera, gap) for captures in unsafe), default=0)
        for camera, account in report.cameras.items()
        for gap in account.gap_ranges
    )


def possible(broker: str) -> list[str]:
    """Return the kinds of faults that this machine lets the benchmark do."""
    left_out = set() if clocks.compiler() else {kind for kind in WEIGHTS if kind.startswith("clock")}
    if os.geteuid() != 0:
        left_out |= _needs_mount(broker)
    return [kind for kind in WEIGHTS if kind not in left_out]


def _needs_mount(broker: str) -> set[str]:
    """Return the kinds that need a file system to be mounted: the embedded broker obeys a limit of file sizes."""
    return {"disk-broker"} if broker == "apache" else set()


def settled_footprint(line: RunningLine) -> dict[str, Footprint]:
    """Return what each role holds, as soon as each has a process: one may just have been killed."""
    deadline = time.monotonic() + ROLES_LIMIT_S
    while True:
        footprint = line.footprint()
        if all(held.rss_bytes for role, held in footprint.items() if role != "console"):
            return footprint
        if time.monotonic() > deadline:
            raise FlawlineError(f"a role does not run again after {ROLES_LIMIT_S:.0f} s: {footprint}")
        time.sleep(1)


def _growth(before: int, after: int) -> float:
    return after / before if before else 0.0


def audit(line: RunningLine, faults: Faults) -> dict[str, float]:
    """Return how often topics and store contradict each other; every figure but `verdicts` must be 0."""
    contents: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    copies: Counter[str] = Counter()
    last: dict[str, tuple[int, int]] = {}
    disorder = 0
    for verdict in _messages(line, "verdicts", Verdict):
        first = not copies[verdict.frame_id]
        copies[verdict.frame_id] += 1
        contents[verdict.frame_id].add((verdict.score, verdict.decision, verdict.model_version))
        if first:
            place = verdict.epoch, verdict.sequence
            disorder += place < last.get(verdict.camera, (0, 0))
            last[verdict.camera] = max(place, last.get(verdict.camera, (0, 0)))
    sent_twice = _sent_twice(line)
    letters = Counter(letter.reason for letter in _messages(line, "dead-letters", DeadLetter))
    unreadable = letters[DeadLetterReason.WRONG_SCHEMA] + letters[DeadLetterReason.UNDECODABLE]
    store = Store(line.settings.store_url)
    try:
        inconsistencies = _inconsistencies(store)
    finally:
        store.close()
    return {
        "verdicts": len(copies),
        "verdicts_twice": sum(count > 1 for name, count in copies.items() if name not in faults.duplicated),
        "verdicts_repeated": sum(
            count > 1 for name, count in copies.items() if name not in faults.duplicated | sent_twice
        ),
        "verdicts_contradict": sum(len(outcomes) > 1 for outcomes in contents.values()),
        "out_of_order": disorder,
        "corrupt_without_letter": max(0, faults.corrupted - unreadable),
        "other_dead_letters": sum(letters.values()) - unreadable,
        "store_inconsistencies": inconsistencies,
    }


def _inconsistencies(store: Store) -> int:
    from benchmarks.discovery_faults import Findings, check

    findings = Findings()
    check(store, findings)
    for note in findings.notes:
        print(note, file=sys.stderr)
    return findings.inconsistencies + findings.ids_doubled


def _sent_twice(line: RunningLine) -> set[str]:
    """Return the frames that a killed producer has sent twice, so that each of the two has its verdict."""
    copies = Counter(frame.frame_id for frame in _messages(line, "frames", Frame))
    return {name for name, count in copies.items() if count > 1}


def _messages(line: RunningLine, name: str, kind: type) -> Iterator[Any]:
    """Give the messages of a topic; what is none, as the corrupt ones, is left out."""
    consumer = kafka_clients.consumer(line.settings)
    topic = line.settings.topic(name)
    try:
        places = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or [])]
        consumer.assign(places)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(places)
        while any(consumer.position(place) < end for place, end in ends.items()):
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    with contextlib.suppress(messages.SchemaError):
                        yield messages.decode(kind, record.value or b"")
    finally:
        consumer.close(autocommit=False)


def goals(durability: str, delivery: str) -> dict[str, Goal]:
    """Return what the audit must find."""
    zero = ("dropped", "in_flight", "ledger_conflicts", "verdicts_contradict", "out_of_order", "corrupt_without_letter")
    wanted: dict[str, Goal] = dict.fromkeys((*zero, "store_inconsistencies"), ("==", 0))
    if durability == "disk":
        wanted["gaps"] = ("==", 0)
    if delivery == "exactly-once":
        wanted["verdicts_repeated"] = ("==", 0)
    for role in ROLES:
        wanted |= {f"{role}_rss_growth": ("<=", LEVEL), f"{role}_descriptors_growth": ("<=", LEVEL)}
    return wanted | {"balanced": ("==", 1), "up_runs": ("==", 1), "resumed_after_s": ("<=", 30)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broker", choices=["apache", "embedded"], default="embedded")
    parser.add_argument("--every", type=float, default=2.5, help="seconds between two faults, on average")
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--rate-hz", type=float, default=4.0)
    parser.add_argument("--durability", choices=["memory", "disk"], default="disk")
    parser.add_argument("--delivery", choices=["at-least-once", "exactly-once"], default="at-least-once")
    parser.add_argument("--only", nargs="+", choices=sorted(WEIGHTS), metavar="KIND")
    parser.add_argument("--log", type=Path, help="file for the log of the line")
    add_json_option(parser)
    arguments = parser.parse_args()
    try:
        figures, details = run(
            arguments.broker,
            arguments.minutes,
            arguments.seed,
            cameras=arguments.cameras,
            rate_hz=arguments.rate_hz,
            every_s=arguments.every,
            durability=arguments.durability,
            delivery=arguments.delivery,
            kinds=arguments.only,
            log=arguments.log,
        )
    except FlawlineError as error:
        raise SystemExit(f"faults: {error}") from error
    emit("faults", figures, goals(arguments.durability, arguments.delivery), arguments.json, details=details)


if __name__ == "__main__":
    main()
