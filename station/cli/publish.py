"""`flawline publish`: the model that the workers use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawline.errors import UsageError
from station.cli.options import Config, Json, JsonFile, settings_of

ROLES = ("active", "shadow")


def publish(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    role: Annotated[str, typer.Option(help="active or shadow.")] = "active",
    copy: Annotated[bool, typer.Option("--copy", help="Copy the model into the data directory first.")] = False,
    uri: Annotated[
        str | None, typer.Option(help="Where workers find the model, if that is another path or a URL.")
    ] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Make a model the one that workers use."""
    from station import terminal
    from workers.publish_model import publish_model

    if role not in ROLES:
        raise UsageError(f"--role {role}: choose from {', '.join(ROLES)}")
    pointer = publish_model(settings_of(config), model, role, copy=copy, uri=uri)
    report = {"role": pointer.role, "version": pointer.version, "uri": pointer.uri}
    if not terminal.emit_json(report, json, json_file):
        terminal.out().print(f"{pointer.role} model is now {pointer.version} ({pointer.uri})", highlight=False)
