"""How many actors run when their number follows the load."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flawline.settings.tree import Settings
from flawline.settings.workers import WorkerSettings
from workers.autoscale import PAUSE_S, ActorCount, Bounds, Demand, bounds
from workers.busy_time import WINDOW_S, BusyTime

STEP_S = 0.25


@dataclass
class SimulatedLine:
    """Frames that come at a rate, and actors that each score `rate_of_one` a second; time goes in steps."""

    rate_of_one: float
    limits: Bounds
    actors: int = 1
    waiting: float = 0.0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.count = ActorCount(self.limits, lambda: self.now)
        self.changes: list[tuple[float, int]] = []

    def run(self, seconds: float, frames_per_s: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            came = self.waiting + frames_per_s * STEP_S
            room = self.actors * self.rate_of_one * STEP_S
            self.waiting = max(0.0, came - room)
            demand = Demand(self.waiting / (self.actors * self.rate_of_one), min(1.0, came / room))
            wanted = self.count.next(self.actors, demand)
            if wanted != self.actors:
                self.changes.append((self.now, wanted))
                self.actors = wanted


def test_actors_follow_a_load_that_rises_in_steps_and_falls_again() -> None:
    line = SimulatedLine(rate_of_one=50, limits=Bounds(1, 8))
    line.run(60, 30)
    assert line.actors == 1
    line.run(300, 120)
    assert line.actors == 3
    assert line.waiting == 0
    line.run(300, 340)
    assert line.actors in (7, 8)
    assert line.waiting == 0
    line.run(1500, 30)
    assert line.actors == 2 or line.actors == 1
    line.run(600, 10)
    assert line.actors == 1


def test_a_steady_load_moves_no_camera() -> None:
    line = SimulatedLine(rate_of_one=50, limits=Bounds(1, 8))
    line.run(400, 130)
    settled = len(line.changes)
    line.run(3600, 130)
    assert len(line.changes) == settled


def test_a_burst_of_a_few_seconds_is_no_reason() -> None:
    line = SimulatedLine(rate_of_one=50, limits=Bounds(1, 8))
    for _ in range(20):
        line.run(4, 90)
        line.run(30, 5)
    assert line.changes == []


def test_frames_that_wait_while_the_actors_are_idle_are_no_reason() -> None:
    now = [0.0]
    count = ActorCount(Bounds(1, 8), lambda: now[0])
    for _ in range(1000):
        now[0] += STEP_S
        assert count.next(2, Demand(wait_s=600, busy=0.4)) == 2


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), min_size=1, max_size=300),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_the_number_stays_in_its_bounds_and_changes_are_a_pause_apart(
    demands: list[tuple[float, float]], fewest: int, more: int
) -> None:
    now, actors, changed = [0.0], fewest, -math.inf
    count = ActorCount(Bounds(fewest, fewest + more), lambda: now[0])
    for wait_s, busy in demands:
        now[0] += 3.0
        wanted = count.next(actors, Demand(wait_s, busy))
        assert fewest <= wanted <= fewest + more
        if wanted != actors:
            assert now[0] - changed >= PAUSE_S
            actors, changed = wanted, now[0]


@pytest.mark.parametrize(
    ("worker", "expected"),
    [
        ({"actors": 3}, Bounds(3, 3)),
        ({"actors": "auto", "ray_address": "ray:6379"}, Bounds(1, 4)),
        ({"actors": "auto", "ray_address": "ray:6379", "most_actors": 2}, Bounds(1, 2)),
        ({"actors": "auto", "most_actors": 100}, Bounds(1, 4)),
        ({"actors": "auto", "num_cpus": 1000.0}, Bounds(1, 1)),
        ({"actors": "auto", "fewest_actors": 6, "ray_address": "ray:6379"}, Bounds(6, 6)),
    ],
)
def test_actors_have_two_partitions_each_and_room_on_the_machine(worker: dict[str, object], expected: Bounds) -> None:
    assert bounds(Settings(worker=WorkerSettings(**worker))) == expected


def test_bounds_without_effect_or_upside_down_are_refused() -> None:
    with pytest.raises(ValidationError, match='have an effect with actors = "auto" only'):
        WorkerSettings(actors=2, most_actors=4)
    with pytest.raises(ValidationError, match="most_actors 2 is below fewest_actors 3"):
        WorkerSettings(actors="auto", fewest_actors=3, most_actors=2)


def test_busy_time_is_that_of_the_last_seconds() -> None:
    busy = BusyTime(threads=2, now=100.0)
    assert busy.share(100.0) == 0
    busy.add(1.0, now=101.0)
    assert busy.share(101.0) == 0.5
    busy.add(3.0, now=104.0)
    assert busy.share(105.0) == pytest.approx(4 / 10)
    assert busy.share(104.0 + WINDOW_S) == 0
    busy.add(60.0, now=120.0)
    assert busy.share(120.0) == 1
