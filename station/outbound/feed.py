"""What one receiver is told next: records of the topics behind what it has acknowledged, and states of cameras."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError

from discovery.shifts import Calendar
from discovery.store.store import Position
from discovery.topic_reader import TopicReader
from flawline import clock, kafka_clients, messages, topics
from flawline.errors import FlawlineError, one_line
from flawline.messages import ClassEvent, SchemaError, Verdict
from flawline.settings.outbound import EventKind
from flawline.settings.tree import Settings
from ledger import committed_offsets
from station.outbound import events
from station.outbound.delivery import Filter, Reason
from station.outbound.events import Event

log = logging.getLogger(__name__)

FETCH_BYTES = 1 << 20
"""Each receiver has a consumer of its own, so its buffer is small: a megabyte holds thousands of verdicts."""
COMMIT_INTERVAL_S = 1.0
"""How often the broker is told how far a receiver is. A judgement: a kill repeats at most so much, with its ids."""
CAMERA_CHANGES = 1_000
"""Most changes of cameras that wait for a receiver. A judgement, not measured."""


@dataclass(frozen=True)
class Item:
    """An event, None for a record that the receiver is not told of, and the place behind it, None without a record."""

    event: Event | None
    place: TopicPartition | None = None
    next_offset: int = 0


class CameraQueue:
    """Changes of cameras that wait for one receiver, the oldest first. One thread puts, another takes."""

    def __init__(self, on_overflow: Callable[[], None], limit: int = CAMERA_CHANGES) -> None:
        self._waiting: deque[Event] = deque()
        self._on_overflow, self._limit = on_overflow, limit

    def put(self, event: Event) -> None:
        """Add a change; the oldest goes when there are too many."""
        self._waiting.append(event)
        if len(self._waiting) > self._limit:
            try:
                self._waiting.popleft()
            except IndexError:  # the receiver has just taken all of them
                return
            self._on_overflow()

    def take(self) -> Iterator[Event]:
        """Yield and remove what waits."""
        while self._waiting:
            yield self._waiting.popleft()


class Feed:
    """Reads for one receiver. At first it begins with what comes from then on; later behind what was acknowledged.

    `from_all_classes` gives the last state of each class at each start, for a receiver that keeps states. For one
    thread.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        wanted: Filter,
        *,
        from_all_classes: bool,
        on_lost: Callable[[Reason, int], None],
        monotonic: clock.Monotonic = clock.monotonic,
    ) -> None:
        """Raise FlawlineError when the broker cannot be used."""
        self._settings, self._wanted, self._on_lost, self._monotonic = settings, wanted, on_lost, monotonic
        self._calendar = Calendar(settings.shifts, settings.time_zone)
        self._group = topics.NOTIFY_GROUPS + name
        self._from_all_classes = from_all_classes
        self._committed_at = monotonic()
        decoders: dict[str, tuple[EventKind, Callable[[bytes], Event]]] = {
            topics.VERDICTS.name: ("verdict", self._of_verdict),
            topics.CLASSES.name: ("class", self._of_class),
        }
        self._names = [topic for topic, (kind, _) in decoders.items() if kind in wanted.kinds]
        self._decoders = {settings.topic(topic): decoders[topic][1] for topic in self._names}
        committed = self._committed()
        ends = kafka_clients.log_ends(settings, self._names)
        # A receiver that is new begins behind what its topics hold now.
        begins = {place: end for place, end in ends.items() if place not in committed}
        self._begins: dict[Position, int] = {(place.topic, place.partition): end for place, end in begins.items()}
        self._reader = TopicReader(
            settings, self._group, self._decoders, self._positions, monotonic,
            on_expired=lambda topic, records: on_lost(Reason.EXPIRED, records),
            fetch_max_bytes=FETCH_BYTES, max_partition_fetch_bytes=FETCH_BYTES,
        )  # fmt: skip
        for place, end in begins.items():
            self._reader.done(place, end)
        self._reader.commit()

    def items(self) -> list[Item]:
        """Return what comes next, in the order of each partition; empty when nothing comes for a moment."""
        polled = self._reader.poll()
        return [self._item(place, record) for place, records in polled.items() for record in records]

    def done(self, item: Item) -> None:
        """Say that an item is acknowledged, or given up; the broker is told now and then."""
        if item.place is not None:
            self._reader.done(item.place, item.next_offset)
        if self._monotonic() - self._committed_at >= COMMIT_INTERVAL_S:
            self.commit()

    def commit(self) -> None:
        """Tell the broker how far the receiver is."""
        self._committed_at = self._monotonic()
        self._reader.commit()

    def close(self) -> None:
        """Commit, and close the connections."""
        self._reader.commit()
        self._reader.close()

    def _committed(self) -> dict[TopicPartition, int]:
        """Return how far the receiver is, as the broker knows it. Raises FlawlineError and KafkaError."""
        admin = kafka_clients.admin(self._settings)
        try:
            return committed_offsets.of_group(self._settings, admin, self._group)
        finally:
            admin.close()

    def _positions(self) -> dict[Position, int]:
        """Return where to read on; a topic that comes later is read from its beginning. Raises KafkaError."""
        try:
            committed = self._committed()
        except FlawlineError as error:  # the reader tries again what the client could not do
            raise KafkaError(str(error)) from error
        positions = self._begins | {(place.topic, place.partition): offset for place, offset in committed.items()}
        if self._from_all_classes:
            classes = self._settings.topic(topics.CLASSES.name)
            positions = {place: offset for place, offset in positions.items() if place[0] != classes}
        return positions

    def _item(self, place: TopicPartition, record: Any) -> Item:
        event: Event | None = None
        if record.value is not None:
            try:
                event = self._decoders[place.topic](record.value)
            except SchemaError as error:
                log.warning("%s/%d, offset %d is told to nobody: %s", *place, record.offset, error)
                self._on_lost(Reason.UNREADABLE, 1)
        return Item(event if event and self._wanted.wants(event) else None, place, record.offset + 1)

    def _of_verdict(self, value: bytes) -> Event:
        return events.of_verdict(messages.decode(Verdict, value), self._settings.line, self._calendar)

    def _of_class(self, value: bytes) -> Event:
        return events.of_class(messages.decode(ClassEvent, value), self._settings.line)


def open_feed(make: Callable[[], Feed]) -> Feed:
    """Return a feed. Raises FlawlineError, also for what the Kafka client raises."""
    try:
        return make()
    except KafkaError as error:
        raise FlawlineError(f"the topics cannot be read ({one_line(error)})") from error
