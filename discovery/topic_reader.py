"""Reads topics from where the store stands, whatever the broker believes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from discovery.store.store import Position
from flawline import clock, kafka_clients
from flawline.errors import FlawlineError
from flawline.outage import Outage
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

POLL_MS = 200  # a judgement, not measured
BATCH_RECORDS = 200  # a judgement, not measured
PARTITION_REFRESH_S = 30.0  # a judgement, not measured


class TopicReader:
    """All partitions of some topics, read by one process. Partitions that are added later are noticed."""

    def __init__(
        self,
        settings: Settings,
        group: str,
        names: Iterable[str],
        positions: Callable[[], Mapping[Position, int]],
        monotonic: clock.Monotonic = clock.monotonic,
        on_expired: Callable[[str, int], None] = lambda topic, records: None,
        **options: Any,
    ) -> None:
        """Read from `positions`, the next offset of each known partition; only the broker's tools use the group.

        `on_expired` is told the topic and the number of records that were deleted before they could be read. `options`
        are the consumer's.
        """
        self._settings, self._names, self._positions, self._monotonic = settings, sorted(names), positions, monotonic
        self._uncommitted: dict[TopicPartition, OffsetAndMetadata] = {}
        self._refreshed_at = -float("inf")
        self._outage = Outage(POLL_MS / 1000, POLL_MS / 1000, clock=monotonic)
        self._on_expired = on_expired
        self._consumer = kafka_clients.consumer(settings, group=group, **options)
        try:
            self._assign()
        except KafkaError as error:
            self._consumer.close()
            raise self._unusable(error) from error

    def close(self) -> None:
        self._consumer.close(autocommit=False)

    def poll(self) -> dict[TopicPartition, list[Any]]:
        """Return the next records by partition, in their order; empty when nothing comes for a moment."""
        try:
            if self._monotonic() - self._refreshed_at > PARTITION_REFRESH_S or not self._consumer.assignment():
                self._assign()
            if self._consumer.assignment():
                return self._consumer.poll(timeout_ms=POLL_MS, max_records=BATCH_RECORDS)
        except KafkaError as error:
            if self._outage.failed().is_reported:
                log.warning("broker %s does not answer (%s): trying again", self._settings.bootstrap_servers, error)
        time.sleep(POLL_MS / 1000)  # no topics yet, or no broker
        return {}

    def done(self, place: TopicPartition, offset: int) -> None:
        """Say that everything below `offset` is in the store."""
        self._uncommitted[place] = OffsetAndMetadata(offset, "", -1)

    def commit(self) -> None:
        """Tell the broker how far the store is."""
        if not self._uncommitted:
            return
        try:
            self._consumer.commit(self._uncommitted)
            self._uncommitted = {}
            self._outage.ended()
        except KafkaError as error:
            if self._outage.failed().is_reported:
                log.warning("the broker did not take offsets (%s): nothing is lost, the store has them", error)

    def ends(self) -> dict[TopicPartition, int]:
        """Return the offset behind the last record of every partition. Raises FlawlineError."""
        try:
            return self._consumer.end_offsets(sorted(self._consumer.assignment()))
        except KafkaError as error:
            raise self._unusable(error) from error

    def behind(self, ends: Mapping[TopicPartition, int]) -> dict[str, int]:
        """Return how many records before `ends` are unread, by topic. Raises FlawlineError."""
        try:
            lags = dict.fromkeys(self._names, 0)
            for place, end in ends.items():
                lags[place.topic] += max(0, end - self._consumer.position(place))
            return lags
        except KafkaError as error:
            raise self._unusable(error) from error

    def _assign(self) -> None:
        self._refreshed_at = self._monotonic()
        consumer, present = self._consumer, self._consumer.assignment()
        partitions = {
            TopicPartition(name, i) for name in self._names for i in consumer.partitions_for_topic(name) or ()
        }
        added = sorted(partitions - present)
        if not added:
            return
        known = self._positions()
        first, end = consumer.beginning_offsets(added), consumer.end_offsets(added)
        added = [place for place in added if place in first and place in end]  # else it went away meanwhile
        consumer.assign(sorted(partitions | present))
        for place in added:
            position = known.get((place.topic, place.partition), first[place])
            if position > end[place]:
                log.warning("%s/%d holds less than was read before, so it is read again", *place)
                position = first[place]
            elif position < first[place]:
                log.warning("%s/%d: %d records expired unread", *place, first[place] - position)
                self._on_expired(place.topic, first[place] - position)
                position = first[place]
            consumer.seek(place, position)

    def _unusable(self, error: KafkaError) -> FlawlineError:
        return FlawlineError(
            f"broker {self._settings.bootstrap_servers} does not answer ({error or type(error).__name__}): "
            "check that it runs and that topics may be read"
        )
