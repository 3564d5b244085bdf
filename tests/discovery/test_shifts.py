"""The shift calendar: walls, weeks, and clocks that are put forward and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.shifts import NO_SHIFTS, Calendar, Shift
from flawline.errors import UsageError
from flawline.settings.shifts import DAYS, ShiftSettings
from flawline.settings.tree import load_settings

BERLIN = ZoneInfo("Europe/Berlin")
THREE = (
    ShiftSettings(name="early", begin="06:00", end="14:00"),
    ShiftSettings(name="late", begin="14:00", end="22:00"),
    ShiftSettings(name="night", begin="22:00", end="06:00"),
)


def ns(text: str) -> int:
    """Return an ISO time, in UTC unless it says otherwise, as ns."""
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000


def test_a_shift_begins_with_its_first_minute_and_ends_before_the_next_one() -> None:
    calendar = Calendar(THREE)
    assert calendar.at(ns("2026-11-27T13:59:59")) == Shift("early", "2026-11-27")
    assert calendar.at(ns("2026-11-27T14:00:00")) == Shift("late", "2026-11-27")


def test_a_night_shift_has_the_day_on_which_it_began() -> None:
    calendar = Calendar(THREE)
    assert calendar.at(ns("2026-11-30T23:00:00")) == Shift("night", "2026-11-30")
    assert calendar.at(ns("2026-12-01T05:59:59")) == Shift("night", "2026-11-30")


def test_between_shifts_there_is_none() -> None:
    weekdays = Calendar([ShiftSettings(name="day", begin="08:00", end="16:00", days=["mon", "sat"])])
    assert weekdays.at(ns("2026-11-28T08:00:00")) == Shift("day", "2026-11-28")  # a Saturday
    assert weekdays.at(ns("2026-11-28T16:00:00")) == weekdays.at(ns("2026-11-29T09:00:00")) == Shift()
    assert NO_SHIFTS.at(ns("2026-11-28T08:00:00")) == Shift()


def test_the_wall_is_in_the_time_zone() -> None:
    assert Calendar(THREE, "Asia/Tokyo").at(ns("2026-11-27T21:00:00")) == Shift("early", "2026-11-28")


@pytest.mark.parametrize(("night", "hours"), [("2026-03-28", 7), ("2026-10-24", 9), ("2026-11-24", 8)])
def test_the_night_in_which_the_clock_is_changed_is_an_hour_shorter_or_longer(night: str, hours: int) -> None:
    calendar = Calendar(THREE, "Europe/Berlin")
    begin = datetime.fromisoformat(f"{night}T22:00").replace(tzinfo=BERLIN).astimezone(UTC)
    minutes = [begin + timedelta(minutes=n) for n in range(12 * 60)]
    of_night = [at for at in minutes if calendar.at(ns(at.isoformat())) == Shift("night", night)]
    assert of_night == minutes[: 60 * hours], "one run of minutes, without a hole"
    assert calendar.at(ns(minutes[60 * hours].isoformat())).name == "early"


def test_a_shift_over_the_whole_day_ends_where_it_begins() -> None:
    calendar = Calendar([ShiftSettings(name="all", begin="06:00", end="06:00")])
    assert calendar.at(ns("2026-11-28T05:59:59")) == Shift("all", "2026-11-27")
    assert calendar.at(ns("2026-11-28T06:00:00")) == Shift("all", "2026-11-28")


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)), st.sampled_from(["UTC", "Europe/Berlin", "America/Lima"])
)
def test_three_shifts_leave_no_minute_out_and_say_the_day_before_noon_at_the_latest(at: datetime, zone: str) -> None:
    shift = Calendar(THREE, zone).at(ns(at.isoformat()))
    local = at.replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
    assert shift.name in ("early", "late", "night")
    assert (local.date() - datetime.fromisoformat(shift.day).date()).days == (local.hour < 6)


def written(tmp_path, text: str):
    file = tmp_path / "shifts.toml"
    file.write_text(text)
    return file


def test_shifts_come_from_the_file_with_times_of_toml_or_texts(tmp_path) -> None:
    settings = load_settings(written(tmp_path, """
time_zone = "Europe/Berlin"
[[shifts]]
name = "early"
begin = 06:00:00
end = "14:30"
days = ["mon"]
"""))  # fmt: skip
    (shift,) = settings.shifts
    assert (shift.begins, shift.length_minutes) == ([360], 510)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ("name = 'a'\nbegin = '06:00'\nend = '14:01'\n[[shifts]]\nname = 'b'\nbegin = '14:00'\nend = '15:00'",
         "shifts 'a' and 'b' overlap on mon at 14:00"),
        ("name = 'a'\nbegin = '22:00'\nend = '06:00'\ndays = ['sun']\n[[shifts]]\nname = 'b'\nbegin = '05:00'\n"
         "end = '07:00'\ndays = ['mon']", "shifts 'a' and 'b' overlap on mon at 05:00"),
        ("name = 'a'\nbegin = '06:00'\nend = '07:00'\n[[shifts]]\nname = 'b'\nbegin = '06:00'\nend = '06:30'",
         "overlap on mon at 06:00"),
        ("name = 'a'\nbegin = '06:00:30'\nend = '07:00'", "hours and minutes"),
        ("name = ' a'\nbegin = '06:00'\nend = '07:00'", "1 to 64 characters"),
        ("name = 'a'\nbegin = '06:00'\nend = '07:00'\ndays = ['monday']", "shifts.0.days.0"),
        ("name = 'a'\nbegin = '06:00'\nend = '07:00'\ndays = []", "shifts.0.days"),
    ],
)  # fmt: skip
def test_shifts_that_cannot_be_are_refused_in_one_line(tmp_path, blocks: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load_settings(written(tmp_path, f"[[shifts]]\n{blocks}\n"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "/etc/passwd", "../x"])
def test_a_time_zone_that_is_unknown_is_refused(tmp_path, zone: str) -> None:
    with pytest.raises(UsageError, match=r"time_zone = .*Europe/Berlin"):
        load_settings(written(tmp_path, f"time_zone = {zone!r}\n"))


@given(
    st.lists(
        st.tuples(st.integers(0, 1439), st.integers(0, 1439), st.sets(st.sampled_from(DAYS), min_size=1)), max_size=4
    )
)
def test_overlap_is_told_exactly_when_a_minute_has_two_shifts(drawn) -> None:
    from flawline.settings.shifts import WEEK_MINUTES, check_no_overlap

    shifts = [
        ShiftSettings(
            name=f"s{n}", begin=f"{a // 60:02}:{a % 60:02}", end=f"{b // 60:02}:{b % 60:02}", days=sorted(days)
        )
        for n, (a, b, days) in enumerate(drawn)
    ]
    covered = [
        (begin + minute) % WEEK_MINUTES
        for shift in shifts for begin in shift.begins for minute in range(shift.length_minutes)
    ]  # fmt: skip
    if len(set(covered)) == len(covered):
        check_no_overlap(shifts)
    else:
        with pytest.raises(ValueError, match="overlap"):
            check_no_overlap(shifts)
