"""`flawline demo`: the whole line on this machine, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from station.cli.options import Config, Json, JsonFile, settings_of, until_stopped


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
    hard: Annotated[
        bool, typer.Option("--hard", help="Faint defects, near what can be found, on the simulated line.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Then go on: a live line with the station, until Ctrl-C.")
    ] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Run the whole line on this machine, end to end, and measure it against known truth.

    Where there is a screen the result opens in the browser, and the station on the run until Ctrl-C.
    """
    from station import terminal
    from station.demo import page, summary
    from station.demo.run import Options, run_demo

    values: dict[str, Any] = {"frames": frames, "rate_hz": rate, "actors": actors, "seed": seed}
    chosen = {name: value for name, value in values.items() if value is not None}
    result = run_demo(settings_of(config), Options(out=out, data=data, hard=hard, **chosen))
    terminal.emit_json(result, json, json_file)
    if not json:
        summary.show(result)
    opens = not no_open and page.has_screen()
    if opens:
        page.open_in_browser(Path(result["artefacts"]["page"]).absolute().as_uri())
    file = Path(result["artefacts"]["config"])
    if keep:
        _keep_on(file, opens)
    elif opens and not json:
        _show_station(file)
    elif not json:
        terminal.out().print(f"the station on this run: flawline console --config {file}", highlight=False)


def _keep_on(file: Path, opens: bool) -> None:
    """Run the line live, with its station, until it is told to stop."""
    from station import up
    from station.demo import page, stage

    stage.let_go_on(file)
    settings = settings_of(file, "up")
    if opens:
        page.open_when_ready(up.station_url(settings))
    until_stopped(lambda stop: up.run(settings, stop, file))


def _show_station(file: Path) -> None:
    """Serve the station on the run until it is told to stop."""
    from station import terminal, up
    from station.demo import page
    from station.web import service

    settings = settings_of(file)
    url = up.station_url(settings)
    terminal.out().print(f"the station on this run is on {url}, Ctrl-C ends it", highlight=False)
    page.open_when_ready(url)
    until_stopped(lambda stop: service.run(settings, stop))
