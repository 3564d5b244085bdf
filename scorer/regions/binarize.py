"""MEBin: from an anomaly map to a mask, by the threshold range over which the number of components stays the same.

After AnomalyNCD (Huang et al., arXiv:2410.14379, CVPR 2025). A real defect keeps its component count over a wide span
of thresholds, noise does not. The published form takes the range of thresholds from the whole set of images; here the
range is fixed by the model's calibration, which makes the mask a function of one image, whatever came before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from scorer.regions.components import component_counts

# Numbers of MEBin, after AnomalyNCD. No experiment of this project stands behind them.
LEVELS = 255
STEP = 4
MIN_INTERVAL = 4
EROSION_PX = 6
EROSION_MAP_SIDE_PX = 256  # the kernel was chosen for maps of this side

# 255, 251, ..., 3: thresholds in the 0..255 scale between lo and hi.
_THRESHOLDS = np.arange(LEVELS, 0, -STEP)


@dataclass(frozen=True)
class Binarized:
    """Mask bool (h, w) at the map's size, the number of defects in it, and its threshold in the map's units.

    An empty mask has count 0 and threshold infinity.
    """

    mask: np.ndarray
    count: int
    threshold: float
    eroded: bool


def erosion_kernel(height: int, width: int) -> int:
    """Return the side of the erosion kernel for a map: 6 px at 256 px, scaled with the map, at least 2."""
    return max(2, round(EROSION_PX * max(height, width) / EROSION_MAP_SIDE_PX))


def mebin(heatmap: np.ndarray, lo: float, hi: float, *, erosion: bool = True, kernel: int | None = None) -> Binarized:
    """Return the mask of one map with thresholds between `lo` (where noise ends) and `hi` (a strong defect's peak).

    `heatmap` is float (h, w). `kernel` is the erosion's side in map pixels, by default scaled with the map.
    Raises ValueError for a map that is no finite matrix, and for a range without extent.
    """
    values = _checked(heatmap)
    if not (np.isfinite(lo) and np.isfinite(hi) and lo < hi):
        raise ValueError(f"MEBin range {lo}..{hi} has no extent")
    # Flat erosion commutes with thresholding: eroding the grey map once equals eroding each of the 64 binary maps.
    eroded = _erode(values, kernel or erosion_kernel(*values.shape)) if erosion else values
    threshold, count = _stable_threshold((eroded - np.float32(lo)) * np.float32(LEVELS / (hi - lo)))
    if count == 0:
        return Binarized(np.zeros(values.shape, bool), 0, np.inf, erosion)
    cut = lo + threshold * (hi - lo) / LEVELS
    return Binarized(eroded > np.float32(cut), count, cut, erosion)


def defect_mask(heatmap: np.ndarray, lo: float, hi: float) -> Binarized:
    """Run MEBin on a map that is known to be anomalous: tried without erosion when erosion leaves nothing."""
    result = mebin(heatmap, lo, hi)
    return result if result.count else mebin(heatmap, lo, hi, erosion=False)


def mebin_set(maps: Sequence[np.ndarray]) -> list[Binarized]:
    """Run the published form, for parity: uint8 maps of one product, whose peaks set the range together.

    Thresholds are cut to whole grey values and the kernel is 6x6 at any size, as in the official code. (That code
    overflows under NumPy 2, where the difference of two uint8 peaks stays uint8.)
    """
    if any(heatmap.dtype != np.uint8 for heatmap in maps):
        raise ValueError("the set form of MEBin takes uint8 maps, scaled over the whole set")
    peaks = [int(heatmap.max()) for heatmap in maps]
    lo, hi = min(peaks), max(peaks)
    results = []
    for heatmap in maps:
        eroded = _erode(heatmap.astype(np.float32), EROSION_PX)
        threshold, count = _stable_threshold(LEVELS * (eroded - lo) / (hi - lo)) if lo < hi else (LEVELS, 0)
        cut = int(threshold * (hi - lo) / LEVELS + lo)
        mask = eroded > cut if count else np.zeros(heatmap.shape, bool)
        results.append(Binarized(mask, count, float(cut) if count else np.inf, True))
    return results


def _checked(heatmap: np.ndarray) -> np.ndarray:
    if heatmap.ndim != 2 or heatmap.size == 0:
        raise ValueError(f"anomaly map has shape {heatmap.shape} instead of (height, width)")
    values = np.ascontiguousarray(heatmap, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("anomaly map holds values that are not finite")
    return values


def _erode(values: np.ndarray, kernel: int) -> np.ndarray:
    return cv2.erode(values, np.ones((kernel, kernel), np.uint8))


def _stable_threshold(scaled: np.ndarray) -> tuple[int, int]:
    """Return threshold (0..255) and component count of the longest stable run; count 0 when there is none."""
    counts = component_counts(scaled, _THRESHOLDS)
    best: dict[int, tuple[int, int]] = {}  # count -> length and last index of its longest run
    start = 0
    for index in range(1, len(counts) + 1):
        if index < len(counts) and counts[index] == counts[start]:
            continue
        length, count = index - start, counts[start]
        # A later run of the same length wins: it is the one at lower thresholds.
        if count and length >= MIN_INTERVAL and length >= best.get(count, (0, 0))[0]:
            best[count] = length, index - 1
        start = index
    if not best:
        return LEVELS, 0
    count = max(best, key=lambda known: best[known][0])  # ties: the count met first, at higher thresholds
    return int(_THRESHOLDS[best[count][1]]), count
