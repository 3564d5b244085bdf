"""What only the ledger's role shows, beside `flawline.telemetry`."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Gauge
from prometheus_client.registry import Collector

from flawline import telemetry

CONFIGURED_CAMERA = Gauge(
    "flawline_configured_camera", "1 for each camera of the settings, also when no frame ever came.", ("camera",),
    registry=telemetry.REGISTRY,
)  # fmt: skip
OF_THE_LEDGER: tuple[Collector, ...] = (*telemetry.OF_THE_LEDGER, CONFIGURED_CAMERA, telemetry.PROCESS)


def announce(cameras: Iterable[str]) -> None:
    """Show the names of the configured cameras."""
    for name in cameras:
        CONFIGURED_CAMERA.labels(name).set(1)
