"""`flawline up`: every role of a line on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from station.cli.options import Config, settings_of, until_stopped

if TYPE_CHECKING:
    from flawline.stopping import Stop


def up(config: Config = None) -> None:
    """Run every role of line.toml on this machine, and the embedded broker when no other is configured."""
    settings = settings_of(config, "up")

    def run(stop: Stop) -> None:
        from station import up

        up.run(settings, stop, config)

    until_stopped(run)
