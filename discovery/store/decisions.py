"""What people say about classes: name, merge, split, dismiss, severity. It is audited, published and binding.

Every function is one transaction over the store, so that the command line and the console may use them while discovery
runs; it notices through the registry's revision. Raises UsageError in one line, and nothing has changed then. What was
said is taken back by `discovery/store/undo.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy import Connection, select, update

from discovery.round import clustering
from discovery.round.lineage import Change, DefectClass, Registry, class_id
from discovery.store import registry, schema
from discovery.store.database import insert, nanoseconds, parts
from discovery.store.decision_records import (
    add_audit,
    add_note,
    find,
    measured,
    members_of,
    sample_of,
    write_changes,
)
from discovery.store.store import Store, refresh_frame_classes
from flawline.errors import UsageError
from flawline.messages import ClassState, Transition
from scorer.vectors import unit

SEVERITIES = ("minor", "major", "critical")
NAME_LENGTH = 64
SPLIT_MEMBERS_MIN = 4  # a judgement, not measured


def name(store: Store, reference: str, new_name: str, *, who: str | None = None, why: str | None = None) -> None:
    """Call a class by a name that no other class has."""
    with store.transaction() as connection:
        known = registry.load(connection)
        defect_class = find(known, reference)
        new_name = free_name(known, defect_class.id, new_name)
        changed = replace(defect_class, name=new_name, bound=True)
        write_changes(store, connection, known, [(changed, Change(defect_class.id, Transition.NAMED))], who, why)
        entry = add_audit(store, connection, "name", defect_class.id, new_name, defect_class.name, who, why)
        add_note(connection, entry, defect_class)


def free_name(known: Registry, class_id: str, new_name: str) -> str:
    """Return a name for a class without blanks around it. Raises UsageError for one that cannot be, or is taken."""
    new_name = new_name.strip()
    if not 1 <= len(new_name) <= NAME_LENGTH or not new_name.isprintable():
        raise UsageError(f"class name {new_name!r}: give 1 to {NAME_LENGTH} printable characters")
    for other in known.classes:
        if other.id != class_id and new_name in (other.name, other.id):
            raise UsageError(f"name {new_name!r} is taken by class {other.id}: choose another or merge the two")
    return new_name


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


def split(
    store: Store,
    reference: str,
    *,
    regions: Sequence[int] = (),
    alike: bool = True,
    who: str | None = None,
    why: str | None = None,
) -> str:
    """Part a class in two; the new part gets a new id, which is returned.

    With `regions`, ids of members, these are the new part, and with `alike` the members that look like them more than
    like the others; rounds leave the chosen ones there. Without, it is the smaller of two parts by their looks.
    """
    with store.transaction() as connection:
        known = registry.load(connection)
        defect_class = find(known, reference)
        part = _selected_part(connection, defect_class, regions, alike) if regions else _part(connection, defect_class)
        count = len(part.regions)
        child_id, now = class_id(known.next_number), store.utc_ns()
        child = replace(
            defect_class,
            id=child_id,
            number=known.next_number,
            state=ClassState.CONFIRMED,
            members=count,
            announced=count,
            centroid=part.measures[0],
            radius=part.measures[1],
            born_at=now,
            born_round=known.round,
            confirmed_at=now,
            seen_rounds=0,
            missed_rounds=0,
            name=None,
            bound=True,
        )
        centroid, radius = part.rest_measures
        left = max(defect_class.members - count, 0)
        rest = replace(defect_class, members=left, announced=left, centroid=centroid, radius=radius, bound=True)
        changes = [
            (rest, Change(defect_class.id, Transition.SPLIT)),
            (child, Change(child_id, Transition.BORN, parents=(defect_class.id,), selected=len(part.pinned))),
        ]
        write_changes(store, connection, known, changes, who, why, next_number=known.next_number + 1)
        connection.execute(
            insert(connection, schema.class_parents).values(class_id=child_id, parent_id=defect_class.id)
        )
        r = schema.regions
        for ids in parts(part.regions):
            connection.execute(update(r).where(r.c.id.in_(ids)).values(class_id=child_id, assigned_by="round"))
        for ids in parts(part.pinned):
            connection.execute(update(r).where(r.c.id.in_(ids)).values(assigned_by=registry.PERSON))
        refresh_frame_classes(connection, part.defects)
        entry = add_audit(store, connection, "split", defect_class.id, child_id, None, who, why)
        add_note(connection, entry, defect_class, count, part.regions)
    return child_id


def region_ids(text: str) -> list[int]:
    """Return the ids of regions in a text such as `12,15`. Raises UsageError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = next((word for word in words if not (word.isascii() and word.isdecimal() and len(word) < 19)), None)
    if wrong is not None:
        raise UsageError(f"region {wrong[:32]!r}: give ids of regions, whole numbers separated by commas")
    return [int(word) for word in words]


@dataclass(frozen=True)
class _Part:
    """Holds the members that leave a class, their defects, and the members that a person has picked out.

    `measures` are centroid and radius of these members, `rest_measures` of the members that stay.
    """

    regions: list[int]
    defects: list[int]
    pinned: list[int]
    measures: tuple[np.ndarray, float]
    rest_measures: tuple[np.ndarray, float]


def _part(connection: Connection, defect_class: DefectClass) -> _Part:
    """Return the smaller of two parts of a class, by the looks of its latest members. Raises UsageError."""
    ids, defects, vectors = sample_of(connection, defect_class)
    if len(ids) < SPLIT_MEMBERS_MIN:
        raise UsageError(f"class {defect_class.id} has {len(ids)} members: splitting needs {SPLIT_MEMBERS_MIN}")
    labels = clustering.fit(vectors, 2)
    if len(set(labels.tolist())) < 2:
        raise UsageError(f"class {defect_class.id} cannot be split: its members look the same")
    leaves = labels == np.bincount(labels, minlength=2).argmin()
    return _parted(defect_class, ids, defects, vectors, leaves, ())


def _selected_part(connection: Connection, defect_class: DefectClass, regions: Sequence[int], alike: bool) -> _Part:
    """Return the members that a person has picked out, with `alike` also those that look like them.

    Raises UsageError.
    """
    chosen = set(regions)
    picked = members_of(connection, defect_class, sorted(chosen))
    strangers = chosen - set(picked[0])
    if strangers:
        raise UsageError(
            f"region {min(strangers)} is no member of class {defect_class.id} with embeddings of today: "
            "choose from its members as the class's page shows them"
        )
    if len(chosen) >= defect_class.members:
        raise UsageError(f"all members of class {defect_class.id} are chosen: leave some, or name the class")
    sample = sample_of(connection, defect_class)
    others = [row for row, region in enumerate(sample[0]) if region not in chosen]
    ids = [*picked[0], *(sample[0][row] for row in others)]
    defects = [*picked[1], *(sample[1][row] for row in others)]
    vectors = np.concatenate([picked[2], sample[2][others]])
    seed = np.arange(len(ids)) < len(picked[0])
    leaves = clustering.with_seed(vectors, seed) if alike else seed
    return _parted(defect_class, ids, defects, vectors, leaves, picked[0])


def _parted(
    defect_class: DefectClass,
    ids: Sequence[int],
    defects: Sequence[int],
    vectors: np.ndarray,
    leaves: np.ndarray,
    pinned: Sequence[int],
) -> _Part:
    rows = np.flatnonzero(leaves).tolist()
    return _Part(
        [ids[row] for row in rows],
        [defects[row] for row in rows],
        list(pinned),
        measured(defect_class, vectors[leaves]),
        measured(defect_class, vectors[~leaves]),
    )


def _members(connection: Connection, name: str) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Return the ids of a class's regions; and id, minute and frames of its defects that are only counted any more."""
    r, t = schema.regions.c, schema.defect_totals.c
    regions = connection.scalars(select(r.id).where(r.class_id == name).order_by(r.id)).all()
    totals = connection.execute(select(t.id, t.minute, t.frames).where(t.class_id == name))
    return list(regions), [(row.id, nanoseconds(row.minute), row.frames) for row in totals]
