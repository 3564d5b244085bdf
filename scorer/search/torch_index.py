"""Exact nearest neighbours on a device of PyTorch: found in half precision, settled in float32.

The rows of a bank are divided into cells. One matrix product gives all similarities; the first pass over them leaves
the largest of each cell, and only the best cells are looked into. A few more rows than are asked for are taken, and
their similarities are computed again in float32.

To import this module imports torch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from scorer.vectors import Vectors

log = logging.getLogger(__name__)

Tensors = tuple[torch.Tensor, ...]

# Rows, and cells, beyond those asked for that are compared in float32: after a choice in half precision, and after one
# in float32, which differs by the order of its sums alone. A row is missed only where so many others are as near within
# a step. With 3 more of 1 and 5 their number is a power of two, which the kernels want.
_MORE_IN_HALF = 3
_MORE_IN_FLOAT = 1
# Memory of the similarities that exist at a time, by device. On an H200, 128 MiB cost 5 % of the whole scoring, 32 MiB
# cost 25 %, and 2 GiB gained nothing. On a CPU they are to stay in its cache, which is a judgement.
_BLOCK_BYTES = {"cuda": 512 << 20, "cpu": 8 << 20}
# Rows of a cell, by the most channels that they have. Measured on an H200 for 16, 8 and 4 rows, with 40, 112 and 384
# channels (docs/measurements/gpu-h200.json): 4 rows take half the time of 16 with 384 channels, and more with 40.
_ROWS_PER_CELL = {160: 8, 1 << 20: 4}
# Queries of a bank searched alone that go together, so that a block is a whole number of them.
_QUERIES_AT_ONCE = 256
# A vector shorter than this has no direction.
_SHORTEST = 1e-12
# Squared distances below this are rounding, as in `kernels.known_vectors`.
_NEAREST = 1e-6


class StackedBanks:
    """The banks (m, c) of all groups of one layer, side by side on a device, each padded to the longest.

    With `half` rows are chosen by products in half precision, for which a GPU has units of its own; without it, in
    float32. `kernels` is the module `fused`, for `half` only.
    """

    def __init__(
        self, banks: Sequence[Vectors], device: torch.device | str, half: bool, kernels: ModuleType | None = None
    ) -> None:
        self.device = torch.device(device)
        self._cell = _rows_per_cell(banks[0].shape[1])
        self._cells = -(-max(len(bank) for bank in banks) // self._cell)
        padded = torch.from_numpy(np.stack([_padded(bank, self._cell, self._cells) for bank in banks]))
        if half:
            self._searched = _in_half(padded, -1.0).to(self.device)
            # The rows of a saved model lose nothing in half precision: one copy of them serves both.
            is_exact = all((bank == bank.astype(np.float16)).all() for bank in banks)
            self._exact = self._searched[..., : padded.shape[2]] if is_exact else padded.to(self.device)
        else:
            self._searched = self._exact = padded.to(self.device)
        self._half = half
        self._sizes = torch.tensor([len(bank) for bank in banks], dtype=torch.int32, device=self.device)
        self._more = _MORE_IN_HALF if half else _MORE_IN_FLOAT
        self._kernels = kernels

    @property
    def size_bytes(self) -> int:
        """The memory of the rows on the device."""
        is_shared = self._exact.untyped_storage().data_ptr() == self._searched.untyped_storage().data_ptr()
        return self._searched.nbytes + (0 if is_shared else self._exact.nbytes)

    def nearest(self, queries: torch.Tensor, groups: torch.Tensor, count: int) -> Tensors:
        """Return the `count` most similar rows of each query among those of its image's group, the first one first.

        `queries` float32 (b, p, c) are the patches of b images, unit vectors; `groups` int64 (b,). Returns similarities
        float32 (b, p, count), the rows' numbers int64, and the rows float32 (b, p, count, c). Where a group has fewer
        rows, the similarities of the others are -inf.
        """
        return _joined([self._nearest(queries[part], groups[part], count) for part in self._parts(queries)])

    def distances(self, queries: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
        """Return the distances of `project` alone, by the kernels where there are any: they store no similarities."""
        if self._kernels is None:
            return self.project(queries, groups, count)[0]
        distances: torch.Tensor = self._kernels.distances(
            queries, _in_half(queries, 1.0), self._exact, self._searched, self._sizes, groups, count,
            count + self._more, self._cell,
        )  # fmt: skip
        return distances

    def project(self, queries: torch.Tensor, groups: torch.Tensor, count: int) -> Tensors:
        """Return distances (b, p) to, and (b, p, c), what the `count` nearest rows know; see `coreset.projected`."""
        parts = []
        for part in self._parts(queries):
            similarity, _, rows = self._nearest(queries[part], groups[part], count)
            parts.append(_known(queries[part], similarity, rows))
        return _joined(parts)

    def _parts(self, queries: torch.Tensor) -> list[slice]:
        """Return the images whose similarities exist at a time."""
        image_bytes = queries.shape[1] * self._searched.shape[1] * self._searched.element_size()
        step = max(1, _BLOCK_BYTES[self.device.type] // image_bytes)
        return [slice(start, start + step) for start in range(0, len(queries), step)]

    def _nearest(self, queries: torch.Tensor, groups: torch.Tensor, count: int) -> Tensors:
        images, patches, _ = queries.shape
        place = torch.arange(self._cell, device=self.device)
        sizes = self._sizes[groups]
        # One bank serves all images without a copy of it for each.
        rows = self._searched.expand(images, -1, -1) if len(self._searched) == 1 else self._searched[groups]
        searched = _in_half(queries, 1.0) if self._half else queries
        similarity = torch.bmm(searched, rows.transpose(1, 2))
        similarity = similarity.view(images, patches, self._cells, self._cell)
        is_empty = torch.arange(self._cells, device=self.device) * self._cell >= sizes[:, None]
        best_of_cell = similarity.amax(3).masked_fill(is_empty[:, None, :], -torch.inf)
        cells = best_of_cell.topk(min(count + self._more, self._cells), dim=2, sorted=False).indices[..., None]
        numbers = (cells * self._cell + place).flatten(2)
        inside = similarity.gather(2, cells.expand(-1, -1, -1, self._cell)).flatten(2)
        inside = inside.masked_fill(numbers >= sizes[:, None, None], -torch.inf)
        chosen = inside.topk(min(count + self._more, inside.shape[2]), dim=2, sorted=False).indices
        numbers = numbers.gather(2, chosen)
        candidates = self._exact[groups[:, None, None], numbers].float()
        settled = (candidates * queries[:, :, None, :]).sum(3)
        settled = settled.masked_fill(numbers >= sizes[:, None, None], -torch.inf)
        nearest, order = settled.topk(count, dim=2)
        candidates = candidates.gather(2, order[..., None].expand(-1, -1, -1, candidates.shape[3]))
        return nearest, numbers.gather(2, order), candidates


@functools.cache
def fused_kernels() -> ModuleType | None:
    """Return the kernels of `fused`, None where they cannot be compiled or find other rows than PyTorch's products."""
    try:
        from scorer.search import fused
    except ImportError:
        return None
    generator = torch.Generator().manual_seed(0)
    rows, queries = (unit_rows(torch.randn(n, 24, generator=generator)).half().float() for n in (300, 64))
    try:
        banks = StackedBanks([rows.numpy()], "cuda", half=True, kernels=fused)
        asked, group = queries[None].cuda(), torch.zeros(1, dtype=torch.int64, device="cuda")
        difference = float((banks.distances(asked, group, 5) - banks.project(asked, group, 5)[0]).abs().max())
    except Exception as error:
        log.warning("the kernels of the neighbour search cannot be compiled (%s): a slower one is used", error)
        return None
    if difference > 1e-4:
        log.warning("the kernels of the neighbour search are off by %.1g on this GPU: a slower one is used", difference)
        return None
    return fused


class TorchIndex:
    """The search of one bank (m, channels) on a device of PyTorch, see `neighbours.NeighbourIndex`.

    It chooses in half precision on a GPU, in float32 on "cpu", unless `half` says which.
    """

    def __init__(self, rows: Vectors, device: str = "cpu", half: bool | None = None) -> None:
        self._count = len(rows)
        half = device != "cpu" if half is None else half
        self._banks = StackedBanks([np.asarray(rows, dtype=np.float32)], device, half)

    def __len__(self) -> int:
        return self._count

    def nearest(self, queries: Vectors, count: int = 1) -> tuple[Vectors, NDArray[np.int32]]:
        """Return the `count` most similar rows of each query, see `NeighbourIndex`."""
        with torch.inference_mode():
            similarity, numbers, _ = self._banks.nearest(*self._batch(queries), count)
        return _flat(similarity, len(queries)), _flat(numbers, len(queries)).astype(np.int32)

    def project(self, queries: Vectors, count: int) -> tuple[NDArray[np.float32], Vectors]:
        """Return distances to, and, what the `count` nearest rows know, see `NeighbourIndex`."""
        with torch.inference_mode():
            distance, vectors = self._banks.project(*self._batch(queries), count)
        return _flat(distance[:, :, None], len(queries))[:, 0], _flat(vectors, len(queries))

    def _batch(self, queries: Vectors) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the queries as patches (b, p, c) of b images of the only group, and these images' groups."""
        images = max(1, -(-len(queries) // _QUERIES_AT_ONCE))
        patches = np.zeros((images * _QUERIES_AT_ONCE, queries.shape[1]), dtype=np.float32)
        patches[: len(queries)] = queries
        batch = torch.from_numpy(patches).view(images, _QUERIES_AT_ONCE, -1).to(self._banks.device)
        return batch, torch.zeros(images, dtype=torch.int64, device=self._banks.device)


def unit_rows(vectors: torch.Tensor) -> torch.Tensor:
    """Return the vectors (..., d) scaled to unit length, float32; a zero vector becomes the first axis.

    The twin of `bank.unit_rows`.
    """
    values = vectors.float()
    lengths = values.square().sum(-1, keepdim=True).sqrt()
    first = torch.zeros(values.shape[-1], device=values.device)
    first[:1] = 1
    return torch.where(lengths < _SHORTEST, first, values / lengths)


def _rows_per_cell(channels: int) -> int:
    """Return the number of rows of a cell: of long rows fewer, since all rows of the best cells are read."""
    return next(rows for most, rows in _ROWS_PER_CELL.items() if channels <= most)


def _padded(rows: Vectors, cell: int, cells: int) -> Vectors:
    """Return the rows with as many more as fill the cells: the first row of a cell again, or 0 in an empty cell."""
    padded = np.zeros((cells * cell, rows.shape[1]), dtype=np.float32)
    padded[: len(rows)] = rows
    more = np.arange(len(rows), len(padded))
    padded[more] = padded[more // cell * cell]  # never above the largest similarity of its cell
    return padded


def _in_half(vectors: torch.Tensor, last: float) -> torch.Tensor:
    """Return vectors (..., c) in half precision with one more channel, `last`, and zeros up to a full step.

    With 1 for queries and -1 for rows, their product is the similarity minus 1, which is minus half the squared
    distance. Its steps are finest where the distance is smallest; those of a similarity near 1 are 0.0005.
    """
    channels = vectors.shape[-1]
    step = 16 if channels < 128 else 32
    wide = vectors.new_zeros((*vectors.shape[:-1], -(-(channels + 1) // step) * step), dtype=torch.float16)
    wide[..., :channels] = vectors
    wide[..., channels] = last
    return wide


def _known(queries: torch.Tensor, similarity: torch.Tensor, rows: torch.Tensor) -> Tensors:
    """Return distances (b, p) to, and (b, p, c), the mean of the nearest rows (b, p, k, c), as `coreset.projected`."""
    squared = (2 - 2 * similarity).clamp_min(_NEAREST)
    weights = torch.softmax(-3 * squared / squared[..., :1], dim=-1)
    vectors = (weights[..., None] * rows).sum(2) if rows.shape[2] > 1 else rows[:, :, 0]
    return (queries - vectors).square().sum(-1).sqrt(), vectors


def _joined(parts: Sequence[Tensors]) -> Tensors:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))


def _flat(values: torch.Tensor, count: int) -> NDArray[np.float32]:
    return np.asarray(values.flatten(0, 1)[:count].cpu().numpy())
