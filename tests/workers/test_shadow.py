"""The shadow model: bounded, and never in the way of the active one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawline import telemetry
from flawline.messages import Decision, ModelReport, RunningModel, ShadowVerdict
from flawline.settings.workers import WorkerSettings
from tests.workers.line import PlainDetector, frame, load_any, wait_until, write_model
from workers import shadow_report
from workers.active_model import ModelRef
from workers.model_reports import REPEAT_S, due
from workers.model_slot import ModelSlot
from workers.model_store import ModelStore
from workers.shadow import QUEUE_BYTES, ShadowScorer

PIXELS = np.full((32, 32, 3), 100, np.uint8)
ACTIVE = PlainDetector("plain-1").score([PIXELS])[0]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def scoring_shadow(
    tmp_path: Path, version: str, share: float = 1.0, load: Any = None, now: Any = None, sent: list[Any] | None = None
) -> Iterator[ShadowScorer]:
    def load_here(path: Path) -> PlainDetector:
        return (load or load_any)(path, WorkerSettings())

    slot = ModelSlot("shadow", None, load_here, ModelStore(tmp_path / "copies", "shadow"))
    taken = [] if sent is None else sent
    scorer = ShadowScorer(share, slot, lambda verdict: taken.append(verdict) or True, **({"now": now} if now else {}))
    scorer.start()
    scorer.change(ModelRef(str(write_model(tmp_path / "shadow", version)), version))
    try:
        yield scorer
    finally:
        scorer.close()


def add(scorer: ShadowScorer, sequence: int, pixels: np.ndarray = PIXELS, version: str = "plain-1") -> None:
    scorer.add(frame("cam-0", sequence), 3, 70 + sequence, pixels, None, version, ACTIVE)


def outcomes(outcome: str) -> float:
    return telemetry.REGISTRY.get_sample_value("flawline_shadow_frames_total", {"outcome": outcome}) or 0.0


def test_a_frame_gets_the_scores_of_both_models_and_its_place(tmp_path: Path) -> None:
    sent: list[ShadowVerdict] = []
    with scoring_shadow(tmp_path, "strict-1", sent=sent) as scorer:
        assert scorer.slot.wait(10)
        add(scorer, 5)
        wait_until(lambda: sent)
    (verdict,) = sent
    assert (verdict.frame_id, verdict.partition, verdict.offset) == (frame("cam-0", 5).frame_id, 3, 75)
    assert (verdict.active_version, verdict.active_decision) == ("plain-1", Decision.ACCEPT)
    assert (verdict.model_version, verdict.decision) == ("strict-1", Decision.REJECT)
    assert (verdict.active_score, verdict.score) == (ACTIVE.aligned, 10.0)


def test_beyond_its_share_frames_are_left_out_and_memory_is_bounded(tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(PlainDetector):
        def _score(self, image: np.ndarray) -> Any:
            if image.shape[0] > 64:
                entered.set()
                go_on.wait(20)
            return super()._score(image)

    large = np.zeros((1000, 2000, 3), np.uint8)
    before = outcomes("over-share")
    with scoring_shadow(tmp_path, "slow-1", load=lambda path, worker: Slow("slow-1")) as scorer:
        assert scorer.slot.wait(10)
        add(scorer, 0, large)
        assert entered.wait(10)
        for i in range(10):
            add(scorer, 1 + i, large)
        room = QUEUE_BYTES // large.nbytes
        assert (len(scorer._queue), outcomes("over-share") - before) == (room, 10 - room)
        go_on.set()


def test_the_share_holds_also_while_no_frame_waits(tmp_path: Path) -> None:
    now, sent = Clock(), []

    class Second(PlainDetector):
        def _score(self, image: np.ndarray) -> Any:
            now.now_s += 1.0
            return super()._score(image)

    def wait(seconds: float) -> None:
        now.now_s += seconds

    with scoring_shadow(
        tmp_path, "second-1", 0.25, lambda path, worker: Second("second-1"), now=now, sent=sent
    ) as scorer:
        assert scorer.slot.wait(10)
        scorer._pace._wait = wait
        start_s = now.now_s
        for i in range(20):
            add(scorer, i)
        wait_until(lambda: len(sent) == 20)
    assert 20 / (now.now_s - start_s) == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("version", ["plain-1", "plain-2"])
def test_what_plays_the_active_model_scores_nothing(tmp_path: Path, version: str) -> None:
    sent: list[ShadowVerdict] = []
    with scoring_shadow(tmp_path, "plain-1", sent=sent) as scorer:
        assert scorer.slot.wait(10)
        add(scorer, 1, version=version)
        add(scorer, 2, version="other")
        wait_until(lambda: any(verdict.sequence == 2 for verdict in sent))
    assert [verdict.sequence for verdict in sent] == ([2] if version == "plain-1" else [1, 2])


def test_failing_frames_are_counted_logged_once_and_end_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(PlainDetector):
        def _score(self, image: np.ndarray) -> Any:
            if image.shape[0] == 32:
                raise ValueError("no idea")
            return super()._score(image)

    before, sent = outcomes("failed"), []
    with scoring_shadow(tmp_path, "failing-1", load=lambda path, worker: Failing("failing-1"), sent=sent) as scorer:
        assert scorer.slot.wait(10)
        for i in range(3):
            add(scorer, i)
        add(scorer, 3, np.zeros((40, 40, 3), np.uint8))
        wait_until(lambda: sent)
    assert outcomes("failed") - before == 3
    assert [r.getMessage() for r in caplog.records] == ["shadow model failing-1 fails on a frame: ValueError: no idea"]


def test_a_shadow_model_that_is_withdrawn_gives_its_memory_back(tmp_path: Path) -> None:
    with scoring_shadow(tmp_path, "strict-1") as scorer:
        assert scorer.slot.wait(10)
        scorer.slot.current()
        scorer.change(None)
        assert scorer.slot.running is None
        add(scorer, 1)
        assert len(scorer._queue) == 0


def test_a_shadow_model_that_is_withdrawn_while_it_loads_never_runs(tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(path: Path, worker: WorkerSettings) -> PlainDetector:
        entered.set()
        go_on.wait(20)
        return PlainDetector("slow-1")

    with scoring_shadow(tmp_path, "slow-1", load=slow) as scorer:
        assert entered.wait(10)
        scorer.change(None)
        go_on.set()
        assert not scorer.slot.wait(0.3)


def test_a_share_of_nothing_loads_nothing(tmp_path: Path) -> None:
    with scoring_shadow(tmp_path, "strict-1", share=0.0) as scorer:
        assert not scorer.slot.wait(0.2)


# The comparison


def shadow_verdict(sequence: int, active: Decision, shadow: Decision, **changes: Any) -> ShadowVerdict:
    fields = {"model_version": "v2", "active_version": "v1"} | changes
    return ShadowVerdict(
        "cam-0", 1, sequence, 5, scored_at=6, partition=0, offset=sequence, score=1.0, p_value=0.5, decision=shadow,
        active_score=0.5, active_decision=active, **fields,
    )  # fmt: skip


def test_the_newest_pair_of_versions_is_compared_and_a_frame_counts_once() -> None:
    accept, review, reject = Decision.ACCEPT, Decision.REVIEW, Decision.REJECT
    verdicts = [
        shadow_verdict(0, accept, reject, active_version="v0"),
        shadow_verdict(1, accept, accept),
        shadow_verdict(2, accept, reject),
        shadow_verdict(2, accept, accept),
        shadow_verdict(3, reject, accept),
        shadow_verdict(4, reject, review),
        shadow_verdict(5, reject, reject),
        shadow_verdict(6, accept, reject),
    ]
    comparison = shadow_report.compare(verdicts)
    assert (comparison.active_version, comparison.shadow_version, comparison.frames) == ("v1", "v2", 6)
    assert comparison.agreement == pytest.approx(2 / 6)
    assert comparison.flip_counts == {"accept -> reject": 2, "reject -> accept": 1, "reject -> review": 1}
    assert [flip["frame_id"] for flip in comparison.as_dict()["flipped_frames"]] == [
        f"cam-0:1:{i}" for i in (2, 3, 4, 6)
    ]
    assert shadow_report.compare(verdicts, "v3") is None


# Reports of what runs where


def test_a_report_is_written_when_it_changes_or_is_old_and_taken_back_when_its_actor_has_gone() -> None:
    def report(member: str, version: str, at_s: float) -> ModelReport:
        return ModelReport(member, "host", 1, int(at_s * 1e9), RunningModel(version, 5), None)

    written = {"a": report("a", "v1", 0), "b": report("b", "v1", 0), "c": report("c", "v1", REPEAT_S)}
    now = [report("a", "v1", REPEAT_S - 1), report("b", "v2", REPEAT_S - 1)]
    assert due(written, now, int((REPEAT_S - 1) * 1e9)) == {"b": now[1], "c": None}
    assert due(written, now, int(REPEAT_S * 1e9)) == {"a": now[0], "b": now[1], "c": None}


def test_a_frame_of_a_depth_that_the_shadow_model_does_not_take_is_no_sample(tmp_path: Path) -> None:
    failed = outcomes("failed")
    sent: list[ShadowVerdict] = []
    with scoring_shadow(tmp_path, "strict-1", sent=sent) as scorer:
        assert scorer.slot.wait(10)
        scorer.add(frame("cam-0", 5), 3, 75, PIXELS, None, "plain-1", ACTIVE, 12)
        wait_until(lambda: outcomes("failed") == failed + 1)
    assert not sent
