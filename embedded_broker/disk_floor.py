"""What goes before its time when the disk is nearly full: records that every group has read, and nothing else.

A partition in which no group has committed an offset is never touched, nor is a compacted topic. Of the rest, those
topics go first whose records are kept the shortest, and of them the oldest segments.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedded_broker.log import PartitionLog
from embedded_broker.segment import Segment
from embedded_broker.store import MetadataStore
from embedded_broker.topics import Topic
from flawline import clock
from flawline.retention import Holding, Limits, going

log = logging.getLogger(__name__)

REPORT_INTERVAL_S: Final = 300.0  # a judgement, not measured

Finished = tuple[PartitionLog, Segment]


def finished(topics: Iterable[Topic], read_to: Mapping[tuple[str, int], int]) -> list[Holding[Finished]]:
    """Return the segments whose records all lie before `read_to`, by topic and partition."""
    holdings = []
    for topic in topics:
        if topic.config.compacted or not topic.config.deletes_old:
            continue
        kept_ms = topic.config.retention_ms if topic.config.retention_ms >= 0 else (1 << 63) - 1
        for number, partition in enumerate(topic.partitions):
            end, newest_ms = read_to.get((topic.row.name, number), 0), 0
            for segment in partition.segments:
                if segment.next_offset > end:
                    break
                newest_ms = max(newest_ms, segment.max_timestamp)  # a segment never goes before an older one
                holdings.append(Holding((partition, segment), kept_ms, newest_ms, segment.size_bytes))
    return holdings


def read_by_all(store: MetadataStore) -> dict[tuple[str, int], int]:
    """Return by topic and partition the lowest offset that a group has committed."""
    lowest: dict[tuple[str, int], int] = {}
    for group in store.groups_with_offsets():
        for committed in store.committed(group):
            place = committed.topic, committed.partition
            lowest[place] = min(committed.offset, lowest.get(place, committed.offset))
    return lowest


@dataclass
class DiskFloor:
    """Keeps `min_free_bytes` of the disk of a folder free as long as there are finished records. 0 turns it off."""

    folder: Path
    min_free_bytes: int
    monotonic: clock.Monotonic = clock.monotonic
    deleted_bytes: int = 0
    _unreported_bytes: int = 0
    _report_at_s: float = -float("inf")

    def keep(self, topics: Iterable[Topic], store: MetadataStore) -> None:
        """Delete finished segments until the disk has enough free. May raise OSError and sqlite3.Error."""
        if not self.min_free_bytes:
            return
        free_bytes = shutil.disk_usage(self.folder).free
        if free_bytes >= self.min_free_bytes:
            return
        holdings = finished(topics, read_by_all(store))
        for holding in going(holdings, Limits(), 0, self.min_free_bytes - free_bytes).too_much:
            partition, segment = holding.key
            partition.delete_through(segment)
            self.deleted_bytes += holding.size_bytes
            self._unreported_bytes += holding.size_bytes
        self._report(free_bytes)

    def _report(self, free_bytes: int) -> None:
        now_s = self.monotonic()
        if now_s < self._report_at_s:
            return
        log.warning(
            "%s: %d bytes of the disk are free, less than %d: %d bytes of records that every group has read are "
            "deleted before their time; free space there",
            self.folder,
            free_bytes,
            self.min_free_bytes,
            self._unreported_bytes,
        )
        self._report_at_s, self._unreported_bytes = now_s + REPORT_INTERVAL_S, 0
