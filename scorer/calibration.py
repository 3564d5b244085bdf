"""Thresholds from good parts only, at a stated alarm rate.

The scores come in cross-fitted: exchangeable, as far as the line is, with those of good parts to come. With enough of
them the threshold is conformal (a rank); with fewer it lies in the tail of a generalised Pareto distribution over the
top tenth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Share of the scores that the tail is fitted on, and the fewest it may be.
_TAIL = 0.1
_FEWEST_IN_TAIL = 10
# Weight, in scores, of the belief that the tail is exponential (shape 0): a shape from a dozen scores is noise.
_SHAPE_PRIOR = 20


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto tail: above `start`, which a share `share` exceeds, excesses have this scale and shape."""

    start: float
    share: float
    scale: float
    shape: float

    def quantile(self, rate: float) -> float:
        """The value that a share `rate` (at most `share`) exceeds."""
        ratio = rate / self.share
        if abs(self.shape) < 1e-9:
            return self.start - self.scale * math.log(ratio)
        return self.start + self.scale / self.shape * (ratio**-self.shape - 1)


@dataclass(frozen=True)
class Threshold:
    """A cut-off on standardised scores: the rate it aims at, how it was found, and what is sure of it.

    `upper_bound`: with 95 % confidence, the true rate of good parts above the cut-off is below this (Clopper-Pearson on
    the calibration scores).
    """

    value: float
    rate: float
    method: Literal["conformal", "generalised-pareto"]
    upper_bound: float


def p_values(scores: Floats, calibration: Floats) -> Floats:
    """Conformal p-values (1 + #{calibration >= score}) / (n + 1); `calibration` (n,) is sorted in rising order.

    Valid marginally: a good part's p-value is at most alpha with a probability of at most alpha (Bates et al. 2023).
    """
    n = len(calibration)
    at_least = n - np.searchsorted(calibration, scores, side="left")
    return (1 + at_least) / (n + 1)


def fit_tail(scores: Floats) -> Tail:
    """The tail of sorted scores (n,) by probability-weighted moments (Hosking and Wallis 1987), its shape drawn to 0.

    The shape is held within [-0.5, 0.5], where the estimate has a finite variance.
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
    """The cut-off that a share `rate` of good parts exceeds; `scores` (n,) are good parts' own, sorted in rising order.

    Conformal when n >= 1 / rate: `score > value` exactly when its conformal p-value is at most `rate`.
    """
    n = len(scores)
    if n >= 1 / rate:
        allowed = math.floor(rate * (n + 1) + 1e-9) - 1  # calibration scores that an alarm may leave above itself
        value, method = float(scores[n - 1 - max(allowed, 0)]), "conformal"
    else:
        value, method = fit_tail(scores).quantile(rate), "generalised-pareto"
    bound = upper_bound(int((scores > value).sum()), n)
    return Threshold(value, rate, "conformal" if method == "conformal" else "generalised-pareto", bound)


def upper_bound(above: int, n: int) -> float:
    """What the true rate is below with 95 % confidence, `above` of `n` having been above (Clopper-Pearson)."""
    from scipy.special import betaincinv  # here: scoring needs no scipy, which takes a second to import

    return float(betaincinv(above + 1, n - above, 0.95)) if above < n else 1.0


def group_widths(scores: Floats, groups: NDArray[np.int64]) -> Floats:
    """How far good scores spread in each group (95 % quantile minus median), small groups drawn to the common width.

    log w_k = lambda log own + (1 - lambda) mean of logs, lambda = n_k / (n_k + 20).
    """
    count = int(groups.max()) + 1
    own = np.empty(count)
    sizes = np.empty(count)
    for k in range(count):
        values = scores[groups == k]
        own[k] = max(float(np.quantile(values, 0.95) - np.median(values)), 1e-3)
        sizes[k] = len(values)
    weight = sizes / (sizes + 20)
    return np.asarray(np.exp(weight * np.log(own) + (1 - weight) * np.log(own).mean()), dtype=np.float64)
