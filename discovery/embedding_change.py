"""Classes across a change of embedding: crops say which class a region belongs to when vectors cannot be compared.

A worker's embedding cannot be made again from a stored crop, since it needs the whole frame. But the crops of a class's
exemplars and those of new regions can be described by one and the same backbone. So, after a change of model, regions
join the former class whose exemplars they look like, and that class gets its centroid from them: its id goes on. Where
discovery describes crops itself, the exemplars are simply described again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from sqlalchemy import ColumnElement, Connection, func, select, update

from discovery.learned import augment
from discovery.learned.augment import Crop
from discovery.round import clustering
from discovery.round.lineage import DefectClass
from discovery.store import registry, schema
from discovery.store.database import fact, parts, set_fact
from discovery.store.store import Store, add_members, refresh_frame_classes
from flawline.errors import FlawlineError
from flawline.messages import ClassState
from flawline.settings.discovery import DiscoverySettings
from scorer.vectors import unit

log = logging.getLogger(__name__)

Embed = Callable[[Sequence[Crop]], np.ndarray]

# A region joins the class that four of the five exemplars nearest to it have. A judgement, not measured.
NEIGHBOURS = 5
AGREEING = 4
# Nearer to the exemplars than all but a twentieth of them are to each other.
FAMILIAR_QUANTILE = 0.05
STEP_REGIONS = 64  # a judgement, not measured
MEMBERS_MIN = 3  # a judgement, not measured


class CropVectors:
    """Crops described once each, a slice at a time, so that intake never waits for long."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._known: dict[int, np.ndarray | None] = {}

    def prepare(self, connection: Connection, ids: Sequence[int]) -> bool:
        """Describe some of the regions that are still to be described; whether all of them are."""
        missing = [number for number in ids if number not in self._known][:STEP_REGIONS]
        if missing:
            self._known |= described(connection, missing, self._embed)
        return all(number in self._known for number in ids)

    def of(self, ids: Sequence[int]) -> dict[int, np.ndarray]:
        """Return the vectors of the regions whose crop could be used."""
        return {number: vector for number in ids if (vector := self._known.get(number)) is not None}

    def keep(self, ids: Sequence[int]) -> None:
        """Forget all others."""
        wanted = set(ids)
        self._known = {number: vector for number, vector in self._known.items() if number in wanted}


def described(connection: Connection, ids: Sequence[int], embed: Embed) -> dict[int, np.ndarray | None]:
    """Return vectors of regions from their stored crops and masks, None for crops that cannot be used."""
    r = schema.regions
    crops: dict[int, Crop] = {}
    for part in parts(list(ids)):
        for row in connection.execute(select(r.c.id, r.c.crop, r.c.mask).where(r.c.id.in_(part))):
            try:
                crops[row.id] = augment.decode(row.crop, row.mask)
            except FlawlineError as error:
                log.debug("region %d: %s", row.id, error)
    result: dict[int, np.ndarray | None] = dict.fromkeys(ids)
    if crops:
        for number, vector in zip(crops, embed(list(crops.values())), strict=True):
            result[number] = vector if np.isfinite(vector).all() and vector.any() else None
    return result


def waiting(connection: Connection, version: str, settings: DiscoverySettings) -> tuple[dict[int, str], list[int]]:
    """Return exemplars of other versions with their classes, and the regions of this version still to compare.

    Both are empty when there is nothing to carry over. Bounded by the exemplars and the window.
    """
    r, c = schema.regions, schema.classes
    dead = (str(ClassState.MERGED),)
    query = (
        select(r.c.id, r.c.class_id)
        .join_from(r, c, r.c.class_id == c.c.id)
        .where(r.c.exemplar.is_(True), r.c.embedding_version != version)
        .where(c.c.embedding_version != version, c.c.state.not_in(dead))
    )
    exemplars = {row.id: row.class_id for row in connection.execute(query)}
    if not exemplars:
        return {}, []
    compared = int(fact(connection, "compared_region", "0"))
    fresh = (
        select(r.c.id)
        .where(r.c.embedding_version == version, r.c.class_id.is_(None), r.c.id > compared)
        .order_by(r.c.id.desc())
        .limit(settings.window_regions)
    )
    waiting_ids = sorted(connection.scalars(fresh))
    return (exemplars, waiting_ids) if waiting_ids else ({}, [])


def alike(known: np.ndarray, names: Sequence[str], vectors: np.ndarray) -> list[str | None]:
    """Return the class of each unit vector (n, D) by its nearest exemplars (m, D); None where they disagree or are far.

    Four of the five nearest must be of one class, and the nearest as near as exemplars of that class are to each other.
    """
    if not len(known) or not len(vectors):
        return [None] * len(vectors)
    centre = known.mean(axis=0)  # what all crops have in common hides what tells them apart
    known, vectors = unit(known - centre), unit(vectors - centre)
    among = known @ known.T
    np.fill_diagonal(among, -np.inf)
    labels = np.array(names)
    same = labels[:, None] == labels[None, :]
    nearest = np.where(same, among, -np.inf).max(axis=1)
    reach = {
        name: float(np.quantile(nearest[mine], FAMILIAR_QUANTILE))
        for name in sorted(set(names))
        if np.isfinite(nearest[mine := (labels == name)]).all()
    }
    result: list[str | None] = []
    for cosines in vectors @ known.T:
        order = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
        candidates, counts = np.unique(labels[order], return_counts=True)
        name = str(candidates[counts.argmax()])
        agreed = counts.max() >= min(AGREEING, len(order))
        close = name in reach and float(cosines[labels == name].max()) >= reach[name]
        result.append(name if agreed and close else None)
    return result


def carry_over(store: Store, version: str, exemplars: dict[int, str], ids: Sequence[int], vectors: CropVectors) -> int:
    """Give regions to the former classes that they look like, in one transaction; return how many joined a class.

    Steps: 1. Find the class of each region by its crop. 2. Add the regions to their classes. 3. Measure centroid and
    radius of these classes from the new members, which makes them classes of this version. 4. Derive the classes of the
    frames.
    """
    # 1. Find the classes.
    known = vectors.of(list(exemplars))
    new = vectors.of(ids)
    names = alike(
        np.stack(list(known.values())) if known else np.zeros((0, 1), np.float32),
        [exemplars[number] for number in known],
        np.stack(list(new.values())) if new else np.zeros((0, 1), np.float32),
    )
    r, d = schema.regions, schema.defects
    with store.transaction() as connection:
        current = registry.load(connection)
        living = {entry.id: entry for entry in current.live}
        joined: dict[str, list[int]] = {}
        for number, name in zip(new, names, strict=True):
            if name in living:
                joined.setdefault(str(name), []).append(number)
        # 2. Add the regions.
        changed = []
        for name, numbers in sorted(joined.items()):
            for part in parts(numbers):
                free = r.c.id.in_(part) & r.c.class_id.is_(None)
                query = select(func.count(), func.max(d.c.captured_ns)).join_from(r, d, r.c.defect_id == d.c.id)
                count, captured_ns = connection.execute(query.where(free)).one()
                connection.execute(update(r).where(free).values(class_id=name, assigned_by="crop"))
                if count:
                    add_members(connection, name, captured_ns, count)
            if living[name].embedding_version != version:
                changed.append(name)
        # 3. Measure the classes.
        current = registry.load(connection)
        remeasured = [entry for entry in current.live if entry.id in changed]
        measured = [_measured(connection, entry, version) for entry in remeasured]
        registry.save_classes(connection, [entry for entry in measured if entry is not None], current.next_number)
        # 4. Derive the classes of the frames.
        refresh_frame_classes(connection, _defects_of(connection, [n for members in joined.values() for n in members]))
        set_fact(connection, "compared_region", str(max(ids)))
    return sum(map(len, joined.values()))


def describe_again(store: Store, version: str, settings: DiscoverySettings, embed: Embed) -> bool:
    """Describe a slice of what is kept in another version anew; True when all of it is and the classes follow.

    For embeddings that discovery makes of crops itself: exemplars and the latest regions, ids as they are.
    """
    r = schema.regions
    with store.reading() as connection:
        newest = connection.scalar(select(func.max(r.c.id))) or 0
        of, _, place = fact(connection, "described_again", "").rpartition(" ")
        passed = int(place) if of == version else 0
        in_use: ColumnElement[bool] = r.c.exemplar.is_(True) | (r.c.id > newest - settings.window_regions)
        query = (
            select(r.c.id)
            .where(r.c.id > passed, r.c.embedding_version != version, in_use)
            .order_by(r.c.id)
            .limit(STEP_REGIONS)
        )
        ids = list(connection.scalars(query))
        vectors = described(connection, ids, embed)
    with store.transaction() as connection:
        for number, vector in vectors.items():
            if vector is not None:
                row = {"embedding": vector.astype("<f2").tobytes(), "embedding_version": version}
                connection.execute(update(r).where(r.c.id == number).values(row))
        if ids:
            set_fact(connection, "described_again", f"{version} {max(ids)}")
            return False
        set_fact(connection, "described_again", "")  # a version that comes back finds others to be described
        current = registry.load(connection)
        outdated = [entry for entry in current.live if entry.embedding_version != version]
        measured = [_measured(connection, entry, version, 1) for entry in outdated]
        registry.save_classes(connection, [entry for entry in measured if entry is not None], current.next_number)
    return True


def _measured(connection: Connection, entry: DefectClass, version: str, least: int = MEMBERS_MIN) -> DefectClass | None:
    """Return a class with centroid and radius from its members of this version; None when they are too few."""
    r = schema.regions
    query = (
        select(r.c.embedding)
        .where(r.c.class_id == entry.id, r.c.embedding_version == version)
        .order_by(r.c.id.desc())
        .limit(500)
    )
    rows = list(connection.scalars(query))
    if len(rows) < least:
        return None
    vectors = unit(np.stack([np.frombuffer(row, "<f2") for row in rows]))
    centroid = unit(vectors.mean(axis=0))
    radius = clustering.radius_of(vectors, centroid)
    return replace(entry, centroid=centroid, radius=radius, embedding_version=version)


def _defects_of(connection: Connection, ids: Sequence[int]) -> list[int]:
    r = schema.regions
    defect_ids: list[int] = []
    for part in parts(list(ids)):
        defect_ids += connection.scalars(select(r.c.defect_id).where(r.c.id.in_(part)))
    return defect_ids
