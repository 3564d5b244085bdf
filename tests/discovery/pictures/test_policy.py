"""Which frames are kept, and with which probability."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.pictures.policy import (
    OPEN_MINUTES,
    QUIET_S,
    Candidate,
    Picker,
    Stratum,
    chance_of,
    probability_in_sample,
)
from flawline.messages import Decision, Verdict
from flawline.settings.pictures import PictureSettings
from tests.discovery.factories import MINUTE_NS, START_NS, verdict


class Hands:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def candidate(scored: Verdict) -> Candidate:
    return Candidate(scored, 0, scored.sequence)


def accepted(count: int, minute: int = 0, camera: str = "cam-1", first: int = 0) -> list[Verdict]:
    """Return accepted frames of one minute."""
    at = START_NS + minute * MINUTE_NS
    return [verdict(first + n, camera, captured_at=at + n * MINUTE_NS // count) for n in range(count)]


@pytest.mark.parametrize("decision", [Decision.REJECT, Decision.REVIEW, Decision.UNKNOWN_PRODUCT])
def test_a_frame_that_is_not_accepted_is_kept_at_once_and_for_certain(decision: Decision) -> None:
    stratum, pick = Picker(PictureSettings()).pick(candidate(verdict(0, decision=decision)))
    assert stratum == str(decision)
    assert pick is not None
    assert pick.probability == 1


def test_an_accepted_frame_is_a_near_miss_up_to_the_p_value_that_is_set() -> None:
    picker = Picker(PictureSettings(near_miss_p_value=0.02))
    near, pick = picker.pick(candidate(replace(verdict(0), p_value=0.02)))
    far, waits = picker.pick(candidate(replace(verdict(1), p_value=0.021)))
    assert (near, far, waits) == (Stratum.NEAR_MISS, Stratum.ACCEPTED, None)
    assert pick is not None
    assert pick.probability == 1
    assert Picker(PictureSettings(near_miss_p_value=0)).pick(candidate(replace(verdict(0), p_value=0.001)))[1] is None


def test_each_camera_and_minute_keeps_a_frame_however_few_there_are() -> None:
    picker = Picker(PictureSettings(sample_one_in=10_000))
    for camera in ("cam-1", "cam-2"):
        for minute in range(5):
            for frame in accepted(3, minute, camera, first=10 * minute):
                picker.pick(candidate(frame))
    picks = picker.closed(everything=True)
    assert len({(p.candidate.verdict.camera, p.candidate.verdict.captured_at // MINUTE_NS) for p in picks}) == 10
    assert len(picks) >= 10
    assert picker.closed(everything=True) == []


def test_without_a_frame_for_every_minute_only_the_drawn_ones_are_kept() -> None:
    picker = Picker(PictureSettings(sample_one_in=50, sample_every_minute=False))
    frames = [frame for minute in range(40) for frame in accepted(60, minute, first=100 * minute)]
    for frame in frames:
        picker.pick(candidate(frame))
    picks = picker.closed(everything=True)
    assert {p.candidate.verdict.frame_id for p in picks} == {f.frame_id for f in frames if chance_of(f.frame_id) < 0.02}
    assert {p.probability for p in picks} == {0.02}


def test_a_minute_is_closed_when_no_frame_of_it_has_come_for_a_while() -> None:
    hands = Hands()
    picker = Picker(PictureSettings(), hands)
    picker.pick(candidate(accepted(1, 0)[0]))
    hands.now += QUIET_S - 1
    picker.pick(candidate(accepted(1, 1, first=5)[0]))
    assert picker.closed() == []
    hands.now += 1
    assert [pick.candidate.verdict.sequence for pick in picker.closed()] == [0]
    hands.now += QUIET_S
    assert [pick.candidate.verdict.sequence for pick in picker.closed()] == [5]


def test_minutes_that_nobody_closes_do_not_grow_without_limit() -> None:
    picker = Picker(PictureSettings(), Hands())
    for minute in range(OPEN_MINUTES + 3):
        picker.pick(candidate(accepted(1, minute, first=minute)[0]))
    assert [pick.candidate.verdict.sequence for pick in picker.closed()] == [0, 1, 2]


@given(count=st.integers(1, 300), one_in=st.integers(1, 1000), every_minute=st.booleans())
def test_a_probability_lies_between_that_of_the_draw_and_one(count: int, one_in: int, every_minute: bool) -> None:
    probability = probability_in_sample(count, one_in, every_minute)
    assert 1 / one_in <= probability <= 1
    if every_minute:
        assert probability * count >= 1 - 1e-9  # a minute has at least one frame on average


@settings(max_examples=20)
@given(count=st.integers(2, 30), one_in=st.integers(2, 60))
def test_the_weights_of_the_sample_add_up_to_the_frames_it_stands_for(count: int, one_in: int) -> None:
    picker = Picker(PictureSettings(sample_one_in=one_in))
    minutes = 400
    for minute in range(minutes):
        for frame in accepted(count, minute, first=1000 * minute):
            picker.pick(candidate(frame))
    total = sum(1 / pick.probability for pick in picker.closed(everything=True))
    assert total == pytest.approx(count * minutes, rel=0.25)
