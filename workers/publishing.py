"""Sends outcomes and counts a frame as finished when the broker holds all of its records."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kafka import KafkaProducer
from kafka.errors import KafkaError, RetriableError

from flawline import clock, telemetry
from flawline.clock import NS
from flawline.errors import FlawlineError
from workers.budget import ByteGate
from workers.lane import Job, Lane, Outcome


class Publisher:
    """One producer for all partitions of a worker. `unacknowledged` bounds what it holds; callers wait for it.

    When the broker does not take a record, later ones of the partition may already be in its log. So nothing is sent
    again from here: `on_lost(lane)` must read the partition again from its first unfinished frame. What cannot heal by
    trying again goes to `on_fatal`.
    """

    def __init__(
        self,
        producer: KafkaProducer,
        unacknowledged: ByteGate,
        on_lost: Callable[[Lane], None],
        on_fatal: Callable[[Exception], None],
        now_ns: clock.UtcNs = clock.utc_ns,
    ) -> None:
        self._producer = producer
        self._unacknowledged = unacknowledged
        self._on_lost = on_lost
        self._on_fatal = on_fatal
        self._now_ns = now_ns

    def send(self, job: Job, outcome: Outcome) -> None:
        """Send all records of an outcome; called in log order for the jobs of one lane."""
        pending = _Pending(self, job, outcome)
        for record in outcome.records:
            self._unacknowledged.add(len(record.value))
            try:
                future = self._producer.send(
                    record.topic,
                    value=record.value,
                    key=record.key,
                    headers=record.headers,
                    partition=record.partition,
                )
            except (KafkaError, ValueError, AssertionError) as error:  # no metadata, too large, no such partition
                pending.failed(error, len(record.value))
                return
            size = len(record.value)
            future.add_callback(lambda _, size=size: pending.acknowledged(size))
            future.add_errback(lambda error, size=size: pending.failed(error, size))

    def close(self, timeout_s: float) -> None:
        """Wait for what is sent, then close."""
        self._producer.close(timeout=timeout_s)


class _Pending:
    """The acknowledgements that one outcome still waits for."""

    def __init__(self, publisher: Publisher, job: Job, outcome: Outcome) -> None:
        self._publisher = publisher
        self._job = job
        self._outcome = outcome
        self._left = len(outcome.records)
        self._given_up = False
        self._sent_at = publisher._now_ns()
        self._lock = threading.Lock()

    def acknowledged(self, size_bytes: int) -> None:
        self._publisher._unacknowledged.remove(size_bytes)
        with self._lock:
            self._left -= 1
            done = self._left == 0
        if done:
            self._count()
            self._job.lane.finish(self._job)

    def failed(self, error: Exception, size_bytes: int) -> None:
        self._publisher._unacknowledged.remove(size_bytes)
        with self._lock:
            again, self._given_up = self._given_up, True
        if again:  # a frame's verdict and defect fail together
            return
        self._job.lane.abandon(self._job)
        if isinstance(error, RetriableError):
            self._publisher._on_lost(self._job.lane)
        else:
            topic = self._outcome.records[0].topic
            text = str(error) or type(error).__name__
            self._publisher._on_fatal(FlawlineError(f"the broker refuses a record for {topic}: {text}"))

    def _count(self) -> None:
        outcome, now = self._outcome, self._publisher._now_ns()
        telemetry.STAGE_LATENCY.labels("publish").observe(max(0.0, (now - self._sent_at) * NS))
        if outcome.decision is not None:
            telemetry.VERDICTS.labels(outcome.camera, outcome.decision).inc()
            telemetry.VERDICT_LATENCY.labels(outcome.camera).observe(max(0.0, (now - outcome.captured_at) * NS))
        elif outcome.reason is not None:
            telemetry.DEAD_LETTERS.labels(outcome.camera, outcome.reason).inc()
