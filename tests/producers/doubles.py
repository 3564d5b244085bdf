"""Doubles that the tests of producers share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from producers.camera import CameraError, Capture


class FakeClock:
    """Is a clock that moves only by `advance`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Return noise, uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def capture(seed: int = 0, **fields: object) -> Capture:
    """Return a capture of noise with the present time."""
    return Capture(captured_at=time.time_ns(), pixels=picture(seed), **fields)


def until(condition: Callable[[], object], timeout_s: float = 120.0, what: str = "condition") -> None:
    """Wait until `condition` is true; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s} s"
        time.sleep(0.01)


class ScriptedCamera:
    """Delivers `count` captures, then ends, goes away, or hangs until `release` is set, as `then` says."""

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
