"""The features of all good images at fit: computed once, streamed to disk in half precision, kept if the fit stops."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from scorer.features.backbone import Backbone
from scorer.features.graph import Image, Maps
from scorer.features.padding import Padding
from scorer.features.workfolder import PatchFile, WorkFolder
from scorer.near_copies import SIDE_PX, detail
from scorer.search.bank import unit_rows
from scorer.vectors import Vectors

Progress = Callable[[str, int, int], None]
"""Takes the name of a stage, how many steps of it are done, and how many there are."""
OnUnreadable = Callable[[int, FlawlineError], None]
"""Takes the number of an image that cannot be read, and why."""
LayerFeatures = tuple[NDArray[np.float16], NDArray[np.float32]]
"""One layer of an image: unit patch vectors (h * w, c), and the mean feature (c,) before scaling."""
_ImageFeatures = tuple[list[LayerFeatures], NDArray[np.int8] | None, tuple[int, int] | None]

# Images in work beyond the one that is stored next; bounds memory whatever the number of images. A judgement:
# 14 MB of features in the fast profile, 40 MB in the accurate one.
_AHEAD = 64


def checked(image: Image) -> Image:
    """Return the image; raise FlawlineError unless it is uint8 (height, width, 3) and not empty."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise FlawlineError(
            f"image of shape {tuple(image.shape)} and type {image.dtype}: the scorer takes uint8 (height, width, 3) RGB"
        )
    return image


@dataclass
class FeatureStore:
    """Unit patch vectors and mean features of n images, for each layer.

    `patches[l]` is float16 (n, h * w, c), in memory or on disk; `means[l]` float32 (n, c) of the features before
    scaling; `grids[l]` is h, equal to w. `details` int8 (n, 64, 64) are the images' fine details, None for tiles of one
    size. `folder` holds what is computed from them, for a fit that is stopped. `contents` (n, 2) are the rows and
    columns of cells that images fill where they keep their proportions (`padding`): the patches of an image come first
    in its place then, and zeros follow.
    """

    patches: Sequence[NDArray[np.float16] | PatchFile]
    means: list[NDArray[np.float32]]
    grids: list[int]
    folder: WorkFolder | None = None
    details: NDArray[np.int8] | None = None
    padding: Padding | None = None
    contents: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.means[0])

    def map_shape(self, layer: int, image: int) -> tuple[int, int]:
        """Return the rows and columns of an image's map of a layer."""
        grid = self.grids[layer]
        if self.padding is None or self.contents is None:
            return grid, grid
        rows, columns = self.contents[image].tolist()
        return self.padding.extent((rows, columns), grid)

    def pool(self, layer: int, images: NDArray[np.integer]) -> Vectors:
        """Return all patch vectors (patches, c) float32 of some images by number, one image after the other."""
        vectors = np.asarray(self.patches[layer][images], dtype=np.float32)
        if self.contents is None:
            return vectors.reshape(-1, vectors.shape[-1])
        shapes = [self.map_shape(layer, int(image)) for image in images]
        parts = [of_image[: rows * columns] for of_image, (rows, columns) in zip(vectors, shapes, strict=True)]
        return np.concatenate(parts) if parts else vectors.reshape(0, vectors.shape[-1])


def in_order(work: Callable[[int], Any], count: int, pool: ThreadPoolExecutor, ahead: int = _AHEAD) -> Iterator[Any]:
    """Yield work(0) .. work(count - 1) in order, with at most `ahead` of them in work or waiting."""
    indices = iter(range(count))
    futures = [pool.submit(work, i) for i in itertools.islice(indices, ahead)]
    while futures:
        yield futures.pop(0).result()
        futures += [pool.submit(work, i) for i in itertools.islice(indices, 1)]


def extract(
    images: Sequence[Image],
    backbone: Backbone,
    folder: WorkFolder,
    progress: Progress | None = None,
    on_unreadable: OnUnreadable | None = None,
    *,
    with_details: bool = False,
) -> tuple[FeatureStore, list[int]]:
    """Return the features of all readable images, streamed into `folder`, and the numbers of those images.

    What the folder holds already is not computed again. `images` may read each image when it is asked for. An image
    that raises FlawlineError is handed to `on_unreadable(number, error)` and left out; without `on_unreadable` it ends
    the fit. `with_details` keeps the images' fine details too. Raises FlawlineError when no image can be read, and when
    the disk has no room for the features.
    """

    def read(number: int) -> Image | FlawlineError:
        try:
            return checked(images[number])
        except FlawlineError as error:
            if on_unreadable is None:
                raise
            return error

    def features_of(numbers: range) -> list[_ImageFeatures | FlawlineError]:
        batch = [read(number) for number in numbers]
        readable = [image for image in batch if not isinstance(image, FlawlineError)]
        # Filled up, so that features do not depend on where a fit was stopped and went on.
        filled = readable + readable[-1:] * (backbone.batch - len(readable))
        maps = iter(backbone.features_of(filled) if readable else [])
        return [image if isinstance(image, FlawlineError) else stored(image, next(maps)) for image in batch]

    def stored(image: Image, maps: Maps) -> _ImageFeatures:
        layers = [layer.reshape(-1, layer.shape[2]) for layer in maps]
        features = [(unit_rows(patches).astype(np.float16), patches.mean(axis=0)) for patches in layers]
        content = None if backbone.padding is None else backbone.padding.content(*image.shape[:2])
        return features, detail(image) if with_details else None, content

    recorder = _Recorder(folder, len(images), backbone.padding)
    for number, message in recorder.done.unreadable:
        if on_unreadable is None:
            raise FlawlineError(message)
        on_unreadable(number, FlawlineError(message))
    first = recorder.done.count
    batches = [range(i, min(i + backbone.batch, len(images))) for i in range(first, len(images), backbone.batch)]
    with ThreadPoolExecutor(backbone.threads) as pool:
        results = in_order(lambda i: features_of(batches[i]), len(batches), pool, max(2, _AHEAD // backbone.batch))
        for number, result in enumerate(itertools.chain.from_iterable(results), first):
            if isinstance(result, FlawlineError):
                assert on_unreadable is not None
                on_unreadable(number, result)
                recorder.skip(number, result)
            else:
                recorder.add(number, *result)
            if progress:
                progress("features", number + 1, len(images))
    return recorder.store(), recorder.done.readable


@dataclass
class _Done:
    """What a journal says is done: shapes (patches, channels) and mean features of layers, and the images by number.

    `means[l]` lists one vector (c,) for each readable image; `unreadable` holds each image's number and error.
    """

    shapes: list[tuple[int, int]] = field(default_factory=list)
    means: list[list[NDArray[np.float32]]] = field(default_factory=list)
    details: list[NDArray[np.int8]] = field(default_factory=list)
    contents: list[tuple[int, int]] = field(default_factory=list)
    readable: list[int] = field(default_factory=list)
    unreadable: list[tuple[int, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Return the number of images that are done, whether they could be read or not."""
        return len(self.readable) + len(self.unreadable)

    def apply(self, entry: dict[str, Any]) -> None:
        """Take in one entry of the journal: the shapes, an image, or an image that cannot be read."""
        if "shapes" in entry:
            self.shapes = [(int(patches), int(channels)) for patches, channels in entry["shapes"]]
            self.means = [[] for _ in self.shapes]
        elif "error" in entry:
            self.unreadable.append((entry["image"], entry["error"]))
        else:
            self.readable.append(entry["image"])
            for means, mean in zip(self.means, entry["means"], strict=True):
                means.append(np.frombuffer(base64.b64decode(mean), dtype=np.float32))
            if "content" in entry:
                self.contents.append((int(entry["content"][0]), int(entry["content"][1])))
            if "detail" in entry:
                self.details.append(np.frombuffer(base64.b64decode(entry["detail"]), np.int8).reshape(SIDE_PX, SIDE_PX))


class _Recorder:
    """Writes features to disk, image after image, and says in the journal what is whole there.

    It goes on from the journal that the folder holds; where the files hold less than the journal says, it clears the
    folder and begins anew. Raises FlawlineError when the disk has no room for what is left to do.
    """

    def __init__(self, folder: WorkFolder, count: int, padding: Padding | None) -> None:
        self._folder = folder
        self._count = count
        self._padding = padding
        self.done = _Done()
        entries = folder.journal()
        for entry in entries:
            self.done.apply(entry)
        self._files = folder.patch_files(self.done.shapes)
        if any(file.shape[0] < len(self.done.readable) for file in self._files):
            folder.clear()
            self.done, self._files = _Done(), []
        elif entries:
            for file in self._files:
                file.cut(len(self.done.readable))
            folder.note(entries)  # without a last line that a crash cut off
            self._require_space()

    def add(
        self,
        number: int,
        features: Sequence[LayerFeatures],
        fine: NDArray[np.int8] | None,
        content: tuple[int, int] | None,
    ) -> None:
        """Write the features of an image, its fine detail, and what of the input it fills, for one with padding.

        Raises FlawlineError when the disk is full or fails.
        """
        try:
            self._write(number, features, fine, content)
        except OSError as error:
            raise FlawlineError(
                f"{self._folder.path}: features cannot be written: {error.strerror}: free space and start again, "
                "the fit goes on where it was"
            ) from error

    def skip(self, number: int, error: FlawlineError) -> None:
        """Note an image that cannot be read."""
        self._note({"image": number, "error": str(error)})

    def store(self) -> FeatureStore:
        """Return the features of all images. Raises FlawlineError when there are none."""
        if not self.done.readable:
            raise FlawlineError("none of the images can be read: give at least a folder of good images")
        grids = [round(patches**0.5) for patches, _ in self.done.shapes]
        return FeatureStore(
            self._files,
            [np.stack(means) for means in self.done.means],
            grids,
            self._folder,
            np.stack(self.done.details) if self.done.details else None,
            self._padding,
            np.asarray(self.done.contents, dtype=np.int64) if self._padding is not None else None,
        )

    def _write(
        self,
        number: int,
        features: Sequence[LayerFeatures],
        fine: NDArray[np.int8] | None,
        content: tuple[int, int] | None,
    ) -> None:
        if not self._files:
            shapes = [patches.shape for patches, _ in features]
            if self._padding is not None and content is not None:
                shapes = [(self._padding.whole(patches, content), channels) for patches, channels in shapes]
            self._files = self._folder.patch_files(shapes)
            for file in self._files:
                file.cut(0)
            self._note({"shapes": shapes})
            self._require_space()
        for file, (patches, _) in zip(self._files, features, strict=True):
            file.append(np.pad(patches, ((0, file.shape[1] - len(patches)), (0, 0))))
        entry: dict[str, Any] = {"image": number, "means": [_text(mean) for _, mean in features]}
        if content is not None:
            entry["content"] = content
        if fine is not None:
            entry["detail"] = base64.b64encode(fine.tobytes()).decode()
        self._note(entry)

    def _note(self, entry: dict[str, Any]) -> None:
        self._folder.append(entry)
        self.done.apply(entry)

    def _require_space(self) -> None:
        size_bytes = sum(2 * patches * channels for patches, channels in self.done.shapes)
        self._folder.require((self._count - self.done.count) * size_bytes)


def _text(values: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.float32).tobytes()).decode()
