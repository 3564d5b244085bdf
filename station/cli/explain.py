"""`flawline explain`: why an image was decided on as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawline.errors import UsageError
from station.cli.options import Config, Json, JsonFile, settings_of


def explain(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    image: Annotated[Path, typer.Argument(help="Image file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the page, .html.")],
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Show why an image was decided on as it was: its regions beside the good patches that are nearest to them."""
    if out.suffix.lower() != ".html":
        raise UsageError(f"--out {out}: the page is HTML: give its name the ending .html")
    if not image.is_file():
        raise UsageError(f"{image}: no such file: name an image file")
    from station import explanation, terminal

    explained = explanation.explain_image(model, image, settings_of(config).worker)
    explanation.write_page(out, explained)
    if not terminal.emit_json(explanation.as_dict(explained) | {"page": str(out)}, json, json_file):
        console = terminal.out()
        for line in [*explanation.text_lines(explained), f"page: {out}"]:
            console.print(line, highlight=False, markup=False)
