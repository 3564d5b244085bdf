"""Identity of defect classes across rounds: which cluster is which known class, and what has happened to each.

The clusters of a survey are matched to classes by a Hungarian assignment over shared members and centroids, in the
manner of MONIC (Spiliopoulou et al., KDD 2006). A cluster that no class owns is a candidate, new or known from before;
it becomes a class, out of nothing or out of one that splits, when the regions that came since speak for it
(`candidates`). Two classes merge when one survey after the other finds them as one. Ids are given to classes only, and
are never reused and never renumbered. What people have said binds: a class that a person named, merged, split or
dismissed is neither split nor merged away here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from discovery.round import candidates
from discovery.round.candidates import Candidate
from flawline.messages import ClassState, Transition

# The match of classes and clusters: its weights, the price of staying alone, the least likeness of a pair, and the
# members below which only centroids count. Judgements, not measured one by one; the benchmark of discovery, with no id
# changed in 40 rounds, holds them together.
MEMBER_WEIGHT = 0.7
CENTROID_WEIGHT = 0.3
UNMATCHED_COST = 0.6
JACCARD_MIN = 0.3
COSINE_MIN = 0.8
FEW_SHARED = 5
MAJORITY = 0.5  # by definition
GROWTH = 2  # a class is published again when it has doubled; a judgement
# Centred clusters of one kind have cosines above this from round to round, different kinds of three simulated lines
# below 0.3. A judgement in between.
SAME_COSINE = 0.7
# A survey that finds two classes as one, or apart, is a trial as a member is for a candidate: a chance error is right
# half of the time. So it takes eight surveys in a row.
UNION, APART = math.log(0.95 / 0.5), math.log(0.05 / 0.5)
MERGE_EVIDENCE = math.log(100)
# A class sleeps when so many members should have come and none did: by chance one time in a thousand.
MISSED_MEMBERS = 7


@dataclass(frozen=True, eq=False)
class DefectClass:
    """A known class. Times are ns UTC; `centroid` is a unit vector float32 (D), `radius` a cosine distance.

    `seen_rounds` counts rounds in a row that found it, `missed_rounds` those without a new member, `announced` is its
    size when it was last published, and `bound` says that a person has spoken about it.
    """

    id: str
    number: int
    state: ClassState
    members: int
    born_at: int
    born_round: int
    last_seen_at: int
    centroid: np.ndarray
    radius: float
    embedding_version: str
    seen_rounds: int = 0
    missed_rounds: int = 0
    announced: int = 0
    name: str | None = None
    severity: str | None = None
    confirmed_at: int | None = None
    merged_into: str | None = None
    bound: bool = False

    @property
    def fixed(self) -> bool:
        """Whether a person's word keeps it from being split or merged away."""
        return self.bound or self.name is not None or self.state is ClassState.DISMISSED


@dataclass(frozen=True, eq=False)
class Registry:
    """Every class there has ever been, what may become one, and the counters from which new ids are made.

    `unions` is the log evidence that two classes, (loser, survivor), are one; `surveyed` the newest region of the last
    survey; `revision` counts what people have changed.
    """

    classes: tuple[DefectClass, ...] = ()
    round: int = 0
    next_number: int = 1
    revision: int = 0
    candidates: tuple[Candidate, ...] = ()
    next_candidate: int = 1
    unions: Mapping[tuple[str, str], float] = field(default_factory=dict)
    surveyed: int = 0

    @property
    def live(self) -> tuple[DefectClass, ...]:
        """Classes that can have members."""
        return tuple(entry for entry in self.classes if entry.state is not ClassState.MERGED)

    @property
    def is_waiting(self) -> bool:
        """Whether a candidate has the evidence that it needs."""
        return any(entry.open and entry.active and entry.is_proven for entry in self.candidates)


@dataclass(frozen=True)
class Rules:
    """When a cluster becomes a class, and a class confirmed or dormant."""

    birth_members: int = 5
    min_members: int = 10
    confirm_rounds: int = 2
    dormant_rounds: int = 20
    false_births_per_month: float = 0.1


@dataclass(frozen=True)
class Change:
    """A transition of one class; `selected` counts the members that a person has picked out for it."""

    class_id: str
    transition: Transition
    parents: tuple[str, ...] = ()
    merged_into: str | None = None
    selected: int = 0


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of a round: `labels` int (n), -1 for none, and unit `centroids` (k, D).

    `places` are the centroids of the classes that have regions here. `known` says which class each cluster is, None for
    what is new; of a survey, which looks at everything afresh, it is None as a whole. `elsewhere` has for each cluster
    of a survey the class that it may be as it looks on another product, `clear` for each region the class that is
    clearly the nearest. `evidence` (k) is what the regions of a new line say of a cluster, None on another line.
    """

    labels: np.ndarray
    centroids: np.ndarray
    places: Mapping[str, np.ndarray]
    known: tuple[str | None, ...] | None = None
    elsewhere: tuple[str | None, ...] = ()
    clear: tuple[str | None, ...] = ()
    evidence: np.ndarray | None = None
    is_new_line: bool = False


@dataclass(frozen=True, eq=False)
class Evolution:
    """What a round does to the registry. `assigned` has the class of each region, None for none.

    The classes' members, centroids and radii are still those of before; new classes have none yet.
    """

    registry: Registry
    assigned: tuple[str | None, ...]
    changes: tuple[Change, ...]
    churn: float


def class_id(number: int) -> str:
    """Return the id of the class with this number."""
    return f"D-{number:04d}"


def evolve(
    registry: Registry,
    previous: Sequence[str | None],
    clusters: Clusters,
    fresh: np.ndarray,
    at: int,
    rules: Rules = Rules(),
    embedding_version: str = "",
    pinned: np.ndarray | None = None,
) -> Evolution:
    """Carry the classes over to the clusters of a round.

    For each region: `previous` its class so far, `fresh` (n) whether it has come since the last round, `pinned` (n)
    whether a person has put it where it is. `at` is the time of the round. The candidates of the registry have been
    given the evidence of the fresh regions.
    """
    pinned = np.zeros(len(previous), bool) if pinned is None else pinned
    return _Round(registry, previous, clusters, fresh, at, rules, embedding_version, pinned).evolve()


def match(overlap: np.ndarray, old_sizes: np.ndarray, new_sizes: np.ndarray, cosines: np.ndarray) -> dict[int, int]:
    """Return the new cluster of each old class, by the least total cost; what fits nothing is left out.

    `overlap` (n, m) counts shared members, the sizes count the members that each has in both rounds, `cosines` (n, m)
    compares centroids (NaN where they cannot be compared).
    """
    n, m = overlap.shape
    if not (n and m):
        return {}
    jaccard = overlap / np.maximum(old_sizes[:, None] + new_sizes[None, :] - overlap, 1)
    alike = np.nan_to_num(np.maximum(cosines, 0))
    few = (old_sizes < FEW_SHARED)[:, None] & ~np.isnan(cosines)
    cost = np.where(few, 1 - alike, 1 - (MEMBER_WEIGHT * jaccard + CENTROID_WEIGHT * alike))
    # Half of the price of staying alone for each of the two that do.
    padded = np.full((n + m, n + m), UNMATCHED_COST / 2)
    padded[:n, :m] = cost
    padded[n:, m:] = 0
    fits = (jaccard >= JACCARD_MIN) | (few & (alike >= COSINE_MIN))
    rows, columns = linear_sum_assignment(padded)
    return {int(i): int(j) for i, j in zip(rows, columns, strict=True) if i < n and j < m and fits[i, j]}


class _Round:
    """The steps of one round, in the order in which they build on each other."""

    def __init__(
        self,
        registry: Registry,
        previous: Sequence[str | None],
        clusters: Clusters,
        fresh: np.ndarray,
        at: int,
        rules: Rules,
        embedding_version: str,
        pinned: np.ndarray,
    ) -> None:
        self.pinned = pinned
        self.registry, self.rules, self.at, self.version = registry, rules, at, embedding_version
        self.round = registry.round + 1
        self.classes = {entry.id: entry for entry in registry.classes}
        self.candidates = {entry.number: entry for entry in candidates.remembered(registry.candidates, at)}
        self.old = [entry.id for entry in registry.live]
        self.clusters, self.labels, self.fresh, self.previous = clusters, clusters.labels, fresh, previous
        row_of = {name: row for row, name in enumerate(self.old)}
        self.before = np.array([row_of.get(name, -1) if name else -1 for name in previous], int)
        self.overlap = np.zeros((len(self.old), len(clusters.centroids)), int)
        shared = (self.before >= 0) & (self.labels >= 0)
        np.add.at(self.overlap, (self.before[shared], self.labels[shared]), 1)
        # A class's members that fell into no cluster still count against a match.
        self.old_sizes = np.bincount(self.before[self.before >= 0], minlength=len(self.old))
        self.new_sizes = np.bincount(self.labels[self.labels >= 0], minlength=len(clusters.centroids))
        self.owner: dict[int, str] = {}
        self.candidate_of: dict[int, int] = {}
        self.unions: dict[tuple[str, str], float] = dict(registry.unions)
        self.changes: list[Change] = []
        self.next_number, self.next_candidate = registry.next_number, registry.next_candidate

    def evolve(self) -> Evolution:
        if self.clusters.known is None:
            self._match_survey()
            self._merge_lost_classes()
        else:
            self._take_known(self.clusters.known)
        self._rest()
        self._leave_pieces()
        self._admit()
        assigned = self._assign()
        self._age(assigned)
        shared = [(old, new) for old, new in zip(self.previous, assigned, strict=True) if old is not None]
        moved = sum(self._survivor(old) != new for old, new in shared)
        registry = replace(
            self.registry,
            classes=tuple(self.classes.values()),
            round=self.round,
            next_number=self.next_number,
            candidates=tuple(self.candidates.values()),
            next_candidate=self.next_candidate,
            unions=self.unions,
        )
        return Evolution(registry, assigned, tuple(self.changes), moved / len(shared) if shared else 0.0)

    def _match_survey(self) -> None:
        """Find out which cluster is which class, and which are candidates."""
        large = [cluster for cluster, size in enumerate(self.new_sizes) if size >= self.rules.birth_members]
        candidate_like = self._like_candidates(large)
        # Else the halves of a class would take turns to be the class and the candidate.
        overlap, cosines = self.overlap.copy(), self._cosines()
        overlap[:, list(candidate_like)], cosines[:, list(candidate_like)] = 0, np.nan
        for row, cluster in match(overlap, self.old_sizes, self.overlap.sum(axis=0), cosines).items():
            self.owner[cluster] = self.old[row]
        self._take_pieces(candidate_like)
        for cluster, name in enumerate(self.clusters.elsewhere):
            if name is not None:
                self.owner.setdefault(cluster, name)
        self._follow([cluster for cluster in large if cluster not in self.owner], candidate_like)

    def _rest(self) -> None:
        """Let the candidates rest that this round does not find. A survey without them is evidence against them."""
        against = candidates.MISS if self.clusters.known is None else 0.0
        present = set(self.candidate_of.values())
        for number, entry in self.candidates.items():
            if number not in present and entry.active and entry.open:
                self.candidates[number] = replace(entry, active=False, evidence=entry.evidence + against)

    def _leave_pieces(self) -> None:
        """Give the regions of a candidate that is a piece of a class to that class, until it is a class itself."""
        for cluster in self.candidate_of:
            parent = self._parent(cluster)
            if parent is not None:
                self.owner[cluster] = parent

    def _take_known(self, known: Sequence[str | None]) -> None:
        """Take the known clusters as they are; a new one is a candidate."""
        self.owner = {cluster: name for cluster, name in enumerate(known) if name is not None}
        groups = [cluster for cluster, name in enumerate(known) if name is None]
        self._follow(groups, self._like_candidates(groups))

    def _cosines(self) -> np.ndarray:
        """Return the cosines of classes (n) and clusters (k), NaN where a class has no regions here."""
        cosines = np.full(self.overlap.shape, np.nan)
        for row, name in enumerate(self.old):
            if name in self.clusters.places:
                cosines[row] = self.clusters.centroids @ self.clusters.places[name]
        return cosines

    def _take_pieces(self, candidate_like: Mapping[int, int]) -> None:
        """Give a class that fell to pieces, none of which is like it, to the largest piece, a candidate's the last."""
        owners = set(self.owner.values())
        free = set(range(len(self.new_sizes))) - self.owner.keys()
        for cluster in sorted(free, key=lambda cluster: (cluster in candidate_like, self._size_order(cluster))):
            parent = self._parent(cluster)
            if parent is not None and parent not in owners:
                self.owner[cluster] = parent
                owners.add(parent)

    def _size_order(self, cluster: int) -> tuple[int, int]:
        return -int(self.new_sizes[cluster]), cluster

    def _parent(self, cluster: int) -> str | None:
        """Return the class of most regions of a cluster, None where most have none."""
        if not len(self.old) or not self.new_sizes[cluster]:
            return None
        row = int(self.overlap[:, cluster].argmax())
        return self.old[row] if self.overlap[row, cluster] >= MAJORITY * self.new_sizes[cluster] else None

    def _like_candidates(self, clusters: Sequence[int]) -> dict[int, int]:
        """Return the number of the candidate that a cluster looks like, by cluster; the most alike first."""
        known = [entry for entry in self.candidates.values() if entry.open and entry.embedding_version == self.version]
        pairs = sorted(
            (
                (float(self.clusters.centroids[cluster] @ entry.centroid), cluster, entry.number)
                for cluster in clusters
                for entry in known
            ),
            key=lambda pair: (-pair[0], pair[1:]),
        )
        result: dict[int, int] = {}
        for cosine, cluster, number in pairs:
            if cosine >= SAME_COSINE and cluster not in result and number not in result.values():
                result[cluster] = number
        return result

    def _follow(self, clusters: Sequence[int], known: Mapping[int, int]) -> None:
        """Update the candidates that the clusters are, by `known`; open new ones for the others."""
        for cluster in sorted(clusters, key=self._size_order):
            number = known[cluster] if cluster in known else self._open(cluster)
            candidate, evidence = self.candidates[number], self.clusters.evidence
            self.candidates[number] = replace(
                candidate,
                centroid=self.clusters.centroids[cluster],
                members=int(self.new_sizes[cluster]),
                active=True,
                last_seen_at=self.at,
                evidence=candidate.evidence if evidence is None else max(candidate.evidence, float(evidence[cluster])),
            )
            self.candidate_of[cluster] = number

    def _open(self, cluster: int) -> int:
        number = self.next_candidate
        self.next_candidate += 1
        is_new_line = self.clusters.is_new_line
        self.candidates[number] = Candidate(
            number=number,
            centroid=self.clusters.centroids[cluster],
            embedding_version=self.version,
            opened_at=self.at,
            opened_round=self.round,
            last_seen_at=self.at,
            needed=math.log(candidates.NEW_LINE_ODDS) if is_new_line else 0.0,
            of_new_line=is_new_line,
        )
        return number

    def _admit(self) -> None:
        """Make classes of the candidates for which there is evidence enough."""
        for cluster, number in sorted(self.candidate_of.items(), key=lambda item: item[1]):
            entry = self.candidates[number]
            parent = self._parent(cluster)
            if (
                entry.members < self.rules.min_members
                or not entry.is_proven
                or self.round < entry.opened_round + self.rules.confirm_rounds - 1
                or (parent is not None and self.classes[parent].fixed)
            ):
                continue
            if parent is not None:
                self.changes.append(Change(parent, Transition.SPLIT))
            name = self._born((parent,) if parent is not None else ())
            self.owner[cluster] = name
            self.candidates[number] = replace(entry, active=False, class_id=name)

    def _born(self, parents: tuple[str, ...]) -> str:
        name = class_id(self.next_number)
        self.classes[name] = DefectClass(
            id=name,
            number=self.next_number,
            state=ClassState.CONFIRMED,
            members=0,
            born_at=self.at,
            born_round=self.round,
            last_seen_at=self.at,
            centroid=np.zeros(self.clusters.centroids.shape[1], np.float32),
            radius=0.0,
            embedding_version=self.version,
            confirmed_at=self.at,
        )
        self.next_number += 1
        self.changes += [Change(name, Transition.BORN, parents=parents), Change(name, Transition.CONFIRMED)]
        return name

    def _merge_lost_classes(self) -> None:
        """Count for and against the union of a class without a cluster and the one that owns where its members are."""
        asked = set()
        for row, name in enumerate(self.old):
            if name in self.owner.values() or not self.old_sizes[row] or not len(self.new_sizes):
                continue
            cluster = int(self.overlap[row].argmax())
            other = self.owner.get(cluster)
            if other is None or self.overlap[row, cluster] < MAJORITY * self.old_sizes[row]:
                continue
            survivor, loser = sorted((name, self._survivor(other)), key=self._rank)
            if survivor == loser or self.classes[loser].fixed or self.classes[name].state is ClassState.MERGED:
                continue
            asked.add((loser, survivor))
            self.unions[loser, survivor] = max(0.0, self.unions.get((loser, survivor), 0.0)) + UNION
            if self.unions[loser, survivor] >= MERGE_EVIDENCE:
                self.classes[loser] = replace(self.classes[loser], state=ClassState.MERGED, merged_into=survivor)
                self.owner = {j: survivor if owned == loser else owned for j, owned in self.owner.items()}
                self.changes.append(Change(loser, Transition.MERGED, merged_into=survivor))
        self.unions = {
            pair: evidence if pair in asked else evidence + APART
            for pair, evidence in self.unions.items()
            if (pair in asked or evidence + APART > 0)
            and all(self.classes[name].state is not ClassState.MERGED for name in pair)
        }

    def _rank(self, name: str) -> tuple[bool, bool, int]:
        known = self.classes[name]
        return not known.fixed, known.state is not ClassState.CONFIRMED, known.number

    def _survivor(self, name: str) -> str:
        while (merged_into := self.classes[name].merged_into) is not None:
            name = merged_into
        return name

    def _assign(self) -> tuple[str | None, ...]:
        """Return the class of each region. It keeps its class, unless that has split or merged.

        A survey also moves a region to a class that is clearly nearer. The round decides anew what was assigned since
        the last one, but nothing that a person has assigned.
        """
        born = {name for name, entry in self.classes.items() if entry.born_round == self.round and name not in self.old}
        clear = self.clusters.clear or (None,) * len(self.labels)
        result: list[str | None] = []
        columns = (self.labels, self.previous, clear, self.fresh, self.pinned)
        for label, old, nearest, fresh, is_pinned in zip(*columns, strict=True):
            if old is not None and is_pinned:
                result.append(self._survivor(old))
                continue
            owner = self.owner.get(int(label))
            is_fixed = old is not None and self.classes[old].fixed
            decided = fresh and (owner is None or not is_fixed)
            moved = owner is not None and not is_fixed and (owner in born or owner == nearest)
            name = owner if old is None or decided or moved else old
            result.append(self._survivor(name) if name else None)
        return tuple(result)

    def _age(self, assigned: Sequence[str | None]) -> None:
        """Count the rounds of each class; let classes become dormant or alive again."""
        owners = set(self.owner.values())
        names = np.array([name or "" for name in assigned])
        renewed = set(names[self.fresh])
        held = dict(zip(*np.unique(names, return_counts=True), strict=True))
        before = dict(zip(*np.unique([name or "" for name in self.previous], return_counts=True), strict=True))
        for name, known in list(self.classes.items()):
            if known.state is ClassState.MERGED:
                continue
            known = replace(
                known,
                seen_rounds=known.seen_rounds + 1 if name in owners else 0,
                missed_rounds=0 if name in renewed else known.missed_rounds + 1,
            )
            size = known.members + int(held.get(name, 0)) - int(before.get(name, 0))
            self.classes[name] = self._next_state(known, size, name in renewed)

    def _next_state(self, known: DefectClass, size: int, renewed: bool) -> DefectClass:
        rules = self.rules
        if known.state is ClassState.DORMANT and renewed:
            back = ClassState.CANDIDATE if known.confirmed_at is None else ClassState.CONFIRMED
            known = replace(known, state=back)
            self.changes.append(Change(known.id, Transition.REVIVED))
        if known.state is ClassState.CANDIDATE and size >= rules.min_members:
            # Of a store of before, when candidates had public ids.
            self.changes.append(Change(known.id, Transition.CONFIRMED))
            return replace(known, state=ClassState.CONFIRMED, confirmed_at=self.at)
        awake = known.state in (ClassState.CANDIDATE, ClassState.CONFIRMED)
        missed = known.missed_rounds * size / (self.round - known.born_round + 1)
        gone = known.missed_rounds >= rules.dormant_rounds and missed >= MISSED_MEMBERS
        if awake and (gone or size <= 0):
            self.changes.append(Change(known.id, Transition.DORMANT))
            return replace(known, state=ClassState.DORMANT)
        return known
