"""Alignment, after CADA: an image's score relative to the scores that good images of its look have.

CADA predicts the normal-score distribution of an image's hidden class with a regression head. Our reconstruction reads
it off the most similar good images instead, whose own scores are cross-fitted: each was scored against a bank that
holds nothing of it. A log ratio ranks better than a location-and-width z-score, since a width from a few neighbours is
noise. The neighbours' level is noisy too, and a defect that makes its image resemble odd good images draws it upwards.
So it is averaged with the level of the whole group, each weighted by how well it predicts good images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def normal_level(log_scores: Floats, neighbours: NDArray[np.int64]) -> Floats:
    """Return the log score that is normal for images (...): the median of their neighbours' log scores.

    `log_scores` (n,) are the good images'. `neighbours` (..., k) are their numbers, -1 where an image has fewer than k;
    every image has at least one.
    """
    if neighbours.min() >= 0:  # numpy's medians take many times as long for one image
        values = np.sort(log_scores[neighbours], axis=-1)
        count = values.shape[-1]
        return np.asarray((values[..., (count - 1) // 2] + values[..., count // 2]) / 2, dtype=np.float64)
    values = np.where(neighbours < 0, np.nan, log_scores[neighbours])
    return np.asarray(np.nanmedian(values, axis=-1), dtype=np.float64)


def group_levels(log_scores: Floats, groups: NDArray[np.int64]) -> Floats:
    """Return the median log score of each group (K,)."""
    return np.asarray([np.median(log_scores[groups == k]) for k in range(int(groups.max()) + 1)], dtype=np.float64)


def neighbour_shares(log_scores: Floats, near: Floats, groups: NDArray[np.int64]) -> list[float]:
    """Return the weight of the neighbours' level in each group (K,); the level of the group has the rest.

    Inverse-variance weights of two estimates, whose errors are measured on the group's good images: about a half where
    the images differ little, near 1 where a group holds several looks with levels of their own. `near` (n,) are the
    neighbours' levels.
    """
    levels = group_levels(log_scores, groups)
    shares = []
    for k in range(len(levels)):
        members = groups == k
        group_error = float(np.mean((log_scores[members] - levels[k]) ** 2))
        neighbour_error = float(np.mean((log_scores[members] - near[members]) ** 2))
        total = group_error + neighbour_error
        shares.append(group_error / total if total > 0 else 0.5)
    return shares


def shrunk(near: Floats, levels: Floats, shares: Floats) -> Floats:
    """Return the normal level of images from the levels of their neighbours and of their groups, all (n,)."""
    return shares * near + (1 - shares) * levels
