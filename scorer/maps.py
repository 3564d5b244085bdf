"""From patch distances to one map in units that mean the same everywhere, and from the map to a score."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from scorer.search import loops

Map = NDArray[np.float32]

# Smoothing, in patches, and the share of patches that make the score: more of either drowns small defects.
_SIGMA = 0.5
_TOP = 0.003
_KERNEL = cv2.getGaussianKernel(5, _SIGMA, cv2.CV_32F)[:, 0]
# Distances below this are rounding; good parts that are all alike must not make the unit of a layer zero.
_FLOOR = 0.01
_NARROWEST = 0.2
# Keeps exp() of a part unlike anything seen finite.
_FARTHEST = 30.0


@dataclass(frozen=True)
class LayerUnit:
    """What a layer's distances are measured in: log(d / median) / width, both from good parts of one group.

    `weight` is the layer's part in the mean over layers, relative to the others'.
    """

    median: float
    width: float
    weight: float = 1.0

    @classmethod
    def of(cls, distances: Map, weight: float = 1.0) -> LayerUnit:
        """The unit of the cross-fitted patch distances of a group's good images: median and log(q99 / median)."""
        median, high = np.quantile(distances, [0.5, 0.99])
        median = max(float(median), _FLOOR)
        return cls(median, max(float(np.log(max(float(high), _FLOOR) / median)), _NARROWEST), weight)


def combined(distances: Sequence[Map], units: Sequence[LayerUnit]) -> Map:
    """One map (h, w) from the distance maps of all layers, on the finest layer's grid.

    Each layer is put into its own units, and the weighted mean is taken over layers: their errors are independent, so a
    patch that all find unusual stands out. The result is exponentiated (1 is an ordinary patch) and smoothed.
    """
    side = max(each.shape[0] for each in distances)
    total = np.zeros((side, side), dtype=np.float32)
    for each, unit in zip(distances, units, strict=True):
        factor = np.float32(unit.weight / unit.width)
        loops.add_layer(each, np.float32(_FLOOR), np.float32(unit.median), factor, total)
    ratios = np.empty_like(total)
    scale = np.float32(1 / sum(unit.weight for unit in units))
    loops.smoothed_exp(total, scale, np.float32(_FARTHEST), _KERNEL, ratios)
    return ratios


def log_score(ratios: Map) -> float:
    """The natural log of the mean of the map's highest 0.3 % (one patch at least)."""
    count = max(1, round(_TOP * ratios.size))
    return math.log(loops.mean_of_largest(ratios.ravel(), count))


def enlarged(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """A map (h, w) or maps (h, w, c) brought to (side, side) bilinearly, pixel centres aligned."""
    height, width = values.shape[:2]
    if height == width == side:
        return values
    down, across = _bilinear(height, side), _bilinear(width, side)
    if values.ndim == 2:
        return np.asarray(down @ values @ across.T, dtype=np.float32)
    channels = values.shape[2]
    rows = (down @ values.reshape(height, width * channels)).reshape(side, width, channels)
    return np.asarray(across @ rows, dtype=np.float32)


@functools.cache
def _bilinear(old: int, new: int) -> NDArray[np.float32]:
    """Interpolation weights (new, old) from `old` to `new` samples over the same length."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.minimum(place.astype(int), max(old - 2, 0))
    right = np.minimum(left + 1, old - 1)
    share = (place - left).astype(np.float32)
    weights = np.zeros((new, old), dtype=np.float32)
    np.add.at(weights, (np.arange(new), left), 1 - share)
    np.add.at(weights, (np.arange(new), right), share)
    return weights
