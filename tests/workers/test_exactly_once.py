"""Exactly-once delivery on a real Apache Kafka: whatever happens, who reads what is committed sees each frame once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka.errors import ProducerFencedError
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients
from flawline.errors import FlawlineError, UsageError
from flawline.messages import DeadLetter, Defect, Verdict
from flawline.rights import transactional_id
from flawline.settings.tree import Settings
from tests.support.brokers import ApacheKafka, kafka_home
from tests.workers import inspector_process
from tests.workers.line import (
    FULL,
    POISON,
    assert_in_order,
    committed,
    feeding,
    frame,
    inspecting,
    last_commit,
    line_settings,
    read,
    wait_until,
    write_model,
)
from workers.inspector import member_name
from workers.standing import standing_of
from workers.transactions import TransactionalProducer

pytestmark = pytest.mark.system

CAMERAS = 4
GROUP = ConsumerGroupMetadata(group_id="g")


@pytest.fixture
def settings(apache_kafka: ApacheKafka, tmp_path: Path) -> Settings:
    model = str(write_model(tmp_path / "model", seconds_per_image=0.004))
    return line_settings(apache_kafka.bootstrap, tmp_path, model=model, delivery="exactly-once")


def row(sequence: int) -> list:
    """Return one frame of each camera; every fifth is a reject, and the first camera has some that break the model."""
    return [
        frame(
            f"cam-{i}",
            sequence,
            level=FULL if sequence % 5 == 0 else 20 + sequence % 90,
            first_pixel=POISON if i == 0 and sequence % 20 == 7 else None,
        )
        for i in range(CAMERAS)
    ]


def assert_once(settings: Settings, rows: int, timeout_s: float = 120) -> None:
    """Check that each frame of `rows` has one committed outcome, each reject one defect, and that all are finished."""
    frames = [sent for sequence in range(rows) for sent in row(sequence)]
    broken = {sent.frame_id for sent in frames if sent.camera == "cam-0" and sent.sequence % 20 == 7}
    rejected = {sent.frame_id for sent in frames if sent.sequence % 5 == 0}
    verdicts = read(settings, "verdicts", Verdict, len(frames) - len(broken), timeout_s)
    letters = read(settings, "dead-letters", DeadLetter, len(broken), timeout_s)
    defects = read(settings, "defects", Defect, len(rejected), timeout_s)
    wait_until(lambda: [committed(settings, i) for i in range(CAMERAS)] == [rows] * CAMERAS, timeout_s)
    assert sorted(verdict.frame_id for verdict in verdicts) == sorted({frame.frame_id for frame in frames} - broken)
    assert sorted(str(letter.frame_id) for letter in letters) == sorted(broken)
    assert sorted(defect.frame_id for defect in defects) == sorted(rejected)
    assert_in_order(verdicts)


@contextmanager
def working(settings: Settings, folder: Path, slot: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Run an inspector in a process of its own; leaving the block kills it."""
    process = inspector_process.start(settings, folder, slot)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finished(settings: Settings) -> int:
    return sum(committed(settings, i) or 0 for i in range(CAMERAS))


def producer(settings: Settings, name: str) -> TransactionalProducer:
    made = kafka_clients.producer(settings, "verdicts", kind=TransactionalProducer, transactional_id=name)
    assert isinstance(made, TransactionalProducer)
    made.init_transactions()
    return made


def visible(settings: Settings, isolation_level: str) -> list[bytes]:
    """Return the values of the first partition of verdicts that a reader of an isolation level sees."""
    place = TopicPartition(settings.topic("verdicts"), 0)
    client = kafka_clients.consumer(settings, isolation_level=isolation_level)
    try:
        client.assign([place])
        client.seek_to_beginning(place)
        end, values = client.end_offsets([place])[place], []
        while client.position(place) < end:
            values += [record.value for record in client.poll(timeout_ms=200).get(place, [])]
        return values
    finally:
        client.close(autocommit=False)


def test_every_frame_has_one_outcome_and_offsets_move_with_it(settings: Settings) -> None:
    with feeding(settings) as feeder, inspecting(settings):
        for sequence in range(30):
            feeder.send(*row(sequence))
        assert_once(settings, 30)
    assert last_commit(settings, 1).metadata.startswith('{"last":'), "who stops in order leaves no suspects"


def test_who_reads_sees_a_transaction_when_it_is_committed_and_never_when_it_is_aborted(settings: Settings) -> None:
    kafka_clients.ensure_topics(settings)
    writer = producer(settings, "w")
    frames = TopicPartition(settings.topic("frames"), 0)
    for value, is_committed in ((b"aborted", False), (b"committed", True)):
        writer.begin()
        writer.send(settings.topic("verdicts"), value=value, partition=0).get(timeout=30)
        writer.add_offsets({frames: OffsetAndMetadata(7, "note", -1)}, GROUP).wait(30_000)
        assert value not in visible(settings, "read_committed")
        (writer.ask_commit() if is_committed else writer.ask_abort()).wait(30_000)
    wait_until(lambda: visible(settings, "read_committed") == [b"committed"])
    assert visible(settings, "read_uncommitted") == [b"aborted", b"committed"]
    kafka_clients.close_producer(writer)


def test_a_second_producer_with_the_same_id_fences_the_first(settings: Settings) -> None:
    kafka_clients.ensure_topics(settings)
    name = transactional_id(settings.kafka.topic_prefix, member_name(settings, 0))
    zombie = producer(settings, name)
    zombie.begin()
    zombie.send(settings.topic("verdicts"), value=b"zombie", partition=0).get(timeout=30)
    heir = producer(settings, name)
    with pytest.raises(ProducerFencedError):
        zombie.ask_commit().wait(30_000)
    heir.begin()
    heir.send(settings.topic("verdicts"), value=b"heir", partition=0).get(timeout=30)
    heir.ask_commit().wait(30_000)
    wait_until(lambda: visible(settings, "read_committed") == [b"heir"])
    for client in (zombie, heir):
        kafka_clients.close_producer(client)


def test_kill_9_in_the_middle_of_transactions_loses_and_repeats_nothing(settings: Settings, tmp_path: Path) -> None:
    rows = 40
    with feeding(settings) as feeder:
        for sequence in range(rows):
            feeder.send(*row(sequence))
        feeder.flush()
        with working(settings, tmp_path) as process:
            wait_until(lambda: finished(settings) >= 0.3 * rows * CAMERAS)
            process.kill()
        with working(settings, tmp_path):
            assert_once(settings, rows)


def test_a_reject_that_dies_between_verdict_and_defect_gets_its_defect_and_no_second_verdict(
    settings: Settings, tmp_path: Path
) -> None:
    model = Path(str(settings.worker.model))
    write_model(model, "mute-1")
    with feeding(settings) as feeder:
        for sequence in range(7):  # sequence 7 breaks the model, which this test does not want
            feeder.send(*row(sequence))
        feeder.flush()
        with working(settings, tmp_path):
            read(settings, "verdicts", Verdict, 7 * CAMERAS)
            wait_until(lambda: _standing(settings, 1).decided == 7)
            assert _standing(settings, 1).owed == (0, 5)
        write_model(model)
        with working(settings, tmp_path):
            assert_once(settings, 7)
    verdicts = read(settings, "verdicts", Verdict, 7 * CAMERAS)
    assert {verdict.model_version for verdict in verdicts} == {"mute-1"}


def _standing(settings: Settings, partition: int):
    last = last_commit(settings, partition)
    return standing_of(last.offset, last.metadata)


def test_an_actor_that_was_frozen_while_its_cameras_moved_repeats_nothing(settings: Settings, tmp_path: Path) -> None:
    with feeding(settings) as feeder, working(settings, tmp_path, 0) as frozen, working(settings, tmp_path, 1):
        for sequence in range(20):
            feeder.send(*row(sequence))
        wait_until(lambda: finished(settings) >= 10)
        for sequence in range(20, 120):
            feeder.send(*row(sequence))
        feeder.flush()
        frozen.send_signal(signal.SIGSTOP)  # most likely in a transaction
        try:
            # The broker ends the frozen one's transaction, and its session.
            wait_until(lambda: finished(settings) == 120 * CAMERAS, 120)
        finally:
            frozen.send_signal(signal.SIGCONT)
        for sequence in range(120, 160):
            feeder.send(*row(sequence))
        feeder.flush()
        assert_once(settings, 160)


def test_of_two_processes_in_one_place_the_fenced_one_ends_with_one_clear_line(
    settings: Settings, tmp_path: Path
) -> None:
    with (
        feeding(settings) as feeder,
        pytest.raises(FlawlineError, match="another process took this worker's place"),
        inspecting(settings) as old,
    ):
        rows = 0
        with working(settings, tmp_path):
            while not old._stop.wait(0.2):
                feeder.send(*row(rows))
                rows += 1
                assert rows < 600
            feeder.flush()
            assert_once(settings, rows)


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[ApacheKafka]:
    home = kafka_home()
    if home is None:
        pytest.skip("set KAFKA_HOME to a folder of Apache Kafka 4 (and have java) to run this")
    kafka = ApacheKafka(home, tmp_path / "kafka")
    kafka.start()
    yield kafka
    kafka.stop()


def test_a_broker_that_is_away_longer_than_a_transaction_may_last_costs_time_only(
    own_kafka: ApacheKafka, tmp_path: Path
) -> None:
    model = str(write_model(tmp_path / "model", seconds_per_image=0.004))
    settings = line_settings(own_kafka.bootstrap, tmp_path, model=model, delivery="exactly-once")
    with feeding(settings) as feeder, inspecting(settings) as inspector:
        for sequence in range(60):
            feeder.send(*row(sequence))
        feeder.flush()
        wait_until(lambda: finished(settings) >= 40)
        own_kafka.kill()
        inspector._stop.wait(8.0)  # the transaction in work may last 6 s
        own_kafka.restart()
        assert_once(settings, 60)
        assert not inspector._stop.is_set()


def test_the_embedded_broker_is_refused_with_a_clear_line(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no transactions.*name an Apache Kafka in kafka\.bootstrap_servers"):
        kafka_clients.require_transactions(line_settings(embedded_broker.bootstrap, tmp_path, delivery="exactly-once"))
