"""`flawline produce`: the cameras."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flawline.errors import UsageError
from station.cli.options import Config, settings_of, until_stopped

if TYPE_CHECKING:
    from flawline.settings.tree import Settings
    from flawline.stopping import Stop


def produce(
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    config: Config = None,
) -> None:
    """Publish the frames of the configured cameras."""
    settings = settings_of(config, "produce")
    _require_configured(settings, camera or [])

    def run(stop: Stop) -> None:
        from producers import service

        # The producers create the topics in the background: captures do not wait for a broker that is not up yet.
        service.run(settings, stop, cameras=camera or None)

    until_stopped(run)


def _require_configured(settings: Settings, names: list[str]) -> None:
    """Raise UsageError when no camera is configured, or none that has one of the names."""
    known = {camera.name for camera in settings.cameras}
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise UsageError(f"--camera {name}: is not in the configuration: choose one of its cameras ({listed})")
    if not known:
        raise UsageError("no cameras are configured: add a [[cameras]] section to line.toml")
