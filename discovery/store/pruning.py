"""What the store forgets: pictures by value, age and room, then defects one by one. Counts of classes and frames stay.

The settings of `[retention]` say when; `flawline.retention` decides what. Exemplars keep their crops as long as their
class has them, for people to see and to be described again after a change of model. Age is measured by capture, against
the earlier of the clock and the latest capture: neither a clock that has jumped nor a single frame from the future
empties the store.

Pictures are crops, masks and heat maps. The table `pictures` has their sizes, so that no pass reads the pictures
themselves. Everything goes in slices, each a transaction, so that a pass holds up neither intake nor readers.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, select, update

from discovery.store import first_verdicts, part_verdicts, production, schema
from discovery.store.database import HOUR_NS, MINUTE_NS, add_to_fact, fact, nanoseconds, parts, set_fact, stamp
from discovery.store.production import counted_lots
from discovery.store.store import Store
from flawline import clock, telemetry
from flawline.messages import ClassState, Decision
from flawline.retention import Holding, Limits, Value, going
from flawline.settings.retention import RetentionSettings

log = logging.getLogger(__name__)

DAY_NS = 24 * HOUR_NS
SLICE = 500
PASS_S = 600.0
"""How often the store looks for what is too old; a judgement, not measured."""
SHORT_PASS_S = 10.0
"""How often it looks while the disk has less free than it should; a judgement, not measured."""
VACUUM_PAGES = 2_000
"""Pages that one transaction gives back to the disk: 8 MB, some tens of milliseconds."""
FORGOTTEN_BEFORE = "forgotten_before"
DECIDED_BEFORE = "decided_before"
COUNTED_BY_HOUR_BEFORE = "counted_by_hour_before"
FORGOTTEN = "forgotten"
"""Prefix of the facts that count what has gone: `forgotten pictures DEFECT age`, `forgotten defects`."""


@dataclass(frozen=True)
class Pruned:
    """What a slice did: frames that lost their pictures, and defects that are only counted now."""

    pictures: int = 0
    defects: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(self.pictures + other.pictures, self.defects + other.defects)


@dataclass(frozen=True)
class _Pile:
    """Names the pictures of one hour of capture that have the same decision and are dismissed or not."""

    hour: int
    decision: str
    dismissed: bool


class Pruner:
    """Forgets what the settings of retention let go, slice by slice. Used from the thread that writes the store."""

    def __init__(self, store: Store, keep: RetentionSettings, monotonic: clock.Monotonic = clock.monotonic) -> None:
        self._store, self._keep, self._monotonic = store, keep, monotonic
        self._pass: Iterator[Pruned] | None = None
        self._passed_at = self._looked_at = -float("inf")

    def step(self) -> Pruned | None:
        """Do one slice; return None when there is nothing to do now. Raises DatabaseAway."""
        if self._pass is None:
            if not self._is_due():
                return None
            self._pass = self._slices()
        pruned = next(self._pass, None)
        if pruned is None:
            self._pass = None
            self._passed_at = self._monotonic()
        return pruned

    def _is_due(self) -> bool:
        now = self._monotonic()
        if now - self._passed_at >= PASS_S:
            return True
        if now - max(self._passed_at, self._looked_at) < SHORT_PASS_S:
            return False
        self._looked_at = now
        return self._lacking_bytes() > 0

    def _lacking_bytes(self) -> int:
        """Return what the disk of a SQLite store has less free than it should; 0 for a store elsewhere."""
        free_bytes = free_disk_bytes(self._store)
        if free_bytes is None:
            return 0
        telemetry.DISK_FREE_BYTES.labels("store").set(free_bytes)
        lacking = self._keep.min_free_bytes - free_bytes
        telemetry.DISK_SHORT.labels("store").set(lacking > 0)
        return lacking

    def _slices(self) -> Iterator[Pruned]:
        """Make one pass, and stop after each transaction."""
        with self._store.reading() as connection:
            now_ns = now_of(connection, self._store)
            holdings = _holdings(connection) if now_ns is not None else []
        _export(holdings)
        if now_ns is None:
            return
        lacking_bytes = self._lacking_bytes()
        # Free pages of the file are room too: they go to the disk at the end.
        goes = going(holdings, self._limits(), now_ns, lacking_bytes - _free_page_bytes(self._store))
        total = Pruned()
        for reason, chosen in (("age", goes.too_old), ("room", goes.too_much)):
            for holding in chosen:
                while pruned := self._forget_pictures(holding, reason):
                    total += pruned
                    yield pruned
        self._forget_decisions(now_ns)
        for work in (
            self._release_held,
            lambda: self._forget_defects(now_ns),
            lambda: self._forget_parts(now_ns),
            lambda: self._count_by_hour(now_ns),
        ):
            while (done := work()) is not None:
                total += done
                yield done
        if lacking_bytes > 0:
            while _give_back_pages(self._store):
                yield Pruned()
        if total != Pruned():
            log.info("retention: pictures of %d frames and %d defects are forgotten", total.pictures, total.defects)
        if lacking_bytes > 0 and goes.too_much:
            log.warning(
                "retention: the disk of the store lacked %d bytes of retention.min_free_bytes, so pictures of %d "
                "frames went before their time: free space there",
                lacking_bytes,
                total.pictures,
            )

    def _limits(self) -> Limits:
        near_ns = round(self._keep.near_miss_pictures_days * DAY_NS)
        ages_ns: dict[int, int] = {
            Value.NEAR_MISS: near_ns,
            Value.DISMISSED: near_ns,
            Value.DEFECT: round(self._keep.rejected_pictures_days * DAY_NS),
        }
        return Limits(ages_ns, self._keep.pictures_limit_bytes)

    def _forget_pictures(self, holding: Holding[_Pile], reason: str) -> Pruned | None:
        """Empty the pictures of a slice of a holding; None when it has none left."""
        with self._store.transaction() as connection:
            ids = list(connection.scalars(_of_pile(holding.key).limit(SLICE)).all())
            if not ids:
                return None
            _empty(connection, ids)
            _count(connection, f"pictures {Value(holding.value).name} {reason}", len(ids))
        telemetry.FORGOTTEN_PICTURES.labels(Value(holding.value).name, reason).inc(len(ids))
        return Pruned(pictures=len(ids))

    def _release_held(self) -> Pruned | None:
        """Empty a slice of what was held for an exemplar that is none any more; None when there is none."""
        p, r = schema.pictures.c, schema.regions.c
        query = (
            select(p.defect_id)
            .join(schema.regions, r.defect_id == p.defect_id)
            .where(p.held.is_(True), r.exemplar.is_(False), func.length(r.crop) > 0)
            .distinct()
            .limit(SLICE)
        )
        with self._store.transaction() as connection:
            ids = list(connection.scalars(query))
            if not ids:
                return None
            _empty(connection, ids)
        return Pruned(pictures=len(ids))

    def _forget_defects(self, now_ns: int) -> Pruned | None:
        with self._store.transaction() as connection:
            count = _forget_defects(connection, now_ns - round(self._keep.defect_rows_days * DAY_NS))
            if not count:
                return None
            _count(connection, "defects", count)
        telemetry.FORGOTTEN_DEFECTS.inc(count)
        return Pruned(defects=count)

    def _forget_parts(self, now_ns: int) -> Pruned | None:
        with self._store.transaction() as connection:
            count = part_verdicts.forget(connection, now_ns - round(self._keep.parts_days * DAY_NS), SLICE)
            if not count:
                return None
            _count(connection, "parts", count)
        return Pruned()

    def _forget_decisions(self, now_ns: int) -> None:
        """Forget, once an hour, what was decided on frames whose messages no topic holds any more."""
        keep = self._keep
        days = max(keep.verdicts_days, keep.defects_days, keep.dead_letters_days)
        before_ns = (now_ns - round(days * DAY_NS)) // HOUR_NS * HOUR_NS
        with self._store.transaction() as connection:
            if before_ns > int(fact(connection, DECIDED_BEFORE, "0")):
                first_verdicts.forget(connection, before_ns)
                # Lots are known for longer than what is counted by them when it goes.
                production.forget_lots(
                    connection, now_ns - round(2 * max(keep.defect_rows_days, keep.parts_days) * DAY_NS)
                )
                set_fact(connection, DECIDED_BEFORE, str(before_ns))

    def _count_by_hour(self, now_ns: int) -> Pruned | None:
        with self._store.transaction() as connection:
            did = _count_by_hour(connection, now_ns - round(self._keep.minutes_days * DAY_NS))
        return Pruned() if did else None


def prune(store: Store, keep: RetentionSettings) -> Pruned:
    """Make one whole pass."""
    pruner, total = Pruner(store, keep), Pruned()
    while (pruned := pruner.step()) is not None:
        total += pruned
    return total


def forgotten(connection: Connection) -> dict[str, int]:
    """Return what has gone so far: `defects`, and `pictures VALUE REASON` in frames."""
    f = schema.facts.c
    query = select(f.name, f.value).where(f.name.startswith(f"{FORGOTTEN} ")).order_by(f.name)
    return {row.name.removeprefix(f"{FORGOTTEN} "): int(row.value) for row in connection.execute(query)}


def picture_bytes(connection: Connection) -> dict[Value, int]:
    """Return the size of the pictures in the store by value, without those that are held for exemplars."""
    return _sizes(_holdings(connection))


def free_disk_bytes(store: Store) -> int | None:
    """Return the free bytes of the disk of a SQLite store; None for a store elsewhere."""
    return None if store.sqlite_file is None else shutil.disk_usage(store.sqlite_file.parent).free


def forgotten_before(connection: Connection) -> int:
    """Return the time in ns UTC before which captures are refused: they may have been counted and forgotten."""
    return int(fact(connection, FORGOTTEN_BEFORE, "0"))


def frames_by_class(connection: Connection) -> dict[str, int]:
    """Return the frames of each class: stored frames, and frames that are only counted."""
    d, t = schema.defects.c, schema.defect_totals.c
    stored = select(d.class_id, func.count()).where(d.class_id.is_not(None)).group_by(d.class_id)
    counted = select(t.class_id, func.sum(t.frames)).where(t.class_id.is_not(None)).group_by(t.class_id)
    frames: Counter[str] = Counter()
    for query in (stored, counted):
        for name, count in connection.execute(query):
            frames[name] += int(count)
    return dict(frames)


def now_of(connection: Connection, store: Store) -> int | None:
    """Return the time in ns by which age is measured: the earlier of clock and latest capture; None without one."""
    latest = connection.scalar(select(func.max(schema.verdict_minutes.c.minute)))
    newest = connection.scalar(select(func.max(schema.defects.c.minute)))
    known = [at for at in (latest, newest) if at is not None]
    return min(nanoseconds(max(known)) + MINUTE_NS, store.utc_ns()) if known else None


# Pictures


def _holdings(connection: Connection) -> list[Holding[_Pile]]:
    """Return what the store has of pictures, by hour, decision, and whether people have dismissed their class."""
    p, d, c = schema.pictures.c, schema.defects.c, schema.classes.c
    total, amount = func.sum(p.size_bytes), func.count()
    everything = select(p.hour, p.decision, total, amount).where(p.held.is_(False)).group_by(p.hour, p.decision)
    sizes: dict[_Pile, tuple[int, int]] = {}
    for hour, decision, size_bytes, count in connection.execute(everything):
        sizes[_Pile(hour, decision, False)] = int(size_bytes), int(count)
    dismissed = (
        select(p.hour, p.decision, total, amount)
        .select_from(schema.classes)
        .join(schema.defects, d.class_id == c.id)
        .join(schema.pictures, p.defect_id == d.id)
        .where(c.state == str(ClassState.DISMISSED), p.held.is_(False))
        .group_by(p.hour, p.decision)
    )
    for hour, decision, size_bytes, count in connection.execute(dismissed):
        sizes[_Pile(hour, decision, True)] = int(size_bytes), int(count)
        others = sizes[_Pile(hour, decision, False)]
        sizes[_Pile(hour, decision, False)] = others[0] - int(size_bytes), others[1] - int(count)
    return [
        Holding(pile, _value(pile), (pile.hour + 1) * HOUR_NS, size_bytes)
        for pile, (size_bytes, count) in sizes.items()
        if count
    ]


def _value(pile: _Pile) -> Value:
    if pile.dismissed:
        return Value.DISMISSED
    return Value.DEFECT if pile.decision == str(Decision.REJECT) else Value.NEAR_MISS


def _of_pile(pile: _Pile) -> Select[Any]:
    """Return the query of the defects whose pictures lie on a pile."""
    p, d, c = schema.pictures.c, schema.defects.c, schema.classes.c
    state = select(c.state).join(schema.defects, d.class_id == c.id).where(d.id == p.defect_id).scalar_subquery()
    is_dismissed = func.coalesce(state, "") == str(ClassState.DISMISSED)
    return select(p.defect_id).where(
        p.held.is_(False), p.decision == pile.decision, p.hour == pile.hour,
        is_dismissed if pile.dismissed else ~is_dismissed,
    )  # fmt: skip


def _empty(connection: Connection, ids: Sequence[int]) -> None:
    """Remove the pictures of some defects; crops and masks of exemplars stay, and are held until they are none."""
    d, r, p = schema.defects, schema.regions, schema.pictures
    for part in parts(ids):
        connection.execute(
            update(r)
            .where(r.c.defect_id.in_(part), r.c.exemplar.is_(False), func.length(r.c.crop) > 0)
            .values(crop=b"", mask=b"")
        )
        # A frame that is still kept whole is shown with its heat map, which is small.
        f = schema.frame_pictures.c
        is_whole = select(f.id).where(f.frame_id == d.c.frame_id, f.state == "kept").exists()
        emptied = update(d).where(d.c.id.in_(part), func.length(d.c.heatmap) > 0, ~is_whole)
        connection.execute(emptied.values(heatmap=b"", heatmap_height=0, heatmap_width=0))
        held = connection.scalars(
            select(r.c.defect_id).where(r.c.defect_id.in_(part), func.length(r.c.crop) > 0).distinct()
        ).all()
        connection.execute(delete(p).where(p.c.defect_id.in_(set(part) - set(held))))
        if held:
            connection.execute(update(p).where(p.c.defect_id == bindparam("row")).values(held=True),
                               [{"row": number} for number in held])  # fmt: skip


def _sizes(holdings: Sequence[Holding[_Pile]]) -> dict[Value, int]:
    sizes: Counter[Value] = Counter()
    for holding in holdings:
        sizes[Value(holding.value)] += holding.size_bytes
    return dict(sizes)


def _export(holdings: Sequence[Holding[_Pile]]) -> None:
    sizes = _sizes(holdings)
    for value in (Value.NEAR_MISS, Value.DISMISSED, Value.DEFECT):
        telemetry.PICTURE_BYTES.labels(value.name).set(sizes.get(value, 0))


def _count(connection: Connection, what: str, more: int) -> None:
    add_to_fact(connection, f"{FORGOTTEN} {what}", more)


# Rows


def _forget_defects(connection: Connection, before_ns: int) -> int:
    r, d, p = schema.regions, schema.defects, schema.pictures
    rows = connection.execute(_forgettable(before_ns)).all()
    if not rows:
        return 0
    names = ("minute", "camera", "group_id", "decision", "class_id", "model_version", "shift", "shift_day")
    lots = counted_lots(connection, [row.lot or "" for row in rows])
    counts = Counter((*(getattr(row, name) for name in names), lots[row.lot or ""]) for row in rows)
    connection.execute(
        schema.defect_totals.insert(),
        [dict(zip((*names, "lot"), place, strict=True)) | {"frames": count} for place, count in counts.items()],
    )
    ids = [row.id for row in rows]
    connection.execute(delete(p).where(p.c.defect_id.in_(ids)))
    connection.execute(delete(r).where(r.c.defect_id.in_(ids)))
    connection.execute(delete(d).where(d.c.id.in_(ids)))
    horizon = max(before_ns, forgotten_before(connection))
    set_fact(connection, FORGOTTEN_BEFORE, str(horizon))
    first_verdicts.forget(connection, horizon)
    return len(ids)


def _forgettable(before_ns: int) -> Select[Any]:
    """Return the old defects without an exemplar of their class; an exemplar of another version does not count."""
    r, d, c = schema.regions, schema.defects, schema.classes
    needed = (
        select(r.c.id)
        .join_from(r, c, r.c.class_id == c.c.id)
        .where(r.c.defect_id == d.c.id, r.c.exemplar.is_(True), r.c.embedding_version == c.c.embedding_version)
    )
    return (
        select(d.c.id, d.c.minute, d.c.camera, d.c.group_id, d.c.decision, d.c.class_id, d.c.model_version, d.c.lot,
               d.c.shift, d.c.shift_day)
        .where(d.c.captured_ns < before_ns, d.c.minute <= stamp(before_ns // MINUTE_NS * MINUTE_NS), ~needed.exists())
        .order_by(d.c.id)
        .limit(SLICE)
    )  # fmt: skip


# Counts


def _count_by_hour(connection: Connection, before_ns: int) -> bool:
    """Add the minutes of the oldest hour that is counted by the minute; False when no such hour is before `before_ns`.

    What arrives later for such an hour stays by the minute, and sums are what they were.
    """
    begin = stamp(int(fact(connection, COUNTED_BY_HOUR_BEFORE, "0")))
    end = stamp(before_ns // HOUR_NS * HOUR_NS)
    v, t = schema.verdict_minutes.c, schema.defect_totals.c
    oldest = [
        connection.scalar(select(func.min(minute)).where(minute >= begin, minute < end))
        for minute in (v.minute, t.minute)
    ]
    if not any(oldest):
        return False
    hour_ns = nanoseconds(min(at for at in oldest if at is not None)) // HOUR_NS * HOUR_NS
    first, last = stamp(hour_ns), stamp(hour_ns + HOUR_NS)
    sums = (func.sum(v.frames).label("frames"), func.sum(v.score_sum).label("score_sum"),
            func.max(v.score_max).label("score_max"))  # fmt: skip
    origin = ("model_version", "lot", "shift", "shift_day")
    _add_up(connection, schema.verdict_minutes, ("camera", "group_id", "decision", *origin), sums, first, last)
    frames = (func.sum(t.frames).label("frames"),)
    names = ("camera", "group_id", "decision", "class_id", *origin)
    _add_up(connection, schema.defect_totals, names, frames, first, last)
    set_fact(connection, COUNTED_BY_HOUR_BEFORE, str(hour_ns + HOUR_NS))
    return True


def _add_up(
    connection: Connection, table: Any, names: Sequence[str], sums: Sequence[Any], first: datetime, last: datetime
) -> None:
    """Replace the rows of one hour by one row for each combination of the columns `names`, stamped `first`."""
    keys = [table.c[name] for name in names]
    of_hour = (table.c.minute >= first) & (table.c.minute < last)
    rows = [dict(row._mapping) for row in connection.execute(select(*keys, *sums).where(of_hour).group_by(*keys))]
    if rows:
        connection.execute(delete(table).where(of_hour))
        connection.execute(table.insert(), [row | {"minute": first} for row in rows])


# The file


def _free_page_bytes(store: Store) -> int:
    """Return what a SQLite file has of room: pages that hold nothing, and those that the next checkpoint cuts off."""
    if store.sqlite_file is None:
        return 0
    with store.reading() as connection:
        page, pages, free = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0)
            for name in ("page_size", "page_count", "freelist_count")
        )
    return page * free + max(0, store.sqlite_file.stat().st_size - page * pages)


def _give_back_pages(store: Store) -> bool:
    """Give a slice of the file's free pages back to the disk; False when none is left, or the file cannot shrink."""
    if store.sqlite_file is None:
        return False
    with store.transaction() as connection:
        before = int(connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0)
        # Each step of this statement gives back a page; SQLAlchemy would make one, as no row comes back.
        driver = connection.connection.cursor()
        driver.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
        driver.close()
        after = int(connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0)
    if 0 < after < before:
        return True
    store.checkpoint()
    return False
