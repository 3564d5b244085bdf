"""A person gives regions that have no class to a class, a known or a new one; later rounds leave them there.

One transaction, audited and published like every decision about classes; `discovery/store/undo.py` takes it back.
Raises UsageError in one line, and nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy import Connection, select, update

from discovery.round import clustering
from discovery.round.lineage import Change, DefectClass, Registry, class_id
from discovery.store import registry, schema
from discovery.store.database import parts
from discovery.store.decision_records import add_audit, add_note, find, measured_anew, write_changes
from discovery.store.decisions import free_name
from discovery.store.store import Store, refresh_frame_classes
from flawline.errors import UsageError
from flawline.messages import ClassState, Transition
from scorer.vectors import unit

ASSIGN, CREATE = "assign", "create"
"""What the audit calls regions that went to a known class, and those that a new one was made of."""


@dataclass(frozen=True)
class _Loose:
    """Regions without a class: ids, defects, unit vectors (n, D) of one version, and their latest capture in ns."""

    ids: list[int]
    defects: list[int]
    vectors: np.ndarray
    version: str
    latest_ns: int


def assign(
    store: Store,
    regions: Sequence[int],
    *,
    into: str | None = None,
    new_name: str | None = None,
    who: str | None = None,
    why: str | None = None,
) -> str:
    """Give regions to the class `into` (id or name), or without it to a new class; return the id of the class.

    `new_name` is the name of the new class, which needs none.
    """
    if into is not None and new_name is not None:
        raise UsageError("a class that is there has its name: give either a class or the name of a new one")
    with store.transaction() as connection:
        known = registry.load(connection)
        before = None if into is None else _taker(known, into)
        loose = _without_class(connection, sorted(set(regions)))
        if before is None:
            defect_class, change = _new_class(store, known, loose, new_name)
        else:
            defect_class, change = _with_more(before, loose)
        next_number = known.next_number + (before is None)
        # The regions refer to the class, so a new one is written before them; measured it is with them.
        registry.save_classes(connection, [defect_class], next_number)
        r = schema.regions
        for ids in parts(loose.ids):
            values = {"class_id": defect_class.id, "assigned_by": registry.PERSON}
            connection.execute(update(r).where(r.c.id.in_(ids)).values(values))
        refresh_frame_classes(connection, loose.defects)
        defect_class = measured_anew(connection, defect_class)
        write_changes(store, connection, known, [(defect_class, change)], who, why, next_number)
        count = len(loose.ids)
        words = f"{count} region{'s' * (count > 1)}"
        action = CREATE if before is None else ASSIGN
        entry = add_audit(store, connection, action, defect_class.id, words, None, who, why)
        add_note(connection, entry, before or defect_class, count, loose.ids)
    return defect_class.id


def _taker(known: Registry, reference: str) -> DefectClass:
    taker = find(known, reference)
    if taker.state is ClassState.DISMISSED:
        raise UsageError(
            f"class {taker.id} is dismissed: bring it back first, `flawline classes restore {taker.id}`, or choose "
            "another one"
        )
    return taker


def _without_class(connection: Connection, regions: Sequence[int]) -> _Loose:
    if not regions:
        raise UsageError("choose the regions that the class shall have")
    r, d = schema.regions, schema.defects
    columns = (r.c.id, r.c.defect_id, r.c.class_id, r.c.embedding, r.c.embedding_version, d.c.captured_ns)
    query = select(*columns).join_from(r, d, r.c.defect_id == d.c.id)
    rows = [row for ids in parts(regions) for row in connection.execute(query.where(r.c.id.in_(ids)))]
    if strangers := set(regions) - {row.id for row in rows}:
        raise UsageError(f"region {min(strangers)} is not there: choose from those that the station shows")
    if taken := next((row for row in rows if row.class_id is not None), None):
        raise UsageError(f"region {taken.id} is in class {taken.class_id} already: split it off there")
    versions = {row.embedding_version for row in rows}
    if len(versions) > 1:
        raise UsageError("the regions were described by different models, so they cannot be compared: choose fewer")
    return _Loose(
        [row.id for row in rows],
        [row.defect_id for row in rows],
        unit(np.stack([np.frombuffer(row.embedding, "<f2") for row in rows])),
        versions.pop(),
        max(row.captured_ns for row in rows),
    )


def _new_class(store: Store, known: Registry, loose: _Loose, name: str | None) -> tuple[DefectClass, Change]:
    new_id, now, count = class_id(known.next_number), store.utc_ns(), len(loose.ids)
    centroid = unit(loose.vectors.mean(axis=0))
    made = DefectClass(
        id=new_id,
        number=known.next_number,
        state=ClassState.CONFIRMED,
        members=count,
        announced=count,
        born_at=now,
        born_round=known.round,
        confirmed_at=now,
        last_seen_at=loose.latest_ns,
        centroid=centroid,
        radius=clustering.radius_of(loose.vectors, centroid),
        embedding_version=loose.version,
        name=None if name is None else free_name(known, new_id, name),
        bound=True,
    )
    return made, Change(new_id, Transition.BORN, selected=count)


def _with_more(before: DefectClass, loose: _Loose) -> tuple[DefectClass, Change]:
    """Return a class with the regions among its members; one that is asleep wakes up."""
    if before.members and before.embedding_version != loose.version:
        raise UsageError(
            f"the regions were described by another model than class {before.id}, so they cannot be compared: make a "
            "new class of them"
        )
    total, is_asleep = before.members + len(loose.ids), before.state is ClassState.DORMANT
    after = replace(
        before,
        state=ClassState.CONFIRMED if is_asleep else before.state,
        confirmed_at=before.confirmed_at or loose.latest_ns,
        members=total,
        announced=total,
        embedding_version=loose.version,
        last_seen_at=max(before.last_seen_at, loose.latest_ns),
        missed_rounds=0,
        bound=True,
    )
    transition = Transition.REVIVED if is_asleep else Transition.GREW
    return after, Change(before.id, transition, selected=len(loose.ids))
