"""The supervisor: places the actors, watches them, starts dead ones again, scales them and changes their model.

It stands in no frame's way: actors get their frames from Kafka, and go on when the supervisor is busy.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from kafka.admin import MemberToRemove
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from flawline import clock, kafka_clients, telemetry, topics
from flawline.errors import FlawlineError, UsageError
from flawline.field_limits import PROSE
from flawline.messages import ModelReport
from flawline.ray_session import stop_ray
from flawline.restarts import RestartLimit
from flawline.settings.tree import Settings
from workers.active_model import ACTIVE, SHADOW, ModelRef, ModelWatch
from workers.actors import Actor
from workers.autoscale import ActorCount, Demand, bounds
from workers.camera_masks import CameraMasks
from workers.cluster import check_room, start_ray
from workers.inspector import Health, Load, load_detector, member_name
from workers.metrics import ActorCollector
from workers.model_reports import ModelReporter
from workers.model_store import COPIES, ModelStore
from workers.suspects import Note

__all__ = ["Supervisor", "run", "start_ray", "stop_ray"]

log = logging.getLogger(__name__)

Reached = tuple[tuple[int, int, int | None, int], ...]
"""For each partition its committed offset, the suspect in work and its attempt."""

MODEL_DEATHS_LIMIT = 2
"""Processes that may die while they are to load a model until it is set aside. A judgement, not measured."""

SHADOW_DEATHS_LIMIT = 2
"""Processes with a shadow model that may die until it is set aside: it must never take the line with it.

A judgement, not measured: a single death may have another reason.
"""

WATCH_S = 0.25  # a judgement, not measured
METRICS_TIMEOUT_S = 2.0  # a judgement, not measured
MODEL_WAIT_LOG_S = 30.0  # a judgement, not measured


class Supervisor:
    """The actors of this process. `start` returns when all of them inspect; `failed` is set when it gave up."""

    def __init__(
        self, settings: Settings, *, load: Load = load_detector, now: clock.Monotonic = clock.monotonic
    ) -> None:
        self._settings = settings
        self._worker = settings.worker
        self._load = load
        self._now = now
        self._lock = threading.RLock()
        self._actors: dict[int, Actor] = {}
        self._limits: dict[int, RestartLimit] = {}
        self._cameras: dict[int, list[int]] = {}
        self._reached: dict[int, Reached] = {}
        self._model: ModelRef | None = None
        self._proven: ModelRef | None = None
        self._shadow: ModelRef | None = None
        self._shadow_deaths = 0
        self._model_deaths = 0
        self._reporter = ModelReporter(settings, self._reports)
        self._model_known = threading.Event()
        self._models: ModelWatch | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._count = ActorCount(bounds(settings), now) if settings.worker.actors == "auto" else None
        self._changing: threading.Thread | None = None
        self.failed = threading.Event()
        self.error: FlawlineError | None = None

    # Life

    def start(self, stop: threading.Event | None = None) -> bool:
        """Start Ray and the actors and wait until each has its model and has joined; False when `stop` came first.

        It waits for a broker that is away, and, without `worker.model`, until a model is active. Raises FlawlineError.
        """
        stop = stop or threading.Event()
        CameraMasks(self._settings.cameras)  # a mask that cannot be used is reported here, not by every actor
        start_ray(self._settings)
        if stop.is_set():
            return False
        if not kafka_clients.await_broker(self._prepare_topics, kafka_clients.broker_outage(), stop):
            return False
        if not self._await_model(stop):
            return False
        first = bounds(self._settings).fewest
        check_room(self._settings, first)
        self._reporter.start()
        with self._lock:
            for slot in range(first):
                self._place(slot)
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()
        return self._await_ready(stop)

    def stop(self) -> None:
        """Let every actor finish its frames, commit and leave. Their cameras stay reserved for a quick restart."""
        self._stopping.set()
        if self._models:
            self._models.stop()
        if self._watcher:
            self._watcher.join()
        if self._changing:
            self._changing.join()
        with self._lock:
            actors, self._actors = list(self._actors.values()), {}
        self._retire(actors)
        self._reporter.stop()
        telemetry.ACTORS.set(0)

    def check(self) -> None:
        """Raise the error for which the supervisor gave up, if it did."""
        if self.error:
            raise self.error

    def scale(self, count: int) -> None:
        """Run `count` actors. Those that go finish first, and their cameras move at once. Raises FlawlineError."""
        if count < 1:
            raise UsageError(f"{count} actors are too few: run at least one")
        check_room(self._settings, count)
        self._change_count(count)
        self._await_ready(threading.Event())

    def _change_count(self, count: int) -> None:
        with self._lock:
            going = [self._actors.pop(slot) for slot in sorted(self._actors) if slot >= count]
            for slot in range(count):
                if slot not in self._actors:
                    self._place(slot)
        self._retire(going)
        self._release_members([actor.slot for actor in going])

    # Questions

    def health(self) -> dict[int, Health]:
        """Return the last health report of each slot's actor."""
        with self._lock:
            return {slot: actor.health for slot, actor in self._actors.items() if actor.health}

    def actor_pids(self) -> dict[int, int]:
        """Return the process id of each slot's actor that has answered."""
        return {slot: health.pid for slot, health in self.health().items()}

    def metrics(self) -> dict[str, str]:
        """Return the Prometheus text of each actor that answers in time, by slot."""
        import ray
        from ray.exceptions import RayError

        with self._lock:
            asked = {str(slot): actor.metrics_reply() for slot, actor in self._actors.items()}
        deadline = self._now() + METRICS_TIMEOUT_S
        answers = {}
        for slot, reply in asked.items():
            try:
                answers[slot] = ray.get(reply, timeout=max(0.0, deadline - self._now()))
            except RayError:
                log.debug("actor %s gave no metrics", slot)
        return answers

    # Start

    def _prepare_topics(self) -> None:
        kafka_clients.require_transactions(self._settings)
        kafka_clients.ensure_topics(self._settings)
        self._check_partitions()

    def _check_partitions(self) -> None:
        client = kafka_clients.admin(self._settings)
        try:
            names = [self._settings.topic(name) for name in ("frames", "verdicts", "defects")]
            counts = {topic["name"]: len(topic["partitions"]) for topic in client.describe_topics(names)}
        except KafkaError as error:
            raise FlawlineError(f"topics cannot be described on {self._settings.bootstrap_servers}: {error}") from error
        finally:
            client.close()
        frames = counts[names[0]]
        for name in names[1:]:
            if counts[name] < frames:
                raise FlawlineError(
                    f"topic {name} has {counts[name]} partitions and {names[0]} has {frames}: give it as many, "
                    "a verdict goes to its frame's partition number"
                )

    def _await_model(self, stop: threading.Event) -> bool:
        self._models = ModelWatch(self._settings, self._on_model)
        if self._worker.model:
            self._model = ModelRef(self._worker.model)
            self._models.start()
            return True
        self._models.start()
        self._models.catch_up(self._worker.start_timeout_s)
        self._use_last_good()
        next_log = self._now()
        while not self._model_known.wait(0.1):
            if stop.is_set():
                return False
            if self._now() >= next_log:
                log.warning("no model is active yet: run `flawline publish MODEL` or set worker.model")
                next_log = self._now() + MODEL_WAIT_LOG_S
        return True

    def _use_last_good(self) -> None:
        """Use the model that worked last on this machine when none is announced, as on a broker with an empty disk."""
        last = self._last_good()
        with self._lock:
            if self._model is None and last is not None:
                log.error("no model is active: %s is used, which worked last here: publish a model", last)
                self._model = last
                self._model_known.set()

    def _last_good(self) -> ModelRef | None:
        stored = ModelStore(self._settings.data_dir / COPIES, ACTIVE).last_good()
        return stored.model if stored else None

    def _on_model(self, role: str, model: ModelRef | None) -> None:
        with self._lock:
            if role == SHADOW:
                self._change_shadow(None if model == self._model else model)
            elif model is not None and not self._worker.model:
                log.info("active model: %s", model)
                self._model, self._model_deaths = model, 0
                self._model_known.set()
                for actor in self._actors.values():
                    actor.change_model(model)
                if model == self._shadow:  # it has been promoted
                    self._change_shadow(None)

    def _change_shadow(self, model: ModelRef | None) -> None:
        if model != self._shadow:
            log.info("shadow model: %s", model or "none")
        self._shadow, self._shadow_deaths = model, 0
        for actor in self._actors.values():
            actor.change_shadow(model)

    def _reports(self) -> list[ModelReport]:
        """Return what each actor runs, as it said last."""
        now_ns = clock.utc_ns()
        return [
            ModelReport(
                member=member_name(self._settings, slot),
                host=health.host,
                pid=health.pid,
                at=now_ns,
                active=health.active,
                shadow=health.shadow,
                problem=PROSE.fitted(problem) if (problem := health.model_problem or health.shadow_problem) else None,
            )
            for slot, health in self.health().items()
        ]

    def _place(self, slot: int) -> None:
        """Start a slot's actor with the model that worked last, since a new one may be broken; change it afterwards."""
        assert self._model is not None
        is_deadly = self._model_deaths >= MODEL_DEATHS_LIMIT
        first = self._proven or (is_deadly and self._last_good()) or self._model
        self._actors[slot] = Actor(self._settings, slot, first, self._load, self._now)
        if first != self._model and is_deadly:
            self._actors[slot].set_model_aside(self._model, f"{self._model_deaths} processes died that were to load it")
        elif first != self._model:
            self._actors[slot].change_model(self._model)
        if self._shadow and self._shadow_deaths < SHADOW_DEATHS_LIMIT:
            self._actors[slot].change_shadow(self._shadow)

    def _await_ready(self, stop: threading.Event) -> bool:
        while not (stop.is_set() or self._stopping.is_set()):
            self.check()
            with self._lock:
                if all(actor.is_ready for actor in self._actors.values()):
                    return True
            self.failed.wait(0.05)
        return False

    # Watch

    def _watch(self) -> None:
        try:
            while not self._stopping.is_set():
                self._watch_once()
        except FlawlineError as error:
            self._give_up(error)
        except Exception as error:  # without its supervisor the line would run on unwatched
            log.debug("supervisor ended", exc_info=True)
            self._give_up(FlawlineError(f"supervisor failed: {type(error).__name__}: {error}"))

    def _give_up(self, error: FlawlineError) -> None:
        self.error = error
        self.failed.set()

    def _watch_once(self) -> None:
        import ray

        with self._lock:
            for actor in self._actors.values():
                actor.ask()
            owners = {reply: actor for actor in self._actors.values() for reply in actor.pending}
        if not owners:
            self._stopping.wait(WATCH_S)
            return
        done, _ = ray.wait(list(owners), num_returns=1, timeout=WATCH_S)
        reached = {
            owners[reply].slot: self._reached_by(owners[reply].slot) for reply in done if reply == owners[reply].run
        }
        with self._lock:
            for reply in done:
                if owners[reply].take(reply):
                    self._on_end(owners[reply], reached[owners[reply].slot])
            for actor in self._actors.values():
                if actor.health and actor.health.partitions:
                    self._cameras[actor.slot] = actor.health.partitions
                if why := actor.stuck_for():
                    log.error("actor %d %s and is ended", actor.slot, why)
                    actor.kill()
                else:
                    self._proven = actor.working_model or self._proven
            telemetry.ACTORS.set(sum(actor.is_ready for actor in self._actors.values()))
        self._follow_load()

    def _follow_load(self) -> None:
        """Change the number of actors where the load asks for it, beside the watch, which goes on meanwhile."""
        if self._count is None or (self._changing and self._changing.is_alive()):
            return
        with self._lock:
            count, is_settled = len(self._actors), all(actor.is_ready for actor in self._actors.values())
        demand = Demand.of(self.health().values())
        if demand is None or not is_settled:
            return
        wanted = self._count.next(count, demand)
        if wanted == count:
            return
        try:
            check_room(self._settings, wanted)
        except UsageError as error:
            log.warning("%d actors instead of %d would help: %s", wanted, count, error)
            return
        log.info(
            "%d actors instead of %d: frames wait for %.1f s, and the actors score for %.0f %% of the time",
            wanted, count, demand.wait_s, 100 * demand.busy,
        )  # fmt: skip
        self._changing = threading.Thread(target=self._change_count, args=(wanted,), name="scale", daemon=True)
        self._changing.start()

    def _reached_by(self, slot: int) -> Reached:
        """Return how far the group is with the partitions that a slot's actor had; () when the broker does not say.

        A suspect's attempt counts as a step forward: its last one ends in a dead letter. Of an actor that died before
        it told its partitions, all are meant.
        """
        group = f"{self._settings.kafka.topic_prefix}{topics.WORKERS_GROUP}"
        frames = self._settings.topic("frames")
        asked = [TopicPartition(frames, partition) for partition in self._cameras.get(slot, [])]
        try:
            client = kafka_clients.admin(self._settings)
            try:
                offsets = client.list_group_offsets({group: asked or None})[group]
            finally:
                client.close()
        except (KafkaError, FlawlineError) as error:
            log.debug("offsets of actor %d are not known: %s", slot, error)
            return ()
        notes = [
            (place.partition, at.offset, Note.of(at.metadata)) for place, at in offsets.items() if place.topic == frames
        ]
        return tuple(sorted((number, offset, note.trying, note.attempt) for number, offset, note in notes))

    def _on_end(self, actor: Actor, reached: Reached) -> None:
        """Start an actor again that ended though nobody asked, unless it dies too often without getting anywhere."""
        if self._actors.get(actor.slot) is not actor or self._stopping.is_set():
            return
        reason = actor.reason()
        if isinstance(reason, FlawlineError) and self._proven is None:
            raise reason  # nothing has worked yet, so trying again would only hide the reason
        if reached and reached != self._reached.get(actor.slot):
            # A frame that kills its worker takes some restarts, and must not take the other cameras with it.
            self._limits.pop(actor.slot, None)
            self._reached[actor.slot] = reached
        limit = self._limits.setdefault(
            actor.slot, RestartLimit(self._worker.restart_limit, self._worker.restart_window_s, clock=self._now)
        )
        why = reason or "its process died"
        if not limit.allows():
            raise FlawlineError(
                f"actor {actor.slot} ended {self._worker.restart_limit + 1} times within "
                f"{self._worker.restart_window_s:g} s, lastly: {why}"
            )
        log.error("actor %d ended and is started again: %s", actor.slot, why)
        telemetry.ACTOR_RESTARTS.inc()
        actor.kill()
        is_known = actor.health is not None and actor.health.model_problem is not None
        if reason is None and actor.working_model != self._model and not is_known:
            self._model_deaths += 1
        if reason is None and actor.has_shadow:
            self._shadow_deaths += 1
            if self._shadow_deaths == SHADOW_DEATHS_LIMIT:
                log.error(
                    "shadow model %s is set aside: %d processes died that had it; publish it again to go on with it",
                    self._shadow,
                    SHADOW_DEATHS_LIMIT,
                )
        self._place(actor.slot)

    # End

    def _retire(self, actors: Sequence[Actor]) -> None:
        import ray

        # One that still loads its model has no frames, and would not hear that it is to stop.
        working = [actor for actor in actors if actor.is_ready]
        for actor in working:
            actor.stop()
        patience_s = 2 * self._worker.stop_timeout_s + 5  # `run` drains for one such time, then closes within another
        if working:
            ray.wait([actor.run for actor in working], num_returns=len(working), timeout=patience_s)
        for actor in actors:
            actor.kill()

    def _release_members(self, slots: Sequence[int]) -> None:
        """Remove static members from the group: otherwise they keep their cameras until their session ends."""
        if not slots:
            return
        client = kafka_clients.admin(self._settings)
        try:
            client.remove_group_members(
                f"{self._settings.kafka.topic_prefix}{topics.WORKERS_GROUP}",
                [MemberToRemove(group_instance_id=member_name(self._settings, slot)) for slot in slots],
            )
        except KafkaError as error:
            log.warning("cameras of stopped actors move only after %g s: %s", self._worker.session_timeout_s, error)
        finally:
            client.close()


def run(settings: Settings, stop: threading.Event, on_ready: Callable[[], None] | None = None) -> None:
    """Run this machine's workers until `stop`. Raises FlawlineError when they cannot go on."""
    supervisor = Supervisor(settings)
    metrics = ActorCollector(supervisor.metrics, settings.worker.takt_s)
    endpoint = telemetry.serve(settings.metrics.workers_port, settings.metrics.host, metrics)
    try:
        if supervisor.start(stop) and on_ready:
            on_ready()
        while not stop.is_set() and not supervisor.failed.wait(0.2):
            pass
        supervisor.check()
    finally:
        supervisor.stop()
        endpoint.close()
        stop_ray()
