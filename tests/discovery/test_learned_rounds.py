"""Learned rounds beside intake: in a process, on Ray, and when they fail; nothing is lost and nothing counted twice."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from discovery.learned import learned_round, learning_task
from discovery.learned.learning_task import Job, LearningFailed, Result
from discovery.round.single_round import Regions
from discovery.store import decisions, registry
from flawline.messages import ClassState
from tests.discovery.round_line import RoundLine

pytestmark = pytest.mark.system


@pytest.fixture
def line(tmp_path, vit_weights):
    opened = RoundLine(tmp_path, vit_weights, mode="learned", learning_epochs=1)
    yield opened
    opened.runner.close()


class Told:
    """Is a learning round with a result that the test sets, when the test wants."""

    def __init__(self, job):
        self.job, self.result, self.error, self.cancelled = job, None, None, False

    def poll(self):
        if self.error:
            raise LearningFailed(self.error)
        return self.result

    def cancel(self):
        self.cancelled = True

    def finish(self, labels=None):
        labels = self.job.start if labels is None else labels
        self.result = Result(dict(zip(self.job.ids, labels, strict=True)), 0.5, 1.0)


@pytest.fixture
def started(monkeypatch):
    """Return the list of the learning rounds that were started, the latest last."""
    jobs = []

    def start(job, settings):
        jobs.append(Told(Job.decode(job.encode())))
        return jobs[-1]

    monkeypatch.setattr(learning_task, "start", start)
    return jobs


def state(line):
    known = registry.read(line.store)
    return [
        (defect_class.id, defect_class.state, defect_class.members, defect_class.seen_rounds)
        for defect_class in known.classes
    ], known.round


def wait_for_end(line):
    deadline = time.monotonic() + 240
    while line.runner.busy:
        assert time.monotonic() < deadline, "the learning round does not end"
        line.runner.step()
        time.sleep(0.05)


def test_learned_round_in_a_process_of_its_own_finds_the_kinds_and_keeps_their_ids(line):
    line.feed(14, "v", 5)
    line.runner.ask()
    line.runner.step()
    assert line.runner.busy
    line.feed(2, "v", 5)  # intake goes on meanwhile
    wait_for_end(line)
    before = line.class_of_kind()
    assert sorted(map(len, before.values())) == [1, 1, 1]
    assert {
        defect_class.id: defect_class.members for defect_class in registry.read(line.store).classes
    } == line.members()


def test_what_came_meanwhile_is_left_to_the_next_round(line, started):
    line.feed(14, "v", 5)
    line.runner.ask()
    line.runner.step()
    line.feed(5, "v", 5)
    line.runner.step()
    started[0].finish()
    assert line.runner.step()
    assert sum(line.members().values()) == 42
    before = line.class_of_kind()
    line.runner.ask()
    line.runner.step()
    assert len(started[1].job.ids) == 57
    started[1].finish()
    line.runner.step()
    assert line.class_of_kind() == before
    assert sum(line.members().values()) == 57


def test_learning_starts_from_the_known_classes_and_says_what_people_confirmed(line, started):
    line.feed(14, "v", 5)
    line.runner.ask()
    line.runner.step()
    assert not any(started[0].job.confirmed)
    started[0].finish()
    line.runner.step()
    name = min(defect_class.id for defect_class in registry.read(line.store).classes)
    decisions.name(line.store, name, "scratch", who="ana")
    line.runner.ask()
    line.runner.step()
    job = started[1].job
    assert sum(job.confirmed) == 14
    assert len({start for start, confirmed in zip(job.start, job.confirmed, strict=True) if confirmed}) == 1
    assert max(job.start) == 2
    assert job.scores == ()


def test_what_people_say_during_a_learned_round_binds(line, started):
    line.feed(14, "v", 5)
    line.runner.ask()
    line.runner.step()
    started[0].finish()
    line.runner.step()
    first, second = sorted(defect_class.id for defect_class in registry.read(line.store).classes)[:2]
    line.runner.ask()
    line.runner.step()
    decisions.merge(line.store, second, first, who="ana")
    started[1].finish()  # its clusters still keep the two apart
    line.runner.step()
    states = {defect_class.id: defect_class.state for defect_class in registry.read(line.store).classes}
    assert states[second] is ClassState.MERGED
    assert line.members()[first] == 28


@pytest.mark.parametrize("how", ["fails", "takes too long", "cannot be started"])
def test_learning_round_that_fails_changes_nothing_and_is_said_in_one_line(line, started, monkeypatch, caplog, how):
    line.feed(14, "v", 5)
    line.runner.ask()
    line.runner.step()
    started[0].finish()
    line.runner.step()
    before = state(line)
    line.feed(2, "v", 5)
    if how == "cannot be started":

        def refuse(job, settings):
            raise LearningFailed("no room")

        monkeypatch.setattr(learning_task, "start", refuse)
    line.runner.ask()
    with caplog.at_level(logging.WARNING):
        line.runner.step()
        if how == "fails":
            started[1].error = "the loss is nan"
        elif how == "takes too long":
            line.runner._learned._started_at -= 1e6
        line.runner.step()
    assert not line.runner.busy
    assert state(line) == before
    assert caplog.text.count("the classes stay as they are") == 1
    assert len(caplog.records) == 1
    assert how == "cannot be started" or started[1].cancelled


def test_crops_that_learning_calls_nothing_have_no_class(line, started):
    line.feed(14, "v", 5)
    line.runner.ask()
    line.runner.step()
    labels = [-1 if number % 14 == 0 else start for number, start in enumerate(started[0].job.start)]
    started[0].finish(labels)
    line.runner.step()
    assert sum(line.members().values()) == 39


def test_process_that_cannot_learn_says_why_in_one_line(line, tmp_path):
    line.feed(14, "v", 5)
    with line.store.reading() as connection:
        regions = registry.regions_of_round(connection, line.settings.discovery, "v")
        plan = learned_round.job_of(connection, regions, registry.read(line.store), line.settings, "v", 0)
    broken = Job(**vars(plan.job) | {"weights": str(tmp_path / "missing")})
    running = learning_task.LearningProcess(broken)
    with pytest.raises(LearningFailed, match="no such weights file") as raised:
        while running.poll() is None:
            time.sleep(0.05)
    assert "\n" not in str(raised.value)
    ended = learning_task.LearningProcess(plan.job)
    ended.cancel()
    ended.cancel()


def test_learning_process_ends_with_a_service_that_was_killed(line, tmp_path):
    line.feed(14, "v", 5)
    with line.store.reading() as connection:
        regions = registry.regions_of_round(connection, line.settings.discovery, "v")
        plan = learned_round.job_of(connection, regions, registry.read(line.store), line.settings, "v", 0)
    (tmp_path / "job").write_bytes(Job(**vars(plan.job) | {"epochs": 100_000}).encode())
    script = (
        "import sys, time; from discovery.learned.learning_task import LearningProcess, Job; from pathlib import Path;"
        "job = LearningProcess(Job.decode(Path(sys.argv[1]).read_bytes())); print(job._process.pid, flush=True);"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "job")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        learner = psutil.Process(int(service.stdout.readline()))
        service.kill()
    gone, _ = psutil.wait_procs([learner], timeout=60)
    assert gone or learner.status() == psutil.STATUS_ZOMBIE


def test_learning_round_as_a_task_on_ray(line, vit_weights):
    ray = pytest.importorskip("ray")
    line.feed(14, "v", 5)
    with line.store.reading() as connection:
        regions = registry.regions_of_round(connection, line.settings.discovery, "v")
        plan = learned_round.job_of(connection, regions, registry.read(line.store), line.settings, "v", 0)
    if ray.is_initialized():
        pytest.skip("another test's Ray is running in this process")
    try:
        running = learning_task.RayTask(plan.job, line.settings)
        deadline = time.monotonic() + 240
        while (result := running.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        broken = learning_task.RayTask(Job(**vars(plan.job) | {"weights": "missing"}), line.settings)
        with pytest.raises(LearningFailed, match="no such weights file"):
            while broken.poll() is None:
                time.sleep(0.1)
    finally:
        ray.shutdown()
    assert result.labels.keys() == set(plan.job.ids)
    assert set(result.labels.values()) <= {0, 1, 2}


def test_starting_clusters_keep_apart_and_together_what_people_said():
    labels = np.array([0, 0, 1, 1, 2, 2])
    classes = ["D-0001", "D-0001", "D-0001", None, "D-0002", None]
    start, confirmed = learned_round.starting_labels(labels, classes, {"D-0001", "D-0002"})
    assert confirmed.tolist() == [True, True, True, False, True, False]
    assert len({start[0], start[1], start[2]}) == 1
    assert len({start[0], start[3], start[4], start[5]}) == 4
    assert sorted(set(start)) == list(range(start.max() + 1))


def test_learning_takes_exemplars_first_and_then_the_latest():
    count = 10
    regions = Regions(
        ids=np.arange(count),
        defect_ids=np.arange(count),
        keys=tuple(map(str, range(count))),
        classes=(None,) * count,
        exemplars=np.arange(count) < 2,
        captured_at=np.arange(count),
        vectors=np.ones((count, 3), np.float32),
    )
    assert learned_round.newest(regions, 5).ids.tolist() == [0, 1, 7, 8, 9]
    assert learned_round.newest(regions, 10) is regions
