"""Stand-ins that the producers' tests share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from producers.camera import CameraError, Capture


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Uint8 (H, W, 3) noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def capture(seed: int = 0, **fields: object) -> Capture:
    """A capture of noise, stamped now."""
    return Capture(captured_at=time.time_ns(), pixels=picture(seed), **fields)


def until(condition: Callable[[], object], timeout_s: float = 20.0, what: str = "condition") -> None:
    """Wait until `condition` holds; fails after a generous limit."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s} s"
        time.sleep(0.01)


class ScriptedCamera:
    """Gives `count` captures, then does what `then` says: end, go away, or hang until `release` is set."""

    def __init__(self, name: str, count: int, then: str, release: threading.Event | None = None) -> None:
        self.name = name
        self.count = count
        self.then = then
        self.release = release or threading.Event()
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1
        if self.then == "unreachable":
            raise CameraError("rtsp://admin:secret@10.0.0.9/1 does not answer")
        if self.then == "hang-in-open":
            self.release.wait(60)

    def frames(self) -> Iterator[Capture]:
        for index in range(self.count):
            yield capture(index)
        if self.then == "hang":
            self.release.wait(60)
            yield capture(999)
        elif self.then == "away":
            raise CameraError("the cable was pulled")

    def close(self) -> None:
        self.closed += 1
