"""Keeps the rates of each day in the store, for dashboards: their intervals cannot be had in SQL.

A day is derived anew while its frames still come, and when somebody judged one of its frames or took a judgement back.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import func, select

from discovery.pictures.policy import Stratum
from discovery.quality_rates import rates
from discovery.store import judgements, schema
from discovery.store.database import HOUR_NS, stamp, upsert
from discovery.store.store import Store
from flawline import clock

DAY_NS = 24 * HOUR_NS
INTERVAL_S = 30.0
"""How often it looks; a judgement, not measured. A day takes some milliseconds."""
_RATES = ("overkill", "escape", "false_alarm_share", "escapes_per_accepted")


class QualityDays:
    """Brings the table `quality_days` up to date. For the thread that writes the store."""

    def __init__(self, store: Store, monotonic: clock.Monotonic = clock.monotonic) -> None:
        self._store, self._monotonic = store, monotonic
        self._done_at = -float("inf")
        self._counts: dict[int, tuple[int, int]] = {}

    def step(self) -> None:
        """Derive the days that have changed, when it is time. Raises DatabaseAway."""
        now = self._monotonic()
        if now - self._done_at >= INTERVAL_S:
            self._done_at = now
            self.update()

    def update(self) -> None:
        """Derive the days that have changed."""
        counts = self._counts_now()
        for day in sorted(day for day, count in counts.items() if self._counts.get(day) != count):
            row = _row(self._store, day)
            with self._store.transaction() as connection:
                upsert(connection, schema.quality_days, row)
        self._counts = counts

    def _counts_now(self) -> dict[int, tuple[int, int]]:
        """Return by day how many frames were counted, and how often something was said of them, or taken back."""
        h, j = schema.stratum_hours.c, schema.judgements.c
        counts: dict[int, tuple[int, int]] = {}
        with self._store.reading() as connection:
            for hour, frames in connection.execute(select(h.hour, func.sum(h.frames)).group_by(h.hour)):
                known = counts.get(hour // 24, (0, 0))
                counts[hour // 24] = known[0] + int(frames), known[1]
            day = j.captured_ns // DAY_NS
            judgements_of_days = select(day, func.count(), func.count(j.undone_at)).group_by(day)
            for number, judged, undone in connection.execute(judgements_of_days):
                known = counts.get(int(number), (0, 0))
                counts[int(number)] = known[0], int(judged) + int(undone)
        return counts


def _row(store: Store, day: int) -> dict[str, Any]:
    strata = judgements.judged(store, judgements.Filter(since_ns=day * DAY_NS, until_ns=(day + 1) * DAY_NS))
    counted = [part for part in strata if part.stratum != str(Stratum.PICKED)]
    row: dict[str, Any] = {
        "day": stamp(day * DAY_NS),
        "frames": sum(part.frames for part in counted),
        "judgements": sum(part.judgements for part in counted),
    }
    estimates = vars(rates(strata))
    for name in _RATES:
        estimate = asdict(estimates[name])
        row |= {name: estimate["value"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
    return row
