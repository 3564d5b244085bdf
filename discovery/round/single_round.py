"""One round: the regions it looks at are clustered again, and the known classes are carried over.

Pure: from arrays and the registry to what has to be written, so that a round that dies half-way has changed nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from discovery.round import clustering, lineage
from discovery.round.clustering import Clustering
from discovery.round.lineage import Change, DefectClass, Evolution, Registry, Rules
from flawline.messages import ClassEvent, ClassState, Transition
from flawline.settings.discovery import DiscoverySettings
from scorer.vectors import unit

# Between rounds a region joins a class well inside its reach, and clearly nearer to it than to any other.
REACH = 1.2
CLEARLY_NEARER = 0.9
BIRTH_MEMBERS = 5
# A class of few, alike members would otherwise take in nothing but copies of them.
RADIUS_MIN = 0.02


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of a round, oldest first: `keys` name them for sampling, `vectors` float32 (n, D).

    `groups` int (n) number the look-alike images that they come from, where that is known.
    """

    ids: np.ndarray
    defect_ids: np.ndarray
    keys: tuple[str, ...]
    classes: tuple[str | None, ...]
    exemplars: np.ndarray
    captured_at: np.ndarray
    vectors: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Figures:
    """What is remembered of a round."""

    regions: int
    unassigned: int
    clusters: int
    clusters_low: int
    clusters_high: int
    stability: float
    churn: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a round changes: regions get classes and exemplars are chosen anew, as one transaction with the registry."""

    registry: Registry
    assigned: tuple[str | None, ...]
    exemplars: np.ndarray
    events: tuple[ClassEvent, ...]
    parents: tuple[tuple[str, str], ...]
    figures: Figures


def rules_of(settings: DiscoverySettings) -> Rules:
    """Return the life cycle's rules from the settings."""
    return Rules(
        birth_members=min(BIRTH_MEMBERS, settings.min_members),
        min_members=settings.min_members,
        confirm_rounds=settings.confirm_rounds,
        dormant_rounds=settings.dormant_rounds,
    )


def run_round(
    regions: Regions,
    registry: Registry,
    settings: DiscoverySettings,
    version: str,
    last_id: int,
    at: int,
    clusters: Clustering | None = None,
) -> Outcome | None:
    """Cluster the regions of one embedding version; None while there are too few for any class.

    `last_id` is the newest region that the round before has seen, `at` the time of this one in ns UTC. `clusters`
    from another source replace the clustering.
    """
    clusters = clusters or clustered(regions, registry, settings, version, last_id)
    if clusters is None:
        return None
    evolution = lineage.evolve(
        registry,
        regions.classes,
        clusters.labels,
        clusters.centroids,
        regions.ids > last_id,
        at,
        rules_of(settings),
        version,
    )
    exemplars = _exemplars(regions, evolution.assigned, settings.exemplars)
    classes = _measured(regions, evolution, version)
    number = registry.round + 1
    events, classes = _events(classes, evolution.changes, number, at)
    proposals = [clusters.count, *clusters.proposals.values()]
    return Outcome(
        registry=Registry(
            classes=classes,
            round=number,
            next_number=evolution.next_number,
            revision=registry.revision,
            pending=evolution.pending,
        ),
        assigned=evolution.assigned,
        exemplars=exemplars,
        events=events,
        parents=tuple((change.class_id, parent) for change in evolution.changes for parent in change.parents),
        figures=Figures(
            regions=len(regions),
            unassigned=sum(name is None for name in evolution.assigned),
            clusters=clusters.count,
            clusters_low=min(proposals),
            clusters_high=max(proposals),
            stability=clusters.stability,
            churn=evolution.churn,
        ),
    )


def clustered(
    regions: Regions, registry: Registry, settings: DiscoverySettings, version: str, last_id: int
) -> Clustering | None:
    """Return clusters of regions of one embedding version, from its known classes; None when there are too few.

    `last_id` is the newest region at the time when the known classes were formed.
    """
    comparable = [entry for entry in registry.live if entry.embedding_version == version]
    return clustering.cluster(
        regions.vectors,
        np.stack([entry.centroid for entry in comparable]) if comparable else None,
        np.array([max(entry.radius, RADIUS_MIN) for entry in comparable]) if comparable else None,
        groups=regions.groups,
        limit=settings.class_limit,
        seed=settings.seed,
        seen=float(np.mean(regions.ids <= last_id)) if len(regions) else 0.0,
    )


class Assigner:
    """Gives regions that arrive between rounds to the known classes."""

    def __init__(self, registry: Registry, version: str) -> None:
        self._classes = [entry for entry in registry.live if entry.embedding_version == version]
        self._centroids = np.stack([entry.centroid for entry in self._classes]) if self._classes else None

    def assign(self, vectors: np.ndarray) -> list[str | None]:
        """Return the class of each unit vector (n, D), None outside of all classes and between two."""
        if self._centroids is None or not len(vectors):
            return [None] * len(vectors)
        index, first, second = clustering.nearest(vectors, self._centroids)
        radii = np.array([max(entry.radius, RADIUS_MIN) for entry in self._classes])[index]
        clear = (first <= REACH * radii) & (first <= CLEARLY_NEARER * second)
        return [self._classes[i].id if ok else None for i, ok in zip(index, clear, strict=True)]


def problem_of(vector: np.ndarray, dimension: int | None) -> str | None:
    """Return why an embedding cannot be used, None when it can."""
    if vector.ndim != 1 or vector.size == 0:
        return f"embedding of shape {list(vector.shape)} is no vector"
    if dimension is not None and vector.size != dimension:
        return f"embedding has {vector.size} dimensions, others of its version have {dimension}"
    if not np.isfinite(vector).all():
        return "embedding holds NaN or infinity"
    if not vector.any():
        return "embedding is zero"
    return None


def _exemplars(regions: Regions, assigned: Sequence[str | None], count: int) -> np.ndarray:
    """Return each class's exemplars: members with the smallest hashed keys, a uniform sample that changes little."""
    chosen = np.zeros(len(regions), bool)
    by_class: dict[str, list[int]] = {}
    for row, name in enumerate(assigned):
        if name is not None:
            by_class.setdefault(name, []).append(row)
    for rows in by_class.values():
        rows.sort(key=lambda row: hashlib.blake2b(regions.keys[row].encode(), digest_size=8).digest())
        chosen[rows[:count]] = True
    return chosen


def _measured(regions: Regions, evolution: Evolution, version: str) -> tuple[DefectClass, ...]:
    """Return the classes with counted members, and with centroids and radii from these regions."""
    before = _count(regions.classes)
    after = _count(evolution.assigned)
    vectors = unit(regions.vectors)
    names = np.array([name or "" for name in evolution.assigned])
    absorbed: dict[str, int] = {}
    known = {entry.id: entry for entry in evolution.classes}
    for entry in evolution.classes:
        # What a merged class has beyond the regions at hand goes to the survivor as well.
        if entry.state is ClassState.MERGED and entry.members:
            survivor = entry
            while survivor.merged_into is not None:
                survivor = known[survivor.merged_into]
            absorbed[survivor.id] = absorbed.get(survivor.id, 0) + entry.members - before.get(entry.id, 0)
    result = []
    for entry in evolution.classes:
        if entry.state is ClassState.MERGED:
            result.append(replace(entry, members=0))
            continue
        members = entry.members - before.get(entry.id, 0) + after.get(entry.id, 0) + absorbed.get(entry.id, 0)
        entry = replace(entry, members=members)
        rows = np.flatnonzero(names == entry.id)
        if len(rows):
            centroid = unit(vectors[rows].mean(axis=0))
            entry = replace(
                entry,
                centroid=centroid,
                radius=clustering.radius_of(vectors[rows], centroid),
                last_seen_at=max(int(regions.captured_at[rows].max()), entry.last_seen_at if entry.announced else 0),
                embedding_version=version,
            )
        result.append(entry)
    return tuple(result)


def _count(names: Sequence[str | None]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        if name is not None:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _events(
    classes: tuple[DefectClass, ...], changes: Sequence[Change], number: int, at: int
) -> tuple[tuple[ClassEvent, ...], tuple[DefectClass, ...]]:
    """Return the events of a round, and the classes with the size that they announce."""
    known = {entry.id: entry for entry in classes}
    changed = {change.class_id for change in changes}
    grown = [
        Change(entry.id, Transition.GREW)
        for entry in classes
        if entry.id not in changed
        and entry.state is not ClassState.MERGED
        and entry.members >= lineage.GROWTH * max(entry.announced, 1)
    ]
    events = tuple(event_of(known[change.class_id], change, number, at, str(number)) for change in (*changes, *grown))
    announced = {event.class_id for event in events}
    return events, tuple(
        replace(entry, announced=entry.members) if entry.id in announced else entry for entry in classes
    )


def event_of(
    known: DefectClass,
    change: Change,
    number: int,
    at: int,
    serial: str,
    who: str | None = None,
    why: str | None = None,
) -> ClassEvent:
    """Return the message of a transition; its id follows from the content, so that a repeated message counts once."""
    return ClassEvent(
        event_id=f"{change.class_id}:{serial}:{change.transition}",
        class_id=change.class_id,
        transition=change.transition,
        at=at,
        round=number,
        state=known.state,
        members=known.members,
        name=known.name,
        severity=known.severity,
        parents=change.parents,
        merged_into=change.merged_into or known.merged_into,
        who=who,
        why=why,
    )
