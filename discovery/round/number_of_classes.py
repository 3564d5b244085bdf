"""How many kinds of defects there are among regions: estimated, never given. Deterministic given data and seed.

Silhouette alone says 2 or the largest number tried on nearly every product. So several criteria propose, and what
decides is stability: how well subsamples of the data agree with each other. Where regions come from several look-alike
groups, stability says which numbers are possible, and how far apart kinds are within the groups says which one it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.cluster.hierarchy import ward

# Judgements, not measured: the time that an estimate takes bounds the sample and the subsamples, and fewer members or
# regions for each cluster say nothing of it.
SAMPLE_LIMIT = 1000
SUBSAMPLES = 16
SUBSAMPLE_SHARE = 0.8
DENSE_MEMBERS = 5
NOT_DENSE = -1.0  # the least that a silhouette can be
LEAST_CEILING = 5
REGIONS_PER_CLUSTER = 10
# Products of the public data sets have 1 to 8 kinds of defects. Without a bound, ever smaller groups of near copies
# look ever more stable.
KINDS_PER_GROUP = 12
# A group of fewer regions says nothing of how stable its clusters are.
GROUP_MIN = 8
# Measured stability is uncertain by about this much. Where no number is clearly stable, the known one stays among those
# so alike, else the smallest is taken: more clusters would only be told apart by chance. Where clusters come back
# nearly as they are in any subsample, they are real, however fine: the number is taken that sets them furthest apart,
# or the largest of the most stable ones where that is larger.
STABILITY_TOLERANCE = 0.05
SURE_STABILITY = 0.8
# Over several groups clusters stay stable while a kind falls apart into the products it is on. But that sets no kinds
# further apart within any product, so each cluster more has to widen the mean silhouette within the groups by this
# much. On simulated lines of two to seven products anything from 0.01 to 0.03 counts alike.
KIND_PRICE = 0.02
# Any elongated cloud splits stably in two, so 2 also needs clusters that are apart. Below the floor there is one kind:
# a cloud without structure stays under it whatever k, the hardest real products reach 0.5.
TWO_SILHOUETTE = 0.25
STABILITY_FLOOR = 0.3


def estimate_count(
    points: np.ndarray,
    previous: int | None = None,
    limit: int = 40,
    seed: int = 0,
    groups: np.ndarray | None = None,
    seen: float = 1.0,
) -> tuple[int, float, dict[str, int]]:
    """Return the number of clusters in unit vectors (n, d), its stability, and the proposal of each criterion.

    Stability is the adjusted Rand index between the clusters of two subsamples of 80 %, mean over the pairs of sixteen.
    With several `groups` (n), it is the mean of those within each group, 0 where a group is not divided.

    A `previous` number stays while it is as good as the best, if it was found on most of these regions: `seen` is
    their share. What was found on fewer than a subsample has says nothing of the number that there is now.
    """
    rows = sample_of(points, seed)
    sample = points[rows]
    strata = _strata(groups[rows] if groups is not None else None, len(sample))
    most = max(KINDS_PER_GROUP * len(strata), previous or 0)
    ceiling = max(2, min(limit, most, max(LEAST_CEILING, len(sample) // REGIONS_PER_CLUSTER)))
    counts = range(2, ceiling + 1)
    whole = dict(zip(counts, merged(sample, counts), strict=True))
    distances = np.clip(1 - sample @ sample.T, 0, None)
    np.fill_diagonal(distances, 0)
    silhouettes = {k: _silhouette(distances, whole[k]) for k in counts}
    stability = _stability(sample, strata, counts, seed)
    proposals = {
        "silhouette": max(counts, key=lambda k: silhouettes[k]),
        "density": max(1, _dense_count(sample)),
        "stability": max(counts, key=lambda k: stability[k]),
    }
    apart = silhouettes[2] >= max(TWO_SILHOUETTE, *silhouettes.values())
    allowed = [k for k in counts if k > 2 or apart or ceiling == 2]
    if len(strata) == 1:
        # A few outliers come back in any subsample too; that makes them no kind.
        worth = {k: silhouettes[k] if np.bincount(whole[k]).min() >= DENSE_MEMBERS else NOT_DENSE for k in counts}
    else:
        worth = {k: _separation(distances, strata, whole[k]) - KIND_PRICE * k for k in counts}
    known = previous if seen >= SUBSAMPLE_SHARE else None
    count = _chosen(stability, allowed, worth, known, len(strata))
    if stability[count] < STABILITY_FLOOR:
        return 1, 1.0, proposals
    return count, stability[count], proposals


def sample_of(points: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows of at most 1,000 points, which are enough to show clusters."""
    if len(points) <= SAMPLE_LIMIT:
        return np.arange(len(points))
    return np.sort(np.random.default_rng(seed).choice(len(points), SAMPLE_LIMIT, replace=False))


def merged(sample: np.ndarray, counts: Iterable[int]) -> np.ndarray:
    """Return labels (len(counts), n) of Ward's hierarchy, cut into each of the counts, none of them above n.

    By hand, since scipy's `cut_tree` holds the labels of all n cuts, and takes most of the time of a round.
    """
    wanted = list(counts)
    size = len(sample)
    members = [[row] for row in range(size)]
    alive = set(range(size))
    cuts: dict[int, np.ndarray] = {}

    def cut() -> np.ndarray:
        labels = np.empty(size, int)
        for label, node in enumerate(sorted(alive, key=lambda node: members[node][0])):
            labels[members[node]] = label
        return labels

    if size in wanted:
        cuts[size] = np.arange(size)
    for step, (first, second) in enumerate(ward(sample)[:, :2].astype(int) if size > 1 else ()):
        members.append(members[first] + members[second])
        if members[-1][0] > members[second][0]:
            members[-1] = members[second] + members[first]
        alive -= {int(first), int(second)}
        alive.add(size + step)
        if size - step - 1 in wanted:
            cuts[size - step - 1] = cut()
    return np.stack([cuts[count] for count in wanted])


def _chosen(
    stability: Mapping[int, float], allowed: Sequence[int], worth: Mapping[int, float], known: int | None, groups: int
) -> int:
    best = max(stability[k] for k in allowed)
    alike = [k for k in allowed if stability[k] >= best - STABILITY_TOLERANCE]
    if groups == 1 and best < SURE_STABILITY:
        return known if known in alike else alike[0]
    possible = [k for k in allowed if stability[k] >= min(SURE_STABILITY, best - STABILITY_TOLERANCE)]
    count = max(possible, key=lambda k: worth[k])
    if groups == 1:  # few regions of a kind of their own hardly show in the mean silhouette
        count = max([count, *(k for k in alike if worth[k] > NOT_DENSE)])
    return known if known in possible and worth[known] >= worth[count] - KIND_PRICE else count


def _strata(groups: np.ndarray | None, size: int) -> list[np.ndarray]:
    """Return the rows of each group that is large enough to judge; all rows unless there are several such groups."""
    if groups is not None:
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        if len(large := [rows for rows in members if len(rows) >= GROUP_MIN]) > 1:
            return large
    return [np.arange(size)]


def _stability(sample: np.ndarray, strata: list[np.ndarray], counts: range, seed: int) -> dict[int, float]:
    """Return how well the clusters of any two subsamples agree, for each number of clusters."""
    rng = np.random.default_rng(seed)
    size = int(SUBSAMPLE_SHARE * len(sample))
    labels = np.full((SUBSAMPLES, len(counts), len(sample)), -1)
    for labelling in labels:
        part = np.sort(rng.choice(len(sample), size, replace=False))
        labelling[:, part] = merged(sample[part], counts)
    weights = [len(rows) for rows in strata]
    return {
        k: float(np.average([_agreement(labels[:, column, rows], k) for rows in strata], weights=weights))
        for column, k in enumerate(counts)
    }


def _agreement(labels: np.ndarray, count: int) -> float:
    """Return the mean adjusted Rand index (Hubert and Arabie 1985) over pairs of labellings (m, n), 0..count-1 or -1.

    Two are compared where both have a label. All tables at once, since a round asks for thousands of them: each is a
    block of one product of matrices.
    """
    many = len(labels)
    inside = np.zeros((many, count, labels.shape[1]), np.float32)
    row, place = np.nonzero(labels >= 0)
    inside[row, labels[row, place], place] = 1
    flat = inside.reshape(many * count, -1)
    tables = (flat @ flat.T).reshape(many, count, many, count).transpose(0, 2, 1, 3)
    first, second = np.triu_indices(many, 1)
    table = tables[first, second].astype(np.float64)
    rows, columns = table.sum(axis=2), table.sum(axis=1)
    pairs = rows.sum(axis=1)
    together, in_rows, in_columns = ((n * (n - 1)).reshape(len(n), -1).sum(axis=1) for n in (table, rows, columns))
    expected = in_rows * in_columns / np.maximum(pairs * (pairs - 1), 1)
    most = (in_rows + in_columns) / 2
    apart = most > expected
    index = np.where(apart, (together - expected) / np.where(apart, most - expected, 1), 1.0)
    # Two subsamples that divide nothing agree on nothing.
    divided = ((rows > 0).sum(axis=1) > 1) & ((columns > 0).sum(axis=1) > 1)
    return float(np.where(divided, index, 0.0).mean())


def _separation(distances: np.ndarray, strata: list[np.ndarray], labels: np.ndarray) -> float:
    """Return the mean of the silhouettes within the groups, 0 for a group that is not divided."""
    silhouettes = [_silhouette(distances[np.ix_(rows, rows)], labels[rows]) for rows in strata]
    return float(np.average(silhouettes, weights=[len(rows) for rows in strata]))


def _silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean silhouette (Rousseeuw 1987) of labels (n), 0 where they divide nothing."""
    names, index = np.unique(labels, return_inverse=True)
    if not 2 <= len(names) < len(labels):
        return 0.0
    inside = np.eye(len(names), dtype=distances.dtype)[index]
    sums, sizes = (distances @ inside).astype(np.float64), inside.sum(axis=0).astype(np.float64)
    row = np.arange(len(index))
    within = sums[row, index] / np.maximum(sizes[index] - 1, 1)
    others = sums / sizes
    others[row, index] = np.inf
    between = others.min(axis=1)
    widest = np.maximum(within, between)
    worth = np.where((sizes[index] > 1) & (widest > 0), (between - within) / np.where(widest > 0, widest, 1), 0.0)
    return float(worth.mean())


def _dense_count(points: np.ndarray) -> int:
    from sklearn.cluster import HDBSCAN  # here: it takes a second to import

    size = max(DENSE_MEMBERS, len(points) // 100)
    return int(HDBSCAN(min_cluster_size=size, min_samples=3, copy=True).fit_predict(points).max()) + 1
