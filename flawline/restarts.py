"""How often a process that dies may be started again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from flawline.clock import Monotonic, monotonic


@dataclass
class RestartLimit:
    """Allows at most `limit` restarts within any `window_s` seconds, each after a longer wait than the one before.

    The waits double from `first_wait_s` to `longest_wait_s`; with `first_wait_s` 0 there are none.
    """

    limit: int
    window_s: float
    first_wait_s: float = 0.0
    longest_wait_s: float = 10.0
    clock: Monotonic = monotonic
    _restarts: deque[float] = field(default_factory=deque, init=False)

    def wait_s(self) -> float | None:
        """Count one more restart; return the seconds to wait before it, or None when the limit does not allow it."""
        now = self.clock()
        while self._restarts and now - self._restarts[0] >= self.window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self.limit:
            return None
        wait_s = self.first_wait_s * 2.0 ** min(len(self._restarts), 30)
        self._restarts.append(now)
        return min(wait_s, self.longest_wait_s)
