"""The parts that the demo's page shows: what the model saw, where it is hot, and the good part that is nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flawline.messages import Decision, Verdict
from scorer.detector import CoresetDetector
from station.demo.classes import ClassView
from station.demo.figures import Truth
from station.explanation import Picture, explain_pixels, picture_of
from station.pages.heat import heat_over

PICTURE_LIMIT_PX = 256
HEROES, MISSED, FALSE_ALARMS = 8, 12, 6
"""Most parts of each kind. Judgements, as the size of a picture: the page stays below two megabytes."""

PixelsOf = Callable[[Verdict], np.ndarray]


@dataclass(frozen=True)
class PartView:
    """One part: its picture, its heat map, the nearest good one with the place of the patch, and words."""

    whole: Picture
    heat: Picture
    good: Picture | None
    good_boxes: tuple[tuple[float, float, float, float, str], ...]
    boxes: tuple[tuple[float, float, float, float, str], ...]
    title: str
    words: str
    decision: str


def heroes(
    verdicts: Sequence[Verdict], truths: Mapping[str, Truth], classes: Sequence[ClassView]
) -> list[tuple[Verdict, str]]:
    """Return parts that were caught, with the titles of their classes: the hottest of each class, the largest first.

    A product that was shown already comes again only when a class has no other. Without a class these are the hottest
    defective parts of each product.
    """
    by_frame = {verdict.frame_id: verdict for verdict in verdicts}
    shown: set[str] = set()
    chosen = []
    for view in classes[:HEROES]:
        members = [by_frame[frame] for frame in view.frames if frame in by_frame and truths[frame].defect is not None]
        if members:
            best = max(members, key=lambda member: (truths[member.frame_id].product not in shown, member.score))
            shown.add(truths[best.frame_id].product)
            chosen.append((best, view.name or view.class_id))
    return chosen or [(verdict, "no class yet") for verdict in _hottest(verdicts, truths)]


def _hottest(verdicts: Sequence[Verdict], truths: Mapping[str, Truth]) -> list[Verdict]:
    """Return the defective part with the highest score of each product that was not accepted, the hottest first."""
    by_product: dict[str, Verdict] = {}
    for verdict in sorted(verdicts, key=lambda verdict: -verdict.score):
        truth = truths[verdict.frame_id]
        if truth.defect is not None and verdict.decision is not Decision.ACCEPT:
            by_product.setdefault(truth.product, verdict)
    return list(by_product.values())[:HEROES]


def wrong(verdicts: Sequence[Verdict], truths: Mapping[str, Truth]) -> tuple[list[Verdict], list[Verdict]]:
    """Return the defective parts that were accepted and the good ones that were not, those with high scores first."""
    ordered = sorted(verdicts, key=lambda verdict: -verdict.score)
    missed = [v for v in ordered if v.decision is Decision.ACCEPT and truths[v.frame_id].defect is not None]
    alarmed = [v for v in ordered if v.decision is not Decision.ACCEPT and truths[v.frame_id].defect is None]
    return missed, alarmed


def view(verdict: Verdict, truth: Truth, title: str, detector: CoresetDetector, pixels_of: PixelsOf) -> PartView:
    """Return how the page shows a part. Raises FlawlineError for a picture that is gone."""
    pixels = pixels_of(verdict)
    explanation = explain_pixels(detector, verdict.frame_id, pixels)
    shown = explanation.reasons[0].shown if explanation.reasons else None
    good = None if shown is None or shown.picture is None else picture_of(shown.picture, PICTURE_LIMIT_PX)
    good_boxes = []
    if shown is not None and good is not None:
        x, y, width, height = shown.box
        good_boxes.append((x * good.width, y * good.height, width * good.width, height * good.height, ""))
    return PartView(
        whole=picture_of(pixels, PICTURE_LIMIT_PX),
        heat=picture_of(heat_over(pixels, explanation.scores.heatmap), PICTURE_LIMIT_PX),
        good=good,
        good_boxes=tuple(good_boxes),
        boxes=tuple((*place.box, "") for place in explanation.places if place.box is not None),
        title=title,
        words=f"{truth.product}, {truth.defect or 'good'}; score {verdict.score:.2f}, p {verdict.p_value:.2g}",
        decision=str(verdict.decision),
    )
