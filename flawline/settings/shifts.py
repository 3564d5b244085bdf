"""Settings of the shift calendar. All times are those of the clock on the wall in `time_zone`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import time
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flawline.field_limits import NAME

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES


def _shift_name(name: str) -> str:
    NAME.check(name, "name")
    if not 1 <= len(name) <= 64 or name != name.strip():
        raise ValueError("it should have 1 to 64 characters, without a blank at its ends")
    return name


def _whole_minute(at: time) -> time:
    if at.second or at.microsecond or at.tzinfo is not None:
        raise ValueError("it should be hours and minutes on the wall, such as 06:30")
    return at


WallTime = Annotated[time, AfterValidator(_whole_minute)]


class ShiftSettings(BaseModel):
    """Holds one shift of the week."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(_shift_name)] = Field(
        description="Name of the shift, which several blocks may share when it has other hours on other days."
    )
    begin: WallTime = Field(description="Time on the wall at which the shift begins.")
    end: WallTime = Field(
        description="Time on the wall at which the shift ends, on the next day when it is not after `begin`."
    )
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = Field(
        ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
        min_length=1,
        description="Days of the week on which the shift begins.",
    )

    @property
    def length_minutes(self) -> int:
        """Return how long the shift lasts on the wall: 1 to 1440 minutes."""
        return (_minutes(self.end) - _minutes(self.begin) - 1) % DAY_MINUTES + 1

    @property
    def begins(self) -> list[int]:
        """Return the minutes of the week, counted from Monday 00:00, at which the shift begins."""
        return sorted({DAY_MINUTES * DAYS.index(day) + _minutes(self.begin) for day in self.days})


def _minutes(at: time) -> int:
    return 60 * at.hour + at.minute


def check_no_overlap(shifts: Sequence[ShiftSettings]) -> None:
    """Raise ValueError when two shifts cover the same minute of the week. Gaps are allowed."""
    spans = sorted((begin, shift.length_minutes, shift.name) for shift in shifts for begin in shift.begins)
    for (begin, length, name), (later, _, other) in zip(spans, spans[1:] + spans[:1], strict=True):
        until_next = (later - begin - 1) % WEEK_MINUTES + 1
        if length > until_next or (len(spans) > 1 and later == begin):
            day, minute = divmod(later, DAY_MINUTES)
            raise ValueError(
                f"shifts {name!r} and {other!r} overlap on {DAYS[day]} at {minute // 60:02}:{minute % 60:02}: "
                "let one end before the other begins"
            )


def check_time_zone(name: str) -> str:
    """Return the name of a time zone. Raises ValueError for one that this machine does not know."""
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # of a name that is none, of a folder, of a zone that is missing
        raise ValueError("it should be a time zone that this machine knows, such as Europe/Berlin") from None
    return name
