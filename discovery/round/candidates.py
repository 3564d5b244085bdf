"""Candidates: clusters that no class owns, and the evidence that they are a kind of their own.

A round only proposes. What decides are the regions that come *after* a cluster was first seen. Each is a trial: does it
lie apart from what is known, where the cluster is, or in between? Under the null hypothesis the cluster is a piece of
something: going from the border to its middle and on, regions do not become more. Then a region beyond the border lies
in the outer of two equal stretches with probability 1/2 at most, and the product of the ratios

    (1 - MISS_RATE) / 0.5 in the outer stretch,  MISS_RATE / 0.5 in the inner one

is an e-process (a test martingale: Ramdas, Grünwald, Vovk and Shafer, Statistical Science 2023): whenever one looks, it
exceeds 1/a with probability a at most (Ville). The j-th candidate that is tried in a month gets a = B / (j (j + 1)),
whose sum is B: so many false births a month are expected at most, however often rounds look.

A cluster beside which a class is not known, and that is as near to it as kinds are to themselves on other products, is
that class as it looks there.

The first regions of a line are all that there is to find its kinds in: then the later two thirds of each cluster speak
for or against it, and a candidate needs odds of NEW_LINE_ODDS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scorer.vectors import unit

MONTH_NS = 30 * 86_400_000_000_000
# Of new members of a true kind about one in ten lies between it and its neighbour (three simulated lines).
MISS_RATE = 0.12
# Places on the way from the neighbour (0) to the candidate (1): the border, and two stretches of equal length.
BORDER, MIDDLE, END = 0.5, 0.825, 1.15
HIT, MISS = math.log((1 - MISS_RATE) / 0.5), math.log(MISS_RATE / 0.5)
# A centroid of fewer members says little of where the next one comes to lie. A judgement, not measured.
MEMBERS_MIN = 3
# Members in a group from which on a class is known there. A judgement, not measured.
AT_HOME = 2
# Cosine distance of centroids up to which a cluster may be a class as it looks on another product: see
# `clustering.centred`.
ELSEWHERE = 0.55
# Share of a cluster's regions that lie where a class is known, up to which it is not beside it. A judgement.
BESIDE = 0.2
# A line of fewer regions is a new one, see above. A judgement: its kinds shall have ids by then.
NEW_LINE_REGIONS = 500
# What a candidate needs there. A judgement, not measured.
NEW_LINE_ODDS = 10.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """A cluster that may become a class. It has no public id.

    `centroid` is a unit vector float32 (D) among centred ones; times are ns UTC. `evidence` is the natural log of the
    e-process, `needed` what it takes, from the first trial on. An `active` one was found by the latest round; one that
    was not keeps its history and is recognised when it comes again. `of_new_line` says that it was opened when all was
    new. `class_id` is the class that it became.
    """

    number: int
    centroid: np.ndarray
    embedding_version: str
    opened_at: int
    opened_round: int
    last_seen_at: int
    needed: float = 0.0
    members: int = 0
    evidence: float = 0.0
    trials: int = 0
    active: bool = True
    of_new_line: bool = False
    class_id: str | None = None

    @property
    def open(self) -> bool:
        """Whether it may still become a class."""
        return self.class_id is None

    @property
    def is_proven(self) -> bool:
        """Whether there is evidence enough."""
        return (self.of_new_line or self.trials > 0) and self.evidence >= self.needed


def needed_evidence(tried_before: int, false_births: float) -> float:
    """Return the log of the e-value for the next candidate of a month in which so many were tried before it.

    `false_births` is the expected number of false births in a month that is allowed.
    """
    return math.log((tried_before + 1) * (tried_before + 2) / false_births)


def remembered(candidates: Sequence[Candidate], at: int) -> tuple[Candidate, ...]:
    """Return those that were seen within a month before `at`, ns UTC; the others are forgotten."""
    return tuple(entry for entry in candidates if entry.last_seen_at > at - MONTH_NS)


def witnessed(
    candidates: Sequence[Candidate],
    points: np.ndarray,
    groups: np.ndarray | None,
    owners: np.ndarray,
    places: Sequence[int | None],
    centroids: np.ndarray,
    fresh: np.ndarray,
    false_births: float,
    at: int,
) -> tuple[Candidate, ...]:
    """Return the candidates with the evidence of fresh regions.

    Of unit vectors `points` (n, D) in look-alike `groups` (n): `owners` (n) is the nearest of what is known, whose unit
    `centroids` (k, D) are given; `fresh` (n) marks those that came since the last round. `places` says for each
    candidate which of the k it is, None for one that is not among them. `false_births` a month are allowed; `at` is
    the time in ns UTC.
    """
    tried = [place for place in places if place is not None and (fresh & (owners == place)).any()]
    if not tried:
        return tuple(candidates)
    is_class = ~np.isin(np.arange(len(centroids)), [place for place in places if place is not None])
    scene = _Scene(points, groups, owners, centroids, ~fresh, is_class)
    tried_in_month = sum(
        entry.opened_at > at - MONTH_NS and entry.trials > 0 and not entry.of_new_line for entry in candidates
    )
    result = []
    for entry, place in zip(candidates, places, strict=True):
        marks = scene.marks(place, np.flatnonzero(fresh & (owners == place))) if place in tried else []
        if marks and not entry.trials and not entry.of_new_line:
            entry = replace(entry, needed=needed_evidence(tried_in_month, false_births))
            tried_in_month += 1
        result.append(replace(entry, evidence=entry.evidence + sum(marks), trials=entry.trials + len(marks)))
    return tuple(result)


def cross_fitted(points: np.ndarray, groups: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """Return the log evidence (k) of each cluster on a new line: of its later two thirds against its first third.

    `points` (n, D) are unit vectors, oldest first, `labels` (n) their clusters, -1 for none.
    """
    count = int(labels.max()) + 1
    old = np.zeros(len(labels), bool)
    for label in range(count):
        rows = np.flatnonzero(labels == label)
        old[rows[: max(MEMBERS_MIN, len(rows) // 3)]] = True
    centroids = np.stack([unit(points[old & (labels == label)].mean(axis=0)) for label in range(count)])
    scene = _Scene(points, groups, labels, centroids, old, np.zeros(count, bool))
    return np.array([sum(scene.marks(label, np.flatnonzero(~old & (labels == label)))) for label in range(count)])


class _Scene:
    """What is known, as it stood before the regions that are tried."""

    def __init__(
        self,
        points: np.ndarray,
        groups: np.ndarray | None,
        owners: np.ndarray,
        centroids: np.ndarray,
        old: np.ndarray,
        is_class: np.ndarray,
    ) -> None:
        self._points = points
        self._groups = _numbered(groups, len(points))
        count = len(centroids)
        inside = np.zeros((len(points), count), np.float32)
        counted = old & (owners >= 0)
        inside[np.flatnonzero(counted), owners[counted]] = 1
        self._sizes = inside.sum(axis=0)
        self._means = (inside.T @ self._points) / np.maximum(self._sizes, 1)[:, None]
        spread = inside.T @ (self._points**2).sum(axis=1) - self._sizes * (self._means**2).sum(axis=1)
        # The squared distance of a centroid of n members to the true one.
        self._noise = spread / np.maximum(self._sizes * (self._sizes - 1), 1)
        self._at_home = _counts(self._groups[counted], owners[counted], int(self._groups.max()) + 1, count) >= AT_HOME
        # Of two pieces of one kind on different products the larger goes first.
        goes_first = is_class[None, :] | (self._sizes[None, :] > self._sizes[:, None])
        self._alike = goes_first & (1 - centroids @ centroids.T <= ELSEWHERE)

    def marks(self, place: int, rows: np.ndarray) -> list[float]:
        """Return the log ratios of those rows that say whether `place` is a kind of its own."""
        if self._sizes[place] < MEMBERS_MIN:
            return []
        others = np.flatnonzero((np.arange(len(self._sizes)) != place) & (self._sizes > 0))
        return [mark for row in rows if (mark := self._mark(place, others, int(row))) is not None]

    def _mark(self, place: int, others: np.ndarray, row: int) -> float | None:
        if not len(others):
            return HIT  # there is nothing that it could be a piece of
        at_home = self._at_home[self._groups[row], others]
        if (self._alike[place, others] & ~at_home).any():
            return None  # it may be a kind that is known elsewhere, as it looks in this group
        rivals = others[at_home] if at_home.any() else others
        point = self._points[row]
        rival = rivals[((self._means[rivals] - point) ** 2).sum(axis=1).argmin()]
        way = self._means[place] - self._means[rival]
        length = float(way @ way - self._noise[place])
        if length <= 0:
            return MISS
        position = float((point - self._means[rival]) @ way) / length
        if not BORDER < position <= END:
            return None
        return HIT if position > MIDDLE else MISS


def known_elsewhere(
    labels: np.ndarray, centroids: np.ndarray, groups: np.ndarray | None, owners: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Return the class (k) that each cluster may be on products where that class is not known yet, -1 for none.

    `labels` (n) and unit `centroids` (k, D) are the clusters, -1 for none, `owners` (n) the classes of the regions in
    look-alike `groups` (n), -1 for none, `known` (m, D) the unit centroids of the classes.
    """
    places = np.full(len(centroids), -1)
    if not len(known):
        return places
    numbers = _numbered(groups, len(labels))
    distances = 1 - centroids @ known.T
    size = int(numbers.max()) + 1
    for label in range(len(centroids)):
        rows = labels == label
        others = ~rows & (owners >= 0)
        at_home = _counts(numbers[others], owners[others], size, len(known)) >= AT_HOME
        beside = at_home[numbers[rows]].mean(axis=0) if rows.any() else np.ones(len(known))
        allowed = np.where((beside <= BESIDE) & (distances[label] <= ELSEWHERE), distances[label], np.inf)
        if np.isfinite(allowed).any():
            places[label] = int(allowed.argmin())
    return places


def _numbered(groups: np.ndarray | None, size: int) -> np.ndarray:
    return np.zeros(size, int) if groups is None else np.unique(groups, return_inverse=True)[1]


def _counts(groups: np.ndarray, owners: np.ndarray, group_count: int, owner_count: int) -> np.ndarray:
    """Return the number of regions (groups, owners) that each owner has in each group."""
    return np.bincount(groups * owner_count + owners, minlength=group_count * owner_count).reshape(
        group_count, owner_count
    )
