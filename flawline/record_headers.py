"""Records whose headers have names that are no text: kafka-python 3.0.12 raises in `poll` for such a record, for ever.

No broker checks names, so one record would end each worker that reads it. Bytes that are no UTF-8 become `?` instead.
"""

from __future__ import annotations

from typing import Any

from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

_read = DefaultRecordBatch._read_msg


def read_any_names() -> None:
    """Make every consumer of this process read such records."""
    DefaultRecordBatch._read_msg = _read_message


def _read_message(batch: Any) -> Any:
    try:
        return _read(batch)
    except UnicodeDecodeError:
        for start, end in _names(batch._buffer, batch._pos):
            text = bytes(batch._buffer[start:end])
            try:
                text.decode()
            except UnicodeDecodeError:
                batch._buffer[start:end] = bytes(byte if byte < 0x80 else ord("?") for byte in text)
        return _read(batch)


def _names(buffer: bytearray, place: int) -> list[tuple[int, int]]:
    """Return first and end byte of each header's name of the record that begins at `place`."""
    for _ in range(4):  # length, attributes, difference of time, difference of offset
        _, place = decode_varint(buffer, place)
    for _ in range(2):  # key and value; -1 bytes is none
        size, place = decode_varint(buffer, place)
        place += max(0, size)
    count, place = decode_varint(buffer, place)
    names = []
    for _ in range(count):
        size, place = decode_varint(buffer, place)
        names.append((place, place + size))
        value_bytes, place = decode_varint(buffer, place + size)
        place += max(0, value_bytes)
    return names
