"""The verdict on a part: from any order of its views the same, calibrated, and late or missing views."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.part_verdict import MOST_VIEWS, combined_p_value, joined, of_verdict
from flawline.messages import Decision
from tests.discovery.factories import verdict

S_NS = 1_000_000_000


def view(n: int, at_s: float = 0.0, decision: Decision = Decision.ACCEPT, p_value: float = 0.5, name: str = "top"):
    made = verdict(n, f"cam-{name}", decision, captured_at=round(at_s * S_NS))
    return of_verdict(replace(made, view=name, p_value=p_value, part="P1"))


def test_the_worst_view_decides_and_views_that_never_came_are_said() -> None:
    (inspection,) = joined(
        [view(1, 0, name="top"), view(2, 1, Decision.REJECT, 0.001, "side"), view(3, 2, Decision.REVIEW, 0.01, "back")],
        60 * S_NS,
    )
    assert inspection.worst.frame_id == "cam-side:1:2" and inspection.worst.decision is Decision.REJECT
    assert inspection.missing(["top", "side", "bottom"]) == ["bottom"]
    assert inspection.frames == 3


def test_a_pause_begins_another_inspection() -> None:
    first, second = joined([view(1, 0), view(2, 60.0, name="side"), view(3, 121.0, Decision.REJECT)], 60 * S_NS)
    assert (sorted(first.views), sorted(second.views)) == (["side", "top"], ["top"])


FRAMES = st.lists(
    st.tuples(
        st.integers(0, 300), st.sampled_from(list(Decision)), st.sampled_from([0.001, 0.01, 0.5]),
        st.sampled_from(["top", "side", "back"]),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(FRAMES, st.randoms(use_true_random=False), st.integers(1, 11))
def test_order_and_batches_change_nothing(drawn, chance: random.Random, cut: int) -> None:
    frames = [view(n, *rest) for n, rest in enumerate(drawn)]
    whole = joined(frames, 60 * S_NS)
    chance.shuffle(frames)
    assert joined([*joined(frames[:cut], 60 * S_NS), *joined(frames[cut:], 60 * S_NS)], 60 * S_NS) == whole


def test_a_part_with_very_many_views_keeps_the_worst_ones() -> None:
    frames = [view(n, 0, name=f"v{n:03}", p_value=(n + 1) / 1000) for n in range(2 * MOST_VIEWS)]
    (inspection,) = joined(frames, S_NS)
    assert sorted(inspection.views) == [f"v{n:03}" for n in range(MOST_VIEWS)]
    assert inspection.frames == 2 * MOST_VIEWS


@pytest.mark.parametrize("views", [1, 2, 6, 32])
def test_of_good_parts_a_share_of_a_tenth_has_a_p_value_below_a_tenth(views: int) -> None:
    drawn = np.random.default_rng(views).uniform(size=(20_000, views))
    combined = np.array([combined_p_value(row) for row in drawn])
    for level in (0.01, 0.1, 0.5):
        assert (combined <= level).mean() == pytest.approx(level, abs=4 * (level / 20_000) ** 0.5)


def test_two_views_that_hardly_pass_are_worse_than_either() -> None:
    assert combined_p_value([0.02]) == pytest.approx(0.02)
    assert combined_p_value([0.02, 0.02]) < 0.004 < combined_p_value([0.02, 0.9])


def test_a_p_value_of_zero_is_a_number() -> None:
    assert 0 <= combined_p_value([0.0, 0.0, 1.0]) < 1e-250
