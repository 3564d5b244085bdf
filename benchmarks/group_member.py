"""A member of a consumer group in a process of its own, which a benchmark kills; it prints its partition count."""

from __future__ import annotations

import sys

from kafka import KafkaConsumer

from flawline.kafka_clients import PatientCooperativeSticky
from flawline.stopping import follow_parent


def joined(bootstrap: str, group: str, topic: str, session_ms: int) -> KafkaConsumer:
    """Return a subscribed member (cooperative-sticky) that sends a heartbeat every half second."""
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
    """Poll until the process is killed or its parent ends."""
    follow_parent()
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
