"""The budget of descriptions: per camera, in bytes, and as a share of a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.test_policies import ManualClock
from workers.describing import BURST_S, ByteQueue, CameraRate, CpuShare, Judged


@given(st.lists(st.floats(0, 2), min_size=1, max_size=80), st.floats(0.1, 20))
def test_no_camera_is_described_more_often_than_its_rate_allows(gaps: list[float], per_s: float) -> None:
    now = ManualClock()
    rate = CameraRate(per_s, now)
    times = []
    for gap in gaps:
        now.now += gap
        if rate.take("cam-0"):
            times.append(now.now)
    for i, first in enumerate(times):
        for j, last in enumerate(times[i:], i):
            assert j - i + 1 <= max(1.0, per_s) + (last - first) * per_s + 1e-6


def test_one_camera_uses_up_nothing_of_another() -> None:
    rate = CameraRate(1, ManualClock())
    assert [rate.take("cam-0"), rate.take("cam-0"), rate.take("cam-1")] == [True, False, True]


class Work:
    """Does parts of a description of `part_s` seconds each, on a clock that only they and waiting move."""

    def __init__(self, share: float, part_s: float, is_free: bool) -> None:
        self.clock = ManualClock()
        self.is_free = is_free
        self.worked_s = 0.0
        self._part_s = part_s
        self._share = CpuShare(share, lambda: self.is_free, self._wait, self.clock)

    def _wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def until(self, end: float) -> None:
        while self.clock.now < end:
            self._share.step()
            self.clock.now += self._part_s
            self.worked_s += self._part_s
        self._share.rest()


@given(st.floats(0.01, 0.9), st.floats(0.001, 0.05))
def test_beside_a_busy_scorer_descriptions_take_their_share_and_no_more(share: float, part_s: float) -> None:
    work = Work(share, part_s, is_free=False)
    work.until(work.clock.now + 100)
    assert work.worked_s <= share * 101 + BURST_S + 2 * part_s
    assert work.worked_s >= 0.5 * share * 100


def test_beside_an_idle_scorer_descriptions_never_wait_and_cost_nothing_of_the_share() -> None:
    work = Work(0.05, 0.01, is_free=True)
    start = work.clock.now
    work.until(start + 10)
    assert work.worked_s >= 10 - 1e-6
    work.is_free = False
    before = work.clock.now
    work.until(before + 0.1)
    assert work.worked_s >= 10.1 - 1e-6, "the burst is still there"


def judged(size_bytes: int) -> Any:
    """Return a frame of so many bytes."""
    empty = np.zeros(0, np.uint8)
    scores = SimpleNamespace(heatmap=empty, region_inputs=None)
    located = SimpleNamespace(fine=empty, mask=empty, regions=())
    return Judged(None, None, np.zeros(size_bytes, np.uint8), scores, located, None)  # type: ignore[arg-type]


def test_a_queue_takes_what_fits_its_bytes_and_a_larger_frame_alone() -> None:
    queue = ByteQueue(100)
    large, small, late = judged(150), judged(40), judged(70)
    assert queue.put(large)
    assert not queue.put(small)
    assert queue.take() is large
    assert queue.put(small)
    assert not queue.put(late)
    queue.close()
    assert not queue.put(judged(1))
    assert queue.take() is small
    assert queue.take() is None
