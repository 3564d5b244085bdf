"""Alignment, after CADA: an image's score relative to the scores that good images of its look have.

CADA predicts the normal-score distribution of an image's hidden class with a regression head. Our reconstruction reads
it off the image's most similar good images instead, whose own scores are cross-fitted: each was scored against a bank
that holds nothing of it. A log ratio does better than a location-and-width z-score: a width from a few neighbours is
noise. The neighbours' level is noisy too, and drawn upwards by a defect that makes its image resemble odd good ones; so
it is averaged with the level of the whole group, each weighted by how well it foretells good images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def normal_level(log_scores: Floats, neighbours: NDArray[np.int64]) -> Floats:
    """The log score that is normal for images: the median of their neighbours' log scores (n,).

    `neighbours` (..., k) are indices, -1 where an image has fewer than k; every image has one at least.
    """
    if neighbours.min() >= 0:  # numpy's medians take many times as long
        values = np.sort(log_scores[neighbours], axis=-1)
        count = values.shape[-1]
        return np.asarray((values[..., (count - 1) // 2] + values[..., count // 2]) / 2, dtype=np.float64)
    values = np.where(neighbours < 0, np.nan, log_scores[neighbours])
    return np.asarray(np.nanmedian(values, axis=-1), dtype=np.float64)


def group_levels(log_scores: Floats, groups: NDArray[np.int64]) -> Floats:
    """The median log score of each group (K,)."""
    return np.asarray([np.median(log_scores[groups == k]) for k in range(int(groups.max()) + 1)], dtype=np.float64)


def neighbour_shares(log_scores: Floats, near: Floats, groups: NDArray[np.int64]) -> list[float]:
    """The weight of the neighbours' level in each group, that of the group's own level being the rest.

    Inverse-variance weights of two estimates, their errors measured on the group's good images: about a half where the
    images differ little, near 1 where a group holds several looks with levels of their own. `near` (n,) are the
    neighbours' levels.
    """
    levels = group_levels(log_scores, groups)
    shares = []
    for k in range(len(levels)):
        own = groups == k
        of_group = float(np.mean((log_scores[own] - levels[k]) ** 2))
        of_neighbours = float(np.mean((log_scores[own] - near[own]) ** 2))
        total = of_group + of_neighbours
        shares.append(of_group / total if total > 0 else 0.5)
    return shares


def shrunk(near: Floats, levels: Floats, shares: Floats) -> Floats:
    """The normal level of images from their neighbours' and their groups', all (n,)."""
    return shares * near + (1 - shares) * levels
