"""The shadow model: it scores frames whose verdict has left, decides nothing, and takes a share of one CPU.

Frames beyond its share are not scored, so what it scores is a sample. Whatever it does, the verdicts go on: it has a
thread, a queue and a client of the broker of its own, and none of its errors leaves this file.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from kafka.errors import KafkaError, KafkaTimeoutError

from flawline import clock, kafka_clients, messages, telemetry, topics
from flawline.byte_budget import ByteBudget
from flawline.checked_producer import CheckedProducer
from flawline.errors import FlawlineError, one_line
from flawline.imaging import ImageError
from flawline.messages import Decision, Frame, ShadowVerdict
from flawline.settings.tree import Settings
from workers import metrics, scoring
from workers.active_model import ModelRef
from workers.describing import ByteQueue, CpuShare
from workers.model_slot import ModelSlot

if TYPE_CHECKING:
    from scorer.scores import Scores

log = logging.getLogger(__name__)

QUEUE_BYTES = 16 << 20
"""Pixels that wait for the shadow model: two images of 5 megapixels. A judgement, not measured."""

UNACKNOWLEDGED_BYTES = 1 << 20
"""Results that wait for the broker: some 4,000. A judgement, not measured."""

RECONNECT_S = 10.0  # a judgement, not measured

PATIENCE_S = 60.0
"""A client whose results pile up for so long is replaced: a client can lose its state in an outage for good."""


class ShadowOutcome(StrEnum):
    """What became of a frame for the shadow model."""

    SCORED = "scored"
    OVER_SHARE = "over-share"
    FAILED = "failed"
    NOT_SENT = "not-sent"


@dataclass(frozen=True, eq=False)
class Sample:
    """A frame whose verdict has left, without its encoded image, and what the active model said."""

    camera: str
    epoch: int
    sequence: int
    captured_at: int
    part: str | None
    partition: int
    offset: int
    pixels: np.ndarray
    mask: np.ndarray | None
    active_version: str
    active_decision: Decision
    active_score: float
    sample_bits: int

    @property
    def size_bytes(self) -> int:
        """The memory that it holds while it waits."""
        return self.pixels.nbytes + (self.mask.nbytes if self.mask is not None else 0)

    def verdict(self, version: str, scores: Scores, scored_at: int) -> ShadowVerdict:
        """Return the message that holds both models' scores."""
        return ShadowVerdict(
            camera=self.camera,
            epoch=self.epoch,
            sequence=self.sequence,
            captured_at=self.captured_at,
            scored_at=scored_at,
            partition=self.partition,
            offset=self.offset,
            model_version=version,
            score=float(scores.aligned),
            p_value=float(scores.p_value),
            decision=scores.decision,
            active_version=self.active_version,
            active_score=self.active_score,
            active_decision=self.active_decision,
            part=self.part,
        )


class ShadowScorer:
    """Scores samples with the shadow model. `send(result)` tells whether it took the result."""

    def __init__(
        self,
        share: float,
        slot: ModelSlot,
        send: Callable[[ShadowVerdict], bool],
        now: clock.Monotonic = clock.monotonic,
        now_ns: clock.UtcNs = clock.utc_ns,
    ) -> None:
        self.slot = slot
        self._share = share
        self._send = send
        self._now_ns = now_ns
        self._closed = threading.Event()
        self._queue: ByteQueue[Sample] = ByteQueue(QUEUE_BYTES)
        # Never free: also on a line with time to spare its work delays the frame that comes meanwhile.
        self._pace = CpuShare(share, self._closed.is_set, self._closed.wait, now)
        self._failure_logged: str | None = None

    def start(self) -> None:
        """Begin to load the model and to score."""
        self.slot.start()
        threading.Thread(target=self._run, name="shadow", daemon=True).start()

    def change(self, model: ModelRef | None) -> None:
        """Score with another shadow model once it is loaded; None ends the role and gives its memory back."""
        self.slot.change(model if self._share > 0 else None)

    def close(self) -> None:
        """Score nothing more."""
        self._closed.set()
        self.slot.close()
        self._queue.close()

    def add(
        self, frame: Frame, partition: int, offset: int, pixels: np.ndarray, mask: np.ndarray | None,
        active_version: str, active: Scores, sample_bits: int = 8,
    ) -> None:  # fmt: skip
        """Take a frame that the active model has decided, and read at a depth of `sample_bits`.

        Never waits, and takes what the queue has room for.
        """
        if self._closed.is_set() or not self.slot.wait(0):
            return
        sample = Sample(
            frame.camera, frame.epoch, frame.sequence, frame.captured_at, frame.part, partition, offset, pixels, mask,
            active_version, active.decision, float(active.aligned), sample_bits,
        )  # fmt: skip
        if not self._queue.put(sample):
            telemetry.SHADOW_FRAMES.labels(ShadowOutcome.OVER_SHARE).inc()

    def _run(self) -> None:
        while (sample := self._queue.take()) is not None and not self._closed.is_set():
            self._pace.step()
            try:
                outcome = self._score(sample)
            except Exception as error:  # also the model's own: the active one decides, whatever this one does
                outcome = ShadowOutcome.FAILED
                self._log(error)
            finally:
                self._pace.rest()
            if outcome is not None:
                telemetry.SHADOW_FRAMES.labels(outcome).inc()

    def _score(self, sample: Sample) -> ShadowOutcome | None:
        """Score a sample and send the result; None when the role has ended meanwhile, or plays the active model."""
        detector = self.slot.current()
        if detector is None or detector.version == sample.active_version or self._closed.is_set():
            return None
        if sample.sample_bits not in detector.sample_bits:
            raise ImageError(f"frame was read at {sample.sample_bits} bits, and the shadow model takes another depth")
        (scores,) = scoring.score_each(detector, [sample.pixels], [sample.mask])
        if isinstance(scores, Exception):
            raise scores
        metrics.SHADOW_DECISIONS.labels(sample.active_decision, scores.decision).inc()
        sent = self._send(sample.verdict(detector.version, scores, self._now_ns()))
        return ShadowOutcome.SCORED if sent else ShadowOutcome.NOT_SENT

    def _log(self, error: Exception) -> None:
        """Log the first failure of each model; the metric counts all."""
        running = self.slot.running
        version = running.detector.version if running else "?"
        if version != self._failure_logged:
            self._failure_logged = version
            log.error("shadow model %s fails on a frame: %s", version, one_line(error, with_type=True))


class ShadowSender:
    """Sends shadow verdicts with a client of its own, so that nothing of it reaches the client that sends verdicts.

    Not thread-safe. What the broker does not take in time is not sent.
    """

    def __init__(self, settings: Settings, now: clock.Monotonic = clock.monotonic) -> None:
        self._settings = settings
        self._now = now
        self._topic = settings.topic(topics.SHADOW_VERDICTS.name)
        self._unacknowledged = ByteBudget(UNACKNOWLEDGED_BYTES)
        self._producer: CheckedProducer | None = None
        self._connect_at = self._acknowledged_at = now()
        self._is_lost = threading.Event()

    def send(self, verdict: ShadowVerdict) -> bool:
        """Send a result and return True; False while the broker is away or slow."""
        if not self._connected():
            return False
        value = messages.encode(verdict)
        if not self._unacknowledged.acquire(len(value)):
            if self._now() - self._acknowledged_at > PATIENCE_S:
                self._lose(KafkaTimeoutError(f"nothing is acknowledged for {PATIENCE_S:g} s"))
            return False
        try:
            assert self._producer is not None
            future = self._producer.send(
                self._topic, key=verdict.camera.encode(), value=value, headers=messages.headers(verdict)
            )
        except (KafkaError, ValueError, AssertionError) as error:
            self._unacknowledged.release(len(value))
            self._lose(error)
            return False
        future.add_callback(self._taken, len(value))
        future.add_errback(self._not_taken, len(value))
        return True

    def _taken(self, size_bytes: int, _: object) -> None:
        self._unacknowledged.release(size_bytes)
        self._acknowledged_at = self._now()

    def _not_taken(self, size_bytes: int, error: Exception) -> None:
        self._unacknowledged.release(size_bytes)
        self._lose(error)

    def _lose(self, error: Exception) -> None:
        log.debug("shadow verdicts are not sent: %s", error)
        self._is_lost.set()

    def _connected(self) -> bool:
        if self._is_lost.is_set() and self._producer is not None:
            kafka_clients.close_producer(self._producer)
            self._producer, self._connect_at = None, self._now() + RECONNECT_S
        if self._producer is None and self._now() >= self._connect_at:
            try:
                kafka_clients.ensure_topics(self._settings, [topics.SHADOW_VERDICTS.name])
                self._producer = kafka_clients.producer(self._settings, topics.SHADOW_VERDICTS.name)
                self._is_lost.clear()
                self._acknowledged_at = self._now()
            except FlawlineError as error:
                log.warning("shadow verdicts are not sent: %s", error)
                self._connect_at = self._now() + RECONNECT_S
        return self._producer is not None
