"""How many kinds of defects there are in a set of region embeddings, and which region is of which.

The number is estimated, never given. Silhouette alone says 2 or the largest number tried on nearly every product, so
several criteria propose, and what decides is stability: how well subsamples of the data agree with each other. Clusters
are first merged by Ward's rule and then refined by spherical k-means: kinds are of unlike size and extent, and k-means
from scattered starts cuts large ones rather than find small ones. Deterministic given the data and the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import faiss
import numpy as np
from scipy.cluster.hierarchy import cut_tree, ward
from scipy.linalg import eigh
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score, silhouette_score

REGIONS_MIN = 30
PRINCIPAL_AXES = 32
SAMPLE_LIMIT = 1000
SUBSAMPLES = 8
SUBSAMPLE_SHARE = 0.8
KMEANS_STEPS = 20
LEAST_CEILING = 5
REGIONS_PER_CLUSTER = 10
# Products of the public data sets have 1 to 8 kinds of defects. Without a bound, ever smaller groups of near copies
# look ever more stable.
KINDS_PER_GROUP = 12
# A group of fewer regions says nothing of how stable its clusters are.
GROUP_MIN = 8
# Measured stability is uncertain by about this much. Among numbers so alike the known one stays, else the smallest is
# taken: more clusters would only be told apart by chance. Where clusters come back nearly as they are in any subsample,
# the largest is taken, since they are real however fine; but not over several groups, where ever more of a kind's
# clusters are single products. A number that every criterion proposes needs none of this.
STABILITY_TOLERANCE = 0.05
SURE_STABILITY = 0.8
# Any elongated cloud splits stably in two, so 2 also needs clusters that are apart. Below the floor there is one kind:
# a cloud without structure stays under it whatever k, the hardest real products reach 0.5.
TWO_SILHOUETTE = 0.25
STABILITY_FLOOR = 0.3
BETTER_START = 0.01
DENSE_MEMBERS = 5
DENSE_SHARE = 0.5
OWN_SHARE = 0.8
RADIUS_SHARE = 0.95
LOOSE_FACTOR = 1.2


@dataclass(frozen=True, eq=False)
class Clustering:
    """`labels` int (n), `centroids` unit float32 (k, D), what each criterion proposed, and the stability of k."""

    labels: np.ndarray
    centroids: np.ndarray
    proposals: Mapping[str, int]
    stability: float

    @property
    def count(self) -> int:
        return len(self.centroids)


def cluster(
    vectors: np.ndarray,
    known: np.ndarray | None = None,
    radii: np.ndarray | None = None,
    *,
    groups: np.ndarray | None = None,
    limit: int = 40,
    seed: int = 0,
) -> Clustering | None:
    """Clusters of embeddings float (n, D), n >= 30; None when there are fewer.

    `groups` (n) says which look-alike images each region comes from, so that telling products apart is not taken for
    telling kinds of defects apart.

    `known` (m, D) are the centroids of known classes, from which the search starts, and `radii` (m) the cosine
    distances that hold 95 % of their members: a dense group outside of all of them becomes a cluster of its own.
    """
    if len(vectors) < REGIONS_MIN:
        return None
    vectors = unit(np.asarray(vectors, np.float32))
    mean, axes = _principal_axes(vectors)
    points = unit((vectors - mean) @ axes)
    start = unit((unit(known) - mean) @ axes) if known is not None and len(known) else None
    count, stability, proposals = estimate_count(points, len(start) if start is not None else None, limit, seed, groups)
    labels = fit(points, count, start, seed)
    if known is not None and radii is not None and len(known):
        labels = _with_dense_groups(labels, vectors, points, unit(known), radii)
    labels = np.unique(labels, return_inverse=True)[1]
    return Clustering(labels, centroids_of(vectors, labels), proposals, stability)


def reduced(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 32 at most) on the principal axes of the data, which is where it is clustered."""
    vectors = unit(vectors)
    mean, axes = _principal_axes(vectors)
    return unit((vectors - mean) @ axes)


def fit(points: np.ndarray, count: int, start: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Labels (n) of spherical k-means, from known centroids where they lead to as good a solution as a new start."""
    data = np.ascontiguousarray(points)
    sample = data[_sample(data, seed)]
    rough = _merged(sample, [min(count, len(sample))])[0]
    cold = _trained(data, centroids_of(sample, rough), seed)
    labels, quality = _labelled(data, cold)
    if start is None or not len(start):
        return labels
    warm_labels, warm_quality = _labelled(data, _trained(data, _adapted(start, cold), seed))
    return labels if quality > warm_quality + BETTER_START else warm_labels


def estimate_count(
    points: np.ndarray,
    previous: int | None = None,
    limit: int = 40,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> tuple[int, float, dict[str, int]]:
    """The number of clusters in unit vectors (n, d), its stability, and what each criterion proposed.

    Stability is the adjusted Rand index between the clusters of two subsamples of 80 %, mean over the pairs of eight.
    With several `groups` (n), it is the mean of those within each group, 0 where a group is not divided. See
    `STABILITY_TOLERANCE` for which of the stable numbers is taken; a previous one that still is among them stays.
    """
    rows = _sample(points, seed)
    sample = points[rows]
    strata = _strata(groups[rows] if groups is not None else None, len(sample))
    most = max(KINDS_PER_GROUP * len(strata), previous or 0)
    ceiling = max(2, min(limit, most, max(LEAST_CEILING, len(sample) // REGIONS_PER_CLUSTER)))
    counts = range(2, ceiling + 1)
    whole = dict(zip(counts, _merged(sample, counts), strict=True))
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
    best = max(stability[k] for k in allowed)
    alike = [k for k in allowed if stability[k] >= best - STABILITY_TOLERANCE]
    count = previous if previous in alike else alike[0]
    agreed = set(proposals.values())
    if count != previous and len(agreed) == 1 and agreed <= set(alike):
        count = agreed.pop()
    elif count != previous and best >= SURE_STABILITY and len(strata) == 1:
        # A few outliers come back in any subsample too; that makes them no kind.
        count = max((k for k in alike if np.bincount(whole[k]).min() >= DENSE_MEMBERS), default=count)
    if stability[count] < STABILITY_FLOOR:
        return 1, 1.0, proposals
    return count, stability[count], proposals


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the nearest centroid of each vector, and the cosine distances to it and to the second nearest."""
    distances = 1 - unit(vectors) @ centroids.T
    order = np.argsort(distances, axis=1, kind="stable")
    rows = np.arange(len(vectors))
    second = distances[rows, order[:, 1]] if distances.shape[1] > 1 else np.full(len(vectors), np.inf)
    return order[:, 0], distances[rows, order[:, 0]], second


def centroids_of(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Unit centroids float32 (k, D) of labels 0..k-1."""
    sums = np.zeros((int(labels.max()) + 1, vectors.shape[1]), np.float64)
    np.add.at(sums, labels, vectors)
    return unit(sums.astype(np.float32))


def radius_of(vectors: np.ndarray, centroid: np.ndarray) -> float:
    """Cosine distance from the centroid that holds 95 % of unit vectors (n, D)."""
    return float(np.quantile(1 - vectors @ centroid, RADIUS_SHARE))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    size = vectors.shape[1]
    wanted = (max(0, size - PRINCIPAL_AXES), size - 1)  # the last are the largest
    _, axes = eigh(centred.T @ centred / len(vectors), subset_by_index=wanted, check_finite=False)
    axes = axes[:, ::-1]
    # The sign of an axis is arbitrary; fixing it keeps rounds alike.
    return mean, axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])


def _sample(points: np.ndarray, seed: int) -> np.ndarray:
    if len(points) <= SAMPLE_LIMIT:
        return np.arange(len(points))
    return np.sort(np.random.default_rng(seed).choice(len(points), SAMPLE_LIMIT, replace=False))


def _merged(sample: np.ndarray, counts: Iterable[int]) -> np.ndarray:
    """Labels (len(counts), n) of Ward's hierarchy, cut into each of the counts."""
    return np.asarray(cut_tree(ward(sample), list(counts))).T


def _strata(groups: np.ndarray | None, size: int) -> list[np.ndarray]:
    """The rows of each group that is large enough to be judged; all rows where there are not several such groups."""
    if groups is not None:
        members = [np.flatnonzero(groups == each) for each in np.unique(groups)]
        if len(large := [rows for rows in members if len(rows) >= GROUP_MIN]) > 1:
            return large
    return [np.arange(size)]


def _stability(sample: np.ndarray, strata: list[np.ndarray], counts: range, seed: int) -> dict[int, float]:
    """How well the clusters of any two subsamples agree, for each number of clusters."""
    rng = np.random.default_rng(seed)
    size = int(SUBSAMPLE_SHARE * len(sample))
    labels = np.full((SUBSAMPLES, len(counts), len(sample)), -1)
    for each in labels:
        part = np.sort(rng.choice(len(sample), size, replace=False))
        each[:, part] = _merged(sample[part], counts)
    weights = [len(rows) for rows in strata]
    result = {}
    for column, k in enumerate(counts):
        pairs = combinations(labels[:, column], 2)
        agreement = [np.average([_agreement(a[rows], b[rows]) for rows in strata], weights=weights) for a, b in pairs]
        result[k] = float(np.mean(agreement))
    return result


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    both = (one >= 0) & (other >= 0)
    a, b = one[both], other[both]
    # Two subsamples that divide nothing agree on nothing.
    return float(adjusted_rand_score(a, b)) if len(set(a.tolist())) > 1 and len(set(b.tolist())) > 1 else 0.0


def _silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    if len(set(labels.tolist())) < 2:
        return 0.0
    return float(silhouette_score(distances, labels, metric="precomputed"))


def _dense_count(points: np.ndarray) -> int:
    size = max(DENSE_MEMBERS, len(points) // 100)
    return int(HDBSCAN(min_cluster_size=size, min_samples=3, copy=True).fit_predict(points).max()) + 1


def _trained(points: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    """Centroids of spherical k-means by faiss from given ones."""
    kmeans = faiss.Kmeans(
        points.shape[1],
        len(start),
        niter=KMEANS_STEPS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points, init_centroids=np.ascontiguousarray(start))
    return np.asarray(kmeans.centroids)


def _labelled(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, float]:
    """Labels, and the mean cosine of the points to their centroids."""
    cosines, labels = faiss.knn(points, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return labels[:, 0], float(cosines.mean())


def _adapted(start: np.ndarray, cold: np.ndarray) -> np.ndarray:
    """As many centroids as `cold` has: those of `start`, the nearest ones joined or the farthest of `cold` added."""
    kept = start.copy()
    while len(kept) > len(cold):
        cosines = kept @ kept.T
        np.fill_diagonal(cosines, -np.inf)
        i, j = sorted(np.unravel_index(int(cosines.argmax()), cosines.shape))
        kept[i] = unit(kept[i] + kept[j])
        kept = np.delete(kept, j, axis=0)
    while len(kept) < len(cold):
        farthest = int((cold @ kept.T).max(axis=1).argmin())
        kept = np.vstack([kept, cold[farthest]])
    return kept


def _with_dense_groups(
    labels: np.ndarray, vectors: np.ndarray, points: np.ndarray, known: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """Give groups outside of every known class that are compact for their distance to it a cluster of their own."""
    index, distance, _ = nearest(vectors, known)
    loose = np.flatnonzero(distance > LOOSE_FACTOR * radii[index])
    if len(loose) < DENSE_MEMBERS:
        return labels
    groups = HDBSCAN(min_cluster_size=DENSE_MEMBERS, min_samples=3, allow_single_cluster=True, copy=True).fit_predict(
        points[loose]
    )
    result = labels.copy()
    for group in range(int(groups.max()) + 1):
        members = loose[groups == group]
        centre = unit(vectors[members].mean(axis=0))
        # What density left over belongs to the group when it is nearer to it than to what is known.
        members = loose[(groups == group) | ((groups < 0) & (1 - vectors[loose] @ centre < distance[loose]))]
        inside = vectors[members]
        if radius_of(inside, unit(inside.mean(axis=0))) > DENSE_SHARE * float(np.median(distance[members])):
            continue
        own = np.bincount(labels[members]).argmax()
        if (labels[members] == own).sum() < OWN_SHARE * (labels == own).sum():  # not a cluster already
            result[members] = result.max() + 1
    return result
