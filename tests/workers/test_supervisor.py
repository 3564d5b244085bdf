"""Actors in processes of their own, under their supervisor."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from embedded_broker import EmbeddedBroker
from flawline import imaging, kafka_clients, messages, telemetry
from flawline.errors import FlawlineError, UsageError
from flawline.messages import Codec, Decision, Defect, ModelPointer, ShadowVerdict, Verdict
from flawline.settings.scorer import ScorerSettings
from flawline.settings.tree import Settings
from producers.simulation import PRODUCTS, LineSettings, SimulatedLine
from scorer import load
from scorer.fit import fit_detector
from tests.support.brokers import RunningBroker
from tests.support.ports import reserved_port
from tests.workers.line import (
    EPOCH,
    committed,
    feeding,
    frame,
    line_settings,
    load_any,
    load_plain,
    read,
    wait_until,
    write_model,
)
from tests.workers.ray_session import supervising
from workers import model_reports, shadow_report
from workers import publish_model as publishing
from workers import supervisor as supervisors
from workers.inspector import load_detector
from workers.publish_model import promote, rollback
from workers.supervisor import Supervisor

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ray_here")]


def publish_model(settings: Settings, version: str, uri: Path, role: str = "active") -> None:
    producer = kafka_clients.producer(settings)
    pointer = ModelPointer(role, version, str(uri), time.time_ns())
    producer.send(settings.topic("models"), key=role.encode(), value=messages.encode(pointer)).get(20)
    producer.close()


def waited_s() -> float:
    """Return for how long this process's role has waited for its broker."""
    value = telemetry.REGISTRY.get_sample_value("flawline_broker_wait_seconds")
    assert value is not None
    return value


def without_model(settings: Settings) -> Settings:
    return settings.model_copy(update={"worker": settings.worker.model_copy(update={"model": None})})


def test_actors_share_the_cameras_scale_down_at_once_and_up_again(either_broker: RunningBroker, tmp_path: Path) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path, actors=2, session_timeout_s=60.0)
    with feeding(settings) as feeder, supervising(settings) as supervisor:
        wait_until(lambda: [len(health.partitions) for health in supervisor.health().values()] == [2, 2])
        assert len(set(supervisor.actor_pids().values()) | {os.getpid()}) == 3
        feeder.send(*(frame(f"cam-{i % 4}", i // 4) for i in range(80)))
        feeder.flush()
        read(settings, "verdicts", Verdict, 80)
        supervisor.scale(1)
        # Far sooner than the session time of a static member.
        wait_until(lambda: [len(health.partitions) for health in supervisor.health().values()] == [4])
        supervisor.scale(2)
        wait_until(lambda: [len(health.partitions) for health in supervisor.health().values()] == [2, 2])
        feeder.send(*(frame(f"cam-{i % 4}", 20 + i // 4) for i in range(80)))
        feeder.flush()
        verdicts = read(settings, "verdicts", Verdict, 160)
        with pytest.raises(UsageError, match=r"worker\.num_cpus = 0.5 for 4000 actors"):
            supervisor.scale(4000)
    assert len(verdicts) == 160
    assert sum(committed(settings, i) or 0 for i in range(4)) == 160


def test_an_actor_is_added_while_frames_wait_for_one_that_is_busy(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    model = str(write_model(tmp_path / "slow", seconds_per_image=0.1))
    settings = line_settings(embedded_broker.bootstrap, tmp_path, actors="auto", most_actors=2, model=model)
    with feeding(settings) as feeder, supervising(settings, load_plain) as supervisor:
        assert len(supervisor.actor_pids()) == 1
        feeder.send(*(frame(f"cam-{i % 4}", i // 4) for i in range(1200)))  # two minutes of work for it
        feeder.flush()
        wait_until(lambda: [len(health.partitions) for health in supervisor.health().values()] == [2, 2], 120)


def test_scores_of_a_real_model_are_the_same_through_two_actors_as_without_any(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    side = 128
    line = SimulatedLine(LineSettings(products=PRODUCTS[:2], defect_rate=0.4, height=side, width=side))
    fitted = fit_detector([part.image for part in line.good_parts(40)], ScorerSettings())
    fitted.save(tmp_path / "real")
    images = [line.render("cam", i).image for i in range(48)]
    alone = load.load_detector(tmp_path / "real", device="cpu", threads=2)
    expected = alone.score(images)
    settings = line_settings(embedded_broker.bootstrap, tmp_path, actors=2, model=str(tmp_path / "real"))
    with feeding(settings) as feeder, supervising(settings, load_detector) as supervisor:
        wait_until(lambda: [len(health.partitions) for health in supervisor.health().values()] == [2, 2])
        for i, image in enumerate(images):
            data = imaging.encode(image, Codec.PNG)
            size = {"height": side, "width": side, "size_bytes": len(data)}
            feeder.send(frame(f"cam-{i % 4}", i // 4, data=data, checksum=messages.checksum(data), **size))
        feeder.flush()
        verdicts = {v.frame_id: v for v in read(settings, "verdicts", Verdict, 48)}
        odd = sum(scores.decision is not Decision.ACCEPT for scores in expected)
        assert odd > 5
        defects = read(settings, "defects", Defect, odd)
    for i, scores in enumerate(expected):
        verdict = verdicts[frame(f"cam-{i % 4}", i // 4).frame_id]
        assert verdict.score == pytest.approx(scores.aligned, rel=1e-4)
        assert (verdict.decision, verdict.group) == (scores.decision, scores.group)
        assert verdict.model_version == alone.version
    for defect in defects:
        assert defect.embedding_version.startswith(alone.embedding_version)
        assert all(np.isfinite(region.embedding.array()).all() for region in defect.regions)
        assert len(defect.regions) == len(verdicts[defect.frame_id].regions) > 0


def test_a_published_model_is_picked_up_without_a_stop_and_a_broken_one_does_no_harm(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = without_model(line_settings(either_broker.bootstrap, tmp_path))
    first, second = write_model(tmp_path / "1", "plain-1"), write_model(tmp_path / "2", "plain-2")
    with feeding(settings) as feeder:
        publish_model(settings, "plain-1", first)
        publish_model(settings, "plain-9", tmp_path / "9", role="shadow")
        with supervising(settings) as supervisor:
            feeder.send(frame("cam-0", 0))
            read(settings, "verdicts", Verdict, 1)
            pids = supervisor.actor_pids()
            publish_model(settings, "plain-8", tmp_path / "8")
            wait_until(lambda: "flawline_model_load_failures_total 2.0" in supervisor.metrics()["0"])
            # An actor that dies now must come back with the model that works.
            os.kill(pids[0], signal.SIGKILL)
            wait_until(lambda: supervisor.actor_pids() not in ({}, pids))
            feeder.send(frame("cam-0", 1))
            read(settings, "verdicts", Verdict, 2)
            pids = supervisor.actor_pids()
            publish_model(settings, "plain-2", second)
            sequence = 2
            while read(settings, "verdicts", Verdict, sequence)[-1].model_version != "plain-2":
                feeder.send(frame("cam-0", sequence))
                sequence += 1
                assert sequence < 200
            assert supervisor.actor_pids() == pids, "no actor was stopped for it"
            verdicts = read(settings, "verdicts", Verdict, sequence)
    versions = [verdict.model_version for verdict in verdicts]
    assert versions[:2] == ["plain-1", "plain-1"]
    assert versions == sorted(versions)


def test_without_a_broker_and_then_without_a_model_the_workers_wait_and_stop_when_asked(
    fresh_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = without_model(line_settings(fresh_broker.bootstrap, tmp_path))
    fresh_broker.kill()
    stop = threading.Event()
    supervisor = Supervisor(settings, load=load_plain)
    started: list[bool] = []
    thread = threading.Thread(target=lambda: started.append(supervisor.start(stop)))
    thread.start()
    wait_until(lambda: waited_s() > 0)
    fresh_broker.start()
    publish_model(settings, "plain-9", tmp_path / "9", role="shadow")
    wait_until(lambda: waited_s() == 0)
    thread.join(1)
    assert thread.is_alive(), "a shadow model decides nothing"
    stop.set()
    thread.join(30)
    supervisor.stop()
    assert started == [False]


def test_without_any_model_that_can_be_loaded_the_workers_wait_name_it_and_begin_when_it_is_there(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path, model=str(tmp_path / "later"), actors=2)
    supervisor = Supervisor(settings, load=load_plain)
    started: list[bool] = []
    thread = threading.Thread(target=lambda: started.append(supervisor.start()))
    with feeding(settings) as feeder:
        feeder.send(*(frame(f"cam-{i}", 0) for i in range(4)))
        thread.start()
        try:
            wait_until(lambda: len(problems(supervisor)) == 2)
            assert all("later cannot be used, no frame is scored" in problem for problem in problems(supervisor))
            wait_until(
                lambda: all(
                    'flawline_model_problem{role="active"} 1.0' in text for text in supervisor.metrics().values()
                )
            )
            assert thread.is_alive()
            write_model(tmp_path / "later", "plain-1")
            assert len(read(settings, "verdicts", Verdict, 4)) == 4
            thread.join(60)
            assert started == [True]
            wait_until(lambda: not problems(supervisor))
        finally:
            supervisor.stop()


def test_a_role_starts_with_its_last_good_model_when_the_active_one_cannot_be_used(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = without_model(line_settings(embedded_broker.bootstrap, tmp_path))
    with feeding(settings) as feeder:
        publish_model(settings, "plain-1", write_model(tmp_path / "1", "plain-1"))
        feeder.send(frame("cam-0", 0))
        with supervising(settings):
            read(settings, "verdicts", Verdict, 1)
        shutil.rmtree(tmp_path / "1")
        publish_model(settings, "plain-9", tmp_path / "gone")
        feeder.send(frame("cam-0", 1))
        with supervising(settings) as supervisor:
            read(settings, "verdicts", Verdict, 2)
            wait_until(lambda: len(problems(supervisor)) == 1)
            (problem,) = problems(supervisor)
            assert "plain-9" in problem and "frames are scored with plain-1, which worked last" in problem
            wait_until(lambda: 'flawline_model_problem{role="active"} 1.0' in supervisor.metrics()["0"])
            publish_model(settings, "plain-2", write_model(tmp_path / "2", "plain-2"))
            wait_until(lambda: supervisor.health()[0].model_problem is None)
            feeder.send(frame("cam-0", 2))
            verdicts = read(settings, "verdicts", Verdict, 3)
    assert [verdict.model_version for verdict in verdicts] == ["plain-1", "plain-1", "plain-2"]


def test_a_role_starts_with_its_last_good_model_when_no_model_is_announced_any_more(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    first = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(first) as feeder, supervising(first):
        feeder.send(frame("cam-0", 0))
        read(first, "verdicts", Verdict, 1)
    shutil.rmtree(tmp_path / "model")
    # Another line's prefix on the same broker looks like this one's broker that came back with an empty disk.
    emptied = without_model(line_settings(embedded_broker.bootstrap, tmp_path, model=str(tmp_path / "model")))
    with feeding(emptied) as feeder, supervising(emptied):
        feeder.send(frame("cam-0", 1))
        (verdict,) = read(emptied, "verdicts", Verdict, 1)
    assert verdict.model_version == "plain-1"


def test_a_shadow_model_scores_beside_the_active_one_is_compared_and_promoted_in_one_step(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = without_model(line_settings(either_broker.bootstrap, tmp_path, shadow_share=1.0))
    with feeding(settings) as feeder, supervising_plain(settings, tmp_path) as supervisor:
        feeder.send(frame("cam-0", 0))
        read(settings, "verdicts", Verdict, 1)
        publish(settings, tmp_path / "strict", "shadow", "strict-1")
        wait_until(lambda: supervisor.health()[0].shadow)
        feeder.send(*(frame("cam-0", i, level=100 if i % 2 else 20) for i in range(1, 9)))
        shadows = read(settings, "shadow-verdicts", ShadowVerdict, 8)
        verdicts = read(settings, "verdicts", Verdict, 9)
        assert {verdict.model_version for verdict in verdicts} == {"plain-1"}, "the shadow decides nothing"
        assert {shadow.model_version for shadow in shadows} == {"strict-1"}
        wait_until(
            lambda: [report.shadow for report in model_reports.read(settings)] == [supervisor.health()[0].shadow]
        )
        comparison = shadow_report.compare(shadow_report.read(settings))
        assert (comparison.frames, comparison.agreement) == (8, 0.5)
        assert comparison.flip_counts == {"accept -> reject": 4}
        assert shadow_report.write_pictures(settings, comparison.flips, tmp_path / "flips") == (4, 0)
        pictures = sorted((tmp_path / "flips" / "accept-to-reject").iterdir())
        assert [picture.name for picture in pictures] == [f"cam-0_{EPOCH}_{i}.png" for i in (1, 3, 5, 7)]
        assert int(imaging.decode(pictures[0].read_bytes(), Codec.PNG)[5, 5, 0]) == 100
        promote(settings)
        sequence = 9
        while read(settings, "verdicts", Verdict, sequence)[-1].model_version != "strict-1":
            feeder.send(frame("cam-0", sequence))
            sequence += 1
            assert sequence < 200
        wait_until(lambda: supervisor.health()[0].shadow is None)
        assert len(read(settings, "shadow-verdicts", ShadowVerdict, 8)) >= 8
        rollback(settings)
        while read(settings, "verdicts", Verdict, sequence)[-1].model_version != "plain-1":
            feeder.send(frame("cam-0", sequence))
            sequence += 1
            assert sequence < 400
    assert model_reports.read(settings) == [], "what runs no more is shown no more"


def test_a_shadow_model_that_kills_its_process_is_set_aside_and_costs_no_frame(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = without_model(line_settings(embedded_broker.bootstrap, tmp_path, shadow_share=1.0, restart_limit=4))
    with feeding(settings) as feeder, supervising_plain(settings, tmp_path) as supervisor:
        publish(settings, tmp_path / "deadly", "shadow", "deadly-1")
        sequence = 0
        for deaths in range(supervisors.SHADOW_DEATHS_LIMIT):
            wait_until(lambda: any(health.shadow for health in supervisor.health().values()))
            feeder.send(frame("cam-0", sequence))
            sequence += 1
            wait_until(lambda: supervisor._shadow_deaths > deaths)  # noqa: B023
        feeder.send(*(frame("cam-0", i) for i in range(sequence, sequence + 5)))
        verdicts = read(settings, "verdicts", Verdict, sequence + 5)
        assert all(health.shadow is None for health in supervisor.health().values())
    assert {verdict.model_version for verdict in verdicts} == {"plain-1"}


def test_a_model_whose_load_kills_the_process_is_set_aside_and_the_last_good_one_scores(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = without_model(line_settings(embedded_broker.bootstrap, tmp_path, restart_limit=3))
    with feeding(settings) as feeder:
        with supervising_plain(settings, tmp_path) as supervisor:
            publish_model(settings, "lethal-1", write_model(tmp_path / "lethal", "lethal-1"))
            wait_until(lambda: problems(supervisor))
            feeder.send(frame("cam-0", 0))
            read(settings, "verdicts", Verdict, 1)
        with supervising(settings, load_any) as supervisor:  # a new start knows nothing of the deaths before
            wait_until(lambda: problems(supervisor))
            (problem,) = problems(supervisor)
            feeder.send(frame("cam-0", 1))
            verdicts = read(settings, "verdicts", Verdict, 2)
    assert "lethal-1" in problem and "is set aside: 2 processes died" in problem
    assert {verdict.model_version for verdict in verdicts} == {"plain-1"}


def publish(settings: Settings, folder: Path, role: str, version: str) -> None:
    """Publish a plain model through the code that the command uses."""
    write_model(folder, version)
    publishing.publish_model(settings, folder, role, verify=lambda path, worker: load_any(path, worker).version)


@contextmanager
def supervising_plain(settings: Settings, tmp_path: Path) -> Iterator[Supervisor]:
    """Yield a supervisor whose active model is plain-1, and which can load strict and deadly ones."""
    publish(settings, tmp_path / "1", "active", "plain-1")
    with supervising(settings, load_any) as supervisor:
        yield supervisor


def problems(supervisor: Supervisor) -> list[str]:
    """Return what keeps the actors from the model that is wanted."""
    return [health.model_problem for health in supervisor.health().values() if health.model_problem]


def test_an_actor_that_keeps_dying_is_given_up_with_a_clear_error(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path, restart_limit=1)
    kafka_clients.ensure_topics(settings)
    with (
        pytest.raises(FlawlineError, match="actor 0 ended 2 times within 60 s, lastly: its process died"),
        supervising(settings) as supervisor,
    ):
        seen: set[int] = set()
        while not supervisor.failed.is_set():
            for pid in set(supervisor.actor_pids().values()) - seen:
                seen.add(pid)
                os.kill(pid, signal.SIGKILL)
            supervisor.failed.wait(0.05)
        assert len(seen) == 2


def test_verdicts_without_room_for_the_frames_partitions_are_refused(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    client = kafka_clients.admin(settings)
    client.create_topics({settings.topic("verdicts"): {"num_partitions": 2, "replication_factor": 1}})
    client.close()
    with pytest.raises(FlawlineError, match=r"verdicts has 2 partitions and .*frames has 4"):
        Supervisor(settings, load=load_plain).start()


def test_run_serves_the_metrics_of_all_actors_on_one_endpoint_until_it_is_stopped(
    embedded_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path, actors=2)
    port = reserved_port()
    settings = settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"workers_port": port})})
    monkeypatch.setattr(supervisors, "stop_ray", lambda: None)  # the session's other tests still need it
    monkeypatch.setattr(supervisors, "Supervisor", lambda settings: Supervisor(settings, load=load_plain))
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=supervisors.run, args=(settings, stop, ready.set))
    with feeding(settings) as feeder:
        thread.start()
        assert ready.wait(60)
        feeder.send(*(frame(f"cam-{i % 4}", i // 4) for i in range(40)))
        feeder.send_bytes("cam-0", b"nonsense")
        read(settings, "verdicts", Verdict, 40)

        def page() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return answer.read().decode()

        wait_until(lambda: page().count('flawline_verdict_latency_seconds_count{actor="') == 4)
        wait_until(lambda: 'reason="undecodable"' in page())
        wait_until(lambda: page().count("flawline_lag_records{actor=") == 4)
        text = page()
    assert "flawline_actors 2.0" in text
    assert 'flawline_verdicts_total{actor="0",camera="cam-' in text
    assert 'flawline_verdicts_total{actor="1",camera="cam-' in text
    for name in ("stage_latency_seconds_bucket", "lag_seconds", "worker_in_flight_bytes", "queue_depth", "model_info"):
        assert f'flawline_{name}{{actor="' in text, name
    assert "flawline_captured" not in text, "metrics of other roles would be empty here"
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
