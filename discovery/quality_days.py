"""Keeps the rates of each day and each shift in the store, for dashboards: their intervals cannot be had in SQL.

They are derived anew while their frames still come, and when somebody judged one of their frames or took a judgement
back. Days are those of UTC, shifts those of the line's calendar.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import func, select

from discovery.pictures.policy import Stratum
from discovery.quality_rates import rates
from discovery.store import judgements, schema
from discovery.store.database import HOUR_NS, stamp, upsert
from discovery.store.judgements import Filter
from discovery.store.store import Store
from flawline import clock

DAY_NS = 24 * HOUR_NS
INTERVAL_S = 30.0
"""How often it looks; a judgement, not measured. A day takes some milliseconds."""
_RATES = ("overkill", "escape", "false_alarm_share", "escapes_per_accepted")

Key = TypeVar("Key", bound=Hashable)
Counts = dict[Key, tuple[int, int]]
"""How many frames were counted, and how often something was said of them, or taken back."""
Shift = tuple[str, str]
"""Day on which it began, and name."""


class QualityDays:
    """Brings the tables `quality_days` and `quality_shifts` up to date. For the thread that writes the store."""

    def __init__(self, store: Store, monotonic: clock.Monotonic = clock.monotonic) -> None:
        self._store, self._monotonic = store, monotonic
        self._done_at = -float("inf")
        self._days: Counts[int] = {}
        self._shifts: Counts[Shift] = {}

    def step(self) -> None:
        """Derive what has changed, when it is time. Raises DatabaseAway."""
        now = self._monotonic()
        if now - self._done_at >= INTERVAL_S:
            self._done_at = now
            self.update()

    def update(self) -> None:
        """Derive the days and shifts that have changed."""
        days, shifts, first_hours = self._counts()
        for day in _changed(self._days, days):
            wanted = Filter(since_ns=day * DAY_NS, until_ns=(day + 1) * DAY_NS)
            self._write(schema.quality_days, {"day": stamp(day * DAY_NS)}, wanted)
        self._days = days
        for shift_day, shift in _changed(self._shifts, shifts):
            first_at = stamp(first_hours[shift_day, shift] * HOUR_NS)
            place = {"shift_day": shift_day, "shift": shift, "first_at": first_at}
            self._write(schema.quality_shifts, place, Filter(shift=shift, shift_day=shift_day))
        self._shifts = shifts

    def _write(self, table: Any, place: dict[str, Any], wanted: Filter) -> None:
        row = place | _rates_of(self._store, wanted)
        with self._store.transaction() as connection:
            upsert(connection, table, row)

    def _counts(self) -> tuple[Counts[int], Counts[Shift], dict[Shift, int]]:
        """Return the counts of each day and of each shift, and the first hour of each shift."""
        h, j = schema.stratum_hours.c, schema.judgements.c
        frames: dict[Any, int] = defaultdict(int)
        entries: dict[Any, int] = defaultdict(int)
        first_hours: dict[Shift, int] = {}
        of_hours = select(h.hour, h.shift_day, h.shift, func.sum(h.frames)).group_by(h.hour, h.shift_day, h.shift)
        day = j.captured_ns // DAY_NS
        of_judgements = select(day, j.shift_day, j.shift, func.count(), func.count(j.undone_at))
        with self._store.reading() as connection:
            for hour, shift_day, shift, count in connection.execute(of_hours.order_by(h.hour)):
                frames[hour // 24] += int(count)
                if shift:
                    frames[shift_day, shift] += int(count)
                    first_hours.setdefault((shift_day, shift), hour)
            for number, shift_day, shift, judged, undone in connection.execute(
                of_judgements.group_by(day, j.shift_day, j.shift)
            ):
                for key in (int(number), (shift_day, shift)):
                    entries[key] += int(judged) + int(undone)
        counts = {key: (count, entries[key]) for key, count in frames.items()}
        days = {key: count for key, count in counts.items() if isinstance(key, int)}
        return days, {key: count for key, count in counts.items() if not isinstance(key, int)}, first_hours


def _changed(before: Counts[Key], now: Counts[Key]) -> list[Key]:
    return [key for key, count in now.items() if before.get(key) != count]


def _rates_of(store: Store, wanted: Filter) -> dict[str, Any]:
    strata = judgements.judged(store, wanted)
    counted = [part for part in strata if part.stratum != str(Stratum.PICKED)]
    row: dict[str, Any] = {
        "frames": sum(part.frames for part in counted),
        "judgements": sum(part.judgements for part in counted),
    }
    estimates = vars(rates(strata))
    for name in _RATES:
        estimate = asdict(estimates[name])
        row |= {name: estimate["value"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
    return row
