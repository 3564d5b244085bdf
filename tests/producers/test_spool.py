"""The disk spool: order, no loss, restarts, incomplete ends, damage, limits."""

import errno
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flawline.errors import FlawlineError
from producers.spool import HEADER_BYTES, DamagedRecord, Quota, Record, Spool, SpoolFull

PLENTY = 1 << 30


def record(sequence: int, size: int = 50, epoch: int = 7) -> Record:
    return Record(epoch, sequence, bytes([sequence % 251]) * size)


def drained(spool: Spool) -> list[int]:
    """Read and confirm all records that are left; return their sequences, without damaged records."""
    result = []
    while True:
        try:
            record = spool.next()
        except DamagedRecord as error:
            spool.confirm(error.epoch, error.sequence)
            continue
        if record is None:
            return result
        spool.confirm(record.epoch, record.sequence)
        result.append(record.sequence)


def test_records_are_read_in_order_and_their_disk_space_is_freed(tmp_path: Path) -> None:
    quota = Quota(PLENTY)
    spool = Spool(tmp_path, quota, segment_bytes=200)
    for sequence in range(20):
        spool.append(record(sequence))
    assert len(list(tmp_path.glob("*.seg"))) > 3
    assert spool.frames == 20
    assert drained(spool) == list(range(20))
    assert list(tmp_path.glob("*.seg")) == []
    assert (spool.frames, spool.size_bytes, quota.take(PLENTY)) == (0, 0, True)


def test_restart_continues_after_the_contiguously_confirmed_records(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Quota(PLENTY), segment_bytes=200)
    for sequence in range(10):
        spool.append(record(sequence))
    for _ in range(6):
        spool.next()
    for sequence in (0, 1, 2, 4):  # 3 is not answered yet
        spool.confirm(7, sequence)
    spool.close()
    again = Spool(tmp_path, Quota(PLENTY), segment_bytes=200)
    assert again.outstanding[7] == 7
    assert drained(again) == [3, 4, 5, 6, 7, 8, 9]


def test_rewind_returns_the_unconfirmed_records_again_and_no_confirmed_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Quota(PLENTY), segment_bytes=120)
    for sequence in range(8):
        spool.append(record(sequence))
    for _ in range(5):
        spool.next()
    for sequence in (1, 3):
        spool.confirm(7, sequence)
    spool.rewind()
    assert drained(spool) == [0, 2, 4, 5, 6, 7]
    assert spool.frames == 0


def test_put_first_comes_before_what_is_there_also_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Quota(PLENTY))
    spool.append(record(5))
    spool.append(record(6))
    assert spool.put_first([record(3), record(4)]) == []
    spool.close()
    again = Spool(tmp_path, Quota(PLENTY))
    again.append(record(7))
    assert drained(again) == [3, 4, 5, 6, 7]


def test_full_spool_refuses_and_has_room_again_after_delivery(tmp_path: Path) -> None:
    quota = Quota(3 * (HEADER_BYTES + 50))
    spool = Spool(tmp_path, quota, segment_bytes=1)  # a segment per record, so each delivery gives room
    for sequence in range(3):
        spool.append(record(sequence))
    with pytest.raises(SpoolFull, match="cap of"):
        spool.append(record(3))
    assert spool.next().sequence == 0
    spool.confirm(7, 0)
    spool.append(record(3))
    assert drained(spool) == [1, 2, 3]


def test_shed_names_the_undelivered_records_of_the_oldest_segment_that_was_not_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "cam", Quota(PLENTY), segment_bytes=150)
    for sequence in range(6):  # two records in each segment
        spool.append(record(sequence, 60))
    assert [spool.next().sequence for _ in range(4)] == [0, 1, 2, 3]
    spool.confirm(7, 3)
    assert spool.shed_oldest() is None, "two segments are in flight, the last one is in writing"
    spool.rewind()
    assert spool.shed_oldest() == [(7, 0), (7, 1)]
    assert spool.shed_oldest() == [(7, 2)], "3 is delivered"
    assert spool.shed_oldest() is None
    assert spool.frames == 2
    assert drained(spool) == [4, 5]
    spool.close()


def test_full_disk_is_a_full_spool_and_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, Quota(PLENTY))
    spool.append(record(0))

    class FullDisk:
        def __init__(self, file: object) -> None:
            self.file, self.calls = file, 0

        def write(self, data: memoryview) -> int:
            self.calls += 1
            if self.calls > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data[: len(data) // 2])

        def close(self) -> None:
            self.file.close()

    spool._writer = FullDisk(spool._writer)
    with pytest.raises(SpoolFull, match="No space left"):
        spool.append(record(1))
    spool.append(record(2))
    assert drained(spool) == [0, 2]


def test_second_producer_on_the_same_spool_is_refused_in_one_line(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Quota(PLENTY))
    with pytest.raises(FlawlineError, match="is in use"):
        Spool(tmp_path, Quota(PLENTY))
    spool.close()
    Spool(tmp_path, Quota(PLENTY)).close()


def test_damaged_payload_names_its_frame_and_the_rest_is_delivered(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Quota(PLENTY))
    for sequence in range(3):
        spool.append(record(sequence))
    (segment,) = tmp_path.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[HEADER_BYTES + 50 + HEADER_BYTES + 10] ^= 1
    segment.write_bytes(data)
    assert spool.next().sequence == 0
    with pytest.raises(DamagedRecord) as caught:
        spool.next()
    assert (caught.value.epoch, caught.value.sequence) == (7, 1)
    assert spool.next().sequence == 2


def test_damaged_header_costs_the_rest_of_its_segment_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Quota(PLENTY), segment_bytes=200)
    for sequence in range(9):
        spool.append(record(sequence))
    first = sorted(tmp_path.glob("*.seg"))[0]
    in_first = first.stat().st_size // (HEADER_BYTES + 50)
    data = bytearray(first.read_bytes())
    data[HEADER_BYTES + 50 + 2] ^= 1
    first.write_bytes(data)
    assert drained(spool) == [0, *range(in_first, 9)]
    assert (spool.frames, list(tmp_path.glob("*.seg"))) == (0, [])


def test_damaged_head_delivers_again_and_skips_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Quota(PLENTY))
    for sequence in range(3):
        spool.append(record(sequence))
    spool.next()
    spool.confirm(7, 0)
    spool.close()
    (tmp_path / "head").write_bytes(b"\xff" * 20)
    assert drained(Spool(tmp_path, Quota(PLENTY))) == [0, 1, 2]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=12), cut=st.integers(0, 5000), data=st.data())
def test_torn_tail_loses_only_what_was_not_wholly_written(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], cut: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, Quota(PLENTY), segment_bytes=400)
    for sequence, size in enumerate(sizes):
        spool.append(record(sequence, size))
    spool.close()
    last = sorted(folder.glob("*.seg"))[-1]
    before = last.read_bytes()
    garbage = data.draw(st.binary(max_size=40))  # a kill may also leave something else behind
    last.write_bytes(after := before[: max(0, len(before) - cut)] + garbage)
    intact = next(
        (at for at, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    # The records before the first altered byte must be there, in order, and then the new record.
    ends = list(itertools.accumulate(HEADER_BYTES + size for size in sizes))
    start = ends[-1] - len(before)  # of the last segment, when all were one file
    whole = sum(end <= start + intact for end in ends)
    again = Spool(folder, Quota(PLENTY), segment_bytes=400)
    again.append(record(1000))
    assert drained(again) == [*range(whole), 1000]
    again.close()


class SpoolMachine(RuleBasedStateMachine):
    """Any mix of operations and restarts delivers what is not shed, in order, and nothing twice.

    Records that were passed over may come again after a restart, so none happens after that.
    """

    folders = 0

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.spool = Spool(self.folder, Quota(PLENTY), segment_bytes=150)
        self.appended = 0
        self.read: list[int] = []  # read and not confirmed
        self.waiting: list[int] = []  # everything that is not confirmed
        self.shed: set[int] = set()
        self.has_passed_over = False

    @rule(size=st.integers(0, 200))
    def append(self, size: int) -> None:
        self.spool.append(record(self.appended, size))
        self.waiting.append(self.appended)
        self.appended += 1

    @rule()
    def read_next(self) -> None:
        record = self.spool.next()
        left = [sequence for sequence in self.waiting if sequence not in self.read]
        assert (record.sequence if record else None) == (left[0] if left else None)
        if record:
            self.read.append(record.sequence)

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.read))
        self.spool.confirm(7, sequence)
        self.read.remove(sequence)
        self.waiting.remove(sequence)

    @precondition(lambda self: set(self.waiting) - set(self.read))
    @rule(data=st.data())
    def pass_over(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from([sequence for sequence in self.waiting if sequence not in self.read]))
        self.spool.pass_over(7, sequence)
        self.has_passed_over = True
        self.waiting.remove(sequence)

    @precondition(lambda self: self.undelivered == len(self.waiting))
    @rule()
    def shed_oldest(self) -> None:
        keys = self.spool.shed_oldest()
        sequences = [sequence for _, sequence in keys or []]
        unread = [sequence for sequence in self.waiting if sequence not in self.read]
        assert not sequences or sequences == unread[unread.index(sequences[0]) :][: len(sequences)]
        self.shed.update(sequences)
        self.waiting = [sequence for sequence in self.waiting if sequence not in self.shed]

    @rule()
    def rewind(self) -> None:
        self.spool.rewind()
        self.read = []

    @precondition(lambda self: not self.has_passed_over)
    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.spool = Spool(self.folder, Quota(PLENTY), segment_bytes=150)
        # Confirmed behind an unconfirmed one: at least once, so these may come again after a restart.
        if self.waiting:
            self.waiting = [n for n in range(self.waiting[0], self.appended) if n not in self.shed]
        self.read = []

    @invariant()
    def counts_agree(self) -> None:
        # What is confirmed before its turn counts until then; after a rewind, until the reader has passed it again.
        assert self.spool.frames >= self.undelivered
        if not self.spool.unread:
            assert self.spool.frames == self.undelivered

    @property
    def undelivered(self) -> int:
        first = self.waiting[0] if self.waiting else self.appended
        return sum(n not in self.shed for n in range(first, self.appended))

    def teardown(self) -> None:
        self.spool.close()
        self.temporary.cleanup()


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=60, stateful_step_count=40)
