"""The vector instructions that the neighbour search is made of, chosen for the CPU at hand.

A matrix product writes every similarity to memory before anybody looks for the largest. Here the products stay in
registers: of the rows of a bank, four at a time share a *cell*, and only the largest value of each cell is written.
With 8-bit dot product instructions (VNNI) that takes a quarter of the float32 arithmetic. What is exact about the
search is `scorer.search.bank`'s business, and the loops around these instructions are `scorer.search.kernels`'s.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from scorer.search import warm

warm.keep_in_cache()

# The dot product instructions are given as assembler, which numba does not set LLVM up for.
llvmlite.binding.initialize_native_asmparser()

# Rows that share a cell: with fewer there are more cells to choose from, with more there are more rows to read.
CELL = 4
# Numbers that the exact kernel multiplies at once: some channels of each row of a cell.
WIDTH = 16
# How many.
PART = WIDTH // CELL


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


def tile_of(kind: Kind) -> Any:
    """The kernel of a kind: the largest value of each cell of one block of rows, for one tile of queries.

    Arguments are addresses and counts: packed queries [steps][queries], packed rows [chunks][steps][vectors][lanes],
    what sums start from [chunks][vectors][lanes], the maxima [queries][lanes] with the distance in bytes from one
    query's to the next one's, steps. As many chunks as make CELL rows.
    """
    number = _number(kind)
    vector = ir.VectorType(number, kind.lanes)
    size = 4 * kind.lanes

    @intrinsic
    def tile(context, queries, rows, start, maxima, stride, steps):
        def code(context, builder, signature, arguments):
            queries, rows, start, maxima, stride, steps = arguments
            word = queries.type
            add = _multiply_add(kind, builder)

            def load(address, offset, as_type, align):
                place = builder.add(address, offset) if offset is not None else address
                return builder.load(builder.inttoptr(place, as_type.as_pointer()), align=align)

            def constant(value):
                return ir.Constant(word, value)

            sums = [[cgutils.alloca_once(builder, vector) for _ in range(kind.vectors)] for _ in range(kind.queries)]
            best: list[Any] = [None] * kind.queries
            for chunk in range(CELL // kind.vectors):
                first = [
                    load(start, constant((chunk * kind.vectors + v) * size), vector, 4) for v in range(kind.vectors)
                ]
                for row_of_sums in sums:
                    for place, value in zip(row_of_sums, first, strict=True):
                        builder.store(value, place)
                base = builder.add(rows, builder.mul(steps, constant(chunk * kind.vectors * size)))
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
                    for v in range(kind.vectors):
                        value = builder.load(sums[q][v])
                        best[q] = value if best[q] is None else _larger(builder, best[q], value)
            for q in range(kind.queries):
                place = builder.add(maxima, builder.mul(stride, constant(q)))
                builder.store(best[q], builder.inttoptr(place, vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), code

    return tile


def summit_of(kind: Kind) -> Any:
    """The largest value in each lane [lanes] of maxima [blocks][lanes], and the block (int32) it is in, by address."""
    vector, places = ir.VectorType(_number(kind), kind.lanes), ir.VectorType(ir.IntType(32), kind.lanes)

    @intrinsic
    def summit(context, maxima, largest, found, blocks):
        def code(context, builder, signature, arguments):
            maxima, largest, found, blocks = arguments
            best, best_block = cgutils.alloca_once(builder, vector), cgutils.alloca_once(builder, places)
            builder.store(builder.load(builder.inttoptr(maxima, vector.as_pointer()), align=4), best)
            builder.store(ir.Constant(places, [0] * kind.lanes), best_block)
            with cgutils.for_range(builder, blocks, intp=maxima.type) as block:
                at = builder.add(maxima, builder.mul(block.index, ir.Constant(maxima.type, 4 * kind.lanes)))
                value = builder.load(builder.inttoptr(at, vector.as_pointer()), align=4)
                before = builder.load(best)
                is_larger = _is_larger(builder, value, before)
                builder.store(builder.select(is_larger, value, before), best)
                number = _spread(builder, builder.trunc(block.index, ir.IntType(32)), kind.lanes)
                builder.store(builder.select(is_larger, number, builder.load(best_block)), best_block)
            builder.store(builder.load(best), builder.inttoptr(largest, vector.as_pointer()), align=4)
            builder.store(builder.load(best_block), builder.inttoptr(found, places.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), code

    return summit


def above_of(kind: Kind) -> Any:
    """A bit for each of the values [lanes], by address, that is larger than the one at another address."""
    vector = ir.VectorType(_number(kind), kind.lanes)

    @intrinsic
    def above(context, values, limit):
        def code(context, builder, signature, arguments):
            values, limit = arguments
            single = builder.load(builder.inttoptr(limit, _number(kind).as_pointer()), align=4)
            loaded = builder.load(builder.inttoptr(values, vector.as_pointer()), align=4)
            is_larger = _is_larger(builder, loaded, _spread(builder, single, kind.lanes))
            return builder.zext(builder.bitcast(is_larger, ir.IntType(kind.lanes)), ir.IntType(64))

        return types.int64(types.intp, types.intp), code

    return above


@intrinsic
def lowest_bit(context, bits):
    """The number of the lowest bit that is set in a number that is not 0."""

    def code(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), code


def _is_larger(builder: Any, one: Any, other: Any) -> Any:
    """Which lanes of one vector are larger than the other's."""
    is_float = isinstance(one.type.element, ir.FloatType)
    return builder.fcmp_ordered(">", one, other) if is_float else builder.icmp_signed(">", one, other)


def _larger(builder: Any, one: Any, other: Any) -> Any:
    """The larger of two vectors, lane by lane."""
    return builder.select(_is_larger(builder, one, other), one, other)


@intrinsic
def prefetch(context, array, item):
    """Have an item of a contiguous array's first axis, by its number, brought into the cache beside other work."""

    def code(context, builder, signature, arguments):
        array, item = arguments
        of = cgutils.create_struct_proxy(signature.args[0])(context, builder, value=array)
        word, byte, flag = item.type, ir.IntType(8).as_pointer(), ir.IntType(32)
        size = builder.extract_value(of.strides, 0)
        first = builder.add(builder.ptrtoint(of.data, word), builder.mul(item, size))
        signature_of_fetch = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        fetch = cgutils.get_or_insert_function(builder.module, signature_of_fetch, "llvm.prefetch.p0i8")
        # Lines are of 64 bytes; the last one of an item that begins amid a line may be left out.
        lines = builder.udiv(builder.add(size, ir.Constant(word, 63)), ir.Constant(word, 64))
        with cgutils.for_range(builder, lines, intp=word) as line:
            place = builder.add(first, builder.mul(line.index, ir.Constant(word, 64)))
            builder.call(fetch, [builder.inttoptr(place, byte), *(ir.Constant(flag, each) for each in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic
def rank(context, query, cells, cell, similarities, channels):
    """The exact kernel: float32 similarities of one query to the rows of a cell.

    Arguments: address of the query [channels]; cells (n, channels / PART, CELL * PART), float32, or half precision as
    uint16; number of the cell; address of the similarities [CELL]; channels, a multiple of PART.
    """
    half = cells.dtype == types.uint16
    single, few = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(ir.FloatType(), PART)
    stored = ir.VectorType(ir.HalfType(), WIDTH) if half else single
    size = (2 if half else 4) * WIDTH
    repeated = [place % PART for place in range(WIDTH)]

    def code(context, builder, signature, arguments):
        query, array, cell, similarities, channels = arguments
        word = query.type
        first = cgutils.create_struct_proxy(signature.args[1])(context, builder, value=array).data
        steps = builder.udiv(channels, ir.Constant(word, PART))
        rows = builder.add(
            builder.ptrtoint(first, word), builder.mul(cell, builder.mul(steps, ir.Constant(word, size)))
        )
        add = _multiply_add(Kind("", lanes=WIDTH, queries=1, vectors=1, group=1), builder)
        total = cgutils.alloca_once(builder, single)
        builder.store(ir.Constant(single, [0.0] * WIDTH), total)
        with cgutils.for_range(builder, steps, intp=word) as step:
            at_row = builder.add(rows, builder.mul(step.index, ir.Constant(word, size)))
            at_query = builder.add(query, builder.mul(step.index, ir.Constant(word, 4 * PART)))
            row = builder.load(builder.inttoptr(at_row, stored.as_pointer()), align=2)
            row = builder.fpext(row, single) if half else row
            values = builder.load(builder.inttoptr(at_query, few.as_pointer()), align=4)
            builder.store(add(builder.load(total), _chosen(builder, values, repeated), row), total)
        sums = builder.load(total)
        # A row's sums lie side by side.
        parts = [_chosen(builder, sums, range(part, WIDTH, PART)) for part in range(PART)]
        builder.store(
            functools.reduce(builder.fadd, parts),
            builder.inttoptr(similarities, ir.VectorType(ir.FloatType(), CELL).as_pointer()),
            align=4,
        )
        return context.get_dummy_value()

    return types.void(types.intp, cells, types.intp, types.intp, types.intp), code


def _chosen(builder: Any, vector: Any, places: Sequence[int]) -> Any:
    """A vector of the elements of another at some places."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    """A vector with the value in every lane."""
    empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


# Which of the similarities of a cell are larger than another.
above_in_cell = above_of(Kind("", lanes=CELL, queries=1, vectors=1, group=1))
