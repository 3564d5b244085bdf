"""The supervisor: places the actors, watches them, starts dead ones again, scales them and changes their model.

It stands in no frame's way: actors get their frames from Kafka, and go on when the supervisor is busy.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kafka.admin import MemberToRemove
from kafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from flawline import broker, clock, telemetry
from flawline.config import Settings
from flawline.errors import FlawlineError, UsageError
from workers.cluster import start_ray, stop_ray
from workers.inspector import GROUP, Health, Inspector, Load, load_detector, member_name
from workers.metrics import ActorCollector
from workers.models import ModelRef, ModelWatch
from workers.restarts import RestartBudget

__all__ = ["Supervisor", "run", "start_ray", "stop_ray"]

log = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 1.0
METRICS_TIMEOUT_S = 2.0
MODEL_WAIT_LOG_S = 30.0
ACTOR_THREADS = 8  # run, and room for questions while it runs


@dataclass(eq=False)
class _Actor:
    """One slot's actor: its Ray handle, what its `run` will return, and what it last said of itself."""

    slot: int
    handle: Any
    run: Any
    model: ModelRef
    started: float
    health: Health | None = None
    asked: tuple[Any, float] | None = None
    answered: float = 0.0
    ready: threading.Event = field(default_factory=threading.Event)
    ready_reply: Any = None


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
        self._actors: dict[int, _Actor] = {}
        self._budgets: dict[int, RestartBudget] = {}
        self._model: ModelRef | None = None
        self._proven: ModelRef | None = None
        self._model_known = threading.Event()
        self._watch: ModelWatch | None = None
        self._stopping = threading.Event()
        self._monitor: threading.Thread | None = None
        self.failed = threading.Event()
        self.error: FlawlineError | None = None

    # Life

    def start(self, stop: threading.Event | None = None) -> bool:
        """Start Ray and the actors and wait until each has its model and has joined; False when `stop` came first.

        Without `worker.model` and without an active model it waits until one is published. Raises FlawlineError.
        """
        start_ray(self._settings)
        broker.ensure_topics(self._settings)
        self._check_partitions()
        if not self._await_model(stop or threading.Event()):
            return False
        with self._lock:
            for slot in range(self._worker.actors):
                self._place(slot)
        self._monitor = threading.Thread(target=self._watch_actors, name="supervisor", daemon=True)
        self._monitor.start()
        return self._await_ready(stop or threading.Event())

    def stop(self) -> None:
        """Let every actor finish its frames, commit and leave. Their cameras stay reserved for a quick restart."""
        self._stopping.set()
        if self._watch:
            self._watch.stop()
        if self._monitor:
            self._monitor.join()
        with self._lock:
            actors, self._actors = list(self._actors.values()), {}
        self._retire(actors)
        telemetry.ACTORS.set(0)

    def check(self) -> None:
        """Raise the error for which the supervisor gave up, if it did."""
        if self.error:
            raise self.error

    def scale(self, count: int) -> None:
        """Run `count` actors. Those that go finish first, and their cameras move at once. Raises FlawlineError."""
        if count < 1:
            raise UsageError(f"{count} actors: one is needed at least")
        with self._lock:
            going = [self._actors.pop(slot) for slot in sorted(self._actors) if slot >= count]
            for slot in range(count):
                if slot not in self._actors:
                    self._place(slot)
        self._retire(going)
        self._release_members([actor.slot for actor in going])
        self._await_ready(threading.Event())

    # Questions

    def actor_pids(self) -> dict[int, int]:
        """Process id of each slot's actor that has answered."""
        with self._lock:
            return {slot: actor.health.pid for slot, actor in self._actors.items() if actor.health}

    def health(self) -> dict[int, Health]:
        """What each slot's actor last said of itself."""
        with self._lock:
            return {slot: actor.health for slot, actor in self._actors.items() if actor.health}

    def metrics(self) -> dict[str, str]:
        """Prometheus text of each actor that answers in time, by slot."""
        import ray
        from ray.exceptions import RayError

        with self._lock:
            asked = {str(slot): actor.handle.metrics.remote() for slot, actor in self._actors.items()}
        deadline = self._now() + METRICS_TIMEOUT_S
        answers = {}
        for slot, reply in asked.items():
            try:
                answers[slot] = ray.get(reply, timeout=max(0.0, deadline - self._now()))
            except RayError:
                log.debug("actor %s gave no metrics", slot)
        return answers

    # Start

    def _check_partitions(self) -> None:
        client = broker.admin(self._settings)
        try:
            names = [self._settings.topic(name) for name in ("frames", "verdicts", "defects")]
            counts = {each["name"]: len(each["partitions"]) for each in client.describe_topics(names)}
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
        if self._worker.model:
            self._model = ModelRef(self._worker.model)
            return True
        self._watch = ModelWatch(self._settings, self._on_model)
        self._watch.start(self._worker.start_timeout_s)
        next_log = self._now()
        while not self._model_known.wait(0.1):
            if stop.is_set() or self._stopping.is_set():
                return False
            if self._now() >= next_log:
                log.warning("no model is active yet: run `flawline publish MODEL` or set worker.model")
                next_log = self._now() + MODEL_WAIT_LOG_S
        return True

    def _on_model(self, model: ModelRef) -> None:
        with self._lock:
            if model == self._model:
                return
            log.info("active model: %s", model)
            self._model = model
            self._model_known.set()
            for actor in self._actors.values():
                actor.model = model
                actor.handle.change_model.remote(model)

    def _place(self, slot: int) -> None:
        """Start a slot's actor, with the model that worked last: a broken new one must not keep it from coming back."""
        import ray

        assert self._model is not None
        first = self._proven or self._model
        actor_class = ray.remote(Inspector).options(
            num_cpus=self._worker.num_cpus,
            num_gpus=self._worker.num_gpus,
            max_restarts=0,  # the supervisor restarts, at a bounded rate
            max_task_retries=0,
            max_concurrency=ACTOR_THREADS,
        )
        handle: Any = actor_class.remote(self._settings, slot, first, self._load)
        actor = _Actor(slot, handle, handle.run.remote(), self._model, self._now(), answered=self._now())
        actor.ready_reply = handle.ready.remote(self._worker.start_timeout_s)
        if first != self._model:
            handle.change_model.remote(self._model)
        self._actors[slot] = actor

    def _await_ready(self, stop: threading.Event) -> bool:
        while not (stop.is_set() or self._stopping.is_set()):
            self.check()
            with self._lock:
                waiting = [actor for actor in self._actors.values() if not actor.ready.is_set()]
            if not waiting:
                return True
            waiting[0].ready.wait(0.1)
        return False

    # Watch

    def _watch_actors(self) -> None:
        try:
            while not self._stopping.is_set():
                self._watch_once()
        except FlawlineError as error:
            self._give_up(error)
        except Exception as error:  # without its supervisor the line would run on unwatched
            log.debug("supervisor ended", exc_info=True)
            self._give_up(FlawlineError(f"supervisor failed: {type(error).__name__}: {error}"))

    def _give_up(self, error: FlawlineError) -> None:
        log.error("%s", error)
        self.error = error
        self.failed.set()

    def _watch_once(self) -> None:
        import ray

        with self._lock:
            actors = list(self._actors.values())
            for actor in actors:
                self._ask(actor)
        # Actors are answers too: a dead one's `run` fails within milliseconds, which ends the wait.
        replies: dict[Any, Callable[[], None]] = {}
        for actor in actors:
            replies[actor.run] = partial(self._on_end, actor)
            if actor.asked:
                replies[actor.asked[0]] = partial(self._on_health, actor)
            if actor.ready_reply is not None:
                replies[actor.ready_reply] = partial(self._on_ready, actor)
        if not replies:
            self._stopping.wait(HEALTH_INTERVAL_S)
            return
        done, _ = ray.wait(list(replies), num_returns=1, timeout=HEALTH_INTERVAL_S / 2)
        for reply in done:
            replies[reply]()
        telemetry.ACTORS.set(sum(actor.ready.is_set() for actor in actors))

    def _ask(self, actor: _Actor) -> None:
        now = self._now()
        if actor.asked is None and now - actor.answered >= (HEALTH_INTERVAL_S if actor.health else 0):
            actor.asked = actor.handle.health.remote(), now
        if actor.ready.is_set():
            silent_s = now - actor.answered if actor.asked else 0.0
            health = actor.health
            stuck_s = max(silent_s, health.last_poll_age_s, health.scoring_for_s) if health else silent_s
            if stuck_s > self._worker.hang_timeout_s:
                log.error("actor %d hangs for %.0f s and is replaced", actor.slot, stuck_s)
                self._kill(actor)
        elif now - actor.started > self._worker.start_timeout_s:
            log.error("actor %d was not ready after %.0f s and is replaced", actor.slot, now - actor.started)
            self._kill(actor)

    def _kill(self, actor: _Actor) -> None:
        import ray

        actor.answered = actor.started = self._now()
        actor.health = None
        ray.kill(actor.handle)

    def _on_health(self, actor: _Actor) -> None:
        import ray
        from ray.exceptions import RayError

        assert actor.asked is not None
        reply, _ = actor.asked
        actor.asked = None
        actor.answered = self._now()
        try:
            actor.health = ray.get(reply)
        except RayError:
            return  # its `run` says why
        if actor.health.model is not None:
            self._proven = actor.health.model

    def _on_ready(self, actor: _Actor) -> None:
        import ray
        from ray.exceptions import RayError

        reply, actor.ready_reply = actor.ready_reply, None
        try:
            if ray.get(reply):
                actor.ready.set()
        except RayError:
            return  # its `run` says why

    def _on_end(self, actor: _Actor) -> None:
        """An actor's `run` is over though nobody asked: it failed or died."""
        with self._lock:
            if self._actors.get(actor.slot) is not actor or self._stopping.is_set():
                return
            reason = _reason_of(actor.run)
            if isinstance(reason, UsageError):
                raise reason
            budget = self._budgets.setdefault(
                actor.slot, RestartBudget(self._worker.restart_limit, self._worker.restart_window_s, self._now)
            )
            if not budget.allow():
                raise FlawlineError(
                    f"actor {actor.slot} ended {self._worker.restart_limit + 1} times within "
                    f"{self._worker.restart_window_s:g} s, lastly: {reason}"
                )
            log.error("actor %d ended and is started again: %s", actor.slot, reason)
            telemetry.ACTOR_RESTARTS.inc()
            _discard(actor)
            self._place(actor.slot)

    # End

    def _retire(self, actors: Sequence[_Actor]) -> None:
        import ray

        for actor in actors:
            actor.handle.stop.remote()
        if actors:
            ray.wait(
                [actor.run for actor in actors], num_returns=len(actors), timeout=2 * self._worker.stop_timeout_s + 10
            )
        for actor in actors:
            _discard(actor)

    def _release_members(self, slots: Sequence[int]) -> None:
        """Take static members out of the group: by themselves they keep their cameras until their session ends."""
        if not slots:
            return
        client = broker.admin(self._settings)
        try:
            client.remove_group_members(
                f"{self._settings.kafka.topic_prefix}{GROUP}",
                [MemberToRemove(group_instance_id=member_name(self._settings, slot)) for slot in slots],
            )
        except KafkaError as error:
            log.warning("cameras of stopped actors move only after %g s: %s", self._worker.session_timeout_s, error)
        finally:
            client.close()


def run(settings: Settings, stop: threading.Event, on_ready: Callable[[], None] | None = None) -> None:
    """Run this machine's workers until `stop`. Raises FlawlineError when they cannot go on."""
    supervisor = Supervisor(settings)
    registry = CollectorRegistry()
    registry.register(ActorCollector(supervisor.metrics))
    endpoint = telemetry.serve(settings.metrics.workers_port, settings.metrics.host, registry)
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


def _reason_of(run: Any) -> Exception:
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError

    try:
        ray.get(run)
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else FlawlineError(str(error).splitlines()[-1])
    except RayActorError:
        return FlawlineError("its process died")
    except RayError as error:
        return FlawlineError(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return FlawlineError("it returned without being asked to")


def _discard(actor: _Actor) -> None:
    import ray

    ray.kill(actor.handle)
