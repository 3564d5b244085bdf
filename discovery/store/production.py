"""Where frames come from in production: lot and shift, and the look-alike groups that were seen.

Counts of frames are kept by lot, so the number of lots is limited: of the lots that are new in an hour of capture the
first LOTS_AN_HOUR are counted by name, and frames of the others as OTHER_LOTS. Frames, defects and parts keep the name
of their lot in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from discovery.shifts import Calendar, Shift
from discovery.store import schema
from discovery.store.database import HOUR_NS, greatest, insert, parts, stamp
from flawline.messages import Verdict

LOTS_AN_HOUR = 100
"""Lots that can become known within an hour. A judgement, not measured: a lot lasts minutes to days, and the number of
rows of `verdict_minutes` grows with it only where lots change within a minute."""

OTHER_LOTS = "(other)"


@dataclass(frozen=True)
class Origin:
    """The lot as it is counted, '' for none, and the shift of a frame."""

    lot: str
    shift: Shift

    def columns(self) -> dict[str, str]:
        """Return the columns that counts have."""
        return {"lot": self.lot, **shift_columns(self.shift)}


def shift_columns(shift: Shift) -> dict[str, str]:
    """Return the columns of a shift."""
    return {"shift": shift.name, "shift_day": shift.day}


def origins(connection: Connection, verdicts: Sequence[Verdict], calendar: Calendar) -> dict[str, Origin]:
    """Return the origin of each frame by its id, and note the lots."""
    counted = _note_lots(connection, verdicts)
    return {
        verdict.frame_id: Origin(counted[verdict.lot] if verdict.lot else "", calendar.at(verdict.captured_at))
        for verdict in verdicts
    }


def counted_lots(connection: Connection, lots: Iterable[str]) -> dict[str, str]:
    """Return the name under which each lot is counted, as far as lots are known by now."""
    table = schema.lots.c
    counted = {lot: OTHER_LOTS if lot else "" for lot in lots}
    for part in parts(sorted(counted)):
        counted |= {lot: lot for lot in connection.scalars(select(table.lot).where(table.lot.in_(part)))}
    return counted


def _note_lots(connection: Connection, verdicts: Sequence[Verdict]) -> Mapping[str, str]:
    """Let lots become known, and return the name under which each is counted."""
    table = schema.lots
    spans: dict[str, tuple[int, int]] = {}
    for verdict in verdicts:
        if verdict.lot:
            first, last = spans.get(verdict.lot, (verdict.captured_at, verdict.captured_at))
            spans[verdict.lot] = min(first, verdict.captured_at), max(last, verdict.captured_at)
    counted = {lot: name for lot, name in counted_lots(connection, spans).items() if name == lot}
    room: dict[int, int] = {}
    for lot in spans.keys() - counted.keys():
        hour = spans[lot][0] // HOUR_NS
        if hour not in room:
            known = connection.scalar(select(func.count()).select_from(table).where(table.c.hour == hour))
            room[hour] = LOTS_AN_HOUR - int(known or 0)
        room[hour] -= 1
        counted[lot] = lot if room[hour] >= 0 else OTHER_LOTS
    larger, smaller = greatest(connection), func.least if connection.dialect.name == "postgresql" else func.min
    for lot in sorted(lot for lot, name in counted.items() if name == lot):
        first, last = spans[lot]
        row = {"lot": lot, "hour": first // HOUR_NS, "first_at": stamp(first), "last_at": stamp(last)}
        statement = insert(connection, table).values(row)
        new = statement.excluded
        changes = {"first_at": smaller(table.c.first_at, new.first_at), "last_at": larger(table.c.last_at, new.last_at)}
        connection.execute(statement.on_conflict_do_update(index_elements=["lot"], set_=changes))
    return counted


def count_groups(connection: Connection, verdicts: Sequence[Verdict]) -> None:
    """Count frames into the look-alike groups of their models."""
    table = schema.groups
    frames: Counter[tuple[str, int]] = Counter()
    latest: dict[tuple[str, int], int] = {}
    for verdict in verdicts:
        key = verdict.model_version, verdict.group
        frames[key] += 1
        latest[key] = max(latest.get(key, 0), verdict.captured_at)
    for (model, group), count in sorted(frames.items()):
        at = stamp(latest[model, group])
        row = {"model_version": model, "group_id": group, "frames": count, "first_at": at, "last_at": at}
        statement = insert(connection, table).values(row)
        changes = {
            "frames": table.c.frames + statement.excluded.frames,
            "last_at": greatest(connection)(table.c.last_at, statement.excluded.last_at),
        }
        connection.execute(statement.on_conflict_do_update(index_elements=["model_version", "group_id"], set_=changes))


def forget_lots(connection: Connection, before_ns: int) -> None:
    """Forget the lots without a capture since `before_ns`; counts keep their names."""
    connection.execute(schema.lots.delete().where(schema.lots.c.last_at < stamp(before_ns)))


def rename_group(connection: Connection, model_version: str, group_id: int, name: str | None) -> None:
    """Write the present name of a group."""
    g = schema.groups
    here = (g.c.model_version == model_version) & (g.c.group_id == group_id)
    connection.execute(update(g).where(here).values(name=name))
