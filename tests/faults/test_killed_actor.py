"""SIGKILL of actors in the middle of a run: it costs time, and changes no verdict."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from embedded_broker import EmbeddedBroker
from flawline.messages import DeadLetter, Defect, Verdict
from tests.support.brokers import RunningBroker
from tests.workers.conftest import either_broker, ray_here
from tests.workers.line import (
    FULL,
    POISON,
    assert_in_order,
    committed,
    feeding,
    frame,
    inspecting,
    line_settings,
    read,
    wait_until,
    write_model,
)
from tests.workers.ray_session import supervising

__all__ = ["either_broker", "ray_here"]

CAMERAS = 4
SEQUENCES = 250
BAD = frozenset({(1, 30), (2, 101)})


def _frames() -> list[list]:
    return [
        [
            frame(
                f"cam-{i}", s, level=FULL if s % 25 == 0 else 20 + s % 90, first_pixel=POISON if (i, s) in BAD else None
            )
            for i in range(CAMERAS)
        ]
        for s in range(SEQUENCES)
    ]


@pytest.mark.usefixtures("ray_here")
def test_killing_actors_in_the_middle_changes_no_verdict(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    model = str(write_model(tmp_path / "slow", seconds_per_image=0.004))
    frames = _frames()
    undisturbed = line_settings(embedded_broker.bootstrap, tmp_path, model=model)
    good = CAMERAS * SEQUENCES - len(BAD)
    with feeding(undisturbed) as feeder, inspecting(undisturbed):
        for row in frames:
            feeder.send(*row)
        feeder.flush()
        expected = {v.frame_id: (v.score, v.decision) for v in read(undisturbed, "verdicts", Verdict, good)}

    settings = line_settings(embedded_broker.bootstrap, tmp_path, model=model, actors=2, restart_limit=10)
    kills = 0
    with feeding(settings) as feeder, supervising(settings) as supervisor:
        wait_until(lambda: [len(health.partitions) for health in supervisor.health().values()] == [2, 2])
        sender = threading.Thread(target=lambda: [feeder.send(*row) for row in frames])
        sender.start()
        for share, slot in ((0.15, 0), (0.4, 1), (0.65, 0)):
            wait_until(lambda share=share: _committed_frames(settings) >= share * CAMERAS * SEQUENCES)
            os.kill(supervisor.actor_pids()[slot], signal.SIGKILL)
            kills += 1
        sender.join()
        feeder.flush()
        verdicts = read(settings, "verdicts", Verdict, good)
        letters = read(settings, "dead-letters", DeadLetter, len(BAD))
        wait_until(lambda: _committed_frames(settings) == CAMERAS * SEQUENCES)
        defects = read(settings, "defects", Defect, CAMERAS * SEQUENCES // 25)
    assert kills == 3
    assert {(v.frame_id, v.score, v.decision) for v in verdicts} == {(i, *rest) for i, rest in expected.items()}
    assert_in_order(verdicts)
    assert {letter.frame_id for letter in letters} == {frame(f"cam-{i}", s).frame_id for i, s in BAD}
    assert {defect.frame_id for defect in defects} == {v.frame_id for v in verdicts if v.regions}


def _committed_frames(settings) -> int:
    return sum(committed(settings, i) or 0 for i in range(CAMERAS))


@pytest.mark.usefixtures("ray_here")
def test_a_dead_actor_is_noticed_and_replaced_in_its_place(either_broker: RunningBroker, tmp_path: Path) -> None:
    # The session outlasts the test: only a replacement in the same place can have the cameras.
    settings = line_settings(either_broker.bootstrap, tmp_path, actors=2, session_timeout_s=200.0)
    with feeding(settings) as feeder, supervising(settings) as supervisor:
        wait_until(lambda: [len(health.partitions) for health in supervisor.health().values()] == [2, 2])
        before = {slot: (health.pid, health.partitions) for slot, health in supervisor.health().items()}
        os.kill(before[0][0], signal.SIGKILL)
        wait_until(lambda: supervisor.actor_pids().get(0) not in (None, before[0][0]))
        feeder.send(*(frame(f"cam-{i}", 0) for i in range(CAMERAS)))
        feeder.flush()
        read(settings, "verdicts", Verdict, CAMERAS)
        wait_until(lambda: len(supervisor.health()[0].partitions) == 2)
        after = {slot: (health.pid, health.partitions) for slot, health in supervisor.health().items()}
    assert after[1] == before[1], "the other actor noticed nothing"
    assert after[0][1] == before[0][1], "the cameras stayed"
