"""Missing write permission on a real Apache Kafka; skipped where KAFKA_HOME is not set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from flawline import kafka_clients
from flawline.messages import DropReason
from flawline.settings.producers import CameraBase
from flawline.settings.tree import Settings
from producers.publisher import Publisher
from tests.producers import topics
from tests.producers.doubles import capture, until
from tests.support.brokers import ApacheKafka, kafka_home

pytestmark = pytest.mark.system


class GuardedKafka(ApacheKafka):
    """Apache Kafka with an authoriser that allows what no rule forbids."""

    def _write(self, properties: Path) -> None:
        super()._write(properties)
        with properties.open("a") as file:
            file.write("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n")
            file.write("allow.everyone.if.no.acl.found=true\n")


@pytest.fixture
def guarded_kafka(tmp_path: Path) -> Iterator[GuardedKafka]:
    home = kafka_home()
    if home is None:
        pytest.skip("set KAFKA_HOME to a folder of Apache Kafka 4 (and have java) to run this")
    kafka = GuardedKafka(home, tmp_path / "kafka")
    kafka.start()
    yield kafka
    kafka.stop()


def test_permission_that_is_taken_and_given_back_costs_the_frames_between(
    guarded_kafka: GuardedKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(
        data_dir=tmp_path / "data",
        kafka={"bootstrap_servers": guarded_kafka.bootstrap},
        producer={"ledger_interval_s": 0.2},
    )
    kafka_clients.ensure_topics(settings)
    admin = kafka_clients.admin(settings)
    anyone, frames = "User:ANONYMOUS", ResourcePattern(ResourceType.TOPIC, "frames")
    rule = ACL(
        principal=anyone, host="*", operation=ACLOperation.WRITE, permission_type=ACLPermissionType.DENY,
        resource_pattern=frames,
    )  # fmt: skip
    reads = ACL(
        principal=anyone, host="*", operation=ACLOperation.ALL, permission_type=ACLPermissionType.ALLOW,
        resource_pattern=frames,
    )  # fmt: skip
    publisher = Publisher(settings, [CameraBase(name="cam", when_full="spool")])
    publisher.start()
    try:
        publisher.publish("cam", capture())
        until(lambda: publisher.idle)
        admin.create_acls([rule, reads])
        dropped = 0
        while "grant WRITE" not in caplog.text:
            publisher.publish("cam", capture())
            dropped += 1
            until(lambda: publisher.idle)
            assert dropped < 500, "the rule takes no effect"
        admin.delete_acls([rule])

        def delivered_again() -> bool:
            publisher.publish("cam", capture())
            until(lambda: publisher.idle)
            return len(topics.ids(settings, "cam")) > delivered

        delivered = len(topics.ids(settings, "cam"))
        until(delivered_again, what="a delivery after the permission is back")
    finally:
        publisher.close(10)
        admin.close()
    ((captured, lost, closed),) = topics.accounts(settings).values()
    assert closed
    assert set(lost.values()) == {DropReason.NOT_AUTHORISED}
    assert sorted([*(sequence for _, sequence in topics.ids(settings, "cam")), *lost]) == list(range(captured))
