"""What only producers measure, beside `flawline.telemetry`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Gauge
from prometheus_client.registry import Collector

from flawline import telemetry
from flawline.settings.producers import CameraBase

NOMINAL_HZ = Gauge(
    "flawline_camera_nominal_hz", "Frames per second that a camera is set to.", ("camera",), registry=telemetry.REGISTRY
)
SPOOL_LIMIT_BYTES = Gauge(
    "flawline_spool_limit_bytes", "Limit of the spools of all cameras together.", registry=telemetry.REGISTRY
)
OF_PRODUCERS: tuple[Collector, ...] = (
    *telemetry.OF_PRODUCERS,
    telemetry.DISK_FREE_BYTES,
    telemetry.PROCESS,
    NOMINAL_HZ,
    SPOOL_LIMIT_BYTES,
)


def announce(cameras: Iterable[CameraBase], spool_dir: Path, spool_limit_bytes: int) -> None:
    """Show what is set: the rate of each camera that has one, and the limit and the disk of the spool."""
    for camera in cameras:
        if camera.rate_hz > 0:
            NOMINAL_HZ.labels(camera.name).set(camera.rate_hz)
    SPOOL_LIMIT_BYTES.set(spool_limit_bytes)
    telemetry.DISK_FREE_BYTES.labels("spool").set_function(lambda: _free_bytes(spool_dir))


def _free_bytes(folder: Path) -> float:
    """Return the free bytes of a folder's disk; not a number while the folder is not there."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return float("nan")
