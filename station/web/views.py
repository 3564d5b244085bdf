"""Pure functions from what was read to what the pages show."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import cv2
import numpy as np

from flawline import imaging
from flawline.messages import Codec, Decision
from ledger.accounting import Account, Report
from station.pages.heat import heat_colours, heat_layer
from station.web.queries import MinuteCount

HOUR_MINUTES = 60
DECISIONS = tuple(str(decision) for decision in Decision)

CHART_WIDTH, CHART_HEIGHT, CHART_LEFT = 1010, 150, 40


@dataclass(frozen=True)
class Bar:
    """One decision in one minute: a rectangle of the chart, in its units."""

    x: float
    y: float
    width: float
    height: float
    decision: str
    title: str


@dataclass(frozen=True)
class Chart:
    """Decisions per minute: stacked bars, and the label of the highest."""

    bars: tuple[Bar, ...]
    highest: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Share:
    """How many of a camera's frames were not accepted."""

    camera: str
    frames: int
    alarms: int

    @property
    def text(self) -> str:
        return f"{self.alarms / self.frames:.2%}" if self.frames else "–"


def chart(counts: Iterable[MinuteCount], now: datetime) -> Chart:
    """Return the hour that ends with the minute of `now`, accepted frames at the bottom."""
    last = now.replace(second=0, microsecond=0)
    first = last - timedelta(minutes=HOUR_MINUTES - 1)
    minutes: dict[datetime, Counter[str]] = defaultdict(Counter)
    for count in counts:
        if first <= count.minute <= last:
            minutes[count.minute][count.decision] += count.frames
    highest = max((sum(stack.values()) for stack in minutes.values()), default=0)
    step = (CHART_WIDTH - CHART_LEFT) / HOUR_MINUTES
    bars = []
    for minute, stack in sorted(minutes.items()):
        x, y = CHART_LEFT + step * ((minute - first) // timedelta(minutes=1)), float(CHART_HEIGHT)
        for decision in sorted(stack, key=_place):
            height = CHART_HEIGHT * stack[decision] / highest
            y -= height
            title = f"{minute:%H:%M} {decision}: {stack[decision]}"
            bars.append(Bar(round(x, 2), round(y, 2), round(step - 1, 2), round(height, 2), decision, title))
    return Chart(tuple(bars), highest, first, last)


def _place(decision: str) -> int:
    return DECISIONS.index(decision) if decision in DECISIONS else len(DECISIONS)


def shares(counts: Iterable[MinuteCount]) -> tuple[list[Share], Share]:
    """Return the alarms of each camera, and of the line."""
    frames: Counter[str] = Counter()
    alarms: Counter[str] = Counter()
    for count in counts:
        frames[count.camera] += count.frames
        alarms[count.camera] += count.frames if count.decision != Decision.ACCEPT else 0
    cameras = [Share(name, frames[name], alarms[name]) for name in sorted(frames)]
    return cameras, Share("all", frames.total(), alarms.total())


def ledger_rows(report: Report) -> list[tuple[str, Account]]:
    """Return a row for each camera, and one for the line."""
    return [*sorted(report.cameras.items()), ("all", report.total)]


def heat_png(data: bytes, height: int, width: int) -> bytes:
    """Return the PNG of a stored heat map (float16, little endian)."""
    return imaging.encode(heat_colours(np.frombuffer(data, "<f2").reshape(height, width)), Codec.PNG)


def layer_png(data: bytes, height: int, width: int) -> bytes:
    """Return the PNG of a stored heat map to be laid over its picture: what is normal is transparent."""
    layer = heat_layer(np.frombuffer(data, "<f2").reshape(height, width))
    done, png = cv2.imencode(".png", cv2.cvtColor(layer, cv2.COLOR_RGBA2BGRA))
    assert done, "a small array is always encoded"
    return bytes(png)


def next_page(ids: Sequence[int], limit: int) -> int | None:
    """Return the `before` of the next page, None after the last page; `ids` holds one more than the page shows."""
    return ids[limit - 1] if len(ids) > limit else None
