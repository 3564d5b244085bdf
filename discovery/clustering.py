"""How many kinds of defects there are in a set of region embeddings, and which region is of which.

The number is estimated, never given. Silhouette alone says 2 or the largest number tried on nearly every product, so
several criteria propose, and what decides is stability: how well subsamples of the data agree with each other.
Deterministic given the data and the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import faiss
import numpy as np
from scipy.linalg import eigh
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score, silhouette_score

REGIONS_MIN = 30
PRINCIPAL_AXES = 32
SAMPLE_LIMIT = 600
SUBSAMPLES = 8
SUBSAMPLE_SHARE = 0.8
RESTARTS = 4
SEED_CANDIDATES = 4
REFINE_STEPS = 8
KMEANS_STEPS = 20
LEAST_CEILING = 5
REGIONS_PER_CLUSTER = 15
# Stability falls as clusters get smaller, also when they are real; this much of it is forgiven per unit of log k.
DETAIL_BONUS = 0.1
KEPT_BONUS = 0.05
NEIGHBOURHOOD = 3
# Any elongated cloud splits stably in two, so 2 also needs clusters that are apart. Below the floor there is one kind:
# a cloud without structure stays under 0.12 whatever k, the hardest real products reach 0.55.
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
    limit: int = 40,
    seed: int = 0,
) -> Clustering | None:
    """Clusters of embeddings float (n, D), n >= 30; None when there are fewer.

    `known` (m, D) are the centroids of known classes, from which the search starts, and `radii` (m) the cosine
    distances that hold 95 % of their members: a dense group outside of all of them becomes a cluster of its own.
    """
    if len(vectors) < REGIONS_MIN:
        return None
    vectors = unit(np.asarray(vectors, np.float32))
    mean, axes = _principal_axes(vectors)
    points = unit((vectors - mean) @ axes)
    start = unit((unit(known) - mean) @ axes) if known is not None and len(known) else None
    count, stability, proposals = estimate_count(points, len(start) if start is not None else None, limit, seed)
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
    # faiss starts from random points; k-means++ on a sample, with restarts, finds clearly better clusters.
    sample = data[_sample(data, seed)]
    rough = np.unique(_whole(sample, count, seed), return_inverse=True)[1]
    cold = _trained(data, centroids_of(sample, rough), seed)
    labels, quality = _labelled(data, cold)
    if start is None or not len(start):
        return labels
    warm_labels, warm_quality = _labelled(data, _trained(data, _adapted(start, cold), seed))
    return labels if quality > warm_quality + BETTER_START else warm_labels


def estimate_count(
    points: np.ndarray, previous: int | None = None, limit: int = 40, seed: int = 0
) -> tuple[int, float, dict[str, int]]:
    """The number of clusters in unit vectors (n, d), its stability, and what each criterion proposed.

    Stability is the adjusted Rand index between the clusters of two subsamples of 80 %, mean over the pairs of eight.
    With a previous number, only its neighbourhood and the proposals are tried, and it has a bonus, so that it changes
    for a reason only.
    """
    sample = points[_sample(points, seed)]
    ceiling = max(2, min(limit, max(LEAST_CEILING, len(sample) // REGIONS_PER_CLUSTER)))
    counts = range(2, ceiling + 1)
    whole = {k: _whole(sample, k, seed) for k in counts}
    distances = np.clip(1 - sample @ sample.T, 0, None)
    np.fill_diagonal(distances, 0)
    silhouettes = {k: _silhouette(distances, whole[k]) for k in counts}
    proposals = {"silhouette": max(counts, key=lambda k: silhouettes[k]), "density": max(1, _dense_count(sample))}
    tried = set(counts) if previous is None else set(proposals.values())
    tried |= {k for k in counts if previous is not None and abs(k - previous) <= NEIGHBOURHOOD} or set(counts)
    stability = _stability(sample, sorted(tried & set(counts)), seed)
    proposals["stability"] = max(stability, key=lambda k: stability[k])
    apart = silhouettes[2] >= max(TWO_SILHOUETTE, *silhouettes.values())
    allowed = [k for k in stability if k > 2 or apart or ceiling == 2]

    def merit(k: int) -> float:
        return stability[k] + DETAIL_BONUS * float(np.log(k)) + (KEPT_BONUS if k == previous else 0.0)

    best = max(allowed, key=merit)
    if stability[best] < STABILITY_FLOOR:
        return 1, 1.0, proposals
    return best, stability[best], proposals


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


def _whole(sample: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The best clusters of a sample that are looked for."""
    return _small_kmeans(sample, count, np.random.default_rng((seed, count)), 2 * RESTARTS)


def _small_kmeans(points: np.ndarray, count: int, rng: np.random.Generator, restarts: int = RESTARTS) -> np.ndarray:
    """Labels of the best of a few spherical k-means (k-means++ starts); for small sets quicker than through faiss."""
    best, best_quality = np.zeros(len(points), int), -np.inf
    for _ in range(restarts):
        centroids = points[_spread_out(points, count, rng)]
        for _ in range(REFINE_STEPS):
            members = np.zeros((len(points), count), np.float32)
            members[np.arange(len(points)), (points @ centroids.T).argmax(axis=1)] = 1
            sums = members.T @ points
            centroids = np.where(members.sum(axis=0)[:, None] > 0, unit(sums), centroids)
        cosines = points @ centroids.T
        if (quality := float(cosines.max(axis=1).mean())) > best_quality:
            best, best_quality = cosines.argmax(axis=1), quality
    return best


def _spread_out(points: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Rows drawn by their squared distance to those drawn before, the best of a few each time (greedy k-means++)."""
    chosen = [int(rng.integers(len(points)))]
    # Of unit vectors, 1 - cosine is half the squared distance.
    distance = np.clip(1 - points @ points[chosen[0]], 0, None)
    while len(chosen) < count:
        draws = rng.random(SEED_CANDIDATES) * float(distance.sum())
        rows = np.minimum(np.searchsorted(np.cumsum(distance), draws), len(points) - 1)
        left = np.minimum(distance, np.clip(1 - points[rows] @ points.T, 0, None))
        best = int(left.sum(axis=1).argmin())
        chosen.append(int(rows[best]))
        distance = left[best]
    return chosen


def _stability(points: np.ndarray, counts: Iterable[int], seed: int) -> dict[int, float]:
    """Mean agreement of the clusters of every two subsamples, on the points that both have."""
    rng = np.random.default_rng(seed)
    parts = [
        np.sort(rng.choice(len(points), int(SUBSAMPLE_SHARE * len(points)), replace=False)) for _ in range(SUBSAMPLES)
    ]
    result = {}
    for k in counts:
        labels = np.full((SUBSAMPLES, len(points)), -1)
        for row, part in enumerate(parts):
            labels[row, part] = _small_kmeans(points[part], k, rng)
        agreement = []
        for one, other in combinations(labels, 2):
            both = (one >= 0) & (other >= 0)
            agreement.append(adjusted_rand_score(one[both], other[both]))
        result[k] = float(np.mean(agreement))
    return result


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
