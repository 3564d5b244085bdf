"""A limit on the bytes that a process holds, with hysteresis, so that pausing does not flutter at the limit."""

from __future__ import annotations

import threading
from collections.abc import Callable

REOPEN_SHARE = 0.5
"""A closed budget opens again at half of its limit. A judgement, not measured."""


class ByteBudget:
    """Counts bytes in flight. It closes at the limit, and opens again at half of it. Thread-safe.

    `on_change` gets the held bytes after each change, for a gauge.
    """

    def __init__(self, limit_bytes: int, on_change: Callable[[int], object] = lambda _: None) -> None:
        self.limit_bytes = limit_bytes
        self._on_change = on_change
        self._held_bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def acquire(self, size_bytes: int, *, share: float = 1.0, force: bool = False) -> bool:
        """Take bytes when the sum stays within `share` of the limit, and return whether they were taken.

        An item over the limit may go alone; `force` takes the bytes in any case.
        """
        with self._changed:
            fits = self._held_bytes == 0 or self._held_bytes + size_bytes <= self.limit_bytes * share
            if not fits and not force:
                return False
            self._held_bytes += size_bytes
            self._closed = self._closed or self._held_bytes >= self.limit_bytes
            self._on_change(self._held_bytes)
            return True

    def add(self, size_bytes: int) -> None:
        """Count bytes that are there already; the budget may close."""
        self.acquire(size_bytes, force=True)

    def release(self, size_bytes: int) -> None:
        """Give bytes back; the budget may open. Raises ValueError for more than are held."""
        with self._changed:
            if size_bytes > self._held_bytes:
                raise ValueError(f"{size_bytes} bytes are given back of {self._held_bytes} held")
            self._held_bytes -= size_bytes
            self._on_change(self._held_bytes)
            if self._closed and self._held_bytes <= self.limit_bytes * REOPEN_SHARE:
                self._closed = False
                self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether nothing more should come in."""
        return self._closed

    @property
    def held_bytes(self) -> int:
        """Bytes in flight."""
        return self._held_bytes

    def wait_open(self, timeout_s: float) -> bool:
        """Wait until the budget is open; return False when it is not after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._closed, timeout_s)
