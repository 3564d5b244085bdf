"""What retention does: how long until it deletes a frame that no worker has read, what it has deleted, what is free."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from flawline import telemetry
from flawline.settings.tree import Settings
from flawline.topics import UNBOUNDED
from ledger import snapshot
from ledger.log_bounds import log_bounds
from ledger.object_collection import disk_of_objects


@dataclass(frozen=True)
class Retention:
    """How long and how large the broker keeps a partition; UNBOUNDED stands for no limit."""

    limit_ms: int
    limit_bytes: int


def expires_in_s(now_ms: int, oldest_ms: int, oldest_bytes: int, unread: int, retention: Retention) -> float:
    """Return the seconds until the oldest of `unread` frames is deleted; infinity when nothing limits it.

    `oldest_ms` (UTC) and `oldest_bytes` are time and size of this frame. The others count as large as it, and as coming
    on at the rate they came at since then. The broker deletes whole segments, so by size it may be an eighth of the
    limit later.
    """
    age_s = max(0.001, (now_ms - oldest_ms) / 1000)
    by_time = math.inf if retention.limit_ms == UNBOUNDED else retention.limit_ms / 1000 - age_s
    room_bytes = math.inf if retention.limit_bytes == UNBOUNDED else retention.limit_bytes - unread * oldest_bytes
    by_size = room_bytes / (unread / age_s * max(1, oldest_bytes))
    return max(0.0, min(by_time, by_size))


def unread_expire_in_s(
    consumer: KafkaConsumer,
    admin: KafkaAdminClient,
    places: list[TopicPartition],
    committed: Mapping[TopicPartition, int],
    now_ms: int,
) -> dict[int, float]:
    """Return by partition the seconds until an unread frame of the topic is deleted.

    It is 0 where one is gone already, and infinity where every frame is read. `places` are all partitions of one topic,
    `committed` the workers' offsets. Raises KafkaError, and FlawlineError while one of them has no leader.
    """
    if not places:
        return {}
    first_offsets, ends = log_bounds(consumer, places)
    retention = _retention(admin, places[0].topic)
    result = {place.partition: math.inf for place in places}
    gone = [place for place in places if committed.get(place, 0) < first_offsets[place]]
    oldest = {place: committed.get(place, 0) for place in places if place not in gone}
    unread = {place: offset for place, offset in oldest.items() if offset < ends[place]}
    for place, record in snapshot.records_at(consumer, unread).items():
        size_bytes = len(record.value or b"")
        result[place.partition] = expires_in_s(
            now_ms, record.timestamp, size_bytes, ends[place] - unread[place], retention
        )
    return result | {place.partition: 0.0 for place in gone}


def deleted_records(consumer: KafkaConsumer, names: Iterable[str]) -> dict[str, int]:
    """Return how many records of each of the topics `names` are deleted, of those that exist. Raises KafkaError."""
    places = [TopicPartition(name, number) for name in names for number in consumer.partitions_for_topic(name) or ()]
    deleted: dict[str, int] = {}
    for place, offset in (consumer.beginning_offsets(places) if places else {}).items():
        deleted[place.topic] = deleted.get(place.topic, 0) + offset
    return deleted


def export_disks(settings: Settings) -> None:
    """Set the metrics of the disks of the data and of the objects, as far as this machine has them."""
    for disk, folder in (("data", settings.data_dir), ("objects", disk_of_objects(settings))):
        if folder is not None and folder.is_dir():
            free_bytes = shutil.disk_usage(folder).free
            telemetry.DISK_FREE_BYTES.labels(disk).set(free_bytes)
            telemetry.DISK_SHORT.labels(disk).set(free_bytes < settings.retention.min_free_bytes)


def _retention(admin: KafkaAdminClient, topic: str) -> Retention:
    wanted = ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": None, "retention.bytes": None})
    configs = admin.describe_configs([wanted], config_filter="all")["topic"][topic]
    return Retention(_number(configs["retention.ms"]), _number(configs["retention.bytes"]))


def _number(config: Any) -> int:
    return int(config["value"] if isinstance(config, dict) else config)
