"""Compiled loops of the neighbour search around the instructions of `scorer.search.instructions`.

Numba compiles these functions when they are first used, and keeps the result in the cache. Arrays are copied element by
element: where one array is assigned to another, numba also compiles an error message, which takes longer than the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from scorer.search.instructions import (
    ROWS_PER_CELL,
    Kind,
    above,
    above_in_cell,
    lowest_bit,
    prefetch,
    rank,
    summit,
    tile,
)

# Tiles of queries whose maxima are kept at once: few enough to stay in the second-level cache beside a block of rows. A
# judgement, not measured.
_TILES = 8
# What the query this many places ahead reads first is fetched now. A judgement, not measured.
_AHEAD = 3
# Maxima of cells without rows lie below this value, all others above.
_EMPTY = np.float32(-1e9)


class PackedBank(NamedTuple):
    """The rows of a bank as the search reads them, in blocks of ROWS_PER_CELL rows for each lane.

    `rows` [blocks][chunks][steps][vectors][lanes][channels of a step] in the numbers of the kind; `start`
    [blocks][chunks][vectors][lanes], what their sums start from; `cells` [cells][steps][NUMBERS_PER_STEP] the exact
    rows, float32 or half precision as uint16; `numbers` int32 [cells][ROWS_PER_CELL] of the rows, -1 for none.
    """

    rows: NDArray[Any]
    start: NDArray[Any]
    cells: NDArray[Any]
    numbers: NDArray[np.int32]


class PackedQueries(NamedTuple):
    """Queries as the search reads them: exact and in the numbers of a kind.

    `exact` float32 (n, channels); `packed` [tiles][steps][queries][channels of a step]; `unit` float32 (n,) the
    similarity that one whole number of a sum stands for; `slack` float32 (n,), see `scorer.search.bank`.
    """

    exact: NDArray[np.float32]
    packed: NDArray[Any]
    unit: NDArray[np.float32]
    slack: NDArray[np.float32]


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def scale_rows(rows, scaled):
    """Write rows (n, c) to `scaled` at unit length; a row shorter than 1e-12 becomes the first axis.

    numpy takes 45 us for the four layers of an image, this loop 12 us, of 7 ms for the whole image on one thread.
    """
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


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nnan", "ninf", "nsz"})
def pack_queries(queries, tile_queries, step_channels, row_scale, row_error, rounding, packed, unit, slack):
    """Write `packed`, `unit` and `slack` of `PackedQueries` for queries (n, channels).

    `tile_queries` and `step_channels` are those of the kind, `row_scale` is what one whole number of the bank's rows
    stands for, `row_error` the most that rounding changes a row, `rounding` the largest error of float32 sums.
    """
    count, channels = queries.shape
    rounded = np.empty(channels, dtype=np.float32)
    for i in range(count):
        tile_number, place = i // tile_queries, i % tile_queries
        query = queries[i]
        scale, offset = np.float32(1), np.float32(0)
        if step_channels == 4:
            largest = np.float32(1e-12)
            for k in range(channels):
                largest = max(largest, abs(query[k]))
            scale, offset = largest / np.float32(127), np.float32(128)
        elif step_channels == 2:
            scale = np.float32(1 / 16384)
        total = np.float32(0)
        if step_channels > 1:
            inverse = np.float32(1) / scale
            for k in range(channels):
                rounded[k] = np.rint(query[k] * inverse)
                difference = query[k] - rounded[k] * scale
                total += difference * difference
                rounded[k] += offset
        else:
            for k in range(channels):
                rounded[k] = query[k]
        if step_channels == 4:  # with a length that the compiler knows, this takes half the time
            for step in range(channels // 4):
                for k in range(4):
                    packed[tile_number, step, place, k] = rounded[step * 4 + k]
        else:
            for step in range(channels // step_channels):
                for k in range(step_channels):
                    packed[tile_number, step, place, k] = rounded[step * step_channels + k]
        error = np.sqrt(total)
        unit[i] = scale * row_scale
        slack[i] = error + (np.float32(1) + error) * row_error + rounding


@numba.njit(nogil=True, cache=True)
def keep(ranked, numbers, similarity, nearest):
    """Put the rows of a cell into one query's list of the nearest so far, the most similar first."""
    last = len(similarity) - 1
    bits = above_in_cell(ranked.ctypes.data, similarity.ctypes.data + last * 4)
    while bits:
        j = lowest_bit(bits)
        bits &= bits - 1
        value, number = ranked[j], numbers[j]
        if value <= similarity[last] or number < 0:
            continue
        for place in range(last + 1):  # choices instead of branches, which no CPU could predict
            is_larger = value > similarity[place]
            passed, passed_number = similarity[place], nearest[place]
            similarity[place] = value if is_larger else passed
            nearest[place] = number if is_larger else passed_number
            value = passed if is_larger else value
            number = passed_number if is_larger else number


@functools.cache
def make_search(kind: Kind) -> Callable[[PackedQueries, PackedBank, NDArray[np.float32], NDArray[np.int32]], None]:
    """Return the search for CPUs of a kind; it writes the similarities and rows of each query's nearest, both (n, k).

    Numba keeps the compiled search under its code and the values that it encloses. All of these are names and numbers,
    so that the next process finds it again; a function among them would be another value in each process.
    """
    kind_name, lanes, tile_queries = kind.name, kind.lanes, kind.queries
    is_float = kind.channels == 1
    # Between whole numbers, "at least x" is "more than x - 1".
    margin = np.float32(0 if is_float else 1)
    lowest = np.float32(-1e30) if is_float else np.int32(-(2**31))

    @numba.njit(nogil=True, cache=True)
    def search(queries, bank, similarity, nearest):
        exact, packed, unit, slack = queries
        rows, start, cells, numbers = bank
        total, channels = exact.shape
        blocks, steps, count = start.shape[0], packed.shape[1], nearest.shape[1]
        at_once = _TILES * tile_queries
        maxima = np.empty((at_once, blocks, lanes), dtype=start.dtype)
        stride = blocks * lanes * 4
        ranked = np.empty(ROWS_PER_CELL, dtype=np.float32)
        tops, top_blocks = np.empty(lanes, dtype=start.dtype), np.empty(lanes, dtype=np.int32)
        bound = np.empty(1, dtype=start.dtype)
        seeds = min(count, lanes)
        first_cells = np.empty((at_once, seeds), dtype=np.int64)

        for begin in range(0, total, at_once):
            end = min(begin + at_once, total)
            # Step 1: the largest value of every cell, for some tiles of queries.
            for block in range(blocks):
                for first in range(begin, end, tile_queries):
                    tile(
                        kind_name,
                        packed.ctypes.data + first * steps * 4,
                        rows.ctypes.data + block * ROWS_PER_CELL * lanes * steps * 4,
                        start.ctypes.data + block * ROWS_PER_CELL * lanes * 4,
                        maxima.ctypes.data + (first - begin) * stride + block * lanes * 4,
                        stride,
                        steps,
                    )
            for ahead in range(begin, end + _AHEAD):
                if ahead < end:
                    # Step 2: the best cells of the best lanes, whose rows are fetched.
                    values = maxima[ahead - begin]
                    summit(kind_name, values.ctypes.data, tops.ctypes.data, top_blocks.ctypes.data, blocks)
                    for place in range(seeds):
                        best, value = 0, tops[0]
                        for lane in range(1, lanes):
                            is_larger = tops[lane] > value
                            best, value = (lane, tops[lane]) if is_larger else (best, value)
                        block = top_blocks[best]
                        tops[best] = lowest
                        values[block, best] = lowest
                        first_cells[ahead - begin, place] = block * lanes + best
                        prefetch(cells, first_cells[ahead - begin, place])
                i = ahead - _AHEAD
                if i < begin:
                    continue
                values = maxima[i - begin]
                similarity[i] = -2.0
                nearest[i] = -1
                query = exact.ctypes.data + i * channels * 4
                # Step 3: the rows of these cells are compared exactly, for a similarity that others have to reach.
                for place in range(seeds):
                    cell = first_cells[i - begin, place]
                    rank(query, cells, cell, ranked.ctypes.data, channels)
                    keep(ranked, numbers[cell], similarity[i], nearest[i])
                # Step 4: so are the rows of every other cell that may hold a nearer row than the last of the nearest.
                bound[0] = max((similarity[i, count - 1] - slack[i]) / unit[i] - margin, _EMPTY)
                for block in range(blocks):
                    bits = above(kind_name, values[block].ctypes.data, bound.ctypes.data)
                    while bits:
                        lane = lowest_bit(bits)
                        bits &= bits - 1
                        if values[block, lane] > bound[0]:
                            cell = block * lanes + lane
                            rank(query, cells, cell, ranked.ctypes.data, channels)
                            keep(ranked, numbers[cell], similarity[i], nearest[i])
                            bound[0] = max((similarity[i, count - 1] - slack[i]) / unit[i] - margin, _EMPTY)

    return search


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def known_vectors(queries, rows, similarity, nearest, known, distance):
    """Write what the rows know near each query, (n, channels), and its distance (n,); see `coreset.projected`."""
    count = nearest.shape[1]
    weights = np.empty(count, dtype=np.float32)
    for i in range(queries.shape[0]):
        if i + _AHEAD < queries.shape[0]:
            for j in range(count):
                prefetch(rows, np.int64(nearest[i + _AHEAD, j]))
        if count == 1:
            row = rows[nearest[i, 0]]
            for k in range(known.shape[1]):
                known[i, k] = row[k]
        else:
            first = max(2 - 2 * similarity[i, 0], np.float32(1e-6))
            total = np.float32(0)
            for j in range(count):
                weights[j] = np.exp(-3 * (max(2 - 2 * similarity[i, j], np.float32(1e-6)) / first - 1))
                total += weights[j]
            known[i] = 0
            for j in range(count):
                share = weights[j] / total
                row = rows[nearest[i, j]]
                for k in range(known.shape[1]):
                    known[i, k] += share * row[k]
        squares = np.float32(0)
        for k in range(known.shape[1]):
            difference = queries[i, k] - known[i, k]
            squares += difference * difference
        distance[i] = np.sqrt(squares)
