"""The share of their time that some threads work."""

from __future__ import annotations

import threading
from collections import deque

WINDOW_S = 5.0
"""The time that a share is of. A judgement: some twenty reports of an actor, and a fraction of what a change takes."""


class BusyTime:
    """Adds up the working time of `threads` threads over the last seconds; times in seconds of one clock."""

    def __init__(self, threads: int, now: float) -> None:
        self._threads = threads
        self._start = now
        self._lock = threading.Lock()
        self._work: deque[tuple[float, float]] = deque()

    def add(self, seconds: float, now: float) -> None:
        """Count work of a thread that has ended."""
        with self._lock:
            self._work.append((now, seconds))
            self._forget(now)

    def share(self, now: float) -> float:
        """Return the share of the last `WINDOW_S`, at most 1; work counts when it ends."""
        with self._lock:
            self._forget(now)
            passed_s = min(WINDOW_S, now - self._start)
            busy_s = sum(seconds for _, seconds in self._work)
        return min(1.0, busy_s / (passed_s * self._threads)) if passed_s > 0 else 0.0

    def _forget(self, now: float) -> None:
        while self._work and self._work[0][0] <= now - WINDOW_S:
            self._work.popleft()
