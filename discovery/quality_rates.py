"""Overkill and escapes, from judgements of a part of all frames: estimates with 95 % intervals. Pure.

All frames are parted into strata: those that were not accepted by decision, the near misses, the other accepted frames.
Of each stratum some frames have been judged. In the stratum of the other accepted frames they were drawn with different
probabilities, so each stands for 1 / probability frames.

1. The share of real defects of a stratum is the weighted mean of its judgements (Hajek 1971). Its interval is that of
   Clopper and Pearson (1934) with the effective number of judgements, (sum w)^2 / sum w^2 (Kish 1965), as Korn and
   Graubard (1998) propose for rare events; with equal weights it is the exact one.
2. A sum over strata, such as all false alarms, has the interval that the strata's limits make by the method of variance
   estimates recovery (MOVER, Zou and Donner 2008).
3. A rate of two sums has the limits that follow from theirs at 97.5 % each, which is on the safe side (Bonferroni).

Judgements *unsure* are left out. A stratum without any counts in its interval with all that is possible, and in the
estimate as the judged frames of its side (alarms, or accepted frames).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95
HALVED = 1 - (1 - CONFIDENCE) / 2
"""The confidence of each of two intervals that hold together with CONFIDENCE."""

Weights = tuple[tuple[float, int], ...]
"""Weights of judgements, each with the number of judgements that have it."""


@dataclass(frozen=True)
class Judged:
    """A stratum: how many frames it has, and the weights of those that were judged real and false."""

    stratum: str
    is_alarm: bool
    frames: int
    real: Weights = ()
    false: Weights = ()
    unsure: int = 0

    @property
    def judgements(self) -> int:
        """How many frames of the stratum were judged real or false."""
        return sum(count for _, count in (*self.real, *self.false))


@dataclass(frozen=True)
class Estimate:
    """A number with the limits of its interval; `value` is None when nothing was judged."""

    value: float | None
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of `factor` times the number."""
        value = None if self.value is None else factor * self.value
        return Estimate(value, factor * self.low, factor * self.high)


@dataclass(frozen=True)
class Rates:
    """What the judgements tell of a line.

    `overkill`: share of good parts that were not accepted. `escape`: share of defective parts that were accepted.
    `false_alarm_share`: share of the frames not accepted that show no defect. `escapes_per_accepted`: share of the
    accepted frames that show a defect. `false_alarms`, `caught` and `escapes` are numbers of frames.
    """

    overkill: Estimate
    escape: Estimate
    false_alarm_share: Estimate
    escapes_per_accepted: Estimate
    false_alarms: Estimate
    caught: Estimate
    escapes: Estimate


def share_of_real(judged: Judged, confidence: float = CONFIDENCE) -> Estimate:
    """Return the share of real defects of a stratum."""
    both = (*judged.real, *judged.false)
    total = sum(weight * count for weight, count in both)
    if not total:
        return Estimate(None, 0.0, 1.0)
    share = sum(weight * count for weight, count in judged.real) / total
    size = total**2 / sum(weight**2 * count for weight, count in both)
    return Estimate(share, *_clopper_pearson(share * size, size, judged, confidence))


def _clopper_pearson(real: float, size: float, judged: Judged, confidence: float) -> tuple[float, float]:
    """Return the limits for `real` of `size` judgements, which need not be whole numbers."""
    from scipy.special import betaincinv  # here: it takes a second to import

    tail = (1 - confidence) / 2
    low = float(betaincinv(real, size - real + 1, tail)) if judged.real else 0.0
    high = float(betaincinv(real + 1, size - real, 1 - tail)) if judged.false else 1.0
    return low, high


def total_of_real(strata: Sequence[Judged], confidence: float = CONFIDENCE) -> Estimate:
    """Return how many frames of some strata show a real defect."""
    frames = [judged.frames for judged in strata]
    shares = [share_of_real(judged, confidence) for judged in strata]
    pooled = _pooled(strata)
    if pooled is None:
        return Estimate(None, 0.0, float(sum(frames)))
    values = [pooled if share.value is None else share.value for share in shares]
    total = sum(count * value for count, value in zip(frames, values, strict=True))
    below = math.hypot(*(n * (value - share.low) for n, value, share in zip(frames, values, shares, strict=True)))
    above = math.hypot(*(n * (share.high - value) for n, value, share in zip(frames, values, shares, strict=True)))
    return Estimate(total, max(total - below, 0.0), min(total + above, float(sum(frames))))


def _pooled(strata: Sequence[Judged]) -> float | None:
    """Return the share of real defects over all strata that have judgements, each by its frames; None without any."""
    known = [(judged.frames, share.value) for judged in strata if (share := share_of_real(judged)).value is not None]
    frames = sum(count for count, _ in known)
    return sum(count * (value or 0.0) for count, value in known) / frames if frames else None


def rates(strata: Sequence[Judged]) -> Rates:
    """Return the rates of a line from all its strata."""
    alarms = [judged for judged in strata if judged.is_alarm and judged.frames]
    accepted = [judged for judged in strata if not judged.is_alarm and judged.frames]
    alarmed = sum(judged.frames for judged in alarms)
    passed = sum(judged.frames for judged in accepted)
    caught, escapes = total_of_real(alarms), total_of_real(accepted)
    false_alarms = _rest(alarmed, caught)
    # Each of two sums at 97.5 %, for the rates that are made of both.
    caught_wide, escapes_wide = total_of_real(alarms, HALVED), total_of_real(accepted, HALVED)
    false_wide = _rest(alarmed, caught_wide)
    good_wide = _rest(passed, escapes_wide)
    return Rates(
        overkill=_share(false_wide, good_wide),
        escape=_share(escapes_wide, caught_wide),
        false_alarm_share=false_alarms.scaled(1 / alarmed) if alarmed else Estimate(None, 0.0, 1.0),
        escapes_per_accepted=escapes.scaled(1 / passed) if passed else Estimate(None, 0.0, 1.0),
        false_alarms=false_alarms,
        caught=caught,
        escapes=escapes,
    )


def report(strata: Sequence[Judged]) -> dict[str, Any]:
    """Return the keys that `flawline judgements rates --json` prints."""
    return {
        "rates": {name: asdict(estimate) for name, estimate in vars(rates(strata)).items()},
        "strata": [
            {"stratum": part.stratum, "frames": part.frames, "judged": part.judgements, "unsure": part.unsure}
            for part in strata
        ],
        "confidence": CONFIDENCE,
    }


def _rest(total: float, part: Estimate) -> Estimate:
    """Return what is left of a known total without a part."""
    return Estimate(None if part.value is None else total - part.value, total - part.high, total - part.low)


def _share(part: Estimate, other: Estimate) -> Estimate:
    """Return part / (part + other), which grows with `part` and falls with `other`."""

    def share(first: float, second: float, default: float) -> float:
        return first / (first + second) if first + second > 0 else default

    value = None
    if part.value is not None and other.value is not None and part.value + other.value > 0:
        value = part.value / (part.value + other.value)
    return Estimate(value, share(part.low, other.high, 0.0), share(part.high, other.low, 1.0))
