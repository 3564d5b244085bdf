"""Read the accounting of captures from the topics, all at once or poll by poll.

A poll reads in an order that makes its account consistent without stopping the line:

1. the committed offsets of the workers;
2. the topics `ledger`, `verdicts` and `dead-letters` to their ends;
3. the topic `frames`, from the committed offsets to its end, if there are captures that are in flight when they are
   in it and gaps when not. It holds the images, so it is not read to learn what the other topics say.

A worker waits until the outcome of a frame is acknowledged before it commits, so every frame before the committed
offset of step 1 has its outcome in step 2. With exactly-once delivery both are in one transaction, and step 2 waits for
those that are not at their end. The numbers of captures of step 2 are older than the end of `frames` of
step 3, so no capture is missed in between.

The first poll begins at the newest snapshot (`ledger.snapshot`) when it fits the topics.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

import msgpack
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from flawline import kafka_clients, telemetry, topics
from flawline.clock import Monotonic, UtcNs, utc_ns
from flawline.errors import FlawlineError, one_line
from flawline.messages import (
    REPLAYED_FROM,
    DeadLetter,
    DeadLetterReason,
    DropReason,
    ExpiredFrames,
    LedgerEntry,
    ReadPosition,
    SchemaError,
    decode,
    parse_frame_id,
    type_name,
)
from flawline.settings.tree import Settings
from ledger import committed_offsets, retention, snapshot
from ledger.accounting import Account, Identity, Ledger, Report, VerdictContent
from ledger.log_bounds import log_bounds

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of records that are read, and of all there are."""

STALLED_AFTER_S = 30.0
"""The broker counts as away when it gives no record for this long; a judgement, not measured."""

EXPIRED_SCHEMA = f"{type_name(ExpiredFrames)}/".encode()

HORIZON_MARGIN_MS = 60_000
"""How far the clocks of producers and workers may differ around the oldest verdict; a judgement, not measured."""

OUTCOME_FETCH_BYTES = 4 << 20
FRAME_FETCH_BYTES = 1 << 20
"""Most bytes of one answer of the broker, except for a larger record.

With the 32 MiB of the other clients an answer took over 30 s on an overloaded machine, so that the broker seemed to be
away, and the client held 250 MB; with these limits a reader of 200,000 verdicts peaks at 98 MB.
"""


class Record(Protocol):
    """The fields of a consumer record that are used here."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class _RecordsGoneError(FlawlineError):
    """Retention has deleted outcomes that this reader has not read, so what it knows has holes."""


class LedgerReader:
    """Follows the topics of one line: each `poll` reads what is new and gives the account up to now.

    Raises FlawlineError when the broker cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        clock: UtcNs = utc_ns,
        *,
        since_ns: int | None = None,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        """Account for the captures from `since_ns` (UTC) on, None for all whose verdicts are kept."""
        self._monotonic = monotonic
        self._settings = settings
        self._clock = clock
        self._since_ns = since_ns
        self._kept_ns = round(settings.retention.verdicts_days * 86_400e9)
        # Verdicts of an aborted transaction do not count.
        self._outcomes = kafka_clients.consumer(
            settings,
            isolation_level="read_committed",
            max_poll_records=2000,
            fetch_max_bytes=OUTCOME_FETCH_BYTES,
            max_partition_fetch_bytes=OUTCOME_FETCH_BYTES // 4,
        )
        # It also tells where logs end, since a transaction's offsets may be there before its outcomes are to be seen.
        self._frames = kafka_clients.consumer(
            settings,
            isolation_level="read_uncommitted",
            fetch_max_bytes=FRAME_FETCH_BYTES,
            max_partition_fetch_bytes=FRAME_FETCH_BYTES,
        )
        self._admin = kafka_clients.admin(settings)
        self._positions: dict[TopicPartition, int] = {}
        self._last_records: dict[TopicPartition, Record] = {}
        self._snapshot_positions: dict[TopicPartition, ReadPosition] = {}
        self._in_log: dict[TopicPartition, deque[tuple[int, Identity, bytes | None]]] = {}
        self._ledger: Ledger | None = None
        self._snapshot_due_s = monotonic() + snapshot.SNAPSHOT_INTERVAL_S

    def __enter__(self) -> LedgerReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for client in (self._outcomes, self._frames, self._admin):
            client.close()

    def is_scored(self, identity: Identity) -> bool:
        """Tell whether the frame has a verdict, as of the last poll."""
        return self._ledger is not None and self._ledger.is_scored(identity)

    def poll(
        self, progress: Progress | None = None, on_dead_letter: Callable[[Record, DeadLetter], None] | None = None
    ) -> Report:
        """Read the new records and return the account.

        `on_dead_letter` gets each dead letter that is kept, with its record; then the log is searched for replayed
        frames as well. Raises FlawlineError when the broker is away.
        """
        progress = progress or (lambda done, total: None)
        try:
            try:
                return self._poll(progress, on_dead_letter)
            except _RecordsGoneError as error:
                log.warning("ledger: %s: it begins anew with what is kept", error)
                self._forget()
                return self._poll(progress, on_dead_letter)
        except KafkaError as error:
            raise FlawlineError(
                f"ledger: broker {self._settings.bootstrap_servers} does not answer ({error}): "
                "check that it runs and that this role may read the topics of the line"
            ) from error

    def keep_snapshot(self, interval_s: float = snapshot.SNAPSHOT_INTERVAL_S) -> bool:
        """Write a snapshot after a poll, when nobody has for `interval_s`; return whether one was written.

        First forgets captures whose verdicts have expired, also when another reader writes. A failure is a log line.
        """
        if self._ledger is None or self._since_ns is not None or self._monotonic() < self._snapshot_due_s:
            return False
        self._snapshot_due_s = self._monotonic() + interval_s
        now = self._clock()
        self._ledger.forget_before(now - self._kept_ns)
        try:
            if snapshot.was_written_since(self._settings, self._outcomes, now - int(interval_s * 1e9)):
                return False
            size_bytes = snapshot.write(self._settings, now, self._read_positions(), self._ledger.state)
        except (FlawlineError, KafkaError) as error:
            log.warning("ledger: no snapshot is written: %s", one_line(error, with_type=True))
            return False
        log.debug("snapshot of the ledger: %d bytes", size_bytes)
        return True

    def unread_expire_in_s(self) -> dict[int, float]:
        """Return by partition of `frames` the seconds until retention deletes a frame that no worker has read.

        Raises FlawlineError when the broker is away.
        """
        try:
            places = self._partitions(self._frames, [self._settings.topic(topics.FRAMES.name)])
            now_ms = self._clock() // 1_000_000
            return retention.unread_expire_in_s(
                self._frames, self._admin, places, committed_offsets.of_workers(self._settings, self._admin), now_ms
            )
        except KafkaError as error:
            raise FlawlineError(
                f"ledger: nobody knows how long unread frames are kept ({one_line(error, with_type=True)}): "
                "check the broker, and grant DESCRIBE_CONFIGS on the topic frames"
            ) from error

    def export_retention(self) -> None:
        """Set the metrics of what retention does: when unread frames go, what has gone, and what is free.

        Raises FlawlineError when the broker is away.
        """
        retention.export_disks(self._settings)
        for partition, seconds in self.unread_expire_in_s().items():
            telemetry.UNREAD_EXPIRE_SECONDS.labels(partition).set(seconds)
        prefix = self._settings.kafka.topic_prefix
        names = {name: topic.name for name, topic in topics.named(prefix) if topic.retention is not None}
        try:
            deleted = retention.deleted_records(self._frames, names)
        except KafkaError as error:
            raise FlawlineError(f"ledger: what retention has deleted is not known ({one_line(error)})") from error
        for name, records in deleted.items():
            telemetry.TOPIC_DELETED.labels(names[name]).set(records)

    def replays_in_log(self) -> set[bytes]:
        """Return the headers `replayed-from` of the replayed frames that wait in the log."""
        return {origin for waiting in self._in_log.values() for _, _, origin in waiting if origin}

    def in_log(self) -> Iterator[Identity]:
        """Return the frames that wait for a worker, as of the last poll."""
        return (identity for waiting in self._in_log.values() for _, identity, _ in waiting if identity[0])

    def _forget(self) -> None:
        """Be as before the first poll."""
        self._ledger = None
        for known in (self._positions, self._last_records, self._snapshot_positions, self._in_log):
            known.clear()

    def _poll(self, progress: Progress, on_dead_letter: Callable[[Record, DeadLetter], None] | None) -> Report:
        if self._ledger is None:
            # It is made here, because its horizon must be older than the first entry that is read.
            self._ledger = self._begin(all_dead_letters=on_dead_letter is not None)
        ledger, committed = self._ledger, committed_offsets.of_workers(self._settings, self._admin)
        readers: dict[str, Callable[[Record], None]] = {
            self._settings.topic(topics.LEDGER.name): self._read_entry,
            self._settings.topic(topics.VERDICTS.name): self._read_verdict,
            self._settings.topic(topics.DEAD_LETTERS.name): lambda record: self._read_dead_letter(
                record, on_dead_letter
            ),
        }
        for record in self._new_records(self._outcomes, list(readers), progress):
            readers[record.topic](record)
            self._last_records[TopicPartition(record.topic, record.partition)] = record
        self._release(committed)
        unexplained = ledger.unexplained(self.in_log(), self._clock())
        if unexplained or on_dead_letter is not None:
            self._search_frames(committed, progress)
            ledger.record_missed(unexplained, self.in_log())
        return ledger.report(self.in_log(), self._clock())

    # The begin

    def _begin(self, *, all_dead_letters: bool) -> Ledger:
        """Return the ledger to go on with: from a snapshot, from `since_ns` on, or from the first kept records."""
        if self._since_ns is not None:
            horizon_ns = max(self._since_ns, self._horizon_ns())
            self._seek_time(horizon_ns // 1_000_000 - HORIZON_MARGIN_MS)
            return Ledger(horizon_ns=horizon_ns)
        try:
            newest = snapshot.newest(self._settings, self._outcomes)
            if newest is not None:
                snapshot.require_fit(newest, self._outcomes)
                ledger = Ledger(state=snapshot.decode_state(newest.state))
                skipped = self._settings.topic(topics.DEAD_LETTERS.name) if all_dead_letters else None
                for item in newest.positions:
                    if item.topic != skipped:
                        self._positions[TopicPartition(item.topic, item.partition)] = item.offset
                        self._snapshot_positions[TopicPartition(item.topic, item.partition)] = item
                return ledger
        except snapshot.UnusableSnapshotError as error:
            log.warning("ledger: the newest snapshot does not fit (%s): all kept records are read", error)
        return Ledger(horizon_ns=self._horizon_ns())

    def _seek_time(self, at_ms: int) -> None:
        """Begin every topic of outcomes at its first record of `at_ms` (UTC) or later."""
        names = [self._settings.topic(topic.name) for topic in (topics.LEDGER, topics.VERDICTS, topics.DEAD_LETTERS)]
        partitions = self._partitions(self._outcomes, names)
        if not partitions:
            return
        _, ends = log_bounds(self._outcomes, partitions)
        offsets = self._outcomes.offsets_for_times(dict.fromkeys(partitions, max(0, at_ms)))
        for partition in partitions:
            place = offsets.get(partition)
            self._positions[partition] = ends[partition] if place is None else place.offset

    def _read_positions(self) -> tuple[ReadPosition, ...]:
        """Return how far the topics of outcomes are read, with the last record of each partition."""
        frames = self._settings.topic(topics.FRAMES.name)
        result = []
        for place, offset in self._positions.items():
            if place.topic == frames:
                continue
            record, earlier = self._last_records.get(place), self._snapshot_positions.get(place)
            if record is not None:
                self._snapshot_positions[place] = snapshot.last_read(record, offset)
            elif earlier is None:
                self._snapshot_positions[place] = ReadPosition(place.topic, place.partition, offset)
            result.append(self._snapshot_positions[place])
        self._last_records.clear()  # a dead letter may be large
        return tuple(result)

    # Records

    @property
    def _known(self) -> Ledger:
        assert self._ledger is not None, "the first poll makes the ledger before it reads records"
        return self._ledger

    def _read_entry(self, record: Record) -> None:
        try:
            if dict(record.headers).get("schema", b"").startswith(EXPIRED_SCHEMA):
                self._known.record_expired(decode(ExpiredFrames, record.value or b""))
            else:
                self._known.record_entry(decode(LedgerEntry, record.value or b""))
        except SchemaError as error:
            self._note_unreadable(record, str(error))

    def _read_verdict(self, record: Record) -> None:
        identity = _identity(record)
        if identity is None:
            self._note_unreadable(record, "its header frame-id names no capture")
        else:
            self._known.record_scored(identity, 1_000_000 * record.timestamp, content_of(record.value))

    def _read_dead_letter(self, record: Record, listener: Callable[[Record, DeadLetter], None] | None) -> None:
        try:
            letter = decode(DeadLetter, record.value or b"")
        except SchemaError as error:
            self._note_unreadable(record, str(error))
            return
        identity = parse_identity(letter.frame_id)
        if identity is None:
            self._known.record_unidentified((letter.topic, letter.partition, letter.offset), letter.reason)
        else:
            self._known.record_dead_letter(identity, letter.reason)
        if listener is not None:
            listener(record, letter)

    def _note_unreadable(self, record: Record, reason: str) -> None:
        text = f"{record.topic}/{record.partition} offset {record.offset}: {reason}"
        log.warning("ledger cannot read %s", text)
        self._known.record_unreadable(1_000_000 * record.timestamp, text)

    # Topics

    def _partitions(self, consumer: KafkaConsumer, names: list[str]) -> list[TopicPartition]:
        """Return the partitions of those topics `names` that exist."""
        return [
            TopicPartition(name, number)
            for name in sorted(consumer.topics() & set(names))
            for number in sorted(consumer.partitions_for_topic(name) or ())
        ]

    def _new_records(
        self,
        consumer: KafkaConsumer,
        names: list[str],
        progress: Progress,
        *,
        start: Mapping[TopicPartition, int] = MappingProxyType({}),
    ) -> Iterator[Record]:
        """Return the records of the topics `names` up to their ends as of now.

        They begin where the last call ended, or at `start` where that is further on. Raises FlawlineError when the
        broker gives none for `STALLED_AFTER_S`.
        """
        partitions = self._partitions(consumer, names)
        if not partitions:
            return
        first_offsets, ends = log_bounds(consumer, partitions, ends_by=self._frames)
        for partition in partitions:
            position = self._positions.get(partition)
            if consumer is self._outcomes and position is not None and position < first_offsets[partition]:
                raise _RecordsGoneError(
                    f"records {position} to {first_offsets[partition] - 1} of {partition.topic}/{partition.partition} "
                    "are gone before they were read"
                )
            self._positions[partition] = max(position or 0, first_offsets[partition], start.get(partition, 0))
        unread = {partition: end for partition, end in ends.items() if self._positions[partition] < end}
        if not unread:
            return
        consumer.assign(list(unread))
        consumer.resume(*unread)  # a partition that the last call paused stays paused when it is assigned again
        for partition in unread:
            consumer.seek(partition, self._positions[partition])
        total, done = sum(end - self._positions[partition] for partition, end in unread.items()), 0
        deadline = time.monotonic() + STALLED_AFTER_S
        while unread:
            for partition, records in consumer.poll(timeout_ms=500).items():
                for record in records:
                    if partition in unread and record.offset < unread[partition]:
                        done += 1
                        yield record
            if self._follow_positions(consumer, unread):
                deadline = time.monotonic() + STALLED_AFTER_S
            elif time.monotonic() > deadline:
                stuck = min(unread)
                raise FlawlineError(
                    f"ledger: {stuck.topic}/{stuck.partition} gives no record after offset {self._positions[stuck]} "
                    f"for {STALLED_AFTER_S:.0f} s: check the broker"
                )
            progress(done, total)

    def _follow_positions(self, consumer: KafkaConsumer, unread: dict[TopicPartition, int]) -> bool:
        """Take the positions of the consumer over, remove finished partitions from `unread`, tell whether any moved.

        Positions also pass over records that are never delivered: control records, and those that compaction removed.
        """
        positions = {partition: consumer.position(partition) for partition in unread}
        has_moved = positions != {partition: self._positions[partition] for partition in unread}
        for partition, position in positions.items():
            self._positions[partition] = min(position, unread[partition])
            if position >= unread[partition]:
                del unread[partition]
                consumer.pause(partition)
        return has_moved

    def _release(self, committed: dict[TopicPartition, int]) -> None:
        """Remove the frames before the committed offsets from those that wait."""
        for partition, waiting in self._in_log.items():
            while waiting and waiting[0][0] < committed.get(partition, 0):
                waiting.popleft()

    def _search_frames(self, committed: dict[TopicPartition, int], progress: Progress) -> None:
        """Add the new frames to those that wait."""
        names = [self._settings.topic(topics.FRAMES.name)]
        for record in self._new_records(self._frames, names, progress, start=committed):
            waiting = self._in_log.setdefault(TopicPartition(record.topic, record.partition), deque())
            origin = dict(record.headers).get(REPLAYED_FROM)
            waiting.append((record.offset, _identity(record) or ("", 0, 0), origin))

    def _horizon_ns(self) -> int:
        """Return the time (UTC) after which no outcome has expired; 0 when none has.

        1. Without a partition that has lost its first records, nothing has expired.
        2. A partition that is empty only shows that its records were older than the retention.
        3. Of the others, the newest of their first records is the horizon.

        Dead letters are few, so their first record says little: they count only when they may have gone by size.
        """
        consumer = self._outcomes
        names = [self._settings.topic(topic.name) for topic in (topics.VERDICTS, topics.LEDGER, topics.DEAD_LETTERS)]
        partitions = self._partitions(consumer, names)
        first_offsets, ends = log_bounds(consumer, partitions)
        letters = self._settings.retention.dead_letters_limit_bytes // (topics.DEAD_LETTERS.max_message_bytes or 1)
        truncated = [
            partition
            for partition in partitions
            if first_offsets[partition] > 0
            and (partition.topic != names[2] or ends[partition] - first_offsets[partition] >= letters)
        ]
        if not truncated:
            return 0
        horizon_ms = (self._clock() - self._kept_ns) // 1_000_000
        unread = {partition for partition in truncated if first_offsets[partition] < ends[partition]}
        if unread:
            consumer.assign(sorted(unread))
            consumer.resume(*unread)  # a reader that begins anew may have paused it
            for partition in unread:
                consumer.seek(partition, first_offsets[partition])
        deadline = time.monotonic() + STALLED_AFTER_S
        while unread and time.monotonic() < deadline:
            for partition, records in consumer.poll(timeout_ms=500, max_records=100).items():
                if partition in unread:
                    unread.remove(partition)
                    consumer.pause(partition)
                    horizon_ms = max(horizon_ms, records[0].timestamp)
        return 1_000_000 * (horizon_ms + HORIZON_MARGIN_MS)


def read(settings: Settings, progress: Progress | None = None, *, since_ns: int | None = None) -> Report:
    """Return the account of the line as of now, of the captures from `since_ns` (UTC) on.

    Raises FlawlineError when the broker is away.
    """
    with LedgerReader(settings, since_ns=since_ns) as reader:
        return reader.poll(progress)


def export(report: Report) -> None:
    """Set the Prometheus metrics of the ledger to a report."""
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
        ("conflict", "", account.contradictions),
        ("conflicting_verdict", "", account.conflicting_verdicts),
        ("unclaimed", "", account.unclaimed),
    )
    # Every reason has a series, so that the count of one whose frames were all recovered goes back to 0.
    yield from (("dropped", reason, account.dropped.get(reason, 0)) for reason in DropReason)
    yield from (("dead_lettered", reason, account.dead_lettered.get(reason, 0)) for reason in DeadLetterReason)


def content_of(value: bytes | None) -> VerdictContent | None:
    """Return what the bytes of a verdict say; None for other bytes. The regions are not checked, which takes longer."""
    try:
        plain = msgpack.unpackb(value or b"")
        return VerdictContent(str(plain["model_version"]), str(plain["decision"]), float(plain["score"]))
    except (ValueError, KeyError, TypeError, msgpack.UnpackException):
        return None


def parse_identity(frame_id: str | None) -> Identity | None:
    """Return camera, epoch and sequence of a frame id; None without one, or when it is malformed."""
    try:
        return parse_frame_id(frame_id) if frame_id else None
    except ValueError:
        return None


def _identity(record: Record) -> Identity | None:
    header = dict(record.headers).get("frame-id")
    return parse_identity(header.decode("utf-8", "replace")) if header else None
