"""Restarts are bounded, and each waits longer than the one before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flawline.restarts import RestartLimit


class ManualClock:
    """A clock that moves when the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_waits_double_up_to_the_longest_and_end_at_the_limit() -> None:
    restarts = RestartLimit(4, 60, first_wait_s=1, longest_wait_s=3, clock=ManualClock())
    assert [restarts.wait_s() for _ in range(5)] == [1, 2, 3, 3, None]


def test_restarts_older_than_the_window_are_forgotten() -> None:
    clock = ManualClock()
    restarts = RestartLimit(2, 60, first_wait_s=1, clock=clock)
    assert [restarts.wait_s(), restarts.wait_s(), restarts.wait_s()] == [1, 2, None]
    clock.now += 60
    assert restarts.wait_s() == 1


def test_without_a_first_wait_every_restart_is_at_once() -> None:
    restarts = RestartLimit(2, 60, clock=ManualClock())
    assert [restarts.wait_s(), restarts.wait_s(), restarts.wait_s()] == [0, 0, None]


@given(st.lists(st.floats(0, 30), max_size=50), st.integers(0, 5))
def test_no_window_ever_holds_more_restarts_than_the_limit(gaps_s: list[float], limit: int) -> None:
    clock = ManualClock()
    restarts = RestartLimit(limit, 60, clock=clock)
    times = []
    for gap_s in gaps_s:
        clock.now += gap_s
        if restarts.wait_s() is not None:
            times.append(clock.now)
    assert all(sum(start <= time < start + 60 for time in times) <= limit for start in times)
