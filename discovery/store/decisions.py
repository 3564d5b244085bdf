"""What people say about classes: name, merge, split, dismiss, severity. It is audited, published and binding.

Every function is one transaction over the store, so that the command line and the console may use them while discovery
runs; it notices through the registry's revision. Raises UsageError in one line, and nothing has changed then. What was
said is taken back by `discovery/store/undo.py`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sqlalchemy import Connection, select, update

from discovery.round import clustering
from discovery.round.lineage import Change, class_id
from discovery.store import registry, schema
from discovery.store.database import insert, nanoseconds
from discovery.store.decision_records import add_audit, add_note, find, measured, sample_of, write_changes
from discovery.store.store import Store, refresh_frame_classes
from flawline.errors import UsageError
from flawline.messages import ClassState, Transition
from scorer.vectors import unit

SEVERITIES = ("minor", "major", "critical")
NAME_LENGTH = 64
SPLIT_MEMBERS_MIN = 4  # a judgement, not measured


def name(store: Store, reference: str, new_name: str, *, who: str | None = None, why: str | None = None) -> None:
    """Call a class by a name that no other class has."""
    new_name = new_name.strip()
    if not 1 <= len(new_name) <= NAME_LENGTH or not new_name.isprintable():
        raise UsageError(f"class name {new_name!r}: give 1 to {NAME_LENGTH} printable characters")
    with store.transaction() as connection:
        known = registry.load(connection)
        defect_class = find(known, reference)
        for other in known.classes:
            if other.id != defect_class.id and new_name in (other.name, other.id):
                raise UsageError(f"name {new_name!r} is taken by class {other.id}: choose another or merge the two")
        changed = replace(defect_class, name=new_name, bound=True)
        write_changes(store, connection, known, [(changed, Change(defect_class.id, Transition.NAMED))], who, why)
        entry = add_audit(store, connection, "name", defect_class.id, new_name, defect_class.name, who, why)
        add_note(connection, entry, defect_class)


def set_severity(
    store: Store, reference: str, severity: str, *, who: str | None = None, why: str | None = None
) -> None:
    """Say how bad a class is."""
    if severity not in SEVERITIES:
        raise UsageError(f"severity {severity!r}: one of {', '.join(SEVERITIES)}")
    with store.transaction() as connection:
        known = registry.load(connection)
        defect_class = find(known, reference)
        changed = replace(defect_class, severity=severity)
        write_changes(store, connection, known, [(changed, Change(defect_class.id, Transition.SEVERITY_SET))], who, why)
        entry = add_audit(store, connection, "severity", defect_class.id, severity, defect_class.severity, who, why)
        add_note(connection, entry, defect_class)


def dismiss(store: Store, reference: str, *, who: str | None = None, why: str | None = None) -> None:
    """Say that a class is no defect. It keeps its members, and takes in what looks like them."""
    with store.transaction() as connection:
        known = registry.load(connection)
        defect_class = find(known, reference)
        if defect_class.state is ClassState.DISMISSED:
            raise UsageError(f"class {defect_class.id} is dismissed already")
        changed = replace(defect_class, state=ClassState.DISMISSED, bound=True)
        write_changes(store, connection, known, [(changed, Change(defect_class.id, Transition.DISMISSED))], who, why)
        entry = add_audit(store, connection, "dismiss", defect_class.id, None, str(defect_class.state), who, why)
        add_note(connection, entry, defect_class)


def merge(store: Store, reference: str, into: str, *, who: str | None = None, why: str | None = None) -> None:
    """Make one class part of another; later rounds do not part them."""
    with store.transaction() as connection:
        known = registry.load(connection)
        loser, survivor = find(known, reference), find(known, into)
        if loser.id == survivor.id:
            raise UsageError(f"class {loser.id} cannot be merged into itself: name two classes")
        total = loser.members + survivor.members
        weights = np.array([max(loser.members, 1), max(survivor.members, 1)], np.float32)
        same = loser.embedding_version == survivor.embedding_version
        centroid = unit(weights @ np.stack([loser.centroid, survivor.centroid])) if same else survivor.centroid
        reach = [
            defect_class.radius + float(1 - centroid @ defect_class.centroid)
            for defect_class in ((loser, survivor) if same else (survivor,))
        ]
        changes = [
            (
                replace(loser, state=ClassState.MERGED, merged_into=survivor.id, members=0, name=None),
                Change(loser.id, Transition.MERGED, merged_into=survivor.id),
            ),
            (
                replace(
                    survivor,
                    members=total,
                    bound=True,
                    name=survivor.name or loser.name,
                    severity=survivor.severity or loser.severity,
                    centroid=centroid,
                    radius=max(reach),
                    last_seen_at=max(loser.last_seen_at, survivor.last_seen_at),
                    announced=total,
                ),
                Change(survivor.id, Transition.GREW),
            ),
        ]
        write_changes(store, connection, known, changes, who, why)
        regions, totals = _members(connection, loser.id)
        registry.move_members(connection, loser.id, survivor.id)
        entry = add_audit(store, connection, "merge", loser.id, survivor.id, None, who, why)
        add_note(connection, entry, loser, loser.members, regions, totals)


def split(store: Store, reference: str, *, who: str | None = None, why: str | None = None) -> str:
    """Part a class in two by the looks of its members; the smaller part gets a new id, which is returned."""
    with store.transaction() as connection:
        known = registry.load(connection)
        defect_class = find(known, reference)
        ids, defects, vectors = sample_of(connection, defect_class)
        if len(ids) < SPLIT_MEMBERS_MIN:
            raise UsageError(f"class {defect_class.id} has {len(ids)} members: splitting needs {SPLIT_MEMBERS_MIN}")
        labels = clustering.fit(vectors, 2)
        if len(set(labels.tolist())) < 2:
            raise UsageError(f"class {defect_class.id} cannot be split: its members look the same")
        smaller = labels == np.bincount(labels, minlength=2).argmin()
        count = int(smaller.sum())
        child_id, now = class_id(known.next_number), store.utc_ns()
        centroid, radius = measured(defect_class, vectors[smaller])
        child = replace(
            defect_class,
            id=child_id,
            number=known.next_number,
            state=ClassState.CONFIRMED,
            members=count,
            announced=count,
            centroid=centroid,
            radius=radius,
            born_at=now,
            born_round=known.round,
            confirmed_at=now,
            seen_rounds=0,
            missed_rounds=0,
            name=None,
            bound=True,
        )
        centroid, radius = measured(defect_class, vectors[~smaller])
        left = defect_class.members - count
        rest = replace(defect_class, members=left, announced=left, centroid=centroid, radius=radius, bound=True)
        changes = [
            (rest, Change(defect_class.id, Transition.SPLIT)),
            (child, Change(child_id, Transition.BORN, parents=(defect_class.id,))),
        ]
        write_changes(store, connection, known, changes, who, why, next_number=known.next_number + 1)
        connection.execute(
            insert(connection, schema.class_parents).values(class_id=child_id, parent_id=defect_class.id)
        )
        moved = [(region, defect) for region, defect, goes in zip(ids, defects, smaller, strict=True) if goes]
        r = schema.regions
        for region, _ in moved:
            connection.execute(update(r).where(r.c.id == region).values(class_id=child_id, assigned_by="person"))
        refresh_frame_classes(connection, [defect for _, defect in moved])
        entry = add_audit(store, connection, "split", defect_class.id, child_id, None, who, why)
        add_note(connection, entry, defect_class, count, [region for region, _ in moved])
    return child_id


def _members(connection: Connection, name: str) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Return the ids of a class's regions; and id, minute and frames of its defects that are only counted any more."""
    r, t = schema.regions.c, schema.defect_totals.c
    regions = connection.scalars(select(r.id).where(r.class_id == name).order_by(r.id)).all()
    totals = connection.execute(select(t.id, t.minute, t.frames).where(t.class_id == name))
    return list(regions), [(row.id, nanoseconds(row.minute), row.frames) for row in totals]
