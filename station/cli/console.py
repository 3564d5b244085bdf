"""`flawline console`: the station in the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from station.cli.options import Config, settings_of, until_stopped

if TYPE_CHECKING:
    from flawline.stopping import Stop


def console(config: Config = None) -> None:
    """Serve the station in the browser: the ledger, the classes, the frames that were not accepted."""
    settings = settings_of(config, "console")

    def run(stop: Stop) -> None:
        from station.web import service

        service.run(settings, stop)

    until_stopped(run)
