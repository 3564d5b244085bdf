"""The figures of a report, read from the store: yield, overkill, escapes, Pareto, classes, stops, models."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, func, select

from discovery import quality_rates
from discovery.quality_rates import Judged, Rates
from discovery.store import group_names, judgements, schema
from discovery.store.database import HOUR_NS, stamp
from discovery.store.filters import Filter
from discovery.store.store import Store
from flawline.messages import ClassState, Decision, Transition
from station.language.languages import N_
from station.report.span import Span

STOP_MINUTES = 5
"""Minutes without a frame of any camera that are called a stop. A judgement: shorter pauses belong to many lines."""

NO_LOT, NO_SHIFT, UNASSIGNED = N_("no lot"), N_("between shifts"), N_("unassigned")

MINUTE = timedelta(minutes=1)
CHANGES = tuple(
    str(transition)
    for transition in Transition
    if transition not in (Transition.BORN, Transition.GREW, Transition.DORMANT)
)
"""Transitions of classes that a report names; the others are the daily work of discovery."""


@dataclass(frozen=True)
class Row:
    """Frames of a camera, a lot, a shift or a group, and how many of them were not accepted."""

    name: str
    frames: int
    alarms: int

    @property
    def share(self) -> float:
        """The share of the frames that were not accepted."""
        return self.alarms / self.frames if self.frames else 0.0


@dataclass(frozen=True)
class Bar:
    """A class in the Pareto: its frames, their share of all defective frames, and the share of all down to it."""

    class_id: str | None
    name: str
    severity: str | None
    frames: int
    share: float
    cumulative: float


@dataclass(frozen=True)
class Change:
    """What happened to a class."""

    at: datetime
    class_id: str
    name: str | None
    transition: str
    who: str | None


@dataclass(frozen=True)
class ModelUse:
    """A model that decided frames: the minute of its first and of its last one."""

    version: str
    first: datetime
    last: datetime
    frames: int


@dataclass(frozen=True)
class Stop:
    """Minutes in which no camera had a frame: from `begin`, and up to `end`, which is not part of it."""

    begin: datetime
    end: datetime

    @property
    def minutes(self) -> int:
        """How long it took."""
        return int((self.end - self.begin) / MINUTE)


@dataclass(frozen=True)
class Figures:
    """All that a report says. Stamps are UTC; decisions are those of frames, `parts` those of inspected parts.

    `hours` has the decisions of each hour. `stops` is None where the store counts by the hour already. `is_over` says
    that the span has ended.
    """

    line: str
    wanted: Filter
    since: datetime
    until: datetime
    is_over: bool
    decisions: dict[str, int]
    parts: dict[str, int]
    incomplete_parts: int
    rates: Rates
    strata: tuple[Judged, ...]
    cameras: tuple[Row, ...]
    lots: tuple[Row, ...]
    shifts: tuple[Row, ...]
    groups: tuple[Row, ...]
    pareto: tuple[Bar, ...]
    changes: tuple[Change, ...]
    models: tuple[ModelUse, ...]
    stops: tuple[Stop, ...] | None
    hours: tuple[tuple[datetime, dict[str, int]], ...]

    @property
    def frames(self) -> int:
        """How many frames were decided."""
        return sum(self.decisions.values())

    @property
    def accepted(self) -> float | None:
        """The share of the frames that were accepted (first-pass yield of captures); None without frames."""
        return self.decisions.get(str(Decision.ACCEPT), 0) / self.frames if self.frames else None

    @property
    def part_yield(self) -> float | None:
        """The share of the inspected parts that were accepted; None where frames name no part."""
        total = sum(self.parts.values())
        return self.parts.get(str(Decision.ACCEPT), 0) / total if total else None

    def as_dict(self) -> dict[str, Any]:
        """Return the keys that `flawline report --json` prints."""
        judged = quality_rates.report(self.strata)
        plain = asdict(self) | {
            "since": self.since.isoformat(),
            "until": self.until.isoformat(),
            "frames": self.frames,
            "accepted": self.accepted,
            "part_yield": self.part_yield,
            "changes": [asdict(change) | {"at": change.at.isoformat()} for change in self.changes],
            "models": [
                asdict(use) | {"first": use.first.isoformat(), "last": use.last.isoformat()} for use in self.models
            ],
            "stops": None
            if self.stops is None
            else [{"begin": stop.begin.isoformat(), "minutes": stop.minutes} for stop in self.stops],
            "hours": [{"hour": hour.isoformat(), "decisions": decisions} for hour, decisions in self.hours],
            **judged,
        }
        for name in ("cameras", "lots", "shifts", "groups"):
            plain[name] = [asdict(row) | {"share": row.share} for row in getattr(self, name)]
        wanted = plain.pop("wanted")
        return {name: wanted[name] for name in ("camera", "lot", "shift", "shift_day")} | plain


def read(store: Store, line: str, span: Span, wanted: Filter, minutes_days: float) -> Figures:
    """Return the figures of a span. Of `wanted` camera and lot count; `minutes_days` is how long minutes are kept."""
    now_ns = store.utc_ns()
    since, until = stamp(span.since_ns), stamp(span.until_ns)
    wanted = Filter(
        camera=wanted.camera,
        lot=wanted.lot,
        shift=span.shift.name or None,
        shift_day=span.shift.day or None,
        since_ns=span.since_ns,
        until_ns=span.until_ns,
    )
    strata = tuple(judgements.judged(store, wanted))
    named = group_names.names(store)
    v = schema.verdict_minutes.c
    with store.reading() as connection:

        def sums(*columns: Any) -> Sequence[Any]:
            """Return the frames by some columns and by decision."""
            query = select(*columns, v.decision, func.sum(v.frames).label("frames")).group_by(*columns, v.decision)
            return connection.execute(_limited(query, v, wanted, since, until)).all()

        minutes = sums(v.minute)
        cameras, lots, shifts = sums(v.camera), sums(v.lot), sums(v.shift, v.shift_day)
        groups = sums(v.model_version, v.group_id)
        models = _models(connection, wanted, since, until)
        pareto = _pareto(connection, wanted, since, until)
        changes = _changes(connection, since, until)
        parts, incomplete = _parts(connection, wanted) if wanted.camera is None else ({}, 0)
        stops = None
        if span.since_ns >= now_ns - int(minutes_days * 24 * HOUR_NS):
            seen = _limited(select(v.minute).distinct(), v, Filter(camera=wanted.camera), since, until)
            stops = stops_in(connection.scalars(seen), since, min(until, stamp(now_ns)))
    return Figures(
        line=line,
        wanted=wanted,
        since=since,
        until=until,
        is_over=span.until_ns <= now_ns,
        decisions=_counted(minutes, lambda row: row.decision),
        parts=parts,
        incomplete_parts=incomplete,
        rates=quality_rates.rates(strata),
        strata=strata,
        cameras=_rows(cameras, lambda row: row.camera),
        lots=_rows(lots, lambda row: row.lot or NO_LOT),
        shifts=_rows(shifts, lambda row: f"{row.shift} {row.shift_day}" if row.shift else NO_SHIFT),
        groups=_rows(groups, lambda row: named.get((row.model_version, row.group_id)) or f"group {row.group_id}"),
        pareto=pareto,
        changes=changes,
        models=models,
        stops=stops,
        hours=_hours(minutes),
    )


def stops_in(minutes: Iterable[datetime], since: datetime, until: datetime) -> tuple[Stop, ...]:
    """Return the stops of a span, from the minutes that have a frame; a span without any frame is one stop."""
    stops, free = [], since.replace(second=0, microsecond=0)
    for minute in [*sorted(minutes), until]:
        if (minute - free) >= STOP_MINUTES * MINUTE:
            stops.append(Stop(free, minute))
        free = max(free, minute + MINUTE)
    return tuple(stops)


def pareto_of(counts: Sequence[tuple[str | None, str, str | None, int]]) -> tuple[Bar, ...]:
    """Return the Pareto of classes (id, name, severity, frames), the most frequent first."""
    total = sum(frames for *_, frames in counts)
    bars, reached = [], 0
    for class_id, name, severity, frames in sorted(counts, key=lambda row: (-row[3], row[1])):
        reached += frames
        bars.append(Bar(class_id, name, severity, frames, frames / total, reached / total))
    return tuple(bars)


def _limited(query: Select[Any], columns: Any, wanted: Filter, since: datetime, until: datetime) -> Select[Any]:
    """Return a query of counts by minute, limited to a span and to what is wanted."""
    query = query.where(columns.minute >= since, columns.minute < until)
    for name in ("camera", "lot", "shift", "shift_day"):
        if (value := getattr(wanted, name)) is not None:
            query = query.where(columns[name] == value)
    return query


def _pareto(connection: Connection, wanted: Filter, since: datetime, until: datetime) -> tuple[Bar, ...]:
    c = schema.classes.c
    frames: Counter[str | None] = Counter()
    d, t = schema.defects.c, schema.defect_totals.c
    for columns, count in ((d, func.count()), (t, func.sum(t.frames))):
        query = select(columns.class_id, count).group_by(columns.class_id)
        for class_id, number in connection.execute(_limited(query, columns, wanted, since, until)):
            frames[class_id] += int(number)
    known = {row.id: row for row in connection.execute(select(c.id, c.name, c.severity, c.state))}
    dismissed = str(ClassState.DISMISSED)
    return pareto_of(
        [
            (class_id, UNASSIGNED, None, number)
            if class_id is None
            else (class_id, known[class_id].name or class_id, known[class_id].severity, number)
            for class_id, number in frames.items()
            if class_id is None or known[class_id].state != dismissed
        ]
    )


def _changes(connection: Connection, since: datetime, until: datetime) -> tuple[Change, ...]:
    e = schema.class_events.c
    query = select(e.at, e.class_id, e.name, e.transition, e.who).where(
        e.at >= since, e.at < until, e.transition.in_(CHANGES)
    )
    return tuple(Change(*row) for row in connection.execute(query.order_by(e.id)))


def _parts(connection: Connection, wanted: Filter) -> tuple[dict[str, int], int]:
    """Return the inspections of parts by decision, and how many of them miss a view."""
    p, t = schema.parts.c, schema.part_totals.c
    assert wanted.since_ns is not None
    assert wanted.until_ns is not None
    single = select(p.decision, p.missing == "", func.count()).where(
        p.first_ns >= wanted.since_ns, p.first_ns < wanted.until_ns
    )
    totals = select(t.decision, t.is_complete, func.sum(t.inspections)).where(
        t.hour >= wanted.since_ns // HOUR_NS, t.hour < -(-wanted.until_ns // HOUR_NS)
    )
    decisions: Counter[str] = Counter()
    incomplete = 0
    for query, columns, complete in ((single, p, p.missing == ""), (totals, t, t.is_complete)):
        for name in ("lot", "shift", "shift_day"):
            if (value := getattr(wanted, name)) is not None:
                query = query.where(columns[name] == value)
        for decision, is_complete, number in connection.execute(query.group_by(columns.decision, complete)):
            decisions[decision] += int(number)
            incomplete += 0 if is_complete else int(number)
    return dict(decisions), incomplete


def _counted(rows: Sequence[Any], key: Callable[[Any], str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[key(row)] += int(row.frames)
    return dict(counts)


def _rows(rows: Sequence[Any], key: Callable[[Any], str]) -> tuple[Row, ...]:
    """Return frames and alarms by key, in the order of the keys."""
    frames = _counted(rows, key)
    alarms = _counted([row for row in rows if row.decision != Decision.ACCEPT], key)
    return tuple(Row(name, frames[name], alarms.get(name, 0)) for name in sorted(frames))


def _models(connection: Connection, wanted: Filter, since: datetime, until: datetime) -> tuple[ModelUse, ...]:
    v = schema.verdict_minutes.c
    query = select(v.model_version, func.min(v.minute), func.max(v.minute), func.sum(v.frames)).where(
        v.model_version != ""
    )
    rows = connection.execute(_limited(query.group_by(v.model_version), v, wanted, since, until))
    uses = [ModelUse(version, first, last, int(frames)) for version, first, last, frames in rows]
    return tuple(sorted(uses, key=lambda use: (use.first, use.version)))


def _hours(rows: Sequence[Any]) -> tuple[tuple[datetime, dict[str, int]], ...]:
    hours: dict[datetime, Counter[str]] = defaultdict(Counter)
    for row in rows:
        hours[row.minute.replace(minute=0)][row.decision] += int(row.frames)
    return tuple((hour, dict(counts)) for hour, counts in sorted(hours.items()))
