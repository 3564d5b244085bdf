"""A closer look at a region: the backbone sees the place again, enlarged, and what stands out there is described.

The heat map's patches are coarse: a region's weights on them take in much that is good. Enlarged, the place has many
more patches, and those unlike their own surroundings are the defect; no bank is needed to see that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from scorer.vectors import unit

Closer = Callable[[Sequence[np.ndarray]], Iterable[Sequence[np.ndarray]]]
"""Takes parts of an image, uint8 (H, W, 3); gives the feature maps (h, w, c) of each, from fine to deep."""

# Closer looks as they are here are worth 4 to 11 points of NMI on linebench (docs/discovery.md). That stands for all of
# these numbers together; each alone is a judgement.
SHARES = (0.25, 0.4)
"""Sides of the looks as shares of what the detector sees at once: a defect's scale is not known."""
SIDE_MIN_PX = 16
HEAT_TEMPERATURE = 0.3  # natural-log units of the map
CONTRAST_TEMPERATURE = 0.05  # distance between unit vectors
WEIGHTS_SIDE = 32


@dataclass(frozen=True)
class _Look:
    """A part of an image, uint8 (H, W, 3), and the heat (h, w) there."""

    part: np.ndarray
    heat: np.ndarray


def describe(
    image: np.ndarray, heats: Sequence[np.ndarray], closer: Closer, field_px: int | None = None
) -> list[np.ndarray]:
    """Return a unit vector float32 (D) for each heat map: what stands out at its hottest place, mean over two looks.

    Each of `heats`, float (h, w), covers the whole image, uint8 (H, W, 3), in natural-log units. The looks' sides are
    shares of `field_px`, by default of the image's long side. `closer` has the parts of all looks at once.
    """
    whole = field_px or max(image.shape[:2])
    sides = [max(SIDE_MIN_PX, round(share * whole)) for share in SHARES]
    looks = [_look(image, heat, side) for heat in heats for side in sides]
    vectors = [
        _described(maps, look.heat) for maps, look in zip(closer([look.part for look in looks]), looks, strict=True)
    ]
    return [unit(np.mean(vectors[i : i + len(sides)], axis=0)) for i in range(0, len(vectors), len(sides))]


def rooted(vector: np.ndarray) -> np.ndarray:
    """Return signed square roots, to unit length (Perronnin et al. 2010): a few strong channels drown no others."""
    return unit(np.sign(vector) * np.sqrt(np.abs(vector)))


def weights_of(features: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return how much of each place of a look is defect, float32 (32, 32), at most 1: hot and unlike its surroundings.

    `features` (h, w, c), `heat` (h', w') of the same place. The surroundings are the cooler half; a patch's contrast is
    its distance to the nearest of their unit vectors.
    """
    height, width, channels = features.shape
    flat = features.reshape(-1, channels).astype(np.float32)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    warmth = _resized(heat, height, width).reshape(-1)
    around = flat[warmth <= np.median(warmth)]
    contrast = np.sqrt(np.maximum(2 - 2 * (flat @ around.T).max(axis=1), 0)).reshape(height, width)
    contrast = cv2.resize(contrast, (WEIGHTS_SIDE, WEIGHTS_SIDE), interpolation=cv2.INTER_LINEAR)
    fine = _resized(heat, WEIGHTS_SIDE, WEIGHTS_SIDE)
    logits = (fine - fine.max()) / HEAT_TEMPERATURE + (contrast - contrast.max()) / CONTRAST_TEMPERATURE
    return np.asarray(np.exp(logits - logits.max()), np.float32)


def _look(image: np.ndarray, heat: np.ndarray, side: int) -> _Look:
    height, width = image.shape[:2]
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    y0, y1 = _span((row + 0.5) / heat.shape[0], side, height)
    x0, x1 = _span((column + 0.5) / heat.shape[1], side, width)
    rows = _cells(y0, y1, height, heat.shape[0])
    columns = _cells(x0, x1, width, heat.shape[1])
    return _Look(np.ascontiguousarray(image[y0:y1, x0:x1]), heat[rows, columns])


def _described(maps: Sequence[np.ndarray], heat: np.ndarray) -> np.ndarray:
    """Return what stands out in a look, by its feature maps and its heat."""
    weights = weights_of(maps[min(1, len(maps) - 1)], heat)
    return rooted(np.concatenate([_pooled(features, weights) for features in maps]))


def _pooled(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    height, width, channels = features.shape
    shares = _resized(weights, height, width).reshape(-1)
    return unit(shares @ features.reshape(-1, channels).astype(np.float32))


def _resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinks = height <= values.shape[0] and width <= values.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(values, np.float32), (width, height), interpolation=how)


def _span(middle: float, side: int, length: int) -> tuple[int, int]:
    """Return start and end of `side` pixels around a place (0..1), shifted to stay inside the image."""
    side = min(side, length)
    start = min(max(round(middle * length - side / 2), 0), length - side)
    return start, start + side


def _cells(start: int, end: int, length: int, cells: int) -> slice:
    """Return the cells of a grid that are under pixels `start` to `end`, one at least."""
    first = min(int(start * cells / length), cells - 1)
    return slice(first, max(first + 1, round(end * cells / length)))
