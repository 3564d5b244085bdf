"""The rate at which the spool is sent."""

from __future__ import annotations

from flawline.clock import Monotonic, monotonic


class RateLimit:
    """A token bucket of bytes: `rate` per second, with a burst of one second. Not thread-safe."""

    def __init__(self, rate_bytes_per_s: float, clock: Monotonic = monotonic) -> None:
        self._rate = rate_bytes_per_s
        self._clock = clock
        self._tokens = rate_bytes_per_s
        self._then = clock()

    def delay_s(self) -> float:
        """How long to wait before the next item; 0 when it may go now. An item over the burst leaves a debt."""
        now = self._clock()
        self._tokens = min(self._rate, self._tokens + (now - self._then) * self._rate)
        self._then = now
        return max(0.0, -self._tokens / self._rate)

    def spend(self, count: int) -> None:
        """Account for an item that goes now."""
        self._tokens -= count
