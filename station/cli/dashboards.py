"""`flawline dashboards`: Grafana's boards and alert rules as code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from station.cli.options import Config, Json, debuggable, settings_of

app = typer.Typer(help="Grafana dashboards and alert rules as code.", no_args_is_help=True)


@app.command("push")
@debuggable
def push(config: Config = None) -> None:
    """Create or update boards, alert rules and what they need in the Grafana that grafana.url names."""
    from discovery.dashboards import push

    _print(push.push(settings_of(config)))


@app.command("diff")
@debuggable
def diff(config: Config = None, as_json: Json = False) -> None:
    """Show what a push would change, a line each; exit code 1 when there is something."""
    from discovery.dashboards import push
    from station import terminal

    differences = push.diff(settings_of(config))
    if as_json:
        terminal.emit_json({"differences": differences}, True, None)
    else:
        _print(differences or ["Grafana has what it should have."])
    if differences:
        raise typer.Exit(1)


@app.command("export")
@debuggable
def export(
    folder: Annotated[Path, typer.Argument(help="Folder for the files.")],
    config: Config = None,
) -> None:
    """Write the boards, alert rules and contact points that Grafana has into files, without secrets."""
    from discovery.dashboards import push

    _print([str(path) for path in push.export(settings_of(config), folder)])


@app.command("write")
@debuggable
def write(folder: Annotated[Path, typer.Argument(help="Folder for the files, such as deploy.")]) -> None:
    """Write what the plant's Grafana and Prometheus mount: boards, data sources and alert rules."""
    from discovery.dashboards import push

    _print([str(path) for path in push.write_provisioning(folder)])


def _print(lines: list[str]) -> None:
    from station import terminal

    for line in lines:
        terminal.out().print(line, highlight=False, markup=False)
