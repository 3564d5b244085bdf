"""The demo's result as one page that needs nothing else: figures, scores by product, classes with their members."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import urllib.request
import webbrowser
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flawline.messages import Verdict
from station.demo import charts, parts, summary
from station.demo.classes import ClassView
from station.demo.figures import Truth
from station.demo.parts import PartView
from station.pages.heat import HEAT_RANGE, heat_legend
from station.pages.rendering import data_uri, render_alone

log = logging.getLogger(__name__)

READY_TIMEOUT_S, READY_INTERVAL_S = 120.0, 0.5  # judgements, not measured: a line takes 20 s to start


def write(
    path: Path,
    result: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    truths: Mapping[str, Truth],
    classes: Sequence[ClassView],
    view_of: Callable[[Verdict, str], PartView | None],
) -> None:
    """Write the page. `view_of` returns how a part with a title is shown, None for one that cannot be."""
    ledger = result["ledger"]
    missed, alarmed = parts.wrong(verdicts, truths)

    def views(titled: Iterable[tuple[Verdict, str]]) -> list[PartView]:
        return [shown for verdict, title in titled if (shown := view_of(verdict, title)) is not None]

    page = render_alone(
        "demo.html",
        ledger_text=summary.ledger_text(ledger),
        cards=_cards(result),
        heroes=views(parts.heroes(verdicts, truths, classes)),
        missed=views((verdict, "missed") for verdict in missed[: parts.MISSED]),
        missed_count=len(missed),
        alarmed=views((verdict, "false alarm") for verdict in alarmed[: parts.FALSE_ALARMS]),
        alarmed_count=len(alarmed),
        chart=charts.scores(verdicts, truths),
        timeline=charts.classes_over_time(verdicts, truths, classes),
        histogram=charts.latencies(verdicts),
        curve=charts.alarm_curve(verdicts, truths),
        small=(charts.SMALL_WIDTH, charts.SMALL_HEIGHT, charts.SMALL_LEFT, charts.SMALL_TOP),
        legend=heat_legend(),
        heat_range=HEAT_RANGE,
        classes=[_class(view, truths) for view in classes],
        accounts=[*ledger["cameras"].items(), ("all", ledger)],
        figures=summary.rows(dict(result)),
        config=result["artefacts"].get("config", "line.toml"),
    )
    path.write_text(page, encoding="utf-8")


def has_screen() -> bool:
    """Return whether this machine has a screen that a browser can show a page on."""
    return bool(sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_in_browser(address: str) -> None:
    """Open an address in a browser, or log that there is none."""
    if not webbrowser.open(address):
        log.warning("no browser opens %s: open it by hand", address)


def open_when_ready(url: str) -> None:
    """Open a page of this machine as soon as its server answers, beside what else is done."""

    def wait_and_open() -> None:
        for _ in range(round(READY_TIMEOUT_S / READY_INTERVAL_S)):
            try:
                urllib.request.urlopen(url, timeout=READY_TIMEOUT_S).close()
            except OSError:
                time.sleep(READY_INTERVAL_S)
            else:
                open_in_browser(url)
                return

    threading.Thread(target=wait_and_open, name="open", daemon=True).start()


def _cards(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of the cards: value and label."""
    quality, alarm, classes = result["quality"], result["alarm_rate"], result["classes"]
    escapes = result["escape_rate"]
    return [
        (summary.number(quality["pooled_image_auroc"], 4), "of 1: good and defective parts told apart (AUROC)"),
        (
            summary.percent(escapes["measured"]),
            f"of {escapes['defective_frames']:,} defective parts were missed",
        ),
        (summary.percent(alarm["measured"]), f"alarms on good parts, {summary.percent(alarm['target'])} asked for"),
        (
            str(classes["found"]),
            f"classes formed for {classes['true']} kinds of defect, agreement {summary.number(classes['ari'], 2)} of 1",
        ),
        (f"{result['frames_per_second']:.0f}", "frames a second"),
        (
            f"{summary.number(result['latency_ms']['p50'], 0)} ms",
            f"capture to verdict, median; p99 {summary.number(result['latency_ms']['p99'], 0)} ms",
        ),
        (str(result["ledger"]["gaps"]), "captures without an outcome"),
    ]


def _class(view: ClassView, truths: Mapping[str, Truth]) -> dict[str, Any]:
    kinds = Counter((truths[frame].defect or "good part") for frame in view.frames if frame in truths)
    return {
        "title": view.name or view.class_id,
        "frames": len(view.frames),
        "state": view.state,
        "kinds": ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()),
        "crops": [data_uri(crop, "image/jpeg") for crop in view.crops],
    }
