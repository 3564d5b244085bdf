"""Store and forward: frames of one camera wait on disk, in order, while the broker is away.

A spool is a folder of append-only segment files `<number>.seg`, which hold records (`Record`). The file `head` holds
the position of the first undelivered record, so that a restart continues after the confirmed records. Records in the
spool survive a kill of the process. The publisher syncs them every `ledger_interval_s`, to limit the loss at a power
failure.

After a crash the last segment can end within a record: the next start removes that tail. A record with a damaged
payload is skipped and reported. After a damaged header, the start of the next record is unknown, so the rest of the
segment is lost.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from crc32c import crc32c

from flawline.errors import FlawlineError
from flawline.file_lock import try_lock

_FIELDS = struct.Struct("<IQQI")  # payload bytes, epoch, sequence, CRC-32C of the payload
_HEADER = struct.Struct("<IQQII")  # the same and the CRC-32C of those fields
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Record:
    """Holds one spooled frame: its identity and its encoded message."""

    epoch: int
    sequence: int
    payload: bytes

    @property
    def key(self) -> tuple[int, int]:
        return self.epoch, self.sequence

    @property
    def size_bytes(self) -> int:
        return HEADER_BYTES + len(self.payload)

    def encode(self) -> bytes:
        """Return the record as bytes: a header with checksums of itself and of the payload, then the payload."""
        fields = _FIELDS.pack(len(self.payload), self.epoch, self.sequence, crc32c(self.payload))
        return b"".join((fields, crc32c(fields).to_bytes(4, "little"), self.payload))


@dataclass(frozen=True)
class Header:
    """Holds the fields of a record that come before its payload."""

    size_bytes: int
    epoch: int
    sequence: int
    checksum: int

    @classmethod
    def decode(cls, data: bytes) -> Header | None:
        """Return the header in `data`, or None when it is incomplete or damaged."""
        if len(data) < HEADER_BYTES:
            return None
        *fields, checksum = _HEADER.unpack(data)
        return cls(*fields) if checksum == crc32c(data[:-4]) else None

    def matches(self, payload: bytes) -> bool:
        """Return whether `payload` has the length and the checksum of the header."""
        return len(payload) == self.size_bytes and crc32c(payload) == self.checksum


def walk(path: Path, start: int, end: int) -> Iterator[tuple[Header, int]]:
    """Yield header and end offset of each whole record from `start` on, up to a damaged header; skip the payloads."""
    with path.open("rb") as file:
        offset = start
        while offset + HEADER_BYTES <= end:
            file.seek(offset)
            header = Header.decode(file.read(HEADER_BYTES))
            if header is None or offset + HEADER_BYTES + header.size_bytes > end:
                return
            offset += HEADER_BYTES + header.size_bytes
            yield header, offset


log = logging.getLogger(__name__)

_HEAD = struct.Struct("<QQI")  # segment number, offset, CRC-32C of both

SEGMENT_BYTES = 32 << 20
"""A segment is deleted when its last record is delivered, so a small one frees its disk space early. A judgement, not
measured."""

FIRST_NUMBER = 1 << 32
"""`put_first` needs segment numbers below the first one, so the numbers start far from 0."""


class SpoolFull(FlawlineError):
    """The byte limit, or the disk, has no room for a record."""


class DiskFailed(SpoolFull):
    """The disk refused a record."""


class DamagedRecord(FlawlineError):
    """The payload of a record is damaged; its identity is known."""

    def __init__(self, epoch: int, sequence: int, path: Path) -> None:
        super().__init__(f"spooled frame {sequence} of epoch {epoch} in {path} is damaged and is dropped")
        self.epoch = epoch
        self.sequence = sequence


class Quota:
    """Counts the bytes of all spools of a producer against one limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()

    def take(self, count: int, *, force: bool = False) -> bool:
        """Reserve `count` bytes; return False when they exceed the limit, unless `force` is set."""
        with self._lock:
            if not force and self._used_bytes + count > self.limit_bytes:
                return False
            self._used_bytes += count
            return True

    def give_back(self, count: int) -> None:
        """Release `count` reserved bytes."""
        with self._lock:
            self._used_bytes -= count


@dataclass
class _Segment:
    number: int
    path: Path
    size_bytes: int = 0


class Spool:
    """Holds the spool of one camera. Not thread-safe: its backlog calls it under one lock.

    `append` adds a record and `next` returns the records in order. `confirm` marks a record as delivered, in any order.
    After `rewind`, `next` returns the undelivered records again.

    Raises FlawlineError when the folder is in use by another producer or cannot be used.
    """

    def __init__(self, folder: Path, quota: Quota, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._quota = quota
        self._segment_bytes = segment_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock_file = try_lock(folder / "lock")
        except OSError as error:
            raise FlawlineError(f"spool {folder} cannot be used ({error.strerror}): set producer.spool_dir") from error
        if lock_file is None:
            raise FlawlineError(
                f"spool {folder} is in use: stop the other producer of this camera or set another producer.spool_dir"
            )
        self._lock_file = lock_file
        self._segments: list[_Segment] = []
        self._writer: FileIO | None = None
        self._reader: FileIO | None = None
        self._head_file = -1
        self._unconfirmed: dict[tuple[int, int], tuple[int, int]] = {}  # key of a read record -> position after it
        self._confirmed: set[tuple[int, int]] = set()  # delivered, but an earlier record is not
        self.outstanding: Counter[int] = Counter()  # undelivered records by epoch
        self.last_sequence: dict[int, int] = {}  # highest sequence of each epoch, for epochs without a journal
        try:
            self._head_file = os.open(folder / "head", os.O_RDWR | os.O_CREAT, 0o640)
            self._head = self._load_head()
            self._load_segments()
        except BaseException:
            quota.give_back(self.size_bytes)
            self.close()  # so that a later attempt may lock it
            raise
        self._cursor = self._head

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Return the number of bytes on disk."""
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def frames(self) -> int:
        """Return the number of undelivered records."""
        return self.outstanding.total()

    @property
    def unread(self) -> bool:
        """Return whether `next` has more records to return."""
        number, offset = self._cursor
        return any(
            segment.number > number or (segment.number == number and segment.size_bytes > offset)
            for segment in self._segments
        )

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, record: Record, *, force: bool = False) -> None:
        """Add a record at the end; `force` ignores the byte limit. Raises SpoolFull when there is no room."""
        self._write(record, force)

    def _count(self, epoch: int, sequence: int) -> None:
        self.outstanding[epoch] += 1
        self.last_sequence[epoch] = max(sequence, self.last_sequence.get(epoch, -1))

    def put_first(self, records: Iterable[Record]) -> list[Record]:
        """Put records, in their order, before all others, without the byte limit; return those that the disk refused.

        A producer that stops calls this for frames in memory that are older than all spooled ones. Raises RuntimeError
        when a record of the first segment is delivered already, or was read since the last `rewind`.
        """
        behind = self._segments
        if self._unconfirmed or (behind and self._head[0] == behind[0].number and self._head[1] > 0):
            raise RuntimeError("records cannot be put before records that are delivered or in flight")
        self._close_files()
        self._segments = []
        if behind:
            number = behind[0].number - 1
            # The head moves before a record is written: a start after a crash deletes segments before the head.
            self._set_head((number, 0))
            self._segments.append(_Segment(number, self._path(number)))
        left_out = []
        for record in records:
            try:
                self._write(record, force=True, roll=False)
            except SpoolFull as error:
                log.error("%s", error)
                left_out.append(record)
        self._close_files()
        self._segments += behind
        self._cursor = self._head
        return left_out

    def _write(self, record: Record, force: bool, roll: bool = True) -> None:
        if not self._quota.take(record.size_bytes, force=force):
            raise SpoolFull(f"spool {self.folder} is at its cap of {self._quota.limit_bytes} bytes")
        try:
            file = self._writable(roll)
            left = memoryview(record.encode())
            while left:  # an unbuffered write can be partial
                left = left[file.write(left) :]
        except OSError as error:
            self._quota.give_back(record.size_bytes)
            self._cut_last()
            raise DiskFailed(f"spool {self.folder} cannot be written: {error.strerror}") from error
        self._segments[-1].size_bytes += record.size_bytes
        self._count(record.epoch, record.sequence)

    def _writable(self, roll: bool) -> FileIO:
        """Return the file of the last segment; start a new one when there is none or, with `roll`, the last is full."""
        if not self._segments or (roll and self._segments[-1].size_bytes >= self._segment_bytes):
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            number = self._segments[-1].number + 1 if self._segments else max(FIRST_NUMBER, self._head[0] + 1)
            self._segments.append(_Segment(number, self._path(number)))
        if self._writer is None:
            # Unbuffered: written bytes survive a kill, and no buffer repeats a failed write later.
            self._writer = FileIO(self._segments[-1].path, "ab")
        return self._writer

    def _cut_last(self) -> None:
        """Remove the incomplete record that a failed write left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._segments:
            segment = self._segments[-1]
            try:
                os.truncate(segment.path, segment.size_bytes)
            except OSError as error:  # the next start removes it
                log.error("spool segment %s ends with an incomplete record: %s", segment.path, error.strerror)

    def shed_oldest(self) -> list[tuple[int, int]] | None:
        """Delete the oldest segment of which no record was read; return epoch and sequence of its undelivered records.

        Return None when there is no such segment: the one in writing stays. So a frame in flight is never given up.
        """
        for index, segment in enumerate(self._segments[:-1]):
            start = self._head[1] if segment.number == self._head[0] else 0
            if self._cursor > (segment.number, start):
                continue
            keys = [(header.epoch, header.sequence) for header, _ in walk(segment.path, start, segment.size_bytes)]
            try:
                segment.path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("spool segment %s cannot be removed: %s", segment.path, error.strerror)
                return None
            self._quota.give_back(segment.size_bytes)
            del self._segments[index]
            self.outstanding.subtract(epoch for epoch, _ in keys)
            self.outstanding += Counter()  # removes epochs without undelivered records
            delivered = self._confirmed.intersection(keys)  # before a `rewind`
            self._confirmed -= delivered
            return [key for key in keys if key not in delivered]
        return None

    # -- reading -------------------------------------------------------------------------------------------------

    def next(self) -> Record | None:
        """Return the next undelivered record, or None at the end.

        Raises DamagedRecord for a record with a damaged payload; the next call continues after that record.
        """
        while self.unread:
            number, offset = self._cursor
            segment = next(segment for segment in self._segments if segment.number >= number)
            if segment.number > number or offset >= segment.size_bytes:
                self._close_reader()
                self._cursor = (max(segment.number, number + 1), 0)
                continue
            if self._reader is None:
                self._reader = FileIO(segment.path, "rb")
            self._reader.seek(offset)
            header = Header.decode(self._reader.read(HEADER_BYTES))
            if header is None:
                self._abandon_rest(segment, offset)
                continue
            payload = self._reader.read(header.size_bytes)
            key = (header.epoch, header.sequence)
            self._cursor = (number, offset + HEADER_BYTES + header.size_bytes)
            self._unconfirmed[key] = self._cursor
            if key in self._confirmed:  # delivered before a `rewind`
                self._confirm_prefix()
            elif header.matches(payload):
                return Record(*key, payload)
            else:
                raise DamagedRecord(*key, segment.path)
        return None

    def _abandon_rest(self, segment: _Segment, offset: int) -> None:
        """Remove the rest of a segment after a damaged header: the start of the next record is unknown."""
        lost = segment.size_bytes - offset
        log.error("spool segment %s is damaged at byte %d: %d bytes of frames are lost, the ledger shows them as gaps",
                  segment.path, offset, lost)  # fmt: skip
        os.truncate(segment.path, offset)
        segment.size_bytes = offset
        self._quota.give_back(lost)
        self.outstanding = Counter()
        for remaining in self._segments:
            start = self._head[1] if remaining.number == self._head[0] else 0
            headers = walk(remaining.path, start, remaining.size_bytes)
            self.outstanding.update(header.epoch for header, _ in headers)
        self._release()

    def confirm(self, epoch: int, sequence: int) -> None:
        """Mark a record that `next` returned as delivered or given up."""
        key = (epoch, sequence)
        if key in self._unconfirmed and key not in self._confirmed:
            self._confirmed.add(key)
            self._confirm_prefix()

    def pass_over(self, epoch: int, sequence: int) -> None:
        """Mark a record that `next` has not returned yet as delivered: `next` leaves it out."""
        self._confirmed.add((epoch, sequence))

    def _confirm_prefix(self) -> None:
        """Move the head past the leading confirmed records, and delete the segments before it."""
        position = None
        while self._unconfirmed:
            key = next(iter(self._unconfirmed))
            if key not in self._confirmed:
                break
            position = self._unconfirmed.pop(key)
            self._confirmed.discard(key)
            self.outstanding[key[0]] -= 1
        if position is not None:
            self._set_head(position)
            self.outstanding += Counter()  # removes epochs without undelivered records
            self._release()

    def _release(self) -> None:
        """Delete the delivered segments. The segment in writing stays until all its records are delivered."""
        while self._segments:
            first = self._segments[0]
            number, offset = self._head
            delivered = first.number < number or (first.number == number and offset >= first.size_bytes)
            if not delivered and (first.size_bytes > 0 or first is self._segments[-1]):
                return
            if len(self._segments) == 1:
                self._close_files()
            try:
                first.path.unlink(missing_ok=True)
            except OSError as error:  # the next delivery tries again
                log.warning("spool segment %s is delivered and cannot be removed: %s", first.path, error.strerror)
                return
            self._quota.give_back(first.size_bytes)
            del self._segments[0]

    def rewind(self) -> None:
        """Start to read again at the first record that is not confirmed."""
        self._close_reader()
        self._cursor = self._head
        self._unconfirmed.clear()

    # -- life ----------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Sync the written records to the disk. Needs no lock: it duplicates the file descriptor first."""
        writer = self._writer
        if writer is not None:
            try:
                descriptor = os.dup(writer.fileno())
            except (OSError, ValueError):  # another thread closed it
                return
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close the files and unlock the folder; its records stay on disk."""
        self._close_files()
        if self._head_file >= 0:
            os.close(self._head_file)
            self._head_file = -1  # the system can reuse the number for another file
        self._lock_file.close()

    def _close_files(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._close_reader()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:020d}.seg"

    def _load_head(self) -> tuple[int, int]:
        data = os.pread(self._head_file, _HEAD.size, 0)
        if len(data) == _HEAD.size:
            number, offset, checksum = _HEAD.unpack(data)
            if checksum == crc32c(data[:16]):
                return number, offset
        return 0, 0  # a damaged head causes a second delivery, never a lost frame

    def _set_head(self, head: tuple[int, int]) -> None:
        self._head = head
        data = struct.pack("<QQ", *head)
        try:
            os.pwrite(self._head_file, data + crc32c(data).to_bytes(4, "little"), 0)
        except OSError as error:  # a restart delivers frames again, none is lost
            log.warning("spool head %s cannot be written: %s", self.folder / "head", error.strerror)

    def _load_segments(self) -> None:
        for path in sorted(self.folder.glob("*.seg")):
            number, on_disk = int(path.stem), path.stat().st_size
            start = end = self._head[1] if number == self._head[0] else 0
            if number >= self._head[0]:
                for header, end in walk(path, start, on_disk):  # noqa: B007
                    self._count(header.epoch, header.sequence)
                if start <= end < on_disk:
                    log.warning(
                        "spool segment %s: %d bytes after its last whole frame are removed", path, on_disk - end
                    )
                    os.truncate(path, end)
            if end == start:  # every record was delivered
                path.unlink()
            else:
                self._segments.append(_Segment(number, path, end))
                self._quota.take(end, force=True)
