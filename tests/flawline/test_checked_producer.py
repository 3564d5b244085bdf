"""Acknowledgements that cannot be true."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import KafkaTimeoutError
from kafka.structs import TopicPartition

from flawline import kafka_clients
from flawline.checked_producer import Acknowledgements, CheckedFuture, ImplausibleAcknowledgement
from flawline.settings.tree import Settings

PLACE = TopicPartition("frames", 3)


@given(st.integers(0, 1000), st.lists(st.integers(1, 5), max_size=20))
def test_offsets_that_ascend_from_the_end_of_the_log_are_plausible(end: int, steps: list[int]) -> None:
    check = Acknowledgements({PLACE: end})
    offset = end - 1
    for step in steps:
        offset += step
        check.check(PLACE, offset)
    with pytest.raises(ImplausibleAcknowledgement, match=r"frames \[3\]"):
        check.check(PLACE, offset)
    check.check(TopicPartition("frames", 4), 0)  # of a partition whose end is not known


def test_an_offset_before_the_end_of_the_log_is_of_another_producer() -> None:
    with pytest.raises(ImplausibleAcknowledgement, match="acknowledges offset 6 for a record that belongs at 7"):
        Acknowledgements({PLACE: 7}).check(PLACE, 6)
    with pytest.raises(ImplausibleAcknowledgement):
        Acknowledgements({}).check(PLACE, -1)  # Kafka's answer to a sequence that is in the log already


def test_a_future_without_an_answer_times_out() -> None:
    with pytest.raises(KafkaTimeoutError, match="no answer"):
        CheckedFuture().get(timeout=0.01)


def test_the_second_owner_of_a_producer_id_is_not_believed(
    line_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka_clients.ensure_topics(line_settings)
    name = line_settings.topic("verdicts")
    first = kafka_clients.producer(line_settings, "verdicts")
    assert first.send(name, value=b"one", partition=0).get(timeout=30).offset == 0
    second = kafka_clients.producer(line_settings, "verdicts")
    taken, manager = first._sender._transaction_manager.producer_id_and_epoch, second._sender._transaction_manager
    take = manager.set_producer_id_and_epoch
    monkeypatch.setattr(manager, "set_producer_id_and_epoch", lambda _: take(taken))
    answer = second.send(name, value=b"another", partition=0)
    with pytest.raises(ImplausibleAcknowledgement, match="acknowledges offset 0 for a record that belongs at 1"):
        answer.get(timeout=30)
    for client in (first, second):
        kafka_clients.close_producer(client)


def test_a_topic_that_does_not_exist_is_not_made_by_a_client(line_settings: Settings) -> None:
    consumer = kafka_clients.consumer(line_settings)
    producer = kafka_clients.producer(line_settings, "frames", max_block_ms=500)
    assert not consumer.partitions_for_topic(line_settings.topic("frames"))
    with pytest.raises(KafkaTimeoutError):
        producer.send(line_settings.topic("frames"), value=b"one").get(timeout=5)
    assert line_settings.topic("frames") not in consumer.topics()
    consumer.close(autocommit=False)
    kafka_clients.close_producer(producer)
