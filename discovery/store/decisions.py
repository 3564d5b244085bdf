"""What people say about classes: name, merge, split, dismiss, severity. It is audited, published and binding.

Every function is one transaction over the store, so that the command line and the console may use them while discovery
runs; it notices through the registry's revision. Raises UsageError in one line, and nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sqlalchemy import Connection, select, update

from discovery.round import clustering
from discovery.round.lineage import Change, DefectClass, Registry, class_id
from discovery.round.single_round import event_of
from discovery.store import registry, schema
from discovery.store.database import fact, insert, set_fact, stamp
from discovery.store.store import Store, add_event, refresh_frame_classes
from flawline.errors import UsageError
from flawline.messages import ClassState, Transition
from flawline.user import user_name
from scorer.vectors import unit

SEVERITIES = ("minor", "major", "critical")
NAME_LENGTH = 64
SPLIT_MEMBERS_MIN = 4
SPLIT_SAMPLE = 5_000


def name(store: Store, reference: str, new_name: str, *, who: str | None = None, why: str | None = None) -> None:
    """Call a class by a name that no other class has."""
    new_name = new_name.strip()
    if not 1 <= len(new_name) <= NAME_LENGTH or not new_name.isprintable():
        raise UsageError(f"class name {new_name!r}: give 1 to {NAME_LENGTH} printable characters")
    with store.transaction() as connection:
        known = registry.load(connection)
        one = find(known, reference)
        for other in known.classes:
            if other.id != one.id and new_name in (other.name, other.id):
                raise UsageError(f"name {new_name!r} is taken by class {other.id}: choose another or merge the two")
        changed = replace(one, name=new_name, bound=True)
        _write(store, connection, known, [(changed, Change(one.id, Transition.NAMED))], who, why)
        _audit(store, connection, "name", one.id, new_name, one.name, who, why)


def set_severity(
    store: Store, reference: str, severity: str, *, who: str | None = None, why: str | None = None
) -> None:
    """Say how bad a class is."""
    if severity not in SEVERITIES:
        raise UsageError(f"severity {severity!r}: one of {', '.join(SEVERITIES)}")
    with store.transaction() as connection:
        known = registry.load(connection)
        one = find(known, reference)
        changed = replace(one, severity=severity)
        _write(store, connection, known, [(changed, Change(one.id, Transition.SEVERITY_SET))], who, why)
        _audit(store, connection, "severity", one.id, severity, one.severity, who, why)


def dismiss(store: Store, reference: str, *, who: str | None = None, why: str | None = None) -> None:
    """Say that a class is no defect. It keeps its members, and takes in what looks like them."""
    with store.transaction() as connection:
        known = registry.load(connection)
        one = find(known, reference)
        if one.state is ClassState.DISMISSED:
            raise UsageError(f"class {one.id} is dismissed already")
        changed = replace(one, state=ClassState.DISMISSED, bound=True)
        _write(store, connection, known, [(changed, Change(one.id, Transition.DISMISSED))], who, why)
        _audit(store, connection, "dismiss", one.id, None, str(one.state), who, why)


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
            one.radius + float(1 - centroid @ one.centroid) for one in ((loser, survivor) if same else (survivor,))
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
        _write(store, connection, known, changes, who, why)
        registry.move_members(connection, loser.id, survivor.id)
        _audit(store, connection, "merge", loser.id, survivor.id, None, who, why)


def split(store: Store, reference: str, *, who: str | None = None, why: str | None = None) -> str:
    """Part a class in two by the looks of its members; the smaller part gets a new id, which is returned."""
    r = schema.regions
    with store.transaction() as connection:
        known = registry.load(connection)
        one = find(known, reference)
        rows = connection.execute(
            select(r.c.id, r.c.defect_id, r.c.embedding)
            .where((r.c.class_id == one.id) & (r.c.embedding_version == one.embedding_version))
            .order_by(r.c.id.desc())
            .limit(SPLIT_SAMPLE)
        ).all()
        if len(rows) < SPLIT_MEMBERS_MIN:
            raise UsageError(f"class {one.id} has {len(rows)} members: splitting needs {SPLIT_MEMBERS_MIN}")
        vectors = unit(np.stack([np.frombuffer(row.embedding, "<f2") for row in rows]))
        labels = clustering.fit(vectors, 2)
        if len(set(labels.tolist())) < 2:
            raise UsageError(f"class {one.id} cannot be split: its members look the same")
        smaller = labels == np.bincount(labels, minlength=2).argmin()
        child_id = class_id(known.next_number)
        now = store.utc_ns()
        child = replace(
            _measured(one, vectors[smaller], int(smaller.sum())),
            id=child_id,
            number=known.next_number,
            state=ClassState.CANDIDATE,
            born_at=now,
            born_round=known.round,
            confirmed_at=None,
            seen_rounds=0,
            missed_rounds=0,
            name=None,
            bound=True,
        )
        rest = replace(_measured(one, vectors[~smaller], one.members - int(smaller.sum())), bound=True)
        changes = [
            (rest, Change(one.id, Transition.SPLIT)),
            (child, Change(child_id, Transition.BORN, parents=(one.id,))),
        ]
        _write(store, connection, known, changes, who, why, next_number=known.next_number + 1)
        connection.execute(insert(connection, schema.class_parents).values(class_id=child_id, parent_id=one.id))
        moved = [row for row, goes in zip(rows, smaller, strict=True) if goes]
        for row in moved:
            connection.execute(update(r).where(r.c.id == row.id).values(class_id=child_id, assigned_by="person"))
        refresh_frame_classes(connection, [row.defect_id for row in moved])
        _audit(store, connection, "split", one.id, child_id, None, who, why)
    return child_id


def find(known: Registry, reference: str) -> DefectClass:
    """The living class with this id or name. Raises UsageError."""
    for one in known.classes:
        if reference in (one.id, one.name) or reference.upper() == one.id:
            if one.merged_into is not None:
                raise UsageError(f"class {one.id} was merged into {one.merged_into}: name that one")
            return one
    raise UsageError(f"no class {reference!r}: `flawline classes list` shows ids and names")


def _measured(one: DefectClass, vectors: np.ndarray, members: int) -> DefectClass:
    centroid = unit(vectors.mean(axis=0))
    radius = clustering.radius_of(vectors, centroid)
    return replace(one, centroid=centroid, radius=radius, members=members, announced=members)


def _write(
    store: Store,
    connection: Connection,
    known: Registry,
    changes: Sequence[tuple[DefectClass, Change]],
    who: str | None,
    why: str | None,
    next_number: int | None = None,
) -> None:
    revision = int(fact(connection, "revision", "0")) + 1
    set_fact(connection, "revision", str(revision))
    registry.save_classes(connection, [one for one, _ in changes], next_number or known.next_number)
    for one, change in changes:
        serial = f"p{revision}"  # by a person; rounds are numbered without a letter
        who = who or user_name() or "unknown"
        add_event(connection, event_of(one, change, known.round, store.utc_ns(), serial, who, why))


def _audit(
    store: Store,
    connection: Connection,
    action: str,
    class_id: str,
    value: str | None,
    before: str | None,
    who: str | None,
    why: str | None,
) -> None:
    row = {
        "at": stamp(store.utc_ns()),
        "who": who or user_name() or "unknown",
        "action": action,
        "class_id": class_id,
        "value": value,
        "before": before,
        "why": why,
    }
    connection.execute(schema.audit.insert().values(row))
