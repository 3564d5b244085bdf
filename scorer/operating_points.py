"""The table by which a person chooses an alarm rate: what each rate costs in good parts, and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer import calibration
from scorer.calibration import Floats, Threshold
from scorer.model import Model, cut_offs
from scorer.tiles import worst


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


@dataclass(frozen=True)
class DecisionRule:
    """What a model decides by, without what it scores with.

    `good` are the standardised scores of its good images in rising order, those of whole images for a model of tiles;
    `widths` (K,) divide the aligned scores of each group; `alarm_rate` is what `review`, the cut-off of alarms, aims
    at. `asked` is the alarm rate of the settings, "auto" where the images chose it. `at_fit` is the table that the fit
    printed, by rate, None for a model of before; `fit_defects` say of which defects.
    """

    version: str
    good: Floats
    widths: Floats
    review: Threshold
    alarm_rate: float
    asked: float | str
    at_fit: dict[float, float | None] | None = None
    fit_defects: dict[str, Any] | None = None

    def cut_off(self, rate: float) -> float:
        """Return the cut-off that a share `rate` of good parts exceeds: the model's own at the model's own rate."""
        return self.review.value if rate == self.review.rate else calibration.threshold(self.good, rate).value

    def largest_p_value(self, cut_off: float) -> float:
        """Return what no score above a cut-off has a higher p-value than."""
        return (1 + int((self.good > cut_off).sum())) / (len(self.good) + 1)


def calibration_scores(model: Model) -> Floats:
    """Return the standardised scores of a model's good images, or of the worst tile of each, in rising order."""
    scores = model.standardised if model.tiles is None else worst(model.standardised, model.tiles.sources)
    return np.asarray(np.sort(scores[np.isfinite(scores)]), dtype=np.float64)


def decision_rule(model: Model, version: str, report: dict[str, Any]) -> DecisionRule:
    """Return what a model decides by; `report` is that of its artefact."""
    good, review = calibration_scores(model), model.review
    if model.tiles is not None:  # whole images have cut-offs of their own
        review, _ = cut_offs(good, model.review.rate, model.reject.rate)
    kept = report.get("operation") or {}
    points = kept.get("operating_points")
    return DecisionRule(
        version=version,
        good=good,
        widths=model.widths,
        review=review,
        alarm_rate=model.alarm_rate,
        asked=(report.get("settings") or {}).get("alarm_rate", model.alarm_rate),
        at_fit=None if points is None else {point["rate"]: point["found"] for point in points},
        fit_defects=kept.get("defects"),
    )
