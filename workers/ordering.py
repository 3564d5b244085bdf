"""Restores the order of records whose results come in any order."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Gives results out in the order in which their keys were registered, each as soon as all before it are out."""

    def __init__(self) -> None:
        self._expected: deque[int] = deque()
        self._known: set[int] = set()
        self._results: dict[int, T] = {}

    def register(self, key: int) -> None:
        """Reserve the next place. Raises ValueError when the key waits already."""
        if key in self._known:
            raise ValueError(f"key {key} is registered already")
        self._known.add(key)
        self._expected.append(key)

    def complete(self, key: int, result: T) -> list[T]:
        """Take a result; what may leave now, in order. Raises ValueError for an unknown or completed key."""
        if key not in self._known or key in self._results:
            raise ValueError(f"key {key} does not wait for a result")
        self._results[key] = result
        released = []
        while self._expected and self._expected[0] in self._results:
            first = self._expected.popleft()
            self._known.remove(first)
            released.append(self._results.pop(first))
        return released

    def clear(self) -> list[T]:
        """Forget every place; the results that waited for one before them."""
        held = list(self._results.values())
        self._expected.clear()
        self._known.clear()
        self._results.clear()
        return held
