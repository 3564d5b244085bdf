"""A record is read whatever the names of its headers are; the client alone raises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from flawline import record_headers

record_headers.read_any_names()


class Raw(str):
    """A name that is sent as its code points, one byte each."""

    def encode(self, *_: Any) -> bytes:
        return bytes(map(ord, self))


def batch_of(records: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]]) -> DefaultRecordBatch:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for offset, (key, value, headers) in enumerate(records):
        assert builder.append(offset, 5, key, value, headers)
    return DefaultRecordBatch(builder.build())


some_bytes = st.none() | st.binary(max_size=200)
names = st.text(st.characters(max_codepoint=255), max_size=200).map(Raw)
records = st.lists(st.tuples(some_bytes, some_bytes, st.lists(st.tuples(names, some_bytes), max_size=4)), min_size=1)


@given(records)
def test_records_with_any_names_are_read_and_only_what_is_no_text_is_changed(sent: Any) -> None:
    received = list(batch_of(sent))
    assert [(record.key, record.value) for record in received] == [(key, value) for key, value, _ in sent]
    for record, (_, _, headers) in zip(received, sent, strict=True):
        assert [value for _, value in record.headers] == [value for _, value in headers]
        for (name, _), (raw, _) in zip(record.headers, headers, strict=True):
            data = Raw.encode(raw)
            plain = bytes(byte if byte < 0x80 else ord("?") for byte in data)
            assert name in (data.decode(errors="replace"), plain.decode())


def test_the_client_alone_raises() -> None:
    batch = batch_of([(b"k", b"v", [(Raw("gr\xf6n"), b"1")])])
    with pytest.raises(UnicodeDecodeError):
        record_headers._read(batch)
