"""`flawline publish`: the model that the workers use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from station.cli.options import Config, Json, JsonFile, ModelRole, role_of, settings_of


def publish(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    role: ModelRole = "active",
    copy: Annotated[bool, typer.Option("--copy", help="Copy the model into the data directory first.")] = False,
    uri: Annotated[
        str | None, typer.Option(help="Where workers find the model, if that is another path or a URL.")
    ] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Make a model the one that workers use, or the shadow one, which scores the same frames and decides nothing.

    The model is checked first: its hashes, and its own pictures, which must score as they did.
    """
    from station import terminal
    from workers.publish_model import publish_model

    pointer = publish_model(settings_of(config), model, role_of(role), copy=copy, uri=uri)
    report = {"role": pointer.role, "version": pointer.version, "uri": pointer.uri}
    if not terminal.emit_json(report, json, json_file):
        terminal.out().print(f"{pointer.role} model is now {pointer.version} ({pointer.uri})", highlight=False)
