"""Which region is of which kind of defects, in a set of region embeddings.

Clusters are first merged by Ward's rule and then refined by spherical k-means: kinds are of unlike size and extent, and
k-means from scattered starts cuts large ones rather than find small ones. How many there are is estimated (`counting`).
Deterministic given the data and the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from discovery.round.number_of_classes import DENSE_MEMBERS, estimate_count, merged, sample_of
from scorer import spherical_k_means
from scorer.search.neighbours import faiss_module
from scorer.vectors import unit

# Judgements, not measured: fewer regions say nothing of the number of their kinds; more axes are noise; k-means hardly
# moves after so many steps; a start from nothing must be better by more than chance, or the known classes stay; a group
# is dense when it is half as wide as its surroundings; the outermost twentieth of a class does not widen its reach.
REGIONS_MIN = 30
PRINCIPAL_AXES = 32
KMEANS_STEPS = 20
BETTER_START = 0.01
DENSE_SHARE = 0.5
RADIUS_SHARE = 0.95
# Of a kind the distance that holds 95 % of its members is 1.2 to 2.0 times the median one (three simulated lines, most
# of linebench). Where it is more, the class has a few foreign members, which must not draw in more of their sort.
RADIUS_OF_MEDIAN = 2.0
LOOSE_FACTOR = 1.2
# A class of few, alike members would otherwise take in nothing but copies of them.
RADIUS_MIN = 0.02
# On three simulated lines 99 % of the centred regions are farther than 0.77 from the centroids of other kinds, and 95 %
# nearer than 0.76 to that of their own. A narrower reach splits a kind that began with one look; a wider one takes in
# what has nothing in common with it (1.0).
REACH_MIN, REACH_MAX = 0.55, 0.95
# Classes that a look-alike group needs for a mean of its own, and members that a class needs there. Judgements, not
# measured: of fewer the mean is that of the kinds, not that of the product.
MEAN_CLASSES, MEAN_MEMBERS = 3, 2
# Regions whose mean cosine distance is smaller are one group: of three simulated lines new kinds come as one at 0.65 to
# 0.75, and as one for each product at 0.55.
GROUP_DISTANCE = 0.7
# The tree of as many regions takes 0.2 s and 32 MB.
LOOSE_MAX = 2000


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
    *,
    groups: np.ndarray | None = None,
    limit: int = 40,
    seed: int = 0,
    seen: float = 1.0,
) -> Clustering | None:
    """Return clusters of embeddings float (n, D), n >= 30; None when there are fewer.

    `groups` (n) says which look-alike images each region comes from, so that telling products apart is not taken for
    telling kinds of defects apart. `known` (m, D) are the centroids of known classes, from which the search starts;
    `seen` is the share of the regions that were there when they were found.
    """
    if len(vectors) < REGIONS_MIN:
        return None
    vectors = unit(np.asarray(vectors, np.float32))
    mean, axes = _principal_axes(vectors)
    points = unit((vectors - mean) @ axes)
    start = unit((unit(known) - mean) @ axes) if known is not None and len(known) else None
    previous = len(start) if start is not None else None
    count, stability, proposals = estimate_count(points, previous, limit, seed, groups, seen)
    labels = np.unique(fit(points, count, start, seed), return_inverse=True)[1]
    return Clustering(labels, centroids_of(vectors, labels), proposals, stability)


def centred(vectors: np.ndarray, groups: np.ndarray | None, owners: np.ndarray) -> np.ndarray:
    """Return unit vectors (n, D) by what sets them apart within their look-alike group: without its mean.

    `groups` (n) are the look-alike groups, `owners` (n) the numbers of the classes, -1 for none. The mean is that of
    the means of the classes, so that a frequent kind does not pull it to itself. A group in which fewer than
    MEAN_CLASSES are known gets the common mean. Unlike kinds are then at a cosine distance of about 1. On three
    simulated lines a kind is 0.2 to 0.5 from itself on the other products and 0.7 and more from other kinds there; of
    the vectors as they come, 0.2 to 0.6, and 0.4 and more.
    """
    result = vectors - (_mean_of_classes(vectors, owners, 1) if (owners >= 0).any() else vectors.mean(axis=0))
    for group in np.unique(groups) if groups is not None else ():
        rows = groups == group
        mean = _mean_of_classes(vectors[rows], owners[rows], MEAN_CLASSES)
        if mean is not None:
            result[rows] = vectors[rows] - mean
    return unit(result)


def _mean_of_classes(vectors: np.ndarray, owners: np.ndarray, classes_min: int) -> np.ndarray | None:
    """Return the mean (D) of the means of the classes that have MEAN_MEMBERS, None with fewer classes."""
    numbers, counts = np.unique(owners[owners >= 0], return_counts=True)
    numbers = numbers[counts >= MEAN_MEMBERS]
    if len(numbers) < classes_min:
        return None
    return np.asarray(np.mean([vectors[owners == number].mean(axis=0) for number in numbers], axis=0))


def within_reach(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return labels (n) of unit vectors (n, D), -1 for those out of the reach of the cluster that they are in.

    A region of no kind would go to any class else, and with it what looks like it.
    """
    result = labels.copy()
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == label)
        if len(rows):
            centroid = unit(points[rows].mean(axis=0))
            reach = LOOSE_FACTOR * max(radius_of(points[rows], centroid), RADIUS_MIN)
            result[rows[1 - points[rows] @ centroid > reach]] = -1
    return result


def with_dense_groups(labels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return labels (n) in which groups of regions that had none, and are apart from the others, have their own.

    `labels` (n), -1 for none, are of unit vectors `points` (n, D). A group is a cluster of average linkage, whatever
    its share, that is compact for its distance to what has a label. Only the LOOSE_MAX last regions are looked at.
    """
    loose = np.flatnonzero(labels < 0)[-LOOSE_MAX:]
    result = labels.copy()
    if len(loose) < DENSE_MEMBERS:
        return result
    known = [points[labels == label].mean(axis=0) for label in range(int(labels.max()) + 1) if (labels == label).any()]
    apart = (1 - points[loose] @ unit(np.stack(known)).T).min(axis=1) if known else np.ones(len(loose))
    distances = np.maximum(1 - points[loose] @ points[loose].T, 0)[np.triu_indices(len(loose), 1)]
    groups = fcluster(linkage(distances, "average"), GROUP_DISTANCE, "distance")
    for group, size in zip(*np.unique(groups, return_counts=True), strict=True):
        inside = points[loose[groups == group]]
        radius = radius_of(inside, unit(inside.mean(axis=0)))
        if size >= DENSE_MEMBERS and radius <= DENSE_SHARE * float(np.median(apart[groups == group])):
            result[loose[groups == group]] = result.max() + 1
    return result


def reduced(vectors: np.ndarray) -> np.ndarray:
    """Return unit vectors (n, 32 at most) on the principal axes of the data, which is where it is clustered."""
    vectors = unit(vectors)
    mean, axes = _principal_axes(vectors)
    return unit((vectors - mean) @ axes)


def fit(points: np.ndarray, count: int, start: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Return labels (n) of spherical k-means; it keeps the known centroids unless a new start is better."""
    data = np.ascontiguousarray(points)
    sample = data[sample_of(data, seed)]
    rough = merged(sample, [min(count, len(sample))])[0]
    cold = spherical_k_means.settled(data, centroids_of(sample, rough), KMEANS_STEPS, seed)
    labels, quality = _labelled(data, cold)
    if start is None or not len(start):
        return labels
    warm = spherical_k_means.settled(data, _adapted(start, cold), KMEANS_STEPS, seed)
    warm_labels, warm_quality = _labelled(data, warm)
    return labels if quality > warm_quality + BETTER_START else warm_labels


def with_seed(vectors: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Return which of unit vectors (n, D) are of the kind of some of them, bool (n): the `seed` (n), and its like.

    Spherical 2-means in which the seed stays on its side (constrained k-means: Basu, Banerjee and Mooney, ICML 2002).
    A part without the seed may end up empty; then the seed alone is the kind.
    """
    points = unit(vectors - vectors.mean(axis=0))
    inside = seed.copy()
    for _ in range(KMEANS_STEPS):
        if inside.all():
            return seed.copy()
        sides = np.stack([unit(points[inside].mean(axis=0)), unit(points[~inside].mean(axis=0))])
        cosines = points @ sides.T
        now = seed | (cosines[:, 0] > cosines[:, 1])
        if (now == inside).all():
            break
        inside = now
    return seed.copy() if inside.all() else inside


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the nearest centroid of each vector, and the cosine distances to it and to the second nearest."""
    distances = 1 - unit(vectors) @ centroids.T
    order = np.argsort(distances, axis=1, kind="stable")
    rows = np.arange(len(vectors))
    second = distances[rows, order[:, 1]] if distances.shape[1] > 1 else np.full(len(vectors), np.inf)
    return order[:, 0], distances[rows, order[:, 0]], second


def centroids_of(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the unit centroids float32 (k, D) of labels 0..k-1."""
    sums = np.stack([vectors[labels == label].sum(axis=0, dtype=np.float64) for label in range(int(labels.max()) + 1)])
    return unit(sums.astype(np.float32))


def reach_of(points: np.ndarray, centroid: np.ndarray) -> float:
    """Return the cosine distance from a known class's centroid up to which centred regions belong to it.

    `points` (n, D) are its members, unit vectors of `centred`.
    """
    return float(np.clip(LOOSE_FACTOR * radius_of(points, centroid), REACH_MIN, REACH_MAX))


def radius_of(vectors: np.ndarray, centroid: np.ndarray) -> float:
    """Return the cosine distance from the centroid that holds 95 % of unit vectors (n, D), twice the median at most."""
    median, radius = np.quantile(1 - vectors @ centroid, (0.5, RADIUS_SHARE))
    return float(min(radius, RADIUS_OF_MEDIAN * median))


def _principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D) of vectors (n, D) and their 32 principal axes (D, 32), or as many as n or D; signs are fixed.

    Subtract the mean before the product with the axes: scikit-learn's own `transform` subtracts after it, and rounding
    then tells identical vectors apart.
    """
    from sklearn.decomposition import PCA  # here: it takes a second to import, and the station seldom needs it

    with np.errstate(invalid="ignore"):  # of identical vectors, whose variance is zero
        pca = PCA(min(PRINCIPAL_AXES, *vectors.shape), svd_solver="covariance_eigh").fit(vectors)
    return pca.mean_, pca.components_.T


def _labelled(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, float]:
    """Return labels, and the mean cosine of the points to their centroids."""
    faiss = faiss_module()
    cosines, labels = faiss.knn(points, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return labels[:, 0], float(cosines.mean())


def _adapted(start: np.ndarray, cold: np.ndarray) -> np.ndarray:
    """Return as many centroids as `cold` has: `start` with its nearest ones joined or the farthest of `cold` added."""
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
