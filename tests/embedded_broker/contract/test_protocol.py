"""Requests that are made by hand: sequences of idempotent producers, broken batches, bytes that are no request."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse
from kafka.protocol.producer import InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse

from embedded_broker.protocol import ErrorCode
from tests.embedded_broker.contract.clients import CLIENTS, wait_until
from tests.support.brokers import RunningBroker, unique
from tests.support.wire import Wire, frame_of, record_batch

COORDINATOR_LOAD_IN_PROGRESS = 14  # of an Apache Kafka that has just started


@pytest.fixture
def wire(broker: RunningBroker) -> Iterator[Wire]:
    with Wire(broker.bootstrap) as connection:
        yield connection


@pytest.fixture
def topic(broker: RunningBroker) -> str:
    name = unique("wire")
    client = CLIENTS["kafka-python"](broker.bootstrap)
    client.create_topic(name, partitions=2)
    with client.consumer() as consumer:  # retries until both partitions have a leader that answers
        for partition in range(2):
            consumer.bounds(name, partition)
    client.close()
    return name


def now_ms() -> int:
    return int(time.time() * 1000)


def new_producer_id(wire: Wire) -> int:
    request = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=0)

    def answer() -> Any:
        answer = wire.ask(request, InitProducerIdResponse, 1)
        assert answer.error_code in (0, COORDINATOR_LOAD_IN_PROGRESS)
        return answer if answer.error_code == 0 else None

    return wait_until(answer, "a producer id").producer_id


def batch(producer_id: int, epoch: int, sequence: int, count: int = 1) -> bytes:
    return record_batch([b"x"] * count, producer=(producer_id, epoch, sequence), timestamp=now_ms())


def test_a_retried_batch_is_answered_with_its_first_offset_and_stored_once(wire: Wire, topic: str) -> None:
    producer_id = new_producer_id(wire)
    batches = [batch(producer_id, 0, sequence, 2) for sequence in range(0, 12, 2)]
    assert [wire.produce(topic, batch) for batch in batches] == [(0, offset) for offset in range(0, 12, 2)]
    # The last five are remembered, as many as a producer may have in flight.
    assert [wire.produce(topic, batch) for batch in batches[1:]] == [(0, offset) for offset in range(2, 12, 2)]
    assert wire.produce(topic, batch(producer_id, 0, 12)) == (0, 12)


def test_a_hole_in_the_sequence_is_refused_and_each_partition_counts_for_itself(wire: Wire, topic: str) -> None:
    producer_id = new_producer_id(wire)
    assert wire.produce(topic, batch(producer_id, 0, 0)) == (0, 0)
    assert wire.produce(topic, batch(producer_id, 0, 2))[0] == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert wire.produce(topic, batch(producer_id, 0, 0), partition=1) == (0, 0)
    assert wire.produce(topic, batch(producer_id, 0, 1)) == (0, 1)


def test_a_new_epoch_starts_at_zero_and_fences_the_old_one(wire: Wire, topic: str) -> None:
    producer_id = new_producer_id(wire)
    assert wire.produce(topic, batch(producer_id, 0, 0)) == (0, 0)
    assert wire.produce(topic, batch(producer_id, 1, 5))[0] == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert wire.produce(topic, batch(producer_id, 1, 0)) == (0, 1)
    assert wire.produce(topic, batch(producer_id, 0, 1))[0] == ErrorCode.INVALID_PRODUCER_EPOCH


def test_sequences_wrap_after_the_largest_integer(wire: Wire, topic: str) -> None:
    producer_id = new_producer_id(wire)
    # An unknown producer may start anywhere: retention may have taken what it wrote before.
    assert wire.produce(topic, batch(producer_id, 0, 0x7FFFFFFE, 2)) == (0, 0)
    assert wire.produce(topic, batch(producer_id, 0, 0)) == (0, 2)


def test_producer_ids_are_never_given_twice(wire: Wire) -> None:
    ids = [new_producer_id(wire) for _ in range(20)]
    assert len(set(ids)) == 20


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda good: _flipped(good, 70),
        lambda good: _flipped(good, 18),
        lambda good: good[:-1],
        lambda good: good[:40],
        lambda good: b"",
        lambda good: good + good,
        lambda good: os.urandom(200),
    ],
    ids=["content", "crc", "torn", "shorter-than-a-header", "empty", "two-batches", "garbage"],
)
def test_a_broken_batch_is_refused_and_leaves_no_trace(wire: Wire, broker: RunningBroker, topic: str, spoil) -> None:
    good = record_batch([b"value"], timestamp=now_ms())
    wire.send(_produce_frame(topic, spoil(good)))
    answer = wire.receive_frame()  # answered with an error, or the connection closed
    if answer is not None:
        assert _produce_error(answer, topic) != 0
    with Wire(broker.bootstrap) as second:
        assert second.produce(topic, good) == (0, 0)


def _produce_frame(topic: str, records: bytes, acks: int = -1) -> bytes:
    data = ProduceRequest.TopicProduceData
    part = data.PartitionProduceData(index=0, records=records)
    body = ProduceRequest(
        transactional_id=None, acks=acks, timeout_ms=1000, topic_data=[data(name=topic, partition_data=[part])]
    )
    return frame_of(body, 8)


def _produce_error(answer: bytes, topic: str) -> int:
    return ProduceResponse.decode(answer[4:], version=8).responses[0].partition_responses[0].error_code


def test_without_acknowledgement_nothing_is_answered_and_a_failure_closes_the_connection(
    wire: Wire, topic: str
) -> None:
    good = record_batch([b"value"], timestamp=now_ms())
    wire.send(_produce_frame(topic, good, acks=0))
    assert wire.produce(topic, good) == (0, 1)  # the first answer is this one's, and the other was stored before it
    wire.send(_produce_frame(topic, _flipped(good, 70), acks=0))
    assert wire.receive_frame() is None


def test_acks_that_do_not_exist_are_refused(wire: Wire, topic: str) -> None:
    good = record_batch([b"value"], timestamp=now_ms())
    assert wire.produce(topic, good, acks=2)[0] == ErrorCode.INVALID_REQUIRED_ACKS


def test_an_unknown_partition_is_refused(wire: Wire, topic: str) -> None:
    good = record_batch([b"value"], timestamp=now_ms())
    assert wire.produce(topic, good, partition=9)[0] == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


def test_an_api_versions_request_of_a_later_version_is_answered_in_version_zero(wire: Wire) -> None:
    wire.send(struct.pack(">ihhih", 15, 18, 99, 7, 4) + b"wire\0")
    answer = wire.receive_frame()
    assert answer is not None
    assert struct.unpack_from(">ih", answer) == (7, ErrorCode.UNSUPPORTED_VERSION)
    versions = ApiVersionsResponse.decode(answer[4:], version=0)
    assert 18 in {row.api_key for row in versions.api_keys}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">i", -1),
        struct.pack(">i", 0),
        struct.pack(">i", 0x7FFFFFFF) + b"x" * 100,
        struct.pack(">i", 3) + b"abc",
        struct.pack(">ihhih", 10, 999, 0, 1, -1),
        struct.pack(">ihhih", 10, 3, 99, 1, -1),
        struct.pack(">ihhihi", 14, 3, 1, 1, -1, 0x7FFFFFFF),
        struct.pack(">ihhihhhii", 22, 0, 3, 1, -1, -1, -1, 1000, 0x7FFFFFFF),
        struct.pack(">ihhih", 10, 3, 1, 1, 32_000),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
    ],
    ids=[
        "negative-length",
        "no-length",
        "two-gigabytes",
        "no-header",
        "unknown-kind",
        "unknown-version",
        "endless-array",
        "endless-produce",
        "endless-client-id",
        "http",
        "tls",
    ],
)
def test_bytes_that_are_no_request_close_the_connection_only(broker: RunningBroker, data: bytes) -> None:
    with Wire(broker.bootstrap) as stranger:
        stranger.send(data)
        stranger.finish_sending()
        assert stranger.receive_frame() is None
    with Wire(broker.bootstrap) as honest:
        assert honest.ask(ApiVersionsRequest(), ApiVersionsResponse, 0).error_code == 0
