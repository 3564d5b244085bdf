"""What a model keeps besides what scoring needs: where each bank row came from, and small pictures of good images.

`flawline explain` shows a region beside the good patch that is nearest to it; `flawline extend` audits a model on the
pictures. Both are bounded in each group, and scoring never loads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.messages import Codec
from scorer.features.graph import Image
from scorer.features.store import FeatureStore
from scorer.model import Model
from scorer.vectors import Vectors

# Pictures of each group, their longest side, and their JPEG quality: about 150 kB a group. Judgements.
_PICTURES = 12
_SIDE_PX = 256
_QUALITY = 85


@dataclass(frozen=True)
class Evidence:
    """Where the rows of banks came from, and pictures.

    `sources[k][l]` int32 (m, 2) are the image and the patch that each row of a bank is, -1 where that is not known;
    `look_sources[k][s][l]` the same for the banks of a group's sub-looks, of which most groups have none. Images have
    the numbers of the model's good images. `names` (n,) are their files, and empty where they were no files; `pictures`
    hold some of them as JPEG, by number; `sample_bits` are the depths of the files.
    """

    sources: list[list[NDArray[np.int32]]]
    look_sources: list[list[list[NDArray[np.int32]]]]
    names: list[str]
    pictures: dict[int, bytes] = field(default_factory=dict)
    sample_bits: tuple[int, ...] = (8,)

    def picture(self, image: int) -> Image | None:
        """Return a good image by number: from its file while that exists, else the stored picture, else None."""
        if image < len(self.names):
            file, part = _place(self.names[image])
            if file.is_file():
                try:
                    whole = imaging.at_depth(imaging.read_samples(file), self.sample_bits)
                    x, y, width, height = part or (0, 0, whole.shape[1], whole.shape[0])
                    if y + height <= whole.shape[0] and x + width <= whole.shape[1]:
                        return np.asarray(whole[y : y + height, x : x + width], dtype=np.uint8)
                except FlawlineError:
                    pass  # the file is no longer an image: the stored picture serves as well
        return self.stored_picture(image) if image in self.pictures else None

    def stored_picture(self, image: int) -> Image:
        """Return the stored picture of a good image by number."""
        return np.asarray(imaging.decode(self.pictures[image], Codec.JPEG), dtype=np.uint8)


def part_name(name: str, x: int, y: int, width: int, height: int) -> str:
    """Return the name of a part of an image, in pixels, as a media fragment (W3C Media Fragments URI 1.0)."""
    return f"{name}#xywh={x},{y},{width},{height}"


def _place(name: str) -> tuple[Path, list[int] | None]:
    """Return the file that a name stands for, and the part of it (x, y, width, height), None for all of it."""
    file, mark, part = name.rpartition("#xywh=")
    numbers = part.split(",")
    if mark and len(numbers) == 4 and all(number.isdecimal() for number in numbers):
        return Path(file), [int(number) for number in numbers]
    return Path(name), None


def gather(store: FeatureStore, model: Model, images: Sequence[Image]) -> Evidence:
    """Return the evidence for a model fitted on `images` (n, each read when asked for) with their features."""
    members = [np.flatnonzero(model.groups == k) for k in range(len(model.banks))]
    sources = [_sources(store, banks, of) for banks, of in zip(model.banks, members, strict=True)]
    look_sources = [
        [] if looks is None else [_sources(store, banks, of) for banks in looks.banks]
        for looks, of in zip(model.sub_looks, members, strict=True)
    ]
    names = list(getattr(images, "names", []))
    pictures = {}
    for layers in sources:
        numbers = np.concatenate([rows[:, 0] for rows in layers])
        used = np.bincount(numbers[numbers >= 0], minlength=1)
        for image in np.argsort(-used, kind="stable")[:_PICTURES].tolist():
            if used[image]:
                pictures[image] = _small(images[image])
    return Evidence(sources, look_sources, names, pictures, getattr(images, "sample_bits", (8,)))


def _small(image: Image) -> bytes:
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE_PX / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return imaging.encode(image, Codec.JPEG, quality=_QUALITY)


def _sources(store: FeatureStore, banks: Sequence[Vectors], members: NDArray[np.intp]) -> list[NDArray[np.int32]]:
    """Return where each row of the layers' banks is among the patches of some images by number.

    A row is known by a hash of its half-precision bytes.
    """
    result = []
    for layer, bank in enumerate(banks):
        rows = _hashed(bank.astype(np.float16))
        sources = np.full((len(rows), 2), -1, dtype=np.int32)
        order = np.argsort(rows, kind="stable")
        for image in members[::-1]:  # of equal patches the first one stays
            patches = _hashed(store.pool(layer, np.asarray([image])).astype(np.float16))
            place = np.minimum(np.searchsorted(rows[order], patches), len(rows) - 1)
            equal = np.flatnonzero(rows[order][place] == patches)
            sources[order[place[equal]]] = np.stack([np.full(len(equal), image), equal], axis=1)
        result.append(sources)
    return result


def _hashed(vectors: NDArray[np.float16]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each vector (n, d): equal vectors have equal hashes, others hardly ever."""
    words = np.ascontiguousarray(vectors).view(np.uint16)
    factors = np.random.default_rng(0).integers(1, 2**63, words.shape[1], dtype=np.uint64)
    return np.asarray((words * factors).sum(axis=1, dtype=np.uint64))
