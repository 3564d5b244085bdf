"""Compiled loops over the small arrays of one image, each of which takes numpy longer to start than to do.

Numba compiles these functions when they are first used, and keeps the result in the cache. It knows a kept function by
its own module only: so nothing here may call what another module compiles, nor the other way round.
"""

from __future__ import annotations

import numba
import numpy as np

from scorer.search import warm

warm.keep_in_cache()

# Rows that `mean_of_rows` adds up before it starts anew.
_PART = 64


@numba.njit(cache=True, fastmath={"contract"})
def mean_of_rows(rows, mean):
    """The mean (c,) of rows (n, c), summed in parts, so that no sum grows long in single precision."""
    count, channels = rows.shape
    total = np.zeros(channels, dtype=np.float64)
    part = np.empty(channels, dtype=np.float32)
    for begin in range(0, count, _PART):
        part[:] = 0
        for i in range(begin, min(begin + _PART, count)):
            for k in range(channels):
                part[k] += rows[i, k]
        for k in range(channels):
            total[k] += part[k]
    for k in range(channels):
        mean[k] = total[k] / count


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def unit_rows(rows, scaled):
    """Rows (n, c) scaled to unit length; one that is shorter than 1e-12 becomes the first axis."""
    count, channels = rows.shape
    for i in range(count):
        squares = np.float32(0)
        for k in range(channels):
            squares += rows[i, k] * rows[i, k]
        length = np.sqrt(squares)
        if length < np.float32(1e-12):
            for k in range(channels):
                scaled[i, k] = 0
            scaled[i, 0] = 1
        else:
            for k in range(channels):
                scaled[i, k] = rows[i, k] / length


@numba.njit(cache=True)
def add_layer(distances, floor, median, factor, total):
    """Add factor * log(distance / median) of a layer (h, w) to the sum (side, side), enlarged as by `maps.enlarged`."""
    height, width = distances.shape
    side = total.shape[0]
    logs = np.empty((height, width), dtype=np.float32)
    for i in range(height):
        for j in range(width):
            logs[i, j] = np.log(max(distances[i, j], floor) / median) * factor
    if height == side and width == side:
        for i in range(side):
            for j in range(side):
                total[i, j] += logs[i, j]
        return
    wide = np.empty((height, side), dtype=np.float32)
    for j in range(side):
        place = min(max((j + 0.5) * width / side - 0.5, 0.0), width - 1.0)
        left = min(int(place), max(width - 2, 0))
        right = min(left + 1, width - 1)
        share = np.float32(place - left)
        for i in range(height):
            wide[i, j] = (np.float32(1) - share) * logs[i, left] + share * logs[i, right]
    for i in range(side):
        place = min(max((i + 0.5) * height / side - 0.5, 0.0), height - 1.0)
        above = min(int(place), max(height - 2, 0))
        below = min(above + 1, height - 1)
        share = np.float32(place - above)
        for j in range(side):
            total[i, j] += (np.float32(1) - share) * wide[above, j] + share * wide[below, j]


@numba.njit(cache=True)
def smoothed_exp(total, scale, most, kernel, result):
    """exp(min(scale * total, most)) of a map (side, side), smoothed by a kernel of odd length in both directions.

    Beyond its edges the map is mirrored about its outermost values.
    """
    side, length = total.shape[0], len(kernel)
    reach = length // 2
    source = np.empty((side, length), dtype=np.int64)
    for i in range(side):
        for k in range(length):
            place = i + k - reach
            while side > 1 and (place < 0 or place >= side):
                place = -place if place < 0 else 2 * side - 2 - place
            source[i, k] = place if side > 1 else 0
    ratios = np.empty((side, side), dtype=np.float32)
    for i in range(side):
        for j in range(side):
            ratios[i, j] = np.exp(min(total[i, j] * scale, most))
    wide = np.zeros((side, side), dtype=np.float32)
    for i in range(side):
        for j in range(side):
            value = np.float32(0)
            for k in range(length):
                value += kernel[k] * ratios[i, source[j, k]]
            wide[i, j] = value
    result[:] = 0
    for i in range(side):
        for k in range(length):
            row = wide[source[i, k]]
            for j in range(side):
                result[i, j] += kernel[k] * row[j]


@numba.njit(cache=True)
def _keep_largest(values, largest):
    """Put values (n,) into the list of the largest, which falls."""
    last = len(largest) - 1
    for value in values:
        if value > largest[last]:
            place = last
            while place > 0 and largest[place - 1] < value:
                largest[place] = largest[place - 1]
                place -= 1
            largest[place] = value


@numba.njit(cache=True)
def mean_of_largest(values, count):
    """The mean of the `count` largest of some values (n,), in double precision."""
    largest = np.full(count, -np.inf, dtype=np.float64)
    _keep_largest(values, largest)
    total = 0.0
    for value in largest:
        total += value
    return total / count


@numba.njit(cache=True)
def mean_least_distance(similarities, count, least):
    """The mean distance of a unit vector to the `count` nearest of some others, from their inner products (n,) with it.

    Squared distances are taken to be `least` at least.
    """
    largest = np.full(count, -np.inf, dtype=np.float64)
    _keep_largest(similarities, largest)
    total = 0.0
    for value in largest:
        total += np.sqrt(max(2 - 2 * value, least))
    return total / count
