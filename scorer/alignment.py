"""Alignment, after CADA: an image's score relative to the scores that good images of its look have.

CADA predicts the normal-score distribution of an image's hidden class with a regression head. Our reconstruction reads
it off the image's most similar good images instead, whose own scores are cross-fitted: each was scored against a bank
that holds nothing of it. A log ratio does better than a location-and-width z-score: a width from a few neighbours is
noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def normal_level(log_scores: Floats, neighbours: NDArray[np.int64]) -> Floats:
    """The log score that is normal for images: the median of their neighbours' log scores (n,).

    `neighbours` (..., k) are indices, -1 where an image has fewer than k; every image has one at least.
    """
    if (neighbours >= 0).all():  # numpy's median that skips NaN takes ten times as long
        return np.asarray(np.median(log_scores[neighbours], axis=-1), dtype=np.float64)
    values = np.where(neighbours < 0, np.nan, log_scores[neighbours])
    return np.asarray(np.nanmedian(values, axis=-1), dtype=np.float64)
