"""The supervision of one camera: a thread reads it; a camera that cannot start, stalls or goes away is opened again.

A camera fails alone: nothing that happens to it is raised, and the others go on. A blocked read cannot be interrupted,
so the runner gives up a reader that stalls: that reader publishes nothing more and ends when its read returns. A new
reader with a new camera object replaces it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import StrEnum

from flawline import telemetry
from flawline.clock import Monotonic, monotonic
from flawline.errors import FlawlineError, one_line
from flawline.outage import Outage
from flawline.redaction import redact
from flawline.settings.producers import CameraBase
from producers.camera import Camera, Capture
from producers.stall_watch import StallWatch

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0
"""Longest wait for a camera whose settings have no `open_timeout_s`. A judgement, not measured."""

MOST_HANGING_READERS = 3
"""Limit of given-up readers that still hang: a device that hangs at every attempt must not add threads for days."""


class CameraState(StrEnum):
    """Names the state of a camera; the metric `flawline_camera_up` is 1 for UP and 0 for the others."""

    IDLE = "idle"
    OPENING = "opening"
    UP = "up"
    STALLED = "stalled"  # a replay that is late: it is not reopened, since that would restart it
    AWAY = "away"  # it cannot be opened or went away, and waits for the next attempt
    ENDED = "ended"
    FAILED = "failed"  # a replay that broke off: from its beginning it would deliver its frames a second time


class _Reader:
    """Holds the thread that makes one camera object and reads it."""

    def __init__(self, watch: StallWatch) -> None:
        self.watch = watch
        self.given_up = threading.Event()
        self.frames = 0
        self.done = False
        self.error: FlawlineError | None = None
        self.thread: threading.Thread | None = None


class CameraRunner:
    """Keeps one camera running. One thread calls `tick` often; `tick` never blocks and raises nothing.

    `make` returns a new camera object, or raises; `sink` receives its captures; the camera's own thread calls both. A
    camera that cannot start, and a device that stalls or goes away, is tried again with the pauses of `outage`, whose
    reminders say how often the log tells it. The end of a finite source ends the runner. A replay that breaks off
    fails, and `error` holds the reason.
    """

    def __init__(
        self,
        settings: CameraBase,
        make: Callable[[], Camera],
        sink: Callable[[Capture], object],
        outage: Outage,
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
        self._outage = outage
        self._stop = stop
        self._clock = clock
        self._is_live = settings.is_live if is_live is None else is_live
        self._period_s = 1.0 / settings.rate_hz if settings.rate_hz > 0 else None
        self._open_timeout_s = getattr(settings, "open_timeout_s", OPEN_TIMEOUT_S)
        self._reader: _Reader | None = None
        self._given_up: list[_Reader] = []
        self._due = 0.0
        telemetry.CAMERA_UP.labels(self.name).set(0)
        telemetry.CAMERA_RECONNECTS.labels(self.name)  # shows 0 before the first reconnect

    @property
    def over(self) -> bool:
        """Return whether this camera delivers no more captures."""
        return self.state in (CameraState.ENDED, CameraState.FAILED)

    def tick(self) -> None:
        """Check the reader, and start, replace or end it as its state requires."""
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
        if reader.frames and self._outage.is_on:
            log.info("camera %s delivers again, after %.0f s", self.name, self._outage.age_s())
            self._outage.ended()
        if reader.done:
            self._on_end(reader)
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

    def _on_end(self, reader: _Reader) -> None:
        if reader.error is None and not self._is_live:
            self._set(CameraState.ENDED)
            log.info("camera %s has ended", self.name)
        elif self._is_live or self._settings.is_repeatable or not reader.frames:
            self._away(str(reader.error) if reader.error else "ended")
        else:
            self.error = reader.error
            self._set(CameraState.FAILED)
            log.error(
                "camera %s: %s; it broke off after %d frames and is not read again, the other cameras go on",
                self.name,
                reader.error,
                reader.frames,
            )

    def _away(self, why: str) -> None:
        """Give up the reader, and set the time of the next attempt."""
        if self._reader is not None:
            self._reader.given_up.set()
            self._given_up.append(self._reader)
        failure = self._outage.failed()
        self._due = self._clock() + failure.pause_s
        self._set(CameraState.AWAY)
        if failure.is_first:
            text = "camera %s: %s; opening it again in %.1f s, then with growing pauses, and the other cameras go on"
            log.warning(text, self.name, redact(why), failure.pause_s)
        elif failure.is_reported:
            text = "camera %s has been away for %.0f s (%d attempts failed, lastly: %s)"
            log.warning(text, self.name, failure.since_s, failure.number, redact(why))

    def _set(self, state: CameraState) -> None:
        self.state = state
        if state is CameraState.ENDED:
            telemetry.CAMERA_UP.remove(self.name)  # a replay that ended is not an outage
        else:
            telemetry.CAMERA_UP.labels(self.name).set(state is CameraState.UP)

    def _start(self) -> None:
        self._set(CameraState.OPENING)
        self._reader = None
        reader = _Reader(StallWatch(self._period_s, self._open_timeout_s, self._clock))
        thread = threading.Thread(target=self._read, args=(reader,), name=f"camera-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            self._away(f"cannot be read ({one_line(error)})")
            return
        self._reader, reader.thread = reader, thread

    def close(self, timeout_s: float) -> None:
        """Give up the reader and wait at most `timeout_s` for its end."""
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
        camera: Camera | None = None
        try:
            camera = self._make()
            camera.open()
            reader.watch.opened()
            self._read_frames(reader, camera)
        except FlawlineError as error:
            reader.error = error
        except Exception as error:  # a driver can raise anything: the runner treats it as a camera that went away
            log.debug("camera %s", self.name, exc_info=True)
            reader.error = FlawlineError(f"it failed: {one_line(error, with_type=True)}")
        finally:
            try:
                if camera is not None:
                    camera.close()
            except Exception as error:  # the device is gone; nothing depends on the close
                log.debug("camera %s: closing it failed: %s", self.name, redact(str(error)))
            reader.done = True

    def _read_frames(self, reader: _Reader, camera: Camera) -> None:
        # A device keeps the rate itself and skips frames. Any other source is read only when its next frame is due.
        period_s = 0.0 if self._is_live else self._period_s or 0.0
        due = self._clock()
        frames = iter(camera.frames())
        while not self._over(reader):
            if (early_s := due - self._clock()) > 0:
                if self._stop.wait(early_s):
                    return
            elif early_s < -1.0:
                due = self._clock()  # more than 1 s late: continue at the rate instead of a burst that catches up
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
