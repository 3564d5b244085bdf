"""The log of one partition: append, read, search by time, delete old segments, and recover after a crash."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from embedded_broker import batch as batches
from embedded_broker.batch import BatchError, BatchHeader
from embedded_broker.idempotence import ProducerStates
from embedded_broker.protocol import ErrorCode
from embedded_broker.segment import FileSlice, Segment
from embedded_broker.topic_config import TopicConfig
from embedded_broker.unsupported import needs_apache_kafka

log = logging.getLogger(__name__)

_SUFFIX: Final = ".log"


def wall_clock_ms() -> int:
    """Return the UTC time in milliseconds."""
    return time.time_ns() // 1_000_000


class OffsetOutOfRange(Exception):
    """The offset is before the start of the log or after its end."""


class PartitionLog:
    """The record batches of one partition in a folder of segments.

    It is used from one thread only. Methods that write may raise OSError, for example on a full disk, and then change
    nothing. `log_start` is the first offset that may be read, `next_offset` the offset of the next record.
    """

    def __init__(
        self,
        folder: Path,
        config: TopicConfig,
        *,
        log_start: int = 0,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.folder = folder
        self.config = config
        self.producers = ProducerStates()
        self.unsynced: set[Segment] = set()
        self.refused_by_disk = False  # whether the disk failed at the last append
        self._clock_ms = clock_ms
        self._waiters: set[Callable[[], None]] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self.segments = self._recover()
        self.log_start = max(log_start, self.segments[0].base_offset)
        self.next_offset = self.segments[-1].next_offset
        self.size_bytes = sum(segment.size_bytes for segment in self.segments)
        # Compaction has read up to this offset; the records after it are dirty.
        self.cleaned_to = self.segments[0].base_offset

    # Recovery

    def _recover(self) -> list[Segment]:
        for leftover in (*self.folder.glob("*.cleaned"), *self.folder.glob("*.new")):
            leftover.unlink()
        segments: list[Segment] = []
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            segment = Segment(path, int(path.stem), int(path.stat().st_mtime * 1000))
            if segments and segment.base_offset < segments[-1].next_offset:
                # Compaction moved its records into the segment before, and was killed before it deleted this one.
                log.info("%s is contained in the segment before it and is deleted", path)
                segment.delete()
                segment.close()
                continue
            segment.recover(self.producers)
            segments.append(segment)
        return segments or [self._new_segment(0)]

    def _new_segment(self, base_offset: int) -> Segment:
        return Segment(self.folder / f"{base_offset:020d}{_SUFFIX}", base_offset, self._clock_ms())

    # Writing

    def append(self, batch: memoryview) -> int:
        """Append the batch of a producer and return the offset of its first record.

        For a batch that an idempotent producer sends again, this is its offset in the log. Raises BatchError, and
        OSError when the disk fails.
        """
        header = batches.check_produced(batch, self.config.max_message_bytes)
        if header.transactional:
            raise BatchError(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, needs_apache_kafka("transactions"))
        if self.config.compacted:
            self._require_keys(batch)
        duplicate = self.producers.duplicate_of(header)
        if duplicate is not None:
            return duplicate
        now_ms = self._clock_ms()
        active = self.segments[-1]
        if active.size_bytes and (
            active.size_bytes + len(batch) > self.config.segment_bytes
            or now_ms - active.first_append_ms > self.config.segment_ms
        ):
            active = self.roll()
        if not active.size_bytes:
            active.first_append_ms = now_ms
        base_offset = self.next_offset
        active.append(batch, header, base_offset)
        self.unsynced.add(active)
        self.next_offset = active.next_offset
        self.size_bytes += len(batch)
        self.producers.appended(header, base_offset, now_ms)
        for wake in tuple(self._waiters):
            wake()
        return base_offset

    def _require_keys(self, batch: memoryview) -> None:
        try:
            keyless = batches.has_null_key(bytes(batch))
        except Exception as error:  # a producer may send any content, and kafka-python raises many types
            raise BatchError(ErrorCode.INVALID_RECORD, f"the records cannot be read: {error}") from error
        if keyless:
            raise BatchError(ErrorCode.INVALID_RECORD, "a compacted topic takes no record without a key")

    def roll(self) -> Segment:
        """Close the active segment and start the next one."""
        new = self._new_segment(self.next_offset)
        self.segments[-1].sealed = self.producers.dump()
        self.segments.append(new)
        return new

    # Reading

    def read(self, offset: int, limit_bytes: int, *, at_least_one: bool) -> tuple[list[FileSlice], int]:
        """Return the slices of files with the whole batches from `offset` on, and their size in bytes.

        With `at_least_one` the first batch may be over the limit, so that a reader can always go on (KIP-74). Raises
        OffsetOutOfRange.
        """
        if not self.log_start <= offset <= self.next_offset:
            raise OffsetOutOfRange(offset)
        slices: list[FileSlice] = []
        total = 0
        for segment in self.segments[self._segment_index(offset) :]:
            position = segment.locate(offset) if segment.next_offset > offset else None
            if position is None:
                continue
            size = segment.run_from(position, limit_bytes - total)
            if total + size > limit_bytes and (slices or not at_least_one):
                break
            slices.append(FileSlice(segment, position, size))
            total += size
            if total >= limit_bytes or position + size < segment.size_bytes:
                break
        return slices, total

    def _segment_index(self, offset: int) -> int:
        low, high = 0, len(self.segments)
        while low < high:
            middle = (low + high) // 2
            if self.segments[middle].base_offset <= offset:
                low = middle + 1
            else:
                high = middle
        return max(low - 1, 0)

    def offset_since(self, timestamp: int) -> tuple[int, int] | None:
        """Return `(offset, timestamp)` of the first record at `timestamp` (ms) or later, None when there is none."""
        for segment in self.segments:
            batch = segment.first_batch_since(timestamp) if segment.next_offset > self.log_start else None
            while batch is not None:
                position, header = batch
                record = _first_record_since(segment.read_batch(position, header), header, timestamp, self.log_start)
                if record is not None:
                    return record
                following = segment.headers(position + header.size_bytes)
                batch = next((item for item in following if item[1].max_timestamp >= timestamp), None)
        return None

    def newest(self) -> tuple[int, int] | None:
        """Return `(offset, timestamp)` of the record with the highest time stamp."""
        timestamp = max(segment.max_timestamp for segment in self.segments)
        return self.offset_since(timestamp) if timestamp >= 0 else None

    def wake_on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` after every append and when the log is deleted, until `forget_waiter`."""
        self._waiters.add(wake)

    def forget_waiter(self, wake: Callable[[], None]) -> None:
        """Undo `wake_on_change`."""
        self._waiters.discard(wake)

    # Housekeeping

    def retain(self) -> None:
        """Delete the segments that retention by bytes and by time no longer keeps, as Apache Kafka does."""
        now_ms = self._clock_ms()
        self.producers.expire(now_ms)
        if self.config.deletes_old:
            self._retain_time(now_ms)
            self._retain_bytes()
        while len(self.segments) > 1 and self.segments[1].base_offset <= self.log_start:
            self._drop_first()

    def _retain_time(self, now_ms: int) -> None:
        if self.config.retention_ms < 0:
            return
        horizon = now_ms - self.config.retention_ms
        if self.segments[-1].size_bytes and self.segments[-1].max_timestamp < horizon:
            self.roll()
        while len(self.segments) > 1 and self.segments[0].max_timestamp < horizon:
            self._drop_first()

    def _retain_bytes(self) -> None:
        limit = self.config.retention_bytes
        while limit >= 0 and len(self.segments) > 1 and self.size_bytes - self.segments[0].size_bytes >= limit:
            self._drop_first()

    def _drop_first(self) -> None:
        oldest = self.segments.pop(0)
        self.size_bytes -= oldest.size_bytes
        self.unsynced.discard(oldest)
        self.log_start = max(self.log_start, self.segments[0].base_offset)
        self.cleaned_to = max(self.cleaned_to, self.log_start)
        oldest.delete()

    def delete_through(self, last: Segment) -> None:
        """Delete the segments up to `last`; one that is still written to is closed before."""
        if last is self.segments[-1]:
            self.roll()
        while self.segments[0].base_offset <= last.base_offset and len(self.segments) > 1:
            self._drop_first()

    def delete_before(self, offset: int) -> int:
        """Make records before `offset` unreadable and return the new log start. Raises `OffsetOutOfRange`."""
        if not 0 <= offset <= self.next_offset:
            raise OffsetOutOfRange(offset)
        self.log_start = max(self.log_start, offset)
        return self.log_start

    def replace_closed(self, old: list[Segment], new: list[Segment]) -> None:
        """Replace closed segments by the compacted ones."""
        first = self.segments.index(old[0])
        self.segments[first : first + len(old)] = new
        self.size_bytes += sum(segment.size_bytes for segment in new) - sum(segment.size_bytes for segment in old)
        self.unsynced.difference_update(old)

    def sync(self) -> None:
        """Force all appended records to the disk."""
        while self.unsynced:
            segment = next(iter(self.unsynced))
            segment.sync()
            self.unsynced.discard(segment)

    def save_indexes(self) -> None:
        """Save the indexes of closed segments whose data is on the disk, so that no later start has to scan them."""
        for segment in self.segments[:-1]:
            if segment.sealed is not None and segment not in self.unsynced:
                segment.save_index(segment.sealed)
                segment.sealed = None

    def close(self) -> None:
        """Save the indexes and close the files."""
        self.unsynced.clear()
        self.save_indexes()
        self.segments[-1].save_index(self.producers.dump())
        for segment in self.segments:
            segment.close()

    def abandon(self) -> None:
        """Wake the readers of a log whose topic is deleted; its files are deleted with their folder."""
        self.unsynced.clear()
        for segment in self.segments:
            segment.sealed = None
        for wake in tuple(self._waiters):
            wake()


def _first_record_since(content: bytes, header: BatchHeader, timestamp: int, log_start: int) -> tuple[int, int] | None:
    if header.record_count == 1 and header.last_offset_delta == 0 and header.base_offset >= log_start:
        return (header.base_offset, header.first_timestamp) if header.first_timestamp >= timestamp else None
    try:
        for record in batches.open_records(content):
            if record.timestamp >= timestamp and record.offset >= log_start:
                return record.offset, record.timestamp
    except Exception as error:  # kafka-python raises many types on content that is no list of records
        log.warning(
            "batch at offset %d cannot be opened (%s), a search by time returns its start", header.base_offset, error
        )
        if header.base_offset >= log_start:
            return header.base_offset, header.max_timestamp
    return None
