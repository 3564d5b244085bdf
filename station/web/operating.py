"""The operating point of a model: what its alarm rate costs and finds, and what another one would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from discovery import operating_point
from discovery.operating_point import Frames, Judgements, known, rates_at, rest, share
from discovery.quality_rates import CONFIDENCE, Estimate, Rates
from discovery.store import group_names, scored_frames
from discovery.store.database import stamp
from discovery.store.filters import Filter
from discovery.store.scored_frames import JudgedFrame
from discovery.store.store import Store
from flawline.errors import FlawlineError
from flawline.messages import Decision, Judgement
from scorer import calibration
from scorer.operating_points import DecisionRule, operating_points
from station.language import languages
from station.language.languages import Language
from station.web.models import Models

SHOWN_FRAMES = 50
"""Frames of each list at most, the latest."""
RATES_RANGE = (0.0001, 0.5)
"""Alarm rates that a person can try. A judgement: beyond, neither tail nor sample says anything."""
STANDS_FOR = 0.9
"""Below this share of the counted frames the store has forgotten too many, and the page says so. A judgement."""


@dataclass(frozen=True)
class _Line:
    """What the store has of a model's frames in a time; `counted` are (frames, alarms), also of those not stored."""

    rule: DecisionRule
    frames: Frames
    judgements: Judgements
    counted: tuple[int, int]
    near_miss_p_value: float

    @property
    def sampled(self) -> int:
        """How many accepted frames there are of which a sample is stored."""
        return max(self.counted[0] - self.counted[1] - self.frames.near_misses, 0)

    def alarms(self, cut_off: float) -> Estimate:
        is_covered = self.rule.largest_p_value(cut_off) <= self.near_miss_p_value  # all above it are near misses
        return operating_point.alarms(self.frames, cut_off, self.sampled, is_covered=is_covered)

    def rates(self, cut_off: float) -> Rates:
        return rates_at(self.frames, self.judgements, cut_off, self.sampled)

    def of_group(self, group: int, counted: tuple[int, int]) -> _Line:
        frames = self.frames.only(self.frames.groups == group)
        return replace(
            self,
            frames=frames,
            judgements=self.judgements.only(self.judgements.groups == group),
            counted=counted,
        )

    def of_camera(self, camera: str, counted: tuple[int, int]) -> _Line:
        return replace(self, frames=self.frames.only(self.frames.cameras == camera), counted=counted)


def report(
    store: Store,
    models: Models,
    wanted: Filter,
    *,
    model: str | None = None,
    rate: float | None = None,
    near_miss_p_value: float,
    language: Language | None = None,
) -> dict[str, Any]:
    """Return the keys that `/api/v1/operating-point` answers with.

    `model` is by default the one that decided last, or that of the wanted group; `rate` the alarm rate to try, by
    default the model's own. What needs the model is None where it is not at hand, and `problem` says why, as
    `stored.problems` do in `language`, by default English.
    """
    language = language or languages.english()
    wanted = scored_frames.in_steps(store, wanted)
    version = model or (wanted.group[0] if wanted.group else scored_frames.latest_model(store))
    counted = scored_frames.counted(store, version or "", wanted)
    result: dict[str, Any] = {
        "model": version,
        "since": stamp(wanted.since_ns).isoformat() if wanted.since_ns is not None else None,
        "until": stamp(wanted.until_ns).isoformat() if wanted.until_ns is not None else None,
        "confidence": CONFIDENCE,
        "measured": {
            "frames": counted.frames,
            "alarms": counted.alarms,
            "share": asdict(share(counted.alarms, counted.frames)),
            "overkill": None,
            "recall": None,
            "judged": None,
        },
        "problem": None if version else "no frame has been scored yet",
        "asked": None,
        "points": [],
        "what_if": None,
    }
    if version is None:
        return result
    try:
        rule = models.rule(version)
    except FlawlineError as error:
        return result | {"problem": str(error)}
    frames, is_cut = scored_frames.frames(store, version, wanted, rule.widths)
    judgements, judged_frames, without_group = scored_frames.judged(store, version, wanted, rule.widths)
    line = _Line(rule, frames, judgements, (counted.frames, counted.alarms), near_miss_p_value)
    measured = line.rates(rule.review.value)
    result["measured"] |= {
        "overkill": asdict(measured.overkill),
        "recall": asdict(rest(measured.escape)),
        "judged": int((judgements.is_offered & (judgements.words != str(Judgement.UNSURE))).sum()),
    }
    tried = rule.review.rate if rate is None else rate
    groups = [(number, line.of_group(number, counts)) for number, counts in counted.groups.items()]
    names = group_names.names(store)
    return result | {
        "asked": {
            "rate": rule.review.rate,
            "setting": rule.asked,
            "cut_off": rule.review.value,
            "images": len(rule.good),
            "upper_bound": rule.review.upper_bound,
            "vouched": calibration.vouch_for(len(rule.good), rule.review.rate),
            "vouched_rate": calibration.vouched_rate(len(rule.good)),
            "defects_at_fit": rule.fit_defects,
        },
        "points": _points(line, groups, tried, names, version),
        "what_if": _what_if(line, groups, counted, rule.cut_off(tried), judged_frames, names, version)
        | {"rate": tried},
        "stored": _stored(frames, counted, is_cut, without_group, language),
    }


def _points(
    line: _Line, groups: Sequence[tuple[int, _Line]], tried: float, names: dict[tuple[str, int], str], version: str
) -> list[dict[str, Any]]:
    """Return a row for each alarm rate: what good images say of it, what it alarms, what it finds, also by group."""
    rule, (frames, _) = line.rule, line.counted
    points = []
    for rate in sorted({*calibration.RATES, rule.review.rate, tried}):
        cut_off = rule.cut_off(rate)
        (of_model,) = operating_points(rule.good, (rate,), np.array([]))
        alarms, rates = line.alarms(cut_off), line.rates(cut_off)
        points.append(
            {
                "rate": rate,
                "is_asked": rate == rule.review.rate,
                "is_tried": rate == tried,
                "cut_off": cut_off,
                "good_above": int((rule.good > cut_off).sum()),
                "images": len(rule.good),
                "upper_bound": of_model.upper_bound,
                "vouched": of_model.vouched,
                "alarms": asdict(alarms),
                "share": asdict(alarms.scaled(1 / frames)) if frames else None,
                "overkill": asdict(rates.overkill),
                "recall": asdict(rest(rates.escape)),
                "recall_at_fit": (rule.at_fit or {}).get(rate),
                "groups": [
                    {
                        "group": number,
                        "name": names.get((version, number)),
                        "recall": asdict(rest(of_group.rates(cut_off).escape)),
                    }
                    for number, of_group in groups
                ],
            }
        )
    return points


def _what_if(
    line: _Line,
    groups: Sequence[tuple[int, _Line]],
    counted: scored_frames.Counted,
    cut_off: float,
    judged: Sequence[JudgedFrame],
    names: dict[tuple[str, int], str],
    version: str,
) -> dict[str, Any]:
    """Return what a cut-off would have done to the stored frames, by camera and by group, and to those with a word."""
    scores = line.judgements.scores
    was = np.array([frame.decision != str(Decision.ACCEPT) for frame in judged], bool)
    is_real = line.judgements.words == str(Judgement.REAL)

    def listed(chosen: np.ndarray) -> list[dict[str, Any]]:
        numbers = np.flatnonzero(chosen)[:SHOWN_FRAMES].tolist()
        return [vars(judged[i]) | {"at": judged[i].at.isoformat()} for i in numbers]

    return {
        "cut_off": cut_off,
        **_alarms(line, cut_off),
        "cameras": [
            {"camera": camera, **_alarms(line.of_camera(camera, counts), cut_off)}
            for camera, counts in counted.cameras.items()
        ],
        "groups": [
            {
                "group": number,
                "name": names.get((version, number)),
                **_alarms(of_group, cut_off),
                "known_real": asdict(known(of_group.judgements, Judgement.REAL, cut_off)),
                "recall": asdict(rest(of_group.rates(cut_off).escape)),
            }
            for number, of_group in groups
        ],
        "known_real": asdict(known(line.judgements, Judgement.REAL, cut_off)),
        "known_false": asdict(known(line.judgements, Judgement.FALSE, cut_off)),
        "passing": listed(is_real & was & ~(scores > cut_off)),
        "caught": listed(is_real & ~was & (scores > cut_off)),
    }


def _alarms(line: _Line, cut_off: float) -> dict[str, Any]:
    return {
        "frames": line.counted[0],
        "alarms_now": line.frames.alarms,
        "alarms": asdict(line.alarms(cut_off)),
    }


def _stored(
    frames: Frames, counted: scored_frames.Counted, is_cut: bool, without_group: int, language: Language
) -> dict[str, Any]:
    """Return how much of what was counted the stored frames stand for, and in words where that is too little."""
    alarms, accepted = frames.alarms, frames.accepted
    problems = []
    counted_accepted = counted.frames - counted.alarms
    if is_cut:
        text = language.gettext(
            "only the latest %(rows)s frames are looked at: choose a shorter time",
            rows=language.number(scored_frames.ROWS_LIMIT),
        )
        problems.append(text)
    elif accepted < STANDS_FOR * counted_accepted:
        text = language.gettext(
            "of %(counted)s accepted frames the stored ones stand for %(stored)s: samples are kept for days only, so "
            "choose a later time, or wait for the minute to end",
            counted=language.number(counted_accepted),
            stored=language.number(round(accepted)),
        )
        problems.append(text)
    if not is_cut and alarms < STANDS_FOR * counted.alarms:
        text = language.gettext(
            "of %(counted)s alarms %(stored)s are stored with their scores: the others came too recently or are too "
            "old",
            counted=language.number(counted.alarms),
            stored=language.number(alarms),
        )
        problems.append(text)
    if without_group:
        text = language.gettext(
            "%(judgements)s judgements are left out: their frames are no longer stored",
            judgements=language.number(without_group),
        )
        problems.append(text)
    return {"alarms": alarms, "accepted": round(accepted), "problems": problems}
