"""Log compaction: of every key in the closed segments only the last record stays, at its old offset.

It has three steps, so that the event loop never waits for the disk:

1. `plan` chooses the segments, on the event loop.
2. `rewrite` reads them and writes new files, in a worker thread; closed segments do not change.
3. `install` puts the new files in their place, on the event loop.

The process may be killed at any time: `PartitionLog` ignores an unfinished file, and a new file in its place contains
the segments that it replaces.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedded_broker.batch import BatchHeader, Record, open_records, parse_header, rebuild
from embedded_broker.log import PartitionLog
from embedded_broker.segment import Segment

log = logging.getLogger(__name__)

_NEW_SUFFIX: Final = ".cleaned"


@dataclass(frozen=True, slots=True)
class Plan:
    """Closed segments to compact, and the age of tombstones (records without a value) that are removed."""

    segments: tuple[Segment, ...]
    segment_bytes: int
    drop_tombstones_before_ms: int


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Old segments, and the file that replaces them, not yet in its place; None when no record remains."""

    old: tuple[Segment, ...]
    new: Segment | None


def plan(partition: PartitionLog, now_ms: int) -> Plan | None:
    """Return the plan of a compacted partition, None while it is below `min.cleanable.dirty.ratio` and the lags."""
    config = partition.config
    active = partition.segments[-1]
    if active.size_bytes and now_ms - active.first_append_ms > min(config.segment_ms, config.max_compaction_lag_ms):
        partition.roll()
    settled_before_ms = now_ms - config.min_compaction_lag_ms
    closed: list[Segment] = []
    for segment in partition.segments[:-1]:
        if config.min_compaction_lag_ms and segment.max_timestamp > settled_before_ms:
            break
        closed.append(segment)
    dirty = [segment for segment in closed if segment.base_offset >= partition.cleaned_to]
    if not dirty:
        return None
    ratio = sum(segment.size_bytes for segment in dirty) / max(sum(segment.size_bytes for segment in closed), 1)
    overdue = now_ms - dirty[0].first_append_ms > config.max_compaction_lag_ms
    if ratio < config.min_cleanable_dirty_ratio and not overdue:
        return None
    return Plan(tuple(closed), config.segment_bytes, now_ms - config.delete_retention_ms)


def rewrite(plan: Plan) -> list[Rewritten]:
    """Write the remaining records of the segments into new files. Raises OSError. It runs in a worker thread."""
    latest = _latest_offsets(plan.segments)
    results = []
    for group in _groups(plan.segments, plan.segment_bytes):
        rewritten, dropped = _write_kept(group, latest, plan)
        if dropped or len(group) > 1:
            results.append(Rewritten(group, rewritten))
        elif rewritten is not None:
            rewritten.path.unlink()
            rewritten.close()
    return results


def install(partition: PartitionLog, plan: Plan, results: list[Rewritten]) -> None:
    """Replace the old segments by the new files, unless the old ones have been deleted meanwhile."""
    for result in results:
        if any(segment not in partition.segments for segment in result.old):
            if result.new is not None:
                result.new.path.unlink()
            continue
        producers = result.old[-1].producers_at_end()
        # An index of the old content must not stay beside the new content.
        for segment in result.old:
            segment.index_path.unlink(missing_ok=True)
        if result.new is not None:
            final = Path(str(result.new.path).removesuffix(_NEW_SUFFIX))
            result.new.path.replace(final)
            result.new.path = final
            result.new.sealed = producers
        for segment in result.old:
            if result.new is None or segment.path != result.new.path:
                segment.delete()
        partition.replace_closed(list(result.old), [result.new] if result.new is not None else [])
    partition.cleaned_to = plan.segments[-1].next_offset
    partition.save_indexes()


def _latest_offsets(segments: tuple[Segment, ...]) -> dict[bytes, int]:
    latest: dict[bytes, int] = {}
    for segment in segments:
        for position, header in segment.headers():
            for record in _records(segment.read_batch(position, header), header) or ():
                if record.key is not None:
                    latest[record.key] = record.offset
    return latest


def _records(content: bytes, header: BatchHeader) -> list[Record] | None:
    """Return the records of a batch; None when its content is no list of records, and the batch stays as it is."""
    try:
        return list(open_records(content))
    except Exception as error:  # a producer may send any content, and kafka-python raises many types
        log.warning("batch at offset %d cannot be opened and is kept: %s", header.base_offset, error)
        return None


def _groups(segments: tuple[Segment, ...], segment_bytes: int) -> list[tuple[Segment, ...]]:
    """Return neighbours in groups that fit into one segment, so that small segments do not accumulate."""
    groups: list[list[Segment]] = []
    size = 0
    for segment in segments:
        if groups and size + segment.size_bytes <= segment_bytes:
            groups[-1].append(segment)
            size += segment.size_bytes
        else:
            groups.append([segment])
            size = segment.size_bytes
    return [tuple(group) for group in groups]


def _write_kept(group: tuple[Segment, ...], latest: dict[bytes, int], plan: Plan) -> tuple[Segment | None, bool]:
    """Return the new file, and whether a record was left out."""
    path = Path(f"{group[0].path}{_NEW_SUFFIX}")
    path.unlink(missing_ok=True)
    new = Segment(path, group[0].base_offset, max(segment.first_append_ms for segment in group))
    dropped = False
    for segment in group:
        for position, header in segment.headers():
            content = segment.read_batch(position, header)
            records = _records(content, header)
            staying = (
                None if records is None else [record for record in records if _stays(record, segment, latest, plan)]
            )
            if records is not None and staying is not None and len(staying) < len(records):
                dropped = True
                if not staying:
                    continue
                content = rebuild(content, staying)
            new.append(memoryview(content), parse_header(content), header.base_offset)
    if not new.size_bytes:
        path.unlink()
        new.close()
        return None, dropped
    new.sync()
    return new, dropped


def _stays(record: Record, segment: Segment, latest: dict[bytes, int], plan: Plan) -> bool:
    if record.key is None:
        return True
    if latest[record.key] != record.offset:
        return False
    if record.value is not None or record.offset == plan.segments[-1].next_offset - 1:
        # The last record always stays, so that a reader can reach the end offset.
        return True
    # The time of the append counts too: a record may have an old time stamp, and readers need time to see the deletion.
    return max(record.timestamp, segment.first_append_ms) >= plan.drop_tombstones_before_ms
