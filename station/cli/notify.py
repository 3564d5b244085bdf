"""`flawline notify`: tells other systems what happens on the line, by HTTP and MQTT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from station.cli.options import Config, settings_of, until_stopped

if TYPE_CHECKING:
    from flawline.stopping import Stop


def notify(config: Config = None) -> None:
    """Tell an MQTT broker and webhooks: verdicts, changes of classes, states of cameras (docs/outbound.md)."""
    settings = settings_of(config, "notify")

    def run(stop: Stop) -> None:
        from station.outbound import service

        service.run(settings, stop)

    until_stopped(run)
