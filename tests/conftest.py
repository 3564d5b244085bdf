"""Fixtures that every room's tests may use."""

import pytest

from tests.support.brokers import apache_kafka, embedded_broker, fresh_broker
from tests.support.postgres import postgres_server

__all__ = ["apache_kafka", "embedded_broker", "fresh_broker", "postgres_server"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Repeat a failed test on Apache Kafka once.

    There kafka-python's group leader now and then divides the partitions before it knows them, and gives nobody
    anything (seen once). The same tests on the embedded broker are never repeated.
    """
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is not None and "apache" in parameters.id:
            item.add_marker(pytest.mark.flaky(reruns=1))
