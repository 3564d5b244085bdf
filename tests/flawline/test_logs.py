"""What the log shows of a Kafka client that has lost its broker."""

from __future__ import annotations

import logging

import pytest

from flawline.logs import KafkaSummary


def test_one_line_of_the_kafka_client_passes_per_interval_and_counts_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 100.0
    summary = KafkaSummary(interval_s=30.0, now=lambda: now_s)
    caplog.handler.addFilter(summary)
    try:
        for number in range(5):
            try:
                raise ConnectionResetError("reset")
            except ConnectionResetError:
                logging.getLogger("kafka.net.transport").exception("lost %d\nsecond line", number)
        logging.getLogger("kafka.cluster").error("of another logger of the client")
        logging.getLogger("producers.backlog").warning("of a role")
        now_s += 30.0
        logging.getLogger("kafka.cluster").error("later")
    finally:
        caplog.handler.removeFilter(summary)
    assert [record.getMessage() for record in caplog.records] == ["lost 0", "of a role", "later (5 more before)"]
    assert caplog.records[0].exc_info is None, "a traceback of the client says nothing that its line does not"
