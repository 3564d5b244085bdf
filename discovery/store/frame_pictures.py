"""The rows of the pictures: chosen, kept or lost. What they mean is in `discovery/pictures/`.

A row is `wanted` from the transaction that takes the verdict in, until its frame is in the picture store (`kept`) or
cannot be had any more (`lost`). So a process that dies between asks for the same frames again. The row goes with the
picture; judgements hold what they need of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from discovery.pictures.policy import Pick, Stratum
from discovery.shifts import NO_SHIFTS, Calendar, Shift
from discovery.store import schema
from discovery.store.database import HOUR_NS, add_to_fact, insert, parts, stamp, upsert
from discovery.store.production import Origin, shift_columns
from discovery.store.store import Store
from flawline.messages import Verdict
from flawline.retention import Holding

WANTED_LIMIT = 20_000
"""Frames that may wait to be kept; beyond, no more are asked for, and that is counted. A judgement, not measured: some
minutes of a line whose every frame is rejected."""

TOO_MANY = "backlog"
"""The reason that counts frames beyond WANTED_LIMIT."""

LOST_FRAMES = "lost frames"
"""Prefix of the facts that count what could not be kept, by reason."""

LOST_SLICE = 5_000
"""Rows of lost frames that one pass forgets. A judgement, not measured: well below a second."""

WANTED, KEPT, LOST = "wanted", "kept", "lost"

NOWHERE = Origin("", Shift())


@dataclass(frozen=True)
class Pile:
    """Names the pictures of one hour of capture and one stratum."""

    hour: int
    stratum: str


@dataclass(frozen=True)
class Report:
    """What the picture store holds: `lost` counts by reason the frames that were to be kept and could not be."""

    kept: int
    size_bytes: int
    waiting: int
    lost: dict[str, int]


def report(connection: Connection) -> Report:
    """Return what is kept, what waits, and what was lost."""
    p, f = schema.frame_pictures.c, schema.facts.c
    kept = connection.execute(select(func.count(), func.sum(p.size_bytes)).where(p.state == KEPT)).one()
    facts = connection.execute(select(f.name, f.value).where(f.name.startswith(f"{LOST_FRAMES} ")).order_by(f.name))
    lost = {row.name.removeprefix(f"{LOST_FRAMES} "): int(row.value) for row in facts}
    return Report(int(kept[0]), int(kept[1] or 0), waiting(connection), lost)


def count_frames(
    connection: Connection, strata: Iterable[tuple[Verdict, Stratum]], origins: Mapping[str, Origin] = {}
) -> None:
    """Count frames into the hours of their strata; `origins` has lot and shift by frame id."""
    counts = Counter(
        (verdict.captured_at // HOUR_NS, verdict.camera, str(stratum), origins.get(verdict.frame_id, NOWHERE))
        for verdict, stratum in strata
    )
    for (hour, camera, stratum, origin), frames in sorted(
        counts.items(), key=lambda item: (*item[0][:3], item[0][3].lot)
    ):
        row = {"hour": hour, "camera": camera, "stratum": stratum, **origin.columns(), "frames": frames}
        upsert(connection, schema.stratum_hours, row, add=("frames",))


def want(connection: Connection, picks: Sequence[Pick], calendar: Calendar = NO_SHIFTS) -> int:
    """Ask for frames, and return how many were too many; one that is known stays as it is."""
    table = schema.frame_pictures
    if not picks:
        return 0
    taken = picks[: max(WANTED_LIMIT - waiting(connection), 0)]
    for pick in taken:
        connection.execute(insert(connection, table).values(_row(pick, calendar)).on_conflict_do_nothing())
    if too_many := len(picks) - len(taken):
        add_to_fact(connection, f"{LOST_FRAMES} {TOO_MANY}", too_many)
    return too_many


def waiting(connection: Connection) -> int:
    """Return how many frames wait."""
    table = schema.frame_pictures
    return int(connection.scalar(select(func.count()).select_from(table).where(table.c.state == WANTED)) or 0)


def _row(pick: Pick, calendar: Calendar) -> dict[str, Any]:
    verdict = pick.candidate.verdict
    return {
        "frame_id": verdict.frame_id,
        "camera": verdict.camera,
        "captured_at": stamp(verdict.captured_at),
        "captured_ns": verdict.captured_at,
        "hour": verdict.captured_at // HOUR_NS,
        "stratum": str(pick.stratum),
        "decision": str(verdict.decision),
        "group_id": verdict.group,
        "score": verdict.score,
        "p_value": verdict.p_value,
        "model_version": verdict.model_version,
        "part": verdict.part,
        "lot": verdict.lot,
        **shift_columns(calendar.at(verdict.captured_at)),
        "probability": pick.probability,
        "chance": pick.chance,
        "partition": pick.candidate.partition,
        "frame_offset": pick.candidate.offset,
        "state": WANTED,
    }


def wanted(connection: Connection, limit: int, without: Collection[int] = ()) -> Sequence[Any]:
    """Return the rows that wait, the oldest first, but for the ids `without`."""
    table = schema.frame_pictures
    query = select(table).where(table.c.state == WANTED).order_by(table.c.id).limit(limit + len(without))
    return [row for row in connection.execute(query) if row.id not in without][:limit]


def keep(connection: Connection, picture_id: int, **values: Any) -> str:
    """Note that a frame is in the picture store, and return its stratum; `values` are its last columns."""
    table = schema.frame_pictures
    connection.execute(update(table).where(table.c.id == picture_id).values(state=KEPT, **values))
    return str(connection.scalar(select(table.c.stratum).where(table.c.id == picture_id)))


def lose(connection: Connection, picture_id: int, reason: str) -> None:
    """Note that a frame cannot be had."""
    table = schema.frame_pictures
    connection.execute(update(table).where(table.c.id == picture_id).values(state=LOST, reason=reason))
    add_to_fact(connection, f"{LOST_FRAMES} {reason}", 1)


def holdings(connection: Connection) -> list[Holding[Pile]]:
    """Return what is kept, by hour and stratum."""
    p = schema.frame_pictures.c
    query = (
        select(p.hour, p.stratum, func.sum(p.size_bytes))
        .where(p.state == KEPT)
        .group_by(p.hour, p.stratum)
    )  # fmt: skip
    return [
        Holding(Pile(hour, stratum), int(Stratum(stratum).value_of_picture), (hour + 1) * HOUR_NS, int(size_bytes))
        for hour, stratum, size_bytes in connection.execute(query)
    ]


def of_pile(connection: Connection, pile: Pile, limit: int) -> Sequence[Any]:
    """Return id and object_key of pictures that lie on a pile."""
    p = schema.frame_pictures.c
    query = select(p.id, p.object_key).where(p.state == KEPT, p.hour == pile.hour, p.stratum == pile.stratum)
    return connection.execute(query.order_by(p.id).limit(limit)).all()


def shared_keys(connection: Connection, ids: Sequence[int], keys: Collection[str]) -> set[str]:
    """Return which objects are also those of other pictures than `ids`: equal frames have one object."""
    p = schema.frame_pictures.c
    shared: set[str] = set()
    for part in parts(sorted(keys)):
        query = select(p.id, p.object_key).where(p.object_key.in_(part), p.state == KEPT)
        shared |= {row.object_key for row in connection.execute(query) if row.id not in set(ids)}
    return shared


def forget(connection: Connection, ids: Sequence[int], value: str, reason: str) -> None:
    """Forget pictures that have been removed, and count them; heat maps go too, unless the crops are still there."""
    table, d, p = schema.frame_pictures, schema.defects, schema.pictures
    for part in parts(ids):
        frames = list(connection.scalars(select(table.c.frame_id).where(table.c.id.in_(part))))
        connection.execute(delete(table).where(table.c.id.in_(part)))
        has_crops = select(p.c.defect_id).where(p.c.defect_id == d.c.id, p.c.held.is_(False)).exists()
        emptied = update(d).where(d.c.frame_id.in_(frames), ~has_crops)
        connection.execute(emptied.values(heatmap=b"", heatmap_height=0, heatmap_width=0))
    add_to_fact(connection, f"forgotten frames {value} {reason}", len(ids))


def forget_lost(connection: Connection, before_ns: int) -> None:
    """Forget a slice of the frames that could not be kept and were captured before `before_ns`; they are counted."""
    table = schema.frame_pictures
    old = select(table.c.id).where(table.c.state == LOST, table.c.hour < before_ns // HOUR_NS).limit(LOST_SLICE)
    connection.execute(delete(table).where(table.c.id.in_(old)))


def kept(store: Store, frame_ids: Sequence[str]) -> list[Any]:
    """Return the pictures of some frames that are kept."""
    table = schema.frame_pictures
    with store.reading() as connection:
        return [
            row
            for part in parts(frame_ids)
            for row in connection.execute(select(table).where(table.c.state == KEPT, table.c.frame_id.in_(part)))
        ]


def by_frame(connection: Connection, frame_id: str) -> Any:
    """Return the row of a frame, None when it was never chosen."""
    table = schema.frame_pictures
    return connection.execute(select(table).where(table.c.frame_id == frame_id)).one_or_none()
