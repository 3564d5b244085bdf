"""Which region is of which kind of defects, in a set of region embeddings.

Clusters are first merged by Ward's rule and then refined by spherical k-means: kinds are of unlike size and extent, and
k-means from scattered starts cuts large ones rather than find small ones. How many there are is estimated (`counting`).
Deterministic given the data and the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA

from discovery.round.number_of_classes import DENSE_MEMBERS, estimate_count, merged, sample_of
from scorer import spherical_k_means
from scorer.search.neighbours import faiss_module
from scorer.vectors import unit

REGIONS_MIN = 30
PRINCIPAL_AXES = 32
KMEANS_STEPS = 20
BETTER_START = 0.01
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
    seen: float = 1.0,
) -> Clustering | None:
    """Return clusters of embeddings float (n, D), n >= 30; None when there are fewer.

    `groups` (n) says which look-alike images each region comes from, so that telling products apart is not taken for
    telling kinds of defects apart.

    `known` (m, D) are the centroids of known classes, from which the search starts, and `radii` (m) the cosine
    distances that hold 95 % of their members: a dense group outside of all of them becomes a cluster of its own. `seen`
    is the share of the regions that were there when the known classes were found.
    """
    if len(vectors) < REGIONS_MIN:
        return None
    vectors = unit(np.asarray(vectors, np.float32))
    mean, axes = _principal_axes(vectors)
    points = unit((vectors - mean) @ axes)
    start = unit((unit(known) - mean) @ axes) if known is not None and len(known) else None
    previous = len(start) if start is not None else None
    count, stability, proposals = estimate_count(points, previous, limit, seed, groups, seen)
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


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the nearest centroid of each vector, and the cosine distances to it and to the second nearest."""
    distances = 1 - unit(vectors) @ centroids.T
    order = np.argsort(distances, axis=1, kind="stable")
    rows = np.arange(len(vectors))
    second = distances[rows, order[:, 1]] if distances.shape[1] > 1 else np.full(len(vectors), np.inf)
    return order[:, 0], distances[rows, order[:, 0]], second


def centroids_of(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Unit centroids float32 (k, D) of labels 0..k-1."""
    sums = np.stack([vectors[labels == label].sum(axis=0, dtype=np.float64) for label in range(int(labels.max()) + 1)])
    return unit(sums.astype(np.float32))


def radius_of(vectors: np.ndarray, centroid: np.ndarray) -> float:
    """Cosine distance from the centroid that holds 95 % of unit vectors (n, D)."""
    return float(np.quantile(1 - vectors @ centroid, RADIUS_SHARE))


def _principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D) of vectors (n, D) and their 32 principal axes (D, 32), or as many as n or D; signs are fixed.

    Subtract the mean before the product with the axes: scikit-learn's own `transform` subtracts after it, and rounding
    then tells identical vectors apart.
    """
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
    adapted = start.copy()
    while len(adapted) > len(cold):
        cosines = adapted @ adapted.T
        np.fill_diagonal(cosines, -np.inf)
        i, j = sorted(np.unravel_index(int(cosines.argmax()), cosines.shape))
        adapted[i] = unit(adapted[i] + adapted[j])
        adapted = np.delete(adapted, j, axis=0)
    while len(adapted) < len(cold):
        farthest = int((cold @ adapted.T).max(axis=1).argmin())
        adapted = np.vstack([adapted, cold[farthest]])
    return adapted


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
        cluster_label = np.bincount(labels[members]).argmax()
        if (labels[members] == cluster_label).sum() < OWN_SHARE * (
            labels == cluster_label
        ).sum():  # not a cluster already
            result[members] = result.max() + 1
    return result
