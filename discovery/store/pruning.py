"""What the store forgets: pictures after a while, then defects one by one. Counts of classes and of frames stay.

Settings say after how long; nothing goes without them. Exemplars keep their crops as long as their class has them, for
people to see and to be described again after a change of model. Age is measured by capture, against the earlier of the
clock and the latest capture: neither a clock that has jumped nor a single frame from the future empties the store.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Connection, Select, bindparam, delete, func, select, update

from discovery.store import first_verdicts, schema
from discovery.store.database import fact, set_fact, stamp
from discovery.store.store import MINUTE_NS, Store
from flawline.settings.discovery import DiscoverySettings

log = logging.getLogger(__name__)

DAY_NS = 86_400_000_000_000
SLICE = 500
FORGOTTEN_BEFORE = "forgotten_before"


@dataclass(frozen=True)
class Pruned:
    """How many regions lost their pictures, and how many defects are only counted now."""

    pictures: int = 0
    defects: int = 0


def prune(store: Store, settings: DiscoverySettings) -> Pruned:
    """Forget a slice of what is too old, as one transaction; call it again while there is something."""
    if settings.keep_images_days is None and settings.keep_defects_days is None:
        return Pruned()
    with store.transaction() as connection:
        now = _now(connection, store)
        if now is None:
            return Pruned()
        pictures = defects = 0
        if settings.keep_defects_days is not None:
            defects = _forget_defects(connection, now - int(settings.keep_defects_days * DAY_NS))
        if settings.keep_images_days is not None:
            pictures = _forget_pictures(connection, now - int(settings.keep_images_days * DAY_NS))
    return Pruned(pictures, defects)


def forgotten_before(connection: Connection) -> int:
    """Captures before this, in ns UTC, are not taken in any more: they may have been counted and forgotten."""
    return int(fact(connection, FORGOTTEN_BEFORE, "0"))


def frames_by_class(connection: Connection) -> dict[str, int]:
    """Frames of each class: those that are kept one by one, and those that are only counted."""
    d, t = schema.defects.c, schema.defect_totals.c
    kept = select(d.class_id, func.count()).where(d.class_id.is_not(None)).group_by(d.class_id)
    counted = select(t.class_id, func.sum(t.frames)).where(t.class_id.is_not(None)).group_by(t.class_id)
    frames: Counter[str] = Counter()
    for query in (kept, counted):
        for name, count in connection.execute(query):
            frames[name] += int(count)
    return dict(frames)


def _now(connection: Connection, store: Store) -> int | None:
    latest = connection.scalar(select(func.max(schema.defects.c.captured_ns)))
    return None if latest is None else min(int(latest), store.utc_ns())


def _forget_pictures(connection: Connection, before_ns: int) -> int:
    r, d = schema.regions, schema.defects
    old = d.c.captured_ns < before_ns
    # Whole minutes first: the index is on them.
    old &= d.c.minute <= stamp(before_ns // MINUTE_NS * MINUTE_NS)
    query = (
        select(r.c.id)
        .join_from(r, d, r.c.defect_id == d.c.id)
        .where(old, r.c.exemplar.is_(False), func.length(r.c.crop) > 0)
        .limit(SLICE)
    )
    rows = [{"row": number} for number in connection.scalars(query)]
    if rows:
        connection.execute(update(r).where(r.c.id == bindparam("row")).values(crop=b"", mask=b""), rows)
    maps = select(d.c.id).where(old, func.length(d.c.heatmap) > 0).limit(SLICE)
    emptied = [{"row": number} for number in connection.scalars(maps)]
    if emptied:
        statement = update(d).where(d.c.id == bindparam("row"))
        connection.execute(statement.values(heatmap=b"", heatmap_height=0, heatmap_width=0), emptied)
    return len(rows) + len(emptied)


def _forget_defects(connection: Connection, before_ns: int) -> int:
    r, d = schema.regions, schema.defects
    rows = connection.execute(_forgettable(before_ns)).all()
    if not rows:
        return 0
    counts = Counter((row.minute, row.camera, row.group_id, row.decision, row.class_id) for row in rows)
    names = ("minute", "camera", "group_id", "decision", "class_id")
    connection.execute(
        schema.defect_totals.insert(),
        [dict(zip(names, place, strict=True)) | {"frames": count} for place, count in counts.items()],
    )
    ids = [row.id for row in rows]
    connection.execute(delete(r).where(r.c.defect_id.in_(ids)))
    connection.execute(delete(d).where(d.c.id.in_(ids)))
    horizon = max(before_ns, forgotten_before(connection))
    set_fact(connection, FORGOTTEN_BEFORE, str(horizon))
    first_verdicts.forget(connection, horizon)
    return len(ids)


def _forgettable(before_ns: int) -> Select[tuple[int]]:
    """Old defects without an exemplar that its class still lives by: one of another version may go."""
    r, d, c = schema.regions, schema.defects, schema.classes
    needed = (
        select(r.c.id)
        .join_from(r, c, r.c.class_id == c.c.id)
        .where(r.c.defect_id == d.c.id, r.c.exemplar.is_(True), r.c.embedding_version == c.c.embedding_version)
    )
    return (
        select(d)
        .where(d.c.captured_ns < before_ns, d.c.minute <= stamp(before_ns // MINUTE_NS * MINUTE_NS), ~needed.exists())
        .order_by(d.c.id)
        .limit(SLICE)
    )
