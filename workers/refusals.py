"""What the broker refused of the frames in work, so that the next attempt at a frame sends less of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

LIMIT = 10_000
"""Refusals that are remembered; of an older one the broker is asked once more."""


@dataclass(frozen=True)
class Refusal:
    """The topics for which records of one frame were refused, and the last error in words."""

    topics: frozenset[str]
    error: str


class Refusals:
    """Refusals by partition and offset of the frame. Thread-safe."""

    def __init__(self) -> None:
        self._by_offset: dict[tuple[int, int], Refusal] = {}
        self._lock = threading.Lock()

    def add(self, partition: int, offset: int, topic: str, error: str) -> bool:
        """Remember a refusal; return False when a record of the frame for this topic was refused before."""
        with self._lock:
            before = self._by_offset.get((partition, offset), Refusal(frozenset(), ""))
            if topic in before.topics:
                return False
            while len(self._by_offset) >= LIMIT:
                self._by_offset.pop(next(iter(self._by_offset)))
            self._by_offset[partition, offset] = Refusal(before.topics | {topic}, error)
            return True

    def of(self, partition: int, offset: int) -> Refusal:
        """Return what was refused of a frame; no topics when nothing was."""
        with self._lock:
            return self._by_offset.get((partition, offset), Refusal(frozenset(), ""))
