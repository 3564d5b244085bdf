"""Thresholds from good parts only, at a stated alarm rate.

The scores are cross-fitted, and so exchangeable with those of good parts to come as long as the line stays the same.
Every threshold comes from one tail, fitted to the top tenth of them, so that a lower rate never has a lower threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RATES = (0.001, 0.005, 0.01, 0.02, 0.05)
"""The alarm rates of the table of operating points."""

AUTO_RATES = (0.005, 0.01, 0.02, 0.05)
"""What `alarm_rate = "auto"` chooses from."""

# The tail, its spread and what does not enter it were chosen among 14 combinations (spread: 95 % quantile, mean of the
# top 5, 10, 20 %; tail: generalised Pareto, exponential, exponential of all but the farthest; top tenth or fifth) on
# held-out good images of linebench, linebench2 and the simulated line; "cut-offs" in docs/scoring.md has the figures.
_TAIL = 0.1
_FEWEST_IN_TAIL = 10
# Share of the tail, its farthest scores, of which only their number counts: six of linebench's 1,251 good images lie so
# far out that they alone set its threshold for 0.5 %.
_FAR = 0.1
# The tail is never steeper than this, in spreads: where all good images are the same (a still scene), scores tie, and
# rounding would decide. Real products have 0.3 to 0.5.
_LEAST_SCALE = 0.1
# An image is far out when fewer images than this are expected to lie as far, among all of them. A judgement.
_EXPECTED_AS_FAR = 0.5
# Weight, in images, of the common width against a group's own. Measured, see "drawing spreads" in docs/scoring.md: a
# larger weight gains up to 0.6 points of pooled AUROC, and the worst product's alarm rate leaves its bound.
_WIDTH_PRIOR = 20
# Share of a group's scores, its highest, whose mean makes its spread.
_TOP = 0.1
# The least spread of a group's log scores: 5 % of the score. Good images of eighteen products spread by 0.2 to 0.6,
# those of a still scene by nothing, and then the light of another hour would be an alarm. A judgement.
_LEAST_WIDTH = 0.05


@dataclass(frozen=True)
class Tail:
    """An exponential tail: a share `share` of scores exceeds `start`, by amounts with the mean `scale`."""

    start: float
    share: float
    scale: float

    def quantile(self, rate: float) -> float:
        """Return the value that a share `rate` (at most `share`) of scores exceeds."""
        return self.start + self.scale * math.log(self.share / rate)

    def expected_above(self, scores: Floats) -> Floats:
        """Return the share of scores that is expected above each of `scores`, at most the tail's."""
        return np.asarray(self.share * np.exp(-np.maximum(scores - self.start, 0) / self.scale), dtype=np.float64)


@dataclass(frozen=True)
class Threshold:
    """A cut-off on standardised scores: the rate it aims at, how it was found, and a bound on the true rate.

    `method` is "exponential-tail", or "rank" for a rate beyond the tail; models of before have "conformal" and
    "generalised-pareto". `upper_bound`: with 95 % confidence the true rate of good parts above the cut-off is below it
    (Clopper and Pearson 1934, on the calibration scores).
    """

    value: float
    rate: float
    method: Literal["exponential-tail", "rank", "conformal", "generalised-pareto"]
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
    """Return the tail of sorted scores (n,).

    Its scale is the maximum-likelihood one of an exponential sample whose farthest values are only counted (type II
    censoring, Epstein and Sobel 1953): the sum of the others' excesses, plus the last of these for each farther one, by
    the number of the others.
    """
    n = len(scores)
    count = min(max(math.ceil(_TAIL * n), _FEWEST_IN_TAIL), n - 1)
    start = float(scores[n - count - 1])
    excesses = scores[n - count :] - start
    near = count - int(_FAR * count)
    scale = float(excesses[:near].sum() + (count - near) * excesses[near - 1]) / near
    return Tail(start, count / n, max(scale, _LEAST_SCALE))


def threshold(scores: Floats, rate: float) -> Threshold:
    """Return the cut-off that a share `rate` of good parts exceeds, from good scores (n,), sorted in rising order.

    A lower rate never has a lower cut-off.
    """
    tail = fit_tail(scores)
    in_tail = rate <= tail.share
    value = tail.quantile(rate) if in_tail else min(tail.start, float(np.quantile(scores, 1 - rate)))
    bound = upper_bound(int((scores > value).sum()), len(scores))
    return Threshold(value, rate, "exponential-tail" if in_tail else "rank", bound)


def far_out(scores: Floats) -> NDArray[np.bool_]:
    """Return which of the standardised scores (n,) lie farther out than the tail of the others lets expect of any."""
    tail = fit_tail(np.sort(scores))
    return np.asarray((scores > tail.start) & (len(scores) * tail.expected_above(scores) < _EXPECTED_AS_FAR))


def vouched_rate(n: int) -> float:
    """Return the lowest alarm rate of `AUTO_RATES` that n good images vouch for, the highest where they vouch for none.

    They vouch for a rate when, with none of them above a cut-off, the true rate is below twice that rate with 95 %
    confidence: 300 images for 0.5 %, 150 for 1 %, 75 for 2 %, 30 for 5 %.
    """
    return next((rate for rate in AUTO_RATES if vouch_for(n, rate)), AUTO_RATES[-1])


def vouch_for(n: int, rate: float) -> bool:
    """Return whether n good images vouch for an alarm rate, see `vouched_rate`."""
    return upper_bound(0, n) <= 2 * rate


def upper_bound(above: int, n: int) -> float:
    """Return what the true rate is below with 95 % confidence, when `above` of `n` scores are above a cut-off."""
    from scipy.special import betaincinv  # here: scoring needs no scipy, which takes a second to import

    return float(betaincinv(above + 1, n - above, 0.95)) if above < n else 1.0


def group_widths(scores: Floats, groups: NDArray[np.int64]) -> Floats:
    """Return how far good scores (n,) spread in each group (K,): 95 % quantile minus median, drawn to the common width.

    log w_k = share log spread_k + (1 - share) mean of all log spreads, share = n_k / (n_k + 20): the fewer images a
    group has, the nearer it is to the common width.
    """
    members = [scores[groups == k] for k in range(int(groups.max()) + 1)]
    spreads = np.asarray([max(float(np.quantile(of, 0.95) - np.median(of)), 1e-3) for of in members])
    return _drawn(np.log(spreads), np.bincount(groups), float(np.log(spreads).mean()))


def decision_widths(scores: Floats, groups: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return the widths (K,) that scores are divided by for a decision, and for each good score (n,) the others' width.

    The spread of a group is the mean of its top tenth minus its median, drawn to the common width as `group_widths`
    are. With its own score in the spread no image of a small group could lie far out, and a threshold from such scores
    would be too low for images to come; so each is divided by the spread of its group without it.
    """
    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count)
    members = [np.flatnonzero(groups == k) for k in range(count)]
    logs = np.asarray([math.log(_spread(np.sort(scores[of]))) for of in members])
    common = float(logs.mean())
    without = np.empty(len(scores))
    for k, of in enumerate(members):
        log_spreads = np.log(_spreads_without(scores[of]))
        without[of] = _drawn(log_spreads, np.full(len(of), sizes[k] - 1), common + (log_spreads - logs[k]) / count)
    return _drawn(logs, sizes, common), without


def _drawn(log_spreads: Floats, sizes: NDArray[np.int64], common: float | Floats) -> Floats:
    share = sizes / (sizes + _WIDTH_PRIOR)
    return np.asarray(np.exp(share * log_spreads + (1 - share) * common), dtype=np.float64)


def _spread(ordered: Floats) -> float:
    top = ordered[-math.ceil(_TOP * len(ordered)) :]
    return max(float(top.mean() - np.median(ordered)), _LEAST_WIDTH)


def _spreads_without(scores: Floats) -> Floats:
    """Return for each score (n,) the spread of the others."""
    n = len(scores)
    if n < 2:
        return np.full(n, _LEAST_WIDTH)
    order = np.argsort(scores, kind="stable")
    ordered, place = scores[order], np.arange(n)

    def others(rank: int) -> Floats:
        """Return what has this rank among the others, for each score left out in rising order."""
        return ordered[np.where(place <= rank, rank + 1, rank)]

    median = (others((n - 2) // 2) + others((n - 1) // 2)) / 2
    count = math.ceil(_TOP * (n - 1))
    top = ordered[-count:].sum()
    in_top = place >= n - count
    means = np.where(in_top, top - ordered + ordered[max(n - count - 1, 0)], top) / count
    spreads = np.empty(n)
    spreads[order] = np.maximum(means - median, _LEAST_WIDTH)
    return spreads
