"""Views of stored crops: the plain view for embedding, and the random views that learning compares.

Sizes, ranges and the order of the transforms are AnomalyNCD's (arXiv 2410.14379 and its code).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.messages import Codec

CROP_SHARE = 224 / 256
BRIGHTNESS = CONTRAST = (0.6, 1.4)
SATURATION = (0.6, 1.8)
SHARPNESS = (0.2, 2.0)
BLUR_KERNELS = tuple(range(9, 34, 4))
POSTERIZE_BITS = (5, 8)
# The share of views that each strong transform changes. The paper does not give it; a transform in every view would
# erase a fine crack. 0.2 is a judgement, not measured.
STRONG_CHANCE = 0.2
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_CROP_LIMIT_PX = 4096 * 4096


@dataclass(frozen=True, eq=False)
class Crop:
    """Pixels uint8 (h, w, 3) around a region and its mask bool (h, w)."""

    pixels: np.ndarray
    mask: np.ndarray


def decode(crop: bytes, mask: bytes) -> Crop:
    """Return a stored crop (JPEG) with its mask (PNG).

    Raises FlawlineError when one is missing or damaged, or when their sizes differ.
    """
    if not crop or not mask:
        raise FlawlineError("the store no longer has this crop")
    pixels = imaging.decode(crop, Codec.JPEG, pixel_limit=_CROP_LIMIT_PX)
    inside = np.asarray(imaging.decode_mask(mask, pixel_limit=_CROP_LIMIT_PX)).astype(bool)
    if inside.shape != pixels.shape[:2]:
        raise FlawlineError(f"a mask of {list(inside.shape)} px does not fit its crop of {list(pixels.shape[:2])} px")
    return Crop(pixels, inside)


def plain(crop: Crop, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre of a crop, uint8 (size, size, 3), and of its mask, float32 (size, size)."""
    pixels, mask = _enlarged(crop, size)
    offset = (pixels.shape[0] - size) // 2
    return _window(pixels, offset, offset, size), _window(mask, offset, offset, size)


def augmented(crop: Crop, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a random view of a crop, uint8 (size, size, 3), and of its mask, float32 (size, size).

    Crop position, flips and turns are the same for both.
    """
    pixels, mask = _enlarged(crop, size)
    spare = pixels.shape[0] - size
    top, left = (int(offset) for offset in rng.integers(spare + 1, size=2))
    pixels, mask = _window(pixels, top, left, size), _window(mask, top, left, size)
    for axis in (0, 1):
        if rng.random() < 0.5:
            pixels, mask = np.flip(pixels, axis), np.flip(mask, axis)
    turns = int(rng.integers(4))
    pixels, mask = np.rot90(pixels, turns), np.rot90(mask, turns)
    return _coloured(np.ascontiguousarray(pixels), rng), np.ascontiguousarray(mask)


def _enlarged(crop: Crop, size: int) -> tuple[np.ndarray, np.ndarray]:
    side = round(size / CROP_SHARE)
    shrinks = min(crop.pixels.shape[:2]) > side
    pixels = cv2.resize(crop.pixels, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    mask = cv2.resize(crop.mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    return pixels, mask


def _window(array: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    return array[top : top + size, left : left + size]


def _coloured(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    result = pixels.astype(np.float32)
    result = np.clip(result * rng.uniform(*BRIGHTNESS), 0, 255)
    mean = float((result @ _GREY).mean())
    result = np.clip(mean + (result - mean) * rng.uniform(*CONTRAST), 0, 255)
    grey = (result @ _GREY)[..., None]
    result = np.clip(grey + (result - grey) * rng.uniform(*SATURATION), 0, 255)
    strong: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
        lambda image: _sharpened(image, rng.uniform(*SHARPNESS)),
        lambda image: cv2.GaussianBlur(image, (kernel := int(rng.choice(BLUR_KERNELS)), kernel), 0),
        lambda image: _posterized(image, int(rng.integers(POSTERIZE_BITS[0], POSTERIZE_BITS[1] + 1))),
    )
    for change in strong:
        if rng.random() < STRONG_CHANCE:
            result = change(result)
    return np.clip(result, 0, 255).astype(np.uint8)


def _sharpened(image: np.ndarray, factor: float) -> np.ndarray:
    smooth = cv2.blur(image, (3, 3))
    return smooth + (image - smooth) * factor


def _posterized(image: np.ndarray, bits: int) -> np.ndarray:
    step = float(1 << (8 - bits))
    return np.floor(image / step) * step
