"""How far the workers are: the offsets in `frames` before which every frame has its verdict or dead letter."""

from __future__ import annotations

from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import CoordinatorNotAvailableError, GroupIdNotFoundError

from flawline import topics
from flawline.settings.tree import Settings


def of_workers(settings: Settings, admin: KafkaAdminClient) -> dict[TopicPartition, int]:
    """Return the workers' committed offsets in `frames`, of the partitions that have one. Raises KafkaError."""
    group = settings.topic(topics.WORKERS_GROUP)
    try:
        offsets = admin.list_group_offsets(group).get(group, {})
    except (GroupIdNotFoundError, CoordinatorNotAvailableError):  # no worker has run on this broker yet
        return {}
    return {partition: offset.offset for partition, offset in offsets.items() if offset.offset >= 0}
