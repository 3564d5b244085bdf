"""A machine of the line whose clock is wrong: its records are taken."""

from __future__ import annotations

import time

import pytest

from flawline import kafka_clients, topics
from flawline.settings.tree import Settings
from tests.support.brokers import RunningBroker, unique

DAY_MS = 24 * 3_600_000


@pytest.mark.parametrize("kind", ["embedded_broker", "apache_kafka"])
def test_record_of_a_clock_that_is_a_day_ahead_is_taken_by_every_topic(
    kind: str, request: pytest.FixtureRequest
) -> None:
    broker: RunningBroker = request.getfixturevalue(kind)
    settings = Settings(kafka={"bootstrap_servers": broker.bootstrap, "topic_prefix": unique("clock") + "-"})
    kafka_clients.ensure_topics(settings)
    producer = kafka_clients.producer(settings)
    ahead_ms = time.time_ns() // 1_000_000 + DAY_MS
    try:
        for name, _ in topics.named(settings.kafka.topic_prefix):
            sent = producer.send(name, value=b"x", key=b"k", partition=0, timestamp_ms=ahead_ms)
            assert sent.get(timeout=60).offset >= 0
    finally:
        kafka_clients.close_producer(producer)
