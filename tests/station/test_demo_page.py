"""The demo's page: hostile names stay text, and the file needs no other file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.messages import Decision, Verdict
from station.demo import charts, page, parts, summary
from station.demo.classes import ClassView
from station.demo.figures import Truth
from station.demo.parts import PartView
from station.explanation import picture_of
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


def view_of(verdict: Verdict, title: str) -> PartView:
    picture = picture_of(np.zeros((8, 8, 3), np.uint8))
    return PartView(picture, picture, picture, (), (), title, HOSTILE, str(verdict.decision))


def test_hostile_names_are_shown_as_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    verdict = factories.verdict(1, decision=Decision.REJECT)
    truths = {verdict.frame_id: Truth(HOSTILE, HOSTILE)}
    classes = [ClassView("D-1", HOSTILE, HOSTILE, (verdict.frame_id,), (b"a crop",))]
    page.write(tmp_path / "index.html", result(), [verdict], truths, classes, view_of)
    html = (tmp_path / "index.html").read_text()
    assert "<script" not in html
    assert html.count("<img") == 1  # the crop
    assert html.count("&lt;script&gt;") >= 8
    addresses = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert addresses.count("data:image/jpeg;base64,YSBjcm9w") == 1
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)


def test_page_shows_what_was_found_missed_and_alarmed_and_says_where_there_is_nothing(tmp_path: Path) -> None:
    caught = replace(factories.verdict(1, decision=Decision.REJECT), score=2.0)
    missed, accepted = replace(factories.verdict(2), score=0.5), replace(factories.verdict(3), score=0.1)
    alarmed = replace(factories.verdict(4, decision=Decision.REVIEW), score=1.0)
    truths = {
        caught.frame_id: Truth("board", "cut"),
        missed.frame_id: Truth("board", "cut"),
        accepted.frame_id: Truth("board", None),
        alarmed.frame_id: Truth("cloth", None),
    }
    classes = [ClassView("D-1", None, "confirmed", (caught.frame_id,), ())]
    page.write(tmp_path / "index.html", result(), [caught, missed, accepted, alarmed], truths, classes, view_of)
    html = (tmp_path / "index.html").read_text()
    assert re.findall(r'<section class="part".*?<b>(.*?)</b>', html, re.S) == ["D-1", "missed", "false alarm"]
    assert "What it missed: 1 defective part<" in html and "False alarms: 1 good part<" in html
    page.write(tmp_path / "index.html", result(), [accepted], truths, [], view_of)
    html = (tmp_path / "index.html").read_text()
    assert "Every defective part was found" in html and "Every good part was accepted" in html


@pytest.mark.parametrize(
    ("value", "text"), [(0.9997, "0.9997"), (0.99997, "0.9999"), (1.0, "1.0000"), (0.5, "0.5000"), (None, "-")]
)
def test_figure_below_1_is_not_shown_as_1(value: float | None, text: str) -> None:
    assert summary.number(value, 4) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0 %"), (0.0001, "< 0.1 %"), (0.0051, "0.5 %"), (0.9999, "> 99.9 %"), (1.0, "100.0 %")]
)
def test_share_that_is_not_none_or_all_is_not_shown_so(value: float, text: str) -> None:
    assert summary.percent(value) == text


def test_chart_has_a_dot_for_each_part_and_a_line_at_the_highest_accepted_score() -> None:
    accepted = [replace(factories.verdict(n), score=score) for n, score in enumerate((0.0, 1.0))]
    rejected = replace(factories.verdict(2, decision=Decision.REJECT), score=2.0)
    truths = {verdict.frame_id: Truth("board", None) for verdict in accepted}
    truths |= {rejected.frame_id: Truth("cloth", "cut")}
    chart = charts.scores([*accepted, rejected], truths)
    assert [(row.name, [dot.kind for dot in row.dots]) for row in chart.rows] == [
        ("board", ["good", "good"]),
        ("cloth", ["bad"]),
    ]
    first, second = chart.rows[0].dots
    assert first.x < second.x == chart.limit_x < chart.rows[1].dots[0].x


def test_chart_without_accepted_parts_has_no_line() -> None:
    verdict = factories.verdict(1, decision=Decision.REJECT)
    assert charts.scores([verdict], {verdict.frame_id: Truth("board", "cut")}).limit_x is None


def test_defect_that_was_accepted_and_good_part_that_was_not_are_marked() -> None:
    missed, alarmed = factories.verdict(1), factories.verdict(2, decision=Decision.REJECT)
    chart = charts.scores([missed, alarmed], {missed.frame_id: Truth("a", "cut"), alarmed.frame_id: Truth("a", None)})
    assert all(dot.is_wrong for dot in chart.rows[0].dots)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_lie_between_the_ends_and_are_few(low: float, span: float) -> None:
    ticks = charts.even_ticks(low, low + span)
    assert len(ticks) <= charts.MOST_TICKS + 1
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in ticks)


def test_curve_counts_defects_above_the_cut_off_of_each_number_of_alarms() -> None:
    good = [replace(factories.verdict(n), score=float(n)) for n in range(10)]
    bad = [replace(factories.verdict(100 + n), score=score) for n, score in enumerate((20.0, 8.5, 7.5, -1.0))]
    truths = {verdict.frame_id: Truth("a", None) for verdict in good}
    truths |= {verdict.frame_id: Truth("a", "cut") for verdict in bad}
    curve = charts.alarm_curve([*good, *bad], truths)
    assert curve is not None
    assert [(point.alarms, point.recall) for point in curve.points] == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert curve.here is not None and (curve.here.alarms, curve.here.recall) == (0, 0.0)  # all were accepted
    assert charts.alarm_curve(good, truths) is None


def test_histogram_counts_each_part_once_and_marks_median_and_p99() -> None:
    waits_ms = [10, 20, 20, 40, 400]
    run = [
        replace(factories.verdict(n), captured_at=10**15, decided_at=10**15 + wait * 10**6)
        for n, wait in enumerate(waits_ms)
    ]
    histogram = charts.latencies(run)
    assert histogram is not None and [label for _, label in histogram.marks] == ["median 20 ms", "p99 386 ms"]
    assert sum(int(bar.title.split(": ")[1].split()[0]) for bar in histogram.bars) == len(waits_ms)
    assert charts.latencies([]) is None


def test_timeline_has_a_row_for_each_class_with_its_frames_in_time() -> None:
    run = [replace(factories.verdict(n), captured_at=n * 10**9) for n in range(4)]
    truths = {verdict.frame_id: Truth("a", "cut") for verdict in run}
    classes = [ClassView("D-1", "cut", "confirmed", (run[1].frame_id, run[3].frame_id), ())]
    [row] = charts.classes_over_time(run, truths, classes).rows
    assert row.name == "cut" and row.dots[0].x < row.dots[1].x == charts.CHART_WIDTH - charts.CHART_RIGHT


def test_without_a_class_the_hottest_part_of_each_product_is_shown() -> None:
    run = [replace(factories.verdict(n, decision=Decision.REJECT), score=float(n)) for n in range(4)]
    truths = {verdict.frame_id: Truth("ab"[n % 2], "cut") for n, verdict in enumerate(run)}
    assert parts.heroes(run, truths, []) == [(run[3], "no class yet"), (run[2], "no class yet")]
