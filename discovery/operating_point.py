"""What another alarm rate would have meant: frames that would be alarmed, and defects that would be found. Pure.

A frame is alarmed when its standardised score is above the cut-off of the alarm rate; one of an unknown product always
is, since another gate decides that. Alignment makes one cut-off right for all look-alike groups.

1. Frames that were not accepted, and near misses, are all stored, so how many of them are above a cut-off is counted.
   Of the other accepted frames a sample is stored: the share above is estimated from it with the interval of
   `discovery.quality_rates`, each frame with the weight of what it stands for. None of them can be above a cut-off
   whose scores all have near misses' p-values.
2. A cut-off parts each stratum in two: what is above it, and what is not. With these parts as strata, and those above
   as alarms, `quality_rates.rates` gives overkill and escapes at that cut-off. At the model's own cut-off the parts
   are the strata themselves, so that the rates are those that every other page shows.
3. The size of the sampled stratum is counted, but those of its two parts are estimated, which the intervals of these
   rates leave out: it matters at rates above the near misses' p-value only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from discovery.pictures.policy import ALARMS, AUDITED, Stratum
from discovery.quality_rates import Estimate, Judged, Rates, Weights, rates, share_of_real
from flawline.messages import Judgement

Floats = NDArray[np.float64]
Texts = NDArray[np.str_]
Mask = NDArray[np.bool_]

STRATA = (*ALARMS, *AUDITED)


@dataclass(frozen=True)
class Frames:
    """Stored frames (n): cameras, groups, strata, standardised scores, and how many frames each of them stands for.

    Scores of unknown products are infinite.
    """

    cameras: Texts
    groups: NDArray[np.int64]
    strata: Texts
    scores: Floats
    weights: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, chosen: Mask) -> Frames:
        """Return a part of the frames."""
        return Frames(*(column[chosen] for column in vars(self).values()))

    @property
    def alarms(self) -> int:
        """How many of them were not accepted."""
        return int(np.isin(self.strata, [str(stratum) for stratum in ALARMS]).sum())

    @property
    def near_misses(self) -> int:
        """How many of them were nearly alarms."""
        return int((self.strata == str(Stratum.NEAR_MISS)).sum())

    @property
    def accepted(self) -> float:
        """How many accepted frames they stand for."""
        return float(self.weights.sum()) - self.alarms


@dataclass(frozen=True)
class Judgements:
    """Judged frames (n): as `Frames`, with what was said of them, and whether they were offered to be judged.

    Those that a person looked up are no sample, and do not count in rates.
    """

    groups: NDArray[np.int64]
    strata: Texts
    scores: Floats
    weights: Floats
    words: Texts
    is_offered: Mask

    def only(self, chosen: Mask) -> Judgements:
        """Return a part of the judgements."""
        return Judgements(*(column[chosen] for column in vars(self).values()))


@dataclass(frozen=True)
class Known:
    """Frames with a judgement, by what becomes of them at another cut-off.

    `passing` are alarms that would be accepted, `caught` accepted frames that would be alarmed; `alarmed` of `total`
    would be alarms then.
    """

    total: int
    alarmed: int
    passing: int
    caught: int


def alarms(frames: Frames, cut_off: float, sampled: int, *, is_covered: bool) -> Estimate:
    """Return how many frames would be alarmed at a cut-off; `sampled` is the size of the sampled stratum.

    `is_covered` says that no frame of that stratum can be above the cut-off.
    """
    above, is_sampled = frames.scores > cut_off, frames.strata == str(Stratum.ACCEPTED)
    exact = float(frames.weights[above & ~is_sampled].sum())
    if is_covered:
        return Estimate(exact, exact, exact)
    part = Judged(
        str(Stratum.ACCEPTED),
        False,
        sampled,
        _counted(frames.weights[is_sampled & above]),
        _counted(frames.weights[is_sampled & ~above]),
    )
    estimate = share_of_real(part).scaled(sampled)
    return Estimate(exact + (estimate.value or 0.0), exact + estimate.low, exact + estimate.high)


def parts(frames: Frames, judgements: Judgements, cut_off: float, sampled: int) -> list[Judged]:
    """Return the parts of all strata above and below a cut-off, those above as alarms; `sampled` as in `alarms`."""
    result = []
    above, judged_above = frames.scores > cut_off, judgements.scores > cut_off
    for stratum in STRATA:
        here, judged_here = frames.strata == str(stratum), judgements.strata == str(stratum)
        count_above, count = int((here & above).sum()), int(here.sum())
        if stratum is Stratum.ACCEPTED:
            stands_for = float(frames.weights[here].sum())
            share_above = float(frames.weights[here & above].sum()) / stands_for if stands_for else 0.0
            count_above, count = round(share_above * sampled), sampled
        for is_alarm in (True, False):
            judged = judged_here & judgements.is_offered & (judged_above if is_alarm else ~judged_above)
            words, weights = judgements.words[judged], judgements.weights[judged]
            result.append(
                Judged(
                    str(stratum),
                    is_alarm,
                    count_above if is_alarm else count - count_above,
                    _counted(weights[words == str(Judgement.REAL)]),
                    _counted(weights[words == str(Judgement.FALSE)]),
                    int((words == str(Judgement.UNSURE)).sum()),
                )
            )
    return result


def rates_at(frames: Frames, judgements: Judgements, cut_off: float, sampled: int) -> Rates:
    """Return overkill and escapes at a cut-off; `sampled` as in `alarms`."""
    return rates(parts(frames, judgements, cut_off, sampled))


def share(count: int, total: int) -> Estimate:
    """Return a share with its interval; the exact one of Clopper and Pearson (1934)."""
    return share_of_real(Judged("", True, total, _of_ones(count), _of_ones(total - count)))


def rest(estimate: Estimate) -> Estimate:
    """Return one minus a share: defects found, of the share that escapes."""
    return Estimate(None if estimate.value is None else 1 - estimate.value, 1 - estimate.high, 1 - estimate.low)


def known(judgements: Judgements, word: Judgement, cut_off: float) -> Known:
    """Return what becomes of the frames of which people said one thing."""
    chosen = judgements.words == str(word)
    was = np.isin(judgements.strata[chosen], [str(stratum) for stratum in ALARMS])
    then = judgements.scores[chosen] > cut_off
    return Known(int(chosen.sum()), int(then.sum()), int((was & ~then).sum()), int((~was & then).sum()))


def _counted(weights: Sequence[float] | Floats) -> Weights:
    return tuple(sorted((float(weight), count) for weight, count in Counter(np.asarray(weights).tolist()).items()))


def _of_ones(count: int) -> Weights:
    return ((1.0, count),) if count else ()
