"""Reads back what producers wrote."""

from __future__ import annotations

from kafka import TopicPartition

from flawline import kafka_clients, messages
from flawline.messages import DropReason, Frame, LedgerEntry
from flawline.settings.tree import Settings


def records(settings: Settings, topic: str) -> list:
    """Everything in a topic, partition by partition in log order."""
    consumer = kafka_clients.consumer(settings)
    try:
        name = settings.topic(topic)
        partitions = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or [])]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning()
        found: dict[TopicPartition, list] = {partition: [] for partition in partitions}
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for partition, batch in consumer.poll(timeout_ms=500).items():
                found[partition].extend(batch)
        return [record for partition in partitions for record in found[partition]]
    finally:
        consumer.close()


def frames(settings: Settings) -> list[Frame]:
    """Every frame in the log."""
    return [messages.decode(Frame, record.value) for record in records(settings, "frames")]


def ids(settings: Settings, camera: str) -> list[tuple[int, int]]:
    """Epoch and sequence of a camera's frames in log order."""
    return [(frame.epoch, frame.sequence) for frame in frames(settings) if frame.camera == camera]


def accounts(settings: Settings) -> dict[tuple[str, int], tuple[int, dict[int, DropReason], bool]]:
    """Captured, dropped and closed by camera and epoch, as the topic `ledger` says."""
    result: dict[tuple[str, int], tuple[int, dict[int, DropReason], bool]] = {}
    for record in records(settings, "ledger"):
        entry = messages.decode(LedgerEntry, record.value)
        captured, dropped, closed = result.get((entry.camera, entry.epoch), (0, {}, False))
        for one in entry.dropped:
            dropped |= dict.fromkeys(range(one.first, one.last + 1), one.reason)
        result[entry.camera, entry.epoch] = max(captured, entry.captured), dropped, closed or entry.closed
    return result
