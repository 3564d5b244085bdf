"""Topics are created, changed, cleaned and deleted."""

from __future__ import annotations

import os
import time
import uuid

import pytest

from embedded_broker.protocol import ErrorCode
from tests.embedded_broker.contract.clients import Client, Refused, wait_until
from tests.support.brokers import unique

MIB = 1 << 20


def test_a_created_topic_has_its_partitions_and_settings(client: Client) -> None:
    topic = unique("made")
    client.create_topic(topic, partitions=5, configs={"retention.ms": "3600000", "max.message.bytes": "2000000"})
    assert client.topics()[topic] == 5
    configs = client.configs(topic)
    assert configs["retention.ms"] == "3600000"
    assert configs["max.message.bytes"] == "2000000"
    assert configs["cleanup.policy"] == "delete"


def test_many_topics_short_and_long_are_all_listed(client: Client) -> None:
    wanted = {f"{index}{uuid.uuid4().hex[:4]}": 1 for index in range(12)} | {uuid.uuid4().hex + "x" * 217: 2}
    for topic, partitions in wanted.items():
        client.create_topic(topic, partitions)
    assert wanted.items() <= client.topics().items()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda client, taken: client.create_topic(taken), ErrorCode.TOPIC_ALREADY_EXISTS),
        (lambda client, _: client.create_topic("no/slash"), ErrorCode.INVALID_TOPIC_EXCEPTION),
        (
            lambda client, _: client.create_topic(unique("bad"), configs={"retention.ms": "soon"}),
            ErrorCode.INVALID_CONFIG,
        ),
        (
            lambda client, _: client.create_topic(unique("bad"), configs={"retention.eons": "1"}),
            ErrorCode.INVALID_CONFIG,
        ),
        (lambda client, taken: client.add_partitions(taken, 1), ErrorCode.INVALID_PARTITIONS),
        (lambda client, _: client.delete_topic(unique("none")), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        (
            lambda client, taken: client.set_configs(taken, {"segment.bytes": "many"}),
            ErrorCode.INVALID_CONFIG,
        ),
    ],
    ids=["taken", "bad-name", "bad-value", "unknown-config", "fewer-partitions", "delete-unknown", "alter-bad-value"],
)
def test_what_cannot_be_done_is_refused_with_its_reason(client: Client, make, code: ErrorCode) -> None:
    taken = unique("taken")
    client.create_topic(taken)
    with pytest.raises(Refused) as refused:
        make(client, taken)
    assert refused.value.code == code


def test_settings_change_one_by_one_and_apply_at_once(client: Client) -> None:
    topic = unique("changed")
    client.create_topic(topic, configs={"retention.ms": "3600000"})
    client.set_configs(topic, {"max.message.bytes": "10000"})
    wait_until(lambda: client.configs(topic)["max.message.bytes"] == "10000", "the change")
    assert client.configs(topic)["retention.ms"] == "3600000"
    with client.producer(idempotent=False) as producer, pytest.raises(Refused) as refused:
        producer.send(topic, os.urandom(20_000))()
    assert refused.value.code == ErrorCode.MESSAGE_TOO_LARGE


def test_added_partitions_take_records_and_old_ones_keep_theirs(client: Client) -> None:
    topic = unique("grown")
    client.create_topic(topic, partitions=1)
    with client.producer() as producer:
        producer.send(topic, b"old")()
    client.add_partitions(topic, 3)
    wait_until(lambda: client.topics()[topic] == 3, "three partitions")
    with client.producer() as producer:
        producer.send(topic, b"new", partition=2)()
    with client.consumer() as consumer:
        consumer.assign(topic, [0, 2])
        assert {(record.partition, record.value) for record in consumer.read(2)} == {(0, b"old"), (2, b"new")}


def test_a_topic_deleted_and_created_again_is_empty(client: Client) -> None:
    topic = unique("reborn")
    client.create_topic(topic)
    with client.producer() as producer:
        producer.send_all(topic, [b"gone"] * 3)
    client.delete_topic(topic)
    wait_until(lambda: topic not in client.topics(), "deletion")

    def recreate() -> bool:
        try:
            client.create_topic(topic)
        except Refused as refused:  # Apache Kafka deletes in the background
            assert refused.code == ErrorCode.TOPIC_ALREADY_EXISTS
            return False
        return True

    wait_until(recreate, "creation")
    with client.producer() as producer:
        assert producer.send(topic, b"first")() == 0


def test_retention_by_bytes_keeps_the_newest(client: Client) -> None:
    topic = unique("capped")
    client.create_topic(topic, configs={"segment.bytes": str(MIB), "retention.bytes": str(3 * MIB)})
    with client.producer() as producer, client.consumer() as consumer:
        producer.send_all(topic, [os.urandom(200_000) for _ in range(50)])
        consumer.assign(topic, [0])
        wait_until(lambda: consumer.bounds(topic, 0)[0] >= 25, "old segments deleted")
        first, end = consumer.bounds(topic, 0)
        assert end == 50
        assert (end - first) * 200_000 >= 2 * MIB  # no more is deleted than the limit demands
        consumer.assign(topic, [0])
        assert consumer.read(1)[0].offset >= first


def test_retention_by_time_goes_by_the_records_own_time(client: Client) -> None:
    topic = unique("aged")
    client.create_topic(topic, configs={"retention.ms": "600000"})
    now = int(time.time() * 1000)
    with client.producer() as producer, client.consumer() as consumer:
        producer.send(topic, b"old", timestamp=now - 1_200_000)()
        consumer.assign(topic, [0])
        wait_until(lambda: consumer.bounds(topic, 0) == (1, 1), "the old record deleted")
        assert producer.send(topic, b"young", timestamp=now)() == 1
        time.sleep(1.5)  # two rounds of retention, which must not change this one
        assert consumer.bounds(topic, 0) == (1, 2)


def test_compaction_leaves_the_last_record_of_every_key(client: Client) -> None:
    topic = unique("compacted")
    settings = {
        "cleanup.policy": "compact",
        "segment.bytes": str(MIB),
        "segment.ms": "1000",
        "min.cleanable.dirty.ratio": "0.01",
        "delete.retention.ms": "0",
    }
    client.create_topic(topic, configs=settings)
    with client.producer(linger_ms=5) as producer:
        confirmations = [
            producer.send(topic, b"%d" % version + bytes(3000), key=b"key-%d" % (version % 7))
            for version in range(1000)
        ]
        confirmations.append(producer.send(topic, None, key=b"key-3"))
        offsets = [confirm() for confirm in confirmations]
        assert offsets == list(range(1001))
        time.sleep(1.2)
        producer.send(topic, b"fresh", key=b"active")()  # rolls the segment; the active one is never compacted

    def compacted() -> list:
        with client.consumer() as consumer:
            consumer.assign(topic, [0])
            records = consumer.read(1)
            while records[-1].key != b"active":
                records += consumer.poll()
            return records if len(records) < 20 else []

    records = wait_until(compacted, "compaction")
    latest = {record.key: record for record in records}
    for version in range(993, 1000):
        key = b"key-%d" % (version % 7)
        if key != b"key-3":
            assert latest[key].value == b"%d" % version + bytes(3000)
            assert latest[key].offset == version
    assert b"key-3" not in latest or latest[b"key-3"].value is None
    assert [record.offset for record in records] == sorted(record.offset for record in records)


def test_a_compacted_topic_refuses_records_without_a_key(client: Client) -> None:
    topic = unique("keyed")
    client.create_topic(topic, configs={"cleanup.policy": "compact"})
    with client.producer(idempotent=False) as producer, pytest.raises(Refused) as refused:
        producer.send(topic, b"no key")()
    assert refused.value.code == ErrorCode.INVALID_RECORD


def test_an_unknown_topic_is_created_on_first_use(client: Client) -> None:
    topic = unique("spontaneous")
    with client.producer() as producer:
        assert producer.send(topic, b"first")() == 0
    assert client.topics()[topic] == 1
