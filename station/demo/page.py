"""The demo's result as one page that needs nothing else: figures, scores by product, classes with their members."""

from __future__ import annotations

import logging
import os
import sys
import webbrowser
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.messages import Decision, Verdict
from station.demo import summary
from station.demo.classes import ClassView
from station.demo.figures import Truth
from station.pages.rendering import data_uri, render_alone

log = logging.getLogger(__name__)

CHART_WIDTH, CHART_LEFT, CHART_RIGHT = 1010, 150, 16
ROW_HEIGHT = 34
TICKS = 6


@dataclass(frozen=True)
class Dot:
    """A part in the chart: its place, `good` or `bad`, and what it says under the mouse."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Row:
    """The parts of one product, around the height `y`."""

    product: str
    y: float
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """Parts by product and score; `accepted_x` is the place of the highest accepted score, None without one."""

    width: int
    height: int
    rows: tuple[Row, ...]
    ticks: tuple[tuple[float, str], ...]
    accepted_x: float | None


def write(
    path: Path,
    result: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    truths: Mapping[str, Truth],
    classes: Sequence[ClassView],
) -> None:
    """Write the page."""
    ledger = result["ledger"]
    page = render_alone(
        "demo.html",
        ledger_text=summary.ledger_text(ledger),
        cards=_cards(result),
        chart=chart(verdicts, truths),
        classes=[_class(view, truths) for view in classes],
        accounts=[*ledger["cameras"].items(), ("all", ledger)],
        figures=summary.rows(dict(result)),
    )
    path.write_text(page, encoding="utf-8")


def open_in_browser(path: Path) -> None:
    """Open the page where there is a screen; elsewhere log where it is."""
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (has_screen and webbrowser.open(path.absolute().as_uri())):
        log.info("open %s in a browser to see the result", path)


def _cards(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of the cards: value and label."""
    quality, alarm, classes = result["quality"], result["alarm_rate"], result["classes"]
    return [
        (summary.number(quality["pooled_image_auroc"], 3), "pooled image AUROC"),
        (summary.percent(alarm["measured"]), f"alarms on good parts, {summary.percent(alarm['target'])} asked for"),
        (
            str(classes["found"]),
            f"classes found, {classes['true']} true kinds, ARI {summary.number(classes['ari'], 2)}",
        ),
        (f"{result['frames_per_second']:.0f}", "frames a second"),
        (f"{summary.number(result['latency_ms']['p50'], 0)} ms", "capture to verdict, median"),
        (str(result["ledger"]["gaps"]), "captures without an outcome"),
    ]


def chart(verdicts: Sequence[Verdict], truths: Mapping[str, Truth]) -> Chart:
    """Return a strip for each product: a dot for each part by its aligned score, good above and defective below."""
    scores = [verdict.score for verdict in verdicts]
    low, high = min([*scores, -0.2]), max([*scores, 0.5])

    def x(score: float) -> float:
        return round(CHART_LEFT + (score - low) / (high - low) * (CHART_WIDTH - CHART_LEFT - CHART_RIGHT), 1)

    rows = []
    for number, product in enumerate(sorted({truth.product for truth in truths.values()})):
        middle = number * ROW_HEIGHT + ROW_HEIGHT / 2 + 4
        parts = [verdict for verdict in verdicts if truths[verdict.frame_id].product == product]
        rows.append(
            Row(product, middle, tuple(_dot(part, truths[part.frame_id], x(part.score), middle) for part in parts))
        )
    values = [low + (high - low) * step / (TICKS - 1) for step in range(TICKS)]
    accepted = [verdict.score for verdict in verdicts if verdict.decision is Decision.ACCEPT]
    return Chart(
        width=CHART_WIDTH,
        height=ROW_HEIGHT * len(rows) + 30,
        rows=tuple(rows),
        ticks=tuple((x(value), f"{value:.1f}") for value in values),
        accepted_x=x(max(accepted)) if accepted else None,
    )


def _dot(verdict: Verdict, truth: Truth, x: float, middle: float) -> Dot:
    kind, lift = ("good", -6) if truth.defect is None else ("bad", 6)
    y = middle + lift + (verdict.sequence * 7 % 9 - 4) * 0.9  # a small deterministic scatter keeps dots apart
    title = f"{verdict.frame_id} {truth.defect or 'good'} {verdict.decision} {verdict.score:.2f}"
    return Dot(x, round(y, 1), kind, title)


def _class(view: ClassView, truths: Mapping[str, Truth]) -> dict[str, Any]:
    kinds = Counter((truths[frame].defect or "good part") for frame in view.frames if frame in truths)
    return {
        "title": view.name or view.class_id,
        "frames": len(view.frames),
        "state": view.state,
        "kinds": ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()),
        "crops": [data_uri(crop, "image/jpeg") for crop in view.crops],
    }
