"""The rule that decides whether a camera is stalled: a pure policy with an injected clock."""

from __future__ import annotations

import threading
from collections import deque
from enum import StrEnum
from statistics import median

from flawline.clock import Monotonic, monotonic

STALL_PERIODS = 2.0
STALL_MARGIN_S = 1.0
"""A camera is stalled after 2 frame periods and 1 s without a frame, so that one late frame is no stall. A judgement,
not measured."""

LEARNED_FROM_FRAMES = 16
"""Number of the last intervals whose median is the learned frame period. A judgement, not measured."""


class Wait(StrEnum):
    """The present activity of a camera's reader."""

    OPENING = "opening"
    FIRST_FRAME = "waiting for its first frame"
    NEXT_FRAME = "waiting for its next frame"
    ELSEWHERE = "busy with a frame"


class StallWatch:
    """Decides whether a reader waits too long for its camera.

    The time in which the reader publishes a frame, or waits to keep the rate, does not count. The frame period is the
    configured one, or the median of the last intervals when that is longer. One thread reads the camera and reports
    to the watch; another thread calls `overdue`.
    """

    def __init__(self, period_s: float | None, open_timeout_s: float, clock: Monotonic = monotonic) -> None:
        self._configured_period_s = period_s
        self._open_timeout_s = open_timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._wait = Wait.OPENING
        self._since = clock()
        self._last_frame: float | None = None
        self._intervals: deque[float] = deque(maxlen=LEARNED_FROM_FRAMES)

    def opened(self) -> None:
        """Record that the camera is open; the limit of the first frame is `open_timeout_s` too."""
        with self._lock:
            self._wait, self._since = Wait.FIRST_FRAME, self._clock()

    def frame(self) -> None:
        """Record that a frame arrived; the reader is busy with it until `asking`."""
        with self._lock:
            now = self._clock()
            if self._last_frame is not None:
                self._intervals.append(now - self._last_frame)
            self._last_frame = now
            self._wait, self._since = Wait.ELSEWHERE, now

    def asking(self) -> None:
        """Record that the reader asks for the next frame."""
        with self._lock:
            if self._wait is Wait.ELSEWHERE:
                self._wait, self._since = Wait.NEXT_FRAME, self._clock()

    @property
    def period_s(self) -> float:
        """Return the longer of the configured and the learned frame period; 0 while both are unknown."""
        return max(self._configured_period_s or 0.0, median(self._intervals) if self._intervals else 0.0)

    @property
    def limit_s(self) -> float:
        """Return the longest wait that is no stall in the present activity."""
        if self._wait in (Wait.OPENING, Wait.FIRST_FRAME):
            return self._open_timeout_s
        if self._wait is Wait.ELSEWHERE:
            return float("inf")
        known = self._configured_period_s is not None or self._intervals
        return STALL_PERIODS * self.period_s + STALL_MARGIN_S if known else self._open_timeout_s

    def overdue(self) -> str | None:
        """Return a description of the wait that is too long, for a log line, or None."""
        with self._lock:
            waited_s = self._clock() - self._since
            if waited_s <= self.limit_s:
                return None
            return f"{self._wait} for {waited_s:.1f} s (limit {self.limit_s:.1f} s)"
