"""Exact nearest neighbours among the rows of a bank, found by integers and settled in float32.

Rounding a unit vector x to x' = x + e changes an inner product with a unit vector by at most |e|. So with queries
q' = q + e and rows b' = b + f, whose inner products are cheap, |<q, b> - <q', b'>| <= |e| + (1 + |e|) |f| =: slack.
The rows are divided into small cells, and a cell stands for its largest <q', b'>. The k cells with the largest
values are compared in float32, row by row; with s the k-th similarity found there, a cell with a value below s - slack
can hold none of the k nearest. The few others are compared as well: nothing is missed.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from scorer.search import kernels, warm
from scorer.search.instructions import PART
from scorer.search.kernels import CELL, Kind
from scorer.vectors import Vectors

log = logging.getLogger(__name__)

# What float32 sums of products of unit vectors may be off by, in either way of adding them up.
_ROUNDING = 4e-6
# Rows that a k-d tree's last parts have, which are halved together.
_LEAF = 4 * CELL


class Bank:
    """The rows (m, channels) of a bank, unit vectors, in the order that the search wants them in."""

    def __init__(self, rows: Vectors, kind: Kind | None = None) -> None:
        self.kind = kind or trusted_kind()
        self.rows = np.ascontiguousarray(rows, dtype=np.float32)
        kind, (count, channels) = self.kind, self.rows.shape
        self._channels = -(-channels // 4) * 4
        blocks = -(-count // (CELL * kind.lanes))
        whole = np.zeros((blocks * CELL * kind.lanes, self._channels), dtype=np.float32)
        whole[:count, :channels] = self.rows
        numbers = np.full(len(whole), -1, dtype=np.int32)
        numbers[:count] = np.arange(count)
        order = _neighbourly(whole, numbers).reshape(blocks, kind.lanes, CELL)
        self._numbers = np.ascontiguousarray(numbers[order]).reshape(-1, CELL)
        blocked = whole[order.transpose(0, 2, 1)]  # (blocks, CELL, lanes, channels)

        stored = blocked.astype(np.float16)
        half = bool((stored == blocked).all())  # a saved model's rows are; nothing is lost then
        # Numba knows no half precision: its bits travel as integers.
        cells = stored.view(np.uint16) if half else blocked
        steps = self._channels // PART
        cells = cells.reshape(blocks, CELL, kind.lanes, steps, PART).transpose(0, 2, 3, 1, 4)
        self._cells = np.ascontiguousarray(cells).reshape(blocks * kind.lanes, steps, CELL * PART)
        self._pack(blocked)

    def _pack(self, blocked: Vectors) -> None:
        kind, blocks = self.kind, len(blocked)
        self._scale, self._error = 1.0, 0.0
        values: NDArray[Any] = blocked
        start = np.zeros(blocked.shape[:3], dtype=np.float32 if kind.group == 1 else np.int32)
        if kind.group > 1:
            # Sixteen bits take unit vectors as they are: then no sum of products leaves 32 bits.
            self._scale = max(float(np.abs(blocked).max()), 1e-12) / 127 if kind.group == 4 else 1 / 16384
            values = np.rint(blocked / self._scale)
            self._error = float(np.sqrt(((blocked - values * self._scale) ** 2).sum(axis=-1).max()))
            values = values.astype(np.int8 if kind.group == 4 else np.int16)
        if kind.group == 4:  # takes the queries' offset back
            start -= 128 * values.sum(axis=-1, dtype=np.int32)
        empty = self._numbers.reshape(len(blocked), kind.lanes, CELL).transpose(0, 2, 1) < 0
        start[empty] = -(2**30)  # what fills the last cells up must never win
        vectors, steps = kind.vectors, self._channels // kind.group
        shape = (blocks, CELL // vectors, vectors, kind.lanes, steps, kind.group)
        self._packed = np.ascontiguousarray(values.reshape(shape).transpose(0, 1, 4, 2, 3, 5))
        self._start = start.reshape(blocks, CELL // vectors, vectors, kind.lanes)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size_bytes(self) -> int:
        """Memory that the search takes besides the rows themselves."""
        return sum(each.nbytes for each in (self._cells, self._numbers, self._packed, self._start))

    def nearest(self, queries: Vectors, count: int = 1) -> tuple[Vectors, NDArray[np.int32]]:
        """The `count` most similar rows of each unit query (n, channels): similarities (n, count), falling, and rows.

        `count` is at most the number of rows. Exact in float32; a tie may fall either way.
        """
        kind, total = self.kind, len(queries)
        wanted = np.ascontiguousarray(queries, dtype=np.float32)
        if wanted.shape[1] < self._channels:
            wanted = np.pad(wanted, ((0, 0), (0, self._channels - wanted.shape[1])))
        similarity = np.empty((total, count), dtype=np.float32)
        found = np.empty((total, count), dtype=np.int32)
        shape = (-(-total // kind.queries), self._channels // kind.group, kind.queries, kind.group)
        packed = np.zeros(shape, dtype={1: np.float32, 2: np.int16, 4: np.uint8}[kind.group])
        scales, errors = np.empty(total, dtype=np.float32), np.empty(total, dtype=np.float32)
        kernels.packed_queries(wanted, kind.queries, kind.group, packed, scales, errors)
        slack = errors + (1 + errors) * np.float32(self._error) + np.float32(_ROUNDING)
        scales *= np.float32(self._scale)
        search = kernels.search_of(kind.name)
        search(wanted, packed, scales, slack, self._packed, self._start, self._cells, self._numbers, similarity, found)
        return similarity, found

    def project(self, queries: Vectors, count: int) -> tuple[NDArray[np.float32], Vectors]:
        """Distances (n,) to, and (n, channels), what the `count` nearest rows know; see `coreset.projected`."""
        similarity, found = self.nearest(queries, count)
        known = np.empty(queries.shape, dtype=np.float32)
        distance = np.empty(len(queries), dtype=np.float32)
        kernels.known_vectors(queries, self.rows, similarity, found, known, distance)
        return distance, known


def unit_rows(vectors: NDArray[np.floating]) -> Vectors:
    """Return the vectors (..., d) scaled to unit length, float32 and contiguous, as a `Bank` takes them.

    A zero vector becomes the first axis: the search knows no other vectors than those of unit length.
    """
    values = np.ascontiguousarray(vectors, dtype=np.float32)
    scaled = np.empty_like(values)
    kernels.scale_rows(values.reshape(-1, values.shape[-1]), scaled.reshape(-1, values.shape[-1]))
    return scaled


@functools.cache
def trusted_kind() -> Kind:
    """The fastest kind that finds, on this machine, what a plain matrix product finds.

    The kernels are compiled on each machine anew, and a wrong neighbour would show in nothing but wrong decisions.
    Raises FlawlineError when no kind is right.
    """
    warm.wait()
    generator = np.random.default_rng(0)
    rows, queries = (generator.standard_normal((n, 24)) for n in (300, 20))
    # In half precision, as the rows of a model are: for others the search would be compiled a second time.
    rows, queries = (
        (each / np.linalg.norm(each, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
        for each in (rows, queries)
    )
    expected = -np.sort(-(queries @ rows.T), axis=1)[:, :2]
    for kind in kernels.supported():
        similarity, found = Bank(rows, kind).nearest(queries, 2)
        named = np.einsum("qd,qkd->qk", queries, rows[found])
        if np.allclose(similarity, expected, atol=1e-5) and np.allclose(named, expected, atol=1e-5):
            return kind
        log.warning("the neighbour search for %s is wrong on this CPU: a slower one is used", kind.name)
    raise FlawlineError("no neighbour search is right on this CPU: install another release of numba")


def _neighbourly(rows: Vectors, numbers: NDArray[np.int32]) -> NDArray[np.intp]:
    """An order in which CELL rows on end, from a multiple of CELL, are near each other (a k-d tree's leaves).

    What is near one query then lies in few cells, and what is near the next query, often in the same ones.
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
    # The last levels together, where each part is too small to be worth a step of its own; the last one may be short.
    whole = np.concatenate([part for part in parts if len(part) == _LEAF] or [order[:0]]).reshape(-1, _LEAF)
    rest = [part for part in parts if len(part) < _LEAF]
    while whole.shape[1] > CELL:
        whole = _halved(rows, whole)
    return np.concatenate([whole.ravel(), *rest, order[numbers < 0]])


def _halved(rows: Vectors, parts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Every part (n, k) of the rows' numbers split in two, (2 n, k / 2), along the axis that it spreads most on."""
    values = rows[parts]
    axis = values.var(axis=1).argmax(axis=1)
    along = np.take_along_axis(values, axis[:, None, None], axis=2)[:, :, 0]
    return np.take_along_axis(parts, along.argsort(axis=1), axis=1).reshape(-1, parts.shape[1] // 2)
