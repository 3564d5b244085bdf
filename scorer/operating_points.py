"""The table by which a person chooses an alarm rate: what each rate costs in good parts, and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer import calibration
from scorer.calibration import Floats


@dataclass(frozen=True)
class OperatingPoint:
    """One alarm rate: its cut-off, what the good images say of it, and its recall.

    `above` of `images` good images have cross-fitted scores above the cut-off, and with 95 % confidence the true rate
    is below `upper_bound`. `vouched` says whether the images vouch for the rate (`calibration.vouched_rate`). `recall`
    is the share of the defects above the cut-off, None without defects.
    """

    rate: float
    threshold: float
    above: int
    images: int
    upper_bound: float
    vouched: bool
    recall: float | None

    def report(self) -> dict[str, Any]:
        """Return the point as `--json` prints it, where the recall is called `found`."""
        values = asdict(self)
        return values | {"found": values.pop("recall")}


def operating_points(good: Floats, rates: Sequence[float], defects: Floats) -> list[OperatingPoint]:
    """Return the points of some alarm rates, from the sorted standardised scores of good images and of defects.

    A defect that is of no known product counts as infinite.
    """
    points = []
    for rate in rates:
        cut = calibration.threshold(good, rate)
        points.append(
            OperatingPoint(
                rate=rate,
                threshold=cut.value,
                above=int((good > cut.value).sum()),
                images=len(good),
                upper_bound=cut.upper_bound,
                vouched=calibration.vouch_for(len(good), rate),
                recall=share_above(defects, cut.value),
            )
        )
    return points


def share_above(scores: Floats, cut_off: float) -> float | None:
    """Return the share of scores above a cut-off, None of no scores."""
    return float(np.mean(scores > cut_off)) if len(scores) else None


def standardised(aligned: Sequence[float], groups: Sequence[int], unknown: Sequence[bool], widths: Floats) -> Floats:
    """Return scores as cut-offs compare them, from aligned scores and groups; infinite where the product is unknown."""
    values: NDArray[np.float64] = np.asarray(aligned, dtype=np.float64) / widths[np.asarray(groups, dtype=np.int64)]
    return np.where(np.asarray(unknown, dtype=bool), np.inf, values)
