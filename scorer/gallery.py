"""The good images by their embedding: which of them an image resembles, and how far an image of a group may be.

An image finds its group without a product label: the good images that are most similar to it vote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorer.search.bank import Int8Index, unit_rows
from scorer.search.neighbours import index_of_many
from scorer.vectors import Vectors

Labels = NDArray[np.int64]

# Most similar good images that vote on an image's group. A judgement, not measured.
VOTES = 10
# An image this many times as far from its group as the farthest good one may still be of the group. A judgement; how
# many unknown products are noticed with it is measured by benchmarks/scorer_quality.py.
_MARGIN = 1.25


def image_embeddings(means: Sequence[NDArray[np.floating]]) -> Vectors:
    """Return unit embeddings (..., d) of images from their mean feature vectors (..., c) in each layer of one pass.

    Of the whole image on purpose: a local defect must hardly move it, or the image would be compared with the wrong
    good images.
    """
    return unit_rows(np.concatenate([unit_rows(layer) for layer in means], axis=-1))


def first_copies(embeddings: Vectors) -> Labels:
    """Return for each image (n,) the number of the first image with the same embedding: its own unless it is a copy."""
    _, first, kind = np.unique(embeddings, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[kind.reshape(-1)], dtype=np.int64)


@dataclass(frozen=True)
class Look:
    """What an image resembles: its group, its most similar good images in order, and its distance to the first."""

    group: int
    neighbours: NDArray[np.int64]
    distance: float


class Gallery:
    """Exact search among the good images, by embeddings (n, d) and groups (n,)."""

    def __init__(self, embeddings: Vectors, groups: Labels) -> None:
        self.embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        self.groups = groups
        self._sizes = np.bincount(groups)
        self._bank = Int8Index(self.embeddings)

    def look(self, embedding: Vectors, neighbours: int) -> Look:
        """Return what the image with this embedding (d,) resembles; its group has most votes among the most similar."""
        count = min(max(neighbours, VOTES), len(self.groups))
        similarity, indices = (rows[0] for rows in self._bank.nearest(embedding[None], count))
        votes = self.groups[indices[:VOTES]].tolist()
        most = max(votes.count(group) for group in votes)
        # Of groups with equally many votes, the group of the most similar image wins.
        group = next(group for group in votes if votes.count(group) == most)
        count = min(neighbours, self._most_neighbours(group))
        return Look(group, indices[:count].astype(np.int64), math.sqrt(max(0.0, 2 - 2 * float(similarity[0]))))

    def _most_neighbours(self, group: int) -> int:
        """Return how many other members a group has, at least 1: more neighbours would be of another look."""
        return max(1, int(self._sizes[group]) - 1)

    def neighbours_of_members(
        self, neighbours: int, copies: Labels | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return for each good image its most similar other good images (n, k), and its distance (n,) to the first.

        `copies` (n,) have the same number where images are the same: a copy is no other image, unless the group has
        nothing else. Where the image's group has fewer than k others, the rest of the row is -1.
        """
        n = len(self.groups)
        kinds = np.arange(n) if copies is None else copies
        times = np.bincount(kinds)[kinds]
        alone = times >= self._sizes[self.groups]
        kinds, times = np.where(alone, n + np.arange(n), kinds), np.where(alone, 1, times)
        count = min(neighbours, n - int(times.max()))
        index = index_of_many(self.embeddings)
        similarity, indices = index.nearest(self.embeddings, count + int(times.max()))
        is_copy = kinds[indices] == kinds[:, None]
        # Rounding may leave one of the copies out of the list: the first others are in it all the same.
        order = np.argsort(is_copy, axis=1, kind="stable")[:, :count]
        others = np.take_along_axis(indices, order, axis=1).astype(np.int64)
        nearest = np.take_along_axis(similarity, order, axis=1)[:, 0]
        most = np.maximum(1, self._sizes[self.groups] - times)
        others = np.where(np.arange(count) < most[:, None], others, -1)
        return others, np.sqrt(np.maximum(0, 2 - 2 * nearest))


def group_gates(gallery: Gallery, within: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return for each group (K,) the distance to its nearest good image beyond which an image is of an unknown product.

    It is the geometric mean of two distances: what the group's own images keep, and what images of the nearest other
    product keep to the group; but at least 1.25 times the farthest of the group's own. A group within that margin is no
    other product but a variant; where all other groups are variants, the gate is at twice the farthest.
    `within` (n,): the distance of each good image to the nearest other one.
    """
    result = np.empty(len(np.bincount(gallery.groups)), dtype=np.float32)
    for k in range(len(result)):
        inside = gallery.groups == k
        usual = max(float(np.quantile(within[inside], 0.99)), 1e-3)
        farthest = max(float(within[inside].max()), 1e-3)
        similarity = (gallery.embeddings[~inside] @ gallery.embeddings[inside].T).max(axis=1)
        foreign = _low_quantiles(np.sqrt(np.maximum(0, 2 - 2 * similarity)), gallery.groups[~inside], 0.05)
        products = foreign[foreign > _MARGIN * farthest]
        result[k] = max(_MARGIN * farthest, float(np.sqrt(usual * products.min()))) if len(products) else 2 * farthest
    return result


def _low_quantiles(values: NDArray[np.floating], kinds: Labels, share: float) -> NDArray[np.float64]:
    """Return a quantile of the values (n,) of each kind that occurs, all at once: there may be a thousand kinds."""
    order = np.lexsort((values, kinds))
    _, starts, counts = np.unique(kinds[order], return_index=True, return_counts=True)
    place = share * (counts - 1)
    low = place.astype(np.int64)
    ranked = values[order].astype(np.float64)
    below, above = ranked[starts + low], ranked[starts + np.minimum(low + 1, counts - 1)]
    return np.asarray(below + (place - low) * (above - below), dtype=np.float64)
