"""Acknowledged records survive a clean restart, a kill -9, and a kill -9 under live producers and a group."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedded_broker import EmbeddedBroker
from tests.embedded_broker.contract.clients import CLIENTS, Client, Refused, wait_until
from tests.support.brokers import RunningBroker, unique


@pytest.fixture(scope="module", params=["embedded", "apache"])
def mortal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """Give a broker that the test may kill and start again."""
    if request.param == "apache":
        yield request.getfixturevalue("apache_kafka")
        return
    with EmbeddedBroker(tmp_path_factory.mktemp("mortal")) as broker:
        yield broker


@pytest.fixture(params=list(CLIENTS))
def client(request: pytest.FixtureRequest, mortal: RunningBroker) -> Iterator[Client]:
    made = CLIENTS[request.param](mortal.bootstrap)
    yield made
    made.close()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_records_offsets_and_settings_survive_the_end_of_the_broker(
    mortal: RunningBroker, client: Client, end: str
) -> None:
    topic, group = unique("lasting"), unique("lasting")
    client.create_topic(topic, partitions=2, configs={"retention.ms": "3600000"})
    with client.producer() as producer:
        producer.send_all(topic, [b"%d" % index for index in range(50)], partition=1)
    client.delete_records(topic, 1, 5)
    with client.consumer(group=group) as consumer:
        consumer.subscribe(topic)
        consumer.read(45)
        consumer.commit(topic, {1: 30})
    getattr(mortal, end)()
    mortal.start()
    again = type(client)(mortal.bootstrap)
    assert again.configs(topic)["retention.ms"] == "3600000"
    with again.consumer(group=group) as consumer:
        consumer.subscribe(topic)
        assert [record.value for record in consumer.read(20)] == [b"%d" % index for index in range(30, 50)]
        assert consumer.bounds(topic, 1) == (5, 50)
    with again.producer() as producer:
        assert producer.send(topic, b"next", partition=1)() == 50
    again.close()


def test_kills_under_live_idempotent_producers_and_a_group_lose_and_double_nothing(
    mortal: RunningBroker, client: Client
) -> None:
    topic, group = unique("stormy"), unique("stormy")
    partitions = 2
    kills = 2 if isinstance(mortal, EmbeddedBroker) else 1  # Apache Kafka takes 20 s to come back from each
    client.create_topic(topic, partitions=partitions)
    stop, complete, given_up = threading.Event(), threading.Event(), threading.Event()
    acknowledged: set[bytes] = set()
    consumed: set[bytes | None] = set()
    enough, reading = threading.Semaphore(0), threading.Event()

    def produce(partition: int) -> None:
        with client.producer(delivery_timeout_ms=60_000) as producer:
            number = 0
            while not stop.is_set():
                value = b"%d:%d" % (partition, number)
                producer.send(topic, value, partition=partition)()
                acknowledged.add(value)
                number += 1
                enough.release()

    def consume() -> None:
        with client.consumer(group=group, session_ms=10_000) as consumer:
            consumer.subscribe(topic)
            while not given_up.is_set() and not (complete.is_set() and acknowledged <= consumed):
                try:
                    records = consumer.poll(0.2)
                    consumed.update(record.value for record in records)
                    if records:
                        reading.set()
                        last = {record.partition: record.offset + 1 for record in records}
                        consumer.commit(topic, last)
                except Refused:
                    continue  # the broker is away, or a rebalance is on: committed again with the next records

    with ThreadPoolExecutor(partitions + 1) as pool:
        try:
            producers = [pool.submit(produce, index) for index in range(partitions)]
            reader = pool.submit(consume)
            # A client that comes when the broker is away may not connect at all, which is not what is tried here.
            assert reading.wait(60), reader.exception(0) if reader.done() else "the group has read nothing for 60 s"
            for _ in range(kills):
                for _ in range(200):
                    assert enough.acquire(timeout=60), "no record acknowledged for 60 s"
                mortal.kill()
                mortal.start()
            for _ in range(200):
                assert enough.acquire(timeout=60), "no record acknowledged for 60 s"
            stop.set()
            for producing in producers:
                producing.result(60)
            complete.set()  # only now is it known what there is to read
            reader.result(60)
        finally:
            stop.set()
            given_up.set()
    assert acknowledged <= consumed

    log: list[bytes | None] = []
    with client.consumer() as consumer:
        consumer.assign(topic, range(partitions))
        total = sum(consumer.bounds(topic, index)[1] for index in range(partitions))
        log = [record.value for record in consumer.read(total)]
    assert [value for value, count in Counter(log).items() if count > 1] == []
    assert acknowledged <= set(log)
    for partition in range(partitions):
        numbers = [int(value.split(b":")[1]) for value in log if value and value.startswith(b"%d:" % partition)]
        assert numbers == sorted(numbers)


def test_a_group_does_not_notice_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The embedded broker only: it remembers members and generation, so clients only see a broken connection."""
    with EmbeddedBroker(tmp_path_factory.mktemp("calm")) as broker:
        client = CLIENTS["kafka-python"](broker.bootstrap)
        topic, group = unique("calm"), unique("calm")
        client.create_topic(topic)
        with client.consumer(group=group, session_ms=20_000) as consumer, client.producer() as producer:
            consumer.subscribe(topic)
            wait_until(lambda: consumer.poll() or consumer.assigned(), "assignment")
            broker.kill()
            broker.start()
            producer.send(topic, b"after")()
            assert [record.value for record in consumer.read(1)] == [b"after"]
            consumer.commit(topic, {0: 1})  # refused if the generation had changed
            admin = CLIENTS["kafka-python"](broker.bootstrap)  # the old one may still hold the broken connection
            assert admin.group_state(group) == ("stable", 1)
            admin.close()
        client.close()
