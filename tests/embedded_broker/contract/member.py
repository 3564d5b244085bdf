"""A member of a group in a process of its own, for a test that kills it; it prints its number of partitions."""

from __future__ import annotations

import sys

from tests.embedded_broker.contract.clients import CLIENTS


def main(name: str, bootstrap: str, group: str, topic: str, session_ms: str) -> None:
    """Poll until the process is killed."""
    consumer = CLIENTS[name](bootstrap).consumer(group=group, session_ms=int(session_ms), cooperative=True)
    consumer.subscribe(topic)
    known = 0
    while True:
        consumer.poll(0.1)
        count = len(consumer.assigned())
        if count != known:
            known = count
            print(count, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
