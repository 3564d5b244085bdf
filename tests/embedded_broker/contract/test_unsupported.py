"""The embedded broker refuses what only Apache Kafka can do, with a message that names it."""

from __future__ import annotations

from pathlib import Path

import confluent_kafka
import kafka
import kafka.errors
import pytest

from embedded_broker import UNSUPPORTED, EmbeddedBroker
from embedded_broker.protocol import APIS, ErrorCode
from embedded_broker.unsupported import needs_apache_kafka
from tests.embedded_broker.contract.clients import CLIENTS, Client, Refused
from tests.support.brokers import ApacheKafka, unique


@pytest.fixture(params=list(CLIENTS))
def embedded(request: pytest.FixtureRequest, embedded_broker: EmbeddedBroker) -> Client:
    return CLIENTS[request.param](embedded_broker.bootstrap)


def test_every_message_names_the_remedy() -> None:
    for feature in UNSUPPORTED:
        message = needs_apache_kafka(feature)
        assert "Apache Kafka" in message
        assert "\n" not in message


def test_a_transactional_producer_fails_at_once_and_the_log_names_apache_kafka(
    embedded_broker: EmbeddedBroker,
) -> None:
    name = unique("tx")
    with pytest.raises(kafka.errors.TransactionalIdAuthorizationFailedError):
        kafka.KafkaProducer(bootstrap_servers=embedded_broker.bootstrap, transactional_id=name).init_transactions()
    settings = {"bootstrap.servers": embedded_broker.bootstrap, "transactional.id": name, "log_level": 0}
    with pytest.raises(confluent_kafka.KafkaException, match="Apache Kafka"):
        confluent_kafka.Producer(settings).init_transactions(10)
    log = Path(embedded_broker.data_dir, "broker.log").read_text()
    assert any(name in line and "Apache Kafka" in line for line in log.splitlines())


def test_apache_kafka_takes_the_same_transactional_producer(apache_kafka: ApacheKafka) -> None:
    topic = unique("tx")
    client = CLIENTS["kafka-python"](apache_kafka.bootstrap)
    client.create_topic(topic)
    producer = kafka.KafkaProducer(bootstrap_servers=apache_kafka.bootstrap, transactional_id=unique("tx"))
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, b"value")
    producer.commit_transaction()
    producer.close()
    with client.consumer() as consumer:
        consumer.assign(topic, [0])
        assert consumer.read(1)[0].value == b"value"
    client.close()


@pytest.mark.parametrize(
    ("configs", "code"),
    [
        ({"compression.type": "gzip"}, ErrorCode.INVALID_CONFIG),
        ({"message.timestamp.type": "LogAppendTime"}, ErrorCode.INVALID_CONFIG),
    ],
    ids=["recompression", "append-time"],
)
def test_settings_that_cannot_be_followed_are_refused(embedded: Client, configs, code) -> None:
    with pytest.raises(Refused, match="Apache Kafka") as refused:
        embedded.create_topic(unique("no"), configs=configs)
    assert refused.value.code == code


def test_more_than_one_replica_is_refused(embedded_broker: EmbeddedBroker) -> None:
    admin = kafka.KafkaAdminClient(bootstrap_servers=embedded_broker.bootstrap)
    with pytest.raises(kafka.errors.InvalidReplicationFactorError):
        admin.create_topics({unique("three"): {"num_partitions": 1, "replication_factor": 3}})
    admin.close()


def test_the_next_generation_group_protocol_is_not_offered(embedded_broker: EmbeddedBroker) -> None:
    consumer_group_heartbeat, share_group_heartbeat = 68, 76
    assert not {consumer_group_heartbeat, share_group_heartbeat} & set(APIS)
    admin = kafka.KafkaAdminClient(bootstrap_servers=embedded_broker.bootstrap)
    offered = {int(key) for key in admin.api_versions()}
    admin.close()
    assert offered == set(APIS)


def test_the_cluster_is_one_node_and_reports_its_disk_use(embedded_broker: EmbeddedBroker) -> None:
    topic = unique("sized")
    client = CLIENTS["kafka-python"](embedded_broker.bootstrap)
    client.create_topic(topic)
    with client.producer() as producer:
        producer.send(topic, bytes(10_000))()
    admin = kafka.KafkaAdminClient(bootstrap_servers=embedded_broker.bootstrap)
    cluster = admin.describe_cluster()
    assert [(node["host"], node["port"]) for node in cluster["brokers"]] == [("127.0.0.1", embedded_broker.port)]
    (folder,) = admin.describe_log_dirs()[0]["log_dirs"]
    sizes = {row["name"]: row["partitions"][0]["partition_size"] for row in folder["topics"]}
    assert 10_000 < sizes[topic] < 11_000
    admin.close()
    client.close()
