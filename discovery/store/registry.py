"""The registry of classes in the store: read it, read what a round looks at, write what a round or a person decided."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, bindparam, func, select, update

from discovery.round.candidates import Candidate
from discovery.round.lineage import DefectClass, Registry
from discovery.round.single_round import Outcome, Regions
from discovery.store import schema
from discovery.store.database import fact, insert, nanoseconds, set_fact, stamp
from discovery.store.store import Store, add_event, refresh_frame_classes
from flawline.messages import ClassState
from flawline.settings.discovery import DiscoverySettings

UNIONS = "unions"
PERSON = "person"
"""Who has given a region its class: rounds leave it there."""


class StaleRegistry(Exception):
    """A person has changed classes since the registry was read: what was computed from it must not be written."""


def load(connection: Connection) -> Registry:
    """Return the current registry."""
    rows = connection.execute(select(schema.classes).order_by(schema.classes.c.number))
    open_ones = connection.execute(select(schema.candidates).order_by(schema.candidates.c.number))
    return Registry(
        classes=tuple(_class_of(row) for row in rows),
        round=int(fact(connection, "round", "0")),
        next_number=int(fact(connection, "next_number", "1")),
        revision=int(fact(connection, "revision", "0")),
        candidates=tuple(_candidate_of(row) for row in open_ones),
        next_candidate=int(fact(connection, "next_candidate", "1")),
        unions={
            (loser, survivor): evidence for loser, survivor, evidence in json.loads(fact(connection, UNIONS, "[]"))
        },
        surveyed=int(fact(connection, "surveyed_region", "0")),
    )


def read(store: Store) -> Registry:
    """Return the registry of a store."""
    with store.reading() as connection:
        return load(connection)


def regions_of_round(connection: Connection, settings: DiscoverySettings, version: str) -> Regions:
    """Return the regions of a round: the latest, the latest without a class, and every class's exemplars.

    Bounded by the settings and the number of classes, whatever the history.
    """
    r, d = schema.regions, schema.defects
    same = r.c.embedding_version == version
    latest = _latest(connection, same, settings.window_regions)
    loose = _latest(connection, same & r.c.class_id.is_(None), settings.pool_regions)
    wanted = (r.c.id >= latest) | (r.c.class_id.is_(None) & (r.c.id >= loose)) | r.c.exemplar.is_(True)
    query = (
        select(
            r.c.id,
            r.c.defect_id,
            r.c.position,
            r.c.class_id,
            r.c.exemplar,
            r.c.assigned_by,
            r.c.embedding,
            d.c.frame_id,
            d.c.captured_ns,
            d.c.model_version,
            d.c.group_id,
        )
        .join_from(r, d, r.c.defect_id == d.c.id)
        .where(same, wanted)
        .order_by(r.c.id)
    )
    rows = connection.execute(query).all()
    vectors = np.frombuffer(b"".join(row.embedding for row in rows), "<f2").astype(np.float32)
    return Regions(
        ids=np.array([row.id for row in rows], np.int64),
        defect_ids=np.array([row.defect_id for row in rows], np.int64),
        keys=tuple(f"{row.frame_id}/{row.position}" for row in rows),
        classes=tuple(row.class_id for row in rows),
        exemplars=np.array([row.exemplar for row in rows], bool),
        captured_at=np.array([row.captured_ns for row in rows], np.int64),
        vectors=vectors.reshape(len(rows), -1) if rows else vectors.reshape(0, 1),
        groups=_numbered([(row.model_version, row.group_id) for row in rows]),
        pinned=np.array([row.assigned_by == PERSON for row in rows], bool),
    )


def _numbered(names: Sequence[tuple[str, int]]) -> np.ndarray:
    """Return a number for each distinct name: groups of different models have nothing in common."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], np.int64)


def write_round(
    store: Store, regions: Regions, outcome: Outcome, version: str, seconds: float, at: int
) -> tuple[str, ...]:
    """Write a round, whole or not at all, and return the classes it speaks of.

    Raises StaleRegistry when a person was faster; the round is then to be run again.
    """
    registry = outcome.registry
    with store.transaction() as connection:
        if int(fact(connection, "revision", "0")) != registry.revision:
            raise StaleRegistry
        before = {entry.id: entry for entry in load(connection).classes}
        save_classes(connection, registry.classes, registry.next_number)
        for child, parent in outcome.parents:
            statement = insert(connection, schema.class_parents).values(class_id=child, parent_id=parent)
            connection.execute(statement.on_conflict_do_nothing())
        _move_regions(connection, regions, outcome)
        for entry in registry.classes:
            if entry.state is ClassState.MERGED and before[entry.id].state is not ClassState.MERGED:
                assert entry.merged_into is not None
                move_members(connection, entry.id, entry.merged_into)
        for message in outcome.events:
            add_event(connection, message)
        figures = vars(outcome.figures) | {"at": stamp(at), "seconds": seconds, "embedding_version": version}
        connection.execute(schema.rounds.insert().values(round=registry.round, **figures))
        set_fact(connection, "round", str(registry.round))
        _save_candidates(connection, registry)
        set_fact(connection, UNIONS, json.dumps([[*pair, evidence] for pair, evidence in registry.unions.items()]))
        set_fact(connection, "surveyed_region", str(registry.surveyed))
        set_fact(connection, "last_region", str(int(regions.ids.max())))
    return tuple(message.class_id for message in outcome.events)


def save_classes(connection: Connection, classes: Iterable[DefectClass], next_number: int) -> None:
    """Write classes, new and known; a name is given up before another class takes it."""
    for entry in sorted(classes, key=lambda entry: (entry.name is not None, entry.number)):
        row = _row_of(entry)
        statement = insert(connection, schema.classes).values(row)
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=row))
    set_fact(connection, "next_number", str(next_number))


def _save_candidates(connection: Connection, registry: Registry) -> None:
    """Write what may become a class anew: they are few."""
    connection.execute(schema.candidates.delete())
    rows = [_row_of_candidate(entry) for entry in registry.candidates]
    if rows:
        connection.execute(schema.candidates.insert(), rows)
    set_fact(connection, "next_candidate", str(registry.next_candidate))


def move_members(connection: Connection, loser: str, survivor: str) -> None:
    """Give every region and defect of one class to another; its exemplars are chosen anew by the next round."""
    for table in (schema.regions, schema.defects, schema.defect_totals):
        connection.execute(update(table).where(table.c.class_id == loser).values(class_id=survivor))


def _latest(connection: Connection, condition: ColumnElement[bool], count: int) -> int:
    """Return the id from which on there are `count` regions."""
    ids = select(schema.regions.c.id).where(condition).order_by(schema.regions.c.id.desc()).limit(count).subquery()
    return int(connection.scalar(select(func.min(ids.c.id))) or 0)


def _move_regions(connection: Connection, regions: Regions, outcome: Outcome) -> None:
    changed = [
        (row, name, bool(exemplar))
        for row, (name, exemplar) in enumerate(zip(outcome.assigned, outcome.exemplars, strict=True))
        if name != regions.classes[row] or exemplar != regions.exemplars[row]
    ]
    if changed:
        statement = (
            update(schema.regions)
            .where(schema.regions.c.id == bindparam("row"))
            .values(class_id=bindparam("name"), exemplar=bindparam("chosen"), assigned_by=bindparam("by"))
        )
        pinned = np.zeros(len(regions), bool) if regions.pinned is None else regions.pinned
        rows = [
            {
                "row": int(regions.ids[i]),
                "name": name,
                "chosen": chosen,
                "by": (PERSON if pinned[i] else "round") if name else None,
            }
            for i, name, chosen in changed
        ]
        connection.execute(statement, rows)
    moved = [int(regions.defect_ids[row]) for row, name, _ in changed if name != regions.classes[row]]
    refresh_frame_classes(connection, moved)


def _class_of(row: Any) -> DefectClass:
    return DefectClass(
        id=row.id,
        number=row.number,
        state=ClassState(row.state),
        members=row.members,
        born_at=nanoseconds(row.born_at),
        born_round=row.born_round,
        last_seen_at=nanoseconds(row.last_seen_at),
        centroid=np.frombuffer(row.centroid, "<f4"),
        radius=row.radius,
        embedding_version=row.embedding_version,
        seen_rounds=row.seen_rounds,
        missed_rounds=row.missed_rounds,
        announced=row.announced,
        name=row.name,
        severity=row.severity,
        confirmed_at=nanoseconds(row.confirmed_at) if row.confirmed_at else None,
        merged_into=row.merged_into,
        bound=row.bound,
    )


def _candidate_of(row: Any) -> Candidate:
    values = {name: getattr(row, name) for name in Candidate.__dataclass_fields__}
    return Candidate(
        **values
        | {
            "centroid": np.frombuffer(row.centroid, "<f4"),
            "opened_at": nanoseconds(row.opened_at),
            "last_seen_at": nanoseconds(row.last_seen_at),
        }
    )


def _row_of_candidate(entry: Candidate) -> dict[str, Any]:
    return vars(entry) | {
        "centroid": np.asarray(entry.centroid, "<f4").tobytes(),
        "opened_at": stamp(entry.opened_at),
        "last_seen_at": stamp(entry.last_seen_at),
    }


def _row_of(entry: DefectClass) -> dict[str, Any]:
    return {
        "id": entry.id,
        "number": entry.number,
        "state": str(entry.state),
        "name": entry.name,
        "severity": entry.severity,
        "members": entry.members,
        "born_at": stamp(entry.born_at),
        "born_round": entry.born_round,
        "confirmed_at": stamp(entry.confirmed_at) if entry.confirmed_at is not None else None,
        "last_seen_at": stamp(entry.last_seen_at),
        "merged_into": entry.merged_into,
        "seen_rounds": entry.seen_rounds,
        "missed_rounds": entry.missed_rounds,
        "announced": entry.announced,
        "bound": entry.bound,
        "radius": entry.radius,
        "centroid": np.asarray(entry.centroid, "<f4").tobytes(),
        "embedding_version": entry.embedding_version,
    }
