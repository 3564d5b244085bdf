"""The upper level of the hierarchy, after HierCore: groups of look-alike images, and the way of an image to its group.

No product label is used anywhere. The published method's grouping is not known to us; Ward's hierarchy of the images,
cut where the silhouette is best, and every part cut again as long as it falls into parts, is our reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from scorer.search.bank import Bank, unit_rows
from scorer.vectors import Vectors

Labels = NDArray[np.int64]

# Groups smaller than this join their nearest neighbour: their calibration would rest on too few scores. A split product
# costs some calibration images, but products that were thrown together have no common scale.
_SMALLEST_GROUP = 10
# The same where the number of groups was given: what cross-fitting needs at least.
_SMALLEST_GIVEN = 8
# Below this silhouette the images do not fall into groups. Good images of one product reach 0.2 to 0.63 when they are
# split (and then each half has half the images for its bank), those of two different products 0.75 to 0.97.
_SMALLEST_SILHOUETTE = 0.7
_RESTARTS = 5
# Images that one cut is looked for on (its work grows with their square); all images are assigned afterwards, and what
# a sample has too few images of is told apart when its part is cut again.
_SAMPLE = 3000
# Images of the sample that a group has on average where there are most groups.
_FEWEST_PER_GROUP = 3
# Rounds of k-means: the default of faiss, a judgement.
_ROUNDS = 25
_ROUTE_BY = 10
# An image this many times as far from its group as the farthest good one may still belong to it.
_MARGIN = 1.25


def embed(means: Sequence[NDArray[np.floating]]) -> Vectors:
    """Unit embeddings (n, d) of images from their mean feature vectors (n, c) in each layer of one backbone pass.

    Global on purpose: a local defect must hardly move it, or the image would be compared with the wrong good ones.
    """
    return unit_rows(np.concatenate([unit_rows(each) for each in means], axis=-1))


def group(embeddings: Vectors, count: int | None, seed: int) -> Labels:
    """Group labels (n,) from 0, the largest group first; `count` None finds the number of groups by silhouette."""
    rng = np.random.default_rng(seed)
    if count is None:
        labels = _found(embeddings, rng)
    else:
        sample = _sample(embeddings, max(_SAMPLE, _SMALLEST_GIVEN * count), rng)
        centres = _k_means(sample, min(count, len(sample)), rng)
        labels = _without_small(embeddings, (embeddings @ centres.T).argmax(axis=1), _SMALLEST_GIVEN)
    order = sorted(set(labels.tolist()), key=lambda k: (-int((labels == k).sum()), int((labels == k).argmax())))
    return _relabelled(labels, order)


def _sample(embeddings: Vectors, most: int, rng: np.random.Generator) -> Vectors:
    n = len(embeddings)
    return embeddings if n <= most else embeddings[np.sort(rng.choice(n, most, replace=False))]


def _found(embeddings: Vectors, rng: np.random.Generator) -> Labels:
    """Labels of the groups that the images fall into: from coarse to fine, each part is cut again until none falls.

    What one cut takes for one group since other products are much farther apart still falls into parts by itself.
    """
    labels = np.empty(len(embeddings), dtype=np.int64)
    waiting, done = [np.arange(len(embeddings))], 0
    while waiting:
        members = waiting.pop()
        parts = _cut(embeddings[members], rng)
        kinds = np.unique(parts)
        if len(kinds) > 1:
            waiting += [members[parts == kind] for kind in kinds]
        else:
            labels[members] = done
            done += 1
    return labels


def _cut(embeddings: Vectors, rng: np.random.Generator) -> Labels:
    """Labels (n,) of one cut into groups that are large enough; all 0 where the images do not fall into groups."""
    if len(embeddings) < 2 * _SMALLEST_GROUP:
        return np.zeros(len(embeddings), dtype=np.int64)
    sample = _sample(embeddings, _SAMPLE, rng)
    most = max(2, min(len(embeddings) // _SMALLEST_GROUP, len(sample) // _FEWEST_PER_GROUP))
    labels = _best_cut(sample, most)
    centres = np.stack([sample[labels == k].mean(axis=0) for k in range(int(labels.max()) + 1)])
    labels = (embeddings @ _settled(sample, unit_rows(centres)).T).argmax(axis=1)
    return _without_small(embeddings, labels, _SMALLEST_GROUP)


def _relabelled(labels: Labels, order: Sequence[int]) -> Labels:
    place = {old: new for new, old in enumerate(order)}
    return np.asarray([place[int(each)] for each in labels], dtype=np.int64)


def _best_cut(embeddings: Vectors, most: int) -> Labels:
    """The cut of Ward's hierarchy into 2 to `most` groups with the best mean silhouette (Rousseeuw 1987), from 0.

    All 0 when none is good enough. Ward's criterion, since average or complete linkage would cut single odd images off
    first. From the finest cut on, one merge adds two columns of the images' summed distances to each group, so that the
    exact silhouettes of all cuts cost little more than one.
    """
    from scipy.cluster.hierarchy import linkage  # here: scoring needs no scipy, which takes a second to import
    from scipy.spatial.distance import squareform

    n = len(embeddings)
    distance = np.maximum(1 - embeddings @ embeddings.T, 0)
    np.fill_diagonal(distance, 0)
    # Ward works on Euclidean distances; of unit vectors these are sqrt(2 - 2 s).
    merges = linkage(np.sqrt(2 * squareform(distance, checks=False)), "ward")[:, :2].astype(int)
    nodes: dict[int, list[int]] = {leaf: [leaf] for leaf in range(n)}
    for merge in range(n - most):
        one, two = (nodes.pop(int(node)) for node in merges[merge])
        nodes[n + merge] = one + two
    columns = {node: column for column, node in enumerate(nodes)}
    labels = np.empty(n, dtype=np.int64)
    for node, leaves in nodes.items():
        labels[leaves] = columns[node]
    rows = np.arange(n)
    sizes = np.bincount(labels).astype(np.float32)
    sums = distance @ np.eye(most, dtype=np.float32)[labels]
    within = sums[rows, labels]
    others = sums / sizes
    others[rows, labels] = np.inf
    best, best_value = np.zeros(n, dtype=np.int64), _SMALLEST_SILHOUETTE
    for merge in range(n - most, n - 1):
        own, nearest = within / np.maximum(sizes[labels] - 1, 1), others.min(axis=1)
        silhouette = (nearest - own) / np.maximum(np.maximum(nearest, own), 1e-12)
        value = float(np.where(sizes[labels] > 1, silhouette, 0).mean())
        if value > best_value:  # ties go to more groups
            best, best_value = labels.copy(), value
        kept, gone = (columns.pop(int(node)) for node in merges[merge])
        columns[n + merge] = kept
        sums[:, kept] += sums[:, gone]
        sizes[kept] += sizes[gone]
        labels[labels == gone] = kept
        members = np.flatnonzero(labels == kept)
        within[members] = sums[members, kept]
        others[:, kept] = sums[:, kept] / sizes[kept]
        others[members, kept] = np.inf
        others[:, gone] = np.inf
    return np.unique(best, return_inverse=True)[1]


def _k_means(embeddings: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    """Return the centres (count, d) of the best of several runs of spherical k-means, each seeded by k-means++."""
    from sklearn.cluster import kmeans_plusplus  # here: scoring needs no scikit-learn, which takes a second to import

    seeds = [kmeans_plusplus(embeddings, count, random_state=int(rng.integers(2**31)))[0] for _ in range(_RESTARTS)]
    runs = [_settled(embeddings, centres) for centres in seeds]
    return max(runs, key=lambda centres: float((embeddings @ centres.T).max(axis=1).sum()))


def _settled(embeddings: Vectors, centres: Vectors) -> Vectors:
    """Return centres (k, d) after rounds of spherical k-means from these ones."""
    k_means = faiss.Kmeans(
        embeddings.shape[1],
        len(centres),
        niter=_ROUNDS,
        spherical=True,
        # faiss takes a sample of the images, and warns of small clusters, unless it is told otherwise.
        max_points_per_centroid=len(embeddings),
        min_points_per_centroid=1,
    )
    k_means.train(embeddings, init_centroids=np.ascontiguousarray(centres))
    return np.asarray(k_means.centroids)


def _without_small(embeddings: Vectors, labels: Labels, smallest: int) -> Labels:
    """Labels in which every group that is too small has joined the group with the most similar centre."""
    labels = labels.copy()
    while True:
        used, sizes = np.unique(labels, return_counts=True)
        if len(used) < 2 or sizes.min() >= smallest:
            return labels
        centres = unit_rows(np.stack([embeddings[labels == k].mean(axis=0) for k in used]))
        small = int(sizes.argmin())
        similarity = centres @ centres[small]
        similarity[small] = -np.inf
        labels[labels == used[small]] = used[int(similarity.argmax())]


@dataclass(frozen=True)
class Look:
    """Whom an image resembles: its group, its most similar good images in order, and how far the first is."""

    group: int
    neighbours: NDArray[np.int64]
    distance: float


class Gallery:
    """The good images by embedding: exact search for an image's look-alikes, and the vote on its group."""

    def __init__(self, embeddings: Vectors, groups: Labels) -> None:
        self.embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        self.groups = groups
        self._sizes = np.bincount(groups)
        self._bank = Bank(self.embeddings)

    def look(self, embedding: Vectors, neighbours: int) -> Look:
        """What the image with this embedding (d,) resembles; its group is voted by its ten most similar good images."""
        count = min(max(neighbours, _ROUTE_BY), len(self.groups))
        similarity, indices = (each[0] for each in self._bank.nearest(embedding[None], count))
        votes = self.groups[indices[:_ROUTE_BY]].tolist()
        most = max(votes.count(each) for each in votes)
        # A tie goes to the group of the most similar image among the tied ones.
        group = next(each for each in votes if votes.count(each) == most)
        own = min(neighbours, self._most_neighbours(group))
        return Look(group, indices[:own].astype(np.int64), math.sqrt(max(0.0, 2 - 2 * float(similarity[0]))))

    def _most_neighbours(self, group: int) -> int:
        """More neighbours than the group has other members would be of another look."""
        return max(1, int(self._sizes[group]) - 1)

    def neighbours_of_members(
        self, neighbours: int, copies: Labels | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """For every good image its most similar other good images (n, k), and its distance (n,) to the first.

        `copies` (n,) have the same number where images are the same: those are no others, unless their group has none.
        Where the image's group has fewer than k others, the rest of its row is -1.
        """
        n = len(self.groups)
        kinds = np.arange(n) if copies is None else copies
        times = np.bincount(kinds)[kinds]
        alone = times >= self._sizes[self.groups]
        kinds, times = np.where(alone, n + np.arange(n), kinds), np.where(alone, 1, times)
        count = min(neighbours, n - int(times.max()))
        index = faiss.IndexFlatIP(self.embeddings.shape[1])
        index.add(self.embeddings)
        similarity, indices = index.search(self.embeddings, count + int(times.max()))
        own = kinds[indices] == kinds[:, None]
        # Where rounding has left one of the copies out of the list, the first others are there all the same.
        order = np.argsort(own, axis=1, kind="stable")[:, :count]
        kept = np.take_along_axis(indices, order, axis=1)
        nearest = np.take_along_axis(similarity, order, axis=1)[:, 0]
        most = np.maximum(1, self._sizes[self.groups] - times)
        kept = np.where(np.arange(count) < most[:, None], kept, -1)
        return kept, np.sqrt(np.maximum(0, 2 - 2 * nearest))


def copies(embeddings: Vectors) -> Labels:
    """For each image (n,) the number of the first one with the same embedding: itself, unless it is a copy."""
    _, first, kind = np.unique(embeddings, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[kind.reshape(-1)], dtype=np.int64)


def gates(gallery: Gallery, within: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each group, the distance to its nearest good image from which on an image is of an unknown product.

    Halfway (geometrically) between the distances that the group's own images keep and those that images of the nearest
    other product keep to it, but never within 1.25 times the farthest of its own. A group that lies within that margin
    is no other product but a variant; where there is none but variants, the gate is at twice the farthest.
    `within` (n,): each good image's distance to the nearest other one.
    """
    result = np.empty(len(np.bincount(gallery.groups)), dtype=np.float32)
    for k in range(len(result)):
        inside = gallery.groups == k
        own = max(float(np.quantile(within[inside], 0.99)), 1e-3)
        farthest = max(float(within[inside].max()), 1e-3)
        similarity = (gallery.embeddings[~inside] @ gallery.embeddings[inside].T).max(axis=1)
        foreign = _low_quantiles(np.sqrt(np.maximum(0, 2 - 2 * similarity)), gallery.groups[~inside], 0.05)
        products = foreign[foreign > _MARGIN * farthest]
        result[k] = max(_MARGIN * farthest, float(np.sqrt(own * products.min()))) if len(products) else 2 * farthest
    return result


def _low_quantiles(values: NDArray[np.floating], kinds: Labels, share: float) -> NDArray[np.float64]:
    """The quantile of the values (n,) of each kind that there is: all at once, since there may be a thousand kinds."""
    order = np.lexsort((values, kinds))
    _, starts, counts = np.unique(kinds[order], return_index=True, return_counts=True)
    place = share * (counts - 1)
    low = place.astype(np.int64)
    ranked = values[order].astype(np.float64)
    below, above = ranked[starts + low], ranked[starts + np.minimum(low + 1, counts - 1)]
    return np.asarray(below + (place - low) * (above - below), dtype=np.float64)
