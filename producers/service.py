"""The producer's process: every camera of the line, or some, and one publisher."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from flawline import telemetry
from flawline.backoff import Backoff
from flawline.errors import UsageError
from flawline.settings.producers import CameraBase, FolderCamera, RtspCamera, SimulatedCamera, UsbCamera, VideoCamera
from flawline.settings.tree import Settings
from producers.camera import Camera, Capture
from producers.folder import FolderReplay
from producers.opencv import RtspDevice, UsbDevice, VideoReplay
from producers.publisher import Publisher
from producers.supervise import CameraRunner

log = logging.getLogger(__name__)

TICK_S = 0.05
"""How often cameras are looked at: a stall is noticed this much after its limit, at most."""

READER_STOP_S = 2.0
"""How long a stop waits for all readers together; one that hangs in its device is left behind."""


def make_camera(settings: CameraBase) -> Camera:
    """A camera of the configured kind, not open yet. Raises UsageError when its source can never work."""
    if isinstance(settings, SimulatedCamera):
        # Its textures come from scikit-image, which takes a while to import, and real cameras do not need it.
        from producers.simulated import SimulatedLineCamera

        return SimulatedLineCamera(settings)
    if isinstance(settings, FolderCamera):
        return FolderReplay(settings)
    if isinstance(settings, VideoCamera):
        return VideoReplay(settings)
    if isinstance(settings, UsbCamera):
        return UsbDevice(settings)
    if isinstance(settings, RtspCamera):
        return RtspDevice(settings)
    raise UsageError(f"camera {settings.name} is of an unknown kind")


def run(settings: Settings, stop: threading.Event, cameras: Sequence[str | Camera] | None = None) -> int:
    """Publish what the cameras capture; the number of captures.

    `cameras` names those of the configuration to run (default: all), or gives cameras of one's own, which take their
    rate and policy from the configured camera of that name, where there is one. Returns when every finite camera has
    ended and everything is delivered, or, once `stop` is set, within `producer.drain_timeout_s` and a few seconds;
    what is not delivered then waits in the spool for the next start.

    Raises UsageError before anything is published when a camera's source does not exist, FlawlineError when one fails
    later.
    """
    chosen = _choose(settings, cameras)
    ready = [(config, make()) for config, make in chosen]  # raises for every source that can never work
    endpoint = telemetry.serve(settings.metrics.producers_port, settings.metrics.host, *telemetry.OF_PRODUCERS)
    try:
        publisher = Publisher(settings, [config for config, _ in chosen])
        counts = dict.fromkeys(publisher.lanes, 0)
        runners: list[CameraRunner] = []
        stop_readers = threading.Event()
        drain_s = 0.0
        try:
            publisher.start()
            drain_s = settings.producer.drain_timeout_s
            for (config, first), (_, make) in zip(ready, chosen, strict=True):
                runners.append(_runner(settings, config, first, make, publisher, counts, stop_readers))
            _watch(runners, publisher, stop)
        finally:
            stop_readers.set()
            for runner in runners:
                runner.close(timeout_s=READER_STOP_S / len(runners))
            publisher.close(drain_s)
        return sum(counts.values())
    finally:
        endpoint.close()


def _watch(runners: list[CameraRunner], publisher: Publisher, stop: threading.Event) -> None:
    """Look after the cameras until all have ended and all is delivered, or until `stop`."""
    while not stop.is_set():
        for runner in runners:
            runner.tick()
            if runner.error is not None:
                raise runner.error
        if all(runner.over for runner in runners):
            publisher.finish()
            if publisher.idle:
                return
        publisher.check()
        stop.wait(TICK_S)


def _runner(
    settings: Settings,
    config: CameraBase,
    first: Camera,
    make: Callable[[], Camera],
    publisher: Publisher,
    counts: dict[str, int],
    stop: threading.Event,
) -> CameraRunner:
    unused = [first]  # made already, to find out whether it can be

    def sink(capture: Capture) -> None:
        if publisher.publish(config.name, capture) is not None:
            counts[config.name] += 1

    return CameraRunner(
        config,
        make=lambda: unused.pop() if unused else make(),
        sink=sink,
        backoff=Backoff(*settings.producer.reconnect_backoff_s),
        stop=stop,
    )


def _choose(
    settings: Settings, cameras: Sequence[str | Camera] | None
) -> list[tuple[CameraBase, Callable[[], Camera]]]:
    """The cameras to run: their settings and how to make them."""
    configured: dict[str, CameraBase] = {camera.name: camera for camera in settings.cameras}
    if cameras is None:
        cameras = list(configured)
    if not cameras:
        raise UsageError("no camera to run: add a [[cameras]] section to line.toml")
    chosen: list[tuple[CameraBase, Callable[[], Camera]]] = []
    for camera in cameras:
        if not isinstance(camera, str):
            config = configured.get(camera.name) or CameraBase(name=camera.name)
            chosen.append((config, lambda camera=camera: camera))  # type: ignore[misc]
        elif camera in configured:
            config = configured[camera]
            chosen.append((config, lambda config=config: make_camera(config)))  # type: ignore[misc]
        else:
            raise UsageError(f"camera {camera!r} is not in the configuration, which has {', '.join(configured)}")
    names = [config.name for config, _ in chosen]
    if len(set(names)) < len(names):
        raise UsageError(f"a camera is named twice: {', '.join(names)}")
    return chosen
