"""From when to when a shift goes, on the wall of a time zone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.shifts import S_NS, Calendar
from flawline.errors import UsageError
from flawline.settings.shifts import ShiftSettings
from station.report.span import latest_shift, shift_span

BERLIN = "Europe/Berlin"
SHIFTS = [
    ShiftSettings(name="early", begin="06:00", end="14:00"),
    ShiftSettings(name="late", begin="14:00", end="22:00"),
    ShiftSettings(name="night", begin="22:00", end="06:00", days=["mon", "tue", "wed", "thu", "fri"]),
]


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * S_NS


def test_a_night_shift_ends_on_the_next_day() -> None:
    span = shift_span(SHIFTS, BERLIN, "night", "2026-11-27")  # a Friday
    assert (span.since_ns, span.until_ns) == (ns("2026-11-27T21:00"), ns("2026-11-28T05:00"))
    assert (span.shift.name, span.shift.day) == ("night", "2026-11-27")


def test_the_night_in_which_the_clock_is_put_back_has_an_hour_more() -> None:
    shifts = [ShiftSettings(name="night", begin="22:00", end="06:00")]
    span = shift_span(shifts, BERLIN, "night", "2026-10-24")
    assert (span.until_ns - span.since_ns) == 9 * 3600 * S_NS
    span = shift_span(shifts, BERLIN, "night", "2026-03-28")
    assert (span.until_ns - span.since_ns) == 7 * 3600 * S_NS


@given(st.integers(0, 14 * 24 * 60))
def test_a_shift_ends_where_the_calendar_says_so(minutes: int) -> None:
    calendar = Calendar(SHIFTS, BERLIN)
    at = ns("2026-10-20T00:00") + minutes * 60 * S_NS
    if not (shift := calendar.at(at)).name:
        return
    span = shift_span(SHIFTS, BERLIN, shift.name, shift.day)
    assert span.since_ns <= at < span.until_ns
    assert calendar.at(span.since_ns) == calendar.at(span.until_ns - S_NS) == shift
    assert calendar.at(span.until_ns) != shift != calendar.at(span.since_ns - S_NS)


@pytest.mark.parametrize(
    ("now", "name", "day"),
    [("2026-11-28T04:59", "late", "2026-11-27"), ("2026-11-28T05:00", "night", "2026-11-27"),
     ("2026-11-30T04:59", "late", "2026-11-29")],
)  # fmt: skip
def test_the_latest_shift_is_the_one_that_ended_last(now: str, name: str, day: str) -> None:
    span = latest_shift(SHIFTS, BERLIN, ns(now))
    assert span is not None
    assert (span.shift.name, span.shift.day) == (name, day)


def test_without_a_calendar_there_is_no_shift() -> None:
    assert latest_shift([], "UTC", ns("2026-11-28T05:00")) is None


@pytest.mark.parametrize(
    ("name", "day", "words"),
    [("dawn", "2026-11-27", "it has early, late, night"), ("night", "2026-11-28", "does not begin on Saturday"),
     ("night", "yesterday", "give the day")],
)  # fmt: skip
def test_a_shift_that_does_not_exist_is_one_line(name: str, day: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shift_span(SHIFTS, BERLIN, name, day)
