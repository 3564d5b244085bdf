"""What the pages of classes read from the store: pictures, trends and lineage. Nothing here writes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, func, literal, select, tuple_, type_coerce

from discovery.store import schema
from discovery.store.database import parts, stamp
from discovery.store.pruning import now_of
from discovery.store.store import Store


@dataclass(frozen=True)
class Picture:
    """A region as a picture of its class: where its crop comes from."""

    id: int
    class_id: str
    frame_id: str
    camera: str
    group: tuple[str, int]
    captured_at: datetime


@dataclass(frozen=True)
class Trend:
    """Frames of each class, by the step of time that ends with now: `counts` of as many steps as all have."""

    step: str
    first: datetime
    counts: dict[str, list[int]]


@dataclass(frozen=True)
class Step:
    """A step of trends: its length, how many a trend has, and where it ends in a stamp of SQLite."""

    name: str
    length: timedelta
    count: int
    characters: int


STEPS = (
    Step("minute", timedelta(minutes=1), 60, 16),
    Step("hour", timedelta(hours=1), 48, 13),
    Step("day", timedelta(days=1), 30, 10),
)


def pictures(store: Store, class_ids: Sequence[str], few: int) -> dict[str, list[Picture]]:
    """Return pictures of some classes: the exemplars, which are a sample of all members, and the newest member.

    A class with less than `few` exemplars gets its hottest members, too.
    """
    r = schema.regions.c
    wanted = set(class_ids)
    result: dict[str, dict[int, Picture]] = {name: {} for name in class_ids}

    def add(connection: Connection, condition: ColumnElement[bool]) -> None:
        for row in connection.execute(_pictures().where(condition)):
            if row.class_id in wanted:
                group = (row.model_version, row.group_id)
                picture = Picture(row.id, row.class_id, row.frame_id, row.camera, group, row.captured_at)
                result[row.class_id][row.id] = picture

    with store.reading() as connection:
        add(connection, r.exemplar.is_(True))
        newest = connection.execute(select(r.class_id, func.max(r.id)).group_by(r.class_id)).all()
        ids = [number for name, number in newest if name in wanted]
        for name in class_ids:
            if len(result[name]) < few:
                hottest = select(r.id).where(r.class_id == name).order_by(r.peak.desc(), r.id.desc()).limit(few)
                ids += connection.scalars(hottest).all()
        for part in parts(ids):
            add(connection, r.id.in_(part))
    return {name: list(shown.values()) for name, shown in result.items()}


def _pictures() -> Select[Any]:
    r, d = schema.regions, schema.defects
    columns = (r.c.id, r.c.class_id, d.c.frame_id, d.c.camera, d.c.model_version, d.c.group_id, d.c.captured_at)
    return select(*columns).join_from(r, d, r.c.defect_id == d.c.id)


def trend(store: Store, since: datetime) -> Trend | None:
    """Return how often each class was seen, in the finest steps that reach back to `since`; None without a frame."""
    with store.reading() as connection:
        now_ns = now_of(connection, store)
        if now_ns is None:
            return None
        now = stamp(now_ns)
        step = next((step for step in STEPS if now - since <= step.length * step.count), STEPS[-1])
        last = _start(now, step)
        first = last - step.length * (step.count - 1)
        counts: dict[str, list[int]] = defaultdict(lambda: [0] * step.count)
        tables = (
            (schema.defects.c.class_id, schema.defects.c.captured_at, func.count()),
            (schema.defect_totals.c.class_id, schema.defect_totals.c.minute, func.sum(schema.defect_totals.c.frames)),
        )
        for class_id, at, frames in tables:
            begin = _begin(connection, at, step)
            query = select(class_id, begin, frames).where(class_id.is_not(None), at >= first).group_by(class_id, begin)
            for name, start, count in connection.execute(query):
                place = (_stamp(start) - first) // step.length
                if 0 <= place < step.count:
                    counts[name][place] += int(count)
    return Trend(step.name, first, dict(counts))


def _start(at: datetime, step: Step) -> datetime:
    at = at.replace(second=0, microsecond=0)
    return at if step.name == "minute" else at.replace(minute=0, hour=at.hour if step.name == "hour" else 0)


def _begin(connection: Connection, at: Any, step: Step) -> ColumnElement[Any]:
    """Return SQL for the step in which a stamp lies: text on SQLite, timestamptz on PostgreSQL."""
    if connection.dialect.name == "postgresql":
        return func.date_trunc(step.name, at, "UTC")
    return func.substr(type_coerce(at, Text), 1, step.characters)


def _stamp(start: datetime | str) -> datetime:
    at = datetime.fromisoformat(start) if isinstance(start, str) else start
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def neighbours(store: Store, frame: Any, class_id: str | None) -> tuple[str | None, str | None]:
    """Return the frames before and after a row of `defects`, the newer one first; of one class only, if it is set."""
    d = schema.defects.c
    query = select(d.frame_id)
    key: list[Any] = [d.id]
    if class_id is not None:  # in the order of the class's index
        key = [d.captured_at, d.id]
        query = query.where(d.class_id == class_id)
    here = tuple_(*(literal(getattr(frame, column.name), column.type) for column in key))
    with store.reading() as connection:
        newer = connection.scalar(query.where(tuple_(*key) > here).order_by(*key).limit(1))
        older = connection.scalar(
            query.where(tuple_(*key) < here).order_by(*(column.desc() for column in key)).limit(1)
        )
    return newer, older


def unassigned_frames(store: Store) -> int:
    """Return the frames that were not accepted and have no class."""
    d, t = schema.defects.c, schema.defect_totals.c
    with store.reading() as connection:
        stored = connection.scalar(select(func.count()).where(d.class_id.is_(None)))
        counted = connection.scalar(select(func.sum(t.frames)).where(t.class_id.is_(None)))
    return int(stored or 0) + int(counted or 0)


def unassigned_regions(store: Store) -> int:
    """Return how many regions have no class."""
    r = schema.regions.c
    with store.reading() as connection:
        return int(connection.scalar(select(func.count()).where(r.class_id.is_(None))) or 0)


def parents(store: Store) -> dict[str, list[str]]:
    """Return the classes from which each class was split, by id."""
    p = schema.class_parents.c
    result: dict[str, list[str]] = defaultdict(list)
    with store.reading() as connection:
        for child, parent in connection.execute(select(p.class_id, p.parent_id).order_by(p.class_id, p.parent_id)):
            result[child].append(parent)
    return dict(result)


def spread(shown: Iterable[Picture], limit: int) -> list[Picture]:
    """Return `limit` pictures, spread over look-alike groups, then cameras, then time; the newest comes first.

    Each next picture is of the group that was taken the fewest times, of its camera that was taken the fewest times,
    and captured as far from those that were taken as can be.
    """
    left = sorted(shown, key=lambda picture: (picture.captured_at, picture.id), reverse=True)
    taken = left[:1]
    groups = Counter(picture.group for picture in taken)
    cameras = Counter((picture.group, picture.camera) for picture in taken)
    del left[:1]
    while left and len(taken) < limit:

        def order(picture: Picture) -> tuple[int, int, float, int]:
            apart = min(abs((picture.captured_at - other.captured_at).total_seconds()) for other in taken)
            return groups[picture.group], cameras[picture.group, picture.camera], -apart, -picture.id

        best = min(left, key=order)
        left.remove(best)
        taken.append(best)
        groups[best.group] += 1
        cameras[best.group, best.camera] += 1
    return taken
