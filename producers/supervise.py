"""Runs one camera: reads it in a thread of its own, notices when it stalls or goes away, and opens it again.

A blocked read cannot be interrupted, so a reader that stalls is given up: it finds out when it wakes, and publishes
nothing more. A new reader with a new camera object takes its place.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import StrEnum

from flawline import telemetry
from flawline.backoff import Backoff
from flawline.clock import Monotonic, monotonic
from flawline.errors import FlawlineError
from flawline.redaction import redact
from flawline.settings.producers import CameraBase
from producers.camera import Camera, Capture
from producers.stall_watch import StallWatch

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0

MOST_HANGING_READERS = 3
"""A device that hangs at every attempt must not take a thread each time, for days: so many are left waiting for it."""


class CameraState(StrEnum):
    """Where a camera is; UP is the metric's 1."""

    IDLE = "idle"
    OPENING = "opening"
    UP = "up"
    STALLED = "stalled"  # a replay that is late: it is waited for, since opening it again would begin anew
    AWAY = "away"  # waits for its next attempt
    ENDED = "ended"
    FAILED = "failed"


class _Reader:
    """One camera object and the thread that reads it."""

    def __init__(self, camera: Camera, watch: StallWatch) -> None:
        self.camera = camera
        self.watch = watch
        self.given_up = threading.Event()
        self.opened = False
        self.frames = 0
        self.done = False
        self.error: FlawlineError | None = None
        self.thread: threading.Thread | None = None


class CameraRunner:
    """Keeps one camera delivering. `tick` is called often, by one thread; it never blocks.

    `make` gives a new camera object, `sink` takes its captures. A device is opened again when it stalls or goes away; a
    finite source that ends, ends the runner; one that fails, fails it: `error` says why.
    """

    def __init__(
        self,
        settings: CameraBase,
        make: Callable[[], Camera],
        sink: Callable[[Capture], object],
        backoff: Backoff,
        stop: threading.Event,
        clock: Monotonic = monotonic,
        is_live: bool | None = None,
    ) -> None:
        self.name = settings.name
        self.state = CameraState.IDLE
        self.error: FlawlineError | None = None
        self._settings = settings
        self._make = make
        self._sink = sink
        self._backoff = backoff
        self._stop = stop
        self._clock = clock
        self._is_live = settings.is_live if is_live is None else is_live
        self._period_s = 1.0 / settings.rate_hz if settings.rate_hz > 0 else None
        self._open_timeout_s = getattr(settings, "open_timeout_s", OPEN_TIMEOUT_S)
        self._reader: _Reader | None = None
        self._given_up: list[_Reader] = []
        self._due = 0.0
        telemetry.CAMERA_UP.labels(self.name).set(0)
        telemetry.CAMERA_RECONNECTS.labels(self.name)  # shows as 0 until it counts

    @property
    def over(self) -> bool:
        """Whether this camera gives no more captures."""
        return self.state in (CameraState.ENDED, CameraState.FAILED)

    def tick(self) -> None:
        """Look at the reader, and act."""
        if self.state is CameraState.IDLE:
            self._start()
        elif self.state is CameraState.AWAY:
            self._given_up = [reader for reader in self._given_up if not reader.done]
            if self._clock() >= self._due and len(self._given_up) < MOST_HANGING_READERS:
                telemetry.CAMERA_RECONNECTS.labels(self.name).inc()
                self._start()
        elif not self.over and self._reader is not None:
            self._inspect(self._reader)

    def _inspect(self, reader: _Reader) -> None:
        if reader.done:
            self._ended(reader)
        elif (late := reader.watch.overdue()) is not None:
            if self._is_live:
                self._away(f"is {late}")
            elif self.state is not CameraState.STALLED:
                log.warning("camera %s stalls: it is %s", self.name, late)
                self._set(CameraState.STALLED)
        elif reader.frames and self.state is not CameraState.UP:
            if self.state is CameraState.STALLED:
                log.info("camera %s delivers again", self.name)
            self._set(CameraState.UP)

    def _ended(self, reader: _Reader) -> None:
        if reader.error is None and not self._is_live:
            self._set(CameraState.ENDED)
            log.info("camera %s has ended", self.name)
        elif self._is_live:
            self._away(str(reader.error) if reader.error else "ended")
        else:
            self.error = reader.error
            self._set(CameraState.FAILED)

    def _away(self, why: str) -> None:
        """Give the reader up, and wait before the next attempt."""
        if self._reader is not None:
            self._reader.given_up.set()
            self._given_up.append(self._reader)
            if self._reader.frames:  # it worked meanwhile
                self._backoff.reset()
        delay_s = self._backoff.next_s()
        self._due = self._clock() + delay_s
        self._set(CameraState.AWAY)
        log.warning("camera %s: %s; opening it again in %.1f s", self.name, redact(why), delay_s)

    def _set(self, state: CameraState) -> None:
        self.state = state
        if state is CameraState.ENDED:
            telemetry.CAMERA_UP.remove(self.name)  # a replay that has come to its end is not away
        else:
            telemetry.CAMERA_UP.labels(self.name).set(state is CameraState.UP)

    def _start(self) -> None:
        self._set(CameraState.OPENING)
        reader = _Reader(self._make(), StallWatch(self._period_s, self._open_timeout_s, self._clock))
        self._reader = reader
        reader.thread = threading.Thread(target=self._read, args=(reader,), name=f"camera-{self.name}", daemon=True)
        reader.thread.start()

    def close(self, timeout_s: float) -> None:
        """Give the reader up; wait for it, but no longer than `timeout_s`."""
        reader = self._reader
        if reader is None:
            return
        reader.given_up.set()
        if reader.thread is not None:
            reader.thread.join(timeout_s)
        if self.state is not CameraState.ENDED:
            telemetry.CAMERA_UP.labels(self.name).set(0)

    # -- the reader's thread -------------------------------------------------------------------------------------

    def _read(self, reader: _Reader) -> None:
        try:
            reader.camera.open()
            reader.watch.opened()
            self._read_frames(reader)
        except FlawlineError as error:
            reader.error = error
        except Exception as error:  # a driver may raise anything; for the line it is a camera that went away
            log.debug("camera %s", self.name, exc_info=True)
            reader.error = FlawlineError(f"camera {self.name} failed: {type(error).__name__}: {redact(str(error))}")
        finally:
            try:
                reader.camera.close()
            except Exception as error:  # of a device that is gone; nothing depends on it
                log.debug("camera %s: closing it failed: %s", self.name, redact(str(error)))
            reader.done = True

    def _read_frames(self, reader: _Reader) -> None:
        # A device keeps its rate itself, by leaving frames out; anything else is asked no sooner than it is due.
        period_s = 0.0 if self._is_live else self._period_s or 0.0
        due = self._clock()
        frames = iter(reader.camera.frames())
        while not self._over(reader):
            if (early_s := due - self._clock()) > 0:
                if self._stop.wait(early_s):
                    return
            elif early_s < -1.0:
                due = self._clock()  # far behind: the time that is lost is not made up for by a burst
            due += period_s
            reader.watch.asking()
            capture = next(frames, None)
            if capture is None or self._over(reader):
                return
            reader.watch.frame()
            reader.frames += 1
            self._sink(capture)

    def _over(self, reader: _Reader) -> bool:
        return reader.given_up.is_set() or self._stop.is_set()
