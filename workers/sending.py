"""Sends outcomes, and counts those that the broker holds."""

from __future__ import annotations

from collections.abc import Callable

from kafka import KafkaProducer
from kafka.errors import KafkaError, RetriableError

from flawline import clock, kafka_clients, telemetry
from flawline.byte_budget import ByteBudget
from flawline.clock import NS
from flawline.errors import FlawlineError
from workers.lane import Job, Lane, Outcome


class OutcomeSender:
    """One producer for all partitions of a worker. `unacknowledged` bounds what it holds; callers wait for it.

    When the broker does not take a record, later ones of the partition may already be in its log. So nothing is sent
    again from here: `on_lost(lane)` must read the partition again from its first unfinished frame. What cannot heal by
    trying again goes to `on_fatal`.
    """

    def __init__(
        self,
        producer: KafkaProducer,
        unacknowledged: ByteBudget,
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
        """Send an outcome; the verdicts and dead letters of one lane come in log order."""
        record, sent_at = outcome.record, self._now_ns()
        size_bytes = len(record.value)
        self._unacknowledged.add(size_bytes)

        def acknowledged(_: object) -> None:
            self._unacknowledged.release(size_bytes)
            self._count(outcome, sent_at)
            job.lane.acknowledge(job)

        def failed(error: Exception) -> None:
            self._unacknowledged.release(size_bytes)
            self._give_up(job, record.topic, error)

        try:
            future = self._producer.send(
                record.topic, value=record.value, key=record.key, headers=record.headers, partition=record.partition
            )
        except (KafkaError, ValueError, AssertionError) as error:  # no metadata, too large, no such partition
            failed(error)
            return
        future.add_callback(acknowledged)
        future.add_errback(failed)

    def close(self, timeout_s: float) -> None:
        """Wait for what is sent, then close."""
        kafka_clients.close_producer(self._producer, timeout_s)

    def _give_up(self, job: Job, topic: str, error: Exception) -> None:
        if not job.lane.abandon(job):
            return  # its verdict or defect was lost before
        if isinstance(error, RetriableError):
            self._on_lost(job.lane)
        else:
            self._on_fatal(
                FlawlineError(f"the broker refuses a record for {topic}: {str(error) or type(error).__name__}")
            )

    def _count(self, outcome: Outcome, sent_at: int) -> None:
        now = self._now_ns()
        telemetry.STAGE_LATENCY.labels("publish").observe(max(0.0, (now - sent_at) * NS))
        if outcome.decision is not None:
            telemetry.VERDICTS.labels(outcome.camera, outcome.decision).inc()
            telemetry.VERDICT_LATENCY.labels(outcome.camera).observe(max(0.0, (now - outcome.captured_at) * NS))
        elif outcome.reason is not None:
            telemetry.DEAD_LETTERS.labels(outcome.camera, outcome.reason).inc()
