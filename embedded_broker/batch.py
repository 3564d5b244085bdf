"""Record batches, format v2: the header, its checks, and the records, for compaction and searches by time.

Produce and Fetch never open a batch: they read its header of 61 bytes, check the CRC, and write base offset and leader
epoch, which the CRC does not cover. Layout: https://kafka.apache.org/documentation/#recordbatch
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
    """The first 61 bytes of every batch, in the order of the wire."""

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
    """A batch of a producer cannot be appended: the error code of the protocol, and one line."""

    code: ErrorCode
    message: str

    def __str__(self) -> str:
        return self.message


def parse_header(data: bytes | bytearray | memoryview, position: int = 0) -> BatchHeader:
    """Read the header at `position`; raises `struct.error` when fewer than 61 bytes are left."""
    return BatchHeader._make(HEADER.unpack_from(data, position))


def plausible(header: BatchHeader) -> bool:
    """Tell whether this can be the header of a whole v2 batch; the CRC is not checked."""
    return header.magic == 2 and header.size_bytes >= HEADER_BYTES and header.last_offset_delta >= 0


def crc_matches(batch: memoryview, header: BatchHeader) -> bool:
    """Tell whether the CRC-32C of `batch` (exactly one batch) is the one in its header."""
    return bool(crc32c(batch[CRC_START:]) == header.crc)


def check_produced(batch: memoryview, limit_bytes: int) -> BatchHeader:
    """Return the header of what a producer sent for one partition, which must be one intact v2 batch of records.

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
    """Return the first 16 bytes of the batch as stored at `base_offset`; the rest stays as it came."""
    return _PLACE.pack(base_offset, header.length, 0)


class Record(NamedTuple):
    """One record of an opened batch; `headers` as kafka-python gives and takes them."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def open_records(batch: bytes) -> Iterator[Record]:
    """Iterate over the records of one batch, which is decompressed when needed.

    Raises any Exception of kafka-python when the content is no list of records. A producer may send anything under a
    valid CRC, so callers then leave the batch as it is.
    """
    opened = DefaultRecordBatch(batch)
    for record in opened:
        yield Record(record.offset, record.timestamp, record.key, record.value, record.headers)


def has_null_key(batch: bytes) -> bool:
    """Tell whether a record of the batch has no key; a compacted topic cannot keep such a record."""
    return any(record.key is None for record in open_records(batch))


def rebuild(original: bytes, records: list[Record]) -> bytes:
    """Return `original` with only the records in `records`: same offsets, sequences, producer and offset range.

    The last offset delta stays, as in Apache Kafka, so that the next batch follows without a hole. A batch may have no
    record left. Records are written uncompressed.
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
    for record in records:
        builder.append(record.offset - header.base_offset, record.timestamp, record.key, record.value, record.headers)
    body = bytes(builder.build())[HEADER_BYTES:] if records else b""
    first_timestamp = records[0].timestamp if records else header.first_timestamp
    max_timestamp = max((record.timestamp for record in records), default=header.max_timestamp)
    attributes = header.attributes & ~_COMPRESSION_MASK & ~_TIMESTAMP_TYPE_BIT
    fields = header._replace(
        length=HEADER_BYTES - LENGTH_PREFIX_BYTES + len(body),
        crc=0,
        attributes=attributes,
        first_timestamp=first_timestamp,
        max_timestamp=max_timestamp,
        record_count=len(records),
    )
    rebuilt = bytearray(HEADER.pack(*fields) + body)
    struct.pack_into(">I", rebuilt, CRC_START - 4, crc32c(memoryview(rebuilt)[CRC_START:]))
    return bytes(rebuilt)
