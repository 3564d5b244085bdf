"""What the pages read from the store. Nothing here writes, so no writer waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from discovery.store import schema
from discovery.store.database import MINUTE_NS, nanoseconds, stamp
from discovery.store.filters import ANY, EQUAL, Filter, limited
from discovery.store.pruning import frames_by_class
from discovery.store.store import Store
from flawline.messages import ClassState, Decision

HIDDEN = (ClassState.MERGED.value, ClassState.DISMISSED.value)
HISTORY = 50
EXAMPLE_FRAMES = 5_000
COUNT_ROWS = 10_000


@dataclass(frozen=True)
class ClassRow:
    """A class in the list; frames and regions are counts, the stamps are UTC."""

    id: str
    name: str | None
    severity: str | None
    state: str
    frames: int
    regions: int
    born_at: datetime
    last_seen_at: datetime
    confirmed_at: datetime | None
    merged_into: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the keys that `flawline classes list --json` prints."""
        stamps = {
            name: value.isoformat() if value else None
            for name, value in vars(self).items()
            if name in ("born_at", "last_seen_at", "confirmed_at")
        }
        return vars(self) | stamps


@dataclass(frozen=True)
class MinuteCount:
    """Frames of one camera and decision in one minute."""

    minute: datetime
    camera: str
    decision: str
    frames: int


def ready(store: Store) -> None:
    """Raise FlawlineError when the store cannot be read."""
    with store.reading() as connection:
        connection.execute(select(schema.facts.c.name).limit(1))


def minute_counts(store: Store, since: datetime) -> list[MinuteCount]:
    """Return the frames by minute from `since` on, by camera and by decision."""
    table = schema.verdict_minutes.c
    query = (
        select(table.minute, table.camera, table.decision, func.sum(table.frames).label("frames"))
        .where(table.minute >= since)
        .group_by(table.minute, table.camera, table.decision)
        .order_by(table.minute, table.camera, table.decision)
    )
    with store.reading() as connection:
        return [MinuteCount(row.minute, row.camera, row.decision, int(row.frames)) for row in connection.execute(query)]


def latest_minute(store: Store) -> datetime | None:
    """Return the latest minute that has a verdict, None without verdicts."""
    with store.reading() as connection:
        latest: datetime | None = connection.scalar(select(func.max(schema.verdict_minutes.c.minute)))
    return latest


def classes(store: Store, everything: bool = False) -> list[ClassRow]:
    """Return the classes, the largest first; merged, dismissed and emptied ones only with `everything`."""
    c = schema.classes.c
    query = select(schema.classes).order_by(c.members.desc(), c.number)
    with store.reading() as connection:
        frames = frames_by_class(connection)
        rows = connection.execute(query if everything else query.where(c.state.not_in(HIDDEN), c.members > 0)).all()
    return [
        ClassRow(
            id=row.id,
            name=row.name,
            severity=row.severity,
            state=row.state,
            frames=frames.get(row.id, 0),
            regions=row.members,
            born_at=row.born_at,
            last_seen_at=row.last_seen_at,
            confirmed_at=row.confirmed_at,
            merged_into=row.merged_into,
        )
        for row in rows
    ]


def members(store: Store, class_id: str | None, before: int | None, limit: int) -> Sequence[Any]:
    """Return the regions of a class, None for those without, with their frame, the latest first; only ids below
    `before`, if it is set.
    """
    d, r = schema.defects, schema.regions
    query = (
        select(r.c.id, d.c.frame_id, d.c.camera, d.c.captured_at, r.c.peak)
        .join_from(r, d, r.c.defect_id == d.c.id)
        .where(r.c.class_id.is_(None) if class_id is None else r.c.class_id == class_id)
        .order_by(r.c.id.desc())
        .limit(limit)
    )
    with store.reading() as connection:
        return connection.execute(query if before is None else query.where(r.c.id < before)).all()


def history(store: Store, class_id: str) -> Sequence[Any]:
    """Return the latest events of a class, the newest first."""
    events = schema.class_events
    query = select(events).where(events.c.class_id == class_id).order_by(events.c.id.desc()).limit(HISTORY)
    with store.reading() as connection:
        return connection.execute(query).all()


def audit(store: Store, class_id: str) -> Sequence[Any]:
    """Return what people did to a class, the newest first."""
    table = schema.audit
    query = select(table).where(table.c.class_id == class_id).order_by(table.c.id.desc()).limit(HISTORY)
    with store.reading() as connection:
        return connection.execute(query).all()


def defects(store: Store, before: int | None, limit: int, wanted: Filter = ANY) -> Sequence[Any]:
    """Return the frames that were not accepted, the latest first; only ids below `before`, if it is set."""
    d, c = schema.defects, schema.classes
    columns = (d.c.id, d.c.frame_id, d.c.camera, d.c.captured_at, d.c.decision, d.c.score, d.c.p_value, d.c.class_id,
               d.c.part, d.c.lot, d.c.shift, d.c.shift_day, d.c.group_id, d.c.model_version)  # fmt: skip
    query = (
        select(*columns, c.c.name.label("class_name"))
        .join_from(d, c, c.c.id == d.c.class_id, isouter=True)
        .order_by(d.c.id.desc())
        .limit(limit)
    )
    query = limited(query, d.c, wanted)
    with store.reading() as connection:
        return connection.execute(query if before is None else query.where(d.c.id < before)).all()


def lots(store: Store, limit: int = 100) -> Sequence[Any]:
    """Return the lots that were seen last, with their first and latest capture."""
    table = schema.lots
    with store.reading() as connection:
        return connection.execute(select(table).order_by(table.c.last_at.desc(), table.c.lot).limit(limit)).all()


def counts(store: Store, wanted: Filter, by: Sequence[str]) -> list[dict[str, Any]]:
    """Return frames by decision and by columns: camera, lot, shift, shift_day, model, group, hour.

    There are at most COUNT_ROWS + 1 rows. Of the filter counts what `verdict_minutes` has: all but class, part and
    kind; times are rounded to minutes.
    """
    table = schema.verdict_minutes
    v = table.c
    columns = {name: v[name] for name in ("camera", "lot", "shift", "shift_day")}
    columns |= {"model": v.model_version, "group": v.group_id, "hour": _hour_of(store, v.minute)}
    keys = [columns[name].label(f"by_{name}") for name in by]
    query = select(*keys, v.decision, func.sum(v.frames).label("total"))
    for name in EQUAL:
        if (value := getattr(wanted, name)) is not None:
            query = query.where(v[name] == value)
    if wanted.group is not None:
        query = query.where(v.model_version == wanted.group[0], v.group_id == wanted.group[1])
    if wanted.since_ns is not None:
        query = query.where(v.minute >= stamp(wanted.since_ns // MINUTE_NS * MINUTE_NS))
    if wanted.until_ns is not None:
        query = query.where(v.minute < stamp(wanted.until_ns))
    query = query.group_by(*keys, v.decision).order_by(*keys, v.decision).limit(COUNT_ROWS + 1)
    with store.reading() as connection:
        rows = connection.execute(query).all()
    return [
        {name: getattr(row, f"by_{name}") for name in by} | {"decision": row.decision, "frames": int(row.total)}
        for row in rows
    ]


def _hour_of(store: Store, minute: Any) -> Any:
    """Return the hour of a minute as ISO text in UTC."""
    if store.url.get_backend_name() == "postgresql":
        return func.to_char(func.timezone("UTC", minute), 'YYYY-MM-DD"T"HH24":00:00+00:00"')
    return func.strftime("%Y-%m-%dT%H:00:00+00:00", minute)


def inspections(
    store: Store, before: int | None, limit: int, wanted: Filter = ANY, *, is_incomplete: bool = False
) -> Sequence[Any]:
    """Return inspections of parts, the latest ids first; only those below `before`, if it is set.

    Of the filter count decision, lot, shift, part, and the time of the first capture. With `is_incomplete` only those
    with a missing view.
    """
    p = schema.parts
    query = select(p).order_by(p.c.id.desc()).limit(limit)
    for name in ("decision", "lot", "shift", "shift_day", "part"):
        if (value := getattr(wanted, name)) is not None:
            query = query.where(p.c[name] == value)
    if wanted.since_ns is not None:
        query = query.where(p.c.first_ns >= wanted.since_ns)
    if wanted.until_ns is not None:
        query = query.where(p.c.first_ns < wanted.until_ns)
    if is_incomplete:
        query = query.where(p.c.missing != "")
    with store.reading() as connection:
        return connection.execute(query if before is None else query.where(p.c.id < before)).all()


def inspection(store: Store, inspection_id: int) -> Any:
    """Return an inspection of a part, None when there is none with this id."""
    with store.reading() as connection:
        return connection.execute(select(schema.parts).where(schema.parts.c.id == inspection_id)).one_or_none()


def known_defects(store: Store, frame_ids: Sequence[str]) -> set[str]:
    """Return which of some frames were not accepted and are stored."""
    d = schema.defects.c
    with store.reading() as connection:
        return set(connection.scalars(select(d.frame_id).where(d.frame_id.in_(frame_ids))))


def examples_of_groups(store: Store, limit: int) -> dict[tuple[str, int], list[str]]:
    """Return the latest kept accepted frames of each look-alike group, among the latest EXAMPLE_FRAMES."""
    f = schema.frame_pictures.c
    query = (
        select(f.model_version, f.group_id, f.frame_id)
        .where(f.state == "kept", f.decision == str(Decision.ACCEPT))
        .order_by(f.captured_ns.desc())
        .limit(EXAMPLE_FRAMES)
    )
    examples: dict[tuple[str, int], list[str]] = defaultdict(list)
    with store.reading() as connection:
        for row in connection.execute(query):
            of_group = examples[row.model_version, row.group_id]
            if len(of_group) < limit:
                of_group.append(row.frame_id)
    return examples


def latest_capture_ns(store: Store) -> int:
    """Return the end of the latest minute that has a verdict, in ns UTC; 0 without one."""
    latest = latest_minute(store)
    return nanoseconds(latest) + MINUTE_NS if latest else 0


def regions_of(store: Store, defect_ids: Sequence[int]) -> dict[int, list[Any]]:
    """Return the regions of some defects in their order, without pixels."""
    r, c = schema.regions, schema.classes
    columns = (r.c.id, r.c.defect_id, r.c.x, r.c.y, r.c.width, r.c.height, r.c.area_px, r.c.peak, r.c.class_id)
    query = (
        select(*columns, c.c.name.label("class_name"))
        .join_from(r, c, c.c.id == r.c.class_id, isouter=True)
        .where(r.c.defect_id.in_(defect_ids))
        .order_by(r.c.defect_id, r.c.position)
    )
    regions: dict[int, list[Any]] = defaultdict(list)
    with store.reading() as connection:
        for row in connection.execute(query):
            regions[row.defect_id].append(row)
    return regions


def defect(store: Store, frame_id: str) -> Any:
    """Return a frame that was not accepted, with its heat map; None when no such frame has this id."""
    d, c = schema.defects, schema.classes
    query = (
        select(d, c.c.name.label("class_name"))
        .join_from(d, c, c.c.id == d.c.class_id, isouter=True)
        .where(d.c.frame_id == frame_id)
    )
    with store.reading() as connection:
        return connection.execute(query).one_or_none()


def cameras_with_pictures(store: Store, configured: Iterable[str]) -> list[str]:
    """Return the names of the cameras that have counted frames, and of those that are configured."""
    with store.reading() as connection:
        return sorted({*configured, *connection.scalars(select(schema.stratum_hours.c.camera).distinct())})


def crop(store: Store, region_id: int) -> bytes | None:
    """Return a region's crop (JPEG), None without such a region or after its crop was pruned."""
    with store.reading() as connection:
        data: bytes | None = connection.scalar(select(schema.regions.c.crop).where(schema.regions.c.id == region_id))
    return data or None  # pruning empties a crop that is too old
