"""The topics of the line: what each holds, for how long, who writes it and who reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

WORKERS_GROUP = "workers"
"""Consumer group of the workers; its committed offsets are the frames that are finished."""

DISCOVERY_GROUP = "discovery"
"""Consumer group of discovery, for the broker's tools: its store knows how far it has read."""

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

ENVELOPE_BYTES = 64 << 10
"""Room for a message's other fields, its headers and the record batch around an encoded frame."""

UNBOUNDED = -1
"""Kafka's value for no limit."""

LARGEST_SEGMENT_BYTES = 64 << 20

LONGEST_MS = (1 << 63) - 1
"""A wrong clock is no reason to refuse frames: by default Apache Kafka 4 refuses a record of more than an hour ahead of
its own clock, for good."""


@dataclass(frozen=True)
class Topic:
    """One topic. Topics that are `per_camera` have the line's camera partitions, the others have one.

    `retention_bytes` is the limit of one partition. `max_message_bytes` None stands for the line's largest frame.
    """

    name: str
    key: str
    per_camera: bool
    retention_ms: int
    retention_bytes: int
    max_message_bytes: int | None
    writers: str
    readers: str
    compacted: bool = False

    def configs(self, frame_limit_bytes: int) -> dict[str, str]:
        """Return the settings of the topic on the broker, for frames of at most `frame_limit_bytes`."""
        common = {
            "max.message.bytes": str(self.max_message_bytes or frame_limit_bytes + ENVELOPE_BYTES),
            "message.timestamp.after.max.ms": str(LONGEST_MS),
        }
        if self.compacted:
            return {"cleanup.policy": "compact", **common}
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": str(self.retention_bytes),
            "segment.bytes": str(self._segment_bytes()),
            **common,
        }

    def _segment_bytes(self) -> int:
        """Return an eighth of the byte limit, because only whole segments are deleted; between 1 and 64 MiB."""
        if self.retention_bytes == UNBOUNDED:
            return LARGEST_SEGMENT_BYTES
        return max(1 << 20, min(LARGEST_SEGMENT_BYTES, self.retention_bytes // 8))


FRAMES = Topic(
    "frames",
    key="camera id",
    per_camera=True,
    retention_ms=6 * HOUR_MS,
    retention_bytes=2 << 30,
    max_message_bytes=None,
    writers="producers",
    readers="workers",
)

VERDICTS = Topic(
    "verdicts",
    key="camera id",
    per_camera=True,
    retention_ms=7 * DAY_MS,
    retention_bytes=UNBOUNDED,
    max_message_bytes=1 << 20,
    writers="workers",
    readers="workers, discovery, ledger, console",
)

DEFECTS = Topic(
    "defects",
    key="camera id",
    per_camera=True,
    retention_ms=28 * DAY_MS,
    retention_bytes=UNBOUNDED,
    max_message_bytes=16 << 20,  # crops and masks of the regions may be larger than the frame's own encoding
    writers="workers",
    readers="discovery, console",
)

CLASSES = Topic(
    "classes",
    key="class id",
    per_camera=False,
    retention_ms=UNBOUNDED,
    retention_bytes=UNBOUNDED,
    max_message_bytes=1 << 20,
    writers="discovery",
    readers="console, dashboards",
    compacted=True,
)

DEAD_LETTERS = Topic(
    "dead-letters",
    key="original key",
    per_camera=False,
    retention_ms=28 * DAY_MS,
    retention_bytes=UNBOUNDED,
    max_message_bytes=34 << 20,  # it holds the whole original record: twice the largest frame by default
    writers="workers",
    readers="replay, ledger",
)

MODELS = Topic(
    "models",
    key="role, or role-history",
    per_camera=False,
    retention_ms=UNBOUNDED,
    retention_bytes=UNBOUNDED,
    max_message_bytes=1 << 20,
    writers="publish, promote, rollback",
    readers="workers, models",
    compacted=True,
)

MODEL_REPORTS = Topic(
    "model-reports",
    key="actor",
    per_camera=False,
    retention_ms=UNBOUNDED,
    retention_bytes=UNBOUNDED,
    max_message_bytes=1 << 20,
    writers="workers",
    readers="models",
    compacted=True,
)

SHADOW_VERDICTS = Topic(
    "shadow-verdicts",
    key="camera id",
    per_camera=False,
    retention_ms=7 * DAY_MS,
    retention_bytes=1 << 30,
    max_message_bytes=1 << 20,
    writers="workers",
    readers="models",
)

LEDGER = Topic(
    "ledger",
    key="camera id",
    per_camera=False,
    retention_ms=28 * DAY_MS,
    retention_bytes=UNBOUNDED,
    max_message_bytes=4 << 20,
    writers="producers, workers",
    readers="ledger, console",
)

LEDGER_SNAPSHOTS = Topic(
    "ledger-snapshots",
    key="none",
    per_camera=False,
    retention_ms=28 * DAY_MS,
    retention_bytes=128 << 20,  # only the newest snapshot is read
    max_message_bytes=16 << 20,
    writers="ledger, console",
    readers="ledger, console, replay",
)

PARTITIONS = Topic(
    "partitions",
    key="camera id",
    per_camera=False,
    retention_ms=UNBOUNDED,
    retention_bytes=UNBOUNDED,
    max_message_bytes=1 << 20,
    writers="producers",
    readers="producers, doctor",
    compacted=True,
)

ALL = (
    FRAMES,
    VERDICTS,
    DEFECTS,
    CLASSES,
    DEAD_LETTERS,
    MODELS,
    MODEL_REPORTS,
    SHADOW_VERDICTS,
    LEDGER,
    LEDGER_SNAPSHOTS,
    PARTITIONS,
)


def named(prefix: str = "") -> Iterator[tuple[str, Topic]]:
    """Return every topic with its name on the broker, which begins with the line's prefix."""
    return ((prefix + topic.name, topic) for topic in ALL)
