"""Compiled inner loops of the neighbour search, in the vector instructions of the CPU at hand.

A matrix product writes every similarity to memory before anybody looks for the largest. Here the products stay in
registers: of the rows of a bank, sixteen at a time share a *cell*, and only the largest value of each cell is written.
With 8-bit dot product instructions (VNNI) that takes a quarter of the float32 arithmetic. What is exact about the
search is `scorer.search`'s business.

Numba compiles these functions when they are first used, and keeps the result in the cache.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from scorer.backbone import cache_dir

# An installation that cannot be written to has no place beside the sources for what is compiled.
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_dir() / "kernels"))

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# The dot product instructions are given as assembler, which numba does not set LLVM up for.
llvmlite.binding.initialize_native_asmparser()

# Rows that share a cell, and so the width of the exact kernel.
CELL = 16


@dataclass(frozen=True)
class Kind:
    """How a CPU multiplies: so many sums at once, each of `group` channels, for a tile of queries x vectors of rows.

    A group of 4 is of 8-bit numbers (queries offset by 128, to be unsigned), of 2 of 16-bit, of 1 of float32. The
    tile's sums, and what is multiplied, just fill the CPU's registers.
    """

    name: str
    lanes: int
    queries: int
    vectors: int
    group: int


KINDS = {
    each.name: each
    for each in (
        Kind("avx512-vnni", lanes=16, queries=6, vectors=4, group=4),
        Kind("avx-vnni", lanes=8, queries=6, vectors=2, group=4),
        Kind("avx512", lanes=16, queries=6, vectors=4, group=1),
        Kind("avx2", lanes=8, queries=5, vectors=2, group=2),
        Kind("any", lanes=4, queries=6, vectors=2, group=1),
    )
}
_NEEDS = {"avx512-vnni": "avx512vnni", "avx-vnni": "avxvnni", "avx512": "avx512f", "avx2": "avx2"}


def supported() -> list[Kind]:
    """The kinds that this CPU can run, the fastest first."""
    features = llvmlite.binding.get_host_cpu_features() if platform.machine().lower() in ("x86_64", "amd64") else {}
    return [kind for name, kind in KINDS.items() if name not in _NEEDS or features.get(_NEEDS[name])]


def _number(kind: Kind) -> Any:
    return ir.FloatType() if kind.group == 1 else ir.IntType(32)


def _multiply_add(kind: Kind, builder: Any) -> Callable[[Any, Any, Any], Any]:
    """sum + query * row, one vector of sums at a time."""
    vector = ir.VectorType(_number(kind), kind.lanes)
    if kind.group == 1:
        name = f"llvm.fmuladd.v{kind.lanes}f32"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        return lambda total, query, row: builder.call(fma, [query, row, total])
    # As assembler, since LLVM's own names for these instructions change their types between releases.
    if kind.group == 2:
        products = ir.InlineAsm(ir.FunctionType(vector, [vector] * 2), "vpmaddwd $2, $1, $0", "=x,x,x")
        return lambda total, query, row: builder.add(total, builder.call(products, [query, row]))
    instruction, registers = ("vpdpbusd", "v") if kind.lanes == 16 else ("{vex} vpdpbusd", "x")
    constraints = f"={registers},0,{registers},{registers}"
    sums = ir.InlineAsm(ir.FunctionType(vector, [vector] * 3), f"{instruction} $3, $2, $0", constraints)
    return lambda total, query, row: builder.call(sums, [total, query, row])


def _tile(kind: Kind) -> Any:
    """The kernel of a kind: the largest value of each cell of one block of rows, for one tile of queries.

    Arguments are addresses and counts: packed queries [steps][queries], packed rows [chunks][steps][vectors][lanes],
    what sums start from [chunks][vectors][lanes], the maxima [queries][lanes] with the distance in bytes from one
    query's to the next one's, steps, chunks.
    """
    number = _number(kind)
    vector = ir.VectorType(number, kind.lanes)
    size = 4 * kind.lanes

    @intrinsic
    def tile(context, queries, rows, start, maxima, stride, steps, chunks):
        def code(context, builder, signature, arguments):
            queries, rows, start, maxima, stride, steps, chunks = arguments
            word = queries.type
            add = _multiply_add(kind, builder)

            def load(address, offset, as_type, align):
                place = builder.add(address, offset) if offset is not None else address
                return builder.load(builder.inttoptr(place, as_type.as_pointer()), align=align)

            def constant(value):
                return ir.Constant(word, value)

            with cgutils.for_range(builder, chunks, intp=word) as chunk:
                offset = builder.mul(chunk.index, constant(kind.vectors * size))
                first = [load(start, builder.add(offset, constant(v * size)), vector, 4) for v in range(kind.vectors)]
                sums = [[cgutils.alloca_once(builder, vector) for _ in first] for _ in range(kind.queries)]
                for row_of_sums in sums:
                    for place, value in zip(row_of_sums, first, strict=True):
                        builder.store(value, place)
                base = builder.add(rows, builder.mul(offset, steps))
                with cgutils.for_range(builder, steps, intp=word) as step:
                    at_row = builder.mul(step.index, constant(kind.vectors * size))
                    at_query = builder.mul(step.index, constant(kind.queries * 4))
                    loaded = [
                        load(base, builder.add(at_row, constant(v * size)), vector, 4) for v in range(kind.vectors)
                    ]
                    for q in range(kind.queries):
                        single = load(queries, builder.add(at_query, constant(4 * q)), number, 4)
                        spread = _spread(builder, single, kind.lanes)
                        for v in range(kind.vectors):
                            builder.store(add(builder.load(sums[q][v]), spread, loaded[v]), sums[q][v])
                for q in range(kind.queries):
                    place = builder.add(maxima, builder.mul(stride, constant(q)))
                    best = load(place, None, vector, 4)
                    for v in range(kind.vectors):
                        best = _larger(builder, best, builder.load(sums[q][v]))
                    builder.store(best, builder.inttoptr(place, vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), code

    return tile


def _summit(kind: Kind) -> Any:
    """The largest value in each lane [lanes] of maxima [blocks][lanes], by address."""
    vector = ir.VectorType(_number(kind), kind.lanes)

    @intrinsic
    def summit(context, maxima, largest, blocks):
        def code(context, builder, signature, arguments):
            maxima, largest, blocks = arguments
            place = cgutils.alloca_once(builder, vector)
            builder.store(builder.load(builder.inttoptr(maxima, vector.as_pointer()), align=4), place)
            with cgutils.for_range(builder, blocks, intp=maxima.type) as block:
                at = builder.add(maxima, builder.mul(block.index, ir.Constant(maxima.type, 4 * kind.lanes)))
                value = builder.load(builder.inttoptr(at, vector.as_pointer()), align=4)
                builder.store(_larger(builder, builder.load(place), value), place)
            builder.store(builder.load(place), builder.inttoptr(largest, vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 3), code

    return summit


def _larger(builder: Any, one: Any, other: Any) -> Any:
    """The larger of two vectors, lane by lane."""
    is_float = isinstance(one.type.element, ir.FloatType)
    is_larger = builder.fcmp_ordered(">", one, other) if is_float else builder.icmp_signed(">", one, other)
    return builder.select(is_larger, one, other)


@intrinsic
def rank(context, query, cells, cell, similarities, channels):
    """The exact kernel: float32 similarities of one query to the sixteen rows of a cell.

    Arguments: address of the query [channels]; cells (n, channels, 16), float32, or half precision as uint16; number of
    the cell; address of the similarities [16]; channels, a multiple of 4.
    """
    half = cells.dtype == types.uint16
    single = ir.VectorType(ir.FloatType(), CELL)
    stored = ir.VectorType(ir.HalfType(), CELL) if half else single
    size = (2 if half else 4) * CELL

    def code(context, builder, signature, arguments):
        query, array, cell, similarities, channels = arguments
        word = query.type
        first = cgutils.create_struct_proxy(signature.args[1])(context, builder, value=array).data
        offset = builder.mul(cell, builder.mul(channels, ir.Constant(word, size)))
        rows = builder.add(builder.ptrtoint(first, word), offset)
        add = _multiply_add(Kind("", lanes=CELL, queries=1, vectors=1, group=1), builder)
        # Four sums, so that no multiplication waits for the one before.
        sums = [cgutils.alloca_once(builder, single) for _ in range(4)]
        for place in sums:
            builder.store(ir.Constant(single, [0.0] * CELL), place)
        with cgutils.for_range(builder, builder.udiv(channels, ir.Constant(word, 4)), intp=word) as step:
            for i, place in enumerate(sums):
                channel = builder.add(builder.mul(step.index, ir.Constant(word, 4)), ir.Constant(word, i))
                at_row = builder.add(rows, builder.mul(channel, ir.Constant(word, size)))
                at_query = builder.add(query, builder.mul(channel, ir.Constant(word, 4)))
                row = builder.load(builder.inttoptr(at_row, stored.as_pointer()), align=2)
                row = builder.fpext(row, single) if half else row
                value = builder.load(builder.inttoptr(at_query, ir.FloatType().as_pointer()), align=4)
                builder.store(add(builder.load(place), _spread(builder, value, CELL), row), place)
        loaded = [builder.load(place) for place in sums]
        total = builder.fadd(builder.fadd(loaded[0], loaded[1]), builder.fadd(loaded[2], loaded[3]))
        builder.store(total, builder.inttoptr(similarities, single.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, cells, types.intp, types.intp, types.intp), code


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    """A vector with the value in every lane."""
    empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


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
            rounded[:] = query
        for step in range(channels // group):
            for k in range(group):
                packed[tile, step, place, k] = rounded[step * group + k]
        scales[i] = scale
        errors[i] = np.sqrt(total)


@numba.njit(nogil=True, cache=True)
def keep(ranked, numbers, similarity, found):
    """Put the rows of a cell into one query's list of the nearest so far, which falls."""
    last = len(similarity) - 1
    for j in range(CELL):
        value = ranked[j]
        if value > similarity[last] and numbers[j] >= 0:
            place = last
            while place > 0 and similarity[place - 1] < value:
                similarity[place] = similarity[place - 1]
                found[place] = found[place - 1]
                place -= 1
            similarity[place] = value
            found[place] = numbers[j]


def _parts(kind: Kind) -> dict[str, Any]:
    """What `_search` finds under its names in capital letters."""
    return {
        "TILE": _tile(kind),
        "SUMMIT": _summit(kind),
        "TILE_QUERIES": kind.queries,
        "LANES": kind.lanes,
        "VECTORS": kind.vectors,
        "LOWEST": np.float32(-1e30) if kind.group == 1 else np.int32(-(2**31)),
    }


# Numba keeps compiled functions by their source and the CPU, not by what they enclose: so the one that is kept reads
# its kind, which follows from the CPU, from this module.
FASTEST = supported()[0]
TILE, SUMMIT, TILE_QUERIES, LANES, VECTORS, LOWEST = _parts(FASTEST).values()


def _search(queries, packed, unit, slack, rows, start, cells, numbers, similarity, found):
    total, channels = queries.shape
    blocks, steps, count = start.shape[0], packed.shape[1], found.shape[1]
    maxima = np.empty((16 * TILE_QUERIES, blocks, LANES), dtype=start.dtype)
    stride = blocks * LANES * 4
    ranked = np.empty(CELL, dtype=np.float32)
    of_lane = np.empty(LANES, dtype=start.dtype)
    first_cells = 1 if count == 1 else 2
    best = np.empty(first_cells, dtype=start.dtype)
    best_cell = np.empty(first_cells, dtype=np.int64)

    for begin in range(0, total, 16 * TILE_QUERIES):
        end = min(begin + 16 * TILE_QUERIES, total)
        maxima[:] = LOWEST
        for block in range(blocks):
            for first in range(begin, end, TILE_QUERIES):
                TILE(
                    packed.ctypes.data + first * steps * 4,
                    rows.ctypes.data + block * CELL * LANES * steps * 4,
                    start.ctypes.data + block * CELL * LANES * 4,
                    maxima.ctypes.data + (first - begin) * stride + block * LANES * 4,
                    stride,
                    steps,
                    CELL // VECTORS,
                )
        for i in range(begin, end):
            own = maxima[i - begin]
            SUMMIT(own.ctypes.data, of_lane.ctypes.data, blocks)
            # The cells with the largest values are settled first.
            best[:] = LOWEST
            best_cell[:] = -1
            for lane in range(LANES):
                if of_lane[lane] > best[first_cells - 1]:
                    for block in range(blocks):
                        value = own[block, lane]
                        if value > best[first_cells - 1]:
                            place = first_cells - 1
                            while place > 0 and best[place - 1] < value:
                                best[place] = best[place - 1]
                                best_cell[place] = best_cell[place - 1]
                                place -= 1
                            best[place] = value
                            best_cell[place] = block * LANES + lane
            similarity[i] = -2.0
            found[i] = -1
            query = queries.ctypes.data + i * channels * 4
            for j in range(first_cells):
                cell = best_cell[j]
                if cell >= 0:
                    rank(query, cells, cell, ranked.ctypes.data, channels)  # type: ignore[call-arg]
                    keep(ranked, numbers[cell], similarity[i], found[i])
            # Then every other cell that may hold something nearer than the last of those found.
            limit = (similarity[i, count - 1] - slack[i]) / unit[i]
            for lane in range(LANES):
                if of_lane[lane] < limit:
                    continue
                for block in range(blocks):
                    if own[block, lane] < limit:
                        continue
                    cell = block * LANES + lane
                    known = False
                    for j in range(first_cells):
                        known |= best_cell[j] == cell
                    if not known:
                        rank(query, cells, cell, ranked.ctypes.data, channels)  # type: ignore[call-arg]
                        keep(ranked, numbers[cell], similarity[i], found[i])
                        limit = (similarity[i, count - 1] - slack[i]) / unit[i]


search = numba.njit(nogil=True, cache=True)(_search)


@functools.cache
def search_of(name: str) -> Any:
    """The search of one kind; see `scorer.search` for its arguments."""
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
        if count == 1:
            known[i] = rows[found[i, 0]]
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
