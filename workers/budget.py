"""Bounds in bytes, with hysteresis, so that pausing does not flutter at the limit."""

from __future__ import annotations

import threading

RESUME_SHARE = 0.5


class ByteGate:
    """Counts bytes in flight: closes at the limit, opens again at half of it. Safe to use from several threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._resume = int(limit_bytes * RESUME_SHARE)
        self._held = 0
        self._closed = False
        self._changed = threading.Condition()

    def add(self, size_bytes: int) -> None:
        """Count bytes that came in; the gate may close."""
        with self._changed:
            self._held += size_bytes
            self._closed = self._closed or self._held >= self._limit

    def remove(self, size_bytes: int) -> None:
        """Count bytes that are gone; the gate may open. Raises ValueError for more than were added."""
        with self._changed:
            if size_bytes > self._held:
                raise ValueError(f"{size_bytes} bytes are given back of {self._held} held")
            self._held -= size_bytes
            if self._closed and self._held <= self._resume:
                self._closed = False
                self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether nothing more should come in."""
        return self._closed

    @property
    def held_bytes(self) -> int:
        """Bytes in flight."""
        return self._held

    def wait_open(self, timeout_s: float) -> bool:
        """Wait until the gate is open; return False when it is not after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._closed, timeout_s)
