"""`flawline broker`: the embedded broker alone."""

from __future__ import annotations

import typer

from station.cli.options import Config, settings_of


def broker(config: Config = None) -> None:
    """Run the embedded broker alone, in the foreground."""
    from embedded_broker.__main__ import main

    settings = settings_of(config, "broker")
    embedded = settings.embedded
    arguments = ["--data", str(settings.data_dir / "broker"), "--host", embedded.host, "--port", str(embedded.port)]
    arguments += ["--min-free-bytes", str(settings.retention.min_free_bytes)]
    code = main([*arguments, "--fsync", embedded.fsync, "--no-auto-create"])
    if code:
        raise typer.Exit(code)
