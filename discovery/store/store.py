"""The store of discovery: what is taken in is counted once, whatever is delivered twice and whenever it dies.

The tables are described in `discovery/store/schema.py`. Everything that a batch of records changes, and how far the
topics have been read, is one transaction: the positions here, not those at the broker, say where reading goes on.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, literal, select, update

from discovery.frame_class import frame_class
from discovery.shifts import NO_SHIFTS, Calendar
from discovery.store import first_verdicts, part_verdicts, production, schema
from discovery.store.database import HOUR_NS, MINUTE_NS, Database, greatest, insert, parts, stamp, upsert
from discovery.store.production import Origin, shift_columns
from flawline.intervals import IntervalSet
from flawline.messages import ClassEvent, ClassState, Decision, Defect, DefectRegion, Transition, Verdict

WITHDRAWN = "withdrawn"
"""The reason that counts defects of frames that their first verdict accepts."""

Position = tuple[str, int]


@dataclass(frozen=True)
class TakenDefect:
    """A defect with the class that each of its regions was given on arrival, None for those without one."""

    defect: Defect
    classes: tuple[str | None, ...]


@dataclass(frozen=True)
class Batch:
    """Records that are taken in together, and the next offset of every partition they came from."""

    verdicts: Sequence[Verdict] = ()
    defects: Sequence[TakenDefect] = ()
    rejections: Sequence[tuple[str, str]] = ()
    positions: Mapping[Position, int] | None = None


@dataclass(frozen=True)
class Taken:
    """What of a batch was new; `withdrawn` defects are of frames that their first verdict accepts."""

    verdicts: int
    defects: tuple[Defect, ...]
    regions: int
    withdrawn: int = 0


@dataclass(frozen=True)
class LineRules:
    """What is known of the line: its shifts, the views of a part, and the longest pause within an inspection."""

    calendar: Calendar = NO_SHIFTS
    views: tuple[str, ...] = ()
    gap_ns: int = 60_000_000_000


class Store(Database):
    """Defects, classes, their events and the roll-ups."""

    def positions(self) -> dict[Position, int]:
        """Return the next offset to read, by topic and partition."""
        table = schema.positions
        with self.reading() as connection:
            return {(row.topic, row.partition): row.next_offset for row in connection.execute(select(table))}

    def ingest(
        self,
        batch: Batch,
        on_verdicts: Callable[[Connection, Sequence[Verdict], Mapping[str, Origin]], None] = lambda *_: None,
        rules: LineRules = LineRules(),
    ) -> Taken:
        """Take a batch in, as one transaction; frames that are known already change nothing.

        `on_verdicts` gets the verdicts that are new, and their origins by frame id, within the transaction.
        """
        with self.transaction() as connection:
            verdicts = _new_verdicts(connection, batch.verdicts)
            origins = production.origins(connection, verdicts, rules.calendar)
            on_verdicts(connection, verdicts, origins)
            _add_to_minutes(connection, verdicts, origins)
            _add_to_hours(connection, verdicts, origins)
            production.count_groups(connection, verdicts)
            part_verdicts.take_in(connection, verdicts, rules.views, rules.gap_ns, rules.calendar)
            first_verdicts.remember(connection, verdicts)
            withdrawn = first_verdicts.settle(connection, verdicts)
            defects, count, refused = _add_defects(connection, batch.defects, rules.calendar)
            withdrawn += refused
            now = stamp(self.utc_ns())
            for reason, error in [*batch.rejections, *((WITHDRAWN, frame_id) for frame_id in withdrawn)]:
                row = {"reason": reason, "records": 1, "last_error": error, "last_at": now}
                upsert(connection, schema.rejections, row, add=("records",))
            for (topic, partition), offset in (batch.positions or {}).items():
                row = {"topic": topic, "partition": partition, "next_offset": offset}
                upsert(connection, schema.positions, row)
        return Taken(len(verdicts), defects, count, len(withdrawn))

    def outbox(self, limit: int = 1000) -> list[tuple[int, ClassEvent]]:
        """Return events that are still to be published, oldest first, with their row ids."""
        table = schema.class_events
        query = select(table).where(table.c.published.is_(False)).order_by(table.c.id).limit(limit)
        with self.reading() as connection:
            return [(row.id, event_of(row)) for row in connection.execute(query)]

    def mark_published(self, rows: Iterable[int]) -> None:
        """Say that events have been acknowledged by the broker."""
        table = schema.class_events
        with self.transaction() as connection:
            for part in parts(list(rows)):
                connection.execute(update(table).where(table.c.id.in_(part)).values(published=True))

    def assignments(self) -> dict[str, str]:
        """Return the class id of every defective frame that has a class, by frame id."""
        table = schema.defects
        query = select(table.c.frame_id, table.c.class_id).where(table.c.class_id.is_not(None))
        with self.reading() as connection:
            return {row.frame_id: row.class_id for row in connection.execute(query)}

    def rejections(self) -> dict[str, int]:
        """Return the counts of unusable records by reason."""
        with self.reading() as connection:
            return {row.reason: row.records for row in connection.execute(select(schema.rejections))}


def add_event(connection: Connection, message: ClassEvent) -> None:
    """Put an event into the history and the outbox; one that is there already stays as it is."""
    row = {
        "event_id": message.event_id,
        "class_id": message.class_id,
        "transition": str(message.transition),
        "at": stamp(message.at),
        "at_ns": message.at,
        "round": message.round,
        "state": str(message.state),
        "members": message.members,
        "name": message.name,
        "severity": message.severity,
        "parents": ",".join(message.parents),
        "merged_into": message.merged_into,
        "who": message.who,
        "why": message.why,
        "selected": message.selected,
    }
    connection.execute(insert(connection, schema.class_events).values(row).on_conflict_do_nothing())


def event_of(row: Any) -> ClassEvent:
    """Return the message of a row of `class_events`."""
    return ClassEvent(
        event_id=row.event_id,
        class_id=row.class_id,
        transition=Transition(row.transition),
        at=row.at_ns,
        round=row.round,
        state=ClassState(row.state),
        members=row.members,
        name=row.name,
        severity=row.severity,
        parents=tuple(row.parents.split(",")) if row.parents else (),
        merged_into=row.merged_into,
        who=row.who,
        why=row.why,
        selected=row.selected,
    )


def refresh_frame_classes(connection: Connection, defect_ids: Iterable[int]) -> None:
    """Derive the class of frames again from those of their regions."""
    d, r = schema.defects, schema.regions
    for part in parts(sorted(set(defect_ids))):
        query = (
            select(d.c.id, d.c.class_id.label("known"), r.c.class_id, r.c.peak)
            .join_from(d, r, r.c.defect_id == d.c.id)
            .where(d.c.id.in_(part))
            .order_by(d.c.id, r.c.position)
        )
        frames: dict[int, list[Any]] = defaultdict(list)
        for row in connection.execute(query):
            frames[row.id].append(row)
        for defect_id, rows in frames.items():
            class_now = frame_class([row.class_id for row in rows], [row.peak for row in rows])
            if class_now != rows[0].known:
                connection.execute(update(d).where(d.c.id == defect_id).values(class_id=class_now))


def _new_verdicts(connection: Connection, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return verdicts of frames that have not been counted, and mark them as counted.

    A frame counts once, also when a redelivery after a change of model gives it a second verdict.
    """
    table = schema.sequences_seen
    by_epoch: dict[tuple[str, int], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_epoch[verdict.camera, verdict.epoch].append(verdict)
    fresh: list[Verdict] = []
    for (camera, epoch), members in by_epoch.items():
        low = min(verdict.sequence for verdict in members)
        high = max(verdict.sequence for verdict in members)
        # Ranges that overlap or touch what has come; the others cannot change.
        here = (table.c.camera == camera) & (table.c.epoch == epoch)
        near = here & (table.c.last >= low - 1) & (table.c.first <= high + 1)
        known = IntervalSet((row.first, row.last) for row in connection.execute(select(table).where(near)))
        before = len(known)
        for verdict in members:
            if verdict.sequence not in known:
                known.add(verdict.sequence)
                fresh.append(verdict)
        if len(known) > before:
            connection.execute(table.delete().where(near))
            rows = [{"camera": camera, "epoch": epoch, "first": a, "last": b} for a, b in known.ranges()]
            connection.execute(table.insert(), rows)
    return fresh


def _add_to_minutes(connection: Connection, verdicts: Iterable[Verdict], origins: Mapping[str, Origin]) -> None:
    scores: dict[tuple[int, str, int, str, str, Origin], list[float]] = defaultdict(list)
    for verdict in verdicts:
        minute, decision = verdict.captured_at // MINUTE_NS, str(verdict.decision)
        origin = origins[verdict.frame_id]
        scores[minute, verdict.camera, verdict.group, decision, verdict.model_version, origin].append(verdict.score)
    for key, values in sorted(scores.items(), key=lambda item: (*item[0][:5], item[0][5].lot)):
        minute, camera, group, decision, model_version, origin = key
        row = {
            "minute": stamp(minute * MINUTE_NS),
            "camera": camera,
            "group_id": group,
            "decision": decision,
            "model_version": model_version,
            **origin.columns(),
            "frames": len(values),
            "score_sum": sum(values),
            "score_max": max(values),
        }
        upsert(connection, schema.verdict_minutes, row, add=("frames", "score_sum"), highest=("score_max",))


def _add_to_hours(connection: Connection, verdicts: Iterable[Verdict], origins: Mapping[str, Origin]) -> None:
    places = (
        (verdict.captured_at // HOUR_NS, verdict.camera, verdict.group, str(verdict.decision), verdict.model_version,
         origins[verdict.frame_id])
        for verdict in verdicts
    )  # fmt: skip
    for place, frames in sorted(Counter(places).items(), key=lambda item: (*item[0][:5], item[0][5].lot)):
        hour, camera, group, decision, model_version, origin = place
        row = {
            "hour": stamp(hour * HOUR_NS),
            "camera": camera,
            "group_id": group,
            "decision": decision,
            "model_version": model_version,
            **origin.columns(),
            "frames": frames,
        }
        upsert(connection, schema.verdict_hours, row, add=("frames",))


def _add_defects(
    connection: Connection, taken: Sequence[TakenDefect], calendar: Calendar
) -> tuple[tuple[Defect, ...], int, tuple[str, ...]]:
    """Add defects of new frames; return them, the number of their regions, and the frames that are accepted."""
    table = schema.defects
    fresh: dict[str, TakenDefect] = {}
    for item in taken:
        fresh.setdefault(item.defect.frame_id, item)
    for part in parts(list(fresh)):
        for known in connection.scalars(select(table.c.frame_id).where(table.c.frame_id.in_(part))).all():
            del fresh[known]
    wins = first_verdicts.decisions(connection, [item.defect for item in fresh.values()])
    accepted = tuple(frame_id for frame_id, decision in wins.items() if decision is Decision.ACCEPT)
    for frame_id in accepted:
        del fresh[frame_id]
    survivors = _survivors(connection, {name for item in fresh.values() for name in item.classes if name})
    added, pictures, count = [], [], 0
    for item in fresh.values():
        defect, classes = item.defect, [survivors[name] if name else None for name in item.classes]
        frame = frame_class(classes, [region.peak for region in defect.regions])
        row = _defect_row(defect, wins.get(defect.frame_id, defect.decision), frame)
        row |= shift_columns(calendar.at(defect.captured_at))
        key = connection.execute(table.insert().values(row)).inserted_primary_key
        assert key is not None
        rows = [
            _region_row(key[0], position, region, defect.embedding_version, name)
            for position, (region, name) in enumerate(zip(defect.regions, classes, strict=True))
        ]
        if rows:
            connection.execute(schema.regions.insert(), rows)
        pictures.append(_picture_row(key[0], defect, row["decision"]))
        for name in classes:
            if name is not None:
                add_members(connection, name, defect.captured_at)
        added.append(defect)
        count += len(rows)
    if pictures:
        connection.execute(schema.pictures.insert(), pictures)
    return tuple(added), count, accepted


def _survivors(connection: Connection, names: set[str]) -> dict[str, str]:
    """Return each class, or the class into which it has been merged since it was read."""
    table = schema.classes
    query = select(table.c.id, table.c.merged_into).where(table.c.merged_into.is_not(None))
    merged = {row.id: row.merged_into for row in connection.execute(query)}
    result = {}
    for name in names:
        survivor = name
        while survivor in merged:
            survivor = merged[survivor]
        result[name] = survivor
    return result


def add_members(connection: Connection, name: str, captured_ns: int, count: int = 1) -> None:
    """Count regions into a class, the latest captured at `captured_ns`."""
    table = schema.classes
    connection.execute(
        update(table)
        .where(table.c.id == name)
        .values(
            members=table.c.members + count,
            last_seen_at=greatest(connection)(table.c.last_seen_at, literal(stamp(captured_ns), schema.UtcStamp())),
        )
    )


def _defect_row(defect: Defect, decision: Decision, frame: str | None) -> dict[str, Any]:
    height, width = defect.heatmap.shape[:2]
    return {
        "frame_id": defect.frame_id,
        "camera": defect.camera,
        "epoch": defect.epoch,
        "sequence": defect.sequence,
        "captured_at": stamp(defect.captured_at),
        "captured_ns": defect.captured_at,
        "minute": stamp(defect.captured_at // MINUTE_NS * MINUTE_NS),
        "group_id": defect.group,
        "score": defect.score,
        "p_value": defect.p_value,
        "decision": str(decision),
        "height": defect.height,
        "width": defect.width,
        "model_version": defect.model_version,
        "part": defect.part,
        "lot": defect.lot,
        "heatmap": defect.heatmap.array().astype("<f2").tobytes(),
        "heatmap_height": height,
        "heatmap_width": width,
        "class_id": frame,
    }


def _picture_row(defect_id: int, defect: Defect, decision: str) -> dict[str, Any]:
    size_bytes = 2 * math.prod(defect.heatmap.shape) + sum(len(item.crop) + len(item.mask) for item in defect.regions)
    hour = defect.captured_at // HOUR_NS
    return {"defect_id": defect_id, "hour": hour, "decision": decision, "size_bytes": size_bytes}


def _region_row(defect_id: int, position: int, region: DefectRegion, version: str, name: str | None) -> dict[str, Any]:
    return {
        "defect_id": defect_id,
        "position": position,
        **dict(zip(("x", "y", "width", "height"), region.box, strict=True)),
        "area_px": region.area_px,
        "peak": region.peak,
        **dict(zip(("crop_x", "crop_y", "crop_width", "crop_height"), region.crop_box, strict=True)),
        "mask": region.mask,
        "crop": region.crop,
        "embedding": region.embedding.array().astype("<f2").tobytes(),
        "embedding_version": version,
        "class_id": name,
        "assigned_by": "stream" if name else None,
    }
