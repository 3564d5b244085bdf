"""The charts of the demo's page: where each mark stands. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flawline.messages import Decision, Verdict
from station.demo.classes import ClassView
from station.demo.figures import Truth

CHART_WIDTH, CHART_LEFT, CHART_RIGHT = 1010, 150, 16
ROW_HEIGHT = 34
SMALL_WIDTH, SMALL_HEIGHT, SMALL_LEFT, SMALL_TOP = 500, 200, 46, 26
MOST_TICKS = 9
LATENCY_BINS = 32
CURVE_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)

Tick = tuple[float, str]


@dataclass(frozen=True)
class Dot:
    """A part in a chart: its place, `good` or `bad`, whether the line was wrong about it, and its words."""

    x: float
    y: float
    kind: str
    is_wrong: bool
    title: str


@dataclass(frozen=True)
class Row:
    """The parts of one product or class, around the height `y`."""

    name: str
    y: float
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """Parts in rows; `limit_x` is the place of the highest accepted score, None without one."""

    width: int
    height: int
    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    limit_x: float | None = None


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram, and its words."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """Waits from capture to verdict: bars over a logarithmic scale, and the places of the median and p99."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]


@dataclass(frozen=True)
class CurvePoint:
    """What one alarm rate finds: `alarms` good parts are above the cut-off, and the share `recall` of the defects."""

    rate: float
    alarms: int
    recall: float
    x: float
    y: float


@dataclass(frozen=True)
class Curve:
    """Defects found against the alarm rate on good parts; `here` is where the run stands."""

    points: tuple[CurvePoint, ...]
    table: tuple[CurvePoint, ...]
    ticks: tuple[Tick, ...]
    levels: tuple[Tick, ...]
    here: CurvePoint | None

    @property
    def line(self) -> str:
        """The points as an SVG polyline."""
        return " ".join(f"{point.x},{point.y}" for point in self.points)


def even_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two values: steps of 1, 2 or 5 times a power of ten."""
    size = (high - low) / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(size))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def scores(verdicts: Sequence[Verdict], truths: Mapping[str, Truth]) -> Chart:
    """Return a strip for each product: a dot for each part by its aligned score, good above and defective below."""
    values = [verdict.score for verdict in verdicts]
    low, high = min([*values, -0.2]), max([*values, 0.5])

    def x(score: float) -> float:
        return round(CHART_LEFT + (score - low) / (high - low) * (CHART_WIDTH - CHART_LEFT - CHART_RIGHT), 1)

    rows = []
    for number, product in enumerate(sorted({truth.product for truth in truths.values()})):
        middle = number * ROW_HEIGHT + ROW_HEIGHT / 2 + 4
        parts = [verdict for verdict in verdicts if truths[verdict.frame_id].product == product]
        dots = tuple(_dot(part, truths[part.frame_id], x(part.score), middle) for part in parts)
        rows.append(Row(product, middle, dots))
    accepted = [verdict.score for verdict in verdicts if verdict.decision is Decision.ACCEPT]
    return Chart(
        width=CHART_WIDTH,
        height=ROW_HEIGHT * len(rows) + 30,
        rows=tuple(rows),
        ticks=tuple((x(value), f"{value:g}") for value in even_ticks(low, high)),
        limit_x=x(max(accepted)) if accepted else None,
    )


def _dot(verdict: Verdict, truth: Truth, x: float, middle: float) -> Dot:
    kind, lift = ("good", -6) if truth.defect is None else ("bad", 6)
    y = middle + lift + (verdict.sequence * 7 % 9 - 4) * 0.9  # a small deterministic scatter keeps dots apart
    title = f"{verdict.frame_id} {truth.defect or 'good'} {verdict.decision} {verdict.score:.2f}"
    is_wrong = (verdict.decision is Decision.ACCEPT) is (truth.defect is not None)
    return Dot(x, round(y, 1), kind, is_wrong, title)


def classes_over_time(verdicts: Sequence[Verdict], truths: Mapping[str, Truth], classes: Sequence[ClassView]) -> Chart:
    """Return a row for each class, with a dot for each of its frames at the time of its capture."""
    captured = {verdict.frame_id: verdict for verdict in verdicts}
    begin = min((verdict.captured_at for verdict in verdicts), default=0)
    span_s = max(max((verdict.captured_at for verdict in verdicts), default=0) - begin, 1) / 1e9

    def x(seconds: float) -> float:
        return round(CHART_LEFT + seconds / span_s * (CHART_WIDTH - CHART_LEFT - CHART_RIGHT), 1)

    rows = []
    for number, view in enumerate(classes):
        middle = number * ROW_HEIGHT + ROW_HEIGHT / 2 + 4
        members = [captured[frame] for frame in view.frames if frame in captured]
        dots = tuple(
            _member(part, truths[part.frame_id], x((part.captured_at - begin) / 1e9), middle) for part in members
        )
        rows.append(Row(view.name or view.class_id, middle, dots))
    ticks = tuple((x(value), f"{value:g} s") for value in even_ticks(0, span_s))
    return Chart(CHART_WIDTH, ROW_HEIGHT * len(rows) + 30, tuple(rows), ticks)


def _member(verdict: Verdict, truth: Truth, x: float, middle: float) -> Dot:
    kind = "good" if truth.defect is None else "bad"
    y = middle + (verdict.sequence * 7 % 9 - 4) * 1.6
    return Dot(x, round(y, 1), kind, truth.defect is None, f"{verdict.frame_id} {truth.defect or 'good part'}")


def _log_x(value: float, low: float, high: float) -> float:
    share = math.log(value / low) / math.log(high / low)
    return round(SMALL_LEFT + share * (SMALL_WIDTH - SMALL_LEFT - 16), 1)


def latencies(verdicts: Sequence[Verdict]) -> Histogram | None:
    """Return the histogram of the times from capture to verdict, None where there is none."""
    waits_ms = np.array([max((verdict.decided_at - verdict.captured_at) / 1e6, 0.1) for verdict in verdicts])
    if not len(waits_ms):
        return None
    low, high = float(waits_ms.min()) / 1.1, float(waits_ms.max()) * 1.1
    edges = np.geomspace(low, high, LATENCY_BINS + 1)
    counts, _ = np.histogram(waits_ms, edges)
    bars = []
    for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            height = round(count / int(counts.max()) * SMALL_HEIGHT, 1)
            x = _log_x(left, low, high)
            title = f"{left:.0f} to {right:.0f} ms: {count:,} parts"
            bars.append(
                Bar(x, round(SMALL_HEIGHT - height, 1), round(_log_x(right, low, high) - x - 1, 1), height, title)
            )
    decades = [factor * 10.0**power for power in range(-1, 7) for factor in (1, 2, 5)]
    ticks = tuple((_log_x(value, low, high), f"{value:g}") for value in decades if low < value < high)
    marks = tuple(
        (_log_x(float(np.percentile(waits_ms, share)), low, high), f"{name} {np.percentile(waits_ms, share):.0f} ms")
        for share, name in ((50, "median"), (99, "p99"))
    )
    return Histogram(tuple(bars), ticks, marks)


def alarm_curve(verdicts: Sequence[Verdict], truths: Mapping[str, Truth]) -> Curve | None:
    """Return what share of the defects each alarm rate on good parts finds; None without both kinds of part.

    A cut-off with `k` good parts above it is the score of the next one below; defects above it are found.
    """
    good = sorted((v.score for v in verdicts if truths[v.frame_id].defect is None), reverse=True)
    bad = np.array([v.score for v in verdicts if truths[v.frame_id].defect is not None])
    if len(good) < 2 or not len(bad):
        return None
    low, high = 0.5 / len(good), max(CURVE_RATES)

    def point(alarms: int, recall: float | None = None) -> CurvePoint:
        share = float((bad > good[alarms]).mean()) if recall is None else recall
        x = _log_x(min(max(alarms / len(good), low), high), low, high)
        return CurvePoint(alarms / len(good), alarms, share, x, round((1 - share) * SMALL_HEIGHT, 1))

    most = min(int(high * len(good)), len(good) - 1)
    alarmed = sum(v.decision is not Decision.ACCEPT for v in verdicts if truths[v.frame_id].defect is None)
    caught = sum(v.decision is not Decision.ACCEPT for v in verdicts if truths[v.frame_id].defect is not None)
    table = {
        int(rate * len(good)): point(int(rate * len(good))) for rate in CURVE_RATES if int(rate * len(good)) <= most
    }
    ticks = [(low, "0")] + [(rate, f"{100 * rate:g} %") for rate in CURVE_RATES if rate > 2 * low]
    return Curve(
        points=tuple(point(alarms) for alarms in range(most + 1)),
        table=tuple(table.values()),
        ticks=tuple((_log_x(rate, low, high), label) for rate, label in ticks),
        levels=tuple((round((1 - share) * SMALL_HEIGHT, 1), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)),
        here=point(alarmed, caught / len(bad)),
    )
