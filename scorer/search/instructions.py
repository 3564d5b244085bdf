"""Vector instructions of the neighbour search, for the CPU that runs it.

A matrix product writes every similarity to memory before anything looks for the largest. Here the products stay in
registers: four rows of a bank share a *cell*, and only the largest value of each cell is written. With 8-bit dot
product instructions (VNNI) that takes a quarter of the arithmetic of float32.

`scorer.search.kernels` holds the loops around these instructions, `scorer.search.bank` the proof that the result is
exact.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from scorer.search import warm

warm.keep_in_cache()

# The dot product instructions are written as assembler, which numba does not set LLVM up for.
llvmlite.binding.initialize_native_asmparser()

# Rows that share a cell. Fewer rows make more cells to choose from, more rows make more rows to read in each cell.
# Measured: all beside the backbone takes 8 % less time with 4 than with 16 (docs/scoring.md, "The limit").
ROWS_PER_CELL = 4
# float32 numbers that the exact kernel multiplies in one step: some channels of each row of a cell.
NUMBERS_PER_STEP = 16
# Channels of each row that the exact kernel multiplies in one step.
CHANNELS_PER_STEP = NUMBERS_PER_STEP // ROWS_PER_CELL

_LINE_BYTES = 64  # of a CPU's cache

# Numba calls an intrinsic with a context before its arguments, which type checkers take for one of them.
intrinsic: Any = extending.intrinsic


@dataclass(frozen=True)
class Kind:
    """How a CPU multiplies: `lanes` sums in one vector, `channels` products in each lane by one instruction.

    `channels` is 4 for 8-bit numbers (the queries' are shifted by 128, since the instruction takes them unsigned), 2
    for 16-bit numbers, 1 for float32. A tile is `queries` queries times `vectors` vectors of rows: its sums and its
    factors just fill the registers of the CPU.
    """

    name: str
    lanes: int
    queries: int
    vectors: int
    channels: int


KINDS = {
    kind.name: kind
    for kind in (
        Kind("avx512-vnni", lanes=16, queries=6, vectors=4, channels=4),
        Kind("avx-vnni", lanes=8, queries=6, vectors=2, channels=4),
        Kind("avx512", lanes=16, queries=6, vectors=4, channels=1),
        Kind("avx2", lanes=8, queries=5, vectors=2, channels=2),
        Kind("any", lanes=4, queries=6, vectors=2, channels=1),
    )
}
"""Every kind by name, the fastest first."""

_CPU_FEATURES = {"avx512-vnni": "avx512vnni", "avx-vnni": "avxvnni", "avx512": "avx512f", "avx2": "avx2"}


def supported() -> list[Kind]:
    """Return the kinds that this CPU can run, the fastest first."""
    features = llvmlite.binding.get_host_cpu_features() if platform.machine().lower() in ("x86_64", "amd64") else {}
    return [kind for name, kind in KINDS.items() if name not in _CPU_FEATURES or features.get(_CPU_FEATURES[name])]


def _number(kind: Kind) -> Any:
    """Return the type of a kind's sums."""
    return ir.FloatType() if kind.channels == 1 else ir.IntType(32)


def _multiply_add(kind: Kind, builder: Any) -> Callable[[Any, Any, Any], Any]:
    """Return what emits sum + query * row for one vector of sums."""
    vector = ir.VectorType(_number(kind), kind.lanes)
    if kind.channels == 1:
        name = f"llvm.fmuladd.v{kind.lanes}f32"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        return lambda total, query, row: builder.call(fma, [query, row, total])
    # As assembler, since LLVM changes the types of its own names for these instructions from release to release.
    if kind.channels == 2:
        products = ir.InlineAsm(ir.FunctionType(vector, [vector] * 2), "vpmaddwd $2, $1, $0", "=x,x,x")
        return lambda total, query, row: builder.add(total, builder.call(products, [query, row]))
    instruction, registers = ("vpdpbusd", "v") if kind.lanes == 16 else ("{vex} vpdpbusd", "x")
    constraints = f"={registers},0,{registers},{registers}"
    sums = ir.InlineAsm(ir.FunctionType(vector, [vector] * 3), f"{instruction} $3, $2, $0", constraints)
    return lambda total, query, row: builder.call(sums, [total, query, row])


# The next three take the name of a kind, a constant where they are called, so that the loops around them enclose a
# name and no function. Numba keeps a compiled loop under what it encloses, and knows a name again in the next process.


@intrinsic(prefer_literal=True)
def tile(context, kind_name, queries, rows, start, maxima, stride, steps):
    """Write the largest value of each cell of one block of rows, for one tile of queries.

    Arguments are the name of the kind, then addresses and counts: packed queries [steps][queries], packed rows
    [chunks][steps][vectors][lanes], what sums start from [chunks][vectors][lanes], the maxima [queries][lanes], the
    bytes from the maxima of one query to those of the next, steps. The chunks together make ROWS_PER_CELL rows.
    """
    kind = KINDS[kind_name.literal_value]
    number = _number(kind)
    vector = ir.VectorType(number, kind.lanes)
    size = 4 * kind.lanes

    def code(context, builder, signature, arguments):
        _, queries, rows, start, maxima, stride, steps = arguments
        word = queries.type
        add = _multiply_add(kind, builder)

        def load(address, offset, as_type):
            return builder.load(builder.inttoptr(builder.add(address, offset), as_type.as_pointer()), align=4)

        def constant(value):
            return ir.Constant(word, value)

        sums = [[cgutils.alloca_once(builder, vector) for _ in range(kind.vectors)] for _ in range(kind.queries)]
        largest: list[Any] = [None] * kind.queries
        for chunk in range(ROWS_PER_CELL // kind.vectors):
            first = [load(start, constant((chunk * kind.vectors + v) * size), vector) for v in range(kind.vectors)]
            for sums_of_query in sums:
                for place, value in zip(sums_of_query, first, strict=True):
                    builder.store(value, place)
            base = builder.add(rows, builder.mul(steps, constant(chunk * kind.vectors * size)))
            with cgutils.for_range(builder, steps, intp=word) as step:
                at_row = builder.mul(step.index, constant(kind.vectors * size))
                at_query = builder.mul(step.index, constant(kind.queries * 4))
                factors = [load(base, builder.add(at_row, constant(v * size)), vector) for v in range(kind.vectors)]
                for q in range(kind.queries):
                    single = load(queries, builder.add(at_query, constant(4 * q)), number)
                    spread = _spread(builder, single, kind.lanes)
                    for v in range(kind.vectors):
                        builder.store(add(builder.load(sums[q][v]), spread, factors[v]), sums[q][v])
            for q in range(kind.queries):
                for v in range(kind.vectors):
                    value = builder.load(sums[q][v])
                    largest[q] = value if largest[q] is None else _larger(builder, largest[q], value)
        for q in range(kind.queries):
            place = builder.add(maxima, builder.mul(stride, constant(q)))
            builder.store(largest[q], builder.inttoptr(place, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(kind_name, *[types.intp] * 6), code


@intrinsic(prefer_literal=True)
def summit(context, kind_name, maxima, largest, largest_block, blocks):
    """Write the largest value in each lane [lanes] of maxima [blocks][lanes], and the block (int32) that it is in.

    Arguments are the name of the kind, three addresses and a count.
    """
    kind = KINDS[kind_name.literal_value]
    vector, places = ir.VectorType(_number(kind), kind.lanes), ir.VectorType(ir.IntType(32), kind.lanes)

    def code(context, builder, signature, arguments):
        _, maxima, largest, largest_block, blocks = arguments
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
        builder.store(builder.load(best_block), builder.inttoptr(largest_block, places.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(kind_name, *[types.intp] * 4), code


@intrinsic(prefer_literal=True)
def above(context, kind_name, values, limit):
    """Return a bit for each of the values [lanes], by address, that is larger than the one at another address."""
    return _above(KINDS[kind_name.literal_value], types.int64(kind_name, types.intp, types.intp))


@intrinsic
def above_in_cell(context, values, limit):
    """Return a bit for each similarity of a cell, by address, that is larger than the one at another address."""
    kind = Kind("", lanes=ROWS_PER_CELL, queries=1, vectors=1, channels=1)
    return _above(kind, types.int64(types.intp, types.intp))


def _above(kind: Kind, signature: Any) -> tuple[Any, Callable[..., Any]]:
    """Return signature and code of a comparison; its last two arguments are addresses."""
    vector = ir.VectorType(_number(kind), kind.lanes)

    def code(context, builder, signature, arguments):
        values, limit = arguments[-2:]
        single = builder.load(builder.inttoptr(limit, _number(kind).as_pointer()), align=4)
        loaded = builder.load(builder.inttoptr(values, vector.as_pointer()), align=4)
        is_larger = _is_larger(builder, loaded, _spread(builder, single, kind.lanes))
        return builder.zext(builder.bitcast(is_larger, ir.IntType(kind.lanes)), ir.IntType(64))

    return signature, code


@intrinsic
def lowest_bit(context, bits):
    """Return the number of the lowest bit that is set in a number that is not 0."""

    def code(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), code


@intrinsic
def prefetch(context, array, item):
    """Fetch an item of a contiguous array's first axis, by its number, into the cache while other work goes on."""

    def code(context, builder, signature, arguments):
        array, item = arguments
        fields = cgutils.create_struct_proxy(signature.args[0])(context, builder, value=array)
        word, byte, flag = item.type, ir.IntType(8).as_pointer(), ir.IntType(32)
        size = builder.extract_value(fields.strides, 0)
        first = builder.add(builder.ptrtoint(fields.data, word), builder.mul(item, size))
        signature_of_fetch = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        fetch = cgutils.get_or_insert_function(builder.module, signature_of_fetch, "llvm.prefetch.p0i8")
        # Where an item begins inside a line, its last line may be left out.
        lines = builder.udiv(builder.add(size, ir.Constant(word, _LINE_BYTES - 1)), ir.Constant(word, _LINE_BYTES))
        with cgutils.for_range(builder, lines, intp=word) as line:
            place = builder.add(first, builder.mul(line.index, ir.Constant(word, _LINE_BYTES)))
            builder.call(fetch, [builder.inttoptr(place, byte), *(ir.Constant(flag, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic
def rank(context, query, cells, cell, similarities, channels):
    """Write the exact float32 similarities of one query to the rows of a cell.

    Arguments: address of the query [channels]; cells (n, channels / CHANNELS_PER_STEP, NUMBERS_PER_STEP), float32, or
    half precision as uint16; number of the cell; address of the similarities [ROWS_PER_CELL]; channels, a multiple of
    CHANNELS_PER_STEP.
    """
    is_half = cells.dtype == types.uint16
    single = ir.VectorType(ir.FloatType(), NUMBERS_PER_STEP)
    few = ir.VectorType(ir.FloatType(), CHANNELS_PER_STEP)
    stored = ir.VectorType(ir.HalfType(), NUMBERS_PER_STEP) if is_half else single
    size = (2 if is_half else 4) * NUMBERS_PER_STEP
    repeated = [place % CHANNELS_PER_STEP for place in range(NUMBERS_PER_STEP)]

    def code(context, builder, signature, arguments):
        query, array, cell, similarities, channels = arguments
        word = query.type
        first = cgutils.create_struct_proxy(signature.args[1])(context, builder, value=array).data
        steps = builder.udiv(channels, ir.Constant(word, CHANNELS_PER_STEP))
        rows = builder.add(
            builder.ptrtoint(first, word), builder.mul(cell, builder.mul(steps, ir.Constant(word, size)))
        )
        add = _multiply_add(Kind("", lanes=NUMBERS_PER_STEP, queries=1, vectors=1, channels=1), builder)
        total = cgutils.alloca_once(builder, single)
        builder.store(ir.Constant(single, [0.0] * NUMBERS_PER_STEP), total)
        with cgutils.for_range(builder, steps, intp=word) as step:
            at_row = builder.add(rows, builder.mul(step.index, ir.Constant(word, size)))
            at_query = builder.add(query, builder.mul(step.index, ir.Constant(word, 4 * CHANNELS_PER_STEP)))
            row = builder.load(builder.inttoptr(at_row, stored.as_pointer()), align=2)
            row = builder.fpext(row, single) if is_half else row
            values = builder.load(builder.inttoptr(at_query, few.as_pointer()), align=4)
            builder.store(add(builder.load(total), _chosen(builder, values, repeated), row), total)
        sums = builder.load(total)
        # The sums of one row are neighbours.
        parts = [
            _chosen(builder, sums, range(part, NUMBERS_PER_STEP, CHANNELS_PER_STEP))
            for part in range(CHANNELS_PER_STEP)
        ]
        builder.store(
            functools.reduce(builder.fadd, parts),
            builder.inttoptr(similarities, ir.VectorType(ir.FloatType(), ROWS_PER_CELL).as_pointer()),
            align=4,
        )
        return context.get_dummy_value()

    return types.void(types.intp, cells, types.intp, types.intp, types.intp), code


def _is_larger(builder: Any, first: Any, second: Any) -> Any:
    """Emit which lanes of the first vector are larger than those of the second."""
    is_float = isinstance(first.type.element, ir.FloatType)
    return builder.fcmp_ordered(">", first, second) if is_float else builder.icmp_signed(">", first, second)


def _larger(builder: Any, first: Any, second: Any) -> Any:
    """Emit the larger of two vectors, lane by lane."""
    return builder.select(_is_larger(builder, first, second), first, second)


def _chosen(builder: Any, vector: Any, places: Sequence[int]) -> Any:
    """Emit a vector of the elements of another at some places."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    """Emit a vector with the value in every lane."""
    empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    single = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))
