"""One round: new regions speak for and against candidates, and the known classes are carried over to the clusters.

Now and then a round is a survey, which clusters all regions again; the others hold on to what is known, and look for
groups outside of it. Pure: from arrays and the registry to what has to be written, so that a round that dies half-way
has changed nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from discovery.round import candidates, clustering, lineage
from discovery.round.candidates import Candidate
from discovery.round.clustering import Clustering
from discovery.round.lineage import Change, Clusters, DefectClass, Evolution, Registry, Rules
from flawline.messages import ClassEvent, ClassState, Transition
from flawline.settings.discovery import DiscoverySettings
from scorer.vectors import unit

# Between rounds a region joins a class well inside its reach, and clearly nearer to it than to any other.
REACH = 1.2
CLEARLY_NEARER = 0.9
BIRTH_MEMBERS = 5
# Share of a class's exemplars that those may be which a person has picked out: they say what it is, the others how
# wide it is. A judgement, not measured.
PINNED_SHARE = 0.5
# Share of a cluster from which on a dense group is that cluster. A judgement, not measured.
OWN_SHARE = 0.8
# A survey is due when so large a share of the regions has come since the last one. Of fewer it would mostly say the
# same again. A judgement, not measured.
SURVEY_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of a round, oldest first: `keys` name them for sampling, `vectors` float32 (n, D).

    `groups` int (n) number the look-alike images that they come from, where that is known; `pinned` (n) are those whose
    class a person has given them.
    """

    ids: np.ndarray
    defect_ids: np.ndarray
    keys: tuple[str, ...]
    classes: tuple[str | None, ...]
    exemplars: np.ndarray
    captured_at: np.ndarray
    vectors: np.ndarray
    groups: np.ndarray | None = None
    pinned: np.ndarray | None = None

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
        false_births_per_month=settings.false_births_per_month,
    )


def run_round(
    regions: Regions,
    registry: Registry,
    settings: DiscoverySettings,
    version: str,
    last_id: int,
    at: int,
    survey: Clustering | None = None,
) -> Outcome | None:
    """Run a round over the regions of one embedding version; None while there are too few for any class.

    `last_id` is the newest region that the round before has seen, `at` the time of this one in ns UTC. `survey` holds
    clusters that somebody has already found (a learned round); without it the round surveys when a survey is due.

    Steps: 1. Count what the new regions say of the candidates. 2. Find the clusters.
    3. Carry the classes over. 4. Measure them.
    """
    if len(regions) < clustering.REGIONS_MIN and survey is None:
        return None
    fresh = regions.ids > last_id
    view = _View(regions, registry, version)
    # 1. What the new regions say.
    registry = replace(
        registry, candidates=view.witnessed(registry.candidates, fresh, settings.false_births_per_month, at)
    )
    # 2. The clusters.
    if survey is not None:
        clusters = view.surveyed(survey.labels)
    elif not view.names or _survey_is_due(regions, registry):
        survey = view.clustered(settings, last_id)
        clusters = view.surveyed(view.with_groups(survey.labels))
    else:
        clusters = view.held()
    if clusters.known is None:
        registry = replace(registry, surveyed=int(regions.ids.max()))
    # 3. The classes.
    rules = rules_of(settings)
    evolution = lineage.evolve(registry, regions.classes, clusters, fresh, at, rules, version, regions.pinned)
    # 4. Their measures.
    exemplars = _exemplars(regions, evolution.assigned, settings.exemplars)
    classes = _measured(regions, evolution, version)
    number = registry.round + 1
    events, classes = _events(classes, evolution.changes, number, at)
    count = len(clusters.centroids)
    proposals = [count, *(survey.proposals.values() if survey is not None else ())]
    return Outcome(
        registry=replace(evolution.registry, classes=classes),
        assigned=evolution.assigned,
        exemplars=exemplars,
        events=events,
        parents=tuple((change.class_id, parent) for change in evolution.changes for parent in change.parents),
        figures=Figures(
            regions=len(regions),
            unassigned=sum(name is None for name in evolution.assigned),
            clusters=count,
            clusters_low=min(proposals),
            clusters_high=max(proposals),
            stability=survey.stability if survey is not None else 1.0,
            churn=evolution.churn,
        ),
    )


class _View:
    """The regions of a round by what sets them apart within their look-alike group, and where the known classes are.

    `points` float32 (n, D) are unit vectors, `names` the classes that have members here, `owners` (n) their places in
    it, -1 for none, `centroids` (k, D) theirs among the points.
    """

    def __init__(self, regions: Regions, registry: Registry, version: str) -> None:
        present = set(regions.classes)
        self.names = tuple(entry.id for entry in registry.live if entry.id in present)
        place_of = {name: place for place, name in enumerate(self.names)}
        self.owners = np.array([place_of.get(name, -1) if name else -1 for name in regions.classes], int)
        self.points = clustering.centred(unit(np.asarray(regions.vectors, np.float32)), regions.groups, self.owners)
        self.centroids = (
            clustering.centroids_of(self.points[self.owners >= 0], self.owners[self.owners >= 0])
            if self.names
            else np.zeros((0, self.points.shape[1]), np.float32)
        )
        self._regions, self._version = regions, version
        fixed = {entry.id for entry in registry.live if entry.fixed}
        self._fixed = np.array([name in fixed for name in self.names], bool)

    def witnessed(
        self, known: Sequence[Candidate], fresh: np.ndarray, false_births_per_month: float, at: int
    ) -> tuple[Candidate, ...]:
        """Return the candidates with the evidence of the regions that came since the last round."""
        active = [entry for entry in known if entry.open and entry.active and entry.embedding_version == self._version]
        place_of = {entry.number: len(self.names) + place for place, entry in enumerate(active)}
        centroids = np.concatenate([self.centroids, *(entry.centroid[None] for entry in active)])
        return candidates.witnessed(
            known,
            self.points,
            self._regions.groups,
            (self.points @ centroids.T).argmax(axis=1) if len(centroids) else self.owners,
            [place_of.get(entry.number) for entry in known],
            centroids,
            fresh,
            false_births_per_month,
            at,
        )

    def clustered(self, settings: DiscoverySettings, last_id: int) -> Clustering:
        """Return clusters of all regions, starting from the known classes. There are at least REGIONS_MIN regions."""
        clusters = clustering.cluster(
            self.points,
            self.centroids,
            groups=self._regions.groups,
            limit=settings.class_limit,
            seed=settings.seed,
            seen=float(np.mean(self._regions.ids <= last_id)),
        )
        assert clusters is not None
        return clusters

    def surveyed(self, labels: np.ndarray) -> Clusters:
        """Return the clusters of a survey by its labels, -1 for none."""
        regions, labels = self._regions, self._parted(labels)
        labelled = labels >= 0
        centroids = clustering.centroids_of(self.points[labelled], labels[labelled])
        is_new_line = len(regions) < candidates.NEW_LINE_REGIONS
        elsewhere = candidates.known_elsewhere(labels, centroids, regions.groups, self.owners, self.centroids)
        return Clusters(
            labels,
            centroids,
            self._places(),
            evidence=candidates.cross_fitted(self.points, regions.groups, labels) if is_new_line else None,
            elsewhere=tuple(self.names[place] if place >= 0 else None for place in elsewhere),
            clear=self._clear(),
            is_new_line=is_new_line,
        )

    def _parted(self, labels: np.ndarray) -> np.ndarray:
        """Return labels (n) in which classes that people have spoken about share no cluster: they stay two.

        A cluster in which most members of several of them lie is divided: members go with their class, other regions
        with the nearest one.
        """
        result = labels.copy()
        for label in range(int(labels.max()) + 1):
            rows = np.flatnonzero(labels == label)
            here = np.bincount(self.owners[rows] + 1, minlength=len(self.names) + 1)[1:]
            sizes = np.bincount(self.owners + 1, minlength=len(self.names) + 1)[1:]
            places = np.flatnonzero(self._fixed & (here > lineage.MAJORITY * sizes))
            if len(places) < 2:
                continue
            nearest = places[(self.points[rows] @ self.centroids[places].T).argmax(axis=1)]
            sides = np.where(np.isin(self.owners[rows], places), self.owners[rows], nearest)
            for place in places[1:]:
                result[rows[sides == place]] = result.max() + 1
        return result

    def held(self) -> Clusters:
        """Return the clusters of a round without a survey: the known classes, and dense groups out of their reach."""
        labels = clustering.with_dense_groups(self._near_known(), self.points)
        groups = range(len(self.names), int(labels.max()) + 1)
        centroids = [*self.centroids, *(unit(self.points[labels == label].mean(axis=0)) for label in groups)]
        return Clusters(labels, np.stack(centroids), self._places(), known=(*self.names, *[None] * len(groups)))

    def with_groups(self, labels: np.ndarray) -> np.ndarray:
        """Return a clustering's labels, -1 out of reach of every cluster; dense groups there have their own labels.

        So have those out of reach of the known classes: a clustering of all regions would join new kinds and rare ones.
        """
        result = clustering.within_reach(self.points, labels)
        grouped = result
        if self.names:
            near = self._near_known() >= 0
            result = np.where(near, labels, result)
            grouped = np.where(near, labels, -1)
        grouped = clustering.with_dense_groups(grouped, self.points)
        for label in range(int(labels.max()) + 1, int(grouped.max()) + 1):
            members = grouped == label
            same = np.bincount(result[members] + 1)[1:]
            if not len(same) or same.max() < OWN_SHARE * (result == same.argmax()).sum():  # not a cluster already
                result[members] = label
        return np.where(result < 0, -1, np.unique(result, return_inverse=True)[1] - int((result < 0).any()))

    def _near_known(self) -> np.ndarray:
        """Return the place (n) of the nearest class of each region, -1 out of its reach."""
        reach = [
            clustering.reach_of(self.points[self.owners == place], centroid)
            for place, centroid in enumerate(self.centroids)
        ]
        index, distance, _ = clustering.nearest(self.points, self.centroids)
        return np.where(distance <= np.array(reach)[index], index, -1)

    def _places(self) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.centroids, strict=True))

    def _clear(self) -> tuple[str | None, ...]:
        """Return the class that is clearly nearer to each region than any other, None where there is none."""
        if not self.names:
            return (None,) * len(self.points)
        index, first, second = clustering.nearest(self.points, self.centroids)
        clear = first <= CLEARLY_NEARER * second
        return tuple(self.names[place] if near else None for place, near in zip(index, clear, strict=True))


def _survey_is_due(regions: Regions, registry: Registry) -> bool:
    return float(np.mean(regions.ids > registry.surveyed)) >= SURVEY_SHARE


def clustered(
    regions: Regions, registry: Registry, settings: DiscoverySettings, version: str, last_id: int
) -> Clustering | None:
    """Return clusters of regions of one embedding version, from its known classes; None when there are too few.

    `last_id` is the newest region that the known classes were made from. Every region gets a cluster.
    """
    if len(regions) < clustering.REGIONS_MIN:
        return None
    view = _View(regions, registry, version)
    clusters = view.clustered(settings, last_id)
    labels = view.with_groups(clusters.labels)
    labels = np.unique(np.where(labels < 0, clusters.labels, labels), return_inverse=True)[1]
    return replace(clusters, labels=labels, centroids=clustering.centroids_of(view.points, labels))


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
        radii = np.array([max(entry.radius, clustering.RADIUS_MIN) for entry in self._classes])[index]
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
    """Return each class's exemplars: members with the smallest hashed keys, a uniform sample that changes little.

    Members that a person has picked out come first, up to PINNED_SHARE of all.
    """
    chosen = np.zeros(len(regions), bool)
    pinned = np.zeros(len(regions), bool) if regions.pinned is None else regions.pinned
    by_class: dict[str, list[int]] = {}
    for row, name in enumerate(assigned):
        if name is not None:
            by_class.setdefault(name, []).append(row)
    for rows in by_class.values():
        rows.sort(key=lambda row: hashlib.blake2b(regions.keys[row].encode(), digest_size=8).digest())
        picked = [row for row in rows if pinned[row]][: round(PINNED_SHARE * count)]
        chosen[picked] = True
        chosen[[row for row in rows if not chosen[row]][: count - len(picked)]] = True
    return chosen


def _measured(regions: Regions, evolution: Evolution, version: str) -> tuple[DefectClass, ...]:
    """Return the classes with counted members, and with centroids and radii from these regions."""
    before = _count(regions.classes)
    after = _count(evolution.assigned)
    vectors = unit(regions.vectors)
    names = np.array([name or "" for name in evolution.assigned])
    absorbed: dict[str, int] = {}
    known = {entry.id: entry for entry in evolution.registry.classes}
    for entry in evolution.registry.classes:
        # What a merged class has beyond the regions at hand goes to the survivor as well.
        if entry.state is ClassState.MERGED and entry.members:
            survivor = entry
            while survivor.merged_into is not None:
                survivor = known[survivor.merged_into]
            absorbed[survivor.id] = absorbed.get(survivor.id, 0) + entry.members - before.get(entry.id, 0)
    result = []
    for entry in evolution.registry.classes:
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
    told = {change.class_id for change in changes}
    grown = [
        Change(entry.id, Transition.GREW)
        for entry in classes
        if entry.id not in told
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
        selected=change.selected,
    )
