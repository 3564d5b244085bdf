"""The search of `torch_index` in two kernels of Triton: of all similarities only the largest of each cell is stored.

The first kernel multiplies queries and rows, and keeps the largest product of each cell of rows. The second takes the
best cells of a query, computes the similarities of all their rows in float32, and from the nearest rows the distance.

To import this module imports triton, which comes with PyTorch's builds for CUDA. Its kernels are compiled at their
first use, which takes a C compiler.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Queries and rows of a tile of the product, warps that work on it, and steps that are read ahead: the best of four on
# an H200, which differ by 6 % at most.
_TILE_QUERIES, _TILE_ROWS, _TILE_WARPS, _STAGES = 128, 128, 8, 3
# Channels of a step of the product: the most that waste none.
_STEPS = (64, 32, 16)
# Warps that work on a query, and channels of the rows of its cells that are read at a time: the best of three pairs
# there (docs/measurements/gpu-h200.json).
_QUERY_WARPS, _QUERY_STEP = 1, 32


def distances(
    queries: torch.Tensor,
    searched_queries: torch.Tensor,
    rows: torch.Tensor,
    searched_rows: torch.Tensor,
    sizes: torch.Tensor,
    groups: torch.Tensor,
    count: int,
    cells: int,
    rows_per_cell: int,
) -> torch.Tensor:
    """Return distances float32 (b, p) of patches to what the `count` nearest rows of their image's group know.

    `queries` float32 (b, p, c) are the patches of b images, unit vectors, and `rows` (k, m, c) the rows of k groups, of
    which `sizes` int32 (k,) count. `searched_queries` (b, p, d) and `searched_rows` (k, m, d) are the same in half
    precision, as `torch_index` makes them. `groups` int64 (b,). The best `cells` of `rows_per_cell` rows are looked
    into.
    """
    images, patches, channels = queries.shape
    width, room = searched_rows.shape[2], searched_rows.shape[1]
    total = room // rows_per_cell
    cells = min(cells, total)
    largest = torch.empty(images, patches, total, dtype=torch.float16, device=queries.device)
    result = torch.empty(images, patches, dtype=torch.float32, device=queries.device)
    tiles = (triton.cdiv(patches, _TILE_QUERIES), triton.cdiv(room, _TILE_ROWS), images)
    _largest_of_cells[tiles](
        searched_queries, searched_rows, sizes, groups, largest, patches, total, room,
        WIDTH=width, QUERIES=_TILE_QUERIES, ROWS=_TILE_ROWS, STEP=next(step for step in _STEPS if width % step == 0),
        CELL=rows_per_cell, num_warps=_TILE_WARPS, num_stages=_STAGES,
    )  # fmt: skip
    _nearest_of_cells[(patches, images)](
        queries, rows, sizes, groups, largest, result, patches, total, rows.stride(0), rows.stride(1),
        CHANNELS=channels, COUNT=count, CELLS=cells, CELLS_ROOM=triton.next_power_of_2(cells),
        TOTAL_ROOM=triton.next_power_of_2(total), CELL=rows_per_cell, STEP=_QUERY_STEP, num_warps=_QUERY_WARPS,
    )  # fmt: skip
    return result


@triton.jit
def _largest_of_cells(
    queries, rows, sizes, groups, largest, patches, total, room,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, CELL: tl.constexpr,
):  # fmt: skip
    """Write the largest product of each cell of rows with each query, (b, p, total)."""
    image = tl.program_id(2).to(tl.int64)
    group = tl.load(groups + image)
    size = tl.load(sizes + group)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    of_image, of_group = queries + image * patches * WIDTH, rows + group * room * WIDTH
    products = tl.zeros((QUERIES, ROWS), dtype=tl.float32)
    for first in range(0, WIDTH, STEP):
        channel = first + tl.arange(0, STEP)
        left = tl.load(of_image + query[:, None] * WIDTH + channel[None, :], mask=query[:, None] < patches, other=0.0)
        right = tl.load(of_group + row[None, :] * WIDTH + channel[:, None], mask=row[None, :] < size, other=0.0)
        products = tl.dot(left, right, products)
    products = tl.where(row[None, :] < size, products, float("-inf"))
    best = tl.max(tl.reshape(products, (QUERIES, ROWS // CELL, CELL)), axis=2)
    cell = tl.program_id(1) * (ROWS // CELL) + tl.arange(0, ROWS // CELL)
    place = largest + (image * patches + query[:, None]) * total + cell[None, :]
    tl.store(place, best.to(tl.float16), mask=(query[:, None] < patches) & (cell[None, :] < total))


@triton.jit
def _nearest_of_cells(
    queries, rows, sizes, groups, largest, result, patches, total, group_stride, row_stride,
    CHANNELS: tl.constexpr, COUNT: tl.constexpr, CELLS: tl.constexpr, CELLS_ROOM: tl.constexpr,
    TOTAL_ROOM: tl.constexpr, CELL: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write the distance of one query to what the nearest rows among its best cells know."""
    image = tl.program_id(1).to(tl.int64)
    query = image * patches + tl.program_id(0)
    group = tl.load(groups + image)
    size = tl.load(sizes + group)
    place = tl.arange(0, TOTAL_ROOM)
    values = tl.load(largest + query * total + place, mask=place < total, other=float("-inf")).to(tl.float32)
    slot = tl.arange(0, CELLS_ROOM)
    cells = tl.full((CELLS_ROOM,), -1, dtype=tl.int32)
    for taken in tl.static_range(CELLS):
        best = tl.argmax(values, axis=0)
        cell = tl.where(tl.max(values, axis=0) > float("-inf"), best, -1)
        cells = tl.where(slot == taken, cell, cells)
        values = tl.where(place == best, float("-inf"), values)
    row = tl.reshape(cells[:, None] * CELL + tl.arange(0, CELL)[None, :], (CELLS_ROOM * CELL,))  # negative: no cell
    is_row = (tl.reshape((cells[:, None] >= 0) & (tl.arange(0, CELL)[None, :] >= 0), (CELLS_ROOM * CELL,))) & (
        row < size
    )
    of_group = rows + group * group_stride
    similarity = tl.zeros((CELLS_ROOM * CELL,), dtype=tl.float32)
    for first in tl.static_range(0, CHANNELS, STEP):
        channel = first + tl.arange(0, STEP)
        is_channel = channel < CHANNELS
        left = tl.load(queries + query * CHANNELS + channel, mask=is_channel, other=0.0)
        right = tl.load(
            of_group + row[:, None] * row_stride + channel[None, :],
            mask=is_row[:, None] & is_channel[None, :],
            other=0.0,
        )
        similarity += tl.sum(right.to(tl.float32) * left[None, :], axis=1)
    similarity = tl.where(is_row, similarity, float("-inf"))
    # Softmax of -3 d^2 / d1^2 over the nearest, as `coreset.projected`.
    nearest = tl.maximum(2 - 2 * tl.max(similarity, axis=0), 1e-6)
    candidate = tl.arange(0, CELLS_ROOM * CELL)
    rest, weights = similarity, tl.zeros((CELLS_ROOM * CELL,), dtype=tl.float32)
    for _ in tl.static_range(COUNT):
        chosen = candidate == tl.argmax(rest, axis=0)
        weight = tl.exp(-3 * (tl.maximum(2 - 2 * similarity, 1e-6) / nearest - 1))
        weights = tl.where(chosen & is_row, weight, weights)
        rest = tl.where(chosen, float("-inf"), rest)
    weights = weights / tl.sum(weights, axis=0)
    squares = 0.0
    for first in tl.static_range(0, CHANNELS, STEP):
        channel = first + tl.arange(0, STEP)
        is_channel = channel < CHANNELS
        left = tl.load(queries + query * CHANNELS + channel, mask=is_channel, other=0.0)
        is_used = (weights > 0)[:, None] & is_channel[None, :]
        right = tl.load(of_group + row[:, None] * row_stride + channel[None, :], mask=is_used, other=0.0)
        difference = left - tl.sum(weights[:, None] * right.to(tl.float32), axis=0)
        squares += tl.sum(difference * difference, axis=0)
    tl.store(result + query, tl.sqrt(squares))
