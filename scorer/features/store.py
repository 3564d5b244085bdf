"""The features of all good images at fit: computed once, streamed to disk in half precision, kept when killed."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from scorer.features.backbone import Backbone
from scorer.features.graph import Image
from scorer.features.workfolder import PatchFile, WorkFolder
from scorer.search.bank import unit_rows
from scorer.vectors import Vectors

Progress = Callable[[str, int, int], None]
OnUnreadable = Callable[[int, FlawlineError], None]

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

    `patches[l]` is float16 (n, h * w, c), in memory or on disk; `means[l]` float32 (n, c) of the features before
    scaling, `grids[l]` h = w. `folder` keeps what is computed from them, for a fit that is killed.
    """

    patches: Sequence[NDArray[np.float16] | PatchFile]
    means: list[NDArray[np.float32]]
    grids: list[int]
    folder: WorkFolder | None = None

    def __len__(self) -> int:
        return len(self.means[0])

    def pool(self, layer: int, images: NDArray[np.integer]) -> Vectors:
        """All patch vectors (images * h * w, c) float32 of some images."""
        chosen = np.asarray(self.patches[layer][images], dtype=np.float32)
        return chosen.reshape(-1, chosen.shape[-1])


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
    folder: WorkFolder,
    progress: Progress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> tuple[FeatureStore, list[int]]:
    """Features of all images that can be read, streamed into `folder`, and the indices of those.

    What the folder holds already is not computed again. `images` may read each image when it is asked for; one that
    raises FlawlineError is handed to `on_unreadable` and left out, or, without that, ends the fit. Raises FlawlineError
    when the disk has no room for the features of all images.
    """

    def work(index: int) -> list[tuple[NDArray[np.float16], NDArray[np.float32]]] | FlawlineError:
        try:
            maps = backbone.features(checked(images[index]))
        except FlawlineError as error:
            if on_unreadable is None:
                raise
            return error
        flat = [each.reshape(-1, each.shape[2]) for each in maps]
        return [(unit_rows(each).astype(np.float16), each.mean(axis=0)) for each in flat]

    stream = _Stream(folder, len(images))
    for index, message in stream.unreadable:
        if on_unreadable is None:
            raise FlawlineError(message)
        on_unreadable(index, FlawlineError(message))
    done = stream.done
    with ThreadPoolExecutor(backbone.threads) as pool:
        for index, found in enumerate(in_order(lambda i: work(i + done), len(images) - done, pool), done):
            if isinstance(found, FlawlineError):
                assert on_unreadable is not None
                on_unreadable(index, found)
                stream.skip(index, found)
            else:
                stream.add(index, found)
            if progress:
                progress("features", index + 1, len(images))
    return stream.store(), stream.kept


class _Stream:
    """Features on their way to disk. The journal names what is whole there: shapes first, then image after image."""

    def __init__(self, folder: WorkFolder, count: int) -> None:
        self._folder = folder
        self._count = count
        self._shapes: list[tuple[int, int]] = []
        self._files: list[PatchFile] = []
        self._means: list[list[NDArray[np.float32]]] = []
        self.kept: list[int] = []
        self.unreadable: list[tuple[int, str]] = []
        entries = folder.journal()
        if entries and not self._take_up(entries):
            folder.clear()
            self.__init__(folder, count)  # type: ignore[misc]

    @property
    def done(self) -> int:
        """How many images are finished, one way or the other."""
        return len(self.kept) + len(self.unreadable)

    def _take_up(self, entries: list[Any]) -> bool:
        """Go on from a journal; False when the files are not what it says."""
        for entry in entries:
            if "shapes" in entry:
                self._open([(int(patches), int(channels)) for patches, channels in entry["shapes"]])
            elif "error" in entry:
                self.unreadable.append((entry["image"], entry["error"]))
            else:
                self.kept.append(entry["image"])
                for layer, mean in zip(self._means, entry["means"], strict=True):
                    layer.append(np.frombuffer(base64.b64decode(mean), dtype=np.float32))
        if any(each.shape[0] < len(self.kept) for each in self._files):
            return False
        for each in self._files:
            each.cut(len(self.kept))
        self._folder.note(entries)  # without a last line that is cut off
        self._require()
        return True

    def _open(self, shapes: list[tuple[int, int]]) -> None:
        self._shapes = shapes
        self._files = self._folder.patch_files(shapes)
        self._means = [[] for _ in shapes]

    def _require(self) -> None:
        self._folder.require((self._count - self.done) * sum(2 * patches * c for patches, c in self._shapes))

    def add(self, index: int, found: Sequence[tuple[NDArray[np.float16], NDArray[np.float32]]]) -> None:
        try:
            self._write(index, found)
        except OSError as error:
            raise FlawlineError(
                f"{self._folder.path}: features cannot be written: {error.strerror}: free space and start again, "
                "the fit goes on where it was"
            ) from error

    def _write(self, index: int, found: Sequence[tuple[NDArray[np.float16], NDArray[np.float32]]]) -> None:
        if not self._files:
            self._open([(len(vectors), vectors.shape[1]) for vectors, _ in found])
            self._require()
            for file in self._files:
                file.cut(0)
            self._folder.append({"shapes": self._shapes})
        for file, means, (vectors, mean) in zip(self._files, self._means, found, strict=True):
            file.append(vectors)
            means.append(mean)
        self._folder.append({"image": index, "means": [_text(mean) for _, mean in found]})
        self.kept.append(index)

    def skip(self, index: int, error: FlawlineError) -> None:
        self._folder.append({"image": index, "error": str(error)})
        self.unreadable.append((index, str(error)))

    def store(self) -> FeatureStore:
        if not self.kept:
            raise FlawlineError("none of the images can be read: give at least a folder of good images")
        grids = [round(patches**0.5) for patches, _ in self._shapes]
        return FeatureStore(self._files, [np.stack(each) for each in self._means], grids, self._folder)


def _text(values: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.float32).tobytes()).decode()
