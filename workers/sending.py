"""Sends outcomes, counts those that the broker holds, and replaces a Kafka client that is of no more use."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kafka.errors import (
    AuthorizationError,
    KafkaError,
    KafkaTimeoutError,
    RetriableError,
    UnknownTopicOrPartitionError,
)

from flawline import clock, kafka_clients, telemetry
from flawline.byte_budget import ByteBudget
from flawline.checked_producer import CLIENT_STATE_LOST
from flawline.clock import NS
from flawline.errors import FlawlineError, one_line
from flawline.outage import Outage
from workers import metrics
from workers.lane import Job, Lane, Outcome

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 5.0
"""Longest pause between attempts to connect, half of what a line may take to resume."""

WATCH_S = 1.0
AWAY_S = 3.0
"""Age of a record without an answer after which topics that the broker may have lost are looked for."""

STUCK = "the broker answers, but not to what was sent %.0f s ago: the Kafka client is replaced"

GRACE_S = 5.0
"""How long a client may still answer once a new one could connect: after an outage both are back at the same time."""


@dataclass(frozen=True, eq=False)
class Sent:
    """An outcome on its way to the broker; `at_ns` is UTC."""

    job: Job
    outcome: Outcome
    number: int
    at_ns: int


class Sender(ABC):
    """Sends outcomes with one Kafka client for all partitions of a worker, and replaces that when it is of no more use.

    `unacknowledged` bounds what the client holds; callers wait for it. When a record is lost, `on_lost(lane)` must read
    the partition again; a record that the broker refuses for good goes to `on_refused`, and what this worker may not
    do, to `on_fatal`. A client that leaves a record without an answer for `patience_s`, though the broker can be
    reached, is replaced too, whatever it suffers from. `restore` makes topics again that the broker has lost; it
    returns whether there were any, and raises FlawlineError while the broker is away.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        unacknowledged: ByteBudget,
        *,
        on_lost: Callable[[Lane], None],
        on_refused: Callable[[Job, Outcome, str], None],
        on_fatal: Callable[[Exception], None],
        restore: Callable[[], object],
        patience_s: float,
        takt_s: float | None = None,
        now: clock.Monotonic = clock.monotonic,
        now_ns: clock.UtcNs = clock.utc_ns,
    ) -> None:
        """Connect with `make`, which raises FlawlineError when the broker cannot be used."""
        self._make = make
        self._unacknowledged = unacknowledged
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._on_fatal = on_fatal
        self._restore = restore
        self._patience_s = patience_s
        self._takt_s = takt_s
        self._now = now
        self._now_ns = now_ns
        self._sent_at: dict[int, float] = {}
        self._number = 0
        self._changed = threading.Condition(threading.RLock())
        self._closed = threading.Event()
        self._client: Any = make()
        threading.Thread(target=self._watch, name="sender-watch", daemon=True).start()

    @abstractmethod
    def send(self, job: Job, outcome: Outcome) -> None:
        """Send an outcome; the verdicts and dead letters of one lane come in log order.

        After `close` it drops the job: the partition's next owner does its frame.
        """

    @property
    def unacknowledged_for_s(self) -> float:
        """For how long the oldest record that was sent has had no answer; 0 when there is none."""
        with self._changed:
            oldest = next(iter(self._sent_at.values()), None)
        return 0.0 if oldest is None else self._now() - oldest

    def close(self, timeout_s: float) -> None:
        """Wait for what is sent, then close."""
        with self._changed:
            client, self._client = self._client, None
            self._closed.set()
            self._changed.notify_all()
        if client is not None:
            kafka_clients.close_producer(client, timeout_s)

    def _replace(self, client: Any, reason: BaseException) -> bool:
        """Make a new client in place of `client`, in the background; return False when that was done before."""
        with self._changed:
            if self._client is not client or client is None:
                return False
            self._client = None
        log.warning("the Kafka client is replaced: %s", one_line(reason, with_type=True))
        threading.Thread(target=self._connect, args=(client,), name="sender-renewal", daemon=True).start()
        return True

    def _connect(self, old: Any) -> None:
        kafka_clients.close_producer(old)
        outage = Outage(FIRST_RETRY_S, LONGEST_RETRY_S)
        while not self._closed.is_set():
            try:
                client = self._renewed()
            except FlawlineError as error:
                failure = outage.failed()
                if failure.is_reported:
                    log.warning("%s; outcomes wait", error)
                self._closed.wait(failure.pause_s)
                continue
            self._install(client)
            return

    def _renewed(self) -> Any:
        """Return a client in place of another. Raises FlawlineError while there can be none."""
        return self._make()

    def _install(self, client: Any) -> None:
        with self._changed:
            is_open = not self._closed.is_set()
            if is_open:
                self._client = client
                self._changed.notify_all()
        if not is_open:
            kafka_clients.close_producer(client)

    # The watch: a thread of its own

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_S):
            client, oldest, age_s = self._client, self._oldest(), self.unacknowledged_for_s
            if client is None or age_s < AWAY_S:
                continue
            try:
                if self._restore():
                    self._replace(client, FlawlineError("the broker had lost topics"))
                elif age_s >= self._patience_s:
                    self._renew_stuck(client, oldest)
            except FlawlineError as error:
                log.debug("the broker is away: %s", error)

    def _renew_stuck(self, client: Any, oldest: int | None) -> None:
        """Take a new client in place of `client` if that does not answer to the record number `oldest`."""
        new = self._make()
        self._closed.wait(GRACE_S)
        with self._changed:
            stuck = self._client is client and self._oldest() == oldest
            if stuck:
                self._client = None
        kafka_clients.close_producer(client if stuck else new)
        if stuck:
            log.error(STUCK, self._patience_s)
            self._install(new)

    def _oldest(self) -> int | None:
        with self._changed:
            return next(iter(self._sent_at), None)

    def _register(self, job: Job, outcome: Outcome) -> Sent:
        """Count an outcome as sent and not acknowledged."""
        self._unacknowledged.add(len(outcome.record.value))
        with self._changed:
            self._number += 1
            self._sent_at[self._number] = self._now()
            return Sent(job, outcome, self._number, self._now_ns())

    def _answered(self, sent: Sent) -> None:
        self._unacknowledged.release(len(sent.outcome.record.value))
        with self._changed:
            self._sent_at.pop(sent.number, None)

    def _acknowledged(self, sent: Sent) -> None:
        self._answered(sent)
        self._count(sent.outcome, sent.at_ns)
        sent.job.lane.acknowledge(sent.job)

    def _count(self, outcome: Outcome, sent_at_ns: int) -> None:
        now = self._now_ns()
        telemetry.STAGE_LATENCY.labels("publish").observe(max(0.0, (now - sent_at_ns) * NS))
        if outcome.decision is not None:
            telemetry.VERDICTS.labels(outcome.camera, outcome.decision).inc()
            latency_s = max(0.0, (now - outcome.captured_at) * NS)
            telemetry.VERDICT_LATENCY.labels(outcome.camera).observe(latency_s)
            if self._takt_s is not None:  # a counter that begins at 0 shows its first increment
                metrics.LATE_VERDICTS.labels(outcome.camera).inc(latency_s > self._takt_s)
        elif outcome.reason is not None:
            telemetry.DEAD_LETTERS.labels(outcome.camera, outcome.reason).inc()


class OutcomeSender(Sender):
    """Sends each outcome at once: at-least-once delivery.

    When the broker does not take a record, later ones of the partition may already be in its log. So nothing is sent
    again from here: the partition is read again from its first unfinished frame. For kafka-python 3 every error that
    cannot be retried ends the client, which then fails all it holds with that error; a new client takes its place, and
    the record that failed first is the one that is refused, unless the error is about the client.
    """

    def send(self, job: Job, outcome: Outcome) -> None:
        """Send an outcome. Waits while the client is new."""
        with self._changed:
            self._changed.wait_for(lambda: self._client is not None or self._closed.is_set())
            client = self._client
            if client is None:
                job.lane.abandon(job)
                return
            sent = self._register(job, outcome)
        record = outcome.record

        def acknowledged(_: object) -> None:
            self._acknowledged(sent)

        def failed(error: BaseException) -> None:
            self._answered(sent)
            self._give_up(client, job, outcome, error)

        try:
            future = client.send(
                record.topic, value=record.value, key=record.key, headers=record.headers, partition=record.partition
            )
        except (ValueError, KafkaTimeoutError) as error:  # the topic is gone, or was replaced by one that is smaller
            failed(UnknownTopicOrPartitionError(str(error)))
            self._replace(client, error)
            return
        except KafkaError as error:
            failed(error)
            return
        future.add_callback(acknowledged)
        future.add_errback(failed)

    def _give_up(self, client: Any, job: Job, outcome: Outcome, error: BaseException) -> None:
        if isinstance(error, AuthorizationError):
            job.lane.abandon(job)
            self._on_fatal(FlawlineError(f"this worker may not write to topic {outcome.record.topic}: grant WRITE"))
            return
        away = isinstance(error, RetriableError | OSError)
        first = not away and self._replace(client, error)
        if first and not isinstance(error, CLIENT_STATE_LOST) and not job.lane.closed:
            self._on_refused(job, outcome, one_line(error, with_type=True))
            return
        if job.lane.abandon(job):  # else its verdict or defect was lost before
            self._on_lost(job.lane)
