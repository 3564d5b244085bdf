"""What people say of single frames: real defect, false alarm, or unsure; who, when and why. It can be taken back.

Nothing is ever overwritten: the judgement of a frame is the latest that was not taken back. A judgement holds the facts
of its frame, so that it outlives the picture. A frame that was offered (the queue of alarms, the audit of accepted
frames) counts in the rates; one that somebody looked up does not, because nobody looks up frames at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, delete, func, select, tuple_, update

from discovery.pictures.policy import ALARMS, AUDITED, Stratum
from discovery.quality_rates import Judged
from discovery.store import schema
from discovery.store.database import HOUR_NS, parts, stamp
from discovery.store.filters import ANY, Filter, limited
from discovery.store.frame_pictures import KEPT, by_frame
from discovery.store.store import Store
from flawline.errors import UsageError
from flawline.messages import Decision, Judgement, JudgementEvent

WHO_LENGTH, WHY_LENGTH = 64, 500


class Queue(StrEnum):
    """What is offered to be judged."""

    ALARMS = "alarms"
    """Frames that were not accepted, the latest first."""
    AUDIT = "audit"
    """Accepted frames, near misses and the random sample, in random order."""

    @property
    def strata(self) -> tuple[Stratum, ...]:
        """The strata of the frames that it offers."""
        return ALARMS if self is Queue.ALARMS else AUDITED


def judge(
    store: Store, frame_id: str, judgement: str, *, who: str, why: str | None = None, is_offered: bool = False
) -> dict[str, Any]:
    """Note what a person says of a frame that has a picture, and return the entry. Raises UsageError."""
    if judgement not in list(Judgement):
        raise UsageError(f"judgement {judgement!r}: one of {', '.join(Judgement)}")
    if not 1 <= len(who) <= WHO_LENGTH or not who.isprintable():
        raise UsageError(f"who {who!r}: give a name of 1 to {WHO_LENGTH} printable characters")
    if why is not None and (len(why) > WHY_LENGTH or not why.isprintable()):
        raise UsageError(f"why: at most {WHY_LENGTH} printable characters")
    with store.transaction() as connection:
        frame = by_frame(connection, frame_id)
        if frame is None or frame.state != KEPT:
            raise UsageError(f"frame {frame_id}: it has no picture, so it cannot be judged")
        row = {
            "frame_id": frame_id,
            "at": stamp(store.utc_ns()),
            "who": who,
            "judgement": str(judgement),
            "why": why or None,
            "is_offered": is_offered,
        }
        names = ("camera", "captured_at", "captured_ns", "stratum", "probability", "decision", "score", "p_value",
                 "model_version", "shift", "shift_day")  # fmt: skip
        row |= {name: getattr(frame, name) for name in names} | {"lot": frame.lot or ""}
        key = connection.execute(schema.judgements.insert().values(row)).inserted_primary_key
        assert key is not None
        _announce(store, connection, int(key[0]), str(judgement), who, why)
        return _entry(connection, int(key[0]))


def undo(store: Store, *, who: str, frame_id: str | None = None) -> dict[str, Any]:
    """Take back the last judgement on a frame, or else the last that `who` gave, and return it. Raises UsageError."""
    j = schema.judgements
    of = j.c.frame_id == frame_id if frame_id is not None else j.c.who == who
    with store.transaction() as connection:
        last = connection.scalar(select(func.max(j.c.id)).where(of, j.c.undone_at.is_(None)))
        if last is None:
            raise UsageError(f"nothing to take back {f'on frame {frame_id}' if frame_id else f'of {who}'}")
        connection.execute(
            update(j).where(j.c.id == last).values(undone_at=stamp(store.utc_ns()), undone_by=who)
        )  # fmt: skip
        entry = _entry(connection, last)
        before = select(j.c.judgement).where(j.c.frame_id == entry["frame"], j.c.undone_at.is_(None))
        holds = connection.scalar(before.order_by(j.c.id.desc()).limit(1))
        _announce(store, connection, last, holds, who, None)
        return entry


def _announce(
    store: Store, connection: Connection, judgement_id: int, holds: str | None, who: str, why: str | None
) -> None:
    """Put what holds of a frame from now on into the outbox."""
    row = {"judgement_id": judgement_id, "judgement": holds, "who": who, "at_ns": store.utc_ns(), "why": why or None}
    connection.execute(schema.judgement_events.insert().values(row))


def outbox(store: Store, limit: int = 1000) -> list[tuple[int, JudgementEvent]]:
    """Return the events that are still to be published, the oldest first, with their row ids."""
    e, j = schema.judgement_events, schema.judgements
    query = (
        select(e, j.c.frame_id, j.c.camera, j.c.captured_ns, j.c.decision, j.c.model_version, j.c.is_offered)
        .join_from(e, j, j.c.id == e.c.judgement_id)
        .order_by(e.c.id)
        .limit(limit)
    )
    with store.reading() as connection:
        return [(row.id, _event(row)) for row in connection.execute(query)]


def _event(row: Any) -> JudgementEvent:
    return JudgementEvent(
        event_id=f"{row.frame_id}:j{row.at_ns}",
        frame_id=row.frame_id,
        camera=row.camera,
        captured_at=row.captured_ns,
        decision=Decision(row.decision),
        model_version=row.model_version,
        judgement=Judgement(row.judgement) if row.judgement else None,
        is_offered=row.is_offered,
        who=row.who,
        at=row.at_ns,
        why=row.why,
    )


def published(store: Store, rows: Sequence[int]) -> None:
    """Forget events that the broker has acknowledged."""
    e = schema.judgement_events
    with store.transaction() as connection:
        for part in parts(rows):
            connection.execute(delete(e).where(e.c.id.in_(part)))


def _entry(connection: Connection, judgement_id: int) -> dict[str, Any]:
    j = schema.judgements
    return as_dict(connection.execute(select(j).where(j.c.id == judgement_id)).one())


def as_dict(row: Any) -> dict[str, Any]:
    """Return a judgement with the keys that `flawline judgements list --json` prints."""
    return {
        "frame": row.frame_id,
        "judgement": row.judgement,
        "who": row.who,
        "at": row.at.isoformat(),
        "why": row.why,
        "camera": row.camera,
        "captured_at": row.captured_at.isoformat(),
        "stratum": row.stratum,
        "is_offered": row.is_offered,
        "decision": row.decision,
        "score": row.score,
        "p_value": row.p_value,
        "model_version": row.model_version,
        "lot": row.lot or None,
        "shift": row.shift or None,
        "shift_day": row.shift_day or None,
    }


def latest(
    store: Store,
    wanted: Filter = ANY,
    limit: int | None = None,
    judgement: str | None = None,
    before: int | None = None,
) -> list[Any]:
    """Return the judgements that hold, the latest first; only ids below `before`, if it is set."""
    j = schema.judgements
    query = _current(select(j), wanted).order_by(j.c.id.desc()).limit(limit)
    if judgement is not None:
        query = query.where(j.c.judgement == judgement)
    if before is not None:
        query = query.where(j.c.id < before)
    with store.reading() as connection:
        return list(connection.execute(query))


def scored(store: Store, model_version: str, wanted: Filter = ANY) -> list[Any]:
    """Return the judgements that hold of a model's frames, with group and class as far as the store still knows them.

    The latest come first.
    """
    j, f, d, c = schema.judgements, schema.frame_pictures, schema.defects, schema.classes
    group = func.coalesce(d.c.group_id, f.c.group_id).label("group_id")
    query = (
        select(j, group, d.c.class_id, c.c.name.label("class_name"))
        .select_from(j)
        .join(d, d.c.frame_id == j.c.frame_id, isouter=True)
        .join(f, f.c.frame_id == j.c.frame_id, isouter=True)
        .join(c, c.c.id == d.c.class_id, isouter=True)
        .where(j.c.model_version == model_version)
        .order_by(j.c.id.desc())
    )
    with store.reading() as connection:
        return list(connection.execute(_current(query, wanted)))


def of_frame(store: Store, frame_id: str) -> list[Any]:
    """Return all that was ever said of a frame, the latest first."""
    j = schema.judgements
    with store.reading() as connection:
        return list(connection.execute(select(j).where(j.c.frame_id == frame_id).order_by(j.c.id.desc())))


def by_person(store: Store, wanted: Filter = ANY) -> dict[str, dict[str, int]]:
    """Return how many judgements that hold are of each person: {who: {judgement: count}}."""
    j = schema.judgements
    query = _current(select(j.c.who, j.c.judgement, func.count()), wanted).group_by(j.c.who, j.c.judgement)
    counts: dict[str, dict[str, int]] = {}
    with store.reading() as connection:
        for who, judgement, count in connection.execute(query.order_by(j.c.who)):
            counts.setdefault(who, {})[judgement] = int(count)
    return counts


def _current(query: Select[Any], wanted: Filter) -> Select[Any]:
    """Return a query of judgements, limited to the one of each frame that holds."""
    j = schema.judgements
    later = schema.judgements.alias()
    is_last = (
        ~select(later.c.id)
        .where(later.c.frame_id == j.c.frame_id, later.c.id > j.c.id, later.c.undone_at.is_(None))
        .exists()
    )
    return limited(query.where(j.c.undone_at.is_(None), is_last), j.c, wanted)


# The queue


def _unjudged(query: Select[Any], wanted: Filter) -> Select[Any]:
    """Return a query of pictures, limited to those that are kept and have no judgement."""
    f, j = schema.frame_pictures.c, schema.judgements.c
    is_judged = select(j.id).where(j.frame_id == f.frame_id, j.undone_at.is_(None)).exists()
    return limited(query.where(f.state == KEPT, ~is_judged), f, wanted)


def offered(store: Store, queue: Queue, wanted: Filter = ANY, limit: int = 50, after: str | None = None) -> list[Any]:
    """Return frames to be judged, as `picture` does: alarms from the latest on, audits in random order.

    With `after`, only those that come behind this frame in that order.
    """
    f = schema.frame_pictures.c
    order = (f.captured_ns.desc(), f.id.desc()) if queue is Queue.ALARMS else (f.chance, f.id)
    query = _pictures().where(f.stratum.in_([str(stratum) for stratum in queue.strata])).order_by(*order).limit(limit)
    with store.reading() as connection:
        last = None if after is None else by_frame(connection, after)
        if last is not None and queue is Queue.ALARMS:
            query = query.where(tuple_(f.captured_ns, f.id) < tuple_(last.captured_ns, last.id))
        elif last is not None:
            query = query.where(tuple_(f.chance, f.id) > tuple_(last.chance, last.id))
        return list(connection.execute(_unjudged(query, wanted)))


def picture(store: Store, frame_id: str) -> Any:
    """Return a frame that has a picture, with its defect's id, heat map and class; None for another one."""
    f = schema.frame_pictures.c
    with store.reading() as connection:
        return connection.execute(_pictures().where(f.frame_id == frame_id, f.state == KEPT)).one_or_none()


def pictures(store: Store, before: int | None, limit: int, wanted: Filter = ANY) -> list[Any]:
    """Return frames that have a picture, as `picture` does, the latest ids first; only below `before`, if it is set."""
    f = schema.frame_pictures.c
    query = limited(_pictures().where(f.state == KEPT), f, wanted).order_by(f.id.desc()).limit(limit)
    with store.reading() as connection:
        return list(connection.execute(query if before is None else query.where(f.id < before)))


def _pictures() -> Select[Any]:
    f, d, c = schema.frame_pictures, schema.defects, schema.classes
    return (
        select(f, d.c.id.label("defect_id"), func.length(d.c.heatmap).label("heat_bytes"), d.c.class_id,
               c.c.name.label("class_name"))
        .select_from(f)
        .join(d, d.c.frame_id == f.c.frame_id, isouter=True)
        .join(c, c.c.id == d.c.class_id, isouter=True)
    )  # fmt: skip


def backlogs(store: Store, wanted: Filter = ANY) -> dict[Queue, int]:
    """Return how many frames of each queue wait for a judgement."""
    f = schema.frame_pictures.c
    query = _unjudged(select(f.stratum, func.count()), wanted).group_by(f.stratum)
    with store.reading() as connection:
        counts = {row[0]: int(row[1]) for row in connection.execute(query)}
    return {queue: sum(counts.get(str(stratum), 0) for stratum in queue.strata) for queue in Queue}


def backlog(connection: Connection) -> int:
    """Return how many frames that were not accepted wait for a judgement."""
    f = schema.frame_pictures.c
    query = _unjudged(select(func.count()), Filter()).where(f.stratum.in_([str(stratum) for stratum in ALARMS]))
    return int(connection.scalar(query) or 0)


# The rates


def judged(store: Store, wanted: Filter = ANY) -> list[Judged]:
    """Return each stratum with its number of frames and the weights of its judged frames; the rates come from them.

    The times of `wanted` are widened to full hours, because the store counts frames by the hour. Its class, group, part
    and decision are ignored: an accepted frame has no class, and frames are not counted by the others.
    """
    h, j = schema.stratum_hours.c, schema.judgements.c
    since_ns = None if wanted.since_ns is None else wanted.since_ns // HOUR_NS * HOUR_NS
    until_ns = None if wanted.until_ns is None else -(-wanted.until_ns // HOUR_NS) * HOUR_NS
    totals = select(h.stratum, func.sum(h.frames)).group_by(h.stratum)
    if wanted.camera is not None:
        totals = totals.where(h.camera == wanted.camera)
    if since_ns is not None:
        totals = totals.where(h.hour >= since_ns // HOUR_NS)
    if until_ns is not None:
        totals = totals.where(h.hour < until_ns // HOUR_NS)
    for name in ("lot", "shift", "shift_day"):
        if (value := getattr(wanted, name)) is not None:
            totals = totals.where(getattr(h, name) == value)
    of_all = replace(
        wanted, class_id=None, stratum=None, decision=None, group=None, part=None, since_ns=since_ns, until_ns=until_ns
    )
    counts = _current(select(j.stratum, j.judgement, j.probability, func.count()), of_all)
    counts = counts.where(j.is_offered.is_(True)).group_by(j.stratum, j.judgement, j.probability)
    with store.reading() as connection:
        frames = {row[0]: int(row[1]) for row in connection.execute(totals)}
        rows = list(connection.execute(counts))

    def weights(stratum: Stratum, judgement: Judgement) -> tuple[tuple[float, int], ...]:
        return tuple(
            (1 / probability, int(count))
            for name, word, probability, count in rows
            if name == str(stratum) and word == str(judgement)
        )

    def unsure(stratum: Stratum) -> int:
        return sum(count for _, count in weights(stratum, Judgement.UNSURE))

    return [
        Judged(
            str(stratum),
            stratum.is_alarm,
            frames.get(str(stratum), 0),
            weights(stratum, Judgement.REAL),
            weights(stratum, Judgement.FALSE),
            unsure(stratum),
        )
        for stratum in (*ALARMS, *AUDITED)
    ]


def false_alarms(store: Store, wanted: Filter = ANY) -> Sequence[Any]:
    """Return the pictures of frames that were not accepted and are judged to show no defect, in order of capture."""
    f, j = schema.frame_pictures, schema.judgements
    query = (
        _current(select(f), wanted)
        .select_from(f)
        .join(j, j.c.frame_id == f.c.frame_id)
        .where(
            f.c.state == KEPT,
            j.c.judgement == str(Judgement.FALSE),
            f.c.stratum.in_([str(stratum) for stratum in ALARMS]),
        )
        .order_by(f.c.captured_ns, f.c.id)
    )
    with store.reading() as connection:
        return connection.execute(query).all()
