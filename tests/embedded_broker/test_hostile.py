"""No bytes of a client end the broker, make it large, or keep it from serving others."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka.protocol.consumer import FetchRequest
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse

from embedded_broker import EmbeddedBroker
from embedded_broker.protocol import _REQUESTS, APIS
from tests.embedded_broker.contract.clients import CLIENTS
from tests.support.wire import Wire, frame_of, record_batch

CHOSEN = {"acks": -1, "max_wait_ms": 0, "session_timeout_ms": 1000, "rebalance_timeout_ms": 1000}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(tmp_path_factory.mktemp("hostile")) as running:
        client = CLIENTS["kafka-python"](running.bootstrap)
        client.create_topic("topic", partitions=2)
        client.close()
        pid = running.pid
        yield running
        assert running.pid == pid
        assert running.running
        log = (running.data_dir / "broker.log").read_text()
        assert "Traceback" not in log, log


def answers(broker: EmbeddedBroker) -> bool:
    with Wire(broker.bootstrap) as wire:
        return wire.ask(ApiVersionsRequest(), ApiVersionsResponse, 0).error_code == 0


def throw(broker: EmbeddedBroker, data: bytes) -> None:
    """Send the bytes and wait until the broker has answered or closed."""
    with Wire(broker.bootstrap) as wire:
        try:
            wire.send(data)
            wire.finish_sending()
            wire.receive_frame()
        except ConnectionError:
            pass


quick = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.system
@quick
@given(data=st.binary(max_size=400))
def test_random_bytes(broker: EmbeddedBroker, data: bytes) -> None:
    throw(broker, data)
    throw(broker, struct.pack(">i", len(data)) + data)
    assert answers(broker)


@quick
@given(
    key=st.sampled_from(sorted(APIS)),
    version=st.integers(0, 13),
    client=st.binary(max_size=5),
    body=st.binary(max_size=300),
)
def test_random_bodies_under_a_right_header(
    broker: EmbeddedBroker, key: int, version: int, client: bytes, body: bytes
) -> None:
    frame = struct.pack(">hhih", key, version, 1, len(client)) + client + body
    throw(broker, struct.pack(">i", len(frame)) + frame)
    assert answers(broker)


def _filled(schema_class, version: int):
    """Build a request in which every array has an element and every string has text."""
    values = {}
    for field in schema_class._struct._fields:
        if not field.for_version_q(version):
            continue
        if field.is_struct_array():
            values[field.name] = [_filled(getattr(schema_class, field.type_str), version)]
        elif field.is_struct():
            values[field.name] = _filled(getattr(schema_class, field.type_str), version)
        elif field.is_array():
            values[field.name] = [{"string": "topic", "int32": 0}[field.array_of._type_str]]
        elif field.name in CHOSEN:
            values[field.name] = CHOSEN[field.name]
        elif field._type_str == "string":
            values[field.name] = None if field.name in ("group_instance_id", "transactional_id") else "topic"
        elif field._type_str == "records":
            values[field.name] = record_batch([b"value"])
        elif field._type_str == "bytes":
            values[field.name] = b"bytes"
    return schema_class(version=version, **values)


VALID = [
    (key, version)
    for key, api in APIS.items()
    for version in (api.first_version, api.last_version)
    if api.name not in ("DeleteTopics", "JoinGroup")  # the topic stays; a join waits for its generation
]


@pytest.mark.parametrize(("key", "version"), VALID, ids=[f"{APIS[key].name}-v{version}" for key, version in VALID])
def test_cut_and_damaged_requests_of_every_kind(broker: EmbeddedBroker, key: int, version: int) -> None:
    frame = frame_of(_filled(_REQUESTS[key], version), version)
    with Wire(broker.bootstrap) as wire:
        wire.send(frame)
        answer = wire.receive_frame()
    assert answer is not None, "a whole request must be answered"
    body = frame[4:]
    step = max(len(body) // 12, 1)
    for end in range(0, len(body), step):
        throw(broker, struct.pack(">i", end) + body[:end])
    for position in range(8, len(body), step):
        for byte in (0x00, 0x7F, 0xFF):
            throw(broker, frame[:4] + body[:position] + bytes([byte]) + body[position + 1 :])
    assert answers(broker)


def test_an_endless_varint_costs_no_time(broker: EmbeddedBroker) -> None:
    started = time.monotonic()
    frame = struct.pack(">hhih", 3, 9, 1, 0) + b"\0" + b"\xff" * 1_000_000
    throw(broker, struct.pack(">i", len(frame)) + frame)
    assert answers(broker)
    assert time.monotonic() - started < 5


def test_promised_bytes_that_never_come_cost_no_memory(broker: EmbeddedBroker) -> None:
    before = psutil.Process(broker.pid).memory_info().rss
    host, _, port = broker.bootstrap.rpartition(":")
    idle = []
    for _ in range(100):
        client = socket.create_connection((host, int(port)))
        client.sendall(struct.pack(">ihh", 100 << 20, 0, 8))
        idle.append(client)
    assert answers(broker)
    assert psutil.Process(broker.pid).memory_info().rss - before < 40 << 20
    for client in idle:
        client.close()


def test_a_reader_that_does_not_read_costs_no_memory(broker: EmbeddedBroker) -> None:
    client = CLIENTS["kafka-python"](broker.bootstrap)
    client.create_topic("backlog")
    with client.producer() as producer:
        producer.send_all("backlog", [bytes(900_000)] * 60)
    client.close()
    before = psutil.Process(broker.pid).memory_info().rss
    topics = FetchRequest.FetchTopic
    part = topics.FetchPartition(
        partition=0, current_leader_epoch=-1, fetch_offset=0, log_start_offset=-1, partition_max_bytes=50 << 20
    )
    request = FetchRequest(
        replica_id=-1,
        max_wait_ms=0,
        min_bytes=1,
        max_bytes=50 << 20,
        isolation_level=0,
        session_id=0,
        session_epoch=-1,
        topics=[topics(topic="backlog", partitions=[part])],
        forgotten_topics_data=[],
        rack_id="",
    )
    stuck = []
    for _ in range(20):
        wire = Wire(broker.bootstrap)
        wire.send(frame_of(request, 11))
        stuck.append(wire)
    assert answers(broker)
    assert psutil.Process(broker.pid).memory_info().rss - before < 80 << 20  # 20 answers of 50 MB would be 1 GB
    assert len(stuck[0].receive_frame() or b"") > 50_000_000
    for wire in stuck:
        wire.close()
