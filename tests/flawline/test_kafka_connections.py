"""An attempt to connect that fails leaves no socket behind, and one that is not answered is given up."""

from __future__ import annotations

import contextlib
import gc
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.net.transport import KafkaSSLTransport

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, kafka_connections
from flawline.errors import FlawlineError
from flawline.settings.tree import Settings

pytestmark = pytest.mark.system


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Leave out what the garbage collector would close, some time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_attempts_that_fail_in_an_outage_leave_no_socket_open(
    fresh_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0
    connect = kafka_connections._connect

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return connect(*arguments, **options)

    monkeypatch.setattr(kafka_connections, "_connect", counted)
    settings = Settings(kafka={"bootstrap_servers": fresh_broker.bootstrap})
    kafka_clients.ensure_topics(settings, ["frames"])
    client = kafka_clients.consumer(settings)
    try:
        client.assign([TopicPartition("frames", 0)])
        client.poll(timeout_ms=100)
        before = open_files()
        fresh_broker.kill()
        attempts = 0
        deadline = time.monotonic() + 60
        while attempts < 8:
            assert time.monotonic() < deadline, "the client does not try to connect"
            with contextlib.suppress(KafkaError):
                client.poll(timeout_ms=100)
        assert open_files() <= before
    finally:
        client.close(autocommit=False)


@pytest.mark.usefixtures("no_collection")
def test_server_that_does_not_answer_to_tls_is_given_up_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[BaseException] = []

    async def noted(transport: Any) -> None:
        try:
            await kafka_connections._handshake(transport)
        except BaseException as error:
            given_up.append(error)
            raise

    monkeypatch.setattr(KafkaSSLTransport, "handshake", noted)
    monkeypatch.setattr(kafka_connections, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(kafka_clients, "BOOTSTRAP_TIMEOUT_MS", 3_000)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        before = open_files()
        with pytest.raises(FlawlineError) as raised:
            kafka_clients.admin(Settings(kafka={"bootstrap_servers": address, "security_protocol": "SSL"}))
        assert sum(isinstance(error, KafkaTimeoutError) for error in given_up) >= 2
        given_up.clear()
        del raised
        assert open_files() <= before
