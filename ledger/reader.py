"""Reads the accounting of captures from the topics themselves, all at once or poll by poll.

A snapshot is read in an order that makes it consistent without stopping the line: first the workers' committed
offsets, then `ledger`, `verdicts` and `dead-letters` to their ends, then `frames` behind the committed offsets. A
worker confirms a frame's outcome before it commits, so a frame before the committed offset has its outcome in what is
read next; and the watermarks are older than the end of `frames`, so no capture is missed in between.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import CoordinatorNotAvailableError, GroupIdNotFoundError, KafkaError

from flawline import kafka_clients, telemetry, topics
from flawline.clock import UtcNs, utc_ns
from flawline.errors import FlawlineError
from flawline.messages import (
    REPLAYED_FROM,
    DeadLetter,
    DeadLetterReason,
    DropReason,
    LedgerEntry,
    SchemaError,
    decode,
    parse_frame_id,
)
from flawline.settings.tree import Settings
from ledger.accounting import Account, Identity, Ledger, Report

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with records read and records there are."""

STALLED_AFTER_S = 30.0
"""Without any record for this long the broker is taken for away."""

HORIZON_MARGIN_MS = 60_000
"""Clocks of producers and workers may differ by this much around the oldest verdict that is kept."""

UNREADABLE_SHOWN = 20


class Record(Protocol):
    """What is used of a consumer record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class LedgerReader:
    """Follows the topics of one line; every `poll` gives the account up to now. Positions are kept between polls."""

    def __init__(self, settings: Settings, clock: UtcNs = utc_ns) -> None:
        self._settings = settings
        self._clock = clock
        # A verdict of an aborted transaction never happened.
        self._outcomes = kafka_clients.consumer(settings, isolation_level="read_committed", max_poll_records=2000)
        self._frames = kafka_clients.consumer(settings)
        self._admin = kafka_clients.admin(settings)
        self._positions: dict[TopicPartition, int] = {}
        self._in_log: dict[TopicPartition, deque[tuple[int, Identity, bytes | None]]] = {}
        self._unreadable: list[str] = []
        self._ledger: Ledger | None = None

    def __enter__(self) -> LedgerReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        for client in (self._outcomes, self._frames, self._admin):
            client.close()

    @property
    def ledger(self) -> Ledger:
        """What was read so far."""
        if self._ledger is None:
            self._ledger = Ledger(horizon_ns=1_000_000 * self._horizon_ms())
        return self._ledger

    def poll(
        self, progress: Progress | None = None, on_dead_letter: Callable[[Record, DeadLetter], None] | None = None
    ) -> Report:
        """Read what is new and give the account. Raises FlawlineError when the broker is away."""
        try:
            return self._poll(progress or (lambda done, total: None), on_dead_letter)
        except KafkaError as error:
            raise FlawlineError(
                f"ledger: broker {self._settings.bootstrap_servers} does not answer ({error}): "
                "see that it runs and that this role may read the line's topics"
            ) from error

    def replays_in_log(self) -> set[bytes]:
        """Origins (`replayed-from` headers) of the replayed frames that wait in the log."""
        return {origin for waiting in self._in_log.values() for _, _, origin in waiting if origin}

    def in_log(self) -> Iterator[Identity]:
        """Frames behind the workers' committed offsets, as of the last poll."""
        return (identity for waiting in self._in_log.values() for _, identity, _ in waiting if identity[0])

    def _poll(self, progress: Progress, on_dead_letter: Callable[[Record, DeadLetter], None] | None) -> Report:
        committed = self._committed()
        takers: dict[str, Callable[[Record], None]] = {
            self._settings.topic(topics.LEDGER.name): self._take_entry,
            self._settings.topic(topics.VERDICTS.name): self._take_verdict,
            self._settings.topic(topics.DEAD_LETTERS.name): lambda record: self._take_dead_letter(
                record, on_dead_letter
            ),
        }
        _ = self.ledger  # the horizon must be known before the first entry
        for record in self._new_records(self._outcomes, list(takers), progress):
            takers[record.topic](record)
        self._follow_frames(committed, progress)
        return self.ledger.report(self.in_log(), self._clock(), unreadable=self._unreadable)

    # What the records say

    def _take_entry(self, record: Record) -> None:
        try:
            self.ledger.record_entry(decode(LedgerEntry, record.value or b""))
        except SchemaError as error:
            self._note_unreadable(record, str(error))

    def _take_verdict(self, record: Record) -> None:
        identity = _identity(record)
        if identity is None:
            self._note_unreadable(record, "no header frame-id names a capture")
        else:
            self.ledger.record_scored(identity, 1_000_000 * record.timestamp)

    def _take_dead_letter(self, record: Record, listener: Callable[[Record, DeadLetter], None] | None) -> None:
        try:
            letter = decode(DeadLetter, record.value or b"")
        except SchemaError as error:
            self._note_unreadable(record, str(error))
            return
        identity = parse_identity(letter.frame_id)
        if identity is None:
            self.ledger.record_unidentified((letter.topic, letter.partition, letter.offset), letter.reason)
        else:
            self.ledger.record_dead_letter(identity, letter.reason)
        if listener is not None:
            listener(record, letter)

    def _note_unreadable(self, record: Record, why: str) -> None:
        text = f"{record.topic}/{record.partition} offset {record.offset}: {why}"
        log.warning("ledger cannot read %s", text)
        if len(self._unreadable) < UNREADABLE_SHOWN:
            self._unreadable.append(text)

    # Reading

    def _partitions(self, consumer: KafkaConsumer, names: list[str]) -> list[TopicPartition]:
        present = consumer.topics() & set(names)
        return [
            TopicPartition(name, number)
            for name in sorted(present)
            for number in sorted(consumer.partitions_for_topic(name) or ())
        ]

    def _new_records(
        self, consumer: KafkaConsumer, names: list[str], progress: Progress, *, start: dict[Any, int] | None = None
    ) -> Iterator[Record]:
        """Records from where the last call stopped (or from `start`, when that is further on) to the end as of now."""
        partitions = self._partitions(consumer, names)
        if not partitions:
            return
        ends = consumer.end_offsets(partitions)
        begins = consumer.beginning_offsets(partitions)
        left: dict[TopicPartition, int] = {}
        for partition in partitions:
            known = max(self._positions.get(partition, 0), begins[partition], (start or {}).get(partition, 0))
            self._positions[partition] = known
            if known < ends[partition]:
                left[partition] = ends[partition]
        if not left:
            return
        consumer.assign(list(left))
        consumer.resume(*left)  # what the last call has paused stays so over an assignment
        for partition in left:
            consumer.seek(partition, self._positions[partition])
        total, done = sum(left[p] - self._positions[p] for p in left), 0
        deadline = time.monotonic() + STALLED_AFTER_S
        while left:
            for partition, records in consumer.poll(timeout_ms=500).items():
                for record in records:
                    if partition in left and record.offset < left[partition]:
                        done += 1
                        yield record
            # Positions also pass over what is not delivered: control records, and what compaction took out.
            moved = {partition: consumer.position(partition) for partition in left}
            if moved != {partition: self._positions[partition] for partition in left}:
                deadline = time.monotonic() + STALLED_AFTER_S
            elif time.monotonic() > deadline:
                stuck = min(left)
                raise FlawlineError(
                    f"ledger: {stuck.topic}/{stuck.partition} gives nothing behind offset {self._positions[stuck]} "
                    f"for {STALLED_AFTER_S:.0f} s: see that the broker is well"
                )
            for partition, position in moved.items():
                self._positions[partition] = min(position, left[partition])
                if position >= left[partition]:
                    del left[partition]
                    consumer.pause(partition)
            progress(done, total)

    def _committed(self) -> dict[TopicPartition, int]:
        """The workers' committed offsets in `frames`; what has none was never worked on."""
        group = self._settings.topic(topics.WORKERS_GROUP)
        try:
            found = self._admin.list_group_offsets(group).get(group, {})
        except (GroupIdNotFoundError, CoordinatorNotAvailableError):  # no worker has ever been there
            return {}
        return {partition: offset.offset for partition, offset in found.items() if offset.offset >= 0}

    def _follow_frames(self, committed: dict[TopicPartition, int], progress: Progress) -> None:
        for partition, waiting in self._in_log.items():
            while waiting and waiting[0][0] < committed.get(partition, 0):
                waiting.popleft()
        names = [self._settings.topic(topics.FRAMES.name)]
        for record in self._new_records(self._frames, names, progress, start=committed):
            waiting = self._in_log.setdefault(TopicPartition(record.topic, record.partition), deque())
            origin = dict(record.headers).get(REPLAYED_FROM)
            waiting.append((record.offset, _identity(record) or ("", 0, 0), origin))

    def _horizon_ms(self) -> int:
        """UTC ms behind which no verdict has expired: 0, or the newest of the truncated partitions' first records."""
        consumer = self._outcomes
        partitions = self._partitions(consumer, [self._settings.topic(topics.VERDICTS.name)])
        begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        truncated = [partition for partition in partitions if begins[partition] > 0]
        if not truncated:
            return 0
        # A partition that is empty by now says only that its records were older than the retention.
        horizon = self._clock() // 1_000_000 - topics.VERDICTS.retention_ms if truncated else 0
        waiting = {partition for partition in truncated if begins[partition] < ends[partition]}
        if waiting:
            consumer.assign(sorted(waiting))
            for partition in waiting:
                consumer.seek(partition, begins[partition])
        deadline = time.monotonic() + STALLED_AFTER_S
        while waiting and time.monotonic() < deadline:
            for partition, records in consumer.poll(timeout_ms=500, max_records=100).items():
                if partition in waiting:
                    waiting.remove(partition)
                    consumer.pause(partition)
                    horizon = max(horizon, records[0].timestamp)
        return horizon + HORIZON_MARGIN_MS


def read(settings: Settings, progress: Progress | None = None) -> Report:
    """The account of the line as the topics tell it now."""
    with LedgerReader(settings) as reader:
        return reader.poll(progress)


def export(report: Report) -> None:
    """Set the ledger's Prometheus metrics."""
    telemetry.LEDGER_BALANCED.set(report.balanced)
    for camera, account in report.cameras.items():
        for outcome, reason, count in _series(account):
            telemetry.LEDGER.labels(camera, outcome, reason).set(count)


def _series(account: Account) -> Iterator[tuple[str, str, int]]:
    yield from (
        ("captured", "", account.captured),
        ("scored", "", account.scored),
        ("in_flight", "", account.in_flight),
        ("gap", "", account.gaps),
        ("conflict", "", account.conflicts),
    )
    # Every reason is always there, so that one whose frames were all recovered goes back to 0.
    yield from (("dropped", reason, account.dropped.get(reason, 0)) for reason in DropReason)
    yield from (("dead_lettered", reason, account.dead_lettered.get(reason, 0)) for reason in DeadLetterReason)


def parse_identity(frame_id: str | None) -> Identity | None:
    """Camera, epoch and sequence of a frame id, None when there is none or it is malformed."""
    try:
        return parse_frame_id(frame_id) if frame_id else None
    except ValueError:
        return None


def _identity(record: Record) -> Identity | None:
    header = dict(record.headers).get("frame-id")
    return parse_identity(header.decode("utf-8", "replace")) if header else None
