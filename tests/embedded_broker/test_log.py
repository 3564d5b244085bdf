"""The log of a partition, compared with a list of the appended records: offsets, crashes, retention, searches."""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedded_broker.batch import HEADER_BYTES, BatchError, open_records, parse_header
from embedded_broker.log import OffsetOutOfRange, PartitionLog
from embedded_broker.protocol import ErrorCode
from embedded_broker.topic_config import TopicConfig
from tests.support.wire import record_batch


class SteppedClock:
    """A clock that moves when the test moves it."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


def opened(folder: Path, clock: SteppedClock | None = None, **config: object) -> PartitionLog:
    return PartitionLog(folder, TopicConfig(**config), clock_ms=clock or SteppedClock())


def append(log: PartitionLog, *values: bytes, **options) -> int:
    return log.append(memoryview(record_batch(list(values), **options)))


def content(log: PartitionLog, offset: int | None = None, limit_bytes: int = 1 << 30) -> list[tuple[int, bytes]]:
    """Read to the end as a consumer does: fetch, skip records before the offset, go on after the last one."""
    position = log.log_start if offset is None else offset
    rows: list[tuple[int, bytes]] = []
    while position < log.next_offset:
        slices, _ = log.read(position, limit_bytes, at_least_one=True)
        data = b"".join(part.read(0, part.size_bytes) for part in slices)
        before = position
        while data:
            header = parse_header(data)
            batch, data = data[: header.size_bytes], data[header.size_bytes :]
            records = [(record.offset, record.value or b"") for record in open_records(batch)]
            rows += [(offset, value) for offset, value in records if offset >= position]
            position = max(position, header.last_offset + 1)
        assert position > before, "a fetch made no progress"
    return rows


batches = st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=8), min_size=1, max_size=25)


@settings(max_examples=40)
@given(batches=batches, segment_bytes=st.integers(1, 3000), limit_bytes=st.integers(1, 4000), start=st.integers(0, 200))
def test_every_record_is_read_back_once_from_any_offset_with_any_limit(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[bytes]],
    segment_bytes: int,
    limit_bytes: int,
    start: int,
) -> None:
    log = opened(tmp_path_factory.mktemp("log"), segment_bytes=segment_bytes)
    expected: list[tuple[int, bytes]] = []
    for values in batches:
        base = append(log, *values)
        assert base == len(expected)
        expected += [(base + index, value) for index, value in enumerate(values)]
    start = min(start, len(expected))
    assert content(log, start, limit_bytes) == expected[start:]
    log.close()


@settings(max_examples=40)
@given(
    batches=batches,
    segment_bytes=st.integers(200, 3000),
    cut=st.integers(1, 400),
    clean=st.booleans(),
    synced_after=st.integers(0, 25),
)
def test_after_a_crash_all_whole_batches_are_there_and_the_incomplete_one_is_not(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[bytes]],
    segment_bytes: int,
    cut: int,
    clean: bool,
    synced_after: int,
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = opened(folder, segment_bytes=segment_bytes)
    for count, values in enumerate(batches):
        append(log, *values)
        if count == synced_after:  # some segments come back from their index, the later ones from a scan
            log.sync()
            log.save_indexes()
    whole = content(log)
    if clean:
        log.close()
    else:
        last = log.segments[-1].path
        torn = record_batch([b"never acknowledged" * 30])[: cut + HEADER_BYTES]
        with last.open("ab") as file:
            file.write(struct.pack(">q", log.next_offset) + torn[8:])
    again = opened(folder, segment_bytes=segment_bytes)
    assert content(again) == whole
    assert append(again, b"next") == len(whole)
    assert content(again)[-1] == (len(whole), b"next")
    again.close()


def test_a_flipped_bit_after_the_last_index_cuts_the_log_there(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for index in range(5):
        append(log, b"%d" % index)
    path = log.segments[-1].path
    size = log.size_bytes // 5
    data = bytearray(path.read_bytes())
    data[3 * size + 65] ^= 1
    path.write_bytes(data)
    again = opened(tmp_path)
    assert [value for _, value in content(again)] == [b"0", b"1", b"2"]
    assert append(again, b"new") == 3


def test_an_index_that_does_not_match_its_file_is_not_used(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=400)
    for index in range(12):
        append(log, b"%d" % index)
    whole = content(log)
    log.close()
    indexes = sorted(tmp_path.glob("*.index"))
    indexes[0].write_bytes(indexes[1].read_bytes()[:-3])
    indexes[2].unlink()
    assert content(opened(tmp_path, segment_bytes=400)) == whole


def test_producer_sequences_survive_a_crash_and_a_clean_end(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=300)
    for sequence in range(7):
        append(log, b"x" * 50, producer=(5, 0, sequence))
    for clean in (False, True, False):
        if clean:
            log.close()
        log = opened(tmp_path, segment_bytes=300)
        assert append(log, b"x" * 50, producer=(5, 0, 6)) == 6  # seen before
        with pytest.raises(BatchError) as refused:
            append(log, b"x", producer=(5, 0, 8))
        assert refused.value.code is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
        assert log.next_offset == 7


@settings(max_examples=40)
@given(
    times=st.lists(st.integers(0, 1000), min_size=1, max_size=60),
    wanted=st.integers(0, 1100),
    segment_bytes=st.integers(200, 5000),
    per_batch=st.integers(1, 4),
)
def test_the_search_by_time_agrees_with_a_scan(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], wanted: int, segment_bytes: int, per_batch: int
) -> None:
    log = opened(tmp_path_factory.mktemp("log"), segment_bytes=segment_bytes)
    stamps: list[int] = []
    for time in times:
        append(log, *[b"x" * 40] * per_batch, timestamp=time)
        stamps += [time] * per_batch
    scanned = next(((offset, stamp) for offset, stamp in enumerate(stamps) if stamp >= wanted), None)
    assert log.offset_since(wanted) == scanned
    newest = log.newest()
    assert newest == (stamps.index(max(stamps)), max(stamps))
    log.close()


def test_retention_by_bytes_deletes_whole_old_segments_only(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=1000, retention_bytes=2500)
    for index in range(40):
        append(log, b"%02d" % index + bytes(100))
    kept_before = log.size_bytes
    log.retain()
    assert 2500 <= log.size_bytes < 3600 < kept_before
    records = content(log)
    assert records[0][0] == log.log_start > 0
    assert records[-1][0] == 39
    with pytest.raises(OffsetOutOfRange):
        log.read(log.log_start - 1, 1000, at_least_one=True)
    assert len(list(tmp_path.glob("*.log"))) == len(log.segments)


def test_retention_by_time_takes_the_active_segment_too_and_keeps_the_offsets(tmp_path: Path) -> None:
    clock = SteppedClock()
    log = opened(tmp_path, clock, retention_ms=10_000)
    append(log, b"old", timestamp=clock.now_ms - 5_000)
    log.retain()
    assert content(log) == [(0, b"old")]
    clock.now_ms += 6_000
    log.retain()
    assert content(log) == []
    assert opened(tmp_path, clock).next_offset == 1
    assert append(log, b"new", timestamp=clock.now_ms) == 1


def test_a_reader_keeps_what_it_was_given_while_retention_deletes_it(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=500, retention_bytes=0)
    for index in range(20):
        append(log, b"%02d" % index + bytes(100))
    (part, *_), _ = log.read(0, 400, at_least_one=True)
    log.retain()
    assert log.log_start > 0
    assert len(part.read(0, part.size_bytes)) == part.size_bytes


@contextmanager
def disk_that_ends_at(size_bytes: int) -> Iterator[None]:
    """Let the system refuse to make a file of this process larger; the write before it is incomplete."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_raises_and_leaves_no_half_written_batch(tmp_path: Path) -> None:
    log = opened(tmp_path)
    append(log, b"before" * 20_000)
    size = log.size_bytes
    with disk_that_ends_at(size + 30), pytest.raises(OSError, match="File too large"):
        append(log, b"does not fit", producer=(1, 0, 0))
    assert log.segments[-1].path.stat().st_size == log.size_bytes == size
    assert append(log, b"fits", producer=(1, 0, 0)) == 1
    assert content(log) == [(0, b"before" * 20_000), (1, b"fits")]
    assert content(opened(tmp_path)) == content(log)
