"""The models that this machine has, by version: what they decide by, and themselves, to explain a frame.

A version is looked for where workers of this machine find it: `worker.model`, copies of published models, and the
addresses that the topic `models` names. The broker and addresses elsewhere are asked beside the requests, in a thread
that gives way to everything else, so that no page waits for them and no worker loses its CPU.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from flawline import clock
from flawline.errors import FlawlineError
from flawline.settings.tree import Settings
from scorer import artefact
from scorer.operating_points import DecisionRule, decision_rule
from workers import publish_model
from workers.active_model import ModelRef
from workers.model_store import COPIES, ModelStore

log = logging.getLogger(__name__)

T = TypeVar("T")

ASK_S = 60.0
"""The broker is asked for models at most once in this time. A judgement, not measured."""
RULES_LIMIT = 8
"""Models whose cut-offs are remembered; some 100 kB each."""
NICENESS = 19
"""The thread that fetches and explains gives way to workers as much as can be: to one that is busy, all but 1.5 %."""
CPU_SHARE = 0.1
"""A judgement, not measured: a page that is looked at needs a good patch now and then."""
LONGEST_REST_S = 5.0


class QuietThread:
    """A thread whose work, and that of the threads that it starts, gives way to all other work.

    It works for at most `cpu_share` of the time, but for its first piece of work. Nothing waits for it at the end of
    the process.
    """

    def __init__(self, name: str, cpu_share: float = CPU_SHARE) -> None:
        self._name, self._cpu_share = name, cpu_share
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do something after all that was submitted before."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        future: Future[T] = Future()
        self._work.put((future, work))
        return future

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # not every system has a niceness of threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            future, work = self._work.get()
            began = clock.monotonic()
            try:
                future.set_result(work())
            except Exception as error:  # who waits for the result gets it
                future.set_exception(error)
            took_s = clock.monotonic() - began
            time.sleep(min(took_s * (1 / self._cpu_share - 1), LONGEST_REST_S))


class Models:
    """Finds models by version. Safe for several threads."""

    def __init__(
        self,
        settings: Settings,
        monotonic: clock.Monotonic = clock.monotonic,
        announced: Callable[[Settings], publish_model.Announced] = publish_model.announced,
    ) -> None:
        self._settings, self._monotonic, self._announced = settings, monotonic, announced
        self._lock = threading.Lock()
        self._rules: dict[str, DecisionRule] = {}
        self._folders: dict[str, Path] = {}
        self._asked_at = -float("inf")
        self.thread = QuietThread("models")

    def rule(self, version: str) -> DecisionRule:
        """Return what a model decides by. Raises FlawlineError, in words, where the model is not at hand."""
        with self._lock:
            known = self._rules.get(version)
            if known is None:
                stored = artefact.load(self._folder(version))
                known = decision_rule(stored.model, stored.version, stored.report)
                self._rules[version] = known
                while len(self._rules) > RULES_LIMIT:
                    del self._rules[next(iter(self._rules))]
        return known

    def folder(self, version: str) -> Path:
        """Return the folder of a model on this machine. Raises FlawlineError, in words, where there is none."""
        with self._lock:
            return self._folder(version)

    def _folder(self, version: str) -> Path:
        known = self._folders.get(version)
        if known is not None and known.is_dir():
            return known
        for folder in self._here():
            if artefact.version_of(folder) == version:
                self._folders[version] = folder
                return folder
        if self._monotonic() - self._asked_at >= ASK_S:
            self._asked_at = self._monotonic()
            self.thread.submit(lambda: self._look_up(version))
        raise FlawlineError(
            f"model {version} is not on this machine: it is looked up at the broker; load the page again, or set "
            "worker.model to its folder"
        )

    def _here(self) -> list[Path]:
        """Return the folders of this machine that may hold models, the likeliest first."""
        settings, data = self._settings, self._settings.data_dir
        named = [Path(settings.worker.model)] if settings.worker.model and "://" not in settings.worker.model else []
        return [*named, *sorted((data / "models").glob("*/")), *sorted((data / COPIES).glob("*/"))]

    def _look_up(self, version: str) -> None:
        """Ask the broker where a model is, and fetch it."""
        try:
            now = self._announced(self._settings)
            pointers = [pointer for pointer in (now.active, now.shadow, *now.history) if pointer is not None]
            pointer = next((pointer for pointer in pointers if pointer.version == version), None)
            if pointer is None:
                return
            reference = ModelRef(pointer.uri, pointer.version)
            store = ModelStore(self._settings.data_dir / COPIES, "console")
            folder = store.fetch(reference)
            if artefact.version_of(folder) == version:
                store.keep(reference, folder)
                self._folders[version] = folder
        except Exception as error:  # brokers and remote stores raise what they like; the page says that there is none
            log.info("model %s cannot be fetched: %s", version, error)
