"""How often a process that dies may be started again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from flawline.clock import Monotonic, monotonic


@dataclass
class RestartLimit:
    """Allows at most `limit` restarts within any `window_s` seconds."""

    limit: int
    window_s: float
    clock: Monotonic = monotonic
    _restarts: deque[float] = field(default_factory=deque, init=False)

    def allows(self) -> bool:
        """Return whether the limit allows one more restart now, and count it if it does."""
        now = self.clock()
        while self._restarts and now - self._restarts[0] >= self.window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self.limit:
            return False
        self._restarts.append(now)
        return True
