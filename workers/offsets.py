"""Which offset of a partition may be committed when its records finish in any order."""

from __future__ import annotations

from collections import deque


class ContiguousOffsets:
    """Records of one partition, registered in log order and finished in any order.

    Offsets need not be consecutive: compaction and transaction markers leave holes in a log.
    """

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()
        self._unfinished: set[int] = set()
        self._next: int | None = None
        self._last = -1

    def register(self, offset: int) -> None:
        """Take a record into account. Raises ValueError when offsets do not ascend."""
        if offset <= self._last:
            raise ValueError(f"offset {offset} comes after {self._last}")
        self._last = offset
        self._waiting.append(offset)
        self._unfinished.add(offset)

    def finish(self, offset: int) -> None:
        """Count a record as finished. Raises ValueError when it is unknown or was finished before."""
        if offset not in self._unfinished:
            raise ValueError(f"offset {offset} is not in work")
        self._unfinished.remove(offset)
        while self._waiting and self._waiting[0] not in self._unfinished:
            self._next = self._waiting.popleft() + 1

    @property
    def committable(self) -> int | None:
        """The offset to commit: one past the last record before which all are finished; None when there is none."""
        return self._next

    @property
    def oldest(self) -> int | None:
        """The first record that is not finished."""
        return self._waiting[0] if self._waiting else None

    @property
    def unfinished(self) -> int:
        """How many registered records are not finished."""
        return len(self._unfinished)
