"""Store and forward: frames of one camera wait on disk, in order, while the broker is away.

A spool is a folder of append-only segment files `<number>.seg`, made of records (`Record`). `head` holds where the
first undelivered record is, so that a restart goes on behind what was confirmed. What is in the spool survives a kill
of the process; against a loss of power it is synced once a second by the publisher.

After a crash the last segment may end within a record: that tail is cut off. A record whose payload is damaged is
skipped and named; behind a damaged header nothing of that segment can be trusted.
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
    """One spooled frame: its identity and its encoded message."""

    epoch: int
    sequence: int
    payload: bytes

    @property
    def size_bytes(self) -> int:
        return HEADER_BYTES + len(self.payload)

    def encode(self) -> bytes:
        """Return the record as it stands on disk: a header with its own checksum, then the payload with its."""
        fields = _FIELDS.pack(len(self.payload), self.epoch, self.sequence, crc32c(self.payload))
        return b"".join((fields, crc32c(fields).to_bytes(4, "little"), self.payload))


@dataclass(frozen=True)
class Header:
    """The header of a record, which stands before its payload."""

    size_bytes: int
    epoch: int
    sequence: int
    checksum: int

    @classmethod
    def decode(cls, data: bytes) -> Header | None:
        """Return the header in `data`, None when it is cut off or altered."""
        if len(data) < HEADER_BYTES:
            return None
        *fields, checksum = _HEADER.unpack(data)
        return cls(*fields) if checksum == crc32c(data[:-4]) else None

    def matches(self, payload: bytes) -> bool:
        """Return whether `payload` is what was written."""
        return len(payload) == self.size_bytes and crc32c(payload) == self.checksum


def walk(path: Path, start: int, end: int) -> Iterator[tuple[Header, int]]:
    """Yield header and end offset of each whole record from `start` on, payloads unread, up to a damaged record."""
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
"""A segment's disk is given back when its last record is delivered, so small ones give it back early."""

FIRST_NUMBER = 1 << 32
"""Records that must go before the first get a segment of a lower number, so counting starts far from 0."""


class SpoolFull(FlawlineError):
    """The byte cap, or the disk, leaves no room for a record."""


class DamagedRecord(FlawlineError):
    """A record whose payload is not what was written; its identity is known."""

    def __init__(self, epoch: int, sequence: int, path: Path) -> None:
        super().__init__(f"spooled frame {sequence} of epoch {epoch} in {path} is damaged")
        self.epoch = epoch
        self.sequence = sequence


class Quota:
    """The byte cap that all spools of a producer share."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()

    def take(self, count: int, *, force: bool = False) -> bool:
        """Reserve `count` bytes; False when they are over the cap, unless forced."""
        with self._lock:
            if not force and self._used_bytes + count > self.limit_bytes:
                return False
            self._used_bytes += count
            return True

    def give_back(self, count: int) -> None:
        """Release bytes."""
        with self._lock:
            self._used_bytes -= count


@dataclass
class _Segment:
    number: int
    path: Path
    size_bytes: int = 0


class Spool:
    """The spool of one camera. Not thread-safe: its lane calls it under one lock.

    `append` and `next` give a queue; `confirm` tells, in any order, which records were delivered; `rewind` reads the
    undelivered ones again.

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
        self._head_file = os.open(folder / "head", os.O_RDWR | os.O_CREAT, 0o644)
        self._head = self._load_head()
        self._unconfirmed: dict[tuple[int, int], tuple[int, int]] = {}  # what was read -> the position behind it
        self._confirmed: set[tuple[int, int]] = set()  # delivered, but behind something that is not
        self.outstanding: Counter[int] = Counter()  # undelivered records by epoch
        self.last_sequence: dict[int, int] = {}  # highest sequence seen by epoch, for epochs without a journal
        self._load_segments()
        self._cursor = self._head

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def frames(self) -> int:
        """Records that are not delivered."""
        return self.outstanding.total()

    @property
    def unread(self) -> bool:
        """Whether there is something that `next` has not given yet (or gives again after `rewind`)."""
        number, offset = self._cursor
        return any(one.number > number or (one.number == number and one.size_bytes > offset) for one in self._segments)

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, record: Record, *, force: bool = False) -> None:
        """Add a record at the end. Raises SpoolFull; `force` goes over the cap, not over the disk."""
        self._write(record, force)

    def _count(self, epoch: int, sequence: int) -> None:
        self.outstanding[epoch] += 1
        self.last_sequence[epoch] = max(sequence, self.last_sequence.get(epoch, -1))

    def put_first(self, records: Iterable[Record]) -> list[Record]:
        """Put records, in their order, before all others, over the cap if need be; give back what the disk refused.

        For frames that were in memory, and came before all that is spooled, when the producer stopped. So nothing in
        the spool may have been delivered or be under way.
        """
        behind = self._segments
        if self._unconfirmed or (behind and self._head[0] == behind[0].number and self._head[1] > 0):
            raise RuntimeError("records cannot be put before ones that are under way")
        self._close_files()
        self._segments = []
        if behind:
            number = behind[0].number - 1
            # First of all: a crash from here on finds the new segment behind the head, not before it.
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
            while left:  # an unbuffered write may be partial
                left = left[file.write(left) :]
        except OSError as error:
            self._quota.give_back(record.size_bytes)
            self._cut_last()
            raise SpoolFull(f"spool {self.folder} cannot be written: {error.strerror}") from error
        self._segments[-1].size_bytes += record.size_bytes
        self._count(record.epoch, record.sequence)

    def _writable(self, roll: bool) -> FileIO:
        """The last segment's file; a new segment's when there is none or the last is long enough."""
        if not self._segments or (roll and self._segments[-1].size_bytes >= self._segment_bytes):
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            number = self._segments[-1].number + 1 if self._segments else max(FIRST_NUMBER, self._head[0] + 1)
            self._segments.append(_Segment(number, self._path(number)))
        if self._writer is None:
            # Unbuffered: what was written survives a kill, and a failed write leaves nothing to come out later.
            self._writer = FileIO(self._segments[-1].path, "ab")
        return self._writer

    def _cut_last(self) -> None:
        """Remove what a failed write left behind."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._segments:
            segment = self._segments[-1]
            try:
                os.truncate(segment.path, segment.size_bytes)
            except OSError as error:  # the next start cuts it
                log.error("spool segment %s has a torn end: %s", segment.path, error.strerror)

    # -- reading -------------------------------------------------------------------------------------------------

    def next(self) -> Record | None:
        """The next record that was not delivered, or None at the end.

        Raises DamagedRecord, once, for a record that cannot be read; the next call goes on behind it.
        """
        while self.unread:
            number, offset = self._cursor
            segment = next(one for one in self._segments if one.number >= number)
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
        """Cut off what follows a damaged header: where its records begin is not known any more."""
        lost = segment.size_bytes - offset
        log.error("spool segment %s is damaged at byte %d: %d bytes of frames are lost, see the ledger's gaps",
                  segment.path, offset, lost)  # fmt: skip
        os.truncate(segment.path, offset)
        segment.size_bytes = offset
        self._quota.give_back(lost)
        self.outstanding = Counter()
        for one in self._segments:
            start = self._head[1] if one.number == self._head[0] else 0
            self.outstanding.update(header.epoch for header, _ in walk(one.path, start, one.size_bytes))
        self._release()

    def confirm(self, epoch: int, sequence: int) -> None:
        """A record that `next` gave needs no delivery any more."""
        key = (epoch, sequence)
        if key in self._unconfirmed and key not in self._confirmed:
            self._confirmed.add(key)
            self._confirm_prefix()

    def _confirm_prefix(self) -> None:
        """Move the head over the leading confirmed records, and give their segments back."""
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
            self.outstanding += Counter()  # forget epochs with nothing left
            self._release()

    def _release(self) -> None:
        """Give the delivered segments back. The one that is being written stays until all of it is delivered."""
        while self._segments:
            first = self._segments[0]
            number, offset = self._head
            delivered = first.number < number or (first.number == number and offset >= first.size_bytes)
            if not delivered and (first.size_bytes > 0 or first is self._segments[-1]):
                return
            if len(self._segments) == 1:
                self._close_files()
            first.path.unlink(missing_ok=True)
            self._quota.give_back(first.size_bytes)
            del self._segments[0]

    def rewind(self) -> None:
        """Give every record that is not confirmed again, from the first on."""
        self._close_reader()
        self._cursor = self._head
        self._unconfirmed.clear()

    # -- life ----------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Force what was written to the disk. Needs no lock: it works on the file's own descriptor."""
        writer = self._writer
        if writer is not None:
            try:
                descriptor = os.dup(writer.fileno())
            except (OSError, ValueError):  # closed meanwhile
                return
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Let the folder go; what is in it stays."""
        self._close_files()
        if self._head_file >= 0:
            os.close(self._head_file)
            self._head_file = -1  # the number may soon be another file's
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
        return 0, 0  # a torn head delivers again, it never skips

    def _set_head(self, head: tuple[int, int]) -> None:
        self._head = head
        data = struct.pack("<QQ", *head)
        try:
            os.pwrite(self._head_file, data + crc32c(data).to_bytes(4, "little"), 0)
        except OSError as error:  # costs a second delivery after a restart, no frame
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
                        "spool segment %s: %d bytes behind its last whole frame are cut off", path, on_disk - end
                    )
                    os.truncate(path, end)
            if end == start:  # all of it was delivered
                path.unlink()
            else:
                self._segments.append(_Segment(number, path, end))
                self._quota.take(end, force=True)
