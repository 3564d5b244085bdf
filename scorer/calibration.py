"""Thresholds from good parts only, at a stated alarm rate.

The scores are cross-fitted, and so exchangeable with those of good parts to come as long as the line stays the same.
With enough scores the threshold is conformal (a rank); with fewer it is a quantile of a generalised Pareto distribution
fitted to the top tenth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Share of the scores that the tail is fitted on, and the least number. Judgements: the tests check that 150 scores give
# thresholds near the target on four distributions.
_TAIL = 0.1
_FEWEST_IN_TAIL = 10
# Weight, in scores, of the belief that the tail is exponential (shape 0): a shape from a dozen scores is noise. A
# judgement.
_SHAPE_PRIOR = 20
# Weight, in images, of the common width against a group's own. Measured, see "drawing spreads" in docs/scoring.md: a
# larger weight gains up to 0.6 points of pooled AUROC, and the worst product's alarm rate leaves its bound.
_WIDTH_PRIOR = 20


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto tail: a share `share` of scores exceeds `start`, by amounts of this scale and shape."""

    start: float
    share: float
    scale: float
    shape: float

    def quantile(self, rate: float) -> float:
        """Return the value that a share `rate` (at most `share`) of scores exceeds."""
        ratio = rate / self.share
        if abs(self.shape) < 1e-9:
            return self.start - self.scale * math.log(ratio)
        return self.start + self.scale / self.shape * (ratio**-self.shape - 1)


@dataclass(frozen=True)
class Threshold:
    """A cut-off on standardised scores: the rate it aims at, how it was found, and a bound on the true rate.

    `upper_bound`: with 95 % confidence the true rate of good parts above the cut-off is below it (Clopper and Pearson
    1934, on the calibration scores).
    """

    value: float
    rate: float
    method: Literal["conformal", "generalised-pareto"]
    upper_bound: float


def p_values(scores: Floats, calibration: Floats) -> Floats:
    """Return conformal p-values (1 + #{calibration >= score}) / (n + 1); `calibration` (n,) is sorted in rising order.

    They are valid marginally: the p-value of a good part is at most alpha with a probability of at most alpha (Bates et
    al. 2023).
    """
    n = len(calibration)
    at_least = n - np.searchsorted(calibration, scores, side="left")
    return (1 + at_least) / (n + 1)


def fit_tail(scores: Floats) -> Tail:
    """Return the tail of sorted scores (n,), by probability-weighted moments (Hosking and Wallis 1987).

    The shape is drawn towards 0 and held within [-0.5, 0.5], where the estimate has a finite variance.
    """
    n = len(scores)
    count = min(max(math.ceil(_TAIL * n), _FEWEST_IN_TAIL), n - 1)
    start = float(scores[n - count - 1])
    excesses = scores[n - count :] - start
    mean = float(excesses.mean())
    if mean <= 1e-12:
        return Tail(start, count / n, 1e-12, 0.0)
    weights = 1 - (np.arange(1, count + 1) - 0.35) / count
    second = float((weights * excesses).mean())
    # mean = scale / (1 - shape), second = scale / (2 (2 - shape))
    shape = 2 - mean / max(mean - 2 * second, 1e-12)
    shape = float(np.clip(shape * count / (count + _SHAPE_PRIOR), -0.5, 0.5))
    return Tail(start, count / n, mean * (1 - shape), shape)


def threshold(scores: Floats, rate: float) -> Threshold:
    """Return the cut-off that a share `rate` of good parts exceeds, from good scores (n,), sorted in rising order.

    It is conformal when n >= 1 / rate: a score is above it exactly when its conformal p-value is at most `rate`.
    """
    n = len(scores)
    if n >= 1 / rate:
        allowed = math.floor(rate * (n + 1) + 1e-9) - 1  # calibration scores that may lie above an alarm
        value, method = float(scores[n - 1 - max(allowed, 0)]), "conformal"
    else:
        value, method = fit_tail(scores).quantile(rate), "generalised-pareto"
    bound = upper_bound(int((scores > value).sum()), n)
    return Threshold(value, rate, "conformal" if method == "conformal" else "generalised-pareto", bound)


def upper_bound(above: int, n: int) -> float:
    """Return what the true rate is below with 95 % confidence, when `above` of `n` scores are above a cut-off."""
    from scipy.special import betaincinv  # here: scoring needs no scipy, which takes a second to import

    return float(betaincinv(above + 1, n - above, 0.95)) if above < n else 1.0


def group_widths(scores: Floats, groups: NDArray[np.int64]) -> Floats:
    """Return how far good scores (n,) spread in each group (K,): 95 % quantile minus median, drawn to the common width.

    log w_k = share log spread_k + (1 - share) mean of all log spreads, share = n_k / (n_k + 20): the fewer images a
    group has, the nearer it is to the common width.
    """
    count = int(groups.max()) + 1
    spreads, sizes = np.empty(count), np.empty(count)
    for k in range(count):
        members = scores[groups == k]
        spreads[k] = max(float(np.quantile(members, 0.95) - np.median(members)), 1e-3)
        sizes[k] = len(members)
    share = sizes / (sizes + _WIDTH_PRIOR)
    return np.asarray(np.exp(share * np.log(spreads) + (1 - share) * np.log(spreads).mean()), dtype=np.float64)
