"""The limit of the rate at which a spool is sent."""

from __future__ import annotations

from flawline.clock import Monotonic, monotonic


class RateLimit:
    """A token bucket: `rate_bytes_per_s`, with a burst of one second. Not thread-safe."""

    def __init__(self, rate_bytes_per_s: float, clock: Monotonic = monotonic) -> None:
        self._rate = rate_bytes_per_s
        self._clock = clock
        self._tokens = rate_bytes_per_s
        self._then = clock()

    def delay_s(self) -> float:
        """Return the wait before the next item, 0 for none; an item larger than the burst makes the next one wait."""
        now = self._clock()
        self._tokens = min(self._rate, self._tokens + (now - self._then) * self._rate)
        self._then = now
        return max(0.0, -self._tokens / self._rate)

    def spend(self, count: int) -> None:
        """Subtract the `count` bytes of an item that is sent now."""
        self._tokens -= count
