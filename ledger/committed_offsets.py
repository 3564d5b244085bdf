"""How far a group is. For the workers these are the offsets before which every frame has its outcome."""

from __future__ import annotations

from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import CoordinatorNotAvailableError, GroupIdNotFoundError

from flawline import topics
from flawline.settings.tree import Settings


def of_workers(settings: Settings, admin: KafkaAdminClient) -> dict[TopicPartition, int]:
    """Return the workers' committed offsets in `frames`, of the partitions that have one. Raises KafkaError."""
    return of_group(settings, admin, topics.WORKERS_GROUP)


def of_group(settings: Settings, admin: KafkaAdminClient, name: str) -> dict[TopicPartition, int]:
    """Return the committed offsets of a group, named without prefix, where it has one. Raises KafkaError."""
    group = settings.topic(name)
    try:
        offsets = admin.list_group_offsets(group).get(group, {})
    except (GroupIdNotFoundError, CoordinatorNotAvailableError):  # it has not been on this broker yet
        return {}
    return {partition: offset.offset for partition, offset in offsets.items() if offset.offset >= 0}
