"""The account of an epoch on disk."""

import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from flawline.messages import DroppedRange, DropReason
from producers.journal import Journal, left_behind, merged

FULL, BAD = DropReason.SPOOL_FULL, DropReason.ENCODING_FAILED


def test_kill_loses_no_capture_and_no_drop_of_the_account(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "cam", 5)
    for _ in range(12):
        journal.capture()
    journal.drop(3, BAD)
    journal.drop(4, BAD)
    # Not closed: a kill. The file is what the next process finds.
    found = Journal(tmp_path, "cam", 5).entry(1, closed=True)
    assert (found.captured, found.dropped, found.closed) == (12, (DroppedRange(3, 4, BAD),), True)


def test_confirmed_drops_are_not_published_again_after_a_kill(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "cam", 5)
    for _ in range(3):
        journal.capture()
    journal.drop(0, BAD)
    assert journal.entry(1, closed=False).dropped == (DroppedRange(0, 0, BAD),)
    journal.drop(1, FULL)  # while the entry is under way
    journal.confirmed()
    assert Journal(tmp_path, "cam", 5).entry(2, closed=False).dropped == (DroppedRange(1, 1, FULL),)


def test_failed_entry_goes_with_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "cam", 5)
    journal.capture()
    journal.drop(0, FULL)
    first = journal.entry(1, closed=False)
    assert journal.entry(1, closed=False) is None  # one at a time
    journal.failed()
    assert journal.entry(1, closed=False) == first


def test_unchanged_account_is_not_published_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "cam", 5)
    assert journal.entry(1, closed=True) is None  # nothing was captured
    journal.capture()
    journal.entry(1, closed=False)
    journal.confirmed()
    assert journal.entry(2, closed=False) is None
    assert journal.owes(closed=True)
    assert journal.entry(3, closed=True).closed
    journal.confirmed()
    assert journal.is_closed and not journal.owes(closed=True)


def test_open_account_is_heard_of_again_before_the_ledger_takes_it_for_dead(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "cam", 5)
    journal.capture()
    for at, closed, due in [
        (0, False, True),
        (1, False, False),
        (25, False, True),
        (30, True, True),
        (90, True, False),
    ]:
        entry = journal.entry(at * 1_000_000_000, closed=closed)
        assert (entry is not None) == due, at
        journal.confirmed()


def test_closed_account_leaves_no_file_and_an_open_one_stays(tmp_path: Path) -> None:
    for epoch, closed in ((5, True), (6, False)):
        journal = Journal(tmp_path, "cam", epoch)
        journal.capture()
        journal.entry(1, closed=closed)
        journal.confirmed()
        journal.close()
    Journal(tmp_path, "cam", 7).close()
    assert left_behind(tmp_path) == [6]


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "cam", 5)
    for _ in range(3):
        journal.capture()
    journal.drop(1, BAD)
    with journal.path.open("ab") as file:
        file.write(b'{"first": 2, "la')
    again = Journal(tmp_path, "cam", 5)
    again.drop(2, FULL)
    third = Journal(tmp_path, "cam", 5)
    assert third.entry(1, closed=False).dropped == (DroppedRange(1, 1, BAD), DroppedRange(2, 2, FULL))


@given(st.dictionaries(st.integers(0, 60), st.sampled_from([FULL, BAD])))
def test_merging_keeps_every_sequence_and_its_reason(drops: dict[int, DropReason]) -> None:
    ranges = merged([DroppedRange(sequence, sequence, reason) for sequence, reason in drops.items()])
    assert {n: one.reason for one in ranges for n in range(one.first, one.last + 1)} == drops
    assert all(a.last < b.first for a, b in itertools.pairwise(ranges))
