"""Reads single frames from the topic `frames`, at the place that a verdict names."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError

from flawline import kafka_clients, messages, topics
from flawline.errors import FlawlineError
from flawline.messages import FRAME_OFFSET, Frame, SchemaError
from flawline.settings.tree import Settings

FETCH_BYTES = 64 << 10
"""A broker gives the first record whole, whatever its size; more would be read in vain."""
POLL_MS = 1_000
EMPTY_POLLS = 10
"""Polls without a record after which the broker counts as away. A judgement: ten seconds."""
OFFSET_DIGITS = 18
"""More digits are no offset that a database can hold."""

Place = tuple[int, int]
"""Partition and offset of a frame's record; -1 for an offset that the verdict does not name."""


def place_of(record: Any) -> Place:
    """Return the place of the frame that a verdict's record speaks of."""
    text = dict(record.headers or ()).get(FRAME_OFFSET) or b""
    return record.partition, int(text) if text.isdigit() and len(text) <= OFFSET_DIGITS else -1


class FrameReader:
    """A client that stays open between frames. For one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: Any = None

    def frame(self, frame_id: str, place: Place) -> Frame | None:
        """Return a frame, None when the topic does not hold it there. Raises KafkaError or FlawlineError."""
        partition, offset = place
        if offset < 0:
            return None
        where = TopicPartition(self._settings.topic(topics.FRAMES.name), partition)
        if self._consumer is None:
            self._consumer = kafka_clients.consumer(
                self._settings,
                max_poll_records=1,
                fetch_max_bytes=FETCH_BYTES,
                max_partition_fetch_bytes=FETCH_BYTES,
            )
        consumer = self._consumer
        if partition not in (consumer.partitions_for_topic(where.topic) or ()):
            return None
        consumer.assign([where])
        if not consumer.beginning_offsets([where])[where] <= offset < consumer.end_offsets([where])[where]:
            return None
        consumer.seek(where, offset)
        for _ in range(EMPTY_POLLS):
            for record in consumer.poll(timeout_ms=POLL_MS).get(where, ()):
                return _frame_in(record, frame_id, offset)
        raise FlawlineError(f"broker {self._settings.bootstrap_servers} gives no record of {where.topic}")

    def close(self) -> None:
        """Close the client; the next frame opens another one."""
        client, self._consumer = self._consumer, None
        if client is not None:
            with suppress(KafkaError):
                client.close(autocommit=False)


def _frame_in(record: Any, frame_id: str, offset: int) -> Frame | None:
    """Return the frame in a record, None when it is another one."""
    if record.offset != offset:
        return None
    try:
        frame = messages.decode(Frame, record.value or b"")
    except SchemaError:
        return None
    return frame if frame.frame_id == frame_id else None
