"""`flawline classes`: the classes and their histories as plain dicts, and what people may say about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select

from discovery.round.lineage import DefectClass
from discovery.store import assignment, decisions, registry, schema
from discovery.store import undo as way_back
from discovery.store.decision_records import find
from discovery.store.decisions import SEVERITIES
from discovery.store.pruning import frames_by_class
from discovery.store.store import Store, stamp

__all__ = [
    "SEVERITIES",
    "assign",
    "dismiss",
    "list_classes",
    "merge",
    "name",
    "restore",
    "set_severity",
    "show",
    "split",
    "undo",
]

HISTORY = 50
HIDDEN = ("merged", "dismissed")


def list_classes(store: Store, everything: bool = False) -> list[dict[str, Any]]:
    """Return every class, the largest first; merged, dismissed and emptied ones only with `everything`."""
    with store.reading() as connection:
        known = registry.load(connection)
        frames = frames_by_class(connection)
    shown = [entry for entry in known.classes if everything or (entry.state not in HIDDEN and entry.members)]
    return [
        _plain(entry, frames.get(entry.id, 0))
        for entry in sorted(shown, key=lambda entry: (-entry.members, entry.number))
    ]


def show(store: Store, reference: str) -> dict[str, Any]:
    """Return one class by id or name, with its lineage, events, audit trail and where it occurs."""
    d, parents, events, audit = schema.defects, schema.class_parents, schema.class_events, schema.audit
    with store.reading() as connection:
        known = registry.load(connection)
        by_id = {entry.id: entry for entry in known.classes}  # merged classes are shown, too
        entry = by_id.get(reference.upper()) or find(known, reference)
        frames = frames_by_class(connection).get(entry.id, 0)
        places = connection.execute(
            select(d.c.camera, d.c.group_id, func.count().label("frames"))
            .where(d.c.class_id == entry.id)
            .group_by(d.c.camera, d.c.group_id)
            .order_by(func.count().desc(), d.c.camera, d.c.group_id)
        ).all()
        origin = connection.scalars(select(parents.c.parent_id).where(parents.c.class_id == entry.id)).all()
        children = connection.scalars(select(parents.c.class_id).where(parents.c.parent_id == entry.id)).all()
        event_rows = connection.execute(
            select(events).where(events.c.class_id == entry.id).order_by(events.c.id.desc()).limit(HISTORY)
        ).all()
        audit_rows = connection.execute(
            select(audit).where(audit.c.class_id == entry.id).order_by(audit.c.id.desc()).limit(HISTORY)
        ).all()
    return _plain(entry, frames) | {
        "parents": sorted(origin),
        "children": sorted(children),
        "merged_from": sorted(other.id for other in known.classes if other.merged_into == entry.id),
        "places": [{"camera": row.camera, "group": row.group_id, "frames": row.frames} for row in places],
        "events": [
            {
                "at": row.at.isoformat(),
                "transition": row.transition,
                "round": row.round,
                "members": row.members,
                "who": row.who,
                "why": row.why,
                "selected": row.selected,
            }
            for row in reversed(event_rows)
        ],
        "audit": [
            {
                "at": row.at.isoformat(),
                "who": row.who,
                "action": row.action,
                "value": row.value,
                "before": row.before,
                "why": row.why,
            }
            for row in reversed(audit_rows)
        ],
    }


def name(store: Store, reference: str, new_name: str, who: str | None = None, why: str | None = None) -> dict[str, Any]:
    """Name a class; the class as it is then."""
    decisions.name(store, reference, new_name, who=who, why=why)
    return show(store, new_name.strip())


def merge(store: Store, reference: str, into: str, who: str | None = None, why: str | None = None) -> dict[str, Any]:
    """Merge one class into another; the survivor as it is then."""
    decisions.merge(store, reference, into, who=who, why=why)
    return show(store, into)


def split(
    store: Store,
    reference: str,
    who: str | None = None,
    why: str | None = None,
    regions: Sequence[int] = (),
    alike: bool = True,
) -> dict[str, Any]:
    """Split a class in two, by looks or with `regions` by what a person has picked out; return the new class."""
    return show(store, decisions.split(store, reference, regions=regions, alike=alike, who=who, why=why))


def assign(
    store: Store,
    regions: Sequence[int],
    into: str | None,
    new_name: str | None = None,
    who: str | None = None,
    why: str | None = None,
) -> dict[str, Any]:
    """Give regions without a class to the class `into`, or without it to a new class; return that class."""
    return show(store, assignment.assign(store, regions, into=into, new_name=new_name, who=who, why=why))


def dismiss(store: Store, reference: str, who: str | None = None, why: str | None = None) -> dict[str, Any]:
    """Say that a class is no defect; the class as it is then."""
    decisions.dismiss(store, reference, who=who, why=why)
    return show(store, reference)


def undo(store: Store, reference: str | None, who: str | None = None, why: str | None = None) -> dict[str, Any]:
    """Take back the last thing that people said, of all or about one class; return the class as it is then."""
    return show(store, way_back.undo(store, reference, who=who, why=why))


def restore(store: Store, reference: str, who: str | None = None, why: str | None = None) -> dict[str, Any]:
    """Bring back a class that was dismissed or merged, and return it."""
    return show(store, way_back.restore(store, reference, who=who, why=why))


def set_severity(
    store: Store, reference: str, severity: str, who: str | None = None, why: str | None = None
) -> dict[str, Any]:
    """Say how bad a class is; the class as it is then."""
    decisions.set_severity(store, reference, severity, who=who, why=why)
    return show(store, reference)


def _plain(entry: DefectClass, frames: int) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.name,
        "severity": entry.severity,
        "state": str(entry.state),
        "frames": frames,
        "regions": entry.members,
        "born_at": stamp(entry.born_at).isoformat(),
        "last_seen_at": stamp(entry.last_seen_at).isoformat(),
        "confirmed_at": stamp(entry.confirmed_at).isoformat() if entry.confirmed_at is not None else None,
        "merged_into": entry.merged_into,
    }
