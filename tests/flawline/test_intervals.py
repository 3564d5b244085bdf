"""An interval set behaves like a set of integers, and stays small."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.intervals import IntervalSet, union

ranges = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
many_ranges = st.lists(ranges, max_size=12)


def members(pairs: list[tuple[int, int]]) -> set[int]:
    return {value for first, last in pairs for value in range(first, last + 1)}


@given(many_ranges)
def test_added_ranges_are_the_members(pairs: list[tuple[int, int]]) -> None:
    made = IntervalSet(pairs)
    assert list(made) == sorted(members(pairs))
    assert len(made) == len(members(pairs))
    assert all((value in made) == (value in members(pairs)) for value in range(-1, 80))


@given(many_ranges)
def test_intervals_never_touch_whatever_the_order_of_adding(pairs: list[tuple[int, int]]) -> None:
    ranges = list(IntervalSet(pairs).ranges())
    assert all(before[1] + 1 < after[0] for before, after in pairwise(ranges))
    assert IntervalSet(pairs) == IntervalSet(reversed(pairs))


@given(many_ranges, many_ranges)
def test_algebra_is_that_of_sets(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    first, second = IntervalSet(left), IntervalSet(right)
    assert set(first | second) == members(left) | members(right)
    assert set(first & second) == members(left) & members(right)
    assert set(first - second) == members(left) - members(right)
    assert len(first & second) + len(first | second) == len(first) + len(second)
    assert union([first, second]) == first | second


@given(many_ranges, many_ranges)
def test_only_discarded_ranges_are_removed(pairs: list[tuple[int, int]], removed: list[tuple[int, int]]) -> None:
    left = IntervalSet(pairs)
    for first, last in removed:
        left.discard(first, last)
    assert left == IntervalSet(pairs) - IntervalSet(removed)
    assert len(left) == len(members(pairs) - members(removed))


def test_largest_sequence_number_fits() -> None:
    top = (1 << 63) - 1
    assert IntervalSet([(top, top)]).last == top


def test_ten_million_consecutive_numbers_are_one_interval() -> None:
    frames = IntervalSet()
    for first in range(0, 10_000_000, 1000):
        frames.add(first, first + 999)
    assert list(frames.ranges()) == [(0, 9_999_999)]


@pytest.mark.parametrize(("first", "last"), [(3, 2), (-1, 4), (0, 1 << 63)])
def test_impossible_range_is_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="interval"):
        IntervalSet([(first, last)])
