"""The poll-only thread: it polls, pauses, resumes, commits and follows rebalances, and does nothing else.

KafkaConsumer is not thread-safe, so only this thread touches it; others send it commands.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.errors import FencedInstanceIdError, KafkaError
from kafka.structs import MemberState, OffsetAndMetadata, TopicPartition

from flawline import clock, telemetry
from flawline.errors import FlawlineError
from workers.budget import ByteGate
from workers.lane import Job, Lane, Outcome

log = logging.getLogger(__name__)

POLL_S = 0.05
"""Longest time until a command or an open gate is noticed."""

POLL_RECORDS = 16
"""Frames taken by one poll: what the byte bound can be exceeded by."""

DRAIN_TICK_S = 0.01
LAG_INTERVAL_S = 1.0


class Intake:
    """A member of the consumer group that hands each fetched record on as a job of its partition's lane."""

    def __init__(
        self,
        consumer: KafkaConsumer,
        topic: str,
        gate: ByteGate,
        *,
        deliver: Callable[[Job], None],
        send: Callable[[Job, Outcome], None],
        commit_interval_s: float,
        revoke_timeout_s: float,
        now: clock.Monotonic = clock.monotonic,
        now_ns: clock.UtcNs = clock.utc_ns,
    ) -> None:
        self._consumer = consumer
        self._gate = gate
        self._deliver = deliver
        self._send = send
        self._commit_interval_s = commit_interval_s
        self._revoke_timeout_s = revoke_timeout_s
        self._now = now
        self._now_ns = now_ns
        self._lanes: dict[TopicPartition, Lane] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._lost: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._commit_in_flight = False
        self._commit_due = now()
        self._lag_due = now()
        self.joined = threading.Event()
        self.abort = threading.Event()
        self.last_poll = now()
        consumer.subscribe([topic], listener=_Listener(self))

    # Called from other threads

    def reread(self, lane: Lane) -> None:
        """Command: read a lane's partition again from its first unfinished frame."""
        self._lost.put(lane)

    @property
    def partitions(self) -> list[int]:
        """Partitions that this member owns."""
        return sorted(each.partition for each in list(self._lanes))

    # The thread

    def run(self, stop: threading.Event, stop_timeout_s: float) -> None:
        """Poll until `stop`, then let the frames in work finish, commit, and leave without giving the cameras up.

        Raises FlawlineError when this member is replaced or may not read.
        """
        try:
            while not stop.is_set():
                self._reread_lost()
                self._hand_on(self._poll(self._gate.closed))
                self._commit()
                self._report_lag()
            self._finish(stop_timeout_s)
        except FencedInstanceIdError as error:
            raise FlawlineError(
                "another process took this worker's place in the consumer group: "
                "run one `flawline work` per line and machine"
            ) from error
        except KafkaError as error:
            raise FlawlineError(f"frames cannot be read: {type(error).__name__} {error}".rstrip()) from error
        finally:
            for lane in self._lanes.values():
                lane.close()
            try:
                self._consumer.close(autocommit=False, timeout_ms=5_000)
            except KafkaError as error:
                log.warning("consumer did not close cleanly: %s", error)

    def _poll(self, paused: bool) -> dict[TopicPartition, list[Any]]:
        # Compared on every turn because a rebalance brings new partitions, and those come unpaused.
        assigned, held = self._consumer.assignment(), self._consumer.paused()
        if paused and assigned - held:
            self._consumer.pause(*(assigned - held))
        elif not paused and held:
            self._consumer.resume(*(held & assigned))
        telemetry.PAUSED_PARTITIONS.set(len(assigned) if paused else 0)
        records = self._consumer.poll(timeout_ms=int(POLL_S * 1000), max_records=POLL_RECORDS)
        self.last_poll = self._now()
        if not self.joined.is_set() and self._consumer.group_metadata().state is MemberState.STABLE:
            self.joined.set()
        return records

    def _hand_on(self, fetched: dict[TopicPartition, list[Any]]) -> None:
        at = self._now_ns()
        for partition, records in fetched.items():
            lane = self._lanes.get(partition)
            if lane is None:
                log.warning("records of %s arrived after it was taken away", partition)
                continue
            for record in records:
                self._deliver(lane.admit(record, at))

    def _reread_lost(self) -> None:
        while not self._lost.empty():
            lane = self._lost.get()
            if self._lanes.get(lane.partition) is not lane or lane.closed:
                continue  # one failed send is reported by each of its successors too
            lane.close()
            offset = lane.resume_offset
            self._lanes[lane.partition] = self._new_lane(lane.partition)
            if offset is not None:
                log.warning("partition %d is read again from offset %d", lane.partition.partition, offset)
                self._consumer.seek(lane.partition, offset)

    def _new_lane(self, partition: TopicPartition) -> Lane:
        return Lane(partition, self._gate, self._send)

    def _committable(self, lanes: Iterable[Lane]) -> dict[TopicPartition, OffsetAndMetadata]:
        found = {}
        for lane in lanes:
            offset = lane.committable
            if offset is not None and offset != self._committed.get(lane.partition):
                found[lane.partition] = OffsetAndMetadata(offset, "", -1)
        return found

    def _commit(self) -> None:
        if self._commit_in_flight or self._now() < self._commit_due:
            return
        self._commit_due = self._now() + self._commit_interval_s
        if offsets := self._committable(self._lanes.values()):
            self._commit_in_flight = True
            self._consumer.commit_async(offsets, callback=self._on_committed)

    def _on_committed(self, offsets: dict[TopicPartition, OffsetAndMetadata], response: Any) -> None:
        self._commit_in_flight = False
        if isinstance(response, Exception):
            # Usually a rebalance. The offsets stay committable and go with the next commit.
            log.debug("offsets are committed later: %s", response)
            return
        self._remember(offsets)

    def _remember(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        self._committed.update({partition: each.offset for partition, each in offsets.items()})

    def _finish(self, timeout_s: float) -> None:
        deadline = self._now() + timeout_s
        for lane in self._lanes.values():
            lane.refuse()
        if self.abort.is_set():  # nobody works on what is begun any more
            deadline = self._now()
        while self._now() < deadline and not all(lane.idle for lane in self._lanes.values()):
            self._poll(paused=True)
        while self._now() < deadline and (offsets := self._committable(self._lanes.values())):
            try:
                self._consumer.commit(offsets, timeout_ms=int(1000 * max(0.1, deadline - self._now())))
                self._remember(offsets)
            except KafkaError as error:
                log.debug("offsets are committed later: %s", error)
                self._poll(paused=True)

    def _report_lag(self) -> None:
        if self._now() < self._lag_due:
            return
        self._lag_due = self._now() + LAG_INTERVAL_S
        for partition, lane in list(self._lanes.items()):
            end = self._consumer.highwater(partition)
            offset = lane.resume_offset
            if end is None or offset is None:
                continue
            records = max(0, end - offset)
            since_ms = lane.oldest_timestamp_ms
            age_s = self._now_ns() * 1e-9 - since_ms * 1e-3 if records and since_ms else 0.0
            telemetry.LAG_RECORDS.labels(partition.partition).set(records)
            telemetry.LAG_SECONDS.labels(partition.partition).set(max(0.0, age_s))

    # Rebalances; called on the consumer's own loop while this thread waits in poll

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """Start with partitions that came."""
        for partition in partitions:
            self._committed.pop(partition, None)
            self._lanes[partition] = self._new_lane(partition)
        log.info("cameras of partitions %s are served now", self.partitions)

    async def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """Finish and commit what is in work of partitions that leave; what takes too long is their next owner's."""
        lanes = [self._lanes[each] for each in partitions if each in self._lanes]
        for lane in lanes:
            lane.refuse()
        deadline = self._now() + self._revoke_timeout_s
        while self._now() < deadline and not all(lane.idle for lane in lanes):
            # The loop that calls us also sends heartbeats, so it must not block, and it has its own sleep.
            await self._consumer._net.sleep(DRAIN_TICK_S)
        if offsets := self._committable(lanes):
            try:
                await self._consumer.commit_async(offsets)
            except KafkaError as error:
                log.info("offsets of leaving partitions are not committed, their frames are done again: %s", error)
        self.lost(partitions)

    def lost(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget partitions that somebody else owns by now."""
        for partition in partitions:
            if lane := self._lanes.pop(partition, None):
                lane.close()
            self._committed.pop(partition, None)
            for gauge in (telemetry.LAG_RECORDS, telemetry.LAG_SECONDS):
                gauge.remove(partition.partition)


class _Listener(AsyncConsumerRebalanceListener):
    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._intake.revoked(set(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._intake.assigned(set(assigned))

    async def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._intake.lost(set(lost))
