"""How often something that dies may be started again."""

from __future__ import annotations

from collections import deque

from flawline import clock


class RestartBudget:
    """At most `limit` restarts within any `window_s` seconds."""

    def __init__(self, limit: int, window_s: float, now: clock.Monotonic = clock.monotonic) -> None:
        self._limit = limit
        self._window_s = window_s
        self._now = now
        self._restarts: deque[float] = deque()

    def allow(self) -> bool:
        """Whether one more restart is within the budget; if so, it is counted."""
        now = self._now()
        while self._restarts and now - self._restarts[0] >= self._window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._limit:
            return False
        self._restarts.append(now)
        return True
