"""Compaction keeps the last record of every key at its offset, also when the process is killed meanwhile."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from embedded_broker import compaction
from embedded_broker.batch import open_records
from embedded_broker.log import PartitionLog
from embedded_broker.topic_config import TopicConfig
from tests.support.wire import record_batch

NOW_MS = 1_000_000
CONFIG = TopicConfig(
    cleanup_policy="compact", segment_bytes=900, min_cleanable_dirty_ratio=0.0, delete_retention_ms=1000
)


def opened(folder: Path) -> PartitionLog:
    return PartitionLog(folder, CONFIG, clock_ms=lambda: NOW_MS)


def records(log: PartitionLog) -> list[tuple[int, bytes | None, bytes | None]]:
    rows = []
    for segment in log.segments:
        for position, header in segment.headers():
            batch = segment.read_batch(position, header)
            rows += [(record.offset, record.key, record.value) for record in open_records(batch)]
    return rows


def append(log: PartitionLog, key: bytes, value: bytes | None, **options) -> int:
    return log.append(memoryview(record_batch([value], key=key, **options)))


def compact(log: PartitionLog, now_ms: int = NOW_MS) -> None:
    plan = compaction.plan(log, now_ms)
    assert plan is not None
    compaction.install(log, plan, compaction.rewrite(plan))


writes = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.none() | st.binary(max_size=200), st.sampled_from([0, 1])),
    min_size=20,
    max_size=80,
)


@settings(max_examples=40)
@given(writes=writes, reopen=st.booleans(), twice=st.booleans())
def test_the_state_that_a_reader_builds_is_unchanged(
    tmp_path_factory: pytest.TempPathFactory, writes, reopen: bool, twice: bool
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = opened(folder)
    for key, value, codec in writes:
        append(log, key, value, compression=codec)
    log.roll()
    before = records(log)
    latest = {key: (offset, value) for offset, key, value in before}
    compact(log)
    if reopen:
        log = opened(folder)
    if twice:
        append(log, b"e", b"more")
        log.roll()
        compact(log)
        latest[b"e"] = (len(writes), b"more")
    after = records(log)
    assert {key: (offset, value) for offset, key, value in after} == latest
    assert len(after) == len(latest)
    assert [offset for offset, _, _ in after] == sorted(offset for offset, _, _ in after)
    assert set(after) <= set(before) | {(len(writes), b"e", b"more")}
    assert log.size_bytes == sum(path.stat().st_size for path in folder.glob("*.log"))
    log.close()


def test_a_tombstone_is_removed_once_readers_had_time_to_see_it(tmp_path: Path) -> None:
    log = opened(tmp_path)
    append(log, b"gone", b"value")
    append(log, b"stays", b"value")
    append(log, b"gone", None)
    log.roll()
    compact(log, NOW_MS + 500)
    assert [key for _, key, _ in records(log)] == [b"stays", b"gone"]
    append(log, b"more", b"value")
    log.roll()
    compact(log, NOW_MS + 2000)
    assert [key for _, key, _ in records(log)] == [b"stays", b"more"]


def test_the_last_record_stays_so_that_readers_reach_the_end(tmp_path: Path) -> None:
    log = opened(tmp_path)
    append(log, b"key", b"value")
    append(log, b"key", None)
    log.roll()
    compact(log, NOW_MS + 5000)
    assert [offset for offset, _, _ in records(log)] == [1]
    slices, size = log.read(0, 1000, at_least_one=True)
    assert size > 0
    assert slices[0].segment.next_offset == log.next_offset == 2


def test_killed_between_swap_and_deletion_nothing_appears_twice(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for index in range(40):
        append(log, b"key-%d" % (index % 3), b"%d" % index + bytes(100))
    log.roll()
    old = {path.name: path.read_bytes() for path in tmp_path.glob("*.log")}
    compact(log)
    after = records(log)
    for name, data in old.items():  # what a kill before the deletions leaves behind
        if not (tmp_path / name).exists():
            (tmp_path / name).write_bytes(data)
    (tmp_path / f"{5:020d}.log.cleaned").write_bytes(b"half")
    again = opened(tmp_path)
    assert {key: value for _, key, value in records(again)} == {key: value for _, key, value in after}
    assert len({offset for offset, _, _ in records(again)}) == len(records(again))
    assert again.next_offset == log.next_offset


def test_segments_deleted_meanwhile_are_not_brought_back(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for index in range(40):
        append(log, b"key-%d" % (index % 3), b"%d" % index + bytes(100))
    log.roll()
    plan = compaction.plan(log, NOW_MS)
    assert plan is not None
    results = compaction.rewrite(plan)
    log.delete_before(log.next_offset)
    log.retain()
    compaction.install(log, plan, results)
    assert records(log) == []
    assert not list(tmp_path.glob("*.cleaned"))
    assert log.size_bytes == 0


def test_producers_are_still_known_after_compaction_and_a_crash(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for sequence in range(20):
        append(log, b"key", b"%d" % sequence + bytes(100), producer=(9, 0, sequence))
    log.roll()
    compact(log)
    again = opened(tmp_path)
    assert append(again, b"key", b"19" + bytes(100), producer=(9, 0, 19)) == 19
    assert append(again, b"key", b"20", producer=(9, 0, 20)) == 20


def test_a_batch_that_cannot_be_opened_stays_as_it_is(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, TopicConfig(), clock_ms=lambda: NOW_MS)
    broken = bytearray(record_batch([b"value" * 10], key=b"k"))
    broken[61] = 0x7F  # the record's length: no longer a record, under a CRC that is right
    struct.pack_into(">I", broken, 17, crc32c(bytes(broken[21:])))
    log.append(memoryview(bytes(broken)))
    append(log, b"k", b"old")
    append(log, b"k", b"new")
    log.roll()
    log.config = CONFIG
    compact(log)
    segment = log.segments[0]
    sizes = [header.size_bytes for _, header in segment.headers()]
    assert sizes[0] == len(broken)
    assert len(sizes) == 2
