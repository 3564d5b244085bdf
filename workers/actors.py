"""An inspector as a Ray actor in a process of its own, and the handle that the supervisor holds."""

from __future__ import annotations

import logging
from typing import Any

from flawline import clock
from flawline.errors import FlawlineError, one_line
from flawline.logs import configure_logging
from flawline.private_files import keep_files_private
from flawline.settings.tree import Settings
from workers.active_model import ModelRef
from workers.inspector import Health, Inspector, Load, member_name

log = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 1.0  # a judgement, not measured
THREADS = 8  # `run`, and room for questions while it runs


class InspectorActor(Inspector):
    """The class that Ray starts."""

    def __init__(self, settings: Settings, slot: int, member: str, model: ModelRef, load: Load) -> None:
        keep_files_private()  # a cluster that others started has an umask of its own
        configure_logging(settings, f"actor-{slot}")
        super().__init__(settings, member, model, load)


class Actor:
    """The actor of one slot: what it runs, the questions that are open and its last answer. Not thread-safe.

    `pending` are the Ray replies to wait for; `take` is told which of them came.
    """

    def __init__(self, settings: Settings, slot: int, model: ModelRef, load: Load, now: clock.Monotonic) -> None:
        import ray

        worker = settings.worker
        actor_class: Any = ray.remote(InspectorActor).options(
            num_cpus=worker.num_cpus,
            num_gpus=worker.num_gpus,
            scheduling_strategy="SPREAD",  # a node that dies takes few cameras with it
            max_restarts=0,  # the supervisor restarts, at a bounded rate
            max_task_retries=0,
            max_concurrency=THREADS,
        )
        self.slot = slot
        self.health: Health | None = None
        self.is_ready = False
        self.has_shadow = False
        self._first_model = model
        self._worker = worker
        self._now = now
        self._handle = actor_class.remote(settings, slot, member_name(settings, slot), model, load)
        self._run = self._handle.run.remote()
        self._ready: Any = self._handle.ready.remote(worker.start_timeout_s)
        self._health_reply: Any = None
        self._started = self._answered = now()

    # Commands

    def change_model(self, model: ModelRef) -> None:
        """Make the actor load another model in the background."""
        self._handle.change_model.remote(model)

    def set_model_aside(self, model: ModelRef, reason: str) -> None:
        """Make the actor show that a model is wanted and, for a reason, not loaded."""
        self._handle.set_model_aside.remote(model, reason)

    def change_shadow(self, model: ModelRef | None) -> None:
        """Make the actor score frames with another shadow model, or with none."""
        self.has_shadow = model is not None
        self._handle.change_shadow.remote(model)

    def stop(self) -> None:
        """Ask the actor to finish."""
        self._handle.stop.remote()

    def kill(self) -> None:
        """End the actor's process now."""
        import ray

        ray.kill(self._handle)

    def metrics_reply(self) -> Any:
        """Ask for the actor's metrics and return the Ray reply."""
        return self._handle.metrics.remote()

    # Watching

    @property
    def run(self) -> Any:
        """The Ray reply that comes when the actor has ended, for whatever reason."""
        return self._run

    @property
    def pending(self) -> list[Any]:
        """Replies that are awaited, `run` among them: a dead actor's fails within milliseconds."""
        return [reply for reply in (self._run, self._ready, self._health_reply) if reply is not None]

    @property
    def working_model(self) -> ModelRef | None:
        """The model that the actor is known to have loaded."""
        if self.health and self.health.model:
            return self.health.model
        return self._first_model if self.is_ready else None

    def ask(self) -> None:
        """Ask for the actor's health, unless an answer is awaited or came less than HEALTH_INTERVAL_S ago."""
        due = self._answered + (HEALTH_INTERVAL_S if self.health else 0)
        if self._health_reply is None and self._now() >= due:
            self._health_reply = self._handle.health.remote()

    def stuck_for(self) -> str | None:
        """Return why the actor should be replaced although it lives; None when it is fine."""
        now = self._now()
        if self.health and self.health.model is None and self.health.model_problem:
            self._started = now  # it waits for a model that can be used
        if not self.is_ready:
            waited_s = now - self._started
            return f"is not ready after {waited_s:.0f} s" if waited_s > self._worker.start_timeout_s else None
        health = self.health
        ages_s = {
            "does not answer": now - self._answered if self._health_reply is not None else 0.0,
            "does not poll": health.last_poll_age_s if health else 0.0,
            "scores one batch": health.scoring_for_s if health else 0.0,
            "describes one frame": health.describing_for_s if health else 0.0,
        }
        what, longest_s = max(ages_s.items(), key=lambda item: item[1])
        return f"{what} for {longest_s:.0f} s" if longest_s > self._worker.hang_timeout_s else None

    def take(self, reply: Any) -> bool:
        """Take one of the pending replies that has come; return True when it says that the actor has ended."""
        import ray
        from ray.exceptions import RayError

        if reply == self._run:
            return True
        try:
            if reply == self._ready:
                self._ready = None
                self.is_ready = bool(ray.get(reply))
                if not self.is_ready:
                    self._ready = self._handle.ready.remote(self._worker.start_timeout_s)
            else:
                self._health_reply = None
                self._answered = self._now()
                self.health = ray.get(reply)
        except RayError:
            log.debug("actor %d did not answer, the reply of its run says why", self.slot)
        return False

    def reason(self) -> Exception | None:
        """Return why the actor ended: the error of its `run`, None when its process died."""
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            ray.get(self._run)
        except RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else FlawlineError(str(error).splitlines()[-1])
        except RayActorError:
            return None
        except RayError as error:
            return FlawlineError(one_line(error, with_type=True))
        return FlawlineError("it returned without being asked to")
