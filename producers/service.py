"""The producer process: all cameras of the line, or some of them, and one publisher."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from flawline import telemetry
from flawline.errors import FlawlineError, UsageError
from flawline.outage import Outage
from flawline.settings.producers import CameraBase, FolderCamera, RtspCamera, SimulatedCamera, UsbCamera, VideoCamera
from flawline.settings.tree import Settings
from producers import metrics
from producers.camera import Camera, Capture
from producers.folder import FolderReplay
from producers.opencv import RtspDevice, UsbDevice, VideoReplay
from producers.part_codes import code_reader
from producers.part_door import open_doors
from producers.part_names import PartNames
from producers.publisher import Publisher
from producers.supervise import CameraRunner

log = logging.getLogger(__name__)

TICK_S = 0.05
"""Interval between two checks of the cameras: the longest delay between a stall and its report."""

READER_STOP_S = 2.0
"""How long a stop waits for all readers together; it does not wait longer for a reader that hangs in its device."""


def make_camera(settings: CameraBase) -> Camera:
    """Return a camera of the configured kind, not open yet.

    Raises UsageError when its source cannot be used now, ImportError when a library of its kind is not installed.
    """
    if isinstance(settings, SimulatedCamera):
        # Its textures need scikit-image, which is slow to import and which real cameras do not need.
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
    """Publish the captures of the cameras and return the number of captures.

    `cameras` holds names of configured cameras (default: all) or camera objects. A camera object takes its rate and
    policy from the configured camera of the same name, if there is one. A camera that cannot start (its source, its
    library or its spool) is tried again with growing pauses, and the others go on. The function returns when every
    finite camera has ended and all frames are delivered, or, after `stop` is set, within `producer.drain_timeout_s` and
    a few seconds; undelivered frames then wait in the spool for the next start.

    Raises UsageError for settings that can never work, before the first capture; at the end FlawlineError when a replay
    broke off, or when the broker refuses this producer: its frames are in the spool then, or dropped.
    """
    chosen = _choose(settings, cameras)
    endpoint = telemetry.serve(settings.metrics.producers_port, settings.metrics.host, *metrics.OF_PRODUCERS)
    try:
        publisher = Publisher(settings, [config for config, _ in chosen])
        names = PartNames([config.name for config, _ in chosen], settings.parts.hold_s)
        metrics.announce((config for config, _ in chosen), publisher.folder, settings.producer.spool_limit_bytes)
        counts = {config.name: 0 for config, _ in chosen}
        stop_readers = threading.Event()
        runners = [_runner(settings, config, make, publisher, names, counts, stop_readers) for config, make in chosen]
        drain_s = 0.0
        doors = open_doors(settings.parts, names)
        try:
            publisher.start()
            drain_s = settings.producer.drain_timeout_s
            _watch(runners, publisher, stop)
        finally:
            doors.close()
            stop_readers.set()
            for runner in runners:
                runner.close(timeout_s=READER_STOP_S / len(runners))
            left = publisher.close(drain_s)
        if publisher.refusal is not None:
            raise FlawlineError(f"{publisher.refusal} ({left} frames wait in the spool for the next start)")
        if failed := [f"camera {runner.name}: {runner.error}" for runner in runners if runner.error is not None]:
            raise FlawlineError("; ".join(failed))
        return sum(counts.values())
    finally:
        endpoint.close()


def _watch(runners: list[CameraRunner], publisher: Publisher, stop: threading.Event) -> None:
    """Run the cameras until all have ended and all frames are delivered, or until `stop` is set."""
    while not stop.is_set():
        for runner in runners:
            runner.tick()
        if all(runner.over for runner in runners):
            publisher.finish()
            if publisher.idle:
                return
        publisher.check()
        stop.wait(TICK_S)


def _runner(
    settings: Settings,
    config: CameraBase,
    make: Callable[[], Camera],
    publisher: Publisher,
    names: PartNames,
    counts: dict[str, int],
    stop: threading.Event,
) -> CameraRunner:
    def make_with_lane() -> Camera:
        publisher.open(config)  # first: frames on disk leave also when the device is away
        return make()

    read_code = code_reader(config, settings.frames.decoded_limit_bytes)

    def sink(capture: Capture) -> None:
        if publisher.publish(config.name, names.named(config.name, read_code(capture))) is not None:
            counts[config.name] += 1

    outage = Outage(*settings.producer.reconnect_backoff_s)
    return CameraRunner(config, make=make_with_lane, sink=sink, outage=outage, stop=stop)


def _choose(
    settings: Settings, cameras: Sequence[str | Camera] | None
) -> list[tuple[CameraBase, Callable[[], Camera]]]:
    """Return the settings of each camera to run and a function that makes the camera. Raises UsageError."""
    configured: dict[str, CameraBase] = {camera.name: camera for camera in settings.cameras}
    if cameras is None:
        cameras = list(configured)
    if not cameras:
        raise UsageError("no camera to run: add a [[cameras]] section to line.toml")
    chosen: list[tuple[CameraBase, Callable[[], Camera]]] = []
    for camera in cameras:
        if not isinstance(camera, str):
            config = configured.get(camera.name) or CameraBase(name=camera.name)
            chosen.append((config, _always(camera)))
        elif camera in configured:
            _check_names(configured[camera])
            chosen.append((configured[camera], partial(make_camera, configured[camera])))
        else:
            raise UsageError(f"camera {camera!r} is not in the configuration, which has {', '.join(configured)}")
    names = [config.name for config, _ in chosen]
    if len(set(names)) < len(names):
        raise UsageError(f"a camera is named twice in {', '.join(names)}: name each camera once")
    return chosen


def _check_names(settings: CameraBase) -> None:
    """Raise UsageError for a simulated product or defect that does not exist: no second attempt would find it."""
    if isinstance(settings, SimulatedCamera):
        from producers.simulated import line_settings

        line_settings(settings)


def _always(camera: Camera) -> Callable[[], Camera]:
    """Return a function that returns `camera` at each call: a camera object is opened again, not made again."""
    return lambda: camera
