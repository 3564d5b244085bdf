"""Record batches, format v2: the header, its checks, and record-level access for compaction and time look-ups.

The data path never opens a batch: it reads the 61-byte header, verifies the CRC, and patches base offset and leader
epoch, which lie outside the CRC range. Layout: https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from crc32c import crc32c
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from embedded_broker.protocol import ErrorCode

HEADER: Final = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES: Final = HEADER.size  # 61
LENGTH_PREFIX_BYTES: Final = 12  # base offset and length themselves are not counted in the length
CRC_START: Final = 21  # the CRC covers everything from the attributes on
_PLACE: Final = struct.Struct(">qii")  # base offset, length, partition leader epoch: rewritten on append

_COMPRESSION_MASK: Final = 0x07
_MAX_COMPRESSION: Final = 4  # none, gzip, snappy, lz4, zstd
_TIMESTAMP_TYPE_BIT: Final = 0x08
_TRANSACTIONAL_BIT: Final = 0x10
_CONTROL_BIT: Final = 0x20


class BatchHeader(NamedTuple):
    """The 61 bytes in front of every batch, in wire order."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        return self.length + LENGTH_PREFIX_BYTES

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def transactional(self) -> bool:
        return bool(self.attributes & _TRANSACTIONAL_BIT)


@dataclass(frozen=True, slots=True)
class BatchError(Exception):
    """A batch that a producer sent cannot be appended: protocol error code and one line for it."""

    code: ErrorCode
    message: str

    def __str__(self) -> str:
        return self.message


def parse_header(data: bytes | bytearray | memoryview, position: int = 0) -> BatchHeader:
    """Read the header at `position`; raises `struct.error` when fewer than 61 bytes are left."""
    return BatchHeader._make(HEADER.unpack_from(data, position))


def plausible(header: BatchHeader) -> bool:
    """Tell whether the header can be that of a whole v2 batch (its CRC is not looked at)."""
    return header.magic == 2 and header.size_bytes >= HEADER_BYTES and header.last_offset_delta >= 0


def crc_matches(batch: memoryview, header: BatchHeader) -> bool:
    """Tell whether the CRC-32C of `batch` (exactly one batch) is the one in its header."""
    return bool(crc32c(batch[CRC_START:]) == header.crc)


def check_produced(batch: memoryview, limit_bytes: int) -> BatchHeader:
    """Check what a producer sent for one partition: exactly one intact v2 batch of records, and return its header.

    Raises `BatchError` with the code that Apache Kafka answers in the same case.
    """
    if len(batch) < HEADER_BYTES:
        raise BatchError(ErrorCode.CORRUPT_MESSAGE, f"a record batch of {len(batch)} bytes is shorter than its header")
    header = parse_header(batch)
    if header.magic != 2:
        raise BatchError(
            ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT, f"record format v{header.magic} is not supported, only v2"
        )
    if not plausible(header) or header.size_bytes != len(batch):
        raise BatchError(ErrorCode.CORRUPT_MESSAGE, "a produce request carries exactly one whole batch per partition")
    if len(batch) > limit_bytes:
        raise BatchError(
            ErrorCode.MESSAGE_TOO_LARGE, f"batch of {len(batch)} bytes is over max.message.bytes={limit_bytes}"
        )
    if not crc_matches(batch, header):
        raise BatchError(ErrorCode.CORRUPT_MESSAGE, "the CRC of the record batch does not match its content")
    if header.attributes & _COMPRESSION_MASK > _MAX_COMPRESSION:
        raise BatchError(ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, "unknown compression type")
    if header.attributes & _CONTROL_BIT or header.record_count != header.last_offset_delta + 1:
        raise BatchError(ErrorCode.INVALID_RECORD, "not a batch of plain records with consecutive offsets")
    if header.producer_id >= 0 and (header.producer_epoch < 0 or header.base_sequence < 0):
        raise BatchError(ErrorCode.INVALID_RECORD, "a producer id without an epoch or a sequence")
    return header


def placed_prefix(base_offset: int, header: BatchHeader) -> bytes:
    """Return the first 16 bytes of the batch as stored at `base_offset`; all that follows stays as it came."""
    return _PLACE.pack(base_offset, header.length, 0)


class Record(NamedTuple):
    """One record of an opened batch; `headers` as kafka-python gives and takes them."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def open_records(batch: bytes) -> Iterator[Record]:
    """Iterate over the records of one batch, decompressing it when needed.

    Raises whatever kafka-python raises on content that is no list of records: a producer may send anything
    under a valid CRC, so callers treat `Exception` as "leave this batch alone".
    """
    opened = DefaultRecordBatch(batch)
    for record in opened:
        yield Record(record.offset, record.timestamp, record.key, record.value, record.headers)


def has_null_key(batch: bytes) -> bool:
    """Tell whether any record of the batch lacks a key, which a compacted topic cannot keep."""
    return any(record.key is None for record in open_records(batch))


def rebuild(original: bytes, kept: list[Record]) -> bytes:
    """Return `original` with only the records in `kept`: same offsets, sequences, producer and offset range.

    The last offset delta stays, as in Apache Kafka, so that the next batch still follows without a hole; a batch may
    end up with no record at all. Records are written uncompressed.
    """
    header = parse_header(original)
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        base_sequence=header.base_sequence,
        batch_size=1 << 31,  # no limit: what was compressed may grow
    )
    for record in kept:
        builder.append(record.offset - header.base_offset, record.timestamp, record.key, record.value, record.headers)
    body = bytes(builder.build())[HEADER_BYTES:] if kept else b""
    first_timestamp = kept[0].timestamp if kept else header.first_timestamp
    max_timestamp = max((record.timestamp for record in kept), default=header.max_timestamp)
    attributes = header.attributes & ~_COMPRESSION_MASK & ~_TIMESTAMP_TYPE_BIT
    fields = header._replace(
        length=HEADER_BYTES - LENGTH_PREFIX_BYTES + len(body),
        crc=0,
        attributes=attributes,
        first_timestamp=first_timestamp,
        max_timestamp=max_timestamp,
        record_count=len(kept),
    )
    rebuilt = bytearray(HEADER.pack(*fields) + body)
    struct.pack_into(">I", rebuilt, CRC_START - 4, crc32c(memoryview(rebuilt)[CRC_START:]))
    return bytes(rebuilt)
