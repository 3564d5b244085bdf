"""Banks of every group and layer, and the distances of good images to banks that hold nothing of them.

The slow part of a fit. It works through cells (one group in one layer), a few at a time, so that memory stays bounded
whatever the number of groups. The fit's working folder, if there is one, keeps each finished cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer.coreset import greedy_k_centre, merged, projected
from scorer.features.store import FeatureStore, Progress
from scorer.search.bank import Int8Index
from scorer.vectors import Vectors

# Bytes of patches that one greedy selection may take; larger pools are selected in parts, which are then
# merged. A judgement.
_POOL_BYTES = 64 << 20
# Stands in the place of a fold that is left out, for the bank of all folds.
_ALL_FOLDS = -1


@dataclass(frozen=True)
class _Cell:
    """One group's images in one layer: their numbers, their folds, and how many rows their bank has."""

    group: int
    layer: int
    settings: LayerSettings
    members: NDArray[np.intp]
    folds: list[NDArray[np.intp]]
    rows: int

    @property
    def key(self) -> str:
        """The cell's name in the working folder: changes with all that its bank depends on besides the features."""
        digest = hashlib.sha256(f"{self.layer} {self.settings.model_dump_json()} {self.rows}".encode())
        for fold in self.folds:
            digest.update(b"|" + fold.astype(np.int64).tobytes())
        return digest.hexdigest()[:24]


def cross_fit(
    store: FeatureStore,
    settings: ScorerSettings,
    members: Sequence[NDArray[np.intp]],
    sources: NDArray[np.int64],
    threads: int,
    progress: Progress | None,
    stage: str = "banks",
) -> tuple[list[list[Vectors]], list[NDArray[np.float32]]]:
    """Return banks of every group and layer, and for each layer the good images' distances (n, h * w) to others.

    Where images keep their proportions, NaN follows the distances of an image's patches.

    Each fold of a group's images is selected from once. The final bank is merged from the selections of all folds, and
    the bank that scores a fold from the selections of all others; both have the same size. Whole images are left out,
    those with the same number in `sources` (n,) together, since the best match of a patch is its neighbour in the same
    image. `members[k]` are the numbers of a group's images. `progress` is told of `stage`.
    """
    layers = settings.active_layers
    distances = [np.empty(patches.shape[:2], dtype=np.float32) for patches in store.patches[: len(layers)]]
    rng = np.random.default_rng(settings.seed)
    folds = [split(images, sources[images], settings.folds, rng) for images in members]
    # Layer by layer, since cells of one layer take about equally long.
    cells = [
        _Cell(k, i, layer, images, folds[k], int(min(layer.rows, max(16, layer.rows_per_image * len(images)))))
        for i, layer in enumerate(layers)
        for k, images in enumerate(members)
    ]
    banks: list[list[Vectors]] = [[np.empty((0, 0), dtype=np.float32)] * len(layers) for _ in members]
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(cells), threads):
            batch = cells[start : start + threads]
            for cell, (bank, of_members) in zip(batch, _finished(store, batch, pool), strict=True):
                banks[cell.group][cell.layer] = bank
                distances[cell.layer][cell.members] = of_members
            if progress:
                progress(stage, start + len(batch), len(cells))
    return banks, distances


def _finished(
    store: FeatureStore, cells: Sequence[_Cell], pool: ThreadPoolExecutor
) -> list[tuple[Vectors, NDArray[np.float32]]]:
    """Return bank and distances (members, h * w) of some cells, from this run or from an earlier one that kept them."""
    stored = [store.folder.get(cell.key) if store.folder else None for cell in cells]
    open_cells = [cell for cell, result in zip(cells, stored, strict=True) if result is None]
    selections = [(cell, fold) for cell in open_cells for fold in range(len(cell.folds))]
    selected = pool.map(lambda job: _part(store, *job), selections)
    parts = {(cell.key, fold): part for (cell, fold), part in zip(selections, selected, strict=True)}

    def merge(job: tuple[_Cell, int]) -> tuple[Vectors, NDArray[np.float32]]:
        cell, left_out = job
        others = [parts[cell.key, fold] for fold in range(len(cell.folds)) if fold != left_out]
        bank = merged(others, cell.rows)
        images = cell.members[:0] if left_out == _ALL_FOLDS else cell.folds[left_out]
        return bank, _distances(store, cell, bank, images)

    merges = [(cell, fold) for cell in open_cells for fold in (_ALL_FOLDS, *range(len(cell.folds)))]
    fitted = pool.map(merge, merges)
    results = {(cell.key, fold): result for (cell, fold), result in zip(merges, fitted, strict=True)}
    finished = []
    for cell, result in zip(cells, stored, strict=True):
        if result is None:
            bank = results[cell.key, _ALL_FOLDS][0]
            distances = np.full((len(cell.members), store.patches[cell.layer].shape[1]), np.nan, dtype=np.float32)
            for fold, images in enumerate(cell.folds):
                distances[np.searchsorted(cell.members, images)] = results[cell.key, fold][1]
            result = {"bank": bank.astype(np.float16), "distances": distances}
            if store.folder:
                store.folder.put(cell.key, **result)
        finished.append((result["bank"].astype(np.float32), result["distances"]))
    return finished


def split(
    members: NDArray[np.intp], sources: NDArray[np.int64], folds: int, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Return the images of a group in random parts of nearly equal size; images of one source stay in one part."""
    kinds, source = np.unique(sources, return_inverse=True)
    if len(kinds) < 2:  # all images are of one source, which cannot be left out whole
        source = np.arange(len(members))
    count = int(source.max()) + 1
    place = (rng.permutation(count) % min(folds, count))[source]
    return [members[place == fold] for fold in range(int(place.max()) + 1)]


def _part(store: FeatureStore, cell: _Cell, fold: int) -> Vectors:
    """Return the selection of a fold: twice as many rows as a merged bank needs from each of its parts."""
    return selection(store, cell.layer, cell.folds[fold], -(-2 * cell.rows // (len(cell.folds) - 1)))


def selection(store: FeatureStore, layer: int, images: NDArray[np.intp], rows: int) -> Vectors:
    """Return the greedy selection of `rows` rows from all patches of some images, made in parts when they are many."""
    _, patches, channels = store.patches[layer].shape
    chosen = []
    for part in np.array_split(images, min(len(images), -(-len(images) * patches * channels * 4 // _POOL_BYTES))):
        pool = store.pool(layer, part)
        chosen.append(pool[greedy_k_centre(pool, rows)])
    return chosen[0] if len(chosen) == 1 else merged(chosen, rows)


def _distances(store: FeatureStore, cell: _Cell, bank: Vectors, images: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the patch distances (images, h * w) of some images to a bank, followed by NaN where a map is smaller."""
    distances = np.full((len(images), store.patches[cell.layer].shape[1]), np.nan, dtype=np.float32)
    searched = Int8Index(bank)
    for place, image in enumerate(images):
        patches = store.pool(cell.layer, np.asarray([image]))
        distances[place, : len(patches)], _ = projected(patches, searched, cell.settings.neighbours)
    return distances
