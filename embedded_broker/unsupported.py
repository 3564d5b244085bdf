"""The features that only Apache Kafka has, in one place: the documentation and the contract tests read them here."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

UNSUPPORTED: Final = MappingProxyType(
    {
        "transactions": "transactional ids, exactly-once delivery, offsets in a transaction",
        "replication": "more than one broker, replication factor over 1, leader election, reassignment",
        "security": "TLS, SASL, ACLs, quotas, delegation tokens: it listens on the loopback interface",
        "next-generation groups": "group.protocol=consumer (KIP-848), share groups, streams groups",
        "broker-side rewriting": "compression.type other than producer, message.timestamp.type=LogAppendTime",
        "old message formats": "record batches older than format v2 (clients before Kafka 0.11)",
        "incremental fetch": "fetch sessions and topic ids on the wire; clients fall back by themselves",
        "offset expiry": "committed offsets of an empty group are kept until the group or the topic is deleted",
        "dynamic broker config": "broker settings are command-line options and fixed while it runs",
    }
)


def needs_apache_kafka(feature: str) -> str:
    """Return the one-line message for an unsupported feature: a key of `UNSUPPORTED`."""
    return (
        f"the embedded broker does not support {feature} ({UNSUPPORTED[feature]}); "
        "set kafka.bootstrap_servers to an Apache Kafka cluster for that"
    )
