"""The account of any history adds up; one that does not is reported as not balanced."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawline.messages import DeadLetterReason, DroppedRange, DropReason, LedgerEntry
from ledger.accounting import SILENT_AFTER_NS, Account, Identity, Ledger, Report

SECOND_NS = 1_000_000_000
NOW_NS = 1_000_000 * SECOND_NS
REASONS = list(DeadLetterReason)


@dataclass(frozen=True)
class History:
    """The true outcome of each capture of one epoch, and the order of its records."""

    camera: str
    epoch: int
    outcomes: tuple[str, ...]  # one of scored, dropped, dead, recovered, log, gap for each sequence
    seed: int

    def of(self, *kinds: str) -> list[int]:
        return [sequence for sequence, outcome in enumerate(self.outcomes) if outcome in kinds]

    def reason(self, sequence: int) -> DeadLetterReason:
        return REASONS[sequence % len(REASONS)]

    def drop_reason(self, sequence: int) -> DropReason:
        return DropReason.OVERSIZE if sequence % 2 else DropReason.SPOOL_FULL

    def identity(self, sequence: int) -> Identity:
        return self.camera, self.epoch, sequence


outcome = st.sampled_from(["scored", "scored", "scored", "dropped", "dead", "recovered", "log", "gap"])


@st.composite
def histories(draw: st.DrawFn) -> list[History]:
    names = draw(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 3)), unique=True, max_size=5))
    return [
        History(camera, epoch, tuple(draw(st.lists(outcome, max_size=40))), draw(st.integers(0, 1000)))
        for camera, epoch in names
    ]


def add(history: History, ledger: Ledger) -> list[Identity]:
    """Report a history to the ledger in random order, some of it twice; return the frames that are in the log."""
    order = random.Random(history.seed)
    entries = [
        LedgerEntry(
            history.camera,
            history.epoch,
            len(history.outcomes),
            tuple(DroppedRange(s, s, history.drop_reason(s)) for s in history.of("dropped")),
            NOW_NS,
            closed=True,
        )
    ] * 2
    calls = [lambda entry=entry: ledger.record_entry(entry) for entry in entries]
    for sequence in history.of("scored", "recovered"):
        calls += [lambda s=sequence: ledger.record_scored(history.identity(s))] * order.choice([1, 1, 2])
    for sequence in history.of("dead", "recovered"):
        calls += [lambda s=sequence: ledger.record_dead_letter(history.identity(s), history.reason(s))] * order.choice(
            [1, 1, 2]
        )
    order.shuffle(calls)
    for call in calls:
        call()
    return [history.identity(s) for s in history.of("log")] * order.choice([1, 2])


def report_of(some: list[History]) -> Report:
    ledger = Ledger()
    in_log = [identity for history in some for identity in add(history, ledger)]
    return ledger.report(in_log, NOW_NS)


@given(histories())
@settings(max_examples=200)
def test_any_history_is_counted_as_it_was_and_balances(some: list[History]) -> None:
    report = report_of(some)
    total = report.total
    count = lambda *kinds: sum(len(history.of(*kinds)) for history in some)  # noqa: E731
    assert total.captured == sum(len(history.outcomes) for history in some)
    assert total.scored == count("scored", "recovered")
    assert sum(total.dropped.values()) == count("dropped")
    assert sum(total.dead_lettered.values()) == count("dead")
    assert total.in_flight == count("log")
    assert total.gaps == count("gap")
    assert total.recovered == count("recovered")
    assert report.balanced and total.accounted == total.captured


@given(histories())
def test_cameras_add_up_to_the_line_in_every_key(some: list[History]) -> None:
    printed = report_of(some).as_dict()
    cameras = printed["cameras"].values()
    for key in ("captured", "scored", "in_flight", "gaps", "conflicts", "recovered", "expired"):
        assert printed[key] == sum(camera[key] for camera in cameras)
    for key in ("dropped", "dead_lettered"):
        for reason, count in printed[key].items():
            assert count == sum(camera[key].get(reason, 0) for camera in cameras)


@given(histories().filter(lambda some: any(h.of("dropped") for h in some)), st.sampled_from(["scored", "dead"]))
def test_second_outcome_of_a_dropped_capture_is_a_conflict(some: list[History], second: str) -> None:
    ledger = Ledger()
    in_log = [identity for history in some for identity in add(history, ledger)]
    victim = next(history for history in some if history.of("dropped"))
    identity = victim.identity(victim.of("dropped")[0])
    if second == "scored":
        ledger.record_scored(identity)
    else:
        ledger.record_dead_letter(identity, DeadLetterReason.CHECKSUM)
    report = ledger.report(in_log, NOW_NS)
    assert not report.balanced
    assert report.total.conflicts == 1 and report.total.accounted == report.total.captured + 1


@given(histories().filter(bool), st.integers(0, 5))
def test_outcome_after_the_end_of_a_closed_epoch_is_a_conflict(some: list[History], beyond: int) -> None:
    ledger = Ledger()
    in_log = [identity for history in some for identity in add(history, ledger)]
    ledger.record_scored(some[0].identity(len(some[0].outcomes) + beyond))
    report = ledger.report(in_log, NOW_NS)
    assert not report.balanced
    shown = report.total.conflict_ranges[0]
    assert shown.first == shown.last == len(some[0].outcomes) + beyond


def entry(captured: int, *, at: int = NOW_NS, closed: bool = False, epoch: int = 7) -> LedgerEntry:
    return LedgerEntry("cam", epoch, captured, (), at, closed)


def test_verdict_before_the_next_report_makes_its_capture_known() -> None:
    ledger = Ledger()
    ledger.record_entry(entry(3))
    for sequence in range(6):
        ledger.record_scored(("cam", 7, sequence))
    account = ledger.report([], NOW_NS).total
    assert (account.captured, account.scored, account.gaps) == (6, 6, 0) and account.balanced


def test_captures_that_have_not_left_a_reporting_producer_are_in_flight() -> None:
    ledger = Ledger()
    ledger.record_entry(entry(10))
    ledger.record_scored(("cam", 7, 0))
    ledger.record_scored(("cam", 7, 2))
    account = ledger.report([("cam", 7, 3)], NOW_NS).total
    # 1 was passed by 2, so it is lost; 3 is in the log; 4 to 9 are on their way.
    assert (account.in_flight, account.gaps) == (7, 1)
    assert [(gap.first, gap.last) for gap in account.gap_ranges] == [(1, 1)]


@pytest.mark.parametrize("ended_by", ["close", "silence"])
def test_captures_never_published_are_gaps_once_the_epoch_is_over(ended_by: str) -> None:
    ledger = Ledger()
    ledger.record_entry(entry(10))
    ledger.record_scored(("cam", 7, 0))
    now = NOW_NS
    if ended_by == "close":
        ledger.record_entry(entry(10, closed=True))
    else:
        now += SILENT_AFTER_NS + 1
    account = ledger.report([], now).total
    assert (account.in_flight, account.gaps) == (0, 9) and account.balanced


def test_epoch_of_an_earlier_process_lives_while_its_spool_is_sent() -> None:
    ledger = Ledger()
    ledger.record_entry(entry(10))
    later = NOW_NS + 10 * SILENT_AFTER_NS  # the restarted producer reports a new epoch, and the old spool comes slowly
    ledger.record_entry(entry(3, epoch=8, at=later))
    for sequence in range(3):
        ledger.record_scored(("cam", 8, sequence), later)
    assert ledger.report([], later).total.gaps == 10  # not heard of yet
    ledger.record_scored(("cam", 7, 0), later)
    assert ledger.report([], later).total.in_flight == 9
    ledger.record_entry(entry(10, closed=True, at=later))
    assert ledger.report([], later).total.gaps == 9


def test_last_of_several_dead_letters_of_a_frame_counts() -> None:
    ledger = Ledger()
    ledger.record_entry(entry(1, closed=True))
    ledger.record_dead_letter(("cam", 7, 0), DeadLetterReason.SCORING_FAILED)
    ledger.record_dead_letter(("cam", 7, 0), DeadLetterReason.MISSING_OBJECT)
    account = ledger.report([], NOW_NS).total
    assert account.dead_lettered == {"missing-object": 1} and account.balanced


def test_replayed_frame_is_dead_lettered_until_it_is_scored() -> None:
    ledger = Ledger()
    ledger.record_entry(entry(1, closed=True))
    ledger.record_dead_letter(("cam", 7, 0), DeadLetterReason.SCORING_FAILED)
    waiting = ledger.report([("cam", 7, 0)], NOW_NS).total
    assert (waiting.dead_lettered, waiting.in_flight) == ({"scoring-failed": 1}, 0) and waiting.balanced
    ledger.record_scored(("cam", 7, 0))
    done = ledger.report([], NOW_NS).total
    assert (done.scored, done.dead_lettered, done.recovered) == (1, {}, 1) and done.balanced


def test_dropped_for_two_reasons_is_a_conflict() -> None:
    ledger = Ledger()
    for reason in (DropReason.OVERSIZE, DropReason.STOPPED):
        ledger.record_entry(LedgerEntry("cam", 7, 1, (DroppedRange(0, 0, reason),), NOW_NS, closed=True))
    assert not ledger.report([], NOW_NS).balanced


def test_captures_older_than_the_oldest_kept_verdict_are_left_out() -> None:
    horizon = 500 * SECOND_NS
    ledger = Ledger(horizon_ns=horizon)
    epoch = 100_000  # 100 s, before the horizon
    for captured, at in ((10, 400), (20, 600), (30, 700)):
        ledger.record_entry(LedgerEntry("cam", epoch, captured, (), at * SECOND_NS, closed=captured == 30))
    for sequence in range(15, 30):  # the verdicts before 15 have expired
        ledger.record_scored(("cam", epoch, sequence))
    ledger.record_entry(LedgerEntry("old", epoch, 5, (), 300 * SECOND_NS, closed=True))
    new = 600_000
    ledger.record_entry(LedgerEntry("new", new, 2, (), 700 * SECOND_NS, closed=True))
    report = ledger.report([], NOW_NS)
    assert (report.cameras["cam"].captured, report.cameras["cam"].gaps, report.cameras["cam"].expired) == (10, 0, 20)
    assert (report.cameras["old"].captured, report.cameras["old"].expired) == (0, 5)
    assert (report.cameras["new"].captured, report.cameras["new"].gaps) == (2, 2)
    assert report.balanced


def test_unreadable_records_are_never_balanced() -> None:
    ledger = Ledger()
    assert ledger.report([], NOW_NS).balanced
    assert not ledger.report([], NOW_NS, unreadable=["ledger/0 offset 3: ..."]).balanced


def test_dead_letters_without_identity_are_reported_beside_the_sum() -> None:
    ledger = Ledger()
    for _ in range(2):  # redelivered
        ledger.record_unidentified(("frames", 0, 4), DeadLetterReason.UNDECODABLE)
    report = ledger.report([], NOW_NS)
    assert report.unidentified == {"undecodable": 1} and report.total == Account() and report.balanced


def test_day_of_ten_million_frames_is_a_handful_of_intervals() -> None:
    ledger = Ledger()
    ledger.record_entry(entry(10_000_000))
    known = ledger._epochs["cam", 7]
    known.scored.add(0, 9_999_999)  # what ten million calls of record_scored leave behind
    for sequence in range(10_000_000, 10_001_000):
        ledger.record_scored(("cam", 7, sequence))
    assert list(known.scored.ranges()) == [(0, 10_000_999)]
