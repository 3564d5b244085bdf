"""The topics of the line: what each holds, for how long, who writes it and who reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flawline.settings.retention import RetentionSettings
    from flawline.settings.tree import Settings

WORKERS_GROUP = "workers"
"""Consumer group of the workers; its committed offsets are the frames that are finished."""

DISCOVERY_GROUP = "discovery"
"""Consumer group of discovery, for the broker's tools: its store knows how far it has read."""

NOTIFY_GROUPS = "notify."
"""How the consumer group of each receiver of events begins; its name follows."""

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

ENVELOPE_BYTES = 64 << 10
"""Room for a message's other fields, its headers and the record batch around an encoded frame."""

UNBOUNDED = -1
"""Kafka's value for no limit."""

LARGEST_SEGMENT_BYTES = 64 << 20  # a judgement, not measured

LONGEST_MS = (1 << 63) - 1
"""A wrong clock is no reason to refuse frames: by default Apache Kafka 4 refuses a record of more than an hour ahead of
its own clock, for good."""


@dataclass(frozen=True)
class Retention:
    """How long a topic keeps its records, and its largest size over all partitions."""

    age_ms: int
    limit_bytes: int


@dataclass(frozen=True)
class Topic:
    """One topic. Topics that are `per_camera` have the line's camera partitions, the others have one.

    `max_message_bytes` None stands for the line's largest frame. `retention` reads the settings of retention for
    this topic; None stands for a compacted topic, which keeps the newest record of each key for ever.
    """

    name: str
    key: str
    per_camera: bool
    max_message_bytes: int | None
    writers: str
    readers: str
    retention: Callable[[RetentionSettings], Retention] | None = None

    @property
    def compacted(self) -> bool:
        """Whether the topic keeps the newest record of each key for ever."""
        return self.retention is None

    def partitions(self, settings: Settings) -> int:
        """Return how many partitions the topic has."""
        return settings.kafka.camera_partitions if self.per_camera else 1

    def message_limit_bytes(self, frame_limit_bytes: int) -> int:
        """Return the largest record, for frames of at most `frame_limit_bytes`."""
        return self.max_message_bytes or frame_limit_bytes + ENVELOPE_BYTES

    def configs(self, settings: Settings) -> dict[str, str]:
        """Return the settings of the topic on the broker.

        A broker deletes whole segments, and not before the rest is as large as its limit. So the limit is a segment
        less than a partition's share of the bytes, and the topic does not outgrow them between two looks of the broker.
        """
        message_bytes = self.message_limit_bytes(settings.frames.limit_bytes)
        common = {"max.message.bytes": str(message_bytes), "message.timestamp.after.max.ms": str(LONGEST_MS)}
        if self.retention is None:
            return {"cleanup.policy": "compact", **common}
        limits = self.retention(settings.retention)
        share_bytes = limits.limit_bytes // self.partitions(settings)
        # No segment is smaller than the largest record, which Apache Kafka would refuse.
        segment_bytes = max(message_bytes, 1 << 20, min(LARGEST_SEGMENT_BYTES, share_bytes // 8))
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(limits.age_ms),
            "retention.bytes": str(max(segment_bytes, share_bytes - segment_bytes)),
            "segment.bytes": str(segment_bytes),
            **common,
        }


def _retention(days: float, limit_bytes: int) -> Retention:
    return Retention(round(days * DAY_MS), limit_bytes)


FRAMES = Topic(
    "frames",
    key="camera id",
    per_camera=True,
    max_message_bytes=None,
    writers="producers",
    readers="workers, discovery, console, notify",
    retention=lambda keep: _retention(keep.frames_hours / 24, keep.frames_limit_bytes),
)

VERDICTS = Topic(
    "verdicts",
    key="camera id",
    per_camera=True,
    max_message_bytes=1 << 20,
    writers="workers",
    readers="workers, discovery, ledger, console, notify",
    retention=lambda keep: _retention(keep.verdicts_days, keep.verdicts_limit_bytes),
)

DEFECTS = Topic(
    "defects",
    key="camera id",
    per_camera=True,
    max_message_bytes=16 << 20,  # crops and masks of the regions may be larger than the frame's own encoding
    writers="workers",
    readers="discovery, console",
    retention=lambda keep: _retention(keep.defects_days, keep.defects_limit_bytes),
)

CLASSES = Topic(
    "classes",
    key="class id",
    per_camera=False,
    max_message_bytes=1 << 20,
    writers="discovery",
    readers="console, dashboards, notify",
)

JUDGEMENTS = Topic(
    "judgements",
    key="frame id",
    per_camera=False,
    max_message_bytes=1 << 20,
    writers="discovery",
    readers="programs of the plant",
)

DEAD_LETTERS = Topic(
    "dead-letters",
    key="original key",
    per_camera=False,
    max_message_bytes=34 << 20,  # it holds the whole original record: twice the largest frame by default
    writers="workers",
    readers="replay, ledger, notify",
    retention=lambda keep: _retention(keep.dead_letters_days, keep.dead_letters_limit_bytes),
)

MODELS = Topic(
    "models",
    key="role, or role-history",
    per_camera=False,
    max_message_bytes=1 << 20,
    writers="publish, promote, rollback",
    readers="workers, models",
)

MODEL_REPORTS = Topic(
    "model-reports",
    key="actor",
    per_camera=False,
    max_message_bytes=1 << 20,
    writers="workers",
    readers="models",
)

SHADOW_VERDICTS = Topic(
    "shadow-verdicts",
    key="camera id",
    per_camera=False,
    max_message_bytes=1 << 20,
    writers="workers",
    readers="models",
    retention=lambda keep: _retention(7, 1 << 30),
)

LEDGER = Topic(
    "ledger",
    key="camera id",
    per_camera=False,
    max_message_bytes=4 << 20,
    writers="producers, workers",
    readers="ledger, console, notify",
    retention=lambda keep: _retention(keep.verdicts_days + 1, 4 << 30),
)

LEDGER_SNAPSHOTS = Topic(
    "ledger-snapshots",
    key="none",
    per_camera=False,
    max_message_bytes=16 << 20,
    writers="ledger, console",
    readers="ledger, console, replay, notify",
    retention=lambda keep: _retention(keep.verdicts_days, 128 << 20),
)

PARTITIONS = Topic(
    "partitions",
    key="camera id",
    per_camera=False,
    max_message_bytes=1 << 20,
    writers="producers",
    readers="producers, doctor",
)

ALL = (
    FRAMES,
    VERDICTS,
    DEFECTS,
    CLASSES,
    JUDGEMENTS,
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
