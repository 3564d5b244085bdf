"""`flawline demo`: the whole line on this machine, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from station.cli.options import Config, Json, JsonFile, settings_of


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Stream the test images of this folder; default: simulated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    frames: Annotated[int | None, typer.Option(min=1, help="Number of parts that pass the simulated cameras.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, help="Frames per second of each camera; 0: as fast as it can.")
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="Number of Ray actors that score.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the simulated line.")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the result in a browser.")] = False,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Run the whole line on this machine, end to end, and measure it against known truth."""
    from station import terminal
    from station.demo import page, summary
    from station.demo.run import Options, run_demo

    values: dict[str, Any] = {"frames": frames, "rate_hz": rate, "actors": actors, "seed": seed}
    chosen = {name: value for name, value in values.items() if value is not None}
    result = run_demo(settings_of(config), Options(out=out, data=data, **chosen))
    terminal.emit_json(result, json, json_file)
    if not json:
        summary.show(result)
    if not no_open:
        page.open_in_browser(Path(result["artefacts"]["page"]))
