"""What the last frames of a camera say of its light, its lens and the product."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.messages import Decision, Scene, Verdict
from scorer.scores import Scores
from tests.support.brokers import RunningBroker
from tests.workers.line import PlainDetector, feeding, inspecting, line_settings, read
from tests.workers.line import frame as captured
from workers.scene_watch import LEAST, WINDOW, SceneWatch, winner

CAMERA, PRODUCT = Scene.CAMERA_CHANGED, Scene.PRODUCT_CHANGED


@dataclass
class LitDetector(PlainDetector):
    """Finds a map unusual throughout that is warm everywhere."""

    def is_unusual_throughout(self, scores: Scores) -> bool:
        return float(scores.heatmap.min()) > 0


def frame(decision: Decision = Decision.ACCEPT, warmth: float = 0.0) -> Scores:
    return Scores(0, 1.0, 0.0, 0.5, decision, np.full((4, 4), warmth, np.float32))


def looked(
    watch: SceneWatch, frames: Sequence[Scores], camera: str = "cam-1", version: str = "m1"
) -> list[Scene | None]:
    return [watch.look(camera, scores, LitDetector(version)) for scores in frames]


USUAL, WARM, DEFECT, FOREIGN = frame(), frame(warmth=1.0), frame(Decision.REJECT), frame(Decision.UNKNOWN_PRODUCT)


def test_frames_as_learnt_and_defects_say_nothing() -> None:
    assert set(looked(SceneWatch(), [USUAL, DEFECT] * WINDOW)) == {None}


def test_another_light_is_said_once_half_of_the_last_frames_are_unusual_throughout_and_taken_back_after_it() -> None:
    watch = SceneWatch()
    looked(watch, [USUAL] * WINDOW)
    scenes = looked(watch, [WARM] * WINDOW)
    assert scenes == [None] * (WINDOW // 2 - 1) + [CAMERA] * (WINDOW // 2 + 1)
    assert looked(watch, [USUAL] * WINDOW)[-1] is None


def test_another_product_is_told_from_another_light() -> None:
    assert looked(SceneWatch(), [FOREIGN] * LEAST)[-1] is PRODUCT
    assert looked(SceneWatch(), [WARM] * LEAST)[-1] is CAMERA


def test_cameras_do_not_vote_for_each_other_and_another_model_begins_anew() -> None:
    watch = SceneWatch()
    assert looked(watch, [WARM] * LEAST, "dark")[-1] is CAMERA
    assert looked(watch, [USUAL] * LEAST, "bright")[-1] is None
    assert looked(watch, [WARM] * (LEAST - 1), "dark", version="m2") == [None] * (LEAST - 1)


def test_a_change_is_logged_once_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    watch = SceneWatch()
    with caplog.at_level(logging.INFO, "workers.scene_watch"):
        looked(watch, [WARM] * WINDOW)
        looked(watch, [USUAL] * WINDOW)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "cam-1: camera-changed" in caplog.text and "look at the light" in caplog.text


@given(st.lists(st.sampled_from([None, CAMERA, PRODUCT]), max_size=WINDOW))
def test_what_wins_has_half_of_enough_votes(votes: list[Scene | None]) -> None:
    scene = winner(deque(votes))
    if scene is not None:
        assert len(votes) >= LEAST and 2 * votes.count(scene) >= len(votes)
    elif len(votes) >= LEAST:
        assert all(2 * votes.count(known) < len(votes) for known in Scene)


def test_invented_cameras_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.scene_watch.CAMERA_LIMIT", 3)
    watch = SceneWatch()
    for number in range(10):
        watch.look(f"cam-{number}", replace(USUAL), LitDetector())
    assert len(watch._cameras) <= 3


@dataclass
class DarkDetector(PlainDetector):
    """Finds every image unusual throughout."""

    def is_unusual_throughout(self, scores: Scores) -> bool:
        return True


@pytest.mark.system
def test_verdicts_say_from_the_frame_on_that_the_camera_has_changed(
    embedded_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        feeder.send(*(captured("cam-0", sequence) for sequence in range(LEAST + 4)))
        feeder.flush()
        with inspecting(settings, detector=DarkDetector()):
            verdicts = read(settings, "verdicts", Verdict, LEAST + 4)
    assert [verdict.scene for verdict in verdicts] == [None] * (LEAST - 1) + [CAMERA] * 5
