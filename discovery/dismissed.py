"""Frames that people have said show no defect: candidates for the good images of a model (`flawline extend`).

A model learns from whole frames. Those are taken from the topic `frames`, or from the object store behind it, as long
as they are kept there; the command takes what is kept to be judged from the picture store before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError
from sqlalchemy import select

from discovery.frame_files import SUFFIXES, Exported, file_of, stem_of, write_whole
from discovery.store import schema
from discovery.store.store import Store
from flawline import kafka_clients, messages, topics
from flawline.errors import FlawlineError
from flawline.messages import Frame, SchemaError
from flawline.object_store import ObjectStore, object_store
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

POLL_MS = 1_000
FRAMES_PER_POLL = 50
# A producer's clock and the broker's need not agree.
CLOCK_SLACK_MS = 600_000

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class DismissedFrame:
    """A frame all of whose regions belong to classes that were dismissed."""

    frame_id: str
    camera: str
    captured_ns: int
    class_id: str


def frames(store: Store) -> list[DismissedFrame]:
    """Return the frames that were false alarms, in order of capture. One doubtful region excludes its frame."""
    d, r, c = schema.defects, schema.regions, schema.classes
    here = r.c.defect_id == d.c.id
    dismissed = select(c.c.id).where(c.c.state == "dismissed")
    other = here & (r.c.class_id.is_(None) | r.c.class_id.not_in(dismissed))
    query = (
        select(d.c.frame_id, d.c.camera, d.c.captured_ns, d.c.class_id)
        .where(d.c.class_id.in_(dismissed), ~select(r.c.id).where(other).exists())
        .order_by(d.c.captured_ns, d.c.id)
    )
    with store.reading() as connection:
        return [DismissedFrame(*row) for row in connection.execute(query)]


def export(
    settings: Settings, wanted: Sequence[DismissedFrame], folder: Path, progress: Progress | None = None
) -> Exported:
    """Write whole frames into a folder, byte for byte as they were captured; frames that lie there stay as they are.

    Raises FlawlineError when broker, object store or folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = {path.stem for path in folder.iterdir() if path.suffix in SUFFIXES.values()}
    except OSError as error:
        raise FlawlineError(f"--export {folder}: cannot be written: {error.strerror}") from error
    missing = {frame.frame_id: frame for frame in wanted if stem_of(frame.frame_id) not in present}
    copied: set[str] = set()
    if missing:
        objects = object_store(settings)
        try:
            consumer = kafka_clients.consumer(settings, max_poll_records=FRAMES_PER_POLL)
            try:
                copied = _copy(settings, consumer, missing, folder, objects, progress)
            finally:
                consumer.close(autocommit=False)
        except KafkaError as error:
            raise FlawlineError(f"broker {settings.bootstrap_servers} does not give frames: {error}") from error
        except OSError as error:
            raise FlawlineError(f"--export {folder}: {error.strerror or error}") from error
    lying = [frame.frame_id for frame in wanted if frame.frame_id in copied or frame.frame_id not in missing]
    gone = [frame.frame_id for frame in wanted if frame.frame_id in missing and frame.frame_id not in copied]
    return Exported(tuple(lying), tuple(gone))


def _copy(
    settings: Settings,
    consumer: Any,
    missing: dict[str, DismissedFrame],
    folder: Path,
    objects: ObjectStore | None,
    progress: Progress | None,
) -> set[str]:
    name = settings.topic(topics.FRAMES.name)
    places = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or ())]
    if not places:
        return set()
    consumer.assign(places)
    ends = consumer.end_offsets(places)
    since_ms = min(frame.captured_ns for frame in missing.values()) // 1_000_000 - CLOCK_SLACK_MS
    starts = consumer.offsets_for_times(dict.fromkeys(places, max(0, since_ms)))
    for place in places:
        first = starts.get(place)
        consumer.seek(place, first.offset if first is not None else ends[place])
    begun = sum(consumer.position(place) for place in places)
    total = max(1, sum(ends.values()) - begun)
    copied: set[str] = set()
    while len(copied) < len(missing) and any(consumer.position(place) < ends[place] for place in places):
        for records in consumer.poll(timeout_ms=POLL_MS).values():
            for record in records:
                identity = dict(record.headers).get("frame-id", b"").decode("utf-8", "replace")
                if identity in missing and identity not in copied and _written(record.value, folder, objects):
                    copied.add(identity)
        if progress:
            progress(sum(consumer.position(place) for place in places) - begun, total)
    return copied


def _written(value: bytes | None, folder: Path, objects: ObjectStore | None) -> bool:
    """Write the frame in a record; False, with a line in the log, when its bytes cannot be had."""
    try:
        frame = messages.decode(Frame, value or b"")
        data = file_of(frame, objects)
    except (SchemaError, FlawlineError) as error:
        log.warning("frame is left out: %s", error)
        return False
    write_whole(folder / f"{stem_of(frame.frame_id)}{SUFFIXES[frame.codec]}", data)
    return True
