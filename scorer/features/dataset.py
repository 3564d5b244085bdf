"""Folders of images in the layout of the MVTec data sets (Bergmann et al. 2021).

`<product>/train/good/*`, `<product>/test/<good|defect>/*`, `<product>/ground_truth/<defect>/<stem>_mask.png`. Products
are for reports only; the model never sees them. A folder that is one product, or that holds images only, is fine too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError, UsageError
from flawline.imaging import ImageError, at_depth, decode, encode, image_size, read_samples
from flawline.messages import Codec

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One image of a data set: `label` is "good" or the kind of defect, `mask` the file of its ground truth, if any."""

    path: Path
    product: str
    label: str
    mask: Path | None = None

    @property
    def is_defect(self) -> bool:
        """Return whether the image shows a defect."""
        return self.label != GOOD


@dataclass(frozen=True)
class Delivery:
    """How cameras deliver their frames, so that a model sees files as it will see the same parts on the line.

    Good parts must be fitted through the codec of the line: JPEG artefacts that no good image had look like defects.
    """

    codec: Codec
    quality: int = 90

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pixels (height, width, 3) after encoding and decoding."""
        if self.codec is not Codec.JPEG:
            return pixels
        return np.asarray(decode(encode(pixels, self.codec, quality=self.quality), self.codec), dtype=np.uint8)


class LazyImages(Sequence[NDArray[np.uint8]]):
    """The images of some files, each read at each access, as a camera would deliver it.

    A JPEG file is taken as it is: a camera encodes an image once. `sample_bits` are the depths of the images, 8 to 16
    bits. An access raises FlawlineError for a file that cannot be read as an image, or has another depth.
    """

    def __init__(
        self, paths: Sequence[Path], delivery: Delivery | None = None, sample_bits: tuple[int, ...] = (8, 16)
    ) -> None:
        self.paths = list(paths)
        self.sample_bits = sample_bits
        self._delivery = delivery

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        try:
            pixels = np.asarray(at_depth(read_samples(path), self.sample_bits), dtype=np.uint8)
        except ImageError as error:
            raise error if str(error).startswith(str(path)) else ImageError(f"{path}: {error}") from error
        return pixels if self._delivery is None or _is_jpeg(path) else self._delivery(pixels)

    @property
    def depths_of_frames(self) -> tuple[int, ...]:
        """Return the depths that a model of these images takes: theirs, and 8 bits where a camera's codec made that."""
        return self.sample_bits if self._delivery is None else tuple(sorted({8, *self.sample_bits}))

    @property
    def names(self) -> list[str]:
        """Return the names of the images: their paths."""
        return [str(path) for path in self.paths]

    def sizes(self) -> list[tuple[int, int]]:
        """Return height and width of the images, by their headers; without those that cannot be read."""
        sizes = []
        for path in self.paths:
            with contextlib.suppress(FlawlineError):
                width, height = image_size(path)
                sizes.append((height, width))
        return sizes

    def identities(self) -> list[tuple[str, int, int]]:
        """Return what changes with the images: each file's path, bytes and time of change in ns; depths, delivery."""
        identities = []
        for path in self.paths:
            size, changed_ns = -1, -1  # for a missing file; the attempt to read it raises the error
            with contextlib.suppress(OSError):
                stat = path.stat()
                size, changed_ns = stat.st_size, stat.st_mtime_ns
            identities.append((str(path.resolve()), size, changed_ns))
        identities += [("sample bits", bits, 0) for bits in self.sample_bits]
        if self._delivery is not None:
            identities.append((str(self._delivery.codec), self._delivery.quality, 0))
        return identities


def _is_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\xff\xd8"


class Chosen(Sequence[NDArray[np.uint8]]):
    """Some of many images by number, each read at each access."""

    def __init__(self, images: Sequence[NDArray[np.uint8]], indices: Sequence[int]) -> None:
        self._images = images
        self._indices = list(indices)
        self.sample_bits: tuple[int, ...] = getattr(images, "sample_bits", (8,))
        names = getattr(images, "names", [])
        self.names: list[str] = [names[i] for i in self._indices] if names else []

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):
        return self._images[self._indices[index]]


def train_samples(root: Path) -> list[Sample]:
    """Return the good training images below `root`, by product and name.

    Raises UsageError for a folder that is missing, empty, or has a product without good images.
    """
    products = _products(root)
    if not products:
        loose = _images(root)
        if not loose:
            raise UsageError(f"{root}: holds no images: expected <product>/train/good/* or images")
        return [Sample(path, root.name, GOOD) for path in loose]
    samples = []
    for product in products:
        good = _images(product / "train" / GOOD)
        if not good:
            raise UsageError(f"{product}: product without good images: put some into {product / 'train' / GOOD}")
        samples += [Sample(path, product.name, GOOD) for path in good]
    return samples


def unread_folders(root: Path) -> list[tuple[Path, int]]:
    """Return the folders with images that lie where no good image is looked for, and how many images each holds.

    These are folders inside a folder of good images, and folders that are no product beside loose images or products.
    """
    products = _products(root)
    insides = [product / "train" / GOOD for product in products] or [root]
    beside = [] if root in products else [path for path in _folders(root) if products and path not in products]
    unread = [folder for inside in insides for folder in _folders(inside)] + beside
    counted = [(folder, sum(path.suffix.lower() in SUFFIXES for path in folder.rglob("*"))) for folder in unread]
    return [(folder, count) for folder, count in counted if count]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def good_images(place: Path) -> list[Path]:
    """Return the good images of a place: the file itself, the images in it, or the training images of its products.

    Raises UsageError when there are none.
    """
    if place.is_file():
        return [place]
    loose = _images(place)
    return loose or [sample.path for sample in train_samples(place)]


def test_samples(root: Path) -> list[Sample]:
    """Return the test images below `root`, by product, label and name, with their masks.

    Raises UsageError for a folder that is missing or has no test images.
    """
    samples = []
    for product in _products(root):
        folders = sorted(path for path in (product / "test").glob("*") if path.is_dir())
        for folder in folders:
            samples += [_test_sample(product, folder.name, path) for path in _images(folder)]
    if not samples:
        raise UsageError(f"{root}: holds no test images: expected <product>/test/<good|defect>/*")
    return samples


def read_mask(sample: Sample, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return the sample's defect mask at `size` (height, width), or None when its ground truth is not known.

    A good image has an empty mask. Pixels of the file that are not black are defective. A smaller mask has the pixels
    that are defective at least by half, or, when there are none, the most defective ones. Raises FlawlineError for a
    file that cannot be read.
    """
    import cv2

    if not sample.is_defect:
        return np.zeros(size, dtype=bool)
    if sample.mask is None:
        return None
    mask = read_samples(sample.mask, blends=True).max(axis=2) > 0
    if mask.shape == size:
        return mask
    area = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(area >= min(0.5, float(area.max())), dtype=bool) & bool(mask.any())


def check_masks(samples: Sequence[Sample]) -> None:
    """Raise FlawlineError for a ground truth that cannot be read, or whose aspect ratio is not that of its image.

    An evaluation reads the masks at its end, so it calls this at its beginning.
    """
    for sample in samples:
        if sample.mask is None:
            continue
        try:
            sizes = [image_size(sample.mask), image_size(sample.path)]
        except FlawlineError as error:
            if str(error).startswith(str(sample.mask)):
                raise
            continue  # the image cannot be read: the evaluation leaves it out, with its mask
        (mask_width, mask_height), (width, height) = sizes
        if abs(mask_width * height - width * mask_height) > max(width, height):
            raise FlawlineError(
                f"{sample.mask}: mask of {mask_width}x{mask_height} px does not fit its image of {width}x{height} px: "
                "draw it anew, or remove it"
            )


def _products(root: Path) -> list[Path]:
    """Return the product folders in `root`, or `root` where it is one. Raises UsageError where it is no folder."""
    if root.is_file():
        raise UsageError(f"{root}: is a file: give the folder that holds the products, or good images")
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder: give the folder that holds the products")
    if (root / "train").is_dir() or (root / "test").is_dir():
        return [root]
    return sorted(path for path in root.iterdir() if (path / "train").is_dir() or (path / "test").is_dir())


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise FlawlineError(f"{folder}: cannot be read: {error.strerror}") from error


def _test_sample(product: Path, label: str, path: Path) -> Sample:
    return Sample(path, product.name, label, _mask(product, label, path.stem) if label != GOOD else None)


def _mask(product: Path, label: str, stem: str) -> Path | None:
    folder = product / "ground_truth" / label
    candidates = [folder / f"{stem}_mask.png", folder / f"{stem}.png"]
    return next((path for path in candidates if path.is_file()), None)
