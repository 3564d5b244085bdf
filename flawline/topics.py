"""Every topic of the line: name, key, partitions, retention, size limit, who writes and who reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

WORKERS_GROUP = "workers"
"""Consumer group of the workers; its committed offsets say which frames are finished."""

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True)
class Topic:
    """One topic. `per_camera` topics have the line's camera partitions, the others one."""

    name: str
    key: str
    per_camera: bool
    retention_ms: int
    retention_bytes: int  # per partition; -1 is unbounded
    max_message_bytes: int | None  # None: the line's frame limit
    writers: str
    readers: str
    compacted: bool = False

    def configs(self, frame_limit_bytes: int) -> dict[str, str]:
        """Topic configuration for the broker; the limit of a record batch is above that of a frame by its envelope."""
        limit = self.max_message_bytes or frame_limit_bytes + ENVELOPE_BYTES
        if self.compacted:
            return {"cleanup.policy": "compact", "max.message.bytes": str(limit)}
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": str(self.retention_bytes),
            # Small segments, so that a byte cap is kept to within an eighth and disk is given back early.
            "segment.bytes": str(
                max(1 << 20, min(64 << 20, self.retention_bytes // 8)) if self.retention_bytes > 0 else 64 << 20
            ),
            "max.message.bytes": str(limit),
        }


ENVELOPE_BYTES = 64 << 10
"""Room for a message's other fields, its headers and the record batch around an encoded frame."""

FRAMES = Topic("frames", "camera id", True, 6 * HOUR_MS, 2 << 30, None, "producers", "workers")
VERDICTS = Topic("verdicts", "camera id", True, 7 * DAY_MS, -1, 1 << 20, "workers", "discovery, ledger, console")
# A defect carries crops and masks of its regions, so it may be larger than the frame's own encoding.
DEFECTS = Topic("defects", "camera id", True, 28 * DAY_MS, -1, 16 << 20, "workers", "discovery, console")
CLASSES = Topic("classes", "class id", False, -1, -1, 1 << 20, "discovery", "console, dashboards", compacted=True)
# A dead letter holds the whole original record, so its limit is twice a frame's.
DEAD_LETTERS = Topic("dead-letters", "original key", False, 28 * DAY_MS, -1, 34 << 20, "workers", "replay, ledger")
MODELS = Topic("models", "role", False, -1, -1, 1 << 20, "publish", "workers", compacted=True)
LEDGER = Topic("ledger", "camera id", False, 28 * DAY_MS, -1, 4 << 20, "producers", "ledger, console")

ALL = (FRAMES, VERDICTS, DEFECTS, CLASSES, DEAD_LETTERS, MODELS, LEDGER)


def named(prefix: str = "") -> Iterator[tuple[str, Topic]]:
    """Topic names on the broker with a line's prefix."""
    return ((prefix + topic.name, topic) for topic in ALL)
