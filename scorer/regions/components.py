"""How many connected components a map has above each of many thresholds, in one pass over its pixels."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scorer.search.warm import keep_in_cache

keep_in_cache()

# Steps (y, x) to the eight pixels around a pixel.
_AROUND = np.array([(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)])


def component_counts(scaled: NDArray[np.float32], thresholds: NDArray[np.int64]) -> list[int]:
    """Return the number of 8-connected components of `scaled` (h, w) above each of the thresholds.

    The thresholds, two at least and at most 255, descend in equal steps.

    Pixels are added from the highest to the lowest, each to the components that it touches: the component tree of
    Najman and Couprie (IEEE Trans. Image Processing 15(11), 2006), of which only the counts are kept. A pixel whose
    neighbours touch each other, which are most, joins them without a search.
    """
    values = np.ascontiguousarray(scaled, np.float32)
    return [int(count) for count in _counts(values, thresholds.astype(np.float64), _AROUND, _TOUCHED)]


def _touched() -> NDArray[np.int8]:
    """Return int8 (256, 5): into how many sets that do not touch the pixels around one fall, and a pixel of each set.

    The bits of the index say which of the eight pixels are there.
    """
    table = np.zeros((256, 5), np.int8)
    for bits in range(256):
        present = np.array([bits >> i & 1 for i in range(8)])
        around = np.zeros((3, 3), int)
        around[tuple(_AROUND.T + 1)] = present
        labels, table[bits, 0] = ndimage.label(around, np.ones((3, 3)))
        labels_around = labels[tuple(_AROUND.T + 1)]
        for label in range(1, table[bits, 0] + 1):
            table[bits, label] = np.flatnonzero(labels_around == label)[0]
    return table


_TOUCHED = _touched()


@numba.njit(nogil=True, cache=True)
def _counts(
    scaled: NDArray[np.float32],
    thresholds: NDArray[np.float64],
    around: NDArray[np.int64],
    touched: NDArray[np.int8],
) -> NDArray[np.int64]:
    # 1. The first threshold below each pixel.
    height, width = scaled.shape
    levels = len(thresholds)
    lowest, per_step = thresholds[levels - 1], 1 / (thresholds[0] - thresholds[1])
    row = width + 2  # with a border of pixels above no threshold, which saves a look at the edges
    level = np.full(height * width, levels, np.uint8)
    start = np.zeros(levels + 2, np.int64)
    for y in range(height):
        for x in range(width):
            value = scaled[y, x]
            if value > lowest:
                # Nearly always the guess is right, which rounding may miss by one.
                k = 0 if value > thresholds[0] else np.int64((thresholds[0] - value) * per_step) + 1
                while k > 0 and value > thresholds[k - 1]:
                    k -= 1
                while value <= thresholds[k]:
                    k += 1
                level[y * width + x] = k
                start[k + 2] += 1
    # 2. The pixels in the order of these thresholds.
    for k in range(levels):
        start[k + 2] += start[k + 1]
    order = np.empty(start[levels + 1], np.int32)
    for y in range(height):
        for x in range(width):
            k = level[y * width + x]
            if k < levels:
                order[start[k + 1]] = (y + 1) * row + x + 1
                start[k + 1] += 1
    # 3. Each joins what it touches; a component is known by its root, to which `root` leads.
    steps = around[:, 0] * row + around[:, 1]
    root = np.full((height + 2) * row, -1, np.int32)
    counts = np.zeros(levels, np.int64)
    components = 0
    for k in range(levels):
        for i in range(start[k], start[k + 1]):
            pixel = order[i]
            bits = 0
            for j in range(8):
                bits |= (root[pixel + steps[j]] >= 0) << j
            sets = touched[bits, 0]
            if sets == 0:
                root[pixel] = pixel
                components += 1
                continue
            first = root[pixel + steps[touched[bits, 1]]]
            if sets > 1:
                while root[first] != first:
                    root[first] = root[root[first]]
                    first = root[first]
                for j in range(2, sets + 1):
                    other = root[pixel + steps[touched[bits, j]]]
                    while root[other] != other:
                        root[other] = root[root[other]]
                        other = root[other]
                    if other != first:
                        root[other] = first
                        components -= 1
            root[pixel] = first
        counts[k] = components
    return counts
