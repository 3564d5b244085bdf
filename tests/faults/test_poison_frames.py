"""Frames that kill, break or block: each costs its own verdict at most, and no camera stops."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from embedded_broker import EmbeddedBroker
from flawline.messages import DeadLetter, DeadLetterReason, Decision, Defect, Verdict
from flawline.settings.workers import WorkerSettings
from scorer.scores import Scores
from tests.support.brokers import RunningBroker
from tests.workers.conftest import either_broker, ray_here
from tests.workers.line import (
    FULL,
    PlainDetector,
    assert_in_order,
    committed,
    feeding,
    frame,
    inspecting,
    line_settings,
    read,
    wait_until,
)
from tests.workers.ray_session import supervising
from workers.inspector import Inspector

__all__ = ["either_broker", "ray_here"]

DEADLY = 3
NO_MAP = 4
DEADLY_CLOSE_UP = 5


@dataclass
class DeadlyDetector(PlainDetector):
    """Dies of some frames as native code does, without a word."""

    def _score(self, image: np.ndarray) -> Scores:
        first = int(image[0, 0, 0])
        if first == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        scores = super()._score(image)
        if first == NO_MAP:
            return replace(scores, decision=Decision.REJECT, heatmap=np.zeros((0, 0), np.float32))
        return scores

    def close_ups(self, parts: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        if any(DEADLY_CLOSE_UP in part for part in parts):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().close_ups(parts)


def load_deadly(path: Path, settings: WorkerSettings) -> DeadlyDetector:
    return DeadlyDetector()


@pytest.mark.usefixtures("ray_here")
def test_a_frame_that_kills_its_process_is_a_letter_after_its_third_attempt_and_the_cameras_go_on(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    # No restart is allowed that gets nowhere: the attempts of one frame must not use up the limit.
    settings = line_settings(either_broker.bootstrap, tmp_path, restart_limit=1)
    with feeding(settings) as feeder:
        for sequence in range(150):
            for camera in ("cam-0", "cam-1"):
                kills = (camera, sequence) == ("cam-0", 110)
                feeder.send(frame(camera, sequence, first_pixel=DEADLY if kills else None))
        feeder.flush()
        with supervising(settings, load_deadly) as supervisor:

            def all_committed() -> bool:
                supervisor.check()
                return [committed(settings, i) for i in (0, 1)] == [150, 150]

            wait_until(all_committed, 120)
            verdicts = read(settings, "verdicts", Verdict, 299)
            letters = read(settings, "dead-letters", DeadLetter, 1)
    assert {letter.frame_id for letter in letters} == {frame("cam-0", 110).frame_id}
    assert {letter.reason for letter in letters} == {DeadLetterReason.KILLED_WORKER}
    assert len({verdict.frame_id for verdict in verdicts}) == 299
    assert_in_order(verdicts)


@pytest.mark.usefixtures("ray_here")
def test_a_frame_whose_description_kills_has_its_verdict_and_a_defect_without_regions(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path, restart_limit=1)
    with feeding(settings) as feeder:
        for sequence in range(10):
            feeder.send(frame("cam-0", sequence, level=FULL, spot=DEADLY_CLOSE_UP if sequence == 4 else None))
        feeder.flush()
        with supervising(settings, load_deadly) as supervisor:

            def all_committed() -> bool:
                supervisor.check()
                return committed(settings, 0) == 10

            wait_until(all_committed, 120)
            verdicts = read(settings, "verdicts", Verdict, 10)
            defects = read(settings, "defects", Defect, 10)
    assert {verdict.sequence for verdict in verdicts} == set(range(10))
    assert {defect.sequence for defect in defects if not defect.regions} == {4}


def test_scores_that_no_region_can_be_made_of_cost_one_frame(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        feeder.send(*(frame("cam-0", i, level=FULL, first_pixel=NO_MAP if i == 2 else None) for i in range(5)))
        feeder.flush()
        with inspecting(settings, detector=DeadlyDetector()):
            verdicts = read(settings, "verdicts", Verdict, 4)
            (letter,) = read(settings, "dead-letters", DeadLetter, 1)
            wait_until(lambda: committed(settings, 0) == 5)
    assert [verdict.sequence for verdict in verdicts] == [0, 1, 3, 4]
    assert (letter.reason, letter.frame_id) == (DeadLetterReason.SCORING_FAILED, frame("cam-0", 2).frame_id)


class BlindDetector(PlainDetector):
    """Cannot look closer at what it rejects, while a plain image is fine."""

    def close_ups(self, parts: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        if any(part.mean() > 200 for part in parts):
            raise RuntimeError("too bright")
        return super().close_ups(parts)


def test_a_description_that_fails_costs_the_regions_and_not_the_frame(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings, detector=BlindDetector()) as inspector:
        feeder.send(*(frame("cam-0", i, level=FULL) for i in range(3)))
        feeder.flush()
        verdicts = read(settings, "verdicts", Verdict, 3)
        defects = read(settings, "defects", Defect, 3)
        wait_until(lambda: committed(settings, 0) == 3)
        assert 'flawline_undescribed_defects_total{camera="cam-0",reason="failed"} 3.0' in inspector.metrics()
    assert all(verdict.regions for verdict in verdicts)
    assert [defect.regions for defect in defects] == [(), (), ()]


class ForgetfulReader:
    """A bug of ours: it fails in a way that nobody foresaw."""

    def read(self, value: bytes) -> object:
        raise MemoryError("out of memory")


def test_a_bug_or_no_memory_ends_the_worker_and_loses_no_frame(
    embedded_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        feeder.send(frame("cam-0", 0))
        feeder.flush()
        with pytest.raises(Exception, match="out of memory"), inspecting(settings) as inspector:
            inspector._reader = ForgetfulReader()
            feeder.send(frame("cam-0", 1))
            feeder.flush()
            assert inspector._ended.wait(30)
        with inspecting(settings):
            verdicts = read(settings, "verdicts", Verdict, 2)
            wait_until(lambda: committed(settings, 0) == 2)
    assert {verdict.sequence for verdict in verdicts} == {0, 1}


# The verdict leaves first


@dataclass
class HeldDetector(PlainDetector):
    """Scores every frame but the second, or describes none, before the test lets it."""

    def __post_init__(self) -> None:
        self.may_score, self.may_describe = threading.Event(), threading.Event()

    def score(self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray | None] | None = None) -> list[Scores]:
        if any(image[-1, -1, 0] == 1 for image in images):
            assert self.may_score.wait(60)
        return super().score(images, masks)

    def close_ups(self, parts: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        if any(part.mean() > 200 for part in parts):
            assert self.may_describe.wait(60)
        return super().close_ups(parts)


def test_a_verdict_leaves_while_the_next_frame_of_the_same_burst_is_scored(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    detector = HeldDetector()
    with feeding(settings) as feeder:
        feeder.send(*(frame("cam-0", i) for i in range(4)))
        feeder.flush()
        with inspecting(settings, detector=detector):
            assert [verdict.sequence for verdict in read(settings, "verdicts", Verdict, 1)] == [0]
            assert not detector.may_score.is_set()
            detector.may_score.set()
            assert [verdict.sequence for verdict in read(settings, "verdicts", Verdict, 4)] == [0, 1, 2, 3]
    assert set(detector.batches) == {1}


def test_verdicts_of_rejects_do_not_wait_for_a_description_that_blocks(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    wide = {"describe_frames_per_s": 1000, "describe_queue_bytes": 1 << 30}
    settings = line_settings(embedded_broker.bootstrap, tmp_path, **wide)
    detector = HeldDetector()
    detector.may_score.set()
    with feeding(settings) as feeder, inspecting(settings, detector=detector) as inspector:
        before = _undescribed(inspector)
        feeder.send(*(frame(f"cam-{i % 4}", i // 4, level=FULL) for i in range(200)))
        feeder.flush()
        verdicts = read(settings, "verdicts", Verdict, 200)
        assert all(verdict.regions for verdict in verdicts)
        assert all((committed(settings, i) or 0) < 50 for i in range(4)), "no frame is finished before its defect"
        detector.may_describe.set()
        defects = read(settings, "defects", Defect, 200)
        wait_until(lambda: [committed(settings, i) for i in range(4)] == [50] * 4)
        assert _undescribed(inspector) == before
    assert all(defect.regions for defect in defects)
    assert_in_order(defects)


def test_beyond_the_budget_a_reject_has_a_defect_without_regions_and_is_counted(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path, describe_frames_per_s=0.01)
    with feeding(settings) as feeder, inspecting(settings) as inspector:
        before = _undescribed(inspector)
        feeder.send(*(frame(f"cam-{i % 2}", i // 2, level=FULL) for i in range(20)))
        feeder.flush()
        defects = read(settings, "defects", Defect, 20)
        wait_until(lambda: [committed(settings, i) for i in (0, 1)] == [10, 10])
        assert _undescribed(inspector) - before == 18
    described = [defect for defect in defects if defect.regions]
    assert sorted((defect.camera, defect.sequence) for defect in described) == [("cam-0", 0), ("cam-1", 0)]
    assert len({defect.embedding_version for defect in defects}) == 1


def _undescribed(inspector: Inspector) -> float:
    lines = [
        line for line in inspector.metrics().splitlines() if line.startswith("flawline_undescribed_defects_total{")
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
