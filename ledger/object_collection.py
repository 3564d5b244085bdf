"""Remove the objects that no record refers to any more: the topic `frames` has let go of their frames, and no dead
letter holds one.

A pass works in an order that removes nothing that is in use:

1. the time of the store, and from it the age limit;
2. the topics `frames` and `dead-letters` to their ends: every object that a record there names stays;
3. the objects, one by one: an old one that nobody names is looked at once more and removed.

A producer writes an object, then the record that names it; when it puts the same content again, or waits long for the
acknowledgement, it writes the object again. So a record that is published after step 2 names an object that is younger
than the limit, as long as `frames.objects_min_age_s` is longer than a producer's `FRESH_S` and the clocks of producers
and store differ by less than the rest.

When the store is larger than `retention.objects_limit_bytes`, or its disk has less than `retention.min_free_bytes`
free, old objects go too whose frames all have their verdict, the oldest first: nobody has to read them any more. What
a dead letter or an unread frame names stays.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from flawline import kafka_clients, telemetry, topics
from flawline.errors import FlawlineError, one_line
from flawline.messages import DeadLetter, Frame, SchemaError, decode
from flawline.object_store import ObjectStore, StoreAway, StoredObject, is_key, object_store
from flawline.retention import Holding, Limits, going
from flawline.settings.tree import Settings
from ledger import committed_offsets
from ledger.log_bounds import log_bounds

log = logging.getLogger(__name__)

STALLED_AFTER_S = 30.0
"""The broker counts as away when it gives no record for this long; a judgement, not measured."""

REMOVAL_PAUSE_S = 0.002
"""Pause after each removal, so that a pass leaves the store to the line: at most 500 a second. A judgement, not
measured."""

CHOSEN_AT_ONCE = 20_000
"""Objects among which one pass chooses those that go for want of room, so that its memory is bounded. A judgement, not
measured; the next pass goes on."""

_KEY = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Place:
    """A partition of a topic."""

    topic: str
    partition: int


class References:
    """The objects that records name, by the offset of the last record that does so in each partition."""

    def __init__(self) -> None:
        self._last_offsets: dict[Place, dict[bytes, int]] = {}

    def add(self, place: Place, offset: int, keys: Iterable[str]) -> None:
        """Note that the record at `offset` names the objects `keys`."""
        for key in keys:
            self._last_offsets.setdefault(place, {})[bytes.fromhex(key)] = offset

    def forget(self, place: Place, before: int | None = None) -> None:
        """Forget the records of a partition that lie before an offset, or all of them."""
        offsets = self._last_offsets.pop(place, {})
        if before is not None:
            self._last_offsets[place] = {key: offset for key, offset in offsets.items() if offset >= before}

    def __contains__(self, key: str) -> bool:
        packed = bytes.fromhex(key)
        return any(packed in offsets for offsets in self._last_offsets.values())

    def are_finished(self, key: str, finished: Mapping[Place, int]) -> bool:
        """Tell whether all records that name the object lie before the offsets `finished` of their partitions."""
        packed = bytes.fromhex(key)
        return all(
            offsets[packed] < finished.get(place, 0)
            for place, offsets in self._last_offsets.items()
            if packed in offsets
        )

    def __len__(self) -> int:
        return sum(len(offsets) for offsets in self._last_offsets.values())


def may_go(stored: StoredObject, references: Collection[str] | References, written_before_s: float) -> bool:
    """Return whether an object may be removed: it is old and no record names it; so may the rest of a broken write."""
    return stored.written_at_s < written_before_s and not (is_key(stored.key) and stored.key in references)


def keys_in(value: bytes) -> set[str]:
    """Return the keys of the objects that the value of a record of `frames` names.

    What is no frame of this version, such as one of a newer producer, counts as naming every key that its bytes show.
    """
    try:
        key = decode(Frame, value).object_key
    except SchemaError:
        return {match.decode() for match in _KEY.findall(value)}
    return {key} if key and is_key(key) else set()


def keys_in_dead_letter(value: bytes) -> set[str]:
    """Return the keys of the objects that the original record in a dead letter names."""
    try:
        return keys_in(decode(DeadLetter, value).value)
    except SchemaError:
        return keys_in(value)


@dataclass(frozen=True)
class Collected:
    """What one pass found and did, in objects and bytes; `early` are those that went for want of room."""

    objects: int = 0
    stored_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    early: int = 0
    early_bytes: int = 0


def collect(
    store: ObjectStore,
    references: References,
    follow: Callable[[References], None],
    min_age_s: float,
    stop: threading.Event,
) -> Collected:
    """Make one pass; `follow` brings the references up to the ends of the topics. Raises FlawlineError and StoreAway.

    A pass that is stopped has removed less, never more.
    """
    written_before_s = store.now_s() - min_age_s
    follow(references)
    objects = stored_bytes = removed = removed_bytes = 0
    for stored in store.objects():
        if stop.is_set():
            break
        objects += 1
        stored_bytes += stored.size_bytes
        if may_go(stored, references, written_before_s) and store.remove(stored.key, written_before_s=written_before_s):
            removed += 1
            removed_bytes += stored.size_bytes
            stop.wait(REMOVAL_PAUSE_S)
    return Collected(objects - removed, stored_bytes - removed_bytes, removed, removed_bytes)


def make_room(
    store: ObjectStore,
    references: References,
    finished: Mapping[Place, int],
    written_before_s: float,
    lacking_bytes: int,
    stop: threading.Event,
) -> tuple[int, int]:
    """Remove the oldest objects that were written before a time and whose frames are all finished.

    `finished` are the offsets that the workers had committed before the references were read, `lacking_bytes` is how
    much must go. Returns the number of objects that went, and their bytes. Raises StoreAway.
    """
    old = (
        stored
        for stored in store.objects()
        if stored.written_at_s < written_before_s
        and is_key(stored.key)
        and references.are_finished(stored.key, finished)
    )
    oldest = heapq.nsmallest(CHOSEN_AT_ONCE, old, key=lambda stored: stored.written_at_s)
    holdings = [Holding(stored.key, 0, round(1e9 * stored.written_at_s), stored.size_bytes) for stored in oldest]
    removed = removed_bytes = 0
    for holding in going(holdings, Limits(), 0, lacking_bytes).too_much:
        if stop.is_set():
            break
        if store.remove(holding.key, written_before_s=written_before_s):
            removed += 1
            removed_bytes += holding.size_bytes
            stop.wait(REMOVAL_PAUSE_S)
    return removed, removed_bytes


class TopicFollower:
    """Reads which objects the records of `frames` and `dead-letters` name, each record once. Raises FlawlineError."""

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._stop = stop
        self._server = settings.bootstrap_servers
        self._keys_in = {
            settings.topic(topics.FRAMES.name): keys_in,
            settings.topic(topics.DEAD_LETTERS.name): keys_in_dead_letter,
        }
        self._consumer: KafkaConsumer = kafka_clients.consumer(settings)
        self._let_go: dict[TopicPartition, int] = {}
        self._last: dict[TopicPartition, tuple[int, int]] = {}  # offset and timestamp of the last record that was read

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False)

    def update(self, references: References) -> None:
        """Read the new records up to the ends of the topics as of now, and forget those that the topics let go.

        Raises FlawlineError when the broker is away, when a topic does not exist, and when the work is stopped: then
        nothing is known of what the rest names.
        """
        try:
            self._update(references)
        except KafkaError as error:
            raise FlawlineError(f"objects are not collected: broker {self._server}: {one_line(error)}") from error

    def _update(self, references: References) -> None:
        places = self._places()
        starts, ends = log_bounds(self._consumer, places)
        for place in places:
            # One pass late: a worker may still hold a frame that the topic has let go, and make a dead letter of it.
            references.forget(_key_of(place), before=self._let_go.get(place, 0))
            if place in self._last and self._last[place][0] < starts[place]:
                del self._last[place]
            elif place in self._last and self._last[place][0] >= ends[place]:
                self._begin_anew(place, references)
        self._let_go = starts
        unread = {place for place in places if self._next(place, starts) < ends[place]}
        if not unread:
            return
        self._consumer.assign(sorted(unread))
        self._consumer.resume(*unread)  # a partition that the last pass paused stays paused when it is assigned again
        for place in unread:
            self._consumer.seek(place, self._next(place, starts))
        self._read(unread, starts, ends, references)

    def _next(self, place: TopicPartition, starts: dict[TopicPartition, int]) -> int:
        """Return where to read on: at the last record once more, to see that it is still the same one."""
        return self._last[place][0] if place in self._last else starts[place]

    def _read(
        self,
        unread: set[TopicPartition],
        starts: dict[TopicPartition, int],
        ends: dict[TopicPartition, int],
        references: References,
    ) -> None:
        unproven = {place for place in unread if place in self._last}
        deadline = time.monotonic() + STALLED_AFTER_S
        while unread:
            if self._stop.is_set():
                raise FlawlineError("objects are not collected: the collection is stopped")
            batches = self._consumer.poll(timeout_ms=500)
            for place, records in batches.items():
                if place in unproven and (records[0].offset, records[0].timestamp) != self._last[place]:
                    # The topic was deleted and made again.
                    self._begin_anew(place, references)
                    self._consumer.seek(place, starts[place])
                else:
                    self._take(place, records, references)
                unproven.discard(place)
            for place in [place for place in unread if self._consumer.position(place) >= ends[place]]:
                unread.discard(place)
                self._consumer.pause(place)
            if batches:
                deadline = time.monotonic() + STALLED_AFTER_S
            elif time.monotonic() > deadline:
                raise FlawlineError(
                    f"objects are not collected: {min(unread)} gives no record for {STALLED_AFTER_S:.0f} s: check the "
                    "broker"
                )

    def _take(self, place: TopicPartition, records: list, references: References) -> None:
        for record in records:
            references.add(_key_of(place), record.offset, self._keys_in[place.topic](record.value or b""))
        self._last[place] = records[-1].offset, records[-1].timestamp

    def _begin_anew(self, place: TopicPartition, references: References) -> None:
        references.forget(_key_of(place))
        del self._last[place]

    def _places(self) -> list[TopicPartition]:
        known = self._consumer.topics()
        if missing := sorted(set(self._keys_in) - set(known)):
            raise FlawlineError(
                f"objects are not collected: topic {missing[0]} does not exist on {self._server}: run `flawline topics "
                "create`, or correct kafka.bootstrap_servers and kafka.topic_prefix"
            )
        return [
            TopicPartition(name, number)
            for name in sorted(self._keys_in)
            for number in sorted(self._consumer.partitions_for_topic(name) or ())
        ]


def _key_of(place: TopicPartition) -> Place:
    return Place(place.topic, place.partition)


class Collector:
    """Collects the objects of one line, pass by pass, and counts in the metrics."""

    def __init__(self, settings: Settings, store: ObjectStore, stop: threading.Event) -> None:
        self._settings = settings
        self._store = store
        self._stop = stop
        self._references = References()
        self._follower: TopicFollower | None = None

    def collect(self) -> Collected:
        """Make one pass. Raises FlawlineError when broker or store cannot be used; then nothing else is removed."""
        self._follower = self._follower or TopicFollower(self._settings, self._stop)
        min_age_s = self._settings.frames.objects_min_age_s
        try:
            finished = self._finished()
            written_before_s = self._store.now_s() - min_age_s
            collected = collect(self._store, self._references, self._follower.update, min_age_s, self._stop)
            lacking_bytes = self._lacking_bytes(collected.stored_bytes)
            if lacking_bytes > 0:
                early, early_bytes = make_room(
                    self._store, self._references, finished, written_before_s, lacking_bytes, self._stop
                )
                log.warning(
                    "%s lacks %d bytes of room: %d objects (%d bytes) of frames that have their verdict are removed "
                    "before their time", self._store.root, lacking_bytes, early, early_bytes,
                )  # fmt: skip
                collected = replace(
                    collected,
                    objects=collected.objects - early,
                    stored_bytes=collected.stored_bytes - early_bytes,
                    early=early,
                    early_bytes=early_bytes,
                )
        except StoreAway as error:
            raise FlawlineError(str(error)) from error
        telemetry.STORED_OBJECTS.set(collected.objects)
        telemetry.STORED_OBJECT_BYTES.set(collected.stored_bytes)
        telemetry.COLLECTED_OBJECTS.inc(collected.removed)
        telemetry.COLLECTED_OBJECT_BYTES.inc(collected.removed_bytes)
        telemetry.EARLY_OBJECTS.inc(collected.early)
        telemetry.EARLY_OBJECT_BYTES.inc(collected.early_bytes)
        return collected

    def _finished(self) -> dict[Place, int]:
        """Return the offsets that the workers have committed. Raises FlawlineError."""
        try:
            with contextlib.closing(kafka_clients.admin(self._settings)) as admin:
                offsets = committed_offsets.of_workers(self._settings, admin)
        except KafkaError as error:
            raise FlawlineError(f"objects are not collected: {one_line(error, with_type=True)}") from error
        return {_key_of(place): offset for place, offset in offsets.items()}

    def _lacking_bytes(self, stored_bytes: int) -> int:
        """Return how many bytes the store holds too much, by its limit or for its disk."""
        keep = self._settings.retention
        lacking_bytes = stored_bytes - keep.objects_limit_bytes
        folder = disk_of_objects(self._settings)
        if folder is not None:
            lacking_bytes = max(lacking_bytes, keep.min_free_bytes - shutil.disk_usage(folder).free)
        return lacking_bytes

    def close(self) -> None:
        """Close the connection to the broker."""
        if self._follower is not None:
            self._follower.close()


def disk_of_objects(settings: Settings) -> Path | None:
    """Return the folder of an object store of files; None for a bucket, without a store, and while it is away."""
    url = settings.frames.objects_url or ""
    folder = Path(url.removeprefix("file://"))
    return folder if url.startswith("file://") and folder.is_dir() else None


def start(settings: Settings, stop: threading.Event) -> None:
    """Collect in a thread of its own until `stop`, when the line has an object store. Raises UsageError."""
    store = object_store(settings)
    if store is not None and settings.frames.objects_collect_s > 0:
        threading.Thread(target=run, args=(settings, store, stop), name="objects", daemon=True).start()


def run(settings: Settings, store: ObjectStore, stop: threading.Event) -> None:
    """Collect every `frames.objects_collect_s` seconds until `stop`; wait for a broker or a store that is away."""
    collector = Collector(settings, store, stop)
    try:
        while not stop.wait(settings.frames.objects_collect_s):
            try:
                collected = collector.collect()
            except FlawlineError as error:
                if not stop.is_set():
                    log.warning("%s; the next collection tries again", error)
            except Exception as error:  # else nobody would see that the store only grows
                log.debug("collection failed", exc_info=True)
                log.error("objects are not collected: %s", one_line(error, with_type=True))
            else:
                log.info("%d unused objects (%d bytes) are removed from %s, %d remain", collected.removed,
                         collected.removed_bytes, store.root, collected.objects)  # fmt: skip
    finally:
        collector.close()
