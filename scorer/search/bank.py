"""Exact nearest neighbours among the rows of a bank: found in integers, compared in float32.

Rounding a unit vector x to x' = x + e changes an inner product with a unit vector by at most |e|. So with queries
q' = q + e and rows b' = b + f, whose inner products are cheap, |<q, b> - <q', b'>| <= |e| + (1 + |e|) |f| =: slack.
The rows are divided into small cells, and a cell stands for its largest <q', b'>. The k cells with the largest
values are compared in float32, row by row. With s the k-th similarity among their rows, a cell with a value below
s - slack can hold none of the k nearest. The few other cells are compared as well: nothing is missed.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from scorer.search import kernels, warm
from scorer.search.instructions import CHANNELS_PER_STEP, NUMBERS_PER_STEP, ROWS_PER_CELL, Kind, supported
from scorer.search.kernels import PackedBank, PackedQueries
from scorer.search.neighbours import known
from scorer.vectors import Vectors

log = logging.getLogger(__name__)

# The largest error of a float32 inner product of unit vectors, in whatever order its products are added up. Measured on
# random vectors of 2048 positive numbers: 2.7e-6 when they are added one by one, 0.6e-6 in the order of `rank`.
_ROUNDING = np.float32(4e-6)
# Rows in the last parts of the k-d tree that are split one by one; smaller parts are split all at once. A
# judgement, not measured.
_LEAF = 4 * ROWS_PER_CELL


class Int8Index:
    """The rows (m, channels) of a bank, unit vectors, in the order in which the search reads them.

    It is the `neighbours.NeighbourIndex` of a CPU. `kind` is how the CPU multiplies, by default the fastest kind that
    this CPU runs correctly: most have eight-bit integers, the others larger numbers.
    """

    def __init__(self, rows: Vectors, kind: Kind | None = None) -> None:
        self.kind = kind or trusted_kind()
        self.rows = np.ascontiguousarray(rows, dtype=np.float32)
        count, channels = self.rows.shape
        lanes = self.kind.lanes
        self._channels = -(-channels // CHANNELS_PER_STEP) * CHANNELS_PER_STEP
        blocks = -(-count // (ROWS_PER_CELL * lanes))
        padded = np.zeros((blocks * ROWS_PER_CELL * lanes, self._channels), dtype=np.float32)
        padded[:count, :channels] = self.rows
        numbers = np.full(len(padded), -1, dtype=np.int32)
        numbers[:count] = np.arange(count)
        order = _neighbourly(padded, numbers).reshape(blocks, lanes, ROWS_PER_CELL)
        blocked = padded[order.transpose(0, 2, 1)]  # (blocks, ROWS_PER_CELL, lanes, channels)
        cell_numbers = np.ascontiguousarray(numbers[order])
        packed, start, scale, error = _packed(blocked, cell_numbers < 0, self.kind)
        self._scale, self._error = np.float32(scale), np.float32(error)
        self._packed = PackedBank(packed, start, _cells(blocked), cell_numbers.reshape(-1, ROWS_PER_CELL))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size_bytes(self) -> int:
        """Memory that the search takes besides the rows themselves."""
        return sum(array.nbytes for array in self._packed)

    def nearest(self, queries: Vectors, count: int = 1) -> tuple[Vectors, NDArray[np.int32]]:
        """Return the `count` most similar rows of each unit query (n, channels): similarities (n, count) and rows.

        The most similar row comes first. `count` is at most the number of rows. Exact in float32; of two rows that are
        equally similar either may come first.
        """
        similarity = np.empty((len(queries), count), dtype=np.float32)
        rows = np.empty((len(queries), count), dtype=np.int32)
        kernels.make_search(self.kind)(self._packed_queries(queries), self._packed, similarity, rows)
        return similarity, rows

    def _packed_queries(self, queries: Vectors) -> PackedQueries:
        kind, total = self.kind, len(queries)
        exact = np.ascontiguousarray(queries, dtype=np.float32)
        if exact.shape[1] < self._channels:
            exact = np.pad(exact, ((0, 0), (0, self._channels - exact.shape[1])))
        shape = (-(-total // kind.queries), self._channels // kind.channels, kind.queries, kind.channels)
        # Places of the last tile that no query fills are computed with, and never read.
        packed = np.empty(shape, dtype={1: np.float32, 2: np.int16, 4: np.uint8}[kind.channels])
        unit, slack = np.empty(total, dtype=np.float32), np.empty(total, dtype=np.float32)
        kernels.pack_queries(
            exact, kind.queries, kind.channels, self._scale, self._error, _ROUNDING, packed, unit, slack
        )
        return PackedQueries(exact, packed, unit, slack)

    def project(self, queries: Vectors, count: int) -> tuple[NDArray[np.float32], Vectors]:
        """Return distances (n,) to, and (n, channels), what the `count` nearest rows know; see `coreset.projected`."""
        return known(queries, self.rows, *self.nearest(queries, count))


def _cells(blocked: Vectors) -> NDArray[Any]:
    """Return the rows of blocks (blocks, ROWS_PER_CELL, lanes, channels) cell by cell, as `rank` reads them.

    Half precision, as uint16, where it loses nothing, which is so for the rows of a saved model. Numba has no half
    precision, so that its bits travel as integers.
    """
    blocks, _, lanes, channels = blocked.shape
    halved = blocked.astype(np.float16)
    stored: NDArray[Any] = halved.view(np.uint16) if (halved == blocked).all() else blocked
    steps = channels // CHANNELS_PER_STEP
    cells = stored.reshape(blocks, ROWS_PER_CELL, lanes, steps, CHANNELS_PER_STEP).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(cells).reshape(blocks * lanes, steps, NUMBERS_PER_STEP)


def _packed(
    blocked: Vectors, is_empty: NDArray[np.bool_], kind: Kind
) -> tuple[NDArray[Any], NDArray[Any], float, float]:
    """Return rows in the numbers of a kind, what their sums start from, the numbers' scale, and the largest rounding.

    `blocked` (blocks, ROWS_PER_CELL, lanes, channels); `is_empty` (blocks, lanes, ROWS_PER_CELL) where there is no row.
    """
    blocks, _, lanes, channels = blocked.shape
    scale, error = 1.0, 0.0
    values: NDArray[Any] = blocked
    start = np.zeros(blocked.shape[:3], dtype=np.float32 if kind.channels == 1 else np.int32)
    if kind.channels > 1:
        # Sixteen bits take unit vectors as they are: with this scale no sum of products leaves 32 bits.
        scale = max(float(np.abs(blocked).max()), 1e-12) / 127 if kind.channels == 4 else 1 / 16384
        values = np.rint(blocked / scale)
        error = float(np.sqrt(((blocked - values * scale) ** 2).sum(axis=-1).max()))
        values = values.astype(np.int8 if kind.channels == 4 else np.int16)
    if kind.channels == 4:  # takes the shift of the queries back
        start -= 128 * values.sum(axis=-1, dtype=np.int32)
    start[is_empty.transpose(0, 2, 1)] = -(2**30)  # what fills the last cells up must never win
    chunks, steps = ROWS_PER_CELL // kind.vectors, channels // kind.channels
    rows = values.reshape(blocks, chunks, kind.vectors, lanes, steps, kind.channels).transpose(0, 1, 4, 2, 3, 5)
    return np.ascontiguousarray(rows), start.reshape(blocks, chunks, kind.vectors, lanes), scale, error


def unit_rows(vectors: NDArray[np.floating]) -> Vectors:
    """Return the vectors (..., d) scaled to unit length, float32 and contiguous, as a `Int8Index` takes them.

    A zero vector becomes the first axis: the search knows no other vectors than those of unit length.
    """
    values = np.ascontiguousarray(vectors, dtype=np.float32)
    scaled = np.empty_like(values)
    kernels.scale_rows(values.reshape(-1, values.shape[-1]), scaled.reshape(-1, values.shape[-1]))
    return scaled


@functools.cache
def trusted_kind() -> Kind:
    """Return the fastest kind that finds, on this machine, what a plain matrix product finds.

    The kernels are compiled anew on each machine, and a wrong neighbour would show in nothing but wrong decisions.
    Raises FlawlineError when no kind is right.
    """
    warm.wait()
    generator = np.random.default_rng(0)
    # In half precision, as the rows of a model are: for others the search would be compiled a second time.
    rows, queries = (unit_rows(generator.standard_normal((n, 24))).astype(np.float16).astype("f4") for n in (300, 20))
    expected = -np.sort(-(queries @ rows.T), axis=1)[:, :2]
    for kind in supported():
        similarity, nearest = Int8Index(rows, kind).nearest(queries, 2)
        similarity_of_rows = np.einsum("qd,qkd->qk", queries, rows[nearest])
        if np.allclose(similarity, expected, atol=1e-5) and np.allclose(similarity_of_rows, expected, atol=1e-5):
            return kind
        log.warning("the neighbour search for %s is wrong on this CPU: a slower one is used", kind.name)
    raise FlawlineError("no neighbour search is right on this CPU: install another release of numba")


def _neighbourly(rows: Vectors, numbers: NDArray[np.int32]) -> NDArray[np.intp]:
    """Return an order in which ROWS_PER_CELL rows in a row are near each other (the leaves of a k-d tree).

    The rows near one query are then in few cells, and often in the cells that the next query needs. Rows whose number
    is negative come last.
    """
    order = np.arange(len(rows))
    parts = [order[numbers >= 0]]
    while max(len(part) for part in parts) > _LEAF:
        halves = []
        for part in parts:
            if len(part) <= _LEAF:
                halves.append(part)
                continue
            values = rows[part]
            axis = int(values.var(axis=0).argmax())
            middle = max(_LEAF, round(len(part) / 2 / _LEAF) * _LEAF)
            split = np.argpartition(values[:, axis], middle - 1)
            halves += [part[split[:middle]], part[split[middle:]]]
        parts = halves
    # The last levels are split together: each part is too small for a step of its own. The last part may be short.
    leaves = np.concatenate([part for part in parts if len(part) == _LEAF] or [order[:0]]).reshape(-1, _LEAF)
    rest = [part for part in parts if len(part) < _LEAF]
    while leaves.shape[1] > ROWS_PER_CELL:
        leaves = _halved(rows, leaves)
    return np.concatenate([leaves.ravel(), *rest, order[numbers < 0]])


def _halved(rows: Vectors, parts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return parts (n, k) of the rows' numbers, each split in two, (2 n, k / 2), along its axis of largest variance."""
    values = rows[parts]
    axis = values.var(axis=1).argmax(axis=1)
    along = np.take_along_axis(values, axis[:, None, None], axis=2)[:, :, 0]
    return np.take_along_axis(parts, along.argsort(axis=1), axis=1).reshape(-1, parts.shape[1] // 2)
