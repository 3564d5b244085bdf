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
from station.pages import stacked_bars
from station.pages.heat import heat_colours, heat_layer
from station.pages.stacked_bars import Chart
from station.web.queries import MinuteCount

HOUR_MINUTES = 60


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
    """Return the hour that ends with the minute of `now`."""
    last = now.replace(second=0, microsecond=0)
    first = last - timedelta(minutes=HOUR_MINUTES - 1)
    minutes: dict[datetime, Counter[str]] = defaultdict(Counter)
    for count in counts:
        if first <= count.minute <= last:
            minutes[count.minute][count.decision] += count.frames
    places = [((at - first) // timedelta(minutes=1), f"{at:%H:%M}", stack) for at, stack in sorted(minutes.items())]
    moments = [(first + timedelta(minutes=minute)).isoformat() for minute in range(HOUR_MINUTES)]
    return stacked_bars.chart(places, HOUR_MINUTES, f"{first:%H:%M}", f"{last:%H:%M}", moments)


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
