"""Sets of integers as sorted intervals: a day of consecutive sequence numbers takes 16 bytes."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class IntervalSet:
    """A mutable set of integers in 0..2^63-1, kept as disjoint intervals that do not touch.

    Each interval takes 16 bytes, whatever its length. Adding at the end, as sequence numbers come, takes constant time;
    elsewhere it takes a binary search and a move of the intervals behind.
    """

    __slots__ = ("_count", "_starts", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Make the union of `ranges`, pairs of first and last, both included."""
        self._starts, self._stops = array("Q"), array("Q")  # half open: [start, stop)
        self._count = 0
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int | None = None) -> None:
        """Add `first`, or all from `first` to `last`, both included. Raises ValueError when they run backwards."""
        start, stop = _half_open(first, last)
        if not self._stops or start > self._stops[-1]:
            self._starts.append(start)
            self._stops.append(stop)
            self._count += stop - start
            return
        # Every interval that overlaps or touches the new one becomes part of it.
        low, high = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        if low < high:
            start, stop = min(start, self._starts[low]), max(stop, self._stops[high - 1])
        self._replace(low, high, [(start, stop)])

    def discard(self, first: int, last: int | None = None) -> None:
        """Remove `first`, or all from `first` to `last`, both included; members that are not there are no error."""
        start, stop = _half_open(first, last)
        low, high = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        if low >= high:
            return
        left, right = (self._starts[low], start), (stop, self._stops[high - 1])
        self._replace(low, high, [piece for piece in (left, right) if piece[0] < piece[1]])

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Return the intervals in ascending order as pairs of first and last, both included."""
        return ((start, stop - 1) for start, stop in zip(self._starts, self._stops, strict=True))

    @property
    def last(self) -> int:
        """The largest member. Raises ValueError when there is none."""
        if not self._stops:
            raise ValueError("an empty interval set has no last member")
        return self._stops[-1] - 1

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def __contains__(self, value: int) -> bool:
        if value < 0:
            return False
        index = bisect_right(self._starts, value) - 1
        return index >= 0 and value < self._stops[index]

    def __iter__(self) -> Iterator[int]:
        for start, stop in zip(self._starts, self._stops, strict=True):
            yield from range(start, stop)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and (self._starts, self._stops) == (other._starts, other._stops)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __or__(self, other: IntervalSet) -> IntervalSet:
        result = IntervalSet()
        for first, last in sorted((*self.ranges(), *other.ranges())):
            result.add(first, last)
        return result

    def __and__(self, other: IntervalSet) -> IntervalSet:
        result, mine, theirs = IntervalSet(), 0, 0
        while mine < len(self._starts) and theirs < len(other._starts):
            start = max(self._starts[mine], other._starts[theirs])
            stop = min(self._stops[mine], other._stops[theirs])
            if start < stop:
                result.add(start, stop - 1)
            if self._stops[mine] < other._stops[theirs]:
                mine += 1
            else:
                theirs += 1
        return result

    def __sub__(self, other: IntervalSet) -> IntervalSet:
        result = IntervalSet()
        cuts = list(zip(other._starts, other._stops, strict=True))
        cut = 0
        for start, stop in zip(self._starts, self._stops, strict=True):
            while cut < len(cuts) and cuts[cut][1] <= start:
                cut += 1
            index = cut
            while index < len(cuts) and cuts[index][0] < stop:
                if start < cuts[index][0]:
                    result.add(start, cuts[index][0] - 1)
                start = max(start, cuts[index][1])
                index += 1
            if start < stop:
                result.add(start, stop - 1)
        return result

    def __repr__(self) -> str:
        return f"IntervalSet({list(self.ranges())})"

    def _replace(self, low: int, high: int, pieces: list[tuple[int, int]]) -> None:
        self._count += sum(stop - start for start, stop in pieces)
        self._count -= sum(self._stops[low:high]) - sum(self._starts[low:high])
        self._starts[low:high] = array("Q", [start for start, _ in pieces])
        self._stops[low:high] = array("Q", [stop for _, stop in pieces])


def union(sets: Iterable[IntervalSet]) -> IntervalSet:
    """Return the members of at least one of the sets."""
    result = IntervalSet()
    for item in sets:
        result = result | item if result else item
    return result


def _half_open(first: int, last: int | None) -> tuple[int, int]:
    last = first if last is None else last
    if not 0 <= first <= last < 1 << 63:
        raise ValueError(f"interval {first}..{last} runs backwards or leaves 0..2^63-1")
    return first, last + 1
