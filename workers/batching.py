"""When a batch leaves: at its size limit, or when its first item has waited long enough."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from flawline import clock

T = TypeVar("T")

QUEUED_BATCHES = 2
"""Items that may wait, in batches: one is filled while one is scored. More would only grow old."""


@dataclass(frozen=True)
class BatchPolicy:
    """Size limit and latency cap of a batch."""

    limit: int
    cap_s: float

    def wait_s(self, count: int, oldest_age_s: float) -> float:
        """Return the seconds that a batch of `count` items may still wait for more; 0 means that it leaves now."""
        return 0.0 if count >= self.limit else max(0.0, self.cap_s - oldest_age_s)


class Batcher(Generic[T]):
    """A queue bounded in items and bytes that is emptied in batches. `put` waits for room, `take` for a due batch."""

    def __init__(self, policy: BatchPolicy, limit_bytes: int, now: clock.Monotonic = clock.monotonic) -> None:
        self._policy = policy
        self._limit_bytes = limit_bytes
        self._now = now
        self._items: deque[tuple[T, int, float]] = deque()
        self._bytes = 0
        self._waiting = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def _has_room(self, size_bytes: int) -> bool:
        # A single item larger than the bound must still pass, alone.
        return not self._items or (
            len(self._items) < self._policy.limit * QUEUED_BATCHES and self._bytes + size_bytes <= self._limit_bytes
        )

    def put(self, item: T, size_bytes: int) -> bool:
        """Add an item as soon as there is room; return False when the queue was closed instead."""
        with self._changed:
            if not self._has_room(size_bytes):
                self._waiting += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._has_room(size_bytes))
                self._waiting -= 1
            if self._closed:
                return False
            self._items.append((item, size_bytes, self._now()))
            self._bytes += size_bytes
            self._changed.notify_all()
            return True

    def take(self) -> list[T]:
        """Return the next batch, in order of arrival; an empty one once the queue is closed and empty."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._items)
                if not self._items:
                    return []
                wait_s = self._policy.wait_s(len(self._items), self._now() - self._items[0][2])
                # An item that finds no room would wait for a batch that waits for it.
                if wait_s <= 0 or self._closed or self._waiting:
                    break
                self._changed.wait(wait_s)
            count = min(self._policy.limit, len(self._items))
            taken = [self._items.popleft() for _ in range(count)]
            self._bytes -= sum(size for _, size, _ in taken)
            self._changed.notify_all()
            return [item for item, _, _ in taken]

    def close(self) -> None:
        """Let `put` refuse and `take` hand out what is left, then nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
