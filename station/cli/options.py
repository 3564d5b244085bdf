"""What the sub-commands share: their options, the settings they load, how they print JSON and how they are stopped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flawline.settings.tree import Settings
    from flawline.stopping import Stop

JSON_STDOUT = "-"

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file; default line.toml, when it exists.")
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="[FILE]", help="Print the result as JSON, or write it to FILE."),
]


def json_target(target: str | None) -> str | None:
    """The target of `--json`, None without it. Raises UsageError for a file that could not be written."""
    from station import terminal

    terminal.check_json_target(target)
    return target


def settings_of(config: Path | None, role: str = "") -> Settings:
    """The settings, with logs set up: those of a long-running `role` by its log level, else warnings only."""
    from flawline.logs import configure_logging
    from flawline.settings.tree import load_settings

    if config is not None:
        os.environ["FLAWLINE_CONFIG"] = str(config.absolute())  # for the roles that a command starts
    settings = load_settings(config)
    configure_logging(settings.log_level if role else "WARNING", role)
    return settings


def until_stopped(work: Callable[[Stop], object]) -> None:
    """Do a role's work until it ends or is told to stop; Ctrl-C ends with exit code 130."""
    from flawline.stopping import stop_on_signals

    with stop_on_signals() as stop:
        work(stop)
    if stop.exit_code:
        raise typer.Exit(stop.exit_code)


def with_json_target(arguments: list[str]) -> list[str]:
    """`--json [FILE]` as the parser needs it: always with a value, `-` for stdout.

    The next argument is the file unless it is an option, or an existing folder (DATA, MODEL), or a word of `classes`.
    """
    result: list[str] = []
    rest = iter(range(len(arguments)))
    for index in rest:
        argument = arguments[index]
        following = arguments[index + 1] if index + 1 < len(arguments) else None
        if argument != "--json":
            result.append(argument)
        elif following is None or not _is_file_name(following, "classes" in arguments[:1]):
            result.append(f"--json={JSON_STDOUT}")
        else:
            result.append(f"--json={following}")
            next(rest)
    return result


def _is_file_name(argument: str, only_json: bool) -> bool:
    if argument.startswith("-") and argument != JSON_STDOUT:
        return False
    return argument.endswith(".json") if only_json else not Path(argument).is_dir()
