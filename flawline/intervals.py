"""Sets of integers as sorted intervals: a day of consecutive sequence numbers takes 16 bytes."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator

import numpy as np


class IntervalSet:
    """A mutable set of integers in 0..2^63-1, kept as disjoint intervals that do not touch.

    Each interval takes 16 bytes, whatever its length. Adding at the end, as sequence numbers come, takes constant time;
    elsewhere it takes a binary search and a move of the intervals behind. Union, intersection and difference sort the
    bounds of both sets, unless one of them is a single interval.
    """

    __slots__ = ("_count", "_starts", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Make the union of `ranges`, pairs of first and last, both included."""
        self._starts, self._stops = array("Q"), array("Q")  # half open: [start, stop)
        self._count = 0
        for first, last in ranges:
            self.add(first, last)

    @classmethod
    def of_bounds(cls, bounds: np.ndarray) -> IntervalSet:
        """Return the set of ascending `bounds` (uint64): a first member, the one behind a last, and so on.

        Raises ValueError when they do not ascend or do not come in pairs.
        """
        if len(bounds) % 2 or (bounds[1:] <= bounds[:-1]).any():
            raise ValueError(f"{len(bounds)} bounds of intervals do not ascend in pairs")
        result = cls()
        result._starts.frombytes(np.ascontiguousarray(bounds[0::2], np.uint64).tobytes())
        result._stops.frombytes(np.ascontiguousarray(bounds[1::2], np.uint64).tobytes())
        result._count = int((bounds[1::2] - bounds[0::2]).sum())
        return result

    def bounds(self) -> np.ndarray:
        """Return what `of_bounds` takes: the first member of each interval and the one behind its last (uint64)."""
        result = np.empty(2 * len(self._starts), np.uint64)
        result[0::2], result[1::2] = self._starts, self._stops
        return result

    def add(self, first: int, last: int | None = None) -> None:
        """Add `first`, or all from `first` to `last`, both included. Raises ValueError when they run backwards."""
        start, stop = _half_open(first, last)
        if not self._stops or start > self._stops[-1]:
            self._starts.append(start)
            self._stops.append(stop)
            self._count += stop - start
            return
        if start == self._stops[-1]:  # the next sequence number, which is the usual case
            self._stops[-1] = stop
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

    def next_member(self, value: int) -> int | None:
        """Return the smallest member that is not below `value`, None when there is none."""
        index = bisect_right(self._stops, value)
        return max(value, self._starts[index]) if index < len(self._starts) else None

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

    # A set of one interval, such as all captures of an epoch, needs no merge of bounds.

    def __or__(self, other: IntervalSet) -> IntervalSet:
        large, small = (self, other) if len(self._starts) >= len(other._starts) else (other, self)
        if len(small._starts) > 1:
            return union((large, small))
        result = large._copy()
        for first, last in small.ranges():
            result.add(first, last)
        return result

    def __and__(self, other: IntervalSet) -> IntervalSet:
        large, small = (self, other) if len(self._starts) >= len(other._starts) else (other, self)
        if len(small._starts) > 1:
            return self._combined(other, np.logical_and)
        return large._between(small._starts[0], small._stops[0]) if small else IntervalSet()

    def __sub__(self, other: IntervalSet) -> IntervalSet:
        if len(other._starts) <= 1:
            result = self._copy()
            for first, last in other.ranges():
                result.discard(first, last)
            return result
        if len(self._starts) == 1:
            return other._outside(self._starts[0], self._stops[0])
        return self._combined(other, lambda mine, others: mine & ~others)

    def _copy(self) -> IntervalSet:
        return IntervalSet._of(self._starts[:], self._stops[:], self._count)

    @classmethod
    def _of(cls, starts: array[int], stops: array[int], count: int) -> IntervalSet:
        result = cls()
        result._starts, result._stops, result._count = starts, stops, count
        return result

    def _between(self, start: int, stop: int) -> IntervalSet:
        """Return the members from `start` to before `stop`."""
        low, high = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        if low >= high:
            return IntervalSet()
        starts, stops = self._starts[low:high], self._stops[low:high]
        starts[0], stops[-1] = max(starts[0], start), min(stops[-1], stop)
        return IntervalSet._of(starts, stops, _total(starts, stops))

    def _outside(self, start: int, stop: int) -> IntervalSet:
        """Return the numbers from `start` to before `stop` that are no members."""
        inner = self._between(start, stop)
        starts, stops = array("Q", [start]) + inner._stops, inner._starts + array("Q", [stop])
        if starts[0] == stops[0]:
            del starts[0], stops[0]
        if starts and starts[-1] == stops[-1]:
            del starts[-1], stops[-1]
        return IntervalSet._of(starts, stops, stop - start - len(inner))

    def _combined(self, other: IntervalSet, rule: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> IntervalSet:
        """Return the set whose members `rule` chooses from being in this set and being in `other`."""
        # Between two neighbouring bounds every number is in the same sets.
        bounds = np.sort(np.concatenate((self.bounds(), other.bounds())), kind="stable")  # two runs: linear time
        chosen = rule(self._covers(bounds), other._covers(bounds))
        return IntervalSet.of_bounds(bounds[np.diff(chosen, prepend=False)])

    def _covers(self, values: np.ndarray) -> np.ndarray:
        """Tell of each of the ascending `values` whether it is a member."""
        # Behind an odd number of bounds is inside.
        return np.searchsorted(self.bounds(), values, side="right") % 2 == 1

    def __repr__(self) -> str:
        return f"IntervalSet({list(self.ranges())})"

    def _replace(self, low: int, high: int, pieces: list[tuple[int, int]]) -> None:
        self._count += sum(stop - start for start, stop in pieces)
        self._count -= sum(self._stops[low:high]) - sum(self._starts[low:high])
        self._starts[low:high] = array("Q", [start for start, _ in pieces])
        self._stops[low:high] = array("Q", [stop for _, stop in pieces])


def union(sets: Iterable[IntervalSet]) -> IntervalSet:
    """Return the members of at least one of the sets."""
    several = [item for item in sets if item]
    if len(several) < 2:
        return several[0]._copy() if several else IntervalSet()
    # Twice the bound, and one more where an interval ends: at the same number, those that begin come first.
    starts = np.concatenate([np.frombuffer(item._starts, np.uint64) for item in several])
    stops = np.concatenate([np.frombuffer(item._stops, np.uint64) for item in several])
    marks = np.concatenate((starts << np.uint64(1), stops << np.uint64(1) | np.uint64(1)))
    marks.sort()
    ends = (marks & np.uint64(1)).astype(np.int8)
    depth = np.cumsum(1 - 2 * ends, dtype=np.int64)
    bounds = marks[(depth == 0) | ((depth == 1) & (ends == 0))] >> np.uint64(1)
    return IntervalSet.of_bounds(bounds)


def _total(starts: array[int], stops: array[int]) -> int:
    return int((np.frombuffer(stops, np.uint64) - np.frombuffer(starts, np.uint64)).sum())


def _half_open(first: int, last: int | None) -> tuple[int, int]:
    last = first if last is None else last
    if not 0 <= first <= last < 1 << 63:
        raise ValueError(f"interval {first}..{last} runs backwards or leaves 0..2^63-1")
    return first, last + 1
