"""Missing rights on a real Apache Kafka; skipped where KAFKA_HOME is not set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from flawline import kafka_clients
from flawline.errors import FlawlineError
from flawline.messages import DropReason
from flawline.settings.producers import CameraBase
from flawline.settings.tree import Settings
from producers import partitions, service
from producers.partitions import Partitions
from producers.publisher import Publisher
from tests.producers import topics
from tests.producers.doubles import capture, until
from tests.support.brokers import ApacheKafka, kafka_home

pytestmark = pytest.mark.system


class GuardedKafka(ApacheKafka):
    """Runs Apache Kafka with an authoriser that allows what no rule forbids."""

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


def test_write_permission_that_is_denied_for_a_while_costs_the_frames_of_that_time(
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


def test_producer_needs_the_rights_that_the_documentation_names_and_its_captures_wait_for_them(
    guarded_kafka: GuardedKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(
        data_dir=tmp_path / "data",
        kafka={"bootstrap_servers": guarded_kafka.bootstrap},
        metrics={"producers_port": 0},
        cameras=[{"kind": "simulated", "name": "cam", "frames": 3, "height": 64, "width": 64}],
    )
    kafka_clients.ensure_topics(settings)
    client = kafka_clients.producer(settings)
    Partitions(settings, [CameraBase(name="cam")]).update(client)  # an empty topic would not be read
    client.close(5)
    admin = kafka_clients.admin(settings)
    counts: list[int] = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: counts.append(service.run(settings, stop)))
    try:
        admin.create_acls([allowed(topic, ACLOperation.WRITE) for topic in ("frames", "ledger", "partitions")])
        until(lambda: is_refused(settings), what="a rule in force")
        thread.start()
        until(lambda: "grant READ on the topic" in caplog.text)
        assert thread.is_alive()
        admin.create_acls([allowed("partitions", ACLOperation.READ)])
        thread.join(60)
        assert counts == [3]
        admin.create_acls([allowed("frames", ACLOperation.READ)])
        until(lambda: [sequence for _, sequence in topics.ids(settings, "cam")] == [0, 1, 2])
    finally:
        stop.set()
        admin.close()


def is_refused(settings: Settings) -> bool:
    """Return whether the topic `partitions` cannot be read."""
    try:
        partitions.read(settings)
    except FlawlineError:
        return True
    return False


def allowed(topic: str, operation: ACLOperation) -> ACL:
    """Return the rule that lets everybody do one operation on a topic, and by that nobody any other."""
    return ACL(
        principal="User:ANONYMOUS", host="*", operation=operation, permission_type=ACLPermissionType.ALLOW,
        resource_pattern=ResourcePattern(ResourceType.TOPIC, topic),
    )  # fmt: skip
