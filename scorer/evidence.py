"""What a model keeps besides what scoring needs: where each bank row came from, and small pictures of good images.

`flawline explain` shows a region beside the good patch that is nearest to it; `flawline extend` has its audit on the
pictures. Both are bounded per group, and scoring never loads them.
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
from scorer.features.backbone import Image
from scorer.features.store import FeatureStore
from scorer.vectors import Vectors

# Pictures of each group, their longest side, and their JPEG quality: about 150 kB a group.
_PICTURES = 12
_SIDE_PX = 256
_QUALITY = 85


@dataclass(frozen=True)
class Evidence:
    """`sources[k][l]` int32 (m, 2): image and patch that each row of a bank is, -1 where that is not known.

    Images are numbered as the model's good images are; `names` (n,) say which files they were, as far as they were
    files, and `pictures` hold some of them as JPEG by number.
    """

    sources: list[list[NDArray[np.int32]]]
    names: list[str]
    pictures: dict[int, bytes] = field(default_factory=dict)

    def picture(self, image: int) -> Image | None:
        """Good image number `image`, whole: its file where that still lies in its place, else the kept picture."""
        if image < len(self.names):
            file, part = _place(self.names[image])
            if file.is_file():
                try:
                    whole = imaging.read_image(file)
                    x, y, width, height = part or (0, 0, whole.shape[1], whole.shape[0])
                    if y + height <= whole.shape[0] and x + width <= whole.shape[1]:
                        return np.asarray(whole[y : y + height, x : x + width], dtype=np.uint8)
                except FlawlineError:
                    pass  # the file is no image any more; what was kept serves as well
        return imaging.decode(self.pictures[image], Codec.JPEG) if image in self.pictures else None


def part_name(name: str, x: int, y: int, width: int, height: int) -> str:
    """The name of a part of an image, in pixels, as a media fragment (W3C Media Fragments URI 1.0)."""
    return f"{name}#xywh={x},{y},{width},{height}"


def _place(name: str) -> tuple[Path, list[int] | None]:
    """The file that a name stands for, and which part of it (x, y, width, height), None for all of it."""
    file, mark, part = name.rpartition("#xywh=")
    numbers = part.split(",")
    if mark and len(numbers) == 4 and all(each.isdecimal() for each in numbers):
        return Path(file), [int(each) for each in numbers]
    return Path(name), None


def gather(
    store: FeatureStore, banks: Sequence[Sequence[Vectors]], groups: NDArray[np.int64], images: Sequence[Image]
) -> Evidence:
    """The evidence for a model fitted on `images` (n of them, read when asked for), whose features `store` holds."""
    sources = _sources(store, banks, groups)
    names = list(getattr(images, "names", []))
    pictures = {}
    for each in sources:
        numbers = np.concatenate([rows[:, 0] for rows in each])
        used = np.bincount(numbers[numbers >= 0], minlength=1)
        for image in np.argsort(-used, kind="stable")[:_PICTURES].tolist():
            if used[image]:
                pictures[image] = _small(images[image])
    return Evidence(sources, names, pictures)


def _small(image: Image) -> bytes:
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE_PX / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return imaging.encode(image, Codec.JPEG, quality=_QUALITY)


def _sources(
    store: FeatureStore, banks: Sequence[Sequence[Vectors]], groups: NDArray[np.int64]
) -> list[list[NDArray[np.int32]]]:
    """Where each bank row is found among the patches of its group's images, by a hash of its half-precision bytes."""
    result: list[list[NDArray[np.int32]]] = []
    hashes = [[_hashed(bank.astype(np.float16)) for bank in each] for each in banks]
    for k, each in enumerate(hashes):
        result.append([np.full((len(rows), 2), -1, dtype=np.int32) for rows in each])
        for layer, rows in enumerate(each):
            order = np.argsort(rows, kind="stable")
            for image in np.flatnonzero(groups == k)[::-1]:  # the first of several equal ones stays
                patches = _hashed(np.asarray(store.patches[layer][np.asarray([image])][0], dtype=np.float16))
                place = np.minimum(np.searchsorted(rows[order], patches), len(rows) - 1)
                found = np.flatnonzero(rows[order][place] == patches)
                result[k][layer][order[place[found]]] = np.stack([np.full(len(found), image), found], axis=1)
    return result


def _hashed(vectors: NDArray[np.float16]) -> NDArray[np.uint64]:
    """A 64-bit hash of each vector (n, d): equal vectors have equal ones, others hardly ever."""
    words = np.ascontiguousarray(vectors).view(np.uint16)
    factors = np.random.default_rng(0).integers(1, 2**63, words.shape[1], dtype=np.uint64)
    return np.asarray((words * factors).sum(axis=1, dtype=np.uint64))
