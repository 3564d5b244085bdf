"""Frames that had a verdict when their partition was taken over: none is decided again, and no defect gets lost."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from kafka.errors import KafkaTimeoutError
from kafka.structs import OffsetAndMetadata, TopicPartition

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, messages, telemetry
from flawline.errors import FlawlineError
from flawline.messages import Decision, Defect, Frame, ModelPointer, Region, Timings, Verdict
from flawline.settings.tree import Settings
from flawline.topics import WORKERS_GROUP
from tests.support.brokers import RunningBroker
from tests.workers.line import (
    FULL,
    POISON,
    assert_in_order,
    committed,
    feeding,
    frame,
    inspecting,
    line_settings,
    load_any,
    read,
    wait_until,
    write_model,
)
from tests.workers.ray_session import supervising
from workers import decided
from workers.decided import PATIENCE_S, Recall
from workers.suspects import ATTEMPT_LIMIT, Note


def verdict_of(sent: Frame, decision: Decision, version: str = "old-1") -> Verdict:
    regions = (Region((4, 6, 10, 12), 90, 7.5),) if decision is not Decision.ACCEPT else ()
    return Verdict(
        camera=sent.camera, epoch=sent.epoch, sequence=sent.sequence, captured_at=sent.captured_at, decided_at=7,
        model_version=version, group=3, raw_score=2.0, score=1.25, p_value=0.002, decision=decision, regions=regions,
        timings=Timings(0.0, 0.0, 0.0, 0.0), lot=sent.lot,
    )  # fmt: skip


def leave_verdicts(settings: Settings, *left: Verdict) -> None:
    """Write verdicts on cam-0 as an owner of partition 0 that died before it committed."""
    producer = kafka_clients.producer(settings)
    for verdict in left:
        producer.send(
            settings.topic("verdicts"), key=b"cam-0", value=messages.encode(verdict), headers=messages.headers(verdict),
            partition=0,
        )  # fmt: skip
    kafka_clients.close_producer(producer, 20)


def test_frames_with_a_verdict_keep_it_and_get_the_defect_that_is_missing(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path)
    accept, reject = Decision.ACCEPT, Decision.REJECT
    sent = [
        frame("cam-0", 0, level=FULL),  # this model would reject it
        frame("cam-0", 1, level=FULL, lot="L1"),
        frame("cam-0", 2, level=20),  # this model would accept it
        frame("cam-0", 3, level=FULL, first_pixel=POISON),  # this model fails on it
        frame("cam-0", 4, level=FULL),
    ]
    with feeding(settings) as feeder:
        leave_verdicts(
            settings, *(verdict_of(sent[i], decision) for i, decision in enumerate((accept, reject, reject, reject)))
        )
        feeder.send(*sent)
        feeder.flush()
        before = telemetry.REGISTRY.get_sample_value("flawline_decided_before_total")
        with inspecting(settings):
            wait_until(lambda: committed(settings, 0) == len(sent))
            defects = {defect.sequence: defect for defect in read(settings, "defects", Defect, 4)}
            verdicts = read(settings, "verdicts", Verdict, 5)
    assert [(verdict.sequence, verdict.model_version) for verdict in verdicts] == [
        (0, "old-1"), (1, "old-1"), (2, "old-1"), (3, "old-1"), (4, "plain-1"),
    ]  # fmt: skip
    assert telemetry.REGISTRY.get_sample_value("flawline_decided_before_total") == before + 4
    assert sorted(defects) == [1, 2, 3, 4], "also no dead letter"
    for i in (1, 2, 3):
        fields = defects[i].model_version, defects[i].decision, defects[i].score, defects[i].group, defects[i].p_value
        assert fields == ("old-1", reject, 1.25, 3, 0.002), "a defect says what its verdict says"
    assert defects[1].regions and not defects[2].regions and not defects[3].regions
    assert defects[1].lot == "L1"
    heatmap = defects[2].heatmap.array()
    assert heatmap.shape == (32, 32)
    assert (heatmap[6:18, 4:14] == 7.5).all() and heatmap.sum() == 7.5 * 10 * 12
    assert defects[4].model_version == "plain-1"


@pytest.mark.parametrize("deaths", [ATTEMPT_LIMIT - 1, ATTEMPT_LIMIT])
def test_a_decided_frame_that_may_kill_gets_its_defect_without_a_description_and_no_dead_letter(
    embedded_broker: EmbeddedBroker, tmp_path: Path, deaths: int
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    sent = [frame("cam-0", i, level=FULL) for i in range(2)]
    with feeding(settings) as feeder:
        feeder.send(*sent)
        feeder.flush()
        leave_verdicts(settings, verdict_of(sent[0], Decision.REJECT))
        note = Note(until=1, trying=0, attempt=deaths, owner="gone/1/1.00").text()
        client = kafka_clients.consumer(settings, group=WORKERS_GROUP)
        place = TopicPartition(settings.topic("frames"), 0)
        client.assign([place])
        client.commit({place: OffsetAndMetadata(0, note, -1)})
        client.close()
        with inspecting(settings):
            wait_until(lambda: committed(settings, 0) == 2)
            defects = {defect.sequence: defect for defect in read(settings, "defects", Defect, 2)}
            verdicts = read(settings, "verdicts", Verdict, 2)
    assert [(verdict.sequence, verdict.model_version) for verdict in verdicts] == [(0, "old-1"), (1, "plain-1")]
    assert (defects[0].model_version, defects[0].regions) == ("old-1", ())
    assert defects[1].regions
    assert sum(kafka_clients.log_ends(settings, ["dead-letters"]).values()) == 0


@pytest.mark.usefixtures("ray_here")
def test_an_actor_that_is_killed_before_its_commit_leaves_no_frame_to_a_model_that_decides_otherwise(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    model = str(write_model(tmp_path / "plain", "plain-1"))
    settings = line_settings(either_broker.bootstrap, tmp_path, model=model, commit_interval_s=60)
    settings = settings.model_copy(update={"worker": settings.worker.model_copy(update={"model": None})})

    def publish(version: str) -> None:
        producer = kafka_clients.producer(settings)
        pointer = ModelPointer("active", version, str(write_model(tmp_path / version, version)), time.time_ns())
        producer.send(settings.topic("models"), key=b"active", value=messages.encode(pointer)).get(20)
        producer.close()

    with feeding(settings) as feeder:
        publish("plain-1")
        feeder.send(*(frame("cam-0", i, level=FULL if i % 10 == 3 else 100) for i in range(20)))
        feeder.flush()
        with supervising(settings, load_any) as supervisor:
            read(settings, "defects", Defect, 2)
            read(settings, "verdicts", Verdict, 20)
            publish("strict-1")
            sequence = 0
            while read(settings, "verdicts", Verdict, 20 + sequence)[-1].model_version != "strict-1":
                feeder.send(frame("cam-1", sequence, level=100))
                sequence += 1
                assert sequence < 200
            assert committed(settings, 0) == 0
            pids = supervisor.actor_pids()
            os.kill(pids[0], signal.SIGKILL)
            feeder.send(frame("cam-0", 20, level=100))
            verdicts = read(settings, "verdicts", Verdict, 21 + sequence)
    assert max(Counter(verdict.frame_id for verdict in verdicts).values()) == 1
    of_camera = [verdict for verdict in verdicts if verdict.camera == "cam-0"]
    assert_in_order(of_camera)
    assert [verdict.model_version for verdict in of_camera] == ["plain-1"] * 20 + ["strict-1"]


# Reading back


def recalled(settings: Settings, last: dict[str, tuple[int, int]]) -> list[int]:
    return sorted(sequence for _, _, sequence in Recall(settings)(0, last))


def unknown() -> float:
    return telemetry.REGISTRY.get_sample_value("flawline_unknown_verdicts_total")


def test_the_way_back_ends_at_a_finished_frame_or_at_its_bound_which_is_counted(
    embedded_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    monkeypatch.setattr(decided, "TAILS", (4, 10))
    before = unknown()
    assert Recall(settings)(0, {}) == {}, "there is no topic yet"
    kafka_clients.ensure_topics(settings)
    assert recalled(settings, {}) == []
    leave_verdicts(settings, *(verdict_of(frame("cam-0", i), Decision.ACCEPT) for i in range(8)))
    epoch = frame("cam-0", 0).epoch
    assert recalled(settings, {"cam-0": (epoch, 5)}) == [6, 7]
    assert recalled(settings, {"cam-0": (epoch, 2)}) == [3, 4, 5, 6, 7]
    assert recalled(settings, {"cam-0": (epoch - 1, 9)}) == list(range(8)), "an earlier start of the camera"
    assert recalled(settings, {}) == list(range(8)), "the topic's start"
    assert unknown() == before
    leave_verdicts(settings, *(verdict_of(frame("cam-0", i), Decision.ACCEPT) for i in range(8, 16)))
    assert recalled(settings, {}) == list(range(6, 16))
    assert unknown() == before + 1
    monkeypatch.setattr(decided, "BYTES_LIMIT", 700)
    assert len(recalled(settings, {"cam-0": (epoch, 14)})) < 2
    assert unknown() == before + 2


def test_of_two_verdicts_on_a_frame_the_first_is_found(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    kafka_clients.ensure_topics(settings)
    sent = frame("cam-0", 0)
    leave_verdicts(settings, verdict_of(sent, Decision.ACCEPT, "v1"), verdict_of(sent, Decision.REJECT, "v2"))
    (value,) = Recall(settings)(0, {}).values()
    assert messages.decode(Verdict, value).model_version == "v1"


def test_a_topic_that_cannot_be_read_is_tried_again_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, before = [100.0], unknown()

    class Silent:
        def assign(self, places: object) -> None: ...
        def unsubscribe(self) -> None: ...
        def close(self, autocommit: bool) -> None: ...
        def partitions_for_topic(self, topic: str) -> set[int]:
            return {0}

        def beginning_offsets(self, places: object, timeout_ms: int) -> None:
            raise KafkaTimeoutError("no leader")

    monkeypatch.setattr(kafka_clients, "consumer", lambda *_, **__: Silent())
    recall = Recall(line_settings("127.0.0.1:1", tmp_path), lambda: now_s[0])
    for waited_s in (0.0, PATIENCE_S - 1):
        now_s[0] = 100.0 + waited_s
        assert recall(0, {}) is None
    assert unknown() == before
    now_s[0] = 100.0 + PATIENCE_S
    assert recall(0, {}) == {}
    assert unknown() == before + 1
    assert recall(0, {}) is None, "the next time it is waited for again"


def test_a_broker_that_is_away_is_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, before = [100.0], unknown()

    def fail(*_: object, **__: object) -> None:
        raise FlawlineError("the broker cannot be used")

    monkeypatch.setattr(kafka_clients, "consumer", fail)
    recall = Recall(line_settings("127.0.0.1:1", tmp_path), lambda: now_s[0])
    for at_s in (100.0, 200.0, 3_700.0):
        now_s[0] = at_s
        assert recall(0, {}) is None
    assert unknown() == before
