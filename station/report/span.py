"""From when to when a report goes: a shift of the calendar, or a span of time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from discovery.shifts import S_NS, Calendar, Shift
from flawline.errors import UsageError
from flawline.settings.shifts import DAY_MINUTES, ShiftSettings

LAST_HOURS = 24
"""What a report covers when nothing is asked for and there is no calendar."""


NO_SHIFT = Shift()


@dataclass(frozen=True)
class Span:
    """A span of capture times in ns UTC, the second not included; `shift` is set when it is one of the calendar."""

    since_ns: int
    until_ns: int
    shift: Shift = NO_SHIFT


def shift_span(shifts: Sequence[ShiftSettings], time_zone: str, name: str, day: str) -> Span:
    """Return from when to when a shift goes that begins on `day`, such as 2026-11-28.

    Raises UsageError when the calendar has no such shift, or when it does not begin on that day.
    """
    blocks = [shift for shift in shifts if shift.name == name]
    if not blocks:
        names = ", ".join(dict.fromkeys(shift.name for shift in shifts)) or "none: add [[shifts]] to line.toml"
        raise UsageError(f"shift {name}: the calendar has no such shift; it has {names}")
    try:
        first = date.fromisoformat(day)
    except ValueError:
        raise UsageError(f"day {day}: give the day on which the shift begins, such as 2026-11-28") from None
    weekday = first.weekday()
    spans = [
        (begin % DAY_MINUTES, block.length_minutes)
        for block in blocks
        for begin in block.begins
        if begin // DAY_MINUTES == weekday
    ]
    if not spans:
        raise UsageError(f"shift {name} does not begin on {first:%A}, {day}")
    zone = ZoneInfo(time_zone)
    # Several blocks of a name on one day are one shift with pauses.
    since = min(_instant(first, begin, zone) for begin, _ in spans)
    until = max(_instant(first, begin + length, zone) for begin, length in spans)
    return Span(since, until, Shift(name, day))


def latest_shift(shifts: Sequence[ShiftSettings], time_zone: str, now_ns: int) -> Span | None:
    """Return the shift that ended last before `now_ns`; None without a calendar."""
    today = datetime.fromtimestamp(now_ns // S_NS, ZoneInfo(time_zone)).date()
    ended: list[Span] = []
    for back in range(9):  # a shift that begins once a week has ended within eight days
        day = today - timedelta(days=back)
        for shift in shifts:
            if any(begin // DAY_MINUTES == day.weekday() for begin in shift.begins):
                span = shift_span(shifts, time_zone, shift.name, day.isoformat())
                ended += [span] if span.until_ns <= now_ns else []
    return max(ended, key=lambda span: span.until_ns, default=None)


def last_hours(now_ns: int) -> Span:
    """Return the last 24 hours."""
    return Span(now_ns - LAST_HOURS * 3600 * S_NS, now_ns)


def span_of(
    shifts: Sequence[ShiftSettings],
    time_zone: str,
    now_ns: int,
    *,
    shift: str | None = None,
    day: str | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
) -> Span:
    """Return what a person asks for: a shift, by default that of today, or a span of time.

    Without a question it is the shift that ended last, or the last 24 hours. Raises UsageError.
    """
    if shift:
        return shift_span(shifts, time_zone, shift, day or day_of(Calendar(shifts, time_zone), now_ns, time_zone))
    if since_ns is None and until_ns is None:
        return latest_shift(shifts, time_zone, now_ns) or last_hours(now_ns)
    until_ns = now_ns if until_ns is None else until_ns
    since_ns = last_hours(until_ns).since_ns if since_ns is None else since_ns
    if since_ns >= until_ns:
        raise UsageError("since: give a time before until")
    return Span(since_ns, until_ns)


def day_of(calendar: Calendar, now_ns: int, zone: str) -> str:
    """Return the day on the wall, such as 2026-11-28: that of the present shift's begin, or today."""
    return calendar.at(now_ns).day or datetime.fromtimestamp(now_ns // S_NS, ZoneInfo(zone)).date().isoformat()


def _instant(day: date, minute: int, zone: ZoneInfo) -> int:
    """Return the instant at which the clock on the wall shows a minute after the day's midnight, in ns UTC."""
    days, rest = divmod(minute, DAY_MINUTES)
    wall = datetime(day.year, day.month, day.day, rest // 60, rest % 60, tzinfo=zone) + timedelta(days=days)
    return int(wall.astimezone(UTC).timestamp()) * S_NS
