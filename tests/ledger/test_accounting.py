"""The account of any history adds up; one that does not is reported as not balanced."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawline.intervals import IntervalSet
from flawline.messages import DeadLetterReason, DroppedRange, DropReason, ExpiredFrames, LedgerEntry
from ledger.accounting import (
    COMPARED_VERDICTS,
    SCORE_TOLERANCE,
    SETTLED_AFTER_NS,
    SILENT_AFTER_NS,
    Account,
    Identity,
    Ledger,
    Report,
    VerdictContent,
)

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
    for key in (
        "captured",
        "scored",
        "in_flight",
        "gaps",
        "conflicts",
        "recovered",
        "expired",
        "left_out",
        "unclaimed",
    ):
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


@pytest.mark.parametrize("exact", [True, False])
def test_outcome_behind_the_end_is_a_conflict_when_the_end_is_exact_and_a_capture_when_a_later_process_closed_the_epoch(
    exact: bool,
) -> None:
    ledger = Ledger()
    for sequence in (0, 1, 3):
        ledger.record_scored(("cam", 7, sequence))
    ledger.record_entry(LedgerEntry("cam", 7, 3, (), NOW_NS, closed=True, exact=exact))
    account = ledger.report([], NOW_NS).total
    expected = (3, 2, 1, 1, False) if exact else (4, 3, 1, 0, True)
    assert (account.captured, account.scored, account.gaps, account.conflicts, account.balanced) == expected


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
    assert (report.cameras["cam"].captured, report.cameras["cam"].gaps, report.cameras["cam"].left_out) == (10, 0, 20)
    assert (report.cameras["old"].captured, report.cameras["old"].left_out) == (0, 5)
    assert (report.cameras["new"].captured, report.cameras["new"].gaps) == (2, 2)
    assert report.balanced


def book_of(captured: int, *scored: int, closed: bool = True, camera: str = "cam", epoch: int = 7) -> Ledger:
    """Return a ledger with one report of a camera and the verdicts of some of its captures."""
    ledger = Ledger()
    ledger.record_entry(LedgerEntry(camera, epoch, captured, (), NOW_NS, closed))
    for sequence in scored:
        ledger.record_scored((camera, epoch, sequence))
    return ledger


def expired(sequence: int, epoch: int = 7, at: int = NOW_NS) -> ExpiredFrames:
    return ExpiredFrames("cam", epoch, sequence, 0, 100, 200, at)


def test_frames_that_retention_took_are_expired_up_to_the_next_one_that_was_read() -> None:
    ledger = book_of(20, 0, 2, 10, 11, 13)
    ledger.record_expired(expired(3))
    account = ledger.report([], NOW_NS).total
    # 1 was lost before, 12 after; 14 to 19 never came.
    assert (account.expired, account.gaps) == (7, 8) and account.dropped == {"expired": 7}
    assert account.balanced and account.as_dict()["expired"] == 7
    later = ledger.report([], NOW_NS + SETTLED_AFTER_NS + 1).total
    assert (later.expired, later.gaps) == (7, 8)
    assert not ledger.state.expired_from["cam"], "a settled report is kept as a range"


def test_expired_frames_reach_into_the_epochs_after() -> None:
    ledger = book_of(5, 0, 1)
    ledger.record_entry(entry(4, closed=True, epoch=8))
    ledger.record_entry(entry(6, closed=True, epoch=9))
    ledger.record_scored(("cam", 9, 3))
    ledger.record_expired(expired(2))
    for now in (NOW_NS, NOW_NS + SETTLED_AFTER_NS + 1):
        account = ledger.report([], now).total
        assert (account.expired, account.gaps, account.scored) == (3 + 4 + 3, 2, 3)


def test_expired_frames_of_a_camera_that_never_came_back_are_no_gaps() -> None:
    ledger = book_of(5, 0)
    ledger.record_expired(expired(1))
    assert ledger.report([], NOW_NS).total.expired == 4
    waiting = ledger.report([("cam", 7, 3), ("cam", 7, 4)], NOW_NS).total
    assert (waiting.expired, waiting.in_flight, waiting.gaps) == (2, 2, 0)


def test_capture_that_was_reported_expired_and_came_after_all_counts_as_scored() -> None:
    ledger = book_of(6, 0, 5)
    ledger.record_expired(expired(1))
    ledger.report([], NOW_NS + SETTLED_AFTER_NS + 1)
    ledger.record_scored(("cam", 7, 3))
    account = ledger.report([], NOW_NS).total
    assert (account.scored, account.expired, account.contradictions) == (3, 3, 0) and account.balanced


def test_camera_that_no_worker_had_read_before_is_expired_from_its_first_capture() -> None:
    ledger = book_of(10, 6, 7, 8, 9)
    ledger.record_expired(expired(0, epoch=0))
    assert (ledger.report([], NOW_NS).total.expired, ledger.report([], NOW_NS).total.gaps) == (6, 0)


def test_overload_for_a_day_leaves_few_reports_of_expired_frames() -> None:
    ledger = book_of(100_000, closed=False)
    for step in range(1_000):
        at = NOW_NS + step * SECOND_NS
        ledger.record_expired(expired(100 * step + 1, at=at))
        ledger.record_scored(("cam", 7, 100 * step + 50), at)
        if step % 100 == 0:
            ledger.report([], at)
    ledger.report([], NOW_NS + 2_000 * SECOND_NS)
    assert not ledger.state.expired_from["cam"]


@pytest.mark.parametrize("kind", ["scored", "dead", "in log"])
@pytest.mark.parametrize("closed", [True, False])
def test_forged_sequence_far_ahead_makes_no_gaps(kind: str, closed: bool) -> None:
    ledger = book_of(147, *range(147), closed=closed)
    forged = ("cam", 7, 1_000_130)
    if kind == "scored":
        ledger.record_scored(forged)
    elif kind == "dead":
        ledger.record_dead_letter(forged, DeadLetterReason.CHECKSUM)
    report = ledger.report([forged] if kind == "in log" else [], NOW_NS)
    assert (report.total.captured, report.total.scored, report.total.gaps) == (147, 147, 0)
    assert report.total.unclaimed == 1 and report.balanced


def test_forged_sequence_hides_no_gap_behind_expired_frames() -> None:
    ledger = book_of(10, 0, 1, 1_000_130)
    ledger.record_expired(expired(2))
    ledger.record_scored(("cam", 7, 4))
    assert (ledger.report([], NOW_NS).total.expired, ledger.report([], NOW_NS).total.gaps) == (2, 5)


def test_verdicts_ahead_of_their_cameras_report_are_captures_and_what_is_between_is_not() -> None:
    ledger = book_of(3, 0, 1, 2, 5, 900, closed=False)
    account = ledger.report([], NOW_NS).total
    assert (account.captured, account.scored, account.gaps, account.unclaimed) == (5, 5, 0, 0) and account.balanced
    ledger.record_entry(entry(901))
    account = ledger.report([], NOW_NS).total
    assert (account.captured, account.gaps) == (901, 896)


def test_verdict_far_ahead_is_claimed_when_its_camera_reports_it_later() -> None:
    ledger = book_of(3, 20_000, closed=False)
    assert ledger.report([], NOW_NS).total.unclaimed == 1
    ledger.record_entry(entry(20_001))
    account = ledger.report([], NOW_NS).total
    assert (account.unclaimed, account.scored) == (0, 1)


@pytest.mark.parametrize(
    ("second", "conflicts"),
    [
        (VerdictContent("m1", "accept", 1.0), 0),
        (VerdictContent("m1", "accept", 1.0 + SCORE_TOLERANCE / 2), 0),
        (VerdictContent("m1", "accept", 1.1), 1),
        (VerdictContent("m2", "accept", 1.0), 1),
        (VerdictContent("m1", "reject", 1.0), 1),
        (None, 0),
    ],
)
def test_frame_with_two_verdicts_that_differ_is_a_conflict_and_counts_once(
    second: VerdictContent | None, conflicts: int
) -> None:
    ledger = book_of(2, 1)
    for content in (VerdictContent("m1", "accept", 1.0), second, second):
        ledger.record_scored(("cam", 7, 0), content=content)
    account = ledger.report([], NOW_NS).total
    assert (account.scored, account.conflicts, account.conflicting_verdicts) == (2, conflicts, conflicts)
    assert account.balanced, "the first verdict counts, so the frame has one outcome"


def test_remembered_verdicts_are_bounded() -> None:
    ledger = book_of(10_000)
    for sequence in range(10_000):
        ledger.record_scored(("cam", 7, sequence), content=VerdictContent("m1", "accept", 1.0))
    assert len(ledger.state.compared["cam"]) == COMPARED_VERDICTS


def test_captures_from_before_the_horizon_are_forgotten_and_the_rest_is_as_before() -> None:
    hour = 3600 * SECOND_NS
    ledger = Ledger()
    epoch = NOW_NS // 1_000_000
    for step in range(1, 11):
        dropped = (DroppedRange(100 * step - 1, 100 * step - 1, DropReason.OVERSIZE),)
        ledger.record_entry(LedgerEntry("cam", epoch, 100 * step, dropped, NOW_NS + step * hour))
        for sequence in range(100 * step - 100, 100 * step - 2):  # one gap in a hundred
            ledger.record_scored(("cam", epoch, sequence), NOW_NS + step * hour)
    ledger.record_entry(LedgerEntry("old", epoch, 5, (), NOW_NS, closed=True))
    now = NOW_NS + 11 * hour
    assert ledger.report([], now).total.gaps == 10 + 5
    ledger.forget_before(NOW_NS + 4 * hour + 1)
    account = ledger.report([], now).total
    assert (account.captured, account.scored, account.gaps, account.left_out) == (600, 588, 6, 400)
    assert account.dropped == {"oversize": 6} and account.balanced
    known = ledger.state.epochs["cam", epoch]
    assert next(known.scored.ranges())[0] == 400 and ("old", epoch) not in ledger.state.epochs


def test_captures_that_a_search_of_the_log_missed_are_not_searched_again() -> None:
    ledger = book_of(4, 0)
    unexplained = ledger.unexplained([("cam", 7, 1)], NOW_NS)
    assert unexplained == {("cam", 7): IntervalSet([(2, 3)])}
    ledger.record_missed(unexplained, [("cam", 7, 3)])
    assert ledger.unexplained([("cam", 7, 1), ("cam", 7, 3)], NOW_NS) == {}
    assert ledger.unexplained([("cam", 7, 3)], NOW_NS) == {("cam", 7): IntervalSet([(1, 1)])}
    assert ledger.report([("cam", 7, 3)], NOW_NS).total.gaps == 2


def test_unreadable_records_are_never_balanced() -> None:
    ledger = Ledger()
    assert ledger.report([], NOW_NS).balanced
    ledger.record_unreadable(NOW_NS, "ledger/0 offset 3: ...")
    assert not ledger.report([], NOW_NS).balanced


def test_dead_letters_without_identity_are_reported_beside_the_sum() -> None:
    ledger = Ledger()
    for _ in range(2):  # redelivered
        ledger.record_unidentified(("frames", 0, 4), DeadLetterReason.UNDECODABLE)
    report = ledger.report([], NOW_NS)
    assert report.unidentified == {"undecodable": 1} and report.total == Account() and report.balanced


def test_day_of_ten_million_frames_is_a_handful_of_intervals() -> None:
    ledger = Ledger()
    ledger.record_entry(entry(10_000_000))
    known = ledger.state.epochs["cam", 7]
    known.scored.add(0, 9_999_999)  # what ten million calls of record_scored leave behind
    for sequence in range(10_000_000, 10_001_000):
        ledger.record_scored(("cam", 7, sequence))
    assert list(known.scored.ranges()) == [(0, 10_000_999)]
