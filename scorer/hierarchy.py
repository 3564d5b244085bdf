"""The upper level of the hierarchy, after HierCore: groups of look-alike images, and the way of an image to its group.

No product label is used anywhere. The published method's grouping is not known to us; spherical k-means with the number
of groups chosen by silhouette is our reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from scorer.coreset import Vectors, unit
from scorer.search import Bank

Labels = NDArray[np.int64]

# Groups smaller than this join their nearest neighbour: their calibration would rest on too few scores. A split product
# costs some calibration images, but products that were thrown together have no common scale.
_SMALLEST_GROUP = 10
# The same where the number of groups was given: what cross-fitting needs at least.
_SMALLEST_GIVEN = 8
_MOST_GROUPS = 64
# Below this silhouette the images do not fall into groups. Good images of one product reach 0.2 to 0.5 when they are
# split (and then each half has half the images for its bank), those of different products 0.75 to 0.95.
_SMALLEST_SILHOUETTE = 0.5
_RESTARTS = 5
# The search for the number of groups ends when this many more have brought nothing better.
_PATIENCE = 16
# Images that the number of groups is chosen on; all images are assigned afterwards.
_SAMPLE = 1500
_ROUTE_BY = 10
# An image this many times as far from its group as the farthest good one may still belong to it.
_MARGIN = 1.25


def embed(means: Sequence[NDArray[np.floating]]) -> Vectors:
    """Unit embeddings (n, d) of images from their mean feature vectors (n, c) in each layer of one backbone pass.

    Global on purpose: a local defect must hardly move it, or the image would be compared with the wrong good ones.
    """
    return unit(np.concatenate([unit(each) for each in means], axis=-1))


def group(embeddings: Vectors, count: int | None, seed: int) -> Labels:
    """Group labels (n,) from 0, the largest group first; `count` None chooses the number of groups by silhouette."""
    n = len(embeddings)
    rng = np.random.default_rng(seed)
    sample = embeddings if n <= _SAMPLE else embeddings[np.sort(rng.choice(n, _SAMPLE, replace=False))]
    if count is None:
        centres = _best_centres(sample, min(_MOST_GROUPS, n // _SMALLEST_GROUP), rng)
    else:
        centres = _k_means(sample, min(count, n), rng)
    labels = (embeddings @ centres.T).argmax(axis=1)
    labels = _without_small(embeddings, labels, _SMALLEST_GROUP if count is None else _SMALLEST_GIVEN)
    order = sorted(set(labels.tolist()), key=lambda k: (-int((labels == k).sum()), int((labels == k).argmax())))
    return _relabelled(labels, order)


def _relabelled(labels: Labels, order: Sequence[int]) -> Labels:
    place = {old: new for new, old in enumerate(order)}
    return np.asarray([place[int(each)] for each in labels], dtype=np.int64)


def _best_centres(embeddings: Vectors, most: int, rng: np.random.Generator) -> Vectors:
    best, best_value = unit(embeddings.mean(axis=0, keepdims=True)), _SMALLEST_SILHOUETTE
    distance = 1 - embeddings @ embeddings.T
    for k in range(2, most + 1):
        if k > len(best) + _PATIENCE:
            break
        centres = _k_means(embeddings, k, rng)
        value = _silhouette(distance, (embeddings @ centres.T).argmax(axis=1))
        if value >= best_value:  # ties go to more groups: a split product costs only calibration images
            best, best_value = centres, value
    return best


def _k_means(embeddings: Vectors, k: int, rng: np.random.Generator) -> Vectors:
    """Centres (k, d) of the best of several spherical k-means runs, seeded by k-means++."""
    best, best_value = embeddings[:1], -np.inf
    for _ in range(_RESTARTS):
        centres = _seeds(embeddings, k, rng)
        labels = np.full(len(embeddings), -1)
        for _ in range(50):
            similarity = embeddings @ centres.T
            previous, labels = labels, similarity.argmax(axis=1)
            if (labels == previous).all():
                break
            members = np.eye(k, dtype=np.float32)[:, labels]
            # A centre that lost all its images stays where it is.
            centres = np.where(members.any(axis=1, keepdims=True), unit(members @ embeddings), centres)
        value = float(similarity.max(axis=1).sum())
        if value > best_value:
            best, best_value = centres, value
    return best


def _seeds(embeddings: Vectors, k: int, rng: np.random.Generator) -> Vectors:
    chosen = [int(rng.integers(len(embeddings)))]
    nearest = embeddings @ embeddings[chosen[0]]
    while len(chosen) < k:
        weight = np.clip(1 - nearest, 0, None).astype(np.float64)
        total = weight.sum()
        chosen.append(int(rng.choice(len(embeddings), p=weight / total)) if total > 1e-9 else chosen[0])
        nearest = np.maximum(nearest, embeddings @ embeddings[chosen[-1]])
    return embeddings[chosen]


def _silhouette(distance: NDArray[np.float32], labels: Labels) -> float:
    """Mean silhouette (Rousseeuw 1987) of a labelling under a distance matrix (n, n); singletons count 0."""
    used, labels = np.unique(labels, return_inverse=True)
    if len(used) < 2:
        return -1.0
    members = np.eye(len(used), dtype=np.float32)[labels]
    sizes = members.sum(axis=0)
    sums = distance @ members
    own = np.arange(len(labels)), labels
    within = sums[own] / np.maximum(sizes[labels] - 1, 1)
    others = sums / sizes
    others[own] = np.inf
    nearest = others.min(axis=1)
    value = (nearest - within) / np.maximum(np.maximum(nearest, within), 1e-12)
    return float(np.where(sizes[labels] > 1, value, 0).mean())


def _without_small(embeddings: Vectors, labels: Labels, smallest: int) -> Labels:
    """Labels in which every group that is too small has joined the group with the most similar centre."""
    labels = labels.copy()
    while True:
        used, sizes = np.unique(labels, return_counts=True)
        if len(used) < 2 or sizes.min() >= smallest:
            return labels
        centres = unit(np.stack([embeddings[labels == k].mean(axis=0) for k in used]))
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
        others = gallery.groups[~inside]
        similarity = (gallery.embeddings[~inside] @ gallery.embeddings[inside].T).max(axis=1)
        distance = np.sqrt(np.maximum(0, 2 - 2 * similarity))
        foreign = [float(np.quantile(distance[others == j], 0.05)) for j in np.unique(others)]
        products = [each for each in foreign if each > _MARGIN * farthest]
        result[k] = max(_MARGIN * farthest, float(np.sqrt(own * min(products)))) if products else 2 * farthest
    return result
