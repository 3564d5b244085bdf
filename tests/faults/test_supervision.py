"""The workers' supervisor: stopped at any moment it ends in time with 0, replaces what hangs, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from embedded_broker import EmbeddedBroker
from flawline.messages import Verdict
from tests.workers import work_process
from tests.workers.conftest import ray_here
from tests.workers.line import assert_in_order, feeding, frame, line_settings, read, wait_until
from tests.workers.ray_session import supervising

__all__ = ["ray_here"]

CAMERAS = 4


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def stopped(process: subprocess.Popen[bytes]) -> int:
    """Ask the role to stop, and return its exit code when it and all that it started have ended."""
    children = descendants(process)
    process.send_signal(signal.SIGTERM)
    code = process.wait(45)  # the time that `up` gives it
    wait_until(lambda: not living(children), 10)
    return code


@pytest.mark.parametrize("moment", ["Ray starts", "the model loads"])
def test_role_that_is_stopped_while_it_starts_ends_with_0_and_leaves_nothing(
    moment: str, embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    model = Path(str(settings.worker.model))
    (model / "held").touch()
    process = work_process.start(settings, tmp_path)
    try:
        if moment == "Ray starts":
            wait_until(lambda: any("gcs_server" in child.name() for child in living(descendants(process))))
        else:
            wait_until((model / "loading").exists)
        assert stopped(process) == 0
    finally:
        process.kill()
        process.wait()


def test_actors_of_a_killed_supervisor_end_and_the_next_one_goes_on(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        process = work_process.start(settings, tmp_path)
        try:
            feeder.send(*(frame(f"cam-{i % CAMERAS}", i // CAMERAS) for i in range(40)))
            read(settings, "verdicts", Verdict, 40, timeout_s=120)
            # Two helpers of Ray end by themselves a minute later; they hold no camera and no model.
            actors = [child for child in living(descendants(process)) if "InspectorActor" in "".join(child.cmdline())]
            assert len(actors) == 1
            process.kill()
            process.wait()
            wait_until(lambda: not living(actors), 30)
            feeder.send(*(frame(f"cam-{i % CAMERAS}", 10 + i // CAMERAS) for i in range(40)))
            process = work_process.start(settings, tmp_path)
            verdicts = read(settings, "verdicts", Verdict, 80, timeout_s=120)
            assert stopped(process) == 0
        finally:
            process.kill()
            process.wait()
    assert_in_order(verdicts)


def test_verdicts_go_on_and_a_stop_is_obeyed_when_rays_control_process_has_died(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        process = work_process.start(settings, tmp_path)
        try:
            feeder.send(*(frame(f"cam-{i % CAMERAS}", i // CAMERAS) for i in range(40)))
            read(settings, "verdicts", Verdict, 40, timeout_s=120)
            (control,) = [child for child in living(descendants(process)) if "gcs_server" in child.name()]
            control.kill()
            wait_until(lambda: not living([control]))
            feeder.send(*(frame(f"cam-{i % CAMERAS}", 10 + i // CAMERAS) for i in range(40)))
            verdicts = read(settings, "verdicts", Verdict, 80)
            assert process.poll() is None
            actors = [child for child in living(descendants(process)) if "InspectorActor" in "".join(child.cmdline())]
            process.send_signal(signal.SIGTERM)
            assert process.wait(45) == 0  # the time that `up` gives it
            wait_until(lambda: not living(actors), 10)  # Ray's agents, which hold no camera, end a minute later
        finally:
            process.kill()
            process.wait()
    assert_in_order(verdicts)
    assert len(verdicts) == 80


@pytest.mark.usefixtures("ray_here")
def test_actor_that_is_frozen_is_replaced_and_its_process_ends(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path, actors=2, hang_timeout_s=5.0)
    with feeding(settings) as feeder, supervising(settings) as supervisor:
        wait_until(lambda: [len(health.partitions) for health in supervisor.health().values()] == [2, 2])
        frozen = psutil.Process(supervisor.actor_pids()[0])
        frozen.send_signal(signal.SIGSTOP)
        try:
            feeder.send(*(frame(f"cam-{i % CAMERAS}", i // CAMERAS) for i in range(80)))
            feeder.flush()
            verdicts = read(settings, "verdicts", Verdict, 80)
            wait_until(lambda: supervisor.actor_pids().get(0, frozen.pid) != frozen.pid)
            wait_until(lambda: not living([frozen]), 10)
        finally:
            if living([frozen]):
                frozen.kill()
    assert_in_order(verdicts)


@pytest.mark.usefixtures("ray_here")
def test_stop_in_the_middle_of_a_rebalance_loses_no_frame(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path, actors=2)
    with feeding(settings) as feeder:
        with supervising(settings) as supervisor:
            feeder.send(*(frame(f"cam-{i % CAMERAS}", i // CAMERAS) for i in range(200)))
            pids = supervisor.actor_pids()
            os.kill(pids[0], signal.SIGKILL)
            wait_until(lambda: supervisor.actor_pids().get(0) != pids[0])  # the next one of this place is to join
            started = time.monotonic()
        assert time.monotonic() - started < 45
        feeder.send(*(frame(f"cam-{i % CAMERAS}", 50 + i // CAMERAS) for i in range(40)))
        feeder.flush()
        with supervising(settings):
            verdicts = read(settings, "verdicts", Verdict, 240)
    assert_in_order(verdicts)
