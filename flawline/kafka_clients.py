"""Kafka clients made from the settings, and the topics they need.

The values are the measured ones: a client's defaults hold 325 MB in a poll of frames, wait 120 s for a broker that is
away and, since kafka-python 3, queue without bound, so the callers bound their own unacknowledged bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError, RetriableError, TopicAlreadyExistsError
from kafka.record import util as record_util

from flawline import topics
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

BOOTSTRAP_TIMEOUT_MS = 10_000

# Below WARNING this logger writes every frame's bytes into the log. A command that wants less has said so before.
if logging.getLogger("kafka").level < logging.WARNING:
    logging.getLogger("kafka").setLevel(logging.WARNING)


def require_fast_checksum() -> None:
    """FlawlineError without the C library for CRC-32C."""
    if getattr(record_util, "crc32c_c", None) is None:
        raise FlawlineError("the C library crc32c is missing, without it a frame costs 23 ms: pip install crc32c")


def client_options(settings: Settings) -> dict[str, Any]:
    """Address and security, for every client. Raises UsageError for a certificate file that is not there."""
    kafka = settings.kafka
    for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        # The client would try again until its time-out, and then say that the broker is away.
        if (file := getattr(kafka, key)) is not None and not file.is_file():
            raise UsageError(f"kafka.{key} {file}: no such file: correct the path or leave it out")
    password = kafka.sasl_password.get_secret_value() if kafka.sasl_password else None
    options = {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "security_protocol": kafka.security_protocol,
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": password,
        "ssl_cafile": str(kafka.ssl_cafile) if kafka.ssl_cafile else None,
        "ssl_certfile": str(kafka.ssl_certfile) if kafka.ssl_certfile else None,
        "ssl_keyfile": str(kafka.ssl_keyfile) if kafka.ssl_keyfile else None,
    }
    return {key: value for key, value in options.items() if value is not None}


def _connect(kind: type, settings: Settings, options: dict[str, Any]) -> Any:
    require_fast_checksum()
    try:
        return kind(**client_options(settings), **options)
    except KafkaError as error:
        raise FlawlineError(
            f"broker {settings.bootstrap_servers} cannot be used ({one_line(error)}): start it with `flawline broker`, "
            "or correct kafka.bootstrap_servers and its security settings"
        ) from error
    except (OSError, AssertionError, ValueError) as error:  # contradicting security options, an address that is none
        raise UsageError(f"kafka settings: {error}") from error


def producer(settings: Settings, **overrides: Any) -> KafkaProducer:
    """An idempotent producer; the caller bounds its unacknowledged bytes."""
    limit = largest_message_bytes(settings)
    options = {
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 0,  # a frame is larger than a batch anyway
        "batch_size": 1 << 20,
        "compression_type": None,  # coded images do not compress
        "max_request_size": limit,
        "request_timeout_ms": 15_000,
        "delivery_timeout_ms": 30_000,
        "max_block_ms": 15_000,
    }
    return _connect(KafkaProducer, settings, options | overrides)


def consumer(settings: Settings, *names: str, group: str | None = None, **overrides: Any) -> KafkaConsumer:
    """A consumer of topics given by their plain names; with a group, cooperative-sticky and without auto-commit."""
    limit = largest_message_bytes(settings)
    options = {
        "group_id": f"{settings.kafka.topic_prefix}{group}" if group else None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "partition_assignment_strategy": [PatientCooperativeSticky()],
        "fetch_max_wait_ms": 100,
        "fetch_max_bytes": max(32 << 20, limit),
        "max_partition_fetch_bytes": max(8 << 20, limit // 2),
        "receive_message_max_bytes": max(100_000_000, 2 * max(32 << 20, limit)),
        "max_poll_records": 50,
        "session_timeout_ms": 10_000,
        "heartbeat_interval_ms": 3_000,
        "max_poll_interval_ms": 60_000,
    }
    if group is None:
        del options["partition_assignment_strategy"]
    client = _connect(KafkaConsumer, settings, options | overrides)
    if names and group:
        client.subscribe([settings.topic(name) for name in names])
    return client


def admin(settings: Settings) -> KafkaAdminClient:
    """An admin client."""
    return _connect(KafkaAdminClient, settings, {})


def largest_message_bytes(settings: Settings) -> int:
    """The largest record of any topic of the line."""
    return max(int(topic.configs(settings.frames.limit_bytes)["max.message.bytes"]) for topic in topics.ALL)


def ensure_topics(settings: Settings, only: Iterable[str] | None = None) -> None:
    """Create what is missing of the line's topics. What is there stays as it is; `flawline doctor` compares it."""
    wanted = {}
    replication = settings.kafka.replication_factor
    for name, topic in topics.named(settings.kafka.topic_prefix):
        configs = topic.configs(settings.frames.limit_bytes)
        if replication > 1:
            configs["min.insync.replicas"] = str(settings.kafka.min_insync_replicas)
        if only is None or topic.name in only:
            wanted[name] = {
                "num_partitions": settings.kafka.camera_partitions if topic.per_camera else 1,
                "replication_factor": replication,
                "configs": configs,
            }
    client = admin(settings)
    try:
        there = set(client.list_topics())
        missing = {name: spec for name, spec in wanted.items() if name not in there}
        for name, spec in missing.items():
            try:
                # Apache Kafka acknowledges a topic before every broker lists it.
                client.create_topics({name: spec}, wait_for_metadata=True)
            except TopicAlreadyExistsError:  # another role was faster
                log.debug("topic %s was created by someone else", name)
    except KafkaError as error:
        raise FlawlineError(
            f"topics cannot be created on {settings.bootstrap_servers} ({error}): grant CREATE on them, "
            "or create them by hand as `flawline doctor` lists them"
        ) from error
    finally:
        client.close()


class TopicNotKnownYetError(RetriableError):
    """The leader has no metadata yet of a topic that it is to divide."""


class PatientCooperativeSticky(CooperativeStickyAssignor):
    """KIP-429's assignor, whose leader waits until it knows every topic that the group reads.

    kafka-python 3.0.12 lets a leader divide partitions before it has the topic's metadata: a response that was asked
    for before subscribe() ends the wait for the one asked for after it. Then nobody gets anything until a later
    rebalance.
    """

    def assign(self, cluster: Any, members: Any) -> Any:
        """Divide the partitions among the members.

        Raises TopicNotKnownYetError while a topic is unknown. The client has just asked for it, and answers a
        retriable error by joining again after `retry_backoff_ms`; the broker then repeats its list of members.
        """
        require_metadata(cluster, members)
        return super().assign(cluster, members)


def require_metadata(cluster: Any, members: Any) -> None:
    """TopicNotKnownYetError unless the cluster's metadata has all topics of the members."""
    topics = {topic for member in members for topic in member.metadata.topics}
    if unknown := sorted(topic for topic in topics if not cluster.partitions_for_topic(topic)):
        raise TopicNotKnownYetError(f"no metadata yet of {', '.join(unknown)}")
