"""`flawline dashboards`: the Grafana dashboards as code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from station.cli.options import Config, debuggable, settings_of

app = typer.Typer(help="Grafana dashboards as code.", no_args_is_help=True)


@app.command("push")
@debuggable
def push(config: Config = None) -> None:
    """Create or update the dashboards in the Grafana that grafana.url names."""
    from discovery.dashboards import push
    from station import terminal

    for line in push.push(settings_of(config)):
        terminal.out().print(line, highlight=False, markup=False)


@app.command("write")
@debuggable
def write(folder: Annotated[Path, typer.Argument(help="Folder for Grafana's provisioning files.")]) -> None:
    """Write the dashboards as provisioning files."""
    from discovery.dashboards import push
    from station import terminal

    for path in push.write_provisioning(folder):
        terminal.out().print(str(path), highlight=False, markup=False)
