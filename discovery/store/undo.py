"""The way back: what a person said about a class is taken back, and a class that was dismissed or merged comes back.

An id that was given stays given: a class that came from a split is merged into the class it came from, and a class that
was merged gets those of its former members back that are still where the merge put them. The members that have come
since stay. Taking back is one transaction, audited and published like a decision. Raises UsageError in one line.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import Connection, select, update

from discovery.round.lineage import Change, DefectClass, Registry
from discovery.store import registry, schema
from discovery.store.assignment import ASSIGN, CREATE
from discovery.store.database import nanoseconds, parts
from discovery.store.decision_records import add_audit, find, measured_anew, write_changes
from discovery.store.store import Store, refresh_frame_classes
from flawline.errors import UsageError
from flawline.messages import ClassState, Transition

UNDO = "undo"
NO_VERSION = ""
"""The embedding version of a class with which nothing is compared."""
MOVES = ("merge", "split")
"""Actions that speak of two classes: the entry's `value` is the other one."""


def undo(store: Store, reference: str | None = None, *, who: str | None = None, why: str | None = None) -> str:
    """Take back the last thing that people said, of all or about one class; return the id of the class to look at."""
    with store.transaction() as connection:
        known = registry.load(connection)
        class_id = _find_any(known, reference).id if reference is not None else None
        entry = next(
            (entry for entry in _open_entries(connection) if class_id is None or class_id in _speaks_of(entry)), None
        )
        if entry is None:
            raise UsageError(f"nothing to take back{f' about class {class_id}' if class_id else ''}")
        later = next(other for other in _open_entries(connection) if set(_speaks_of(other)) & set(_speaks_of(entry)))
        if later.id != entry.id:
            raise UsageError(
                f"{_words(later)} after {_words(entry)}: take that back first, `flawline classes undo {later.class_id}`"
            )
        return _take_back(store, connection, known, entry, who, why)


def restore(store: Store, reference: str, *, who: str | None = None, why: str | None = None) -> str:
    """Bring a class back that a person has dismissed or merged, whatever later commands did; return its id."""
    with store.transaction() as connection:
        known = registry.load(connection)
        known_class = _find_any(known, reference)
        action = {ClassState.DISMISSED: "dismiss", ClassState.MERGED: "merge"}.get(known_class.state)
        if action is None:
            raise UsageError(f"class {known_class.id} is {known_class.state}: it was neither dismissed nor merged")
        entries = (entry for entry in _open_entries(connection) if entry.action == action)
        entry = next((entry for entry in entries if entry.class_id == known_class.id), None)
        if entry is None:
            raise UsageError(
                f"class {known_class.id} was merged by a round: `flawline classes split` parts the other one"
            )
        return _take_back(store, connection, known, entry, who, why)


def last(store: Store) -> dict[str, Any] | None:
    """Return what `undo` would take back: class_id, action, value, who and at; None for nothing."""
    with store.reading() as connection:
        entry = next(iter(_open_entries(connection, limit=1)), None)
    if entry is None:
        return None
    return {name: getattr(entry, name) for name in ("class_id", "action", "value", "who", "at")}


def _open_entries(connection: Connection, limit: int | None = None) -> list[Any]:
    """Return what people said and nobody has taken back, the latest first, with the notes."""
    a, n = schema.audit, schema.audit_notes
    query = (
        select(a, n.c.audit_id, n.c.before.label("state"), n.c.members)
        .join_from(a, n, n.c.audit_id == a.c.id, isouter=True)
        .where(a.c.action != UNDO, n.c.undone_by.is_(None))
        .order_by(a.c.id.desc())
        .limit(limit)
    )
    return list(connection.execute(query))


def _speaks_of(entry: Any) -> tuple[str, ...]:
    return (entry.class_id, entry.value) if entry.action in MOVES else (entry.class_id,)


def _words(entry: Any) -> str:
    """Return what a person did, as in "D-0001 was merged into D-0002"."""
    done = {
        "name": f"was named {entry.value}",
        "severity": f"was rated {entry.value}",
        "dismiss": "was dismissed",
        "merge": f"was merged into {entry.value}",
        "split": f"was split into itself and {entry.value}",
        ASSIGN: f"was given {entry.value}",
        CREATE: f"was made of {entry.value}",
    }
    return f"{entry.class_id} {done.get(entry.action, entry.action)}"


def _find_any(known: Registry, reference: str) -> DefectClass:
    """Return a class by id, also a merged one, or by name. Raises UsageError."""
    by_id = {known_class.id: known_class for known_class in known.classes}
    return by_id.get(reference.upper()) or find(known, reference)


def _take_back(
    store: Store, connection: Connection, known: Registry, entry: Any, who: str | None, why: str | None
) -> str:
    if entry.audit_id is None and entry.action != "dismiss":
        raise UsageError(
            f"{_words(entry)} before this version, which noted nothing of how it was: do the opposite by hand"
        )
    by_id = {known_class.id: known_class for known_class in known.classes}
    changed = by_id[entry.class_id]
    # A dismissal of an older version has the state in its own entry.
    before = json.loads(entry.state) if entry.audit_id is not None else {"state": entry.before, "bound": True}
    if entry.action == "merge":
        changes = _part(connection, by_id, entry, before)
    elif entry.action == "split":
        changes = _join(connection, by_id, entry)
    elif entry.action in (ASSIGN, CREATE):
        changes = [_release(connection, changed, entry, before)]
    else:
        changes = [_as_before(known, changed, entry.action, before)]
    write_changes(store, connection, known, changes, who, why)
    undone_by = add_audit(store, connection, UNDO, entry.class_id, entry.action, entry.value, who, why)
    n = schema.audit_notes
    if entry.audit_id is None:
        note = {"before": "{}", "members": 0, "regions": b"", "totals": b""}
        connection.execute(n.insert().values(note | {"audit_id": entry.id, "undone_by": undone_by}))
    connection.execute(update(n).where(n.c.audit_id == entry.id).values(undone_by=undone_by))
    return str(entry.class_id)


def _as_before(
    known: Registry, changed: DefectClass, action: str, before: dict[str, Any]
) -> tuple[DefectClass, Change]:
    """Return a class with the former name, severity or state, and its event."""
    if action == "name":
        _require_free(known, changed.id, before["name"])
        former = replace(changed, name=before["name"], bound=before["bound"])
        return former, Change(changed.id, Transition.NAMED)
    if action == "severity":
        return replace(changed, severity=before["severity"]), Change(changed.id, Transition.SEVERITY_SET)
    former = replace(changed, state=ClassState(before["state"]), bound=before["bound"])
    return former, Change(changed.id, Transition.REVIVED)


def _part(
    connection: Connection, by_id: dict[str, DefectClass], entry: Any, before: dict[str, Any]
) -> list[tuple[DefectClass, Change]]:
    """Give a merged class its members back; both are bound, since a person has said that they are two."""
    loser, survivor = by_id[entry.class_id], by_id[entry.value]
    if survivor.merged_into is not None:
        raise UsageError(
            f"class {survivor.id} was merged into {survivor.merged_into} since: "
            f"take that back first, `flawline classes restore {survivor.id}`"
        )
    n = schema.audit_notes.c
    note = connection.execute(select(n.regions, n.totals).where(n.audit_id == entry.id)).one()
    elsewhere = _move(connection, np.frombuffer(note.regions, "<i8").tolist(), survivor.id, loser.id)
    _move_totals(connection, np.frombuffer(note.totals, "<i8").reshape(-1, 3).tolist(), survivor.id, loser.id)
    count = max(entry.members - elsewhere, 0)
    name = before["name"]
    is_inherited = name is not None and survivor.name == name  # the survivor had none, and took this one
    others = (known_class for known_class in by_id.values() if known_class.id != survivor.id)
    is_taken = any(known_class.name == name for known_class in others)
    back = replace(
        loser,
        state=ClassState(before["state"]),
        merged_into=None,
        members=count,
        announced=count,
        name=None if is_taken else name,
        severity=before["severity"],
        bound=True,
    )
    left = max(survivor.members - count, 0)
    rest = replace(survivor, members=left, announced=left, name=None if is_inherited else survivor.name, bound=True)
    return [
        (measured_anew(connection, rest), Change(survivor.id, Transition.SPLIT)),
        (measured_anew(connection, back), Change(loser.id, Transition.REVIVED, parents=(survivor.id,))),
    ]


def _join(connection: Connection, by_id: dict[str, DefectClass], entry: Any) -> list[tuple[DefectClass, Change]]:
    """Merge the child of a split into the class it came from."""
    parent, child = by_id[entry.class_id], by_id[entry.value]
    for known_class in (parent, child):
        if known_class.merged_into is not None:
            raise UsageError(
                f"class {known_class.id} was merged into {known_class.merged_into} since, by a round: "
                "there is nothing to take back"
            )
    r = schema.regions
    connection.execute(update(r).where(r.c.class_id == child.id).values(assigned_by="round"))
    registry.move_members(connection, child.id, parent.id)
    total = parent.members + child.members
    gone = replace(child, state=ClassState.MERGED, merged_into=parent.id, members=0, name=None)
    whole = replace(
        parent, members=total, announced=total, bound=True, last_seen_at=max(parent.last_seen_at, child.last_seen_at)
    )
    return [
        (gone, Change(child.id, Transition.MERGED, merged_into=parent.id)),
        (measured_anew(connection, whole), Change(parent.id, Transition.GREW)),
    ]


def _release(
    connection: Connection, known_class: DefectClass, entry: Any, before: dict[str, Any]
) -> tuple[DefectClass, Change]:
    """Let the regions go that a person gave to a class, as far as they are still there, and all of a new class.

    Nothing is compared with a class that is left without members so: its like would come back to it at once.
    """
    if known_class.merged_into is not None:
        raise UsageError(
            f"class {known_class.id} was merged into {known_class.merged_into} since, by a round: "
            "there is nothing to take back"
        )
    r = schema.regions
    if entry.action == CREATE:
        regions = list(connection.scalars(select(r.c.id).where(r.c.class_id == known_class.id)))
        t = schema.defect_totals
        connection.execute(update(t).where(t.c.class_id == known_class.id).values(class_id=None))
        _move(connection, regions, known_class.id, None)
        d = schema.defects  # whose regions have gone
        connection.execute(update(d).where(d.c.class_id == known_class.id).values(class_id=None))
        gone = replace(
            known_class,
            state=ClassState.DORMANT,
            members=0,
            announced=0,
            name=None,
            bound=False,
            embedding_version=NO_VERSION,
        )
        return gone, Change(known_class.id, Transition.DORMANT)
    n = schema.audit_notes.c
    noted = np.frombuffer(connection.execute(select(n.regions).where(n.audit_id == entry.id)).scalar_one(), "<i8")
    elsewhere = _move(connection, noted.tolist(), known_class.id, None)
    left = max(known_class.members - (entry.members - elsewhere), 0)
    rest = replace(known_class, members=left, announced=left, state=ClassState(before["state"]), bound=before["bound"])
    if not left:
        return replace(rest, embedding_version=NO_VERSION), Change(known_class.id, Transition.SPLIT)
    return measured_anew(connection, rest), Change(known_class.id, Transition.SPLIT)


def _move(connection: Connection, regions: list[int], source: str, target: str | None) -> int:
    """Move those of some regions that are in the class `source` to `target`; return how many are elsewhere now.

    Without a target they are in no class.
    """
    r = schema.regions
    elsewhere = 0
    for part in parts(regions):
        rows = connection.execute(select(r.c.id, r.c.defect_id, r.c.class_id).where(r.c.id.in_(part))).all()
        there = [row for row in rows if row.class_id == source]
        elsewhere += len(rows) - len(there)
        ids = [row.id for row in there]
        values: dict[str, Any] = {"class_id": target, "assigned_by": registry.PERSON}
        if target is None:
            values |= {"assigned_by": None, "exemplar": False}
        connection.execute(update(r).where(r.c.id.in_(ids)).values(values))
        refresh_frame_classes(connection, [row.defect_id for row in there])
    return elsewhere


def _move_totals(connection: Connection, totals: list[list[int]], source: str, target: str) -> None:
    """Move the counts that are as they were; what was summed up by the hour since stays with the class `source`."""
    t = schema.defect_totals
    as_before = {row_id: (minute, frames) for row_id, minute, frames in totals}
    for part in parts(list(as_before)):
        rows = connection.execute(
            select(t.c.id, t.c.minute, t.c.frames).where(t.c.id.in_(part), t.c.class_id == source)
        )
        # An id may have been given anew.
        ids = [row.id for row in rows if (nanoseconds(row.minute), row.frames) == as_before[row.id]]
        connection.execute(update(t).where(t.c.id.in_(ids)).values(class_id=target))


def _require_free(known: Registry, class_id: str, name: str | None) -> None:
    for other in known.classes:
        if name is not None and other.id != class_id and other.name == name:
            raise UsageError(f"name {name!r} is taken by class {other.id} since: give that one another name first")
