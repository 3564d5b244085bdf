"""One append-only log file and its sparse index.

A segment holds record batches as they are on the wire. Its index has at most one entry per 4 KiB, so it takes less than
one percent of the memory of the data, however small the batches are. The index of a closed segment is a file beside it.
It covers the beginning of the segment, so a start reads only what was written after the last close.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from embedded_broker.batch import HEADER_BYTES, BatchHeader, crc_matches, parse_header, placed_prefix, plausible
from embedded_broker.idempotence import ProducerStates

log = logging.getLogger(__name__)

INDEX_INTERVAL_BYTES: Final = 4096  # Apache Kafka's default
_SCAN_BYTES: Final = 1 << 20  # a judgement, not measured
_WINDOW_BYTES: Final = 2 * INDEX_INTERVAL_BYTES


_sync_data: Final = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class FileSlice(NamedTuple):
    """Whole batches in a segment; while a slice exists, the file can be read, even after the segment is deleted."""

    segment: Segment
    position: int
    size_bytes: int

    def read(self, start: int, limit_bytes: int) -> bytes:
        """Read up to `limit_bytes` from `start` bytes into the slice; raises `OSError`."""
        return os.pread(self.segment.fd, min(limit_bytes, self.size_bytes - start), self.position + start)


@dataclass(frozen=True, slots=True)
class _IndexFile:
    covered_bytes: int
    next_offset: int
    max_timestamp: int
    first_append_ms: int
    producers: list[list[int]]
    offsets: array[int]
    positions: array[int]
    timestamps: array[int]


class Segment:
    """An append-only file of record batches, named after the offset of its first record."""

    def __init__(self, path: Path, base_offset: int, created_ms: int) -> None:
        self.path = path
        self.base_offset = base_offset
        self.next_offset = base_offset
        self.size_bytes = 0
        self.max_timestamp = -1
        self.first_append_ms = created_ms
        # The producer states at the end of a closed segment, while its index is not saved yet.
        self.sealed: list[list[int]] | None = None
        self._offsets = array("q")
        self._positions = array("q")
        # The highest time stamp of all batches before the entry: it never decreases, so it can be bisected.
        self._timestamps = array("q")
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)

    @property
    def fd(self) -> int:
        return self._file.fileno()

    @property
    def index_path(self) -> Path:
        return self.path.with_suffix(".index")

    def append(self, batch: memoryview, header: BatchHeader, base_offset: int) -> None:
        """Write one batch at the end, at `base_offset`; on `OSError` the file is left as it was before."""
        try:
            self._write(batch, header, base_offset)
        except OSError:
            os.ftruncate(self.fd, self.size_bytes)
            raise
        self._account(header._replace(base_offset=base_offset))

    def _write(self, batch: memoryview, header: BatchHeader, base_offset: int) -> None:
        prefix = placed_prefix(base_offset, header)
        written = os.pwritev(self.fd, [prefix, batch[len(prefix) :]], self.size_bytes)
        while written < len(batch):  # a full disk writes a part first, and fails at the next call
            rest = (
                batch[written:]
                if written >= len(prefix)
                else memoryview(prefix + bytes(batch[len(prefix) :]))[written:]
            )
            written += os.pwrite(self.fd, rest, self.size_bytes + written)

    def _account(self, header: BatchHeader) -> None:
        if not self._positions or self.size_bytes - self._positions[-1] >= INDEX_INTERVAL_BYTES:
            self._offsets.append(header.base_offset)
            self._positions.append(self.size_bytes)
            self._timestamps.append(self.max_timestamp)
        self.size_bytes += header.size_bytes
        self.next_offset = header.last_offset + 1
        self.max_timestamp = max(self.max_timestamp, header.max_timestamp)

    def headers(self, position: int = 0) -> Iterator[tuple[int, BatchHeader]]:
        """Iterate over `(position, header)` of the batches from `position` on, at which a batch must start."""
        window_start, window = position, b""
        while position + HEADER_BYTES <= self.size_bytes:
            if position + HEADER_BYTES > window_start + len(window) or position < window_start:
                # After a batch larger than the window only the next header is read; else many small batches at once.
                ahead = HEADER_BYTES if position > window_start + len(window) else _WINDOW_BYTES
                window_start, window = position, os.pread(self.fd, ahead, position)
            header = parse_header(window, position - window_start)
            yield position, header
            position += header.size_bytes

    def read_batch(self, position: int, header: BatchHeader) -> bytes:
        """Return the whole batch at a position and with a header that `headers` returned."""
        return os.pread(self.fd, header.size_bytes, position)

    def locate(self, offset: int) -> int | None:
        """Return the position of the first batch that ends at `offset` or later; None when there is none."""
        entry = bisect_right(self._offsets, offset) - 1
        for position, header in self.headers(self._positions[entry] if entry >= 0 else 0):
            if header.last_offset >= offset:
                return position
        return None

    def run_from(self, position: int, limit_bytes: int) -> int:
        """Return how many bytes of whole batches from `position` fit in the limit, at least those of one batch."""
        end = position + limit_bytes
        if end >= self.size_bytes:
            return self.size_bytes - position
        entry = max(bisect_right(self._positions, end) - 1, 0)
        boundary = max(self._positions[entry], position)
        for start, header in self.headers(boundary):
            if start + header.size_bytes > end:
                return start - position if start > position else header.size_bytes
        return self.size_bytes - position

    def first_batch_since(self, timestamp: int) -> tuple[int, BatchHeader] | None:
        """Return the first batch with a record at `timestamp` (ms) or later, found by bisecting the index."""
        if self.max_timestamp < timestamp:
            return None
        entry = max(bisect_right(self._timestamps, timestamp - 1) - 1, 0)
        for position, header in self.headers(self._positions[entry]):
            if header.max_timestamp >= timestamp:
                return position, header
        return None

    def sync(self) -> None:
        """Force the file to the disk, so that it survives a power loss."""
        _sync_data(self.fd)

    def delete(self) -> None:
        """Remove the files. Readers with a slice can still read; the descriptor closes with the last of them."""
        self.path.unlink(missing_ok=True)
        self.index_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def save_index(self, producers: list[list[int]]) -> None:
        """Write the index and the state of the idempotent producers at the end of this segment beside it.

        A start trusts it and does not read the data, so the data must be on the disk before it.
        """
        content = json.dumps(
            {
                "covered_bytes": self.size_bytes,
                "next_offset": self.next_offset,
                "max_timestamp": self.max_timestamp,
                "first_append_ms": self.first_append_ms,
                "producers": producers,
                "entries": len(self._offsets),
            }
        ).encode()
        body = content + b"\n" + self._offsets.tobytes() + self._positions.tobytes() + self._timestamps.tobytes()
        temporary = self.index_path.with_suffix(".index.new")
        temporary.write_bytes(zlib.crc32(body).to_bytes(4, "big") + body)
        temporary.replace(self.index_path)

    def _load_index(self) -> _IndexFile | None:
        try:
            data = self.index_path.read_bytes()
        except FileNotFoundError:
            return None
        # A power loss may leave an empty file, and the CRC of nothing is 0.
        if len(data) <= 4 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "big"):
            log.warning("index %s is damaged, the segment is scanned instead", self.index_path)
            return None
        content, _, numbers = data[4:].partition(b"\n")
        head = json.loads(content)
        size = head.pop("entries") * 8
        columns = [array("q", numbers[start : start + size]) for start in (0, size, 2 * size)]
        return _IndexFile(**head, offsets=columns[0], positions=columns[1], timestamps=columns[2])

    def recover(self, producers: ProducerStates) -> None:
        """Open a file of an earlier run: check the batches that no index covers, and cut an incomplete end off.

        `producers` hold the state at the start of this segment, and afterwards that at its end.
        """
        on_disk = os.fstat(self.fd).st_size
        index = self._load_index()
        if index is not None and index.covered_bytes <= on_disk:
            self.size_bytes, self.next_offset = index.covered_bytes, index.next_offset
            self.max_timestamp, self.first_append_ms = index.max_timestamp, index.first_append_ms
            self._offsets, self._positions, self._timestamps = index.offsets, index.positions, index.timestamps
            producers.restore(index.producers)
        for header in self._scan(on_disk):
            producers.appended(header, header.base_offset, max(header.max_timestamp, 0))
        if self.size_bytes < on_disk:
            log.warning("%s: %d bytes of an incomplete write are cut off", self.path, on_disk - self.size_bytes)
            os.ftruncate(self.fd, self.size_bytes)

    def _scan(self, on_disk: int) -> Iterator[BatchHeader]:
        """Add the intact batches after the known ones, and yield their headers."""
        window_bytes = _SCAN_BYTES
        while self.size_bytes + HEADER_BYTES <= on_disk:
            window = memoryview(os.pread(self.fd, min(window_bytes, on_disk - self.size_bytes), self.size_bytes))
            used = 0
            while used + HEADER_BYTES <= len(window):
                header = parse_header(window, used)
                whole = plausible(header) and self.size_bytes + header.size_bytes <= on_disk
                if not whole or header.base_offset < self.next_offset:
                    return
                batch = window[used : used + header.size_bytes]
                if len(batch) < header.size_bytes:  # read on from its start, far enough to hold it
                    window_bytes = max(_SCAN_BYTES, header.size_bytes)
                    break
                if not crc_matches(batch, header):
                    return
                self._account(header)
                used += header.size_bytes
                yield header

    def producers_at_end(self) -> list[list[int]] | None:
        """Return the producer states at the end of this closed segment; None when they are unknown."""
        if self.sealed is not None:
            return self.sealed
        index = self._load_index()
        return index.producers if index is not None else None
