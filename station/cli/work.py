"""`flawline work`: the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from station.cli.options import Config, settings_of, until_stopped

if TYPE_CHECKING:
    from flawline.stopping import Stop


def work(config: Config = None) -> None:
    """Score frames: Ray actors that are members of one consumer group."""
    settings = settings_of(config, "work")

    def run(stop: Stop) -> None:
        from workers import supervisor

        supervisor.run(settings, stop)

    until_stopped(run)
