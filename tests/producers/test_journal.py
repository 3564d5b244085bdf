"""The journal of a camera: what was captured and dropped survives a kill, exactly."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawline.messages import DroppedRange, DropReason, LedgerEntry
from producers.journal import FILE_NAME, HEARTBEAT_NS, EpochAccount, Journal, has_open_accounts, merged

FULL, BAD = DropReason.SPOOL_FULL, DropReason.ENCODING_FAILED
EPOCH = 5


def journal_in(folder: Path, epoch: int = EPOCH, waiting: dict[int, int] | None = None) -> Journal:
    folder.mkdir(exist_ok=True)
    return Journal(folder, "cam", epoch, waiting or {})


def due(journal: Journal, *, closed: bool = False, at: int = 1) -> list[tuple[EpochAccount, LedgerEntry]]:
    return journal.due(at, lambda _: closed)


def the_entry(journal: Journal, *, closed: bool = False, at: int = 1) -> LedgerEntry:
    ((_, entry),) = due(journal, closed=closed, at=at)
    return entry


def confirm(journal: Journal, *, closed: bool = False, at: int = 1) -> LedgerEntry:
    """Publish the due entries and confirm them."""
    ((account, entry),) = due(journal, closed=closed, at=at)
    account.confirmed()
    return entry


def captured(journal: Journal, count: int) -> None:
    for _ in range(count):
        journal.capture()


@pytest.mark.system
def test_kill_loses_no_capture_and_no_drop_of_the_account(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom flawline.messages import DropReason\n"
        "from producers.journal import Journal\njournal = Journal(Path(sys.argv[1]), 'cam', 5, {})\n"
        "for sequence in range(12):\n    journal.capture()\n"
        "    if sequence in (3, 4):\n        journal.drop(5, sequence, DropReason.ENCODING_FAILED)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert has_open_accounts(tmp_path)
    journal = journal_in(tmp_path)
    assert journal.epoch == EPOCH + 1, "an epoch is never used twice"
    entry = the_entry(journal, closed=True)
    assert (entry.epoch, entry.captured, entry.closed) == (EPOCH, 12, True)
    assert entry.dropped == (DroppedRange(3, 4, BAD),)
    assert not entry.exact, "the killed process may have captured more than it could note"
    captured(journal, 1)
    assert [entry.exact for _, entry in due(journal, closed=True) if entry.epoch == journal.epoch] == [True]


def test_confirmed_drops_are_not_published_again_after_a_kill(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    captured(journal, 3)
    journal.drop(EPOCH, 0, BAD)
    ((account, entry),) = due(journal)
    assert entry.dropped == (DroppedRange(0, 0, BAD),)
    journal.drop(EPOCH, 1, BAD)  # while the entry is in flight: it would extend the range that is in it
    account.confirmed()
    assert the_entry(journal_in(tmp_path)).dropped == (DroppedRange(1, 1, BAD),)


def test_failed_entry_goes_with_the_next(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    captured(journal, 1)
    journal.drop(EPOCH, 0, FULL)
    ((account, first),) = due(journal)
    assert due(journal) == []  # one at a time
    account.failed()
    assert the_entry(journal) == first


def test_unchanged_account_is_not_published_again(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    assert due(journal, closed=True) == []  # nothing was captured
    captured(journal, 1)
    confirm(journal)
    assert due(journal, at=2) == []
    assert journal.owes(lambda _: True)
    assert confirm(journal, closed=True, at=3).closed
    assert not journal.owes(lambda _: True)


def test_open_account_is_published_again_before_the_ledger_counts_it_as_dead(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    captured(journal, 1)
    confirm(journal, at=0)
    assert due(journal, at=HEARTBEAT_NS - 1) == []
    confirm(journal, at=HEARTBEAT_NS)
    assert confirm(journal, at=HEARTBEAT_NS + 1, closed=True).closed
    assert due(journal, at=9 * HEARTBEAT_NS, closed=True) == []


def test_completed_journal_leaves_no_file_and_an_open_one_stays(tmp_path: Path) -> None:
    for name, closed in (("done", True), ("open", False)):
        journal = journal_in(tmp_path / name)
        captured(journal, 1)
        confirm(journal, closed=closed)
        journal.close()
        assert has_open_accounts(tmp_path / name) is not closed
        assert any((tmp_path / name).iterdir()) is not closed
    journal_in(tmp_path / "unused").close()
    assert not has_open_accounts(tmp_path / "unused")


def test_missing_account_is_made_from_the_frames_on_disk(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, epoch=2, waiting={EPOCH: 6})
    assert journal.epoch == EPOCH + 1
    assert the_entry(journal, closed=True).captured == 7


def test_drops_of_a_long_outage_take_one_row_and_no_memory(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    captured(journal, 1)
    tracemalloc.start()
    for sequence in range(20_000):
        journal.drop(EPOCH, sequence, FULL)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 100_000
    with sqlite3.connect(tmp_path / FILE_NAME) as file:
        assert file.execute("SELECT first, last FROM dropped").fetchall() == [(0, 19_999)]
    assert the_entry(journal).dropped == (DroppedRange(0, 19_999, FULL),)


@pytest.mark.system
def test_journals_of_ten_cameras_without_a_broker_for_eight_hours_stay_small(tmp_path: Path) -> None:
    """One capture stands for three hundred; an entry is tried, and fails, every minute."""
    for camera in range(10):
        folder = tmp_path / str(camera)
        journal = journal_in(folder)
        sequence = 0
        for _ in range(8 * 60):
            for _ in range(6):
                journal.capture()
                journal.drop(EPOCH, sequence, FULL)
                sequence += 1
            ((account, _),) = journal.due(sequence * 10**12, lambda epoch: False)
            journal.drop(EPOCH, sequence, FULL)  # while the entry is in flight
            journal.capture()
            sequence += 1
            account.failed()
        with sqlite3.connect(folder / FILE_NAME) as file:
            assert file.execute("SELECT first, last FROM dropped").fetchall() == [(0, sequence - 1)]
            assert file.execute("PRAGMA page_count").fetchone()[0] * 4096 < 50_000
        assert the_entry(journal).dropped == (DroppedRange(0, sequence - 1, FULL),)
        journal.close()


def test_old_journal_stays_while_the_disk_fails(tmp_path: Path) -> None:
    text = tmp_path / "5.journal"
    text.write_bytes(b"%020d\n" % 9)
    (tmp_path / FILE_NAME).mkdir()
    journal = Journal(tmp_path, "cam", 6, {})
    assert the_entry(journal, closed=True).captured == 9 and text.exists()
    journal.close()
    (tmp_path / FILE_NAME).rmdir()
    assert the_entry(Journal(tmp_path, "cam", 7, {}), closed=True).captured == 9 and not text.exists()


@pytest.mark.parametrize("failing", ["read_bytes", "unlink"])
def test_old_journal_that_cannot_be_read_or_removed_costs_no_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    (tmp_path / "5.journal").write_bytes(b"%020d\n" % 9)
    real = getattr(Path, failing)

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".journal":
            raise OSError(5, "Input/output error")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, failing, fail)
    journal = Journal(tmp_path, "cam", EPOCH, {})
    captured(journal, 2)
    assert journal.epoch >= EPOCH and "5.journal" in caplog.text
    journal.close()


def test_journals_in_the_old_text_format_are_taken_over_once(tmp_path: Path) -> None:
    text = tmp_path / "5.journal"
    text.write_bytes(
        b"%020d\n" % 9 + b'{"first": 1, "last": 1, "reason": "encoding-failed"}\n{"confirmed": 1}\n'
        b'{"first": 2, "last": 2, "reason": "spool-full"}\n{"first": 3, "last": 3, "reason": "spool-full"}\n'
        b'{"first": 4, "la'
    )
    assert has_open_accounts(tmp_path)
    journal_in(tmp_path).close()
    assert not text.exists()
    entry = the_entry(journal_in(tmp_path), closed=True)
    assert (entry.epoch, entry.captured, entry.dropped) == (EPOCH, 9, (DroppedRange(2, 3, FULL),))


def test_disk_that_fails_costs_no_capture_and_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = journal_in(tmp_path)
    captured(journal, 3)
    journal.drop(EPOCH, 1, FULL)
    journal._database._connection.execute("PRAGMA query_only = 1")  # what every write gets from a disk that fails
    captured(journal, 2)
    journal.drop(EPOCH, 4, BAD)
    entry = the_entry(journal, closed=True)
    assert (entry.captured, entry.dropped) == (5, (DroppedRange(1, 1, FULL), DroppedRange(4, 4, BAD)))
    assert caplog.text.count("cannot be kept") == 1


def test_account_is_on_disk_again_once_the_disk_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = journal_in(tmp_path)
    captured(journal, 3)
    journal.drop(EPOCH, 1, FULL)
    journal._database._connection.execute("PRAGMA query_only = 1")
    captured(journal, 2)
    journal.drop(EPOCH, 4, BAD)
    journal._database._retry_at_s = 0.0
    captured(journal, 1)
    assert "is kept on disk again" in caplog.text
    again = journal_in(tmp_path, epoch=EPOCH + 1)  # after a kill
    entry = the_entry(again, closed=True)
    assert (entry.epoch, entry.captured) == (EPOCH, 6)
    assert entry.dropped == (DroppedRange(1, 1, FULL), DroppedRange(4, 4, BAD))


def test_folder_that_cannot_be_written_costs_no_capture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE_NAME).mkdir()  # no file can be opened there, not even by root
    journal = Journal(tmp_path, "cam", EPOCH, {})
    captured(journal, 2)
    assert the_entry(journal).captured == 2
    assert caplog.text.count("cannot be kept") == 1
    journal.close()


ACTIONS = st.lists(
    st.sampled_from(["capture", "capture", "capture", "drop", "drop", "publish", "confirmed", "failed", "kill"]),
    max_size=60,
)


@settings(max_examples=60)
@given(ACTIONS, st.randoms(use_true_random=False))
def test_topic_has_every_capture_and_every_drop_after_any_order_of_events(
    tmp_path_factory: Any, actions: list[str], random: Any
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = journal_in(folder)
    counts: dict[int, int] = {}
    drops: dict[int, dict[int, DropReason]] = {}
    topic: list[LedgerEntry] = []
    in_flight: list[tuple[EpochAccount, LedgerEntry]] = []
    for action in actions:
        if action == "capture":
            assert journal.capture() == counts.get(journal.epoch, 0)
            counts[journal.epoch] = counts.get(journal.epoch, 0) + 1
        elif action == "drop" and counts.get(journal.epoch):
            of_epoch = drops.setdefault(journal.epoch, {})
            sequence = min(counts[journal.epoch] - 1, max(of_epoch, default=-1) + random.choice((1, 1, 1, 2)))
            if sequence not in of_epoch:
                of_epoch[sequence] = random.choice((FULL, FULL, BAD))
                journal.drop(journal.epoch, sequence, of_epoch[sequence])
        elif action == "publish":
            in_flight += due(journal, at=len(topic))
        elif action in ("confirmed", "failed") and in_flight:
            account, entry = in_flight.pop(0)
            if action == "confirmed":
                topic.append(entry)
                account.confirmed()
            else:
                account.failed()
        elif action == "kill":
            topic += [entry for _, entry in in_flight if random.random() < 0.5]  # arrived, and nobody heard of it
            in_flight = []
            journal = journal_in(folder, epoch=1)
    for account, _ in in_flight:
        account.failed()
    while entries := due(journal, closed=True, at=10**18):
        for account, entry in entries:
            topic.append(entry)
            account.confirmed()
    journal.close()
    assert not any(folder.iterdir()), "nothing is left to say"
    published: dict[int, dict[int, DropReason]] = {}
    for entry in topic:
        for item in entry.dropped:
            published.setdefault(entry.epoch, {}).update(dict.fromkeys(range(item.first, item.last + 1), item.reason))
    assert published == {epoch: of_epoch for epoch, of_epoch in drops.items() if of_epoch}
    last = {entry.epoch: (entry.captured, entry.closed) for entry in topic}
    assert last == {epoch: (count, True) for epoch, count in counts.items()}


@given(st.dictionaries(st.integers(0, 60), st.sampled_from([FULL, BAD])))
def test_merging_keeps_every_sequence_and_its_reason(drops: dict[int, DropReason]) -> None:
    ranges = merged([DroppedRange(sequence, sequence, reason) for sequence, reason in drops.items()])
    assert {n: item.reason for item in ranges for n in range(item.first, item.last + 1)} == drops
    assert all(a.last < b.first for a, b in itertools.pairwise(ranges))


def test_journal_file_is_in_wal_mode(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    captured(journal, 1)
    with sqlite3.connect(tmp_path / FILE_NAME) as file:
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
