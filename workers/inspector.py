"""The inspector: a member of the consumer group that decodes, scores, publishes and commits.

It is a plain class, which the supervisor runs as a Ray actor. Its threads: one that only polls (`workers.intake`), some
that decode, some that score, one that judges and sends verdicts, one that describes (`workers.describing`); the Kafka
producer's own thread counts acknowledgements.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from kafka import KafkaConsumer
from kafka.errors import KafkaError

from flawline import clock, kafka_clients, messages, rights, telemetry, topics
from flawline.byte_budget import ByteBudget
from flawline.clock import NS
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.imaging import ImageError
from flawline.messages import (
    DeadLetterReason,
    Decision,
    Defect,
    DefectRegion,
    Frame,
    RunningModel,
    SchemaError,
    Timings,
)
from flawline.object_store import object_store
from flawline.outage import Outage
from flawline.settings.tree import Settings
from flawline.settings.workers import WorkerSettings
from workers import expiry, metrics, scoring, verdicts
from workers.active_model import ACTIVE, SHADOW, ModelRef
from workers.batching import Batcher, BatchPolicy
from workers.busy_time import BusyTime
from workers.camera_masks import CameraMasks
from workers.dead_letters import OVERHEAD_BYTES, dead_letter
from workers.decided import Recall, as_decided, bare_defect, verdict_on
from workers.describing import Describer, Judged, Undescribed
from workers.image_quality import QualityWatch
from workers.intake import Intake
from workers.lane import Job, Lane, Outcome
from workers.metrics import ScoreMetrics
from workers.model_slot import ModelSlot
from workers.model_store import COPIES, ModelStore
from workers.reading import Picture, Reader, Rejected
from workers.refusals import Refusals
from workers.scene_watch import SceneWatch
from workers.sending import FIRST_RETRY_S, LONGEST_RETRY_S, OutcomeSender, Sender
from workers.shadow import ShadowScorer, ShadowSender
from workers.suspects import ATTEMPT_LIMIT
from workers.transactions import RETRY_BACKOFF_MS, TransactionalProducer, TransactionalSender

if TYPE_CHECKING:
    from scorer.detector import Detector
    from scorer.scores import Scores

log = logging.getLogger(__name__)

Client = TypeVar("Client")

POLL_S = 0.5
"""Longest time until a thread that waits for the broker notices that the actor ends."""

HEARTBEAT_MS = 1_000  # a heartbeat's answer is also how a member learns that cameras are to move

BATCH_BYTES = 256 << 10
"""Well below the 1 MiB that the topic of verdicts takes: kafka-python splits a batch that the broker finds too large,
and was seen to send its parts out of order."""

WRITTEN = (topics.VERDICTS.name, topics.DEFECTS.name, topics.DEAD_LETTERS.name)

MODEL_WAIT_S = 0.1
"""How soon a stop is noticed while there is no model."""

Load = Callable[[Path, WorkerSettings], "Detector"]


def load_detector(path: Path, settings: WorkerSettings) -> Detector:
    """Load the model in folder `path`, on the GPU when the actor has a share of one. Raises FlawlineError."""
    from scorer import load  # imports the whole compute stack, which the supervisor never needs

    return load.load_detector(
        path,
        runtime=settings.runtime,
        precision=settings.precision,
        device="cuda" if settings.num_gpus > 0 else "cpu",
        threads=settings.threads,
        weights=settings.weights,
        batch=settings.active_batch_limit,
        device_share=min(1.0, settings.num_gpus) or 1.0,
    )


def member_name(settings: Settings, slot: int) -> str:
    """Return the static member name of a slot of this machine, by which a restarted actor gets its cameras back."""
    return f"{settings.line}.{socket.gethostname()}.{slot}"


@dataclass(frozen=True)
class Health:
    """The state of an inspector as it reports it; ages in seconds.

    `wait_s` is the longest time that a frame without a verdict has waited; `busy` the share of the last seconds in
    which frames were scored.
    """

    host: str
    pid: int
    partitions: list[int]
    model: ModelRef | None
    active: RunningModel | None
    shadow: RunningModel | None
    model_problem: str | None
    shadow_problem: str | None
    last_poll_age_s: float
    scoring_for_s: float
    describing_for_s: float
    wait_s: float = 0.0
    busy: float = 0.0


@dataclass(frozen=True, eq=False)
class _Scored:
    opened: _Opened
    scores: Scores | Exception
    detector: Detector
    timings: Timings


@dataclass(frozen=True, eq=False)
class _Opened:
    job: Job
    picture: Picture
    mask: np.ndarray | None
    decode_s: float


class Inspector:
    """One actor's work, from joining the group to leaving it. `run` does all of it and returns after `stop`."""

    def __init__(self, settings: Settings, member: str, model: ModelRef, load: Load = load_detector) -> None:
        self._settings = settings
        self._worker = settings.worker
        self._member = member

        def load_here(path: Path) -> Detector:
            return load(path, settings.worker)

        self._model = ModelSlot(ACTIVE, model, load_here, ModelStore(settings.data_dir / COPIES, ACTIVE))
        self._masks = CameraMasks(settings.cameras)
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._scoring_since: dict[int, float] = {}
        self._busy = BusyTime(self._worker.score_threads, clock.monotonic())
        self._taking = threading.Lock()
        self._intake: Intake | None = None
        self._gate = ByteBudget(self._worker.in_flight_limit_bytes)
        self._unacknowledged = ByteBudget(self._worker.in_flight_limit_bytes)
        self._to_decode: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._batcher: Batcher[_Opened] = Batcher(
            BatchPolicy(self._worker.active_batch_limit, self._worker.active_latency_cap_s),
            self._worker.in_flight_limit_bytes,
        )
        # As short as the queue before it, so that a slow broker holds the scorer back.
        self._to_judge: Batcher[_Scored] = Batcher(
            BatchPolicy(max(self._worker.active_batch_limit, self._worker.score_threads), 0.0),
            self._worker.in_flight_limit_bytes,
        )
        self._describer = Describer(self._worker, self._defect, self._is_idle)
        self._shadow = ShadowScorer(
            self._worker.shadow_share,
            ModelSlot(SHADOW, None, load_here, ModelStore(settings.data_dir / COPIES, SHADOW)),
            ShadowSender(settings).send,
        )
        self._refusals = Refusals()
        self._score_metrics, self._quality, self._scenes = ScoreMetrics(), QualityWatch(), SceneWatch()
        self._sender: Sender | None = None
        self._dead_letter_limit = _limit_of(topics.DEAD_LETTERS, settings)
        self._defect_limit = _limit_of(topics.DEFECTS, settings) - topics.ENVELOPE_BYTES
        self._decoded = ByteBudget(self._worker.in_flight_limit_bytes)
        self._reader = Reader(settings.frames, object_store(settings), self._decoded, self._stop)

    # Called by the supervisor, from other threads than run's

    def ready(self, timeout_s: float) -> bool:
        """Wait until the model is warm and the group is joined; return False after `timeout_s`."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """Ask `run` to finish the frames in work, commit and return."""
        self._stop.set()

    def health(self) -> Health:
        """Return the state of this moment; an inspector that does not answer is taken for dead."""
        running, intake, since = self._model.running, self._intake, list(self._scoring_since.values())
        now = clock.monotonic()
        return Health(
            host=socket.gethostname(),
            pid=os.getpid(),
            partitions=intake.partitions if intake else [],
            model=running.model if running else None,
            active=self._model.in_use,
            shadow=self._shadow.slot.in_use,
            model_problem=self._model.problem,
            shadow_problem=self._shadow.slot.problem,
            last_poll_age_s=now - intake.last_poll if intake else 0.0,
            scoring_for_s=now - min(since) if since else 0.0,
            describing_for_s=self._describer.working_for_s,
            wait_s=intake.longest_wait_s if intake else 0.0,
            busy=self._busy.share(now),
        )

    def metrics(self) -> str:
        """Return this actor's metrics as Prometheus text."""
        telemetry.WORKER_IN_FLIGHT_BYTES.set(
            self._gate.held_bytes + self._unacknowledged.held_bytes + self._decoded.held_bytes
        )
        telemetry.UNACKNOWLEDGED_SECONDS.set(self._sender.unacknowledged_for_s if self._sender else 0.0)
        telemetry.PAUSED_SECONDS.set(self._intake.paused_for_s if self._intake else 0.0)
        if (running := self._model.running) is not None:
            telemetry.GPU_MEMORY_SHORTAGES.set(running.detector.memory_shortages)
            metrics.ALARM_RATE_TARGET.set(running.detector.alarm_rate)
        metrics.SCORING_BUSY.set(self._busy.share(clock.monotonic()))
        self._show_gpu_memory()
        telemetry.QUEUE_DEPTH.labels("decode").set(self._to_decode.qsize())
        telemetry.QUEUE_DEPTH.labels("score").set(len(self._batcher))
        telemetry.QUEUE_DEPTH.labels("describe").set(len(self._describer))
        return metrics.exposition()

    def _show_gpu_memory(self) -> None:
        if self._worker.num_gpus > 0 and self._model.running is not None:
            import torch  # as the model has it already

            free_bytes, total_bytes = torch.cuda.mem_get_info()
            metrics.GPU_MEMORY_BYTES.labels("used").set(total_bytes - free_bytes)
            metrics.GPU_MEMORY_BYTES.labels("total").set(total_bytes)

    def change_model(self, model: ModelRef) -> None:
        """Load another model in the background; it takes over between two batches, if it can be loaded."""
        self._model.change(model)

    def set_model_aside(self, model: ModelRef, reason: str) -> None:
        """Show that a model is wanted and, for a reason, not loaded."""
        self._model.set_aside(model, reason)

    def change_shadow(self, model: ModelRef | None) -> None:
        """Score frames with another shadow model beside the active one, which decides; None ends that."""
        self._shadow.change(model)

    # The life of an actor

    def run(self) -> None:
        """Load and warm the model, join the group, inspect until `stop`. Raises FlawlineError when it must end.

        While no model can be used it waits for one that can.
        """
        self._model.start()
        try:
            if self._settings.kafka.exactly_once:
                # Before the model is there: it ends a dead predecessor's transaction, for which all readers wait.
                self._sender = self._once_the_broker_answers(self._new_sender)
            while not self._model.wait(MODEL_WAIT_S):
                if self._stop.is_set():
                    return
            self._model.current()
            self._shadow.start()  # after the active model, whose load it would slow
            self._work()
        finally:
            self._model.close()
            self._shadow.close()
            if self._sender:
                self._sender.close(self._worker.stop_timeout_s)

    def _work(self) -> None:
        if self._stop.is_set():
            return
        self._sender = self._sender or self._once_the_broker_answers(self._new_sender)
        if self._sender is None:
            return
        if consumer := self._once_the_broker_answers(self._new_consumer):
            self._inspect(self._sender, consumer)
        self._sender.close(self._worker.stop_timeout_s)
        if self._error:
            known = isinstance(self._error, FlawlineError)
            raise self._error if known else FlawlineError(one_line(self._error, with_type=True))

    def _restore_topics(self) -> bool:
        """Create the topics that workers write and the broker has lost; return whether there were any."""
        created = kafka_clients.ensure_topics(self._settings, WRITTEN)
        if created:
            log.error("the broker had lost its topics %s: they are made again", ", ".join(created))
        return bool(created)

    def _connect(self) -> Any:
        self._restore_topics()
        return kafka_clients.producer(self._settings, *WRITTEN, batch_size=BATCH_BYTES)

    def _connect_transactional(self) -> Any:
        """Return a client whose start ends the transactions of all earlier ones of this place. Raises FlawlineError."""
        self._restore_topics()
        kafka_clients.require_transactions(self._settings)
        client = kafka_clients.producer(
            self._settings,
            *WRITTEN,
            kind=TransactionalProducer,
            batch_size=BATCH_BYTES,
            transactional_id=rights.transactional_id(self._settings.kafka.topic_prefix, self._member),
            transaction_timeout_ms=int(self._worker.session_timeout_s * 1000),
            retry_backoff_ms=RETRY_BACKOFF_MS,
        )
        try:
            client.init_transactions()
        except KafkaError as error:
            kafka_clients.close_producer(client)
            raise FlawlineError(
                f"the broker begins no transactions for {self._member} ({one_line(error, with_type=True)}): see its "
                "log, or grant WRITE on the transactional id (`flawline topics acls --role work`)"
            ) from error
        return client

    def _is_replaced(self) -> bool:
        """Return whether another process has this worker's place in the group. Raises FlawlineError while unknown."""
        group = self._settings.topic(topics.WORKERS_GROUP)
        admin = kafka_clients.admin(self._settings)
        try:
            members = admin.describe_groups([group])[group]["members"]
        except KafkaError as error:
            raise FlawlineError(f"group {group} cannot be read ({one_line(error)}): start the broker") from error
        finally:
            admin.close()
        name = self._intake.group().member_id if self._intake else ""
        return any(member["group_instance_id"] == self._member and member["member_id"] != name for member in members)

    def _once_the_broker_answers(self, make: Callable[[], Client]) -> Client | None:
        """Return what `make` makes, however long the broker is away; None when `stop` comes first.

        An actor that starts in an outage waits here: to die of it would use up its restarts. Raises UsageError.
        """
        outage = Outage(FIRST_RETRY_S, LONGEST_RETRY_S)
        while not self._stop.is_set():
            try:
                return make()
            except UsageError:
                raise
            except FlawlineError as error:
                failure = outage.failed()
                if failure.is_reported:
                    log.warning("%s waits for the broker: %s", self._member, error)
                self._stop.wait(failure.pause_s)
        return None

    def _new_sender(self) -> Sender:
        options: dict[str, Any] = {
            "on_lost": self._reread,
            "on_refused": self._refused,
            "on_fatal": self._fail,
            "restore": self._restore_topics,
            "patience_s": self._worker.hang_timeout_s,
            "takt_s": self._worker.takt_s,
        }
        if not self._settings.kafka.exactly_once:
            return OutcomeSender(self._connect, self._unacknowledged, **options)
        return TransactionalSender(
            self._connect_transactional,
            self._unacknowledged,
            place=lambda: self._intake,
            is_replaced=self._is_replaced,
            commit_interval_s=self._worker.commit_interval_s,
            timeout_s=self._worker.session_timeout_s,
            **options,
        )

    def _new_consumer(self) -> KafkaConsumer:
        return kafka_clients.consumer(
            self._settings,
            group=topics.WORKERS_GROUP,
            group_instance_id=self._member,
            session_timeout_ms=int(self._worker.session_timeout_s * 1000),
            heartbeat_interval_ms=HEARTBEAT_MS,
        )

    def _inspect(self, sender: Sender, consumer: KafkaConsumer) -> None:
        recall = Recall(self._settings)
        self._intake = Intake(
            consumer,
            self._settings.topic("frames"),
            self._gate,
            deliver=self._to_decode.put,
            send=sender.send,
            report_expired=functools.partial(expiry.publish, self._settings),
            recall=recall,
            commit_interval_s=self._worker.commit_interval_s,
            revoke_timeout_s=self._worker.revoke_timeout_s,
            transactions=sender if isinstance(sender, TransactionalSender) else None,
        )
        polling = self._thread("intake", self._intake.run, self._stop, self._worker.stop_timeout_s)
        working = [
            *(self._thread(f"decode-{i}", self._decode_all) for i in range(self._worker.decode_threads)),
            *(self._thread(f"score-{i}", self._score_all) for i in range(self._worker.score_threads)),
            self._thread("judge", self._judge_all),
            self._thread("describe", self._describer.run),
        ]
        while polling.is_alive() and not self._ready.is_set():
            if self._intake.joined.wait(0.05):
                self._ready.set()
        polling.join()
        recall.close()
        self._ended.set()
        for _ in range(self._worker.decode_threads):
            self._to_decode.put(None)
        self._batcher.close()
        self._to_judge.close()
        self._describer.close()
        for thread in working:
            thread.join(self._worker.stop_timeout_s)

    def _thread(self, name: str, target: Callable[..., None], *arguments: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                target(*arguments)
            except Exception as error:  # a thread that dies unseen would leave its cameras without verdicts
                log.debug("thread %s ended", name, exc_info=True)
                self._fail(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _fail(self, error: Exception) -> None:
        if self._error is None and not self._ended.is_set():
            self._error = error
            log.error("%s stops: %s", self._member, one_line(error, with_type=True))
        if self._intake:
            # An error that names its reason is not a frame's doing; any other may be, as a lack of memory is.
            known = isinstance(error, FlawlineError | scoring.DetectorBroken)
            self._intake.abort(frames_to_blame=not known)
        self._stop.set()

    def _reread(self, lane: Lane) -> None:
        if self._intake:
            self._intake.reread(lane)

    def _refused(self, job: Job, outcome: Outcome, error: str) -> None:
        """Try the frame again with less, since the broker refuses one of its records for good.

        Instead of a verdict a dead letter is sent, instead of a defect one without its regions, instead of a dead
        letter one without the original value.
        """
        topic = outcome.record.topic
        log.error("partition %d offset %d: the broker refuses its record for %s: %s", job.record.partition, job.offset,
                  topic, error)  # fmt: skip
        if not self._refusals.add(job.record.partition, job.offset, topic, error):
            self._fail(FlawlineError(f"the broker refuses a record for {topic} of any size: {error}"))
        elif job.lane.abandon(job):
            self._reread(job.lane)

    # Frames

    def _decode_all(self) -> None:
        while (job := self._to_decode.get()) is not None:
            if job.lane.begin(job):
                self._decode(job)

    def _decode(self, job: Job) -> None:
        """Turn a record into pixels for the score threads, or into a dead letter.

        What `Reader` does not foresee may be our own bug, so it ends the worker; the frame is a dead letter only after
        its last attempt.
        """
        if (verdict := verdict_on(job)) is not None:
            job.decided = verdict
            telemetry.DECIDED_BEFORE.inc()
            if verdict.decision is Decision.ACCEPT:
                job.lane.complete_decided(job, defect_follows=False)
                return
        elif job.lane.owes_defect_only(job.offset):
            log.error("partition %d offset %d has a verdict that cannot be read, and no defect", job.record.partition,
                      job.offset)  # fmt: skip
            job.lane.complete_decided(job, defect_follows=False)
            return
        if job.attempt > ATTEMPT_LIMIT:
            error = (
                f"{ATTEMPT_LIMIT} workers died while this frame was in work: see their logs and the machine's memory"
            )
            self._reject(job, DeadLetterReason.KILLED_WORKER, error, None)
            return
        refusal = self._refusals.of(job.record.partition, job.offset)
        if self._settings.topic(topics.VERDICTS.name) in refusal.topics:
            self._reject(job, DeadLetterReason.BROKER_REFUSED, f"its verdict is refused: {refusal.error}", None)
            return
        started = clock.monotonic()
        try:
            picture = self._reader.read(job.record.value)
        except Rejected as rejected:
            self._reject(job, rejected.reason, str(rejected), rejected.frame)
            return
        except InterruptedError as error:
            log.info("%s", error)
            job.lane.abandon(job)
            return
        try:
            mask = self._masks.mask(picture.frame.camera, *picture.pixels.shape[:2])
        except FlawlineError as error:
            self._reject(job, DeadLetterReason.SCORING_FAILED, str(error), picture.frame)
            return
        if not self._batcher.put(_Opened(job, picture, mask, clock.monotonic() - started), picture.pixels.nbytes):
            job.lane.abandon(job)

    def _score_all(self) -> None:
        while True:
            # A frame that is scored now could not leave. The intake stops to fetch meanwhile, by its own bound.
            while not self._unacknowledged.wait_open(POLL_S) and not self._ended.is_set():
                pass
            with self._taking:  # together, so that no earlier frame is scored with a later model
                batch = self._batcher.take()
                detector = self._model.current()
            if not batch:
                return
            assert detector is not None  # an active model is replaced, never taken away
            live = []
            for opened in batch:
                if opened.job.lane.closed:
                    opened.job.lane.abandon(opened.job)
                else:
                    live.append(opened)
            if live:
                self._score(detector, live)

    def _score(self, detector: Detector, batch: list[_Opened]) -> None:
        telemetry.BATCH_SIZE.observe(len(batch))
        started_ns, started = clock.utc_ns(), clock.monotonic()
        thread = threading.get_ident()
        self._scoring_since[thread] = started
        try:
            batch, refused = _at_depth(batch, detector)
            pixels, masks = [opened.picture.pixels for opened in batch], [opened.mask for opened in batch]
            results = scoring.score_each(detector, pixels, masks) if batch else []
        finally:
            del self._scoring_since[thread]
        score_s = clock.monotonic() - started
        self._busy.add(score_s, started + score_s)
        for opened, error in refused:
            self._reject(opened.job, DeadLetterReason.UNDECODABLE, str(error), opened.picture.frame)
        for opened, result in zip(batch, results, strict=True):
            scored = _Scored(opened, result, detector, _timings(opened, started_ns, score_s))
            if not self._to_judge.put(scored, opened.picture.pixels.nbytes):
                opened.job.lane.abandon(opened.job)

    def _judge_all(self) -> None:
        # On a thread of its own, so that the next frame is scored while a verdict's regions are cut.
        while batch := self._to_judge.take():
            for scored in batch:
                if isinstance(scored.scores, Exception):
                    self._reject_scored(scored.opened, scored.scores)
                else:
                    self._judge(scored.detector, scored.opened, scored.scores, scored.timings)
                scored.opened.picture.let_go()  # what waits for its description has a bound of its own

    def _judge(self, detector: Detector, opened: _Opened, scores: Scores, timings: Timings) -> None:
        """Let a scored frame's verdict leave, and its description follow when it was not accepted.

        1. Make the verdict. A frame that it fails for, though the model is well, is a dead letter.
        2. Send it, and let the shadow model have the frame.
        3. Queue the description; the frame is finished when its defect has left too.
        """
        job, frame = opened.job, opened.picture.frame
        if job.decided is not None:
            self._judge_again(detector, opened, scores)
            return
        # 1.
        try:
            located = verdicts.locate(frame, scores, detector)
            scene = self._scenes.look(frame.camera, scores, detector)
            verdict = verdicts.verdict(frame, scores, located, detector.version, timings, clock.utc_ns(), scene)
            outcome = verdicts.verdict_outcome(job.record, verdict, self._settings.topic("verdicts"))
        except Exception as error:
            scoring.check_canary(detector)
            self._reject_scored(opened, error)
            return
        # 2.
        for stage, seconds in vars(timings).items():
            telemetry.STAGE_LATENCY.labels(stage.removesuffix("_s")).observe(seconds)
        job.lane.complete(job, outcome)
        self._score_metrics.count(verdict)
        self._quality.look(frame.camera, opened.picture.pixels)
        if job.attempt == 1:  # a suspect of an earlier death is spared what may have been its reason
            picture = opened.picture
            self._shadow.add(
                frame, job.record.partition, job.offset, picture.pixels, opened.mask, detector.version, scores,
                picture.sample_bits,
            )  # fmt: skip
        # 3.
        if located is not None:
            self._describe(Judged(job, frame, opened.picture.pixels, scores, located, detector))

    def _judge_again(self, detector: Detector, opened: _Opened, scores: Scores) -> None:
        """Let a description follow a verdict of an earlier owner. A model that now accepts has nothing to describe."""
        job, frame = opened.job, opened.picture.frame
        try:
            located = verdicts.locate(frame, scores, detector)
        except Exception as error:
            scoring.check_canary(detector)
            self._reject_scored(opened, error)
            return
        if located is None:
            self._send_bare(job, frame)
            return
        job.lane.complete_decided(job, defect_follows=True)
        self._describe(Judged(job, frame, opened.picture.pixels, scores, located, detector))

    def _send_bare(self, job: Job, frame: Frame | None) -> None:
        """Send the defect of a frame with a verdict of an earlier owner, which cannot be described."""
        running = self._model.running
        assert job.decided is not None
        assert running is not None
        try:
            frame = frame or messages.decode(Frame, job.record.value or b"")
        except SchemaError as error:  # its header names a frame that it does not hold
            log.error("partition %d offset %d has a verdict and no defect: %s", job.record.partition, job.offset, error)
            job.lane.complete_decided(job, defect_follows=False)
            return
        telemetry.UNDESCRIBED_DEFECTS.labels(frame.camera, Undescribed.DECIDED_BEFORE).inc()
        job.lane.complete_decided(job, defect_follows=True)
        job.lane.add_defect(job, self._outcome_of(job, bare_defect(frame, job.decided, running.detector)))

    def _describe(self, judged: Judged) -> None:
        refused = self._refusals.of(judged.job.record.partition, judged.job.offset).topics
        reason = Undescribed.REFUSED if self._settings.topic(topics.DEFECTS.name) in refused else None
        self._describer.add(judged, reason)

    def _defect(self, judged: Judged, regions: list[DefectRegion]) -> Outcome:
        defect = verdicts.defect(judged.frame, judged.scores, regions, judged.detector)
        if judged.job.decided is not None:
            defect = as_decided(defect, judged.job.decided)
        return self._outcome_of(judged.job, defect)

    def _outcome_of(self, job: Job, defect: Defect) -> Outcome:
        return verdicts.defect_outcome(job.record, defect, self._settings.topic("defects"), self._defect_limit)

    def _is_idle(self) -> bool:
        """Return whether no frame is between the log and its acknowledged verdict: its bytes are held until then."""
        return self._gate.held_bytes == 0

    def _reject_scored(self, opened: _Opened, error: Exception) -> None:
        self._reject(opened.job, DeadLetterReason.SCORING_FAILED, one_line(error, with_type=True), opened.picture.frame)

    def _reject(self, job: Job, reason: DeadLetterReason, error: str, frame: Frame | None) -> None:
        log.warning("partition %d offset %d: %s: %s", job.record.partition, job.offset, reason, error)
        if job.decided is not None:  # a dead letter would be a second end
            self._send_bare(job, frame)
            return
        topic = self._settings.topic(topics.DEAD_LETTERS.name)
        refused = topic in self._refusals.of(job.record.partition, job.offset).topics
        letter = dead_letter(
            job.record,
            reason,
            error,
            clock.utc_ns(),
            topic=topic,
            limit_bytes=OVERHEAD_BYTES if refused else self._dead_letter_limit,
            frame=frame,
        )
        job.lane.complete(job, letter)


def _limit_of(topic: topics.Topic, settings: Settings) -> int:
    return topic.message_limit_bytes(settings.frames.limit_bytes)


def _at_depth(batch: list[_Opened], detector: Detector) -> tuple[list[_Opened], list[tuple[_Opened, ImageError]]]:
    """Return frames in 8 bits as the model reads them, and those of another depth with what is wrong with them."""
    readable, refused = [], []
    for opened in batch:
        try:
            readable.append(replace(opened, picture=opened.picture.at_depth(detector.sample_bits)))
        except ImageError as error:
            refused.append((opened, error))
    return readable, refused


def _timings(opened: _Opened, scoring_started_ns: int, score_s: float) -> Timings:
    job = opened.job
    return Timings(
        broker_s=max(0.0, job.fetched_at * NS - job.record.timestamp * 1e-3) if job.record.timestamp > 0 else 0.0,
        decode_s=opened.decode_s,
        wait_s=max(0.0, (scoring_started_ns - job.fetched_at) * NS - opened.decode_s),
        score_s=score_s,
    )
