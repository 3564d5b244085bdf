"""What tiles say of the whole images that they were cut from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def worst(scores: NDArray[np.float64], sources: NDArray[np.int64]) -> NDArray[np.float64]:
    """The highest score of each whole image's tiles (n,), in rising order of `sources` (n,); NaN where one is."""
    whole = np.unique(sources, return_inverse=True)[1]
    result = np.full(int(whole.max()) + 1, -np.inf)
    with np.errstate(invalid="ignore"):  # NaN is meant
        np.maximum.at(result, whole, scores)
    return result


def worst_tiles(scores: NDArray[np.float64], sources: NDArray[np.int64]) -> NDArray[np.intp]:
    """Which tile of each whole image has its highest score, in rising order of `sources` (n,)."""
    order = np.lexsort((scores, sources))
    last = np.flatnonzero(np.append(np.diff(sources[order]) != 0, True))
    return np.asarray(order[last])
