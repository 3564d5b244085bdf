"""The workers' pure parts: contiguous offsets, order, batches, byte bounds, restarts."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.batching import Batcher, BatchPolicy
from workers.lane import ContiguousOffsets, InOrder


class ManualClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# Offsets of a log with holes, and an order in which they finish, possibly not all of them.
logs = st.lists(st.integers(0, 10_000), min_size=1, max_size=60, unique=True).map(sorted)


@st.composite
def finished_logs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    offsets = draw(logs)
    order = draw(st.permutations(offsets))
    return offsets, order[: draw(st.integers(0, len(order)))]


@given(finished_logs())
def test_committable_never_passes_an_unfinished_record_and_never_lags_behind(case: tuple[list[int], list[int]]) -> None:
    offsets, finished = case
    tracker = ContiguousOffsets()
    for offset in offsets:
        tracker.register(offset)
    done: set[int] = set()
    for offset in finished:
        tracker.finish(offset)
        done.add(offset)
        prefix = []
        for unbroken in offsets:
            if unbroken not in done:
                break
            prefix.append(unbroken)
        assert tracker.committable == (prefix[-1] + 1 if prefix else None)
        assert tracker.oldest == next((waiting for waiting in offsets if waiting not in done), None)
        assert tracker.unfinished == len(offsets) - len(done)


@given(finished_logs(), st.data())
def test_registration_between_completions_changes_nothing(
    case: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    offsets, finished = case
    tracker, registered, seen = ContiguousOffsets(), 0, []
    for offset in finished:
        least = offsets.index(offset) + 1
        upto = data.draw(st.integers(least, len(offsets))) if least > registered else registered
        for new in offsets[registered:upto]:
            tracker.register(new)
        registered = max(registered, upto)
        tracker.finish(offset)
        seen.append(tracker.committable or 0)
    assert seen == sorted(seen)
    assert all(committable - 1 in finished for committable in seen if committable)


def test_offsets_that_are_unknown_repeated_or_descending_are_refused() -> None:
    tracker = ContiguousOffsets()
    tracker.register(5)
    with pytest.raises(ValueError, match="offset 5 comes after 5"):
        tracker.register(5)
    with pytest.raises(ValueError, match="offset 4 is not in work"):
        tracker.finish(4)
    tracker.finish(5)
    with pytest.raises(ValueError, match="offset 5 is not in work"):
        tracker.finish(5)


@given(st.permutations(range(40)))
def test_results_leave_in_the_order_of_registration_and_as_early_as_possible(completions: list[int]) -> None:
    order: InOrder[str] = InOrder()
    for key in range(40):
        order.register(key)
    left: list[str] = []
    done: set[int] = set()
    for key in completions:
        left += order.complete(key, str(key))
        done.add(key)
        ready = next((i for i in range(41) if i not in done), 40)
        assert left == [str(i) for i in range(ready)]


def test_a_result_without_a_place_is_refused_and_clearing_gives_back_what_waits() -> None:
    order: InOrder[str] = InOrder()
    order.register(1)
    order.register(2)
    with pytest.raises(ValueError, match="registered already"):
        order.register(2)
    with pytest.raises(ValueError, match="key 3"):
        order.complete(3, "c")
    assert order.complete(2, "b") == []
    with pytest.raises(ValueError, match="key 2"):
        order.complete(2, "b")
    assert order.clear() == ["b"]


@given(st.integers(1, 64), st.floats(0, 1), st.integers(0, 200), st.floats(0, 2))
def test_a_batch_leaves_exactly_when_it_is_full_or_old(limit: int, cap_s: float, count: int, age_s: float) -> None:
    wait_s = BatchPolicy(limit, cap_s).wait_s(count, age_s)
    assert (wait_s == 0) == (count >= limit or age_s >= cap_s)
    assert wait_s <= cap_s


def test_a_full_batch_leaves_without_waiting_and_the_rest_stays() -> None:
    batcher: Batcher[int] = Batcher(BatchPolicy(3, 3600), 1000)
    for item in range(5):
        assert batcher.put(item, 1)
    assert batcher.take() == [0, 1, 2]
    assert len(batcher) == 2


def test_an_incomplete_batch_leaves_when_its_first_item_is_old_enough() -> None:
    now = ManualClock()
    batcher: Batcher[int] = Batcher(BatchPolicy(3, 0.25), 1000, now)
    batcher.put(1, 1)
    now.now += 0.25
    assert batcher.take() == [1]


def test_a_queue_without_room_makes_put_wait_until_something_is_taken() -> None:
    batcher: Batcher[str] = Batcher(BatchPolicy(1, 0), limit_bytes=10)
    batcher.put("large", 50)  # larger than the bound, so it passes alone
    second = threading.Thread(target=batcher.put, args=("next", 1))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    assert batcher.take() == ["large"]
    second.join(30)
    assert batcher.take() == ["next"]


def test_an_incomplete_batch_leaves_at_once_when_the_next_item_finds_no_room() -> None:
    """Both would wait otherwise: the batch for the item, and the item for room."""
    batcher: Batcher[str] = Batcher(BatchPolicy(64, 3600), limit_bytes=100)
    batcher.put("first", 60)
    second = threading.Thread(target=batcher.put, args=("second", 60), daemon=True)
    second.start()
    taken: list[list[str]] = []
    taking = threading.Thread(target=lambda: taken.append(batcher.take()), daemon=True)
    taking.start()
    taking.join(30)
    assert taken == [["first"]]
    second.join(30)
    assert len(batcher) == 1


def test_a_closed_queue_hands_out_what_it_holds_and_refuses_more() -> None:
    batcher: Batcher[int] = Batcher(BatchPolicy(2, 3600), 1000)
    batcher.put(1, 1)
    batcher.close()
    assert batcher.take() == [1]
    assert batcher.take() == []
    assert not batcher.put(2, 1)
