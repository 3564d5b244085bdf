"""The demo's page: hostile names stay text, and the file needs no other file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from flawline.messages import Decision
from station.demo import page
from station.demo.classes import ClassView
from station.demo.figures import Truth
from tests.discovery import factories

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def account(**values: Any) -> dict[str, Any]:
    counts = {"captured": 2, "scored": 1, "dropped": {HOSTILE: 1}, "dead_lettered": {}, "gaps": 0, "in_flight": 0}
    return counts | {"balanced": True} | values


def result() -> dict[str, Any]:
    return {
        "ledger": account(cameras={HOSTILE: account()}),
        "frames_per_second": 24.0,
        "latency_ms": {"p50": 100.0, "p99": 200.0},
        "quality": {"pooled_image_auroc": None, "pooled_image_ap": None},
        "alarm_rate": {"target": 0.01, "measured": None, "good_frames": 0},
        "escape_rate": {"measured": None, "defective_frames": 0},
        "classes": {"found": 1, "true": 1, "ari": None, "nmi": None, "frames": 0},
        "seconds": {"to_first_verdict": 1.0, "total": 2.0},
        "peak_rss_bytes": 1 << 30,
        "artefacts": {"page": HOSTILE},
    }


def test_hostile_names_are_shown_as_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    verdict = factories.verdict(1, decision=Decision.REJECT)
    truths = {verdict.frame_id: Truth(HOSTILE, HOSTILE)}
    classes = [ClassView("D-1", HOSTILE, HOSTILE, (verdict.frame_id,), (b"a crop",))]
    page.write(tmp_path / "index.html", result(), [verdict], truths, classes)
    html = (tmp_path / "index.html").read_text()
    assert "<script" not in html
    assert html.count("<img") == 1  # the crop
    assert html.count("&lt;script&gt;") >= 8
    assert re.findall(r'(?:href|src)="([^"]*)"', html) == ["data:image/jpeg;base64,YSBjcm9w"]


def test_chart_has_a_dot_for_each_part_and_a_line_at_the_highest_accepted_score() -> None:
    accepted = [replace(factories.verdict(n), score=score) for n, score in enumerate((0.0, 1.0))]
    rejected = replace(factories.verdict(2, decision=Decision.REJECT), score=2.0)
    truths = {verdict.frame_id: Truth("board", None) for verdict in accepted}
    truths |= {rejected.frame_id: Truth("cloth", "cut")}
    chart = page.chart([*accepted, rejected], truths)
    assert [(row.product, [dot.kind for dot in row.dots]) for row in chart.rows] == [
        ("board", ["good", "good"]),
        ("cloth", ["bad"]),
    ]
    first, second = chart.rows[0].dots
    assert first.x < second.x == chart.accepted_x < chart.rows[1].dots[0].x


def test_chart_without_accepted_parts_has_no_line() -> None:
    verdict = factories.verdict(1, decision=Decision.REJECT)
    assert page.chart([verdict], {verdict.frame_id: Truth("board", "cut")}).accepted_x is None
