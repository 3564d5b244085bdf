"""The shift calendar: which shift an instant belongs to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from flawline.settings.shifts import DAY_MINUTES, WEEK_MINUTES, ShiftSettings

S_NS = 1_000_000_000


@dataclass(frozen=True)
class Shift:
    """A shift by its name and the day on which it began, `2026-11-28`; both are empty between shifts."""

    name: str = ""
    day: str = ""


class Calendar:
    """Knows the shifts of a week in a time zone.

    A shift is told by the clock on the wall. When that is put back, the hour that comes twice belongs to the shift that
    covers it both times, which is so much longer; when it is put forward, the shift is shorter.
    """

    def __init__(self, shifts: Sequence[ShiftSettings] = (), time_zone: str = "UTC") -> None:
        self._zone = ZoneInfo(time_zone)
        self._spans = [(begin, shift.length_minutes, shift.name) for shift in shifts for begin in shift.begins]

    def at(self, time_ns: int) -> Shift:
        """Return the shift of an instant in ns UTC."""
        if not self._spans:
            return Shift()
        local = datetime.fromtimestamp(time_ns // S_NS, self._zone)
        minute = DAY_MINUTES * local.weekday() + 60 * local.hour + local.minute
        for begin, length, name in self._spans:
            if (minute - begin) % WEEK_MINUTES < length:
                days = (local.weekday() - begin // DAY_MINUTES) % 7
                return Shift(name, (local.date() - timedelta(days=days)).isoformat())
        return Shift()


NO_SHIFTS = Calendar()
