"""The verdicts on parts, from the verdicts on their frames: each inspection of a part is a row.

A frame that comes late joins the inspection of its time, also when that has views missing since long, and can make one
of two. What is written depends on the frames that came and not on their order.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from discovery.part_verdict import Inspection, View, joined, of_verdict
from discovery.shifts import Calendar
from discovery.store import schema
from discovery.store.database import HOUR_NS, parts, stamp, upsert
from discovery.store.production import counted_lots, shift_columns
from flawline.messages import Decision, Verdict


def take_in(
    connection: Connection, verdicts: Sequence[Verdict], expected: Sequence[str], gap_ns: int, calendar: Calendar
) -> None:
    """Add new verdicts to the inspections of their parts; frames that name no part are passed over."""
    by_part: dict[tuple[str, str], list[Inspection]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.part:
            by_part[verdict.part, verdict.lot or ""].append(of_verdict(verdict))
    table = schema.parts
    fresh: list[dict[str, Any]] = []
    for (part, lot), frames in by_part.items():
        came = joined(frames, gap_ns)
        near = (
            (table.c.part == part)
            & (table.c.lot == lot)
            & (table.c.last_ns >= came[0].first_ns - gap_ns)
            & (table.c.first_ns <= came[-1].last_ns + gap_ns)
        )
        stored = connection.execute(select(table).where(near).order_by(table.c.id)).all()
        known = [inspection_of(row) for row in stored]
        left = {inspection: row.id for inspection, row in zip(map(_key, known), stored, strict=True)}
        for inspection in joined([*known, *came], gap_ns):
            if left.pop(_key(inspection), None) is not None:
                continue  # it is as it was
            inside = [
                row.id for row in stored if inspection.first_ns <= row.first_ns and row.last_ns <= inspection.last_ns
            ]
            row = _row(part, lot, inspection, expected, calendar)
            if not inside:
                fresh.append(row)
                continue
            connection.execute(update(table).where(table.c.id == inside[0]).values(row))
            if inside[1:]:
                connection.execute(delete(table).where(table.c.id.in_(inside[1:])))
    if fresh:
        connection.execute(table.insert(), fresh)


def _key(inspection: Inspection) -> tuple[int, int, int]:
    return inspection.first_ns, inspection.last_ns, inspection.frames


def inspection_of(row: Any) -> Inspection:
    """Return the inspection of a row."""
    views = {
        name: View(**view | {"decision": Decision(view["decision"])}) for name, view in json.loads(row.views).items()
    }
    return Inspection(row.first_ns, row.last_ns, row.frames, views)


def _row(part: str, lot: str, inspection: Inspection, expected: Sequence[str], calendar: Calendar) -> dict[str, Any]:
    worst = inspection.worst
    return {
        "part": part,
        "lot": lot,
        **shift_columns(calendar.at(inspection.first_ns)),
        "first_at": stamp(inspection.first_ns),
        "first_ns": inspection.first_ns,
        "last_ns": inspection.last_ns,
        "frames": inspection.frames,
        "decision": str(worst.decision),
        "p_value": inspection.p_value,
        "frame_id": worst.frame_id,
        "seen": len(inspection.views),
        "missing": ",".join(inspection.missing(expected)),
        "views": json.dumps({name: asdict(view) for name, view in sorted(inspection.views.items())}),
    }


def forget(connection: Connection, before_ns: int, limit: int) -> int:
    """Count a slice of the inspections that ended before `before_ns` and remove them; return how many there were."""
    p = schema.parts.c
    query = select(p.id, p.first_ns, p.lot, p.shift, p.shift_day, p.decision, p.missing).where(p.last_ns < before_ns)
    rows = connection.execute(query.order_by(p.id).limit(limit)).all()
    counted = counted_lots(connection, [row.lot for row in rows])
    counts: dict[tuple[Any, ...], int] = defaultdict(int)
    for row in rows:
        counts[row.first_ns // HOUR_NS, counted[row.lot], row.shift, row.shift_day, row.decision, not row.missing] += 1
    names = ("hour", "lot", "shift", "shift_day", "decision", "is_complete")
    for key, count in sorted(counts.items()):
        total = dict(zip(names, key, strict=True)) | {"inspections": count}
        upsert(connection, schema.part_totals, total, add=("inspections",))
    for ids in parts([row.id for row in rows]):
        connection.execute(delete(schema.parts).where(p.id.in_(ids)))
    return len(rows)


def count(connection: Connection) -> int:
    """Return how many inspections are stored one by one."""
    return int(connection.scalar(select(func.count()).select_from(schema.parts)) or 0)
