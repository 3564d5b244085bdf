"""From patch distances to one map in units that mean the same everywhere, and from the map to a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

# Smoothing in patches: more of it drowns small defects. On linebench wider smoothing changes pooled pixel AUROC by less
# than a point.
_SIGMA = 0.5
KERNEL = cv2.getGaussianKernel(5, _SIGMA, cv2.CV_32F)
# Smaller distances are rounding; good parts that are all alike must not make the unit of a layer zero. Judgements.
FLOOR = 0.01
_NARROWEST = 0.2
# OpenCV 5 takes no more channels in one image (OpenCV 4 took 512); many backbones have more.
_CHANNELS_AT_ONCE = 128
# Which quantile of a map tells light and lens from defects. On eleven products 10, 25 and 50 % find the same changes of
# light and lens within a few hundredths; frames of large defects alone pass the limit least often with 10 and 25 %.
QUIET_SHARE = 0.25
# Keeps exp() finite for a part that is unlike all good ones: far above any score, a judgement.
FARTHEST = 30.0


@dataclass(frozen=True)
class LayerUnit:
    """The unit of a layer's distances d, log(d / median) / width, from good parts of one group.

    `weight` is the layer's part in the mean over layers, relative to that of the others.
    """

    median: float
    width: float
    weight: float = 1.0

    @classmethod
    def of(cls, distances: Map, weight: float = 1.0) -> LayerUnit:
        """Return the unit of a group's cross-fitted distances: their median, and log(99 % quantile / median).

        NaN, which stands where an image has no patch, is passed over.
        """
        median, high = np.quantile(distances[np.isfinite(distances)], [0.5, 0.99])
        median = max(float(median), FLOOR)
        return cls(median, max(float(np.log(max(float(high), FLOOR) / median)), _NARROWEST), weight)


def combined(distances: Sequence[Map], units: Sequence[LayerUnit]) -> Map:
    """Return one map (h, w) of the distance maps of all layers, on the finest layer's grid; 1 is an ordinary patch.

    Each layer is put into its own unit, and the weighted mean is taken over the layers. Their errors are independent,
    so a patch that all layers find unusual stands out. The result is exponentiated and smoothed.
    """
    finest = max((layer.shape for layer in distances), key=math.prod)
    total = np.zeros(finest, dtype=np.float32)
    for layer, unit in zip(distances, units, strict=True):
        logs = np.log(np.maximum(layer, np.float32(FLOOR)) / np.float32(unit.median))
        total += enlarged(logs * np.float32(unit.weight / unit.width), *finest)
    mean = total / np.float32(sum(unit.weight for unit in units))
    ratios = np.exp(np.minimum(mean, np.float32(FARTHEST)))
    return np.asarray(cv2.sepFilter2D(ratios, -1, KERNEL, KERNEL, borderType=cv2.BORDER_REFLECT_101))


def log_score(ratios: Map, top_share: float) -> float:
    """Return the natural log of the mean of the map's highest patches, this share of all (at least one patch)."""
    count = max(1, round(top_share * ratios.size))
    highest = np.partition(ratios, -count, axis=None)[-count:]
    return math.log(highest.mean(dtype=np.float64))


def quiet_heat(heat: Map) -> float:
    """Return the heat that three of four cells of a map exceed: a defect, which fills few of them, does not change it.

    Cells that are not inspected are as cool as the coolest one, and do not count.
    """
    inspected = heat[heat > heat.min()]
    return float(np.quantile(inspected if inspected.size else heat, QUIET_SHARE))


def enlarged(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return a map (h, w) or maps (h, w, c) brought to (height, width) bilinearly, pixel centres aligned."""
    if values.shape[:2] == (height, width):
        return values
    if values.ndim == 2:
        return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    parts = [
        cv2.resize(values[:, :, start : start + _CHANNELS_AT_ONCE], (width, height), interpolation=cv2.INTER_LINEAR)
        for start in range(0, values.shape[2], _CHANNELS_AT_ONCE)
    ]
    # OpenCV drops the last axis of an image of one channel.
    return np.concatenate([part.reshape(height, width, -1) for part in parts], axis=2)
