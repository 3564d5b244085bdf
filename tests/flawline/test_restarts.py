"""Restarts are bounded."""

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


def test_restarts_older_than_the_window_are_forgotten() -> None:
    clock = ManualClock()
    restarts = RestartLimit(2, 60, clock=clock)
    assert [restarts.allows(), restarts.allows(), restarts.allows()] == [True, True, False]
    clock.now += 60
    assert restarts.allows()


@given(st.lists(st.floats(0, 30), max_size=50), st.integers(0, 5))
def test_no_window_ever_holds_more_restarts_than_the_limit(gaps_s: list[float], limit: int) -> None:
    clock = ManualClock()
    restarts = RestartLimit(limit, 60, clock=clock)
    times = []
    for gap_s in gaps_s:
        clock.now += gap_s
        if restarts.allows():
            times.append(clock.now)
    assert all(sum(start <= time < start + 60 for time in times) <= limit for start in times)
