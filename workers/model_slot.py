"""The model of one role in an inspector: the one in use, the one that is wanted, and the last good one."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flawline import clock, telemetry
from flawline.backoff import Backoff
from flawline.errors import FlawlineError, one_line
from flawline.messages import RunningModel
from flawline.redaction import redact
from workers import scoring
from workers.active_model import ACTIVE, ModelRef
from workers.model_store import ModelStore

if TYPE_CHECKING:
    from scorer.detector import Detector

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Pauses between attempts to load a model: a bucket that is back is used within a minute. Not measured."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to score; `since` is when it came into use, in nanoseconds UTC."""

    model: ModelRef
    detector: Detector
    since: int


class ModelSlot:
    """Loads the wanted model on a thread of its own; it takes over at the next call of `current`.

    A wanted model that cannot be loaded is tried again with growing pauses. Meanwhile the running one stays. When none
    runs yet, the last good model of this machine runs instead; without one, nothing runs until the wanted model loads
    or another is wanted.
    """

    def __init__(
        self,
        role: str,
        wanted: ModelRef | None,
        load: Callable[[Path], Detector],
        store: ModelStore,
        *,
        pauses: Backoff | None = None,
        now: clock.Monotonic = clock.monotonic,
        now_ns: clock.UtcNs = clock.utc_ns,
    ) -> None:
        self._role = role
        self._first = self._wanted = wanted
        self._load = load
        self._store = store
        self._pauses = pauses or Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._now = now
        self._now_ns = now_ns
        self._changed = threading.Condition()  # of a lock that its holder may take again
        self._next: Loaded | None = None
        self._retry_at = 0.0
        self._refused: ModelRef | None = None
        self._closed = False
        self.running: Loaded | None = None
        self.problem: str | None = None

    def start(self) -> None:
        """Begin to load."""
        threading.Thread(target=self._load_all, name=f"model-load-{self._role}", daemon=True).start()

    def close(self) -> None:
        """Load nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is a model to score with; return False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._newest is not None, timeout_s)

    def change(self, model: ModelRef | None) -> None:
        """Want a model, which is loaded in the background; None wants none, and there is none from now on.

        A model that is wanted already and cannot be used is tried again at once: it may have been published again.
        """
        with self._changed:
            self._wanted = model
            if self._next and self._next.model != model:
                self._next = None
            self._retry_at = 0.0
            self._pauses.reset()
            if model is None or (self.running and self.running.model == model):
                self._set_problem(None)
            if model is None and self.running:
                self._take_over(None)
            self._changed.notify_all()

    def set_aside(self, model: ModelRef, reason: str) -> None:
        """Want a model without loading it, because its load may end this process; the last good one runs instead.

        It is tried again when it, or another one, is wanted by `change`.
        """
        with self._changed:
            self._wanted = model
            self._retry_at = math.inf
            self._set_problem(f"{self._role} model {model} is set aside: {reason}")

    def current(self) -> Detector | None:
        """Return the model to score the next batch with, None when there is none."""
        with self._changed:
            following, self._next = self._next, None
            if following:
                self._take_over(replace(following, since=self._now_ns()))
            return self.running.detector if self.running else None

    @property
    def in_use(self) -> RunningModel | None:
        """The version in use, and since when."""
        running = self.running
        return RunningModel(running.detector.version, running.since) if running else None

    @property
    def waits(self) -> bool:
        """Whether a loaded model waits for the next batch."""
        return self._next is not None

    @property
    def _newest(self) -> Loaded | None:
        return self._next or self.running

    def _take_over(self, following: Loaded | None) -> None:
        version = following.detector.version if following else None
        if self.running and self.running.detector.version != version:
            telemetry.MODEL_INFO.remove(self.running.detector.version, self._role)
        if following:
            telemetry.MODEL_INFO.labels(version, self._role).set(1)
            log.info("%s model %s is in use", self._role, following.model)
        self.running = following

    # The thread that loads

    def _load_all(self) -> None:
        while (model := self._due()) is not None:
            try:
                loaded = self._loaded(model)
            except Exception as error:  # whatever is wrong with the wanted model, the running one must go on
                self._refuse(model, error)
                continue
            with self._changed:
                if self._wanted != model and (self._role != ACTIVE or self._newest is not None):
                    continue  # another one is wanted meanwhile, or none
                self._next = loaded
                if self._role != ACTIVE:  # what decides nothing need not wait for the end of a batch
                    self.current()
                if self._wanted == model:
                    self._set_problem(None)
                    self._pauses.reset()
                self._changed.notify_all()

    def _due(self) -> ModelRef | None:
        """Wait until a model is to be loaded, and return it; None when the slot is closed."""
        with self._changed:
            while not self._closed:
                first, self._first = self._first, None
                if first is not None:  # loaded in any case: another one that is wanted by now may not be usable
                    return first
                wait_s = self._retry_at - self._now()
                if self._wanted is None or (self._newest and self._newest.model == self._wanted):
                    self._changed.wait()
                elif wait_s > 0:
                    self._changed.wait(min(wait_s, threading.TIMEOUT_MAX))
                else:
                    return self._wanted
            return None

    def _loaded(self, model: ModelRef) -> Loaded:
        """Return a model from its copy on this machine. A copy that does not verify is made anew once."""
        folder = self._store.fetch(model)
        try:
            loaded = self._verified(model, folder)
        except FlawlineError:
            folder = self._store.fetch(model, anew=True)
            loaded = self._verified(model, folder)
        self._store.keep(ModelRef(model.uri, loaded.detector.version), folder)
        return loaded

    def _verified(self, model: ModelRef, folder: Path) -> Loaded:
        detector = self._load(folder)
        if model.version is not None and detector.version != model.version:
            raise FlawlineError(
                f"model {redact(model.uri)} is version {detector.version} instead of {model.version}: publish it again"
            )
        # Compiles and allocates now rather than under the first frame.
        detector.score([scoring.canary()])
        detector.close_ups([scoring.canary()])
        return Loaded(model, detector, self._now_ns())

    def _refuse(self, model: ModelRef, error: Exception) -> None:
        """Note that a model cannot be loaded, and let the last good one run when none does."""
        reason = one_line(error, with_type=True)
        if self._newest is None and self._role == ACTIVE:
            self._fall_back()
        with self._changed:
            if self._wanted != model:
                return
            self._retry_at = self._now() + self._pauses.next_s()
            newest = self._newest
            if newest:
                instead = f"frames are scored with {newest.detector.version}, which worked last"
            elif self._role == ACTIVE:
                instead = "no frame is scored until it can, since none has worked here"
            else:
                instead = "no shadow scores"
            if self._refused != model:
                telemetry.MODEL_LOAD_FAILURES.inc()
            problem = f"{self._role} model {model} cannot be used, {instead}: {reason}"
            if problem != self.problem:
                log.error("%s", problem)
            self._refused = model
            self._set_problem(problem)

    def _fall_back(self) -> None:
        last = self._store.last_good()
        if last is None:
            return
        try:
            loaded = self._verified(last.model, last.folder)
        except Exception as error:
            log.error("the last good model %s cannot be used either: %s", last.model, one_line(error, with_type=True))
            return
        with self._changed:
            self._next = loaded
            self._changed.notify_all()

    def _set_problem(self, problem: str | None) -> None:
        self.problem = problem
        if problem is None:
            self._refused = None
        telemetry.MODEL_PROBLEM.labels(self._role).set(problem is not None)
