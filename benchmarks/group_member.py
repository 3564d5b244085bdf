"""A member of a consumer group in a process of its own, for benchmarks that kill it: prints its partition count."""

from __future__ import annotations

import sys

from kafka import KafkaConsumer

from flawline.kafka_clients import PatientCooperativeSticky


def joined(bootstrap: str, group: str, topic: str, session_ms: int) -> KafkaConsumer:
    """Return a subscribed cooperative-sticky member that beats every half second."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=group,
        session_timeout_ms=session_ms,
        heartbeat_interval_ms=500,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        partition_assignment_strategy=[PatientCooperativeSticky()],
    )
    consumer.subscribe([topic])
    return consumer


def main(bootstrap: str, group: str, topic: str, session_ms: str) -> None:
    """Poll until killed."""
    consumer = joined(bootstrap, group, topic, int(session_ms))
    known = 0
    while True:
        consumer.poll(timeout_ms=100)
        count = len(consumer.assignment())
        if count != known:
            known = count
            print(count, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
