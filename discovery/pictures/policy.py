"""Which frames are kept as pictures, and how probable that was. Pure, but for the clock that is given.

Every frame that is not accepted is kept, and every near miss. Of the other accepted frames of a camera and a minute
those are kept whose random number is below 1 / `one_in`, or else, where every minute needs one, the frame with the
lowest number. The random number of a frame is a hash of its id, so a frame that is delivered twice has the same.

A frame of n is then kept with the probability 1 / N + (1 - 1 / N)^n / n, with N = `one_in`: either its number u is
below 1 / N, or all other numbers are above u > 1 / N, whose probability is the integral of (1 - u)^(n - 1) from 1 / N
to 1. The inverse is the weight of the frame in an estimate (Horvitz and Thompson 1952).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from flawline import clock
from flawline.messages import Decision, Verdict
from flawline.retention import Value
from flawline.settings.pictures import PictureSettings

MINUTE_NS = 60_000_000_000
QUIET_S = 90.0
"""A minute of a camera is over when none of its frames has come for so long. A judgement: a minute and its delay."""
OPEN_MINUTES = 10_000
"""Minutes that may be open at once; beyond, the one that was touched first is closed. A judgement, not measured."""


class Stratum(StrEnum):
    """The part of all frames that a frame belongs to: by its decision, and how near to another one it was."""

    REJECT = "reject"
    REVIEW = "review"
    UNKNOWN_PRODUCT = "unknown-product"
    NEAR_MISS = "near-miss"
    ACCEPTED = "accepted"
    PICKED = "picked"
    """Of no part: a frame that was accepted, and whose picture a person has asked for."""

    @property
    def is_alarm(self) -> bool:
        """Whether the frame was not accepted."""
        return self not in (Stratum.NEAR_MISS, Stratum.ACCEPTED, Stratum.PICKED)

    @property
    def value_of_picture(self) -> Value:
        """How much a picture is worth when there is no room."""
        if self.is_alarm:
            return Value.DEFECT
        return Value.NEAR_MISS if self is Stratum.NEAR_MISS else Value.SAMPLE


ALARMS = tuple(stratum for stratum in Stratum if stratum.is_alarm)
AUDITED = (Stratum.NEAR_MISS, Stratum.ACCEPTED)


@dataclass(frozen=True)
class Candidate:
    """A frame that may be kept, with the place of its record in the topic `frames`; -1 for an unknown offset."""

    verdict: Verdict
    partition: int
    offset: int


@dataclass(frozen=True)
class Pick:
    """A frame that is to be kept; `probability` is that of having been chosen, and `chance` its random number."""

    candidate: Candidate
    stratum: Stratum
    probability: float
    chance: float


def chance_of(frame_id: str) -> float:
    """Return the random number of a frame, from 0 to 1: a hash of its id."""
    return int.from_bytes(hashlib.blake2b(frame_id.encode(), digest_size=8).digest(), "big") / 2**64


def stratum_of(verdict: Verdict, near_miss_p_value: float) -> Stratum:
    """Return the stratum of a frame."""
    if verdict.decision is not Decision.ACCEPT:
        return Stratum(verdict.decision)
    return Stratum.NEAR_MISS if verdict.p_value <= near_miss_p_value else Stratum.ACCEPTED


def asked_for(candidate: Candidate, near_miss_p_value: float) -> Pick:
    """Return the pick of a frame whose picture a person has asked for: it is no sample, unless it is kept anyway."""
    stratum = stratum_of(candidate.verdict, near_miss_p_value)
    return Pick(
        candidate,
        Stratum.PICKED if stratum is Stratum.ACCEPTED else stratum,
        1.0,
        chance_of(candidate.verdict.frame_id),
    )


def probability_in_sample(count: int, one_in: int, every_minute: bool) -> float:
    """Return how probable it is that a frame is kept, of `count` in its minute; see above for the formula."""
    rate = 1 / one_in
    return rate + (1 - rate) ** count / count if every_minute else rate


@dataclass
class _Minute:
    count: int = 0
    drawn: list[tuple[float, Candidate]] = field(default_factory=list)
    lowest: tuple[float, Candidate] | None = None
    touched_at: float = 0.0


class Picker:
    """Chooses the frames of a line that are kept. For one thread."""

    def __init__(self, settings: PictureSettings, monotonic: clock.Monotonic = clock.monotonic) -> None:
        self._settings, self._monotonic = settings, monotonic
        self._minutes: dict[tuple[str, int], _Minute] = {}

    def pick(self, candidate: Candidate) -> tuple[Stratum, Pick | None]:
        """Return the stratum of a frame and, unless it waits for the end of its minute, what is chosen."""
        verdict = candidate.verdict
        stratum, chance = stratum_of(verdict, self._settings.near_miss_p_value), chance_of(verdict.frame_id)
        if stratum is not Stratum.ACCEPTED:
            return stratum, Pick(candidate, stratum, 1.0, chance)
        # Taken out and put in again, so that the minutes stand in the order of their last frames.
        key = verdict.camera, verdict.captured_at // MINUTE_NS
        minute = self._minutes.pop(key, None) or _Minute()
        self._minutes[key] = minute
        minute.count += 1
        minute.touched_at = self._monotonic()
        if chance < 1 / self._settings.sample_one_in:
            minute.drawn.append((chance, candidate))
        elif minute.lowest is None or chance < minute.lowest[0]:
            minute.lowest = chance, candidate
        return stratum, None

    def closed(self, everything: bool = False) -> list[Pick]:
        """Return what is chosen of the minutes that are over, or of all; a minute that goes on later counts anew."""
        picks: list[Pick] = []
        until = self._monotonic() - QUIET_S
        while self._minutes:
            key = next(iter(self._minutes))
            if not (everything or len(self._minutes) > OPEN_MINUTES or self._minutes[key].touched_at <= until):
                break
            picks += self._chosen(self._minutes.pop(key))
        return picks

    def _chosen(self, minute: _Minute) -> list[Pick]:
        every_minute = self._settings.sample_every_minute
        probability = probability_in_sample(minute.count, self._settings.sample_one_in, every_minute)
        chosen = minute.drawn
        if not chosen and every_minute and minute.lowest is not None:
            chosen = [minute.lowest]
        return [Pick(candidate, Stratum.ACCEPTED, probability, chance) for chance, candidate in chosen]
