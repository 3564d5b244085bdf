"""The demo's result as one page that needs nothing else: figures, scores by product, classes with their members."""

from __future__ import annotations

import base64
import html
import logging
import os
import sys
import webbrowser
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flawline.messages import Decision, Verdict
from station.demo import summary
from station.demo.classes import ClassView
from station.demo.figures import Truth

log = logging.getLogger(__name__)

CHART_WIDTH = 760
ROW_HEIGHT = 34

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fbfbf9; --line: #d9dbd6; --good: #2f7d5b; --bad: #c2412d;
  --soft: #6b7280; --card: #ffffff }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14181d; --line: #2d343c; --good: #5bc193;
  --bad: #f0806c; --soft: #9aa3ad; --card: #1b2027 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1060px; padding: 32px 24px 64px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif } h1 { font-size: 24px; margin: 0 0 4px }
h2 { font-size: 17px; margin: 36px 0 10px } p.lead { margin: 0 0 20px; color: var(--soft) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px }
.card b { display: block; font-size: 22px; font-variant-numeric: tabular-nums } .card span { color: var(--soft) }
table { border-collapse: collapse; width: 100% } td, th { padding: 6px 10px; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.class { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  margin: 0 0 12px }
.class header { display: flex; gap: 12px; align-items: baseline; flex-wrap: wrap } .class b { font-size: 16px }
.crops { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 8px } .crops img { width: 72px; height: 72px;
  object-fit: cover; border-radius: 4px; border: 1px solid var(--line) } .soft { color: var(--soft) }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
.wide { overflow-x: auto }
"""


def write(
    path: Path,
    result: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    truths: Mapping[str, Truth],
    classes: Sequence[ClassView],
) -> None:
    """Write the page."""
    body = "".join(
        [
            "<h1>Flawline demo</h1>",
            f"<p class=lead>{html.escape(summary.ledger_text(dict(result['ledger'])))}</p>",
            _cards(result),
            "<h2>Scores by product</h2>"
            "<p class=soft>One scale for all products: the natural-log ratio of a part's score "
            "to that of good parts that look like it. The dashed line is the highest score that was accepted.</p>",
            f"<div class=wide>{_chart(verdicts, truths)}</div>",
            "<h2>Defect classes</h2><p class=soft>They formed without labels; the kinds in brackets are the truth, "
            "which only this page knows.</p>",
            *(_class(view, truths) for view in classes),
            "<h2>Ledger</h2>",
            f"<div class=wide>{_ledger(result['ledger'])}</div>",
            "<h2>All figures</h2>",
            f"<div class=wide>{_table(summary.rows(dict(result)))}</div>",
        ]
    )
    path.write_text(
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Flawline demo</title>"
        f"<meta name=viewport content='width=device-width, initial-scale=1'><style>{STYLE}</style></head>"
        f"<body>{body}</body></html>",
        encoding="utf-8",
    )


def open_in_browser(path: Path) -> None:
    """Open the page where there is a screen; say where it is elsewhere."""
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (has_screen and webbrowser.open(path.absolute().as_uri())):
        log.info("open %s in a browser to see the result", path)


def _cards(result: Mapping[str, Any]) -> str:
    quality, alarm, classes = result["quality"], result["alarm_rate"], result["classes"]
    cards = [
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
    return f"<div class=cards>{''.join(f'<div class=card><b>{a}</b><span>{b}</span></div>' for a, b in cards)}</div>"


def _chart(verdicts: Sequence[Verdict], truths: Mapping[str, Truth]) -> str:
    """A strip for each product: a dot for each part by its aligned score, good above and defective below the line."""
    products = sorted({truth.product for truth in truths.values()})
    scores = [verdict.score for verdict in verdicts]
    low, high = min([*scores, -0.2]), max([*scores, 0.5])
    left, right = 120, 16

    def x(score: float) -> float:
        return left + (score - low) / (high - low) * (CHART_WIDTH - left - right)

    height = ROW_HEIGHT * len(products) + 30
    parts = [f"<svg viewBox='0 0 {CHART_WIDTH} {height}' width={CHART_WIDTH} height={height} role=img>"]
    accepted = [verdict.score for verdict in verdicts if verdict.decision is Decision.ACCEPT]
    if accepted:
        at = x(max(accepted))
        parts.append(
            f"<line x1={at:.1f} x2={at:.1f} y1=4 y2={height - 24} stroke='var(--soft)' stroke-dasharray='4 3'/>"
        )
    for row, product in enumerate(products):
        middle = row * ROW_HEIGHT + ROW_HEIGHT / 2 + 4
        parts.append(f"<text x=0 y={middle + 4}>{html.escape(product)}</text>")
        for verdict in verdicts:
            truth = truths[verdict.frame_id]
            if truth.product == product:
                colour, lift = ("var(--good)", -6) if truth.defect is None else ("var(--bad)", 6)
                # A small deterministic scatter keeps dots apart.
                y = middle + lift + (verdict.sequence * 7 % 9 - 4) * 0.9
                title = html.escape(
                    f"{verdict.frame_id} {truth.defect or 'good'} {verdict.decision} {verdict.score:.2f}"
                )
                parts.append(
                    f"<circle cx={x(verdict.score):.1f} cy={y:.1f} r=2.4 fill='{colour}' fill-opacity=.55>"
                    f"<title>{title}</title></circle>"
                )
    for step in range(6):
        value = low + (high - low) * step / 5
        parts.append(f"<text x={x(value):.1f} y={height - 6} text-anchor=middle>{value:.1f}</text>")
    return "".join([*parts, "</svg>"])


def _class(view: ClassView, truths: Mapping[str, Truth]) -> str:
    kinds = Counter((truths[frame].defect or "good part") for frame in view.frames if frame in truths)
    shown = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    title = html.escape(view.name or view.class_id)
    images = "".join(
        f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(crop).decode()}'>" for crop in view.crops
    )
    return (
        f"<section class=class><header><b>{title}</b><span>{len(view.frames)} frames</span>"
        f"<span class=soft>{html.escape(view.state)}</span><span class=soft>[{html.escape(shown)}]</span></header>"
        f"<div class=crops>{images}</div></section>"
    )


def _ledger(ledger: Mapping[str, Any]) -> str:
    def reasons(counts: Mapping[str, int]) -> str:
        return html.escape(", ".join(f"{reason} {count}" for reason, count in counts.items())) or "0"

    lines = [
        f"<tr><td>{html.escape(name)}</td><td class=n>{one['captured']}</td><td class=n>{one['scored']}</td>"
        f"<td class=n>{reasons(one['dropped'])}</td><td class=n>{reasons(one['dead_lettered'])}</td>"
        f"<td class=n>{one['gaps']}</td></tr>"
        for name, one in [*ledger["cameras"].items(), ("all", ledger)]
    ]
    heads = (
        "<th>camera<th class=n>captured<th class=n>scored<th class=n>dropped<th class=n>dead-lettered<th class=n>gaps"
    )
    return f"<table><tr>{heads}</tr>{''.join(lines)}</table>"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>"
