"""Exactly-once delivery: what frames leave behind, and how far they are, in Kafka transactions of one worker.

A transaction holds the verdicts, defects and dead letters that were ready when it began, and with them the offset of
each of their partitions. Beside the offset stands which frames behind it have their verdict already (`Standing`), since
a defect may come seconds after its verdict. So who goes on, this worker after an abort or the partition's next owner,
knows exactly what is in the topics.

The rules that make it exact:

- One transaction at a time, and every record in it with the offset of its partition.
- The place in the consumer group is looked up before the lanes are: a lane that is open then was this worker's in that
  generation, and the broker refuses the offsets of an older one.
- What was refused before the commit was asked for is sent again. What may have been committed is read from the broker,
  after a new client has ended the old one's transaction.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kafka.errors import (
    AuthorizationError,
    BrokerResponseError,
    CommitFailedError,
    FencedInstanceIdError,
    InvalidProducerEpochError,
    InvalidProducerIdMappingError,
    InvalidTxnStateError,
    KafkaError,
    KafkaTimeoutError,
    ProducerFencedError,
    RetriableError,
)
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from flawline import telemetry
from flawline.checked_producer import CLIENT_STATE_LOST, CheckedProducer
from flawline.errors import FlawlineError, one_line
from flawline.outage import Outage
from workers.lane import Job, Lane, Outcome
from workers.sending import STUCK, Sender, Sent

log = logging.getLogger(__name__)

PERIOD_S = 0.02
"""Shortest time between the beginnings of two transactions.

Measured at 20 frames/s on two very busy cores (load 28), two runs each, capture to visible verdict, p50 and p99 in ms:
63 and 548 with 0.05 s, 36 and 407 with 0.02 s, 67 and 387 without; 32 and 270 with at-least-once delivery. One took
4 ms of the worker's processor time.
"""

TRANSACTION_BYTES = 8 << 20
"""Most bytes of one transaction, except for a larger record, so that a backlog leaves in parts. A judgement."""

RETRY_BACKOFF_MS = 10
"""Pause of the client when the broker still ends the transaction before; with the default of 100 ms each one waits."""

WAIT_MS = 100
"""How soon it is noticed that the client was replaced."""

ABORT_S = 5.0
"""How long an abort may take; then a new client takes over, whose start aborts too."""

PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
"""First and longest pause after transactions that fail."""

FENCED = "another process took this worker's place: run one `flawline work` per line and machine"

NOT_ABOUT_THE_RECORD = (
    *CLIENT_STATE_LOST,
    RetriableError,
    AuthorizationError,
    CommitFailedError,
    FencedInstanceIdError,
    InvalidProducerIdMappingError,
    InvalidTxnStateError,
)


class TransactionalProducer(CheckedProducer):
    """A CheckedProducer with a transactional id, whose waits can be given up.

    kafka-python 3.0.12 has three faults that are avoided here. It waits for the broker without a limit. After an abort
    it keeps offsets that were refused, and puts them into the next transaction. And it asks for a new epoch by itself
    when the broker does not know its own: the transaction then counts as committed though it is lost, and a zombie
    could take the id from the worker that has replaced it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Connect with the options of CheckedProducer, `transactional_id` among them."""
        super().__init__(*arguments, **options)
        self._transaction_manager._supports_epoch_bump = lambda: False

    def begin(self) -> None:
        """Begin a transaction. Raises KafkaError."""
        self._transaction_manager._pending_txn_offset_commits.clear()
        self.begin_transaction()

    def add_offsets(self, offsets: Mapping[Any, OffsetAndMetadata], group: ConsumerGroupMetadata) -> Any:
        """Put offsets into the transaction; return the result, whose `wait(timeout_ms)` raises KafkaError."""
        return self._asked(self._transaction_manager.send_offsets_to_transaction(offsets, group))

    def ask_commit(self) -> Any:
        """Ask for the transaction's commit; return the result. Raises KafkaError."""
        return self._asked(self._transaction_manager.begin_commit())

    def ask_abort(self) -> Any:
        """Ask for the transaction's end without effect; return the result. Raises KafkaError when it is too late."""
        return self._asked(self._transaction_manager.begin_abort())

    def _asked(self, result: Any) -> Any:
        self._sender.wakeup()
        return result


class Place(Protocol):
    """The worker's place in the consumer group, and how far its partitions are."""

    def group(self) -> ConsumerGroupMetadata:
        """Return the member's name and generation of this moment."""

    def offsets_with(self, outcomes: Counter[Job]) -> dict[Lane, OffsetAndMetadata]:
        """Return what to commit of each open lane once the broker holds these outcomes; nothing of an unchanged one."""

    def remember(self, offsets: Mapping[Lane, OffsetAndMetadata]) -> None:
        """Take down what was committed of lanes."""


@dataclass(eq=False)
class CommitRequest:
    """Offsets to commit without records; `done` is set at the end, with the `error` if there is one."""

    offsets: dict[Lane, OffsetAndMetadata]
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    is_cancelled: bool = False

    def end(self, error: Exception | None = None) -> None:
        """Tell who waits."""
        self.error = error
        self.done.set()


class _Replaced(KafkaError):
    """The client was replaced while its answer was waited for."""


class TransactionalSender(Sender):
    """Sends outcomes in transactions, one after the other, from a thread of its own.

    A transaction begins when there is an outcome, at most every `period_s`, and takes what has come until then. When
    nothing comes, notes that have changed are committed every `commit_interval_s`. The broker aborts a transaction
    after `timeout_s`. `is_replaced` tells whether another process has this worker's place in the group, and raises
    FlawlineError while the broker is away.
    """

    def __init__(
        self,
        *arguments: Any,
        place: Callable[[], Place | None],
        is_replaced: Callable[[], bool],
        commit_interval_s: float,
        timeout_s: float,
        period_s: float = PERIOD_S,
        **options: Any,
    ) -> None:
        """Connect, with the arguments of `Sender`; there is no `place` before the first outcome."""
        self._place = place
        self._is_replaced = is_replaced
        self._commit_interval_s = commit_interval_s
        self._timeout_s = timeout_s
        self._period_s = period_s
        self._queue: deque[Sent] = deque()
        self._requests: deque[CommitRequest] = deque()
        self._lost: list[Lane] = []
        self._is_closing = False
        self._outage = Outage(PAUSE_S, LONGEST_PAUSE_S)
        super().__init__(*arguments, **options)
        self._thread = threading.Thread(target=self._guarded, name="transactions", daemon=True)
        self._thread.start()

    # Called from other threads

    def send(self, job: Job, outcome: Outcome) -> None:
        """Queue an outcome for the next transaction."""
        with self._changed:
            if not self._is_closing:
                self._queue.append(self._register(job, outcome))
                self._changed.notify_all()
                return
        job.lane.abandon(job)

    def request_commit(self, offsets: dict[Lane, OffsetAndMetadata]) -> CommitRequest:
        """Queue offsets, of lanes of which nothing is in work, for the next transaction."""
        request = CommitRequest(offsets)
        with self._changed:
            if self._is_closing:
                request.end(KafkaTimeoutError("this worker ends"))
            else:
                self._requests.append(request)
                self._changed.notify_all()
        return request

    def commit(self, offsets: dict[Lane, OffsetAndMetadata], timeout_s: float) -> None:
        """Commit offsets, of lanes of which nothing is in work. Raises KafkaError, KafkaTimeoutError among them."""
        request = self.request_commit(offsets)
        if not request.done.wait(timeout_s):
            request.is_cancelled = True
            raise KafkaTimeoutError(f"no commit within {timeout_s} s")
        if request.error is not None:
            error = request.error
            raise error if isinstance(error, KafkaError) else KafkaError(one_line(error, with_type=True))

    def close(self, timeout_s: float) -> None:
        """Wait for the transaction in work, then close; what no transaction began with is dropped."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        super().close(0.0)
        self._thread.join(2 * WAIT_MS * 1e-3)
        while self._queue:
            self._drop(self._queue.popleft())
        while self._requests:
            self._requests.popleft().end(KafkaTimeoutError("this worker ends"))

    # The thread

    def _guarded(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            log.debug("the thread of transactions ended", exc_info=True)
            self._on_fatal(error)

    def _turn(self) -> bool:
        """Do one transaction, as soon as there is something for it; return False at the end.

        1. Wait for an outcome, a request or the next look at the notes, and for a client.
        2. What may have been committed by a client before is read from the broker, now that this one has ended it.
        3. Take what is there into a transaction, not too soon after the last one.
        """
        # 1.
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closing or self._queue or self._requests or self._lost, self._commit_interval_s
            )
            self._changed.wait_for(lambda: self._client is not None or self._is_closing)
            client = self._client
        if client is None or self._is_closing:
            return False
        # 2.
        lost, self._lost = self._lost, []
        for lane in lost:
            self._on_lost(lane)
        # 3.
        began = self._now()
        if self._transact(client):
            with self._changed:
                self._changed.wait_for(self._is_urgent, max(0.0, began + self._period_s - self._now()))
        return True

    def _is_urgent(self) -> bool:
        """Tell whether somebody waits for the next transaction: the intake, or all frames for a suspect."""
        return bool(self._is_closing or self._requests or any(sent.job.ended for sent in self._queue))

    def _transact(self, client: Any) -> bool:
        """Do one transaction; return False when there was nothing to do."""
        place = self._place()
        if place is None:
            return False
        # Before the lanes are looked at: see the rules above.
        group = place.group()
        sent, requests = self._take()
        if group.generation_id < 0:  # the lanes of a member that is not in the group will be closed
            self._again(sent, requests)
            self._closed.wait(PAUSE_S)
            return False
        offsets = place.offsets_with(Counter(item.job for item in sent))
        for request in requests:
            offsets |= {lane: offset for lane, offset in request.offsets.items() if not lane.closed}
        for item in [item for item in sent if item.job.lane not in offsets]:
            self._drop(item)
        sent = [item for item in sent if item.job.lane in offsets]
        by_partition = {lane.partition: offset for lane, offset in offsets.items()}
        if by_partition:
            attempt = _Attempt(client, self._now())
            try:
                attempt.send(sent)
                attempt.commit(by_partition, group, lambda: self._client is client)
            except (KafkaError, OSError, ValueError) as error:
                telemetry.TRANSACTIONS.labels("aborted").inc()
                failure = self._outage.failed()
                level = logging.WARNING if failure.is_reported else logging.DEBUG
                reason = attempt.first_failure(error)[1]
                log.log(level, "a transaction is not committed: %s", one_line(reason, with_type=True))
                self._failed(attempt, sent, requests, offsets, error)
                self._closed.wait(failure.pause_s)
                return False
            self._outage.ended()
            telemetry.TRANSACTIONS.labels("committed").inc()
            place.remember(offsets)
            for item in sent:
                self._acknowledged(item)
        for request in requests:
            request.end()
        return bool(by_partition)

    def _take(self) -> tuple[list[Sent], list[CommitRequest]]:
        """Return what the next transaction begins with, in order."""
        sent: list[Sent] = []
        size_bytes = 0
        with self._changed:
            while self._queue and (not sent or size_bytes < TRANSACTION_BYTES):
                sent.append(self._queue.popleft())
                size_bytes += len(sent[-1].outcome.record.value)
            requests = [request for request in self._requests if not request.is_cancelled]
            self._requests.clear()
        return sent, requests

    # Failures

    def _failed(
        self,
        attempt: _Attempt,
        sent: Sequence[Sent],
        requests: Sequence[CommitRequest],
        offsets: Iterable[Lane],
        error: Exception,
    ) -> None:
        """Go on after a transaction that was not committed, or of which that is not known.

        1. End what cannot go on: a worker without rights, or one that was replaced.
        2. When the commit was asked for, its partitions are read again from what the broker has.
        3. Otherwise the transaction has no effect. What it held is sent again, except for what the broker refuses.
        """
        item, reason = attempt.first_failure(error)
        for request in requests:
            request.end(reason)
        # 1.
        if (fatal := self._fatal(attempt, reason)) is not None:
            for other in sent:
                self._drop(other)
            self._end(fatal)
            return
        # 2.
        if attempt.is_asked:
            for lane in offsets:
                lane.close()
            self._lost += offsets
            for other in sent:
                self._drop(other)
            self._replace(attempt.client, reason)
            return
        # 3.
        # A ValueError is of a partition that the client does not know: topics were replaced.
        if isinstance(reason, (*CLIENT_STATE_LOST, ValueError)) or not attempt.abort():
            self._replace(attempt.client, reason)
        if item is not None and is_refused(reason):
            lane = item.job.lane
            lane.close()  # at once, so that nothing behind the refused frame leaves before it
            self._lost.append(lane)
            self._answered(item)
            self._on_refused(item.job, item.outcome, one_line(reason, with_type=True))
            sent = [other for other in sent if other is not item]
        self._again(sent, ())

    def _fatal(self, attempt: _Attempt, error: Exception) -> Exception | None:
        """Return what this worker must end of; None when it can go on."""
        if isinstance(error, FencedInstanceIdError):
            return FlawlineError(FENCED)
        if isinstance(error, ProducerFencedError | InvalidProducerEpochError):
            # The broker fences after its time limit too. Then the new client finds out who has the place.
            timed_out = self._now() - attempt.began >= self._timeout_s
            return None if timed_out else FlawlineError(FENCED)
        if isinstance(error, AuthorizationError):
            return FlawlineError(f"this worker may not write: {one_line(error, with_type=True)}: {GRANT}")
        return None

    def _renewed(self) -> Any:
        if self._is_replaced():
            self._end(FlawlineError(FENCED))
            self._closed.set()
            raise FlawlineError(FENCED)
        return self._make()

    def _end(self, error: Exception) -> None:
        """Begin no further transaction, and let this worker end of an error."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._on_fatal(error)

    def _renew_stuck(self, client: Any, oldest: int | None) -> None:
        # A second client with the same id ends the first one, so none is tried beside it.
        log.error(STUCK, self._patience_s)
        self._replace(client, KafkaTimeoutError(f"no answer within {self._patience_s:.0f} s"))

    def _again(self, sent: Sequence[Sent], requests: Sequence[CommitRequest]) -> None:
        with self._changed:
            self._queue.extendleft(reversed(sent))
            self._requests.extendleft(reversed(requests))

    def _drop(self, item: Sent) -> None:
        self._answered(item)
        item.job.lane.abandon(item.job)


GRANT = "grant WRITE on its topics and on its transactional id (`flawline topics acls --role work`)"


class _Attempt:
    """One transaction of a client, and the first of its records that failed."""

    def __init__(self, client: Any, began: float) -> None:
        self.client = client
        self.began = began
        self.is_asked = False
        self._futures: list[Any] = []
        self._failures: list[tuple[Sent, Exception]] = []

    def send(self, sent: Iterable[Sent]) -> None:
        """Begin, and hand the records to the client. Raises KafkaError, ValueError."""
        self.client.begin()
        for item in sent:
            record = item.outcome.record
            try:
                future = self.client.send(
                    record.topic, value=record.value, key=record.key, headers=record.headers, partition=record.partition
                )
            except KafkaError as error:
                self._failures.append((item, error))
                raise
            future.add_errback(lambda error, item=item: self._failures.append((item, error)))
            self._futures.append(future)

    def commit(
        self, offsets: Mapping[Any, OffsetAndMetadata], group: ConsumerGroupMetadata, is_current: Callable[[], bool]
    ) -> None:
        """Add the offsets, wait for every answer, then commit. Raises KafkaError."""

        def wait(result: Any) -> None:
            while not result.wait(timeout_ms=WAIT_MS):
                if not is_current():
                    raise _Replaced("the client was replaced")

        added = self.client.add_offsets(offsets, group)
        for future in self._futures:
            wait(_Answer(future))
        wait(added)
        self.is_asked = True
        wait(self.client.ask_commit())

    def abort(self) -> bool:
        """End the transaction without effect; return False when the client cannot."""
        try:
            return bool(self.client.ask_abort().wait(timeout_ms=int(ABORT_S * 1000)))
        except KafkaError as error:
            log.debug("a transaction is aborted by the next client: %s", error)
            return False

    def first_failure(self, error: Exception) -> tuple[Sent | None, Exception]:
        """Return the record that failed first with its error, or no record and the transaction's `error`."""
        return next(iter(self._failures), (None, error))


class _Answer:
    """The answer to a record, waited for as that to a request."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def wait(self, timeout_ms: int) -> bool:
        """Return whether the broker holds the record, False while there is no answer. Raises KafkaError."""
        if not self._future.answered(timeout_ms * 1e-3):
            return False
        self._future.get(timeout=0)
        return True


def is_refused(error: Exception) -> bool:
    """Tell whether the broker refuses a record for good, whatever the state of the client."""
    return isinstance(error, BrokerResponseError) and not isinstance(error, NOT_ABOUT_THE_RECORD)
