"""When a camera counts as stalled: a pure policy with an injected clock, which the camera's runner asks."""

from __future__ import annotations

import threading
from collections import deque
from enum import StrEnum
from statistics import median

from flawline.clock import Monotonic, monotonic

STALL_PERIODS = 2.0
STALL_MARGIN_S = 1.0
"""A camera is stalled after twice its frame period and a second: one late frame is jitter, silence is not."""

LEARNED_FROM_FRAMES = 16


class Wait(StrEnum):
    """What a camera's reader is doing."""

    OPENING = "opening"
    FIRST_FRAME = "waiting for its first frame"
    NEXT_FRAME = "waiting for its next frame"
    ELSEWHERE = "busy with a frame"


class StallWatch:
    """Decides whether a reader waits for its camera longer than the camera may take.

    Time that the reader spends on publishing a frame, or on keeping the rate, is not the camera's. The frame period is
    the configured one, or the median of the last intervals when that is longer. Called from two threads.
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
        """The camera answered; its first frame has the opening's limit too."""
        with self._lock:
            self._wait, self._since = Wait.FIRST_FRAME, self._clock()

    def frame(self) -> None:
        """A frame came; the reader is busy with it until `asking`."""
        with self._lock:
            now = self._clock()
            if self._last_frame is not None:
                self._intervals.append(now - self._last_frame)
            self._last_frame = now
            self._wait, self._since = Wait.ELSEWHERE, now

    def asking(self) -> None:
        """The reader asks for the next frame."""
        with self._lock:
            if self._wait is Wait.ELSEWHERE:
                self._wait, self._since = Wait.NEXT_FRAME, self._clock()

    @property
    def period_s(self) -> float:
        """The frame period, the longer of the configured and the learned one; 0 while both are unknown."""
        return max(self._configured_period_s or 0.0, median(self._intervals) if self._intervals else 0.0)

    @property
    def limit_s(self) -> float:
        """How long the reader may wait for what it waits for now."""
        if self._wait in (Wait.OPENING, Wait.FIRST_FRAME):
            return self._open_timeout_s
        if self._wait is Wait.ELSEWHERE:
            return float("inf")
        known = self._configured_period_s is not None or self._intervals
        return STALL_PERIODS * self.period_s + STALL_MARGIN_S if known else self._open_timeout_s

    def overdue(self) -> str | None:
        """What the camera is late with, as words for a log line, or None."""
        with self._lock:
            waited_s = self._clock() - self._since
            if waited_s <= self.limit_s:
                return None
            return f"{self._wait} for {waited_s:.1f} s (limit {self.limit_s:.1f} s)"
