"""One inspector in this process on a real broker: what goes in on `frames` comes out once, in order, or as a letter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove
from kafka.errors import MessageSizeTooLargeError
from kafka.structs import MemberState, TopicPartition

from embedded_broker import EmbeddedBroker
from flawline import imaging, kafka_clients, messages, telemetry
from flawline.checked_producer import CheckedFuture, CheckedProducer
from flawline.errors import FlawlineError
from flawline.messages import Codec, DeadLetter, DeadLetterReason, Decision, Defect, Frame, Verdict
from flawline.object_store import object_store
from flawline.settings.tree import Settings
from flawline.topics import WORKERS_GROUP
from tests.support.brokers import RunningBroker
from tests.workers.line import (
    FULL,
    NOT_FINITE,
    POISON,
    Feeder,
    PlainDetector,
    assert_in_order,
    committed,
    feeding,
    frame,
    inspecting,
    last_commit,
    line_settings,
    load_plain,
    read,
    read_records,
    wait_until,
    write_model,
)
from workers.active_model import ModelRef
from workers.expiry import last_frames_of
from workers.inspector import Inspector, member_name
from workers.lane import RECORD_BYTES
from workers.suspects import Note, this_process


def test_every_frame_gets_one_verdict_in_order_on_its_own_partition(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path)
    cameras = [f"cam-{i}" for i in range(6)]  # more cameras than partitions
    with feeding(settings) as feeder:
        for sequence in range(30):
            feeder.send(*(frame(camera, sequence, level=FULL if sequence % 10 == 0 else 20) for camera in cameras))
        feeder.flush()
        with inspecting(settings):
            records = read_records(settings, "verdicts", Verdict, 180)
            wait_until(lambda: sum(committed(settings, i) or 0 for i in range(4)) == 180)
        places = {
            (record.partition, sent.frame_id): record.offset
            for sent, record in read_records(settings, "frames", Frame, 180)
        }
    verdicts = [verdict for verdict, _ in records]
    assert len(verdicts) == len({verdict.frame_id for verdict in verdicts}) == 180
    assert_in_order(verdicts)
    for verdict, record in records:
        assert record.partition == feeder.partition(verdict.camera)
        assert record.key == verdict.camera.encode()
        assert dict(record.headers) == {
            "schema": b"verdict/1",
            "frame-id": verdict.frame_id.encode(),
            messages.FRAME_OFFSET: str(places[record.partition, verdict.frame_id]).encode(),
        }
        assert verdict.model_version == "plain-1"
        assert verdict.timings.score_s > 0
        rejected = verdict.sequence % 10 == 0
        assert verdict.decision is (Decision.REJECT if rejected else Decision.ACCEPT)
        assert bool(verdict.regions) == rejected
    defects = read_records(settings, "defects", Defect, 18)
    assert {defect.frame_id for defect, _ in defects} == {v.frame_id for v in verdicts if v.regions}
    assert all(record.partition == feeder.partition(defect.camera) for defect, record in defects)


def _changed(**changes: object) -> Callable[[Frame], bytes]:
    return lambda good: messages.encode(replace(good, **changes))


def _damaged(good: Frame) -> bytes:
    data = good.data[:-40]
    return messages.encode(replace(good, data=data, size_bytes=len(data), checksum=messages.checksum(data)))


def _oversize(good: Frame) -> bytes:
    data = bytes(70_000)
    return messages.encode(replace(good, data=data, size_bytes=len(data), checksum=messages.checksum(data)))


def _deep(good: Frame) -> bytes:
    data = imaging.encode(np.full((good.height, good.width, 3), 900, np.uint16), Codec.PNG)
    return messages.encode(replace(good, data=data, size_bytes=len(data), checksum=messages.checksum(data)))


BAD_RECORDS: dict[str, tuple[DeadLetterReason, Callable[[Frame], bytes]]] = {
    "nonsense": (DeadLetterReason.UNDECODABLE, lambda good: b"\x00 this is no frame"),
    "another depth than the model's": (DeadLetterReason.UNDECODABLE, _deep),
    "damaged image": (DeadLetterReason.UNDECODABLE, _damaged),
    "next schema": (
        DeadLetterReason.WRONG_SCHEMA,
        lambda good: messages.encode(good).replace(b"\xa1v\x01", b"\xa1v\x02", 1),
    ),
    "oversize": (DeadLetterReason.OVERSIZE, _oversize),
    "checksum": (DeadLetterReason.CHECKSUM, lambda good: messages.encode(replace(good, checksum=good.checksum ^ 1))),
    "missing object": (DeadLetterReason.MISSING_OBJECT, _changed(data=b"", object_key="0" * 64)),
    "breaks the model": (
        DeadLetterReason.SCORING_FAILED,
        lambda good: messages.encode(frame(good.camera, good.sequence, first_pixel=POISON)),
    ),
    "no finite score": (
        DeadLetterReason.SCORING_FAILED,
        lambda good: messages.encode(frame(good.camera, good.sequence, first_pixel=NOT_FINITE)),
    ),
}


def test_each_bad_record_becomes_a_dead_letter_with_its_reason_and_its_neighbours_get_verdicts(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    settings = settings.model_copy(
        update={
            "frames": settings.frames.model_copy(
                update={"limit_bytes": 60_000, "objects_url": f"file://{tmp_path}/objects"}
            )
        }
    )
    object_store(settings).create()
    sent: dict[int, tuple[DeadLetterReason, bytes]] = {}
    with feeding(settings) as feeder:
        for i, (reason, make) in enumerate(BAD_RECORDS.values()):
            good, bad = frame("cam-0", 2 * i), frame("cam-0", 2 * i + 1)
            feeder.send(good)
            sent[bad.sequence] = reason, make(bad)
            feeder.send_bytes("cam-0", sent[bad.sequence][1], messages.headers(bad))
        feeder.flush()
        with inspecting(settings):
            verdicts = read(settings, "verdicts", Verdict, len(sent))
            letters = read_records(settings, "dead-letters", DeadLetter, len(sent))
            wait_until(lambda: committed(settings, 0) == 2 * len(sent))
    assert [verdict.sequence for verdict in verdicts] == [2 * i for i in range(len(sent))]
    assert len(letters) == len(sent)
    for letter, record in letters:
        sequence = messages.parse_frame_id(letter.frame_id)[2]
        reason, value = sent[sequence]
        assert (letter.reason, letter.value) == (reason, value), letter.error
        assert (letter.topic, letter.partition, letter.offset) == (settings.topic("frames"), 0, sequence)
        assert record.key == letter.key == b"cam-0"
        assert "\n" not in letter.error
        assert letter.error


def test_a_second_member_takes_partitions_and_gives_them_back_without_loss_or_disorder(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path, commit_interval_s=0.05)
    cameras = [f"cam-{i}" for i in range(4)]
    feeding_ends = threading.Event()
    sent = 0

    def feed(feeder: Feeder) -> None:
        nonlocal sent
        while not feeding_ends.wait(0.01):
            feeder.send(*(frame(camera, sent) for camera in cameras))
            sent += 1
        feeder.flush()

    with feeding(settings) as feeder:
        source = threading.Thread(target=feed, args=(feeder,))
        source.start()
        with inspecting(settings, 0, PlainDetector(seconds_per_image=0.001)) as first:
            with inspecting(settings, 1, PlainDetector(seconds_per_image=0.001)) as second:
                wait_until(lambda: len(second.health().partitions) == 2)
                assert len(first.health().partitions) == 2
                read_ahead = sent + 20
                wait_until(lambda: sent > read_ahead)
            _remove_member(settings, 1)
            wait_until(lambda: len(first.health().partitions) == 4)
            feeding_ends.set()
            source.join()
            verdicts = read(settings, "verdicts", Verdict, 4 * sent)
            wait_until(lambda: all(committed(settings, i) == sent for i in range(4)))
    assert {v.frame_id for v in verdicts} == {frame(c, s).frame_id for c in cameras for s in range(sent)}
    assert_in_order(verdicts)
    assert len(verdicts) == 4 * sent, "revoked partitions were finished and committed, so nothing was done twice"


def test_a_member_that_starts_in_the_middle_of_a_rebalance_takes_its_share_without_loss_or_disorder(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path)
    cameras = [f"cam-{i}" for i in range(4)]
    feeding_ends = threading.Event()
    sent = 0

    def feed(feeder: Feeder) -> None:
        nonlocal sent
        while not feeding_ends.wait(0.02):
            feeder.send(*(frame(camera, sent) for camera in cameras))
            sent += 1
        feeder.flush()

    with feeding(settings) as feeder, inspecting(settings) as first:
        source = threading.Thread(target=feed, args=(feeder,))
        source.start()
        try:
            wait_until(lambda: len(first.health().partitions) == 4 and sent > 10)
            with inspecting(settings, 1, is_awaited=False) as second:
                # The first of the two rounds of a cooperative rebalance is over: nobody has these partitions.
                wait_until(lambda: len(first.health().partitions) < 4)
                with inspecting(settings, 2) as third:
                    members = (first, second, third)
                    wait_until(lambda: sorted(len(member.health().partitions) for member in members) == [1, 1, 2])
                    read_ahead = sent + 10
                    wait_until(lambda: sent > read_ahead)
                    feeding_ends.set()
                    source.join()
                    verdicts = read(settings, "verdicts", Verdict, 4 * sent)
                    wait_until(lambda: all(committed(settings, i) == sent for i in range(4)))
        finally:
            feeding_ends.set()
            source.join()
    assert len(verdicts) == 4 * sent
    assert_in_order(verdicts)


def _remove_member(settings: object, slot: int) -> None:
    client = kafka_clients.admin(settings)
    client.remove_group_members(
        settings.kafka.topic_prefix + WORKERS_GROUP, [MemberToRemove(group_instance_id=member_name(settings, slot))]
    )
    client.close()


def test_a_restart_goes_on_where_the_last_run_stopped(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        for part in range(3):
            feeder.send(*(frame("cam-0", 20 * part + i) for i in range(20)))
            feeder.flush()
            with inspecting(settings):
                verdicts = read(settings, "verdicts", Verdict, 20 * (part + 1))
    assert [verdict.sequence for verdict in verdicts] == list(range(60)), "nothing lost, nothing done twice"


def test_a_commit_names_what_is_in_work_and_an_orderly_stop_leaves_no_suspects(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings):
        feeder.send(*(frame("cam-0", i) for i in range(20)))
        feeder.flush()
        wait_until(lambda: committed(settings, 0) == 20)
        assert Note.of(last_commit(settings, 0).metadata) == Note(begun=19, owner=this_process())
    left = last_commit(settings, 0)
    assert (left.offset, Note.of(left.metadata)) == (20, Note())
    assert last_frames_of(left.metadata) == {"cam-0": (frame("cam-0", 19).epoch, 19)}
    assert last_commit(settings, 1) is None


def test_frames_beyond_the_byte_bound_wait_at_the_broker(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    limit = 1 << 20
    settings = line_settings(embedded_broker.bootstrap, tmp_path, in_flight_limit_bytes=limit)
    size = 100_000
    detector = PlainDetector(seconds_per_image=0.005)
    with feeding(settings) as feeder:
        for sequence in range(60):
            # Bytes after a PNG's end are ignored, so these frames are large and quickly decoded.
            padded = _padded(frame("cam-0", sequence), size)
            feeder.send(padded, _padded(frame("cam-1", sequence), size))
        feeder.flush()
        held: list[int] = []
        paused: list[int] = []
        with inspecting(settings, detector=detector) as inspector:
            wait_until(lambda: inspector._gate.held_bytes)
            while len(held) < 2 or held[-1] or inspector.health().scoring_for_s:
                held.append(inspector._gate.held_bytes)
                paused.append(inspector._gate.closed)
                if len(paused) > 100_000 or (not held[-1] and sum(committed(settings, i) or 0 for i in (0, 1)) == 120):
                    break
            verdicts = read(settings, "verdicts", Verdict, 120)
    assert len(verdicts) == 120
    assert_in_order(verdicts)
    assert any(paused)
    assert max(held) <= limit + 16 * (size + 1000 + RECORD_BYTES)
    assert max(detector.batches) == 1, "frames are scored as they come"


def _padded(good: Frame, size: int) -> Frame:
    data = good.data + bytes(size - len(good.data))
    return replace(good, data=data, size_bytes=size, checksum=messages.checksum(data))


def load_failures() -> float:
    return telemetry.REGISTRY.get_sample_value("flawline_model_load_failures_total") or 0.0


def test_a_new_model_takes_over_between_batches_and_a_broken_one_leaves_the_old_in_place(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings) as inspector:
        feeder.send(frame("cam-0", 0))
        read(settings, "verdicts", Verdict, 1)
        before = load_failures()
        inspector.change_model(ModelRef(str(tmp_path / "nowhere")))
        wait_until(lambda: load_failures() == before + 1)
        inspector.change_model(ModelRef(str(write_model(tmp_path / "second", "plain-2")), "plain-other"))
        wait_until(lambda: load_failures() == before + 2)
        feeder.send(frame("cam-0", 1))
        read(settings, "verdicts", Verdict, 2)
        inspector.change_model(ModelRef(str(tmp_path / "second"), "plain-2"))
        wait_until(lambda: inspector._model.waits)
        feeder.send(frame("cam-0", 2))
        verdicts = read(settings, "verdicts", Verdict, 3)
        text = inspector.metrics()
    assert [verdict.model_version for verdict in verdicts] == ["plain-1", "plain-1", "plain-2"]
    assert 'flawline_model_info{role="active",version="plain-2"} 1.0' in text
    assert "plain-1" not in text


def test_what_the_broker_did_not_take_is_read_again(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        feeder.send(*(frame("cam-0", i) for i in range(200)))
        feeder.flush()
        with inspecting(settings, detector=PlainDetector(seconds_per_image=0.005)) as inspector:
            read(settings, "verdicts", Verdict, 10)
            lanes = inspector._intake._lanes
            lane = lanes[TopicPartition(settings.topic("frames"), 0)]
            inspector._intake.reread(lane)
            inspector._intake.reread(lane)  # reported once for each record that was lost
            verdicts = read(settings, "verdicts", Verdict, 200)
            wait_until(lambda: committed(settings, 0) == 200)
    scores: dict[str, set[float]] = {}
    for verdict in verdicts:
        scores.setdefault(verdict.frame_id, set()).add(verdict.score)
    assert len(scores) == 200
    assert all(len(different) == 1 for different in scores.values()), "a frame that is done again gets the same score"
    assert_in_order(verdicts)


def test_a_broker_that_dies_and_comes_back_costs_time_only(fresh_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line_settings(fresh_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        feeder.send(*(frame("cam-0", i) for i in range(300)))
        feeder.flush()
        with inspecting(settings, detector=PlainDetector(seconds_per_image=0.005)):
            read(settings, "verdicts", Verdict, 10)
            fresh_broker.kill()
            fresh_broker.start()
            verdicts = read(settings, "verdicts", Verdict, 300)
    assert {verdict.sequence for verdict in verdicts} == set(range(300))
    assert_in_order(verdicts)


def test_an_outage_longer_than_the_session_ends_no_worker_and_makes_no_frame_a_suspect(
    fresh_broker: EmbeddedBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = line_settings(fresh_broker.bootstrap, tmp_path, session_timeout_s=6.0)
    with feeding(settings) as feeder, inspecting(settings):
        feeder.send(*(frame("cam-0", s) for s in range(20)))
        feeder.flush()
        read(settings, "verdicts", Verdict, 20)
        fresh_broker.kill()
        feeder.send(*(frame("cam-0", s) for s in range(20, 40)))
        away_until = time.monotonic() + 8
        wait_until(lambda: time.monotonic() > away_until)
        fresh_broker.start()
        verdicts = read(settings, "verdicts", Verdict, 40)
    assert_in_order(verdicts)
    assert "tried one at a time" not in caplog.text


def test_a_worker_that_starts_in_an_outage_waits_for_the_broker(fresh_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line_settings(fresh_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        feeder.send(*(frame("cam-0", s) for s in range(5)))
        feeder.flush()
        fresh_broker.kill()
        inspector = Inspector(settings, member_name(settings, 0), ModelRef(str(settings.worker.model)), load_plain)
        running = threading.Thread(target=inspector.run, daemon=True)
        running.start()
        assert not inspector.ready(1.0)
        fresh_broker.start()
        assert inspector.ready(30)
        read(settings, "verdicts", Verdict, 5)
        inspector.stop()
        running.join(30)
        assert not running.is_alive()


@pytest.mark.parametrize("again", [10, 40])
def test_topics_that_are_deleted_and_made_again_cost_what_was_in_them_and_nothing_more(
    either_broker: RunningBroker, tmp_path: Path, again: int
) -> None:
    if again == 40 and isinstance(either_broker, EmbeddedBroker):
        pytest.skip("the embedded broker gives topics no ids, by which one with more records could be told apart")
    settings = line_settings(either_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings):
        feeder.send(*(frame("cam-0", s) for s in range(20)))
        feeder.flush()
        read(settings, "verdicts", Verdict, 20)
        wait_until(lambda: committed(settings, 0) == 20)
        admin = kafka_clients.admin(settings)
        admin.delete_topics([settings.topic(name) for name in ("frames", "verdicts")])
        wait_until(lambda: kafka_clients.ensure_topics(settings, ["frames"]))
        with feeding(settings) as later:
            later.send(*(frame("cam-0", s) for s in range(20, 20 + again)))
            later.flush()
            wait_until(lambda: settings.topic("verdicts") in admin.list_topics())  # the worker makes it again
            admin.close()
            verdicts = read(settings, "verdicts", Verdict, again)
    # Not their order: a broker that lost a log knows no sequence of its producer, and takes a later batch first.
    assert {verdict.sequence for verdict in verdicts} == set(range(20, 20 + again))


def test_a_rebalance_that_the_client_has_forgotten_goes_on(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings) as inspector:
        assert inspector._intake is not None
        coordinator = inspector._intake._consumer._coordinator
        # As the client is left when a topic's metadata change and change back while it joins.
        coordinator._disable_heartbeat()
        coordinator.rejoining, coordinator.state = True, MemberState.REBALANCING
        feeder.send(*(frame("cam-0", s) for s in range(5)))
        feeder.flush()
        read(settings, "verdicts", Verdict, 5)
        wait_until(lambda: committed(settings, 0) == 5)
        assert coordinator.state is MemberState.STABLE


def test_a_verdict_that_the_broker_refuses_becomes_a_dead_letter_and_the_camera_goes_on(
    embedded_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    send = CheckedProducer.send

    def refusing(client: CheckedProducer, topic: str, **record: Any) -> CheckedFuture:
        # Not by a limit of the topic: a broker refuses a batch, and other verdicts may be in it.
        if topic == settings.topic("verdicts") and b"large" in record["value"]:
            future = CheckedFuture()
            future.failure(MessageSizeTooLargeError("too large"))
            return future
        return send(client, topic, **record)

    with feeding(settings) as feeder:
        monkeypatch.setattr(CheckedProducer, "send", refusing)
        with inspecting(settings):
            for s in range(30):
                feeder.send(frame("cam-0", s, lot="large" if s in (7, 8) else None))
            feeder.flush()
            letters = read(settings, "dead-letters", DeadLetter, 2)
            verdicts = read(settings, "verdicts", Verdict, 28)
            wait_until(lambda: committed(settings, 0) == 30)
    assert {letter.reason for letter in letters} == {DeadLetterReason.BROKER_REFUSED}
    assert {letter.frame_id for letter in letters} == {frame("cam-0", s).frame_id for s in (7, 8)}
    assert_in_order(verdicts)
    assert {verdict.sequence for verdict in verdicts} == set(range(30)) - {7, 8}


def test_a_defect_that_the_broker_refuses_leaves_without_its_regions(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        _limit(settings, "defects", 800)
        with inspecting(settings):
            feeder.send(frame("cam-0", 0, level=FULL), frame("cam-0", 1))
            feeder.flush()
            (defect,) = read(settings, "defects", Defect, 1)
            wait_until(lambda: committed(settings, 0) == 2)
            verdicts = read(settings, "verdicts", Verdict, 2)
    assert defect.regions == ()
    assert len({verdict.frame_id for verdict in verdicts}) == 2


def _limit(settings: Settings, name: str, limit_bytes: int) -> None:
    """Let a topic of the broker refuse records that are larger."""
    admin = kafka_clients.admin(settings)
    resource = ConfigResource(ConfigResourceType.TOPIC, settings.topic(name), {"max.message.bytes": str(limit_bytes)})
    admin.alter_configs([resource])
    admin.close()


def test_of_two_processes_in_one_place_one_ends_with_a_clear_error_and_no_frame_is_lost(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path)
    sequence = 0
    with (
        feeding(settings) as feeder,
        pytest.raises(FlawlineError, match="another process took this worker's place"),
        inspecting(settings) as old,
        inspecting(settings) as new,
    ):
        # The old one, usually. On a busy machine it may have to join again, and is then the newer of the two.
        while not (old._stop.wait(0.05) or new._stop.is_set()):
            feeder.send(frame("cam-0", sequence))
            sequence += 1
            assert sequence < 600
        verdicts = read(settings, "verdicts", Verdict, sequence)
    assert len({(verdict.frame_id, verdict.score) for verdict in verdicts}) == sequence


def test_a_model_that_cannot_be_loaded_is_named_before_the_group_is_joined_and_a_stop_ends_the_wait(
    tmp_path: Path,
) -> None:
    settings = line_settings("127.0.0.1:1", tmp_path, model=str(tmp_path / "nowhere"))
    inspector = Inspector(settings, "m", ModelRef(str(tmp_path / "nowhere")), load_plain)
    thread = threading.Thread(target=inspector.run)
    thread.start()
    wait_until(lambda: inspector.health().model_problem)
    health = inspector.health()
    assert "nowhere cannot be used, no frame is scored" in health.model_problem
    assert (health.model, health.partitions) == (None, [])
    inspector.stop()
    thread.join(10)
    assert not thread.is_alive()
