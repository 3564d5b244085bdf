"""The format of a spooled record: a header with its own checksum, then the payload with its."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c

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
        """The record as it stands on disk."""
        fields = _FIELDS.pack(len(self.payload), self.epoch, self.sequence, crc32c(self.payload))
        return b"".join((fields, crc32c(fields).to_bytes(4, "little"), self.payload))


@dataclass(frozen=True)
class Header:
    """What stands before a payload."""

    size_bytes: int
    epoch: int
    sequence: int
    checksum: int

    @classmethod
    def decode(cls, data: bytes) -> Header | None:
        """The header in `data`; None when it is cut off or altered."""
        if len(data) < HEADER_BYTES:
            return None
        *fields, own = _HEADER.unpack(data)
        return cls(*fields) if own == crc32c(data[:-4]) else None

    def matches(self, payload: bytes) -> bool:
        """Whether `payload` is what was written."""
        return len(payload) == self.size_bytes and crc32c(payload) == self.checksum


def walk(path: Path, start: int, end: int) -> Iterator[tuple[Header, int]]:
    """Header and end offset of each whole record from `start` on, payloads unread, up to a damaged one."""
    with path.open("rb") as file:
        offset = start
        while offset + HEADER_BYTES <= end:
            file.seek(offset)
            header = Header.decode(file.read(HEADER_BYTES))
            if header is None or offset + HEADER_BYTES + header.size_bytes > end:
                return
            offset += HEADER_BYTES + header.size_bytes
            yield header, offset
