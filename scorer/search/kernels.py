"""Compiled loops of the neighbour search around the instructions of `scorer.search.instructions`.

Numba compiles these functions when they are first used, and keeps the result in the cache. Arrays are copied element by
element: for one array assigned to another numba compiles an error message too, which takes longer than all the rest.
"""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import numba
import numpy as np

from scorer.search.instructions import (
    CELL,
    KINDS,
    Kind,
    above_in_cell,
    above_of,
    lowest_bit,
    prefetch,
    rank,
    summit_of,
    supported,
    tile_of,
)

# Queries, in tiles, whose maxima are kept at once: few enough to stay in the second-level cache beside a block of rows.
_TILES = 8
# What is read next for the query this many places ahead is fetched.
_AHEAD = 3
# Maxima of cells that hold no row lie below, all others above.
_EMPTY = np.float32(-1e9)


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
def packed_queries(queries, tile_queries, group, packed, scales, errors):
    """Queries (n, channels) in the numbers of a kind: packed [tiles][steps][tile_queries][group], scale, |rounding|."""
    count, channels = queries.shape
    rounded = np.empty(channels, dtype=np.float32)
    for i in range(count):
        tile, place = i // tile_queries, i % tile_queries
        query = queries[i]
        scale, offset = np.float32(1), np.float32(0)
        if group == 4:
            largest = np.float32(1e-12)
            for k in range(channels):
                largest = max(largest, abs(query[k]))
            scale, offset = largest / np.float32(127), np.float32(128)
        elif group == 2:
            scale = np.float32(1 / 16384)
        total = np.float32(0)
        if group > 1:
            inverse = np.float32(1) / scale
            for k in range(channels):
                rounded[k] = np.rint(query[k] * inverse)
                difference = query[k] - rounded[k] * scale
                total += difference * difference
                rounded[k] += offset
        else:
            for k in range(channels):
                rounded[k] = query[k]
        if group == 4:  # with a length known when it is compiled, this takes half the time
            for step in range(channels // 4):
                for k in range(4):
                    packed[tile, step, place, k] = rounded[step * 4 + k]
        else:
            for step in range(channels // group):
                for k in range(group):
                    packed[tile, step, place, k] = rounded[step * group + k]
        scales[i] = scale
        errors[i] = np.sqrt(total)


@numba.njit(nogil=True, cache=True)
def keep(ranked, numbers, similarity, found):
    """Put the rows of a cell into one query's list of the nearest so far, which falls."""
    last = len(similarity) - 1
    bits = above_in_cell(ranked.ctypes.data, similarity.ctypes.data + last * 4)
    while bits:
        j = lowest_bit(bits)  # type: ignore[call-arg, var-annotated]
        bits &= bits - 1
        value, number = ranked[j], numbers[j]
        if value <= similarity[last] or number < 0:
            continue
        for place in range(last + 1):  # choices instead of branches, which nobody could foretell
            is_larger = value > similarity[place]
            passed, passed_number = similarity[place], found[place]
            similarity[place] = value if is_larger else passed
            found[place] = number if is_larger else passed_number
            value = passed if is_larger else value
            number = passed_number if is_larger else number


def _parts(kind: Kind) -> dict[str, Any]:
    """What `_search` finds under its names in capital letters."""
    return {
        "TILE": tile_of(kind),
        "SUMMIT": summit_of(kind),
        "ABOVE": above_of(kind),
        # Between whole numbers, "at least x" is "more than x - 1".
        "STEP": np.float32(0 if kind.group == 1 else 1),
        "TILE_QUERIES": kind.queries,
        "LANES": kind.lanes,
        "VECTORS": kind.vectors,
        "LOWEST": np.float32(-1e30) if kind.group == 1 else np.int32(-(2**31)),
    }


# Numba keeps compiled functions by their source and the CPU, not by what they enclose: so the one that is kept reads
# its kind, which follows from the CPU, from this module.
FASTEST = supported()[0]
TILE, SUMMIT, ABOVE, STEP, TILE_QUERIES, LANES, VECTORS, LOWEST = _parts(FASTEST).values()


def _search(queries, packed, unit, slack, rows, start, cells, numbers, similarity, found):
    total, channels = queries.shape
    blocks, steps, count = start.shape[0], packed.shape[1], found.shape[1]
    at_once = _TILES * TILE_QUERIES
    maxima = np.empty((at_once, blocks, LANES), dtype=start.dtype)
    stride = blocks * LANES * 4
    ranked = np.empty(CELL, dtype=np.float32)
    tops, top_blocks = np.empty(LANES, dtype=start.dtype), np.empty(LANES, dtype=np.int32)
    bound = np.empty(1, dtype=start.dtype)
    seeds = min(count, LANES)
    first_cells = np.empty((at_once, seeds), dtype=np.int64)

    for begin in range(0, total, at_once):
        end = min(begin + at_once, total)
        for block in range(blocks):
            for first in range(begin, end, TILE_QUERIES):
                TILE(
                    packed.ctypes.data + first * steps * 4,
                    rows.ctypes.data + block * CELL * LANES * steps * 4,
                    start.ctypes.data + block * CELL * LANES * 4,
                    maxima.ctypes.data + (first - begin) * stride + block * LANES * 4,
                    stride,
                    steps,
                )
        for ahead in range(begin, end + _AHEAD):
            if ahead < end:
                # The best cells of the best lanes are settled first, to have something to compare the others with.
                own = maxima[ahead - begin]
                SUMMIT(own.ctypes.data, tops.ctypes.data, top_blocks.ctypes.data, blocks)
                for place in range(seeds):
                    best, value = 0, tops[0]
                    for lane in range(1, LANES):
                        is_larger = tops[lane] > value
                        best, value = (lane, tops[lane]) if is_larger else (best, value)
                    block = top_blocks[best]
                    tops[best] = LOWEST
                    own[block, best] = LOWEST
                    first_cells[ahead - begin, place] = block * LANES + best
                    prefetch(cells, first_cells[ahead - begin, place])  # type: ignore[call-arg]
            i = ahead - _AHEAD
            if i < begin:
                continue
            own = maxima[i - begin]
            similarity[i] = -2.0
            found[i] = -1
            query = queries.ctypes.data + i * channels * 4
            for place in range(seeds):
                cell = first_cells[i - begin, place]
                rank(query, cells, cell, ranked.ctypes.data, channels)  # type: ignore[call-arg]
                keep(ranked, numbers[cell], similarity[i], found[i])
            # Then every other cell that may hold something nearer than the last of those found.
            bound[0] = max((similarity[i, count - 1] - slack[i]) / unit[i] - STEP, _EMPTY)
            for block in range(blocks):
                bits = ABOVE(own[block].ctypes.data, bound.ctypes.data)
                while bits:
                    lane = lowest_bit(bits)  # type: ignore[call-arg]
                    bits &= bits - 1
                    if own[block, lane] > bound[0]:
                        cell = block * LANES + lane
                        rank(query, cells, cell, ranked.ctypes.data, channels)
                        keep(ranked, numbers[cell], similarity[i], found[i])
                        bound[0] = max((similarity[i, count - 1] - slack[i]) / unit[i] - STEP, _EMPTY)


search = numba.njit(nogil=True, cache=True)(_search)


@functools.cache
def search_of(name: str) -> Any:
    """The search of one kind; see `scorer.search.bank` for its arguments."""
    if name == FASTEST.name:
        return search
    own = FunctionType(_search.__code__, {**globals(), **_parts(KINDS[name])}, _search.__name__)
    return numba.njit(nogil=True)(own)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def known_vectors(queries, rows, similarity, found, known, distance):
    """What the rows know near each query, (n, channels), and its distance to that (n,); see `coreset.projected`."""
    count = found.shape[1]
    weights = np.empty(count, dtype=np.float32)
    for i in range(queries.shape[0]):
        if i + _AHEAD < queries.shape[0]:
            for j in range(count):
                prefetch(rows, np.int64(found[i + _AHEAD, j]))  # type: ignore[call-arg]
        if count == 1:
            row = rows[found[i, 0]]
            for k in range(known.shape[1]):
                known[i, k] = row[k]
        else:
            nearest = max(2 - 2 * similarity[i, 0], np.float32(1e-6))
            total = np.float32(0)
            for j in range(count):
                weights[j] = np.exp(-3 * (max(2 - 2 * similarity[i, j], np.float32(1e-6)) / nearest - 1))
                total += weights[j]
            known[i] = 0
            for j in range(count):
                share = weights[j] / total
                row = rows[found[i, j]]
                for k in range(known.shape[1]):
                    known[i, k] += share * row[k]
        squares = np.float32(0)
        for k in range(known.shape[1]):
            difference = queries[i, k] - known[i, k]
            squares += difference * difference
        distance[i] = np.sqrt(squares)
