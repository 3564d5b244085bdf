"""Ray for the workers' tests: one start for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.brokers import RunningBroker
from tests.workers.ray_session import running_ray


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Run Ray on this machine with room for four test actors."""
    with running_ray():
        yield


@pytest.fixture(params=["embedded_broker", "apache_kafka"])
def either_broker(request: pytest.FixtureRequest) -> RunningBroker:
    """Return the embedded broker, then Apache Kafka where KAFKA_HOME is set: brokers differ in group membership."""
    return request.getfixturevalue(request.param)
