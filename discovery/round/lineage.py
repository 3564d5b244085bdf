"""Identity of defect classes across rounds: which cluster is which known class, and what has happened to each.

Clusters are matched to classes by a Hungarian assignment over shared members and centroids, in the manner of MONIC
(Spiliopoulou et al., KDD 2006). Ids are never reused and never renumbered. What people have said binds: a class that a
person named, merged, split or dismissed is neither split nor merged away here. A confirmed class is split or merged
only when two rounds in a row ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from flawline.messages import ClassState, Transition

MEMBER_WEIGHT = 0.7
CENTROID_WEIGHT = 0.3
UNMATCHED_COST = 0.6
JACCARD_MIN = 0.3
COSINE_MIN = 0.8
FEW_SHARED = 5
SPLIT_SHARE = 0.3
MAJORITY = 0.5
GROWTH = 2


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
    """Every class there has ever been, and the counters from which new ids are made.

    `pending` are the splits and merges of confirmed classes that the last round asked for; `revision` counts what
    people have changed.
    """

    classes: tuple[DefectClass, ...] = ()
    round: int = 0
    next_number: int = 1
    revision: int = 0
    pending: frozenset[str] = frozenset()

    @property
    def live(self) -> tuple[DefectClass, ...]:
        """Classes that can have members."""
        return tuple(entry for entry in self.classes if entry.state is not ClassState.MERGED)


@dataclass(frozen=True)
class Rules:
    """When a cluster becomes a class, and a class confirmed or dormant."""

    birth_members: int = 5
    min_members: int = 10
    confirm_rounds: int = 2
    dormant_rounds: int = 20


@dataclass(frozen=True)
class Change:
    """A transition of one class."""

    class_id: str
    transition: Transition
    parents: tuple[str, ...] = ()
    merged_into: str | None = None


@dataclass(frozen=True, eq=False)
class Evolution:
    """What a round does to the registry. `assigned` has the class of each region, None for none.

    The classes' members, centroids and radii are still those of before; new classes have none yet.
    """

    classes: tuple[DefectClass, ...]
    next_number: int
    assigned: tuple[str | None, ...]
    changes: tuple[Change, ...]
    pending: frozenset[str]
    churn: float


def class_id(number: int) -> str:
    """Return the id of the class with this number."""
    return f"D-{number:04d}"


def evolve(
    registry: Registry,
    previous: Sequence[str | None],
    labels: np.ndarray,
    centroids: np.ndarray,
    fresh: np.ndarray,
    at: int,
    rules: Rules = Rules(),
    embedding_version: str = "",
) -> Evolution:
    """Carry the classes over to a new clustering.

    For each region: `previous` its class so far, `labels` (n) its cluster, -1 for none, `fresh` (n) whether it has come
    since the last round. `centroids` (k, D) are unit vectors. `at` is the time of the round.
    """
    return _Round(registry, previous, labels, centroids, fresh, at, rules, embedding_version).evolve()


def match(overlap: np.ndarray, old_sizes: np.ndarray, new_sizes: np.ndarray, cosines: np.ndarray) -> dict[int, int]:
    """Old class -> new cluster by the least total cost; what fits nothing is left out.

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
        labels: np.ndarray,
        centroids: np.ndarray,
        fresh: np.ndarray,
        at: int,
        rules: Rules,
        embedding_version: str,
    ) -> None:
        self.registry, self.rules, self.at, self.version = registry, rules, at, embedding_version
        self.round = registry.round + 1
        self.classes = {entry.id: entry for entry in registry.classes}
        self.old = [entry.id for entry in registry.live]
        self.labels, self.centroids, self.fresh, self.previous = labels, centroids, fresh, previous
        row_of = {name: row for row, name in enumerate(self.old)}
        self.before = np.array([row_of.get(name, -1) if name else -1 for name in previous], int)
        self.overlap = np.zeros((len(self.old), len(centroids)), int)
        shared = (self.before >= 0) & (labels >= 0)
        np.add.at(self.overlap, (self.before[shared], labels[shared]), 1)
        # A class's members that fell into no cluster still count against a match.
        self.old_sizes = np.bincount(self.before[self.before >= 0], minlength=len(self.old))
        self.new_sizes = np.bincount(labels[labels >= 0], minlength=len(centroids))
        self.owner: dict[int, str] = {}
        self.separate: set[str] = set()
        self.seen: set[str] = set()
        self.pending: set[str] = set()
        self.changes: list[Change] = []
        self.next_number = registry.next_number

    def evolve(self) -> Evolution:
        matched = match(self.overlap, self.old_sizes, self.overlap.sum(axis=0), self._cosines())
        for row, cluster in matched.items():
            self.owner[cluster] = self.old[row]
        self._place_new_clusters()
        self._merge_lost_classes()
        assigned = self._assign()
        self._age(assigned)
        shared = [(old, new) for old, new in zip(self.previous, assigned, strict=True) if old is not None]
        moved = sum(self._survivor(old) != new for old, new in shared)
        return Evolution(
            classes=tuple(self.classes.values()),
            next_number=self.next_number,
            assigned=assigned,
            changes=tuple(self.changes),
            pending=frozenset(self.pending),
            churn=moved / len(shared) if shared else 0.0,
        )

    def _cosines(self) -> np.ndarray:
        cosines = np.full(self.overlap.shape, np.nan)
        for row, name in enumerate(self.old):
            known = self.classes[name]
            if known.embedding_version == self.version and known.centroid.shape == self.centroids.shape[1:]:
                cosines[row] = self.centroids @ known.centroid
        return cosines

    def _place_new_clusters(self) -> None:
        """Decide the clusters that match no class: a piece of a class, a birth, or too few members for either."""
        owners = set(self.owner.values())
        for cluster in sorted(
            set(range(len(self.centroids))) - self.owner.keys(), key=lambda j: (-self.new_sizes[j], j)
        ):
            size = int(self.new_sizes[cluster])
            parent = int(self.overlap[:, cluster].argmax()) if len(self.old) else -1
            if parent < 0 or self.overlap[parent, cluster] < max(1, MAJORITY * size):
                if size >= self.rules.birth_members:
                    self.owner[cluster] = self._born(())
                continue
            name = self.old[parent]
            if name not in owners:  # fell to pieces: the largest keeps the id
                self.owner[cluster] = name
                owners.add(name)
                continue
            share = self.overlap[parent, cluster] / self.old_sizes[parent]
            large = size >= self.rules.birth_members and (share >= SPLIT_SHARE or size >= self.rules.min_members)
            if large and self._agreed(f"split:{name}", [name]):
                self.owner[cluster] = self._born((name,))
                self.changes.append(Change(name, Transition.SPLIT))
            else:
                self.owner[cluster] = name

    def _merge_lost_classes(self) -> None:
        """Merge classes without a cluster whose members went to the cluster of another class."""
        for row, name in enumerate(self.old):
            if name in self.owner.values() or not self.old_sizes[row] or not len(self.centroids):
                continue
            cluster = int(self.overlap[row].argmax())
            other = self.owner.get(cluster)
            if other is None or self.overlap[row, cluster] < MAJORITY * self.old_sizes[row]:
                continue
            survivor, loser = sorted((name, self._survivor(other)), key=self._rank)
            if survivor == loser or self.classes[loser].born_round == self.round:
                continue
            if self._agreed(f"merge:{loser}:{survivor}", [loser, survivor], loser):
                self.owner = {j: survivor if owned == loser else owned for j, owned in self.owner.items()}
                self.owner[cluster] = survivor
                self.classes[loser] = replace(self.classes[loser], state=ClassState.MERGED, merged_into=survivor)
                self.changes.append(Change(loser, Transition.MERGED, merged_into=survivor))
            else:
                self.separate.add(name)

    def _agreed(self, key: str, concerned: Sequence[str], loser: str | None = None) -> bool:
        """Return whether a split or merge may happen now; remember it when it only has to happen once more."""
        known = [self.classes[name] for name in concerned]
        if self.classes[loser].fixed if loser else known[0].fixed:
            return False
        # A merge with a candidate or a dormant class takes nothing from people that they know.
        confirmed = sum(entry.state is ClassState.CONFIRMED for entry in known)
        if confirmed < len(known) or key in self.registry.pending:
            return True
        self.pending.add(key)
        return False

    def _rank(self, name: str) -> tuple[bool, bool, int]:
        known = self.classes[name]
        return not known.fixed, known.state is not ClassState.CONFIRMED, known.number

    def _born(self, parents: tuple[str, ...]) -> str:
        name = class_id(self.next_number)
        self.classes[name] = DefectClass(
            id=name,
            number=self.next_number,
            state=ClassState.CANDIDATE,
            members=0,
            born_at=self.at,
            born_round=self.round,
            last_seen_at=self.at,
            centroid=np.zeros(self.centroids.shape[1], np.float32),
            radius=0.0,
            embedding_version=self.version,
        )
        self.next_number += 1
        self.changes.append(Change(name, Transition.BORN, parents=parents))
        return name

    def _survivor(self, name: str) -> str:
        while (merged_into := self.classes[name].merged_into) is not None:
            name = merged_into
        return name

    def _assign(self) -> tuple[str | None, ...]:
        result = []
        for label, old in zip(self.labels, self.previous, strict=True):
            known = self.classes.get(old) if old else None
            stays = known is not None and (known.fixed or known.id in self.separate or label < 0)
            name = old if stays else self.owner.get(int(label), old)
            result.append(self._survivor(name) if name else None)
        return tuple(result)

    def _age(self, assigned: Sequence[str | None]) -> None:
        """Count rounds, and let classes become confirmed, dormant or alive again."""
        present = set(self.owner.values()) | self.separate
        names = np.array([name or "" for name in assigned])
        renewed = set(names[self.fresh])
        for name, known in list(self.classes.items()):
            if known.state is ClassState.MERGED:
                continue
            known = replace(
                known,
                seen_rounds=known.seen_rounds + 1 if name in present else 0,
                missed_rounds=0 if name in renewed else known.missed_rounds + 1,
            )
            size = max(known.members, int((names == name).sum()))
            self.classes[name] = self._next_state(known, size, name in present, name in renewed)

    def _next_state(self, known: DefectClass, size: int, is_present: bool, renewed: bool) -> DefectClass:
        rules = self.rules
        if known.state is ClassState.DORMANT and renewed:
            back = ClassState.CANDIDATE if known.confirmed_at is None else ClassState.CONFIRMED
            known = replace(known, state=back)
            self.changes.append(Change(known.id, Transition.REVIVED))
        if known.state is ClassState.CANDIDATE:
            if known.seen_rounds >= rules.confirm_rounds and size >= rules.min_members:
                self.changes.append(Change(known.id, Transition.CONFIRMED))
                return replace(known, state=ClassState.CONFIRMED, confirmed_at=self.at)
            if not is_present and not known.fixed:
                return self._sleep(known)
        if known.state in (ClassState.CANDIDATE, ClassState.CONFIRMED) and known.missed_rounds >= rules.dormant_rounds:
            return self._sleep(known)
        return known

    def _sleep(self, known: DefectClass) -> DefectClass:
        self.changes.append(Change(known.id, Transition.DORMANT))
        return replace(known, state=ClassState.DORMANT)
