"""Every contract is tested with both clients, on the embedded broker and, where there is one, on Apache Kafka."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.embedded_broker.contract.clients import CLIENTS, Client
from tests.support.brokers import RunningBroker


@pytest.fixture(scope="session", params=["embedded", "apache"])
def broker(request: pytest.FixtureRequest) -> RunningBroker:
    """Give a running broker; skip Apache Kafka where KAFKA_HOME is not set."""
    return request.getfixturevalue("embedded_broker" if request.param == "embedded" else "apache_kafka")


@pytest.fixture(scope="session")
def clients() -> Iterator[dict[tuple[str, str], Client]]:
    made: dict[tuple[str, str], Client] = {}
    yield made
    for client in made.values():
        client.close()


@pytest.fixture(params=list(CLIENTS))
def client(request: pytest.FixtureRequest, broker: RunningBroker, clients: dict[tuple[str, str], Client]) -> Client:
    """Give a client that is connected to the broker."""
    key = request.param, broker.bootstrap
    if key not in clients:
        clients[key] = CLIENTS[request.param](broker.bootstrap)
    return clients[key]
