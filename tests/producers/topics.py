"""Reads the records that producers wrote."""

from __future__ import annotations

from kafka import TopicPartition

from flawline import kafka_clients, messages
from flawline.messages import DropReason, Frame, LedgerEntry
from flawline.settings.tree import Settings


def records(settings: Settings, topic: str) -> list:
    """Return all records of a topic, partition by partition in log order."""
    consumer = kafka_clients.consumer(settings)
    try:
        name = settings.topic(topic)
        partitions = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or [])]
        if not partitions:  # the producer has not made the topic yet
            return []
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning()
        by_partition: dict[TopicPartition, list] = {partition: [] for partition in partitions}
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for partition, batch in consumer.poll(timeout_ms=500).items():
                by_partition[partition].extend(batch)
        return [record for partition in partitions for record in by_partition[partition]]
    finally:
        consumer.close()


def frames(settings: Settings) -> list[Frame]:
    """Return every frame in the topic `frames`."""
    return [messages.decode(Frame, record.value) for record in records(settings, "frames")]


def ids(settings: Settings, camera: str) -> list[tuple[int, int]]:
    """Return epoch and sequence of a camera's frames in log order."""
    return [(frame.epoch, frame.sequence) for frame in frames(settings) if frame.camera == camera]


def accounts(settings: Settings) -> dict[tuple[str, int], tuple[int, dict[int, DropReason], bool]]:
    """Return captured, dropped and closed by camera and epoch, from the topic `ledger`."""
    result: dict[tuple[str, int], tuple[int, dict[int, DropReason], bool]] = {}
    for record in records(settings, "ledger"):
        entry = messages.decode(LedgerEntry, record.value)
        captured, dropped, closed = result.get((entry.camera, entry.epoch), (0, {}, False))
        for span in entry.dropped:
            dropped |= dict.fromkeys(range(span.first, span.last + 1), span.reason)
        result[entry.camera, entry.epoch] = max(captured, entry.captured), dropped, closed or entry.closed
    return result
