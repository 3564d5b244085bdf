"""A closer look at a region: the backbone sees the place again, enlarged, and what stands out there is described.

The heat map's patches are coarse: a region's weights on them take in much that is good. Enlarged, the place has many
more patches, and those unlike their own surroundings are the defect; no bank is needed to see that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from scorer.vectors import unit

Closer = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Feature maps (h, w, c), from fine to deep, of a part of an image, uint8 (H, W, 3)."""

# Closer looks as they are here are worth 4 to 11 points of NMI on linebench (docs/discovery.md). That stands for all of
# these numbers together; each alone is a judgement.
SHARES = (0.25, 0.4)
"""Sides of the looks as shares of what the detector sees at once: a defect's scale is not known."""
SIDE_MIN_PX = 16
HEAT_TEMPERATURE = 0.3  # natural-log units of the map
CONTRAST_TEMPERATURE = 0.05  # distance between unit vectors
WEIGHTS_SIDE = 32


def describe(image: np.ndarray, heat: np.ndarray, closer: Closer, field_px: int | None = None) -> np.ndarray:
    """Return a unit vector float32 (D): what stands out around an image's hottest place, mean over two looks.

    `heat` float (h, w) covers the whole image, uint8 (H, W, 3), in natural-log units. The looks' sides are shares of
    `field_px`, by default of the image's long side.
    """
    whole = field_px or max(image.shape[:2])
    looks = [_look(image, heat, max(SIDE_MIN_PX, round(share * whole)), closer) for share in SHARES]
    return unit(np.mean(looks, axis=0))


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


def _look(image: np.ndarray, heat: np.ndarray, side: int, closer: Closer) -> np.ndarray:
    height, width = image.shape[:2]
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    y0, y1 = _span((row + 0.5) / heat.shape[0], side, height)
    x0, x1 = _span((column + 0.5) / heat.shape[1], side, width)
    maps = list(closer(np.ascontiguousarray(image[y0:y1, x0:x1])))
    rows = _cells(y0, y1, height, heat.shape[0])
    columns = _cells(x0, x1, width, heat.shape[1])
    weights = weights_of(maps[min(1, len(maps) - 1)], heat[rows, columns])
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
