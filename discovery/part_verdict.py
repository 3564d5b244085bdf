"""The verdict on a part from several views of it. Pure.

An *inspection* is what the frames of a part say together that were captured one after the other, without a longer pause
than `parts.gap_s`. Of each view its worst frame counts. The worst view decides; beside it stands one p-value of all
views. Adding frames in any order, or twice, gives the same verdict.

The p-value of a view is the share of good parts that score at least as high. With q = 1 - p as the evidence of a view
for a defect, the noisy OR of all views is 1 - (1 - q1)(1 - q2)... = 1 - p1 p2... (Pearl 1988). A product of p-values is
small already when there are many views, so it is calibrated by its distribution for good parts with independent views
(Fisher 1932): P(product <= t) = t * sum((-ln t)^k / k!, k = 0 .. n-1). Views that resemble one another make it smaller
than it should be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flawline.messages import Decision, Verdict

SEVERITY = (Decision.ACCEPT, Decision.REVIEW, Decision.UNKNOWN_PRODUCT, Decision.REJECT)
"""Decisions from the mildest to the worst."""

MOST_VIEWS = 32
"""Views of an inspection that are kept, the worst ones. A judgement, not measured."""

LEAST_P_VALUE = 1e-300
"""What a p-value of 0 counts as, so that its logarithm is finite."""


@dataclass(frozen=True)
class View:
    """What the worst frame of a view says."""

    frame_id: str
    camera: str
    decision: Decision
    p_value: float
    score: float

    @property
    def badness(self) -> tuple[int, float, float, str]:
        """Return what views are ordered by; no two frames are equal in it."""
        return SEVERITY.index(self.decision), -self.p_value, self.score, self.frame_id


@dataclass(frozen=True)
class Inspection:
    """The views of a part that belong together, and when they were captured (ns UTC)."""

    first_ns: int
    last_ns: int
    frames: int
    views: Mapping[str, View] = field(default_factory=dict)

    @property
    def worst(self) -> View:
        """Return the view that decides."""
        return max(self.views.values(), key=lambda view: view.badness)

    @property
    def p_value(self) -> float:
        """Return the p-value of all views together."""
        return combined_p_value([view.p_value for _, view in sorted(self.views.items())])

    def missing(self, expected: Iterable[str]) -> list[str]:
        """Return the views that did not come."""
        return [name for name in expected if name not in self.views]


def of_verdict(verdict: Verdict) -> Inspection:
    """Return the inspection that consists of one frame. A frame without a view is the view of its camera."""
    view = View(verdict.frame_id, verdict.camera, verdict.decision, verdict.p_value, verdict.score)
    return Inspection(verdict.captured_at, verdict.captured_at, 1, {verdict.view or verdict.camera: view})


def joined(inspections: Iterable[Inspection], gap_ns: int) -> list[Inspection]:
    """Return inspections of one part in order of time, those that are at most `gap_ns` apart made one."""
    result: list[Inspection] = []
    for inspection in sorted(inspections, key=lambda inspection: (inspection.first_ns, inspection.last_ns)):
        if result and inspection.first_ns - result[-1].last_ns <= gap_ns:
            result[-1] = _union(result[-1], inspection)
        else:
            result.append(inspection)
    return result


def _union(first: Inspection, second: Inspection) -> Inspection:
    views = dict(first.views)
    for name, view in second.views.items():
        if name not in views or view.badness > views[name].badness:
            views[name] = view
    if len(views) > MOST_VIEWS:
        worst = sorted(views, key=lambda name: views[name].badness, reverse=True)[:MOST_VIEWS]
        views = {name: views[name] for name in worst}
    return replace(
        first,
        first_ns=min(first.first_ns, second.first_ns),
        last_ns=max(first.last_ns, second.last_ns),
        frames=first.frames + second.frames,
        views=views,
    )


def combined_p_value(p_values: Sequence[float]) -> float:
    """Return the share of good parts whose product of p-values is at most that of these."""
    log = -sum(math.log(max(value, LEAST_P_VALUE)) for value in p_values)
    term, total = 1.0, 0.0
    for k in range(len(p_values)):
        total += term
        term *= log / (k + 1)
    return min(math.exp(-log) * total, 1.0)
