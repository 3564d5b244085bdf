"""The features of all good images at fit: computed once, kept in half precision, on disk when they are many."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from scorer.backbone import Backbone, Image, Maps
from scorer.coreset import Vectors, unit

Progress = Callable[[str, int, int], None]
OnUnreadable = Callable[[int, FlawlineError], None]

# Above this the patches of all images are kept in a temporary file instead of memory.
_IN_MEMORY_BYTES = 1 << 30
# Images in work beyond the one being stored; bounds memory whatever the number of images.
_AHEAD = 64


def checked(image: Image) -> Image:
    """The image itself, when it is what the scorer takes; FlawlineError otherwise."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise FlawlineError(
            f"image of shape {tuple(image.shape)} and type {image.dtype}: the scorer takes uint8 (height, width, 3) RGB"
        )
    return image


@dataclass
class FeatureStore:
    """Unit patch vectors and mean features of n images, per layer.

    `patches[l]` is float16 (n, h * w, c), `means[l]` float32 (n, c) of the features before scaling, `grids[l]` h = w.
    """

    patches: list[NDArray[np.float16]]
    means: list[NDArray[np.float32]]
    grids: list[int]
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.means[0])

    def pool(self, layer: int, images: NDArray[np.integer]) -> Vectors:
        """All patch vectors (images * h * w, c) float32 of some images."""
        chosen = np.asarray(self.patches[layer][images], dtype=np.float32)
        return chosen.reshape(-1, chosen.shape[-1])

    def close(self) -> None:
        """Free the temporary file, if there is one."""
        if self._folder is not None:
            self.patches = []
            self._folder.cleanup()
            self._folder = None


def in_order(work: Callable[[int], Any], count: int, pool: ThreadPoolExecutor) -> Iterator[Any]:
    """Results of work(0) .. work(count - 1) in order, with a bounded number of them in flight or waiting."""
    indices = iter(range(count))
    futures = [pool.submit(work, i) for i in itertools.islice(indices, _AHEAD)]
    while futures:
        yield futures.pop(0).result()
        futures += [pool.submit(work, i) for i in itertools.islice(indices, 1)]


def extract(
    images: Sequence[Image],
    backbone: Backbone,
    progress: Progress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> tuple[FeatureStore, list[int]]:
    """Features of all images that can be read, and the indices of those.

    `images` may read each image when it is asked for; one that raises FlawlineError is handed to `on_unreadable` and
    left out, or, without that, ends the fit.
    """

    def work(index: int) -> Maps | FlawlineError:
        try:
            return backbone.features(checked(images[index]))
        except FlawlineError as error:
            if on_unreadable is None:
                raise
            return error

    store: FeatureStore | None = None
    kept: list[int] = []
    with ThreadPoolExecutor(backbone.threads) as pool:
        for index, maps in enumerate(in_order(work, len(images), pool)):
            if isinstance(maps, FlawlineError):
                assert on_unreadable is not None
                on_unreadable(index, maps)
            else:
                store = store or _allocate(maps, len(images))
                row = len(kept)
                for layer, each in enumerate(maps):
                    flat = each.reshape(-1, each.shape[2])
                    store.patches[layer][row] = unit(flat)
                    store.means[layer][row] = flat.mean(axis=0)
                kept.append(index)
            if progress:
                progress("features", index + 1, len(images))
    if store is None:
        raise FlawlineError("none of the images can be read: give at least a folder of good images")
    store.patches = [each[: len(kept)] for each in store.patches]
    store.means = [each[: len(kept)] for each in store.means]
    return store, kept


def _allocate(maps: Maps, count: int) -> FeatureStore:
    shapes = [(count, each.shape[0] * each.shape[1], each.shape[2]) for each in maps]
    folder = None
    if sum(2 * int(np.prod(shape)) for shape in shapes) > _IN_MEMORY_BYTES:
        folder = tempfile.TemporaryDirectory(prefix="flawline-fit-")
        patches: list[NDArray[np.float16]] = [
            np.memmap(Path(folder.name) / f"{i}.f16", dtype=np.float16, mode="w+", shape=shape)
            for i, shape in enumerate(shapes)
        ]
    else:
        patches = [np.empty(shape, dtype=np.float16) for shape in shapes]
    means = [np.empty((count, each.shape[2]), dtype=np.float32) for each in maps]
    return FeatureStore(patches, means, [each.shape[0] for each in maps], folder)
