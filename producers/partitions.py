"""The partition of each camera: given at first sight, and kept by its name in the compacted topic `partitions`.

A camera that changes its partition leaves its backlog in the old one: two workers score its frames side by side, and
their order is lost. So the map is explicit, and neither a camera that comes or goes nor the order in the configuration
moves another camera.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kafka.errors import KafkaError

from flawline import kafka_clients, messages, topics
from flawline.clock import UtcNs, utc_ns
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.messages import CameraPartition, SchemaError
from flawline.settings.producers import CameraBase
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

CONFIRM_TIMEOUT_S = 15.0  # a judgement, not measured


def assign(cameras: Sequence[CameraBase], known: Mapping[str, int], count: int) -> dict[str, int]:
    """Return the partition of every camera of `cameras` and of `known`, out of `count` partitions.

    A camera keeps its partition of `known`, unless its own setting `partition` names another. A new camera goes to the
    partition with the fewest cameras, the lowest of several; cameras that are not configured here count too, since
    another machine of the line may run them. With an empty map the cameras get 0, 1, 2, ..., their places in the
    list. A setting above `count` is taken modulo `count`.
    """
    result = {camera: partition for camera, partition in known.items() if partition < count}
    for camera in cameras:
        if camera.partition is not None:
            result[camera.name] = camera.partition % count
    for camera in cameras:
        if camera.name not in result:
            load = Counter(result.values())
            result[camera.name] = min(range(count), key=lambda partition: (load[partition], partition))
    return result


def read(settings: Settings) -> dict[str, int]:
    """Return the stored partition of each camera; empty when the topic is not there. Raises FlawlineError."""
    known = {}
    for key, value in kafka_clients.newest_values(settings, topics.PARTITIONS.name).items():
        try:
            stored = messages.decode(CameraPartition, value)
        except SchemaError as error:
            raise FlawlineError(
                f"topic {settings.topic(topics.PARTITIONS.name)}: the partition of camera {key!r} cannot be read "
                f"({error}): upgrade this producer"
            ) from error
        known[stored.camera] = stored.partition
    return known


class Partitions:
    """Holds the partitions of a process's cameras, as the broker keeps them. Thread-safe.

    A camera is run by one producer, so two producers never give the same camera a partition; two that give different
    cameras partitions in the same moment may choose the same one, which is only a less even load.
    """

    def __init__(self, settings: Settings, cameras: Sequence[CameraBase], now_ns: UtcNs = utc_ns) -> None:
        self._settings = settings
        self._cameras = list(cameras)
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._of: dict[str, int] = {}

    def __getitem__(self, camera: str) -> int:
        """Return the partition of a camera. Raises KeyError before `update` has given it one."""
        with self._lock:
            return self._of[camera]

    def update(self, client: Any) -> None:
        """Read the map, give partitions to new cameras, and store them through the producer `client`.

        Raises UsageError when the topic `frames` has too few partitions, FlawlineError when the map cannot be read or
        the broker does not confirm it.
        """
        known = read(self._settings)
        with self._lock:  # a broker that lost its disk knows no partition any more
            before = self._of | known
        chosen = assign(self._cameras, before, self._settings.kafka.camera_partitions)
        changed = {camera: partition for camera, partition in chosen.items() if known.get(camera) != partition}
        name = self._settings.topic(topics.PARTITIONS.name)
        try:
            self._check_frames_topic(client, max((chosen[camera.name] for camera in self._cameras), default=0))
            sent = []
            for camera, partition in changed.items():
                message = CameraPartition(camera, partition, self._now_ns())
                sent.append(
                    client.send(
                        name,
                        key=camera.encode(),
                        value=messages.encode(message),
                        headers=messages.headers(message),
                        partition=0,
                    )
                )
            for future in sent:
                future.get(timeout=CONFIRM_TIMEOUT_S)
        except KafkaError as error:
            raise FlawlineError(
                f"the partitions of cameras cannot be stored in the topic {name} ({one_line(error)}): "
                "grant READ and WRITE on it to the producers' user"
            ) from error
        for camera, partition in changed.items():
            if known.get(camera, 0) >= self._settings.kafka.camera_partitions:
                log.warning(
                    "camera %s moves from partition %d to %d because kafka.camera_partitions is %d: if the topic still "
                    "has partition %d, its frames that wait there may be scored beside newer ones",
                    camera, known[camera], partition, self._settings.kafka.camera_partitions, known[camera],
                )  # fmt: skip
            elif camera in known:
                log.warning(
                    "camera %s moves from partition %d to %d as its setting says: its frames that wait in %d may be "
                    "scored beside newer ones",
                    camera, known[camera], partition, known[camera],
                )  # fmt: skip
            else:
                log.info("camera %s has partition %d from now on", camera, partition)
        with self._lock:
            self._of = chosen

    def _check_frames_topic(self, client: Any, highest: int) -> None:
        frames, kafka = self._settings.topic(topics.FRAMES.name), self._settings.kafka
        available = client.partitions_for(frames)
        if highest not in available:
            raise UsageError(
                f"topic {frames} has {len(available)} partitions and kafka.camera_partitions is "
                f"{kafka.camera_partitions}: set it to {len(available)} or add partitions to the topic"
            )
