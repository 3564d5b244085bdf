"""Apache Kafka away for longer than a client's patience: what was sent arrives, and what comes after it too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flawline import kafka_clients
from flawline.settings.tree import Settings
from tests.support.brokers import ApacheKafka, kafka_home, unique

AWAY_S = 35.0
"""Longer than request_timeout_ms twice, and than the 30 s after which a client would by default give a record up."""

PARTITIONS = 4
RECORD = bytes(20_000)


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[ApacheKafka]:
    """Yield a node of the test's own, to kill."""
    home = kafka_home()
    if home is None:
        pytest.skip("set KAFKA_HOME to a folder of Apache Kafka 4 (and have java) to run this")
    node = ApacheKafka(home, tmp_path / "kafka").start()
    yield node
    node.kill()


def test_records_in_flight_when_the_broker_is_killed_arrive_after_a_long_outage(kafka: ApacheKafka) -> None:
    settings = Settings(kafka={"bootstrap_servers": kafka.bootstrap, "topic_prefix": unique("outage") + "-"})
    kafka_clients.ensure_topics(settings)
    producer = kafka_clients.producer(settings)
    name = settings.topic("verdicts")
    futures = [producer.send(name, value=RECORD, partition=i % PARTITIONS) for i in range(50)]
    for future in futures:
        future.get(timeout=30)
    killed_at = time.monotonic()
    # Records are under way in the very moment of the kill: what was sent once and expires is what breaks a client.
    while time.monotonic() - killed_at < 1.0:
        futures.append(producer.send(name, value=RECORD, partition=len(futures) % PARTITIONS))
        if len(futures) == 150:
            kafka.kill()
    while time.monotonic() - killed_at < AWAY_S:
        futures.append(producer.send(name, value=RECORD, partition=len(futures) % PARTITIONS))
        time.sleep(0.25)  # a slow line goes on; nothing is waited for here but the outage itself
    kafka.start()
    futures += [producer.send(name, value=RECORD, partition=i % PARTITIONS) for i in range(PARTITIONS)]
    offsets: dict[int, list[int]] = {}
    for future in futures:
        stored = future.get(timeout=60)
        offsets.setdefault(stored.partition, []).append(stored.offset)
    kafka_clients.close_producer(producer)
    for of_partition in offsets.values():
        assert of_partition == list(range(len(of_partition))), "each record once, in the order in which it was sent"


def test_a_producer_that_holds_records_closes_in_bounded_time_while_the_broker_is_away(kafka: ApacheKafka) -> None:
    settings = Settings(kafka={"bootstrap_servers": kafka.bootstrap, "topic_prefix": unique("outage") + "-"})
    kafka_clients.ensure_topics(settings)
    producer = kafka_clients.producer(settings)
    producer.send(settings.topic("verdicts"), value=RECORD, partition=0).get(timeout=30)
    kafka.kill()
    held = producer.send(settings.topic("verdicts"), value=RECORD, partition=0)
    started = time.monotonic()
    kafka_clients.close_producer(producer, timeout_s=0.5)
    assert time.monotonic() - started < 20
    assert held.is_done and held.failed()
