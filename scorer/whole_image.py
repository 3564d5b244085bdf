"""The image as a whole, beside its patches: what no patch shows, such as a part that is missing or is another one.

A fault of that kind moves the mean of the deepest feature map, which says what is in the picture. Its distance to the
most similar good images of the group counts only beyond what nearly all good images keep, as an alternative cause
(noisy OR): where good images differ as wholes anyway, it stays silent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorer import calibration
from scorer.search.bank import unit_rows
from scorer.vectors import Vectors

Floats = NDArray[np.float64]

# Good images that the distance is averaged over.
_NEAREST = 3
# What a spread beyond the usual reach adds to the log score, in spreads of the patches' log scores.
_GAIN = 2.0
# Distances of unit vectors below this are rounding; spreads below the second would make them count.
_FLOOR = 0.01
_NARROWEST = 0.05
# Good images that are compared with all of their group at once; a group may hold every image of a line.
_BLOCK = 512


@dataclass(frozen=True)
class WholeUnit:
    """What is usual for whole images of a group: median log distance, how far beyond it good ones reach (natural-log
    units), and what one such reach more adds to the log score."""

    median: float
    reach: float
    gain: float

    def added(self, log_distances: Floats) -> Floats:
        """What whole images at these log distances add to their log scores, 0 for all but a few good ones."""
        return self.gain * np.maximum(0, (log_distances - self.median) / self.reach - 1)


def deepest(embeddings: Vectors, channels: int) -> Vectors:
    """The part (n, channels) of image embeddings (n, d) that comes from the deepest map, of unit length."""
    return unit_rows(embeddings[:, -channels:])


def log_distances(wholes: Vectors, good: Vectors, allowed: NDArray[np.bool_] | None = None) -> Floats:
    """Log of the mean distance of whole images (n, c) to the nearest of the good ones (m, c), all of unit length.

    `allowed` (n, m) says which of them an image may be compared with; every image needs one.
    """
    similarity = wholes @ good.T
    count = min(_NEAREST, similarity.shape[1])
    if allowed is not None:
        similarity = np.where(allowed, similarity, -np.inf)
    nearest = np.partition(similarity, -count, axis=1)[:, -count:]
    squared = np.maximum(2 - 2 * nearest.astype(np.float64), _FLOOR**2)
    known = np.isfinite(squared)
    return np.asarray(np.log(np.where(known, np.sqrt(squared), 0).sum(axis=1) / known.sum(axis=1)), dtype=np.float64)


def fit(
    wholes: Vectors, groups: NDArray[np.int64], sources: NDArray[np.int64], widths: Floats
) -> tuple[list[WholeUnit], Floats]:
    """The unit of each group, and what the good images (n, c) themselves add, each compared with all but itself.

    `sources` (n,) say which images must not be compared since they show one thing; `widths` (K,) are the spreads of the
    groups' patch log scores.
    """
    logs = np.empty(len(wholes))
    medians = np.empty(len(widths))
    for k in range(len(widths)):
        own = np.flatnonzero(groups == k)
        for start in range(0, len(own), _BLOCK):
            some = own[start : start + _BLOCK]
            allowed = sources[some][:, None] != sources[own][None]
            # A group that shows one thing only: any other of its images will do.
            allowed[~allowed.any(axis=1)] = True
            logs[some] = log_distances(wholes[some], wholes[own], allowed)
        medians[k] = np.median(logs[own])
    reaches = np.maximum(calibration.group_widths(logs - medians[groups], groups), _NARROWEST)
    units = [WholeUnit(float(medians[k]), float(reaches[k]), float(_GAIN * widths[k])) for k in range(len(widths))]
    added = np.empty(len(wholes))
    for k, each in enumerate(units):
        added[groups == k] = each.added(logs[groups == k])
    return units, added
