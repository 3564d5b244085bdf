"""The model that an inspector scores with, and the next one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flawline import telemetry
from flawline.errors import FlawlineError, one_line
from workers import scoring
from workers.active_model import ModelRef, local_folder

if TYPE_CHECKING:
    from scorer.detector import Detector

log = logging.getLogger(__name__)


class ModelSlot:
    """Holds a loaded model. Another one is loaded beside it and takes over at the next call of `current`."""

    def __init__(self, first: ModelRef, load: Callable[[Path], Detector], cache: Path) -> None:
        self._first = self._wanted = first
        self._load = load
        self._cache = cache
        self._lock = threading.Lock()
        self._next: tuple[ModelRef, Detector] | None = None
        self.running: tuple[ModelRef, Detector] | None = None

    def load_first(self) -> None:
        """Load and warm the first model. Raises FlawlineError."""
        self.running = self._first, self._warm(self._first)
        telemetry.MODEL_INFO.labels(self.running[1].version, "active").set(1)

    def change(self, model: ModelRef) -> None:
        """Load `model` in the background. When that fails the running one stays, with a log line and a count."""
        with self._lock:
            self._wanted = model
        threading.Thread(target=self._prepare, args=(model,), name="model-load", daemon=True).start()

    def current(self) -> Detector:
        """Return the model to score the next batch with."""
        assert self.running is not None
        with self._lock:
            following, self._next = self._next, None
        if following:
            if following[1].version != self.running[1].version:
                telemetry.MODEL_INFO.remove(self.running[1].version, "active")
            telemetry.MODEL_INFO.labels(following[1].version, "active").set(1)
            log.info("model %s is in use", following[0])
            self.running = following
        return self.running[1]

    @property
    def waits(self) -> bool:
        """Whether a loaded model waits for the next batch."""
        return self._next is not None

    def _prepare(self, model: ModelRef) -> None:
        try:
            detector = self._warm(model)
        except Exception as error:  # whatever is wrong with the new model, the old one must go on
            telemetry.MODEL_LOAD_FAILURES.inc()
            log.error("model %s cannot be used, the running one stays: %s", model, one_line(error, with_type=True))
            return
        with self._lock:
            if self._wanted == model:  # a newer one may have been asked for meanwhile
                self._next = model, detector

    def _warm(self, model: ModelRef) -> Detector:
        detector = self._load(local_folder(model.uri, self._cache))
        if model.version is not None and detector.version != model.version:
            raise FlawlineError(
                f"model {model.uri} is version {detector.version} instead of {model.version}: publish it again"
            )
        # Compiles and allocates now rather than under the first frame.
        detector.score([scoring.canary()])
        detector.close_up(scoring.canary())
        return detector
