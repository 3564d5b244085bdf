"""The camera of the kind `simulated`: its k-th capture shows the k-th part of the procedural line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count

from flawline.clock import UtcNs, utc_ns
from flawline.settings.producers import SimulatedCamera
from producers.camera import Capture
from producers.simulation import DEFECTS, PRODUCTS, LineSettings, SimulatedLine


def line_settings(settings: SimulatedCamera) -> LineSettings:
    """Return the settings of the line that the camera shows. Raises UsageError for an unknown product or defect."""
    return LineSettings(
        seed=settings.seed,
        products=PRODUCTS if settings.products is None else tuple(settings.products),
        defects=DEFECTS if settings.defects is None else tuple(settings.defects),
        defect_rate=settings.defect_rate,
        size=settings.size,
        contrast=settings.contrast,
        height=settings.height,
        width=settings.width,
    )


class SimulatedLineCamera:
    """Renders the parts of a simulated line, from the first one, as fast as the reader asks for them.

    Frames hold no truth: `replay_key` is the index of the part, which a test passes to `SimulatedLine.truth`.
    """

    def __init__(self, settings: SimulatedCamera, now: UtcNs = utc_ns) -> None:
        self.name = settings.name
        self._frames = settings.frames
        self._line = SimulatedLine(line_settings(settings))
        self._now = now
        self._closed = threading.Event()

    def open(self) -> None:
        """Open the camera; `frames` starts at the first part, also after `close`."""
        self._closed.clear()

    def frames(self) -> Iterator[Capture]:
        """Yield one capture for each part until the configured number is reached or the camera is closed."""
        for index in count() if self._frames is None else range(self._frames):
            if self._closed.is_set():
                return
            captured_at = self._now()
            part = self._line.render(self.name, index)
            yield Capture(captured_at=captured_at, pixels=part.image, replay_key=str(index))

    def close(self) -> None:
        """End `frames` before its next part."""
        self._closed.set()
