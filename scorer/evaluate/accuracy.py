"""How well scores tell defective images, and heat maps defective pixels, from good ones: AUROC, AP, AUPRO."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

Floats = NDArray[np.float64]

# Bins of pixel scores between the lowest and the highest. The test against the exact figures, on random maps, finds a
# difference below 1e-3; more bins would take more memory. A judgement.
_BINS = 1 << 15
# AUPRO is the area up to this false-positive rate, normalised (Bergmann et al. 2021).
_PRO_LIMIT = 0.3


def image_accuracy(is_defect: NDArray[np.bool_], scores: Floats) -> dict[str, float | None]:
    """Return image AUROC and average precision of scores (n,); None where good or defective images are missing."""
    if is_defect.all() or not is_defect.any():
        return {"image_auroc": None, "image_ap": None}
    return {
        "image_auroc": float(roc_auc_score(is_defect, scores)),
        "image_ap": float(average_precision_score(is_defect, scores)),
    }


@dataclass
class PixelHistogram:
    """Pixel scores in bins from `low` to `high`, which bound all scores: as little memory for many images as for one.

    `inside` and `outside` (bins,) count the pixels in and out of defects. `regions` (bins,) adds up the shares
    of each defect's pixels, over `region_count` connected defects. The sum of the products' histograms is the pooled
    histogram.
    """

    low: float
    high: float
    inside: Floats
    outside: Floats
    regions: Floats
    region_count: int = 0

    @classmethod
    def empty(cls, low: float, high: float) -> PixelHistogram:
        """Return a histogram without pixels."""
        return cls(low, high, np.zeros(_BINS), np.zeros(_BINS), np.zeros(_BINS))

    def add(self, heatmap: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Add the heat map (h, w) of an image with its defect mask (h, w)."""
        span = max(self.high - self.low, 1e-12)
        bins = np.clip((heatmap - self.low) * ((_BINS - 1) / span), 0, _BINS - 1).astype(np.int32)
        self.outside += np.bincount(bins[~mask], minlength=_BINS)
        if not mask.any():
            return
        self.inside += np.bincount(bins[mask], minlength=_BINS)
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        region_of_pixel = labels[mask]
        weights = 1 / np.bincount(region_of_pixel, minlength=count + 1)[region_of_pixel]
        self.regions += np.bincount(bins[mask], weights=weights, minlength=_BINS)
        self.region_count += count

    def __iadd__(self, other: PixelHistogram) -> PixelHistogram:
        self.inside += other.inside
        self.outside += other.outside
        self.regions += other.regions
        self.region_count += other.region_count
        return self

    def accuracy(self) -> dict[str, float | None]:
        """Return pixel AUROC and AUPRO (Bergmann et al. 2021); None where defective or good pixels are missing."""
        if not self.inside.sum() or not self.outside.sum():
            return {"pixel_auroc": None, "aupro": None}
        false_rate = _rising(self.outside / self.outside.sum())
        true_rate = _rising(self.inside / self.inside.sum())
        overlap = _rising(self.regions / self.region_count)
        return {
            "pixel_auroc": float(np.trapezoid(true_rate, false_rate)),
            "aupro": _area_up_to(false_rate, overlap, _PRO_LIMIT),
        }


def _rising(shares: Floats) -> Floats:
    """Return the share at or above the lower edge of each bin, from the highest bin down; the first value is 0."""
    return np.concatenate([[0.0], np.cumsum(shares[::-1])])


def _area_up_to(x: Floats, y: Floats, limit: float) -> float:
    """Return the area under y(x) for x in [0, limit], divided by limit."""
    inside = x <= limit
    xs = np.append(x[inside], limit)
    ys = np.append(y[inside], np.interp(limit, x, y))
    return float(np.trapezoid(ys, xs) / limit)
