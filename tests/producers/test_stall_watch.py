"""Policies of watching a camera, on a clock that the tests move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.backoff import Backoff
from producers.rate_limit import RateLimit
from producers.stall_watch import StallWatch
from tests.producers.doubles import FakeClock


def test_backoff_doubles_up_to_the_longest_wait_and_starts_again_after_a_success() -> None:
    backoff = Backoff(0.5, 4.0, chance=lambda: 1.0)
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, 4.0]
    backoff.reset()
    assert backoff.next_s() == 0.5


@given(st.floats(0, 1), st.integers(0, 5000))
def test_backoff_jitter_stays_within_half_and_all_of_the_wait(chance: float, failures: int) -> None:
    backoff = Backoff(0.5, 30.0, chance=lambda: chance)
    waits = [backoff.next_s() for _ in range(min(failures, 100) + 1)]
    assert all(0.25 <= wait <= 30.0 for wait in waits)


def test_camera_of_known_rate_is_overdue_after_twice_its_period_and_a_second() -> None:
    clock = FakeClock()
    watch = StallWatch(period_s=0.5, open_timeout_s=10, clock=clock)
    watch.opened()
    watch.frame()
    watch.asking()
    clock.advance(1.99)
    assert watch.overdue() is None
    clock.advance(0.02)
    assert "waiting for its next frame for 2.0 s (limit 2.0 s)" in watch.overdue()


def test_time_that_the_reader_spends_on_a_frame_is_no_stall() -> None:
    clock = FakeClock()
    watch = StallWatch(period_s=0.1, open_timeout_s=10, clock=clock)
    watch.opened()
    watch.frame()
    clock.advance(3600)
    assert watch.overdue() is None


def test_unknown_period_is_learned_from_the_median_interval() -> None:
    clock = FakeClock()
    watch = StallWatch(period_s=None, open_timeout_s=10, clock=clock)
    watch.opened()
    for interval in (0.2, 0.2, 5.0, 0.2, 0.2):  # one hiccup does not teach a slow camera
        watch.frame()
        watch.asking()
        clock.advance(interval)
    watch.frame()
    watch.asking()
    assert watch.period_s == pytest.approx(0.2)
    clock.advance(1.5)
    assert watch.overdue() is not None


@pytest.mark.parametrize("opened", [False, True])
def test_opening_and_the_first_frame_have_the_opening_limit(opened: bool) -> None:
    clock = FakeClock()
    watch = StallWatch(period_s=0.01, open_timeout_s=7, clock=clock)
    if opened:
        watch.opened()
    watch.asking()
    clock.advance(6.9)
    assert watch.overdue() is None
    clock.advance(0.2)
    assert watch.overdue() is not None


@given(st.lists(st.integers(1, 300), min_size=1, max_size=50))
def test_rate_limit_never_sends_more_than_rate_and_burst(sizes: list[int]) -> None:
    clock = FakeClock()
    limit = RateLimit(100.0, clock)
    start, sent = clock.now, 0
    for size in sizes:
        clock.advance(limit.delay_s())
        assert limit.delay_s() <= 1e-9
        limit.spend(size)
        sent += size
        # The debt of the last item is paid before the next.
        assert sent - size <= 100 * (clock.now - start) + 100 + 1e-6
