"""The thread that polls: it polls, pauses, resumes, commits and follows rebalances, and does nothing else.

KafkaConsumer is not thread-safe, so only this thread touches it; others send it commands.

When the last owner of a partition died at work, the frames that it may have died of are tried one at a time, and
everything else of this actor waits meanwhile (see `workers.suspects`).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.errors import FencedInstanceIdError, KafkaError, RetriableError
from kafka.structs import ConsumerGroupMetadata, MemberState, OffsetAndMetadata, TopicPartition

from flawline import clock, kafka_clients, telemetry
from flawline.byte_budget import ByteBudget
from flawline.errors import FlawlineError, one_line
from flawline.messages import ExpiredFrames
from flawline.outage import Outage
from workers import expiry
from workers.expiry import ReadFrames, last_frames_of, with_last_frames
from workers.lane import Job, Lane, Outcome
from workers.standing import Standing, standing_of
from workers.suspects import ATTEMPT_LIMIT, MARGIN, TRANSACTION_MARGIN, Note, Suspicion, lives, suspicion, this_process
from workers.transactions import TransactionalSender

log = logging.getLogger(__name__)

POLL_S = 0.05
"""Longest time until a command or an open gate is noticed."""

POLL_RECORDS = 16
"""Most frames of one poll, by which the byte bound can be exceeded."""

AWAY_POLL_S = 0.2
"""Pause after a poll that fails because the broker is away."""

DRAIN_TICK_S = 0.01
TRIAL_POLL_S = 0.005
"""How long a poll lasts while a suspect is in work, when no other frame is fetched."""

REQUEST_TIMEOUT_MS = 5_000
LAG_INTERVAL_S = 1.0
LAST_COMMIT_S = 1.0
"""How long a member that must leave tries to commit: longer than one slow answer of the broker."""


class Intake:
    """A member of the consumer group that delivers each fetched record as a job of its partition's lane.

    With `transactions` (exactly-once delivery) offsets are committed by these only. Their thread asks for them, so a
    lock guards what they are made of.
    """

    def __init__(
        self,
        consumer: KafkaConsumer,
        topic: str,
        gate: ByteBudget,
        *,
        deliver: Callable[[Job], None],
        send: Callable[[Job, Outcome], None],
        report_expired: Callable[[list[ExpiredFrames]], bool],
        recall: Callable[[int, Mapping[str, tuple[int, int]]], dict[tuple[str, int, int], bytes] | None],
        commit_interval_s: float,
        revoke_timeout_s: float,
        transactions: TransactionalSender | None = None,
        now: clock.Monotonic = clock.monotonic,
        now_ns: clock.UtcNs = clock.utc_ns,
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._topic_id: Any = None
        self._gate = gate
        self._deliver = deliver
        self._send = send
        self._report_expired = report_expired
        self._recall = recall
        self._commit_interval_s = commit_interval_s
        self._revoke_timeout_s = revoke_timeout_s
        self._transactions = transactions
        self._now = now
        self._now_ns = now_ns
        self._guard = threading.RLock()
        self._lanes: dict[TopicPartition, Lane] = {}
        self._committed: dict[TopicPartition, OffsetAndMetadata] = {}
        self._read: dict[TopicPartition, ReadFrames] = {}
        self._suspicions: dict[TopicPartition, Suspicion] = {}
        self._suspects: deque[tuple[Lane, Any]] = deque()
        self._waiting: deque[tuple[Lane, Any]] = deque()
        self._trial: Job | None = None
        self._one_at_a_time = False
        self._frames_to_blame = False
        self._lost: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._commit_in_flight = False
        self._commit_due = now()
        self._lag_due = now()
        self.longest_wait_s = 0.0
        self.joined = threading.Event()
        self._abort = threading.Event()
        self.last_poll = now()
        self._paused_since: float | None = None
        self._outage = Outage(AWAY_POLL_S, AWAY_POLL_S, clock=now)
        consumer.subscribe([topic], listener=_Listener(self))

    # Called from other threads

    def reread(self, lane: Lane) -> None:
        """Ask the thread to read a lane's partition again from its first unfinished frame."""
        self._lost.put(lane)

    def abort(self, *, frames_to_blame: bool) -> None:
        """Leave without waiting for the frames in work; `frames_to_blame` keeps them suspects of the next owner."""
        self._frames_to_blame = self._frames_to_blame or frames_to_blame
        self._abort.set()

    def group(self) -> ConsumerGroupMetadata:
        """Return the member's name and generation of this moment."""
        return self._consumer.group_metadata()

    def offsets_with(self, outcomes: Counter[Job]) -> dict[Lane, OffsetAndMetadata]:
        """Return what to commit of each open lane once the broker holds these outcomes; nothing of an unchanged one."""
        with self._guard:
            lanes = {lane.partition: lane for lane in self._lanes.values() if not lane.closed}
            offsets = self._committable(lanes.values(), outcomes=outcomes)
        return {lanes[partition]: offset for partition, offset in offsets.items()}

    def remember(self, offsets: Mapping[Lane, OffsetAndMetadata]) -> None:
        """Take down what is committed of lanes."""
        with self._guard:
            self._remember({lane.partition: offset for lane, offset in offsets.items() if not lane.closed})

    @property
    def partitions(self) -> list[int]:
        """Partitions that this member owns."""
        return sorted(partition.partition for partition in list(self._lanes))

    @property
    def paused_for_s(self) -> float:
        """For how long some partition has been paused without a break."""
        since = self._paused_since
        return 0.0 if since is None else self._now() - since

    # The thread

    def run(self, stop: threading.Event, stop_timeout_s: float) -> None:
        """Poll until `stop`, then let the frames in work finish, commit, and leave; the cameras stay reserved.

        A broker that is away costs time only. Raises FlawlineError when this member is replaced or may not read.
        """
        try:
            while not stop.is_set():
                try:
                    self._turn()
                except RetriableError as error:
                    self._wait_for_broker(error, stop)
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

    def _turn(self) -> None:
        self._follow_topic()
        self._reread_lost()
        if records := self._poll(self._to_pause()):
            self._outage.ended()  # an empty answer says nothing: the client gives it while it connects
        self._hand_on(records)
        self._try_suspects()
        self._commit()
        self._report_lag()

    def _wait_for_broker(self, error: KafkaError, stop: threading.Event) -> None:
        # In an outage `poll` raises what the client's own attempts end with; the next call goes on with them.
        self.last_poll = self._now()
        if self._outage.failed().is_reported:
            log.warning("frames wait for the broker: %s", one_line(error))
        stop.wait(AWAY_POLL_S)

    def _to_pause(self) -> set[TopicPartition]:
        assigned = set(self._consumer.assignment())
        if self._gate.closed or self._suspects or self._trial:
            return assigned
        return assigned - self._suspicions.keys() if self._one_at_a_time else set()

    def _poll(self, to_pause: set[TopicPartition]) -> dict[TopicPartition, list[Any]]:
        # Compared on every turn because a rebalance brings new partitions, and those come unpaused.
        assigned, paused = set(self._consumer.assignment()), set(self._consumer.paused())
        if to_pause - paused:
            self._consumer.pause(*(to_pause - paused))
        if paused & assigned - to_pause:
            self._consumer.resume(*(paused & assigned - to_pause))
        kafka_clients.resume_rebalance(self._consumer)
        telemetry.PAUSED_PARTITIONS.set(len(to_pause))
        self._paused_since = (self._paused_since or self._now()) if to_pause else None
        wait_s = TRIAL_POLL_S if self._suspects or self._trial else POLL_S
        records = self._consumer.poll(timeout_ms=int(wait_s * 1000), max_records=POLL_RECORDS)
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
            if records[0].offset <= lane.last_offset:
                log.error("partition %d goes on at offset %d after %d: the broker lost its log, and frames with it",
                          partition.partition, records[0].offset, lane.last_offset)  # fmt: skip
                lane = self._start_over(lane)
            if lane.closed:  # it is read again from elsewhere
                continue
            is_open = partition in self._committed
            is_open = self._report_missed(partition, records) if is_open else self._open(lane, records)
            if not (is_open and self._knows_verdicts(lane)):
                if partition in self._consumer.assignment():
                    self._consumer.seek(partition, records[0].offset)
                continue
            suspected = self._suspicions.get(partition)
            for record in records:
                with self._guard:
                    self._read[partition].register(record.offset, record.headers)
                if suspected and record.offset < suspected.until:
                    self._suspects.append((lane, record))
                elif self._one_at_a_time:
                    self._waiting.append((lane, record))
                else:
                    self._admit(lane, record, at)

    def _admit(self, lane: Lane, record: Any, at: int) -> None:
        if lane.is_finished(record.offset):
            lane.pass_over(record.offset)
        else:
            self._deliver(lane.admit(record, at))

    def _follow_topic(self) -> None:
        """Read from the start when the topic was deleted and made again: positions are of the old one."""
        known, identity = self._topic_id, self._consumer._cluster.topic_id(self._topic)
        if identity is None or identity == known:  # brokers before 2.8, and the embedded one, name none
            return
        self._topic_id = identity
        if known is not None and self._lanes:
            log.error("topic %s was deleted and made again: it is read from its start", self._topic)
            for lane in list(self._lanes.values()):
                self._start_over(lane)
            self._consumer.seek_to_beginning(*self._lanes)

    def _start_over(self, lane: Lane) -> Lane:
        """Return a new lane for a partition whose log was replaced by one that begins again."""
        lane.close()
        with self._guard:
            self._forget(lane.partition)
            self._suspects = deque(item for item in self._suspects if item[0] is not lane)
            self._lanes[lane.partition] = new = self._new_lane(lane.partition)
        return new

    def _open(self, lane: Lane, records: list[Any]) -> bool:
        """Read the last owner's note and write this one's before the first frame begins; return False if that fails."""
        partition, first_offset = lane.partition, records[0].offset
        try:
            last = self._consumer.committed(partition, metadata=True, timeout_ms=REQUEST_TIMEOUT_MS)
            note = Note.of(last.metadata if last else "")
            if note != Note() and not lives(note.owner):
                log_end = self._consumer.end_offsets([partition], timeout_ms=REQUEST_TIMEOUT_MS)[partition]
                suspected = suspicion(note, log_end, TRANSACTION_MARGIN if self._transactions else MARGIN)
                if suspected and suspected.until > first_offset:
                    self._suspicions[partition] = suspected
                    self._one_at_a_time = True
                    log.warning(
                        "the last worker on partition %d died at work: offsets %d to %d are tried one at a time",
                        partition.partition,
                        first_offset,
                        suspected.until - 1,
                    )
            # A log that begins again, behind the committed offset, has nothing to do with that.
            last_here = last if last and last.offset <= first_offset else None
            offset = last_here.offset if last_here else first_offset
            next_offset = min(last.offset, first_offset) if last else 0
            self._read[partition] = ReadFrames(next_offset, last_frames_of(last.metadata if last else None))
            if not self._report_missed(partition, records):
                return False
            standing = Standing(offset, offset)
            if self._transactions and last_here:
                standing = standing_of(offset, last_here.metadata)
            lane.resume(standing)
            self._write({partition: OffsetAndMetadata(offset, self._beside(lane, standing), -1)})
        except FencedInstanceIdError:
            raise
        except KafkaError as error:
            log.debug("partition %d is opened later: %s", partition.partition, error)
            self._suspicions.pop(partition, None)
            return False
        return True

    def _knows_verdicts(self, lane: Lane) -> bool:
        """Learn before a lane's first frame begins which ones have a verdict; return False if that must be repeated."""
        if lane.decided is None:
            lane.decided = self._recall(lane.partition.partition, self._read[lane.partition].last)
        return lane.decided is not None

    def _report_missed(self, partition: TopicPartition, records: list[Any]) -> bool:
        """Report frames that were deleted before these records; return False when they must be reported later."""
        read, first, stop = self._read[partition], self._read[partition].next_offset, records[0].offset
        if stop > first:
            try:
                log_start = self._consumer.beginning_offsets([partition], timeout_ms=REQUEST_TIMEOUT_MS)[partition]
            except KafkaError as error:
                log.debug("partition %d goes on later: %s", partition.partition, error)
                return False
            # Offsets are also passed over where the log holds a transaction's marker.
            if log_start > first and read.missed != (first, stop):
                log.error("%s", expiry.describe(partition.partition, first, stop))
                telemetry.EXPIRED_FRAMES.labels(partition.partition).inc(stop - first)
                read.jump(first, stop)
        cameras = [name[0] for record in records if (name := expiry.identity_of(record.headers))]
        with self._guard:
            reports = read.reports(partition.partition, cameras, self._now_ns())
        if reports and not self._report_expired(reports):
            return False
        read.reported(reports)
        return True

    def _write(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        if offsets:
            self._commit_now(offsets, REQUEST_TIMEOUT_MS * 1e-3)
            self._remember(offsets)

    def _commit_now(self, offsets: dict[TopicPartition, OffsetAndMetadata], timeout_s: float) -> None:
        """Commit offsets, of partitions of which nothing is in work, before going on. Raises KafkaError."""
        if self._transactions:
            self._transactions.commit({self._lanes[place]: offset for place, offset in offsets.items()}, timeout_s)
        else:
            self._consumer.commit(offsets, timeout_ms=int(timeout_s * 1000))

    def _beside(self, lane: Lane, standing: Standing, leaving: bool = False) -> str:
        """Return what stands beside the committed offset of a lane.

        That is its note, what is owed behind the offset, and each camera's last frame.
        """
        with self._guard:
            last = self._read[lane.partition].finish_before(standing.offset)
            return with_last_frames(standing.beside(self._note(lane, standing.offset, leaving)), last)

    def _note(self, lane: Lane, offset: int, leaving: bool = False) -> str:
        """Return what is in work of a lane, for the partition's next owner, who goes on at `offset`."""
        suspected, aborted = self._suspicions.get(lane.partition), self._abort.is_set()
        if suspected:
            forgiven = leaving and aborted and self._trial is not None and self._trial.lane is lane
            attempt = suspected.attempt - forgiven  # it ended for another reason
            return Note(
                until=suspected.until, trying=suspected.trying, attempt=max(0, attempt), owner=this_process()
            ).text()
        if leaving and (lane.idle or aborted):
            return Note().text()
        return Note(begun=max(lane.begun_offset, offset - 1), owner=this_process()).text()

    def _try_suspects(self) -> None:
        """Go on with the suspects.

        1. The one in work is waited for. Once it has ended it is blamed for nothing more.
        2. The next begins when nothing else is in work, and after the notes of all partitions say so.
        3. When all are through, what waited is delivered, again after the notes.
        """
        # 1.
        if self._trial is not None:
            assert self._trial.ended is not None
            if not self._trial.ended.wait(TRIAL_POLL_S):
                return
            partition, self._trial = self._trial.lane.partition, None
            if partition in self._suspicions:
                self._suspicions[partition] = Suspicion(self._suspicions[partition].until)
        # 2.
        while self._suspects:
            lane, record = self._suspects[0]
            if lane.closed:
                self._suspects.popleft()
                continue
            if lane.is_finished(record.offset):
                lane.pass_over(record.offset)
                self._suspects.popleft()
                continue
            if any(other.in_flight for other in self._lanes.values()) or not self._begin_trial(lane, record):
                return
            self._suspects.popleft()
            return
        # 3.
        if not self._one_at_a_time:
            return
        try:
            for partition, suspected in list(self._suspicions.items()):
                if self._consumer.position(partition, timeout_ms=REQUEST_TIMEOUT_MS) >= suspected.until:
                    self._suspicions.pop(partition, None)
            if self._suspicions:
                return
            self._write(self._committable(self._lanes.values()))
        except FencedInstanceIdError:
            raise
        except KafkaError as error:
            log.debug("what waits for the suspects is delivered later: %s", error)
            return
        self._one_at_a_time = False
        for lane, record in self._waiting:
            if not lane.closed:
                self._admit(lane, record, self._now_ns())
        self._waiting.clear()

    def _begin_trial(self, lane: Lane, record: Any) -> bool:
        suspected = self._suspicions[lane.partition]
        attempt = suspected.attempts_before(record.offset) + 1
        if attempt <= ATTEMPT_LIMIT:  # otherwise it is not worked on, but becomes a dead letter
            self._suspicions[lane.partition] = Suspicion(suspected.until, record.offset, attempt)
            at = Standing(record.offset, record.offset)
            if self._transactions:
                at = lane.standing(record.offset, Counter()) or at
            trial = OffsetAndMetadata(at.offset, self._beside(lane, at), -1)
            try:
                self._write(self._committable(self._lanes.values(), leaving=True) | {lane.partition: trial})
            except FencedInstanceIdError:
                raise
            except KafkaError as error:
                log.debug("offset %d is tried later: %s", record.offset, error)
                self._suspicions[lane.partition] = suspected
                return False
        self._trial = lane.admit(record, self._now_ns(), attempt, threading.Event())
        self._deliver(self._trial)
        return True

    def _reread_lost(self) -> None:
        for _ in range(self._lost.qsize()):
            lane = self._lost.get()
            if self._lanes.get(lane.partition) is not lane:
                continue  # one failed send is reported by each of its successors too
            lane.close()
            if self._transactions:
                self._read_from_commit(lane)
                continue
            offset = lane.resume_offset
            self._lanes[lane.partition] = self._new_lane(lane.partition)
            if offset is not None:
                log.warning("partition %d is read again from offset %d", lane.partition.partition, offset)
                self._consumer.seek(lane.partition, offset)

    def _read_from_commit(self, lane: Lane) -> None:
        """Let a new lane go on at what the broker has committed, or try again later while that cannot be known.

        Until then the closed lane drops what is fetched. The broker names no offset that a transaction may yet change.
        """
        place = lane.partition
        try:
            last = self._consumer.committed(place, metadata=True, timeout_ms=REQUEST_TIMEOUT_MS)
            if last is None:
                self._consumer.seek_to_beginning(place)
            else:
                self._consumer.seek(place, last.offset)
        except FencedInstanceIdError:
            raise
        except (KafkaError, AssertionError) as error:  # the latter when the partition has just been taken away
            log.debug("partition %d is read again later: %s", place.partition, one_line(error, with_type=True))
            self._lost.put(lane)
            return
        log.warning("partition %d is read again from its committed offset", place.partition)
        with self._guard:
            self._committed.pop(place, None)
            self._read.pop(place, None)
            if self._lanes.get(place) is lane:
                self._lanes[place] = self._new_lane(place)

    def _new_lane(self, partition: TopicPartition) -> Lane:
        return Lane(partition, self._gate, self._send)

    def _committable(
        self, lanes: Iterable[Lane], leaving: bool = False, outcomes: Counter[Job] | None = None
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return what to commit of these lanes, with `outcomes` once the broker holds these too."""
        offsets = {}
        with self._guard:
            for lane in lanes:
                last = self._committed.get(lane.partition)
                if last is None:  # nothing of it has begun
                    continue
                standing = self._standing(lane, last.offset, outcomes)
                if standing is None:
                    continue
                new = OffsetAndMetadata(standing.offset, self._beside(lane, standing, leaving), -1)
                if new != last:
                    offsets[lane.partition] = new
        return offsets

    def _standing(self, lane: Lane, last_offset: int, outcomes: Counter[Job] | None = None) -> Standing | None:
        """Return how far a lane is whose last commit is at `last_offset`; None when it has nothing to commit."""
        if self._transactions:
            return lane.standing(last_offset, outcomes or Counter())
        finished = lane.committable
        offset = last_offset if finished is None else finished
        return Standing(offset, offset)

    def _commit(self) -> None:
        if self._transactions or self._commit_in_flight or self._now() < self._commit_due:
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

    def _remember(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        with self._guard:
            self._committed.update(
                {partition: offset for partition, offset in offsets.items() if partition in self._lanes}
            )

    def _finish(self, timeout_s: float) -> None:
        """Leave in order.

        1. Nothing more begins, what is begun may finish.
        2. The last offsets are committed, with notes that nothing is in work: the next owner need suspect no frame.
        """
        # 1.
        deadline = self._now() + timeout_s
        lanes = self._lanes.values()
        for lane in lanes:
            lane.refuse()
        if self._abort.is_set():  # nobody works on what is begun any more
            deadline = self._now()
        while self._now() < deadline and not all(lane.idle for lane in lanes):
            self._poll(set(self._consumer.assignment()))
        # 2.
        deadline = max(deadline, self._now() + LAST_COMMIT_S)
        leaving = not self._frames_to_blame
        while self._now() < deadline and (offsets := self._committable(lanes, leaving)):
            try:
                self._commit_now(offsets, max(0.1, deadline - self._now()))
                self._remember(offsets)
            except KafkaError as error:
                log.debug("offsets are committed later: %s", error)
                self._poll(set(self._consumer.assignment()))

    def _report_lag(self) -> None:
        if self._now() < self._lag_due:
            return
        self._lag_due = self._now() + LAG_INTERVAL_S
        longest_s = 0.0
        for partition, lane in list(self._lanes.items()):
            end = self._consumer.highwater(partition)
            offset = lane.undecided_offset
            if end is None or offset is None:
                continue
            records = max(0, end - offset)
            since_ms = lane.undecided_since_ms
            age_s = self._now_ns() * 1e-9 - since_ms * 1e-3 if records and since_ms else 0.0
            telemetry.LAG_RECORDS.labels(partition.partition).set(records)
            telemetry.LAG_SECONDS.labels(partition.partition).set(max(0.0, age_s))
            longest_s = max(longest_s, age_s)
        self.longest_wait_s = longest_s

    # Rebalances; called on the consumer's own loop while this thread waits in poll

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """Start with new partitions."""
        with self._guard:
            for partition in partitions:
                self._forget(partition)
                self._lanes[partition] = self._new_lane(partition)
        log.info("cameras of partitions %s are served now", self.partitions)

    async def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """Finish and commit the frames in work of partitions that leave; the next owner does what takes too long."""
        lanes = [self._lanes[partition] for partition in partitions if partition in self._lanes]
        for lane in lanes:
            lane.refuse()
        deadline = self._now() + self._revoke_timeout_s
        while self._now() < deadline and not all(lane.idle for lane in lanes):
            # The loop that calls us also sends heartbeats, so it must not block, and it has its own sleep.
            await self._consumer._net.sleep(DRAIN_TICK_S)
        if offsets := self._committable(lanes, leaving=True):
            try:
                await self._commit_leaving(offsets, deadline)
            except KafkaError as error:
                log.info("offsets of leaving partitions are not committed, their frames are done again: %s", error)
        self.lost(partitions)

    async def _commit_leaving(self, offsets: dict[TopicPartition, OffsetAndMetadata], deadline: float) -> None:
        """Commit the offsets of lanes that leave, before `deadline`. Raises KafkaError."""
        if self._transactions is None:
            await self._consumer.commit_async(offsets)
            return
        request = self._transactions.request_commit({self._lanes[place]: offset for place, offset in offsets.items()})
        deadline = max(deadline, self._now() + LAST_COMMIT_S)
        while not request.done.is_set() and self._now() < deadline:
            await self._consumer._net.sleep(DRAIN_TICK_S)

    def lost(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget partitions that have another owner."""
        for partition in partitions:
            with self._guard:
                if lane := self._lanes.pop(partition, None):
                    lane.close()
                self._forget(partition)
            for gauge in (telemetry.LAG_RECORDS, telemetry.LAG_SECONDS):
                gauge.remove(partition.partition)

    def _forget(self, partition: TopicPartition) -> None:
        self._committed.pop(partition, None)
        self._read.pop(partition, None)
        self._suspicions.pop(partition, None)


class _Listener(AsyncConsumerRebalanceListener):
    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._intake.revoked(set(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._intake.assigned(set(assigned))

    async def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._intake.lost(set(lost))
