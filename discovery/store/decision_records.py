"""What every decision of a person reads and writes: the class, the changed classes with their events, the audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, select

from discovery.round import clustering
from discovery.round.lineage import Change, DefectClass, Registry
from discovery.round.single_round import event_of
from discovery.store import registry, schema
from discovery.store.database import fact, parts, set_fact, stamp
from discovery.store.store import Store, add_event
from flawline.errors import UsageError
from flawline.user import user_name
from scorer.vectors import unit

SAMPLE = 5_000
"""Members by which a class is measured or split. A judgement, not measured: a second of work."""


def find(known: Registry, reference: str) -> DefectClass:
    """Return the living class with this id or name. Raises UsageError."""
    for known_class in known.classes:
        if reference in (known_class.id, known_class.name) or reference.upper() == known_class.id:
            if known_class.merged_into is not None:
                raise UsageError(f"class {known_class.id} was merged into {known_class.merged_into}: name that one")
            return known_class
    raise UsageError(f"no class {reference!r}: `flawline classes list` shows ids and names")


def sample_of(connection: Connection, known_class: DefectClass) -> tuple[list[int], list[int], np.ndarray]:
    """Return the ids, the defects and the unit vectors (n, D) of the latest members of a class, of its version."""
    return _columns(known_class, connection.execute(_members(known_class).limit(SAMPLE)).all())


def members_of(
    connection: Connection, known_class: DefectClass, regions: Sequence[int]
) -> tuple[list[int], list[int], np.ndarray]:
    """Return the same of some regions, as far as they are members of the class, of its version."""
    query = _members(known_class)
    rows = [row for ids in parts(regions) for row in connection.execute(query.where(schema.regions.c.id.in_(ids)))]
    return _columns(known_class, rows)


def _members(known_class: DefectClass) -> Select[Any]:
    r = schema.regions.c
    is_member = (r.class_id == known_class.id) & (r.embedding_version == known_class.embedding_version)
    return select(r.id, r.defect_id, r.embedding).where(is_member).order_by(r.id.desc())


def _columns(known_class: DefectClass, rows: Sequence[Any]) -> tuple[list[int], list[int], np.ndarray]:
    vectors = [np.frombuffer(row.embedding, "<f2") for row in rows]
    stacked = unit(np.stack(vectors)) if vectors else np.zeros((0, len(known_class.centroid)), np.float32)
    return [row.id for row in rows], [row.defect_id for row in rows], stacked


def measured(known_class: DefectClass, vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Return centroid and radius of members (n, D), those of the class itself without any."""
    if not len(vectors):
        return known_class.centroid, known_class.radius
    centroid = unit(vectors.mean(axis=0))
    return centroid, clustering.radius_of(vectors, centroid)


def measured_anew(connection: Connection, known_class: DefectClass) -> DefectClass:
    """Return a class with centroid and radius from its latest members."""
    centroid, radius = measured(known_class, sample_of(connection, known_class)[2])
    return replace(known_class, centroid=centroid, radius=radius)


def write_changes(
    store: Store,
    connection: Connection,
    known: Registry,
    changes: Sequence[tuple[DefectClass, Change]],
    who: str | None,
    why: str | None,
    next_number: int | None = None,
) -> None:
    """Write changed classes with their events, and let discovery notice that a person was here."""
    revision = int(fact(connection, "revision", "0")) + 1
    set_fact(connection, "revision", str(revision))
    registry.save_classes(connection, [changed for changed, _ in changes], next_number or known.next_number)
    for changed, change in changes:
        serial = f"p{revision}"  # by a person; rounds are numbered without a letter
        who = who or user_name() or "unknown"
        add_event(connection, event_of(changed, change, known.round, store.utc_ns(), serial, who, why))


def add_audit(
    store: Store,
    connection: Connection,
    action: str,
    class_id: str,
    value: str | None,
    before: str | None,
    who: str | None,
    why: str | None,
) -> int:
    """Note what a person did, and return the number of the entry."""
    row = {
        "at": stamp(store.utc_ns()),
        "who": who or user_name() or "unknown",
        "action": action,
        "class_id": class_id,
        "value": value,
        "before": before,
        "why": why,
    }
    key = connection.execute(schema.audit.insert().values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


def add_note(
    connection: Connection,
    audit_id: int,
    before: DefectClass,
    members: int = 0,
    regions: Sequence[int] = (),
    totals: Sequence[tuple[int, int, int]] = (),
) -> None:
    """Note how an entry of the audit is taken back: the class as it was, and the members that went to another one."""
    state = {"state": str(before.state), "name": before.name, "severity": before.severity, "bound": before.bound}
    row = {
        "audit_id": audit_id,
        "before": json.dumps(state),
        "members": members,
        "regions": np.array(regions, "<i8").tobytes(),
        "totals": np.array(totals, "<i8").tobytes(),
    }
    connection.execute(schema.audit_notes.insert().values(row))
