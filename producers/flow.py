"""Bounds of the flow: bytes in memory, and the rate at which the spool is sent."""

from __future__ import annotations

import threading

from flawline import telemetry
from flawline.clock import Monotonic, monotonic


class ByteBudget:
    """The unacknowledged bytes that all cameras of a producer may hold; kafka-python 3 itself queues without bound."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()

    def acquire(self, count: int, *, share: float = 1.0, force: bool = False) -> bool:
        """Take `count` bytes when the sum stays within `share` of the limit, and say whether they were taken.

        A frame over the limit may go alone; `force` takes the bytes in any case.
        """
        with self._lock:
            if not force and self.used_bytes > 0 and self.used_bytes + count > self.limit_bytes * share:
                return False
            self.used_bytes += count
            telemetry.PRODUCER_IN_FLIGHT_BYTES.set(self.used_bytes)
            return True

    def release(self, count: int) -> None:
        """Give `count` bytes back."""
        with self._lock:
            self.used_bytes -= count
            telemetry.PRODUCER_IN_FLIGHT_BYTES.set(self.used_bytes)


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
