"""What the commands share: their options, the settings they load and how they are stopped."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline.errors import UsageError

if TYPE_CHECKING:
    from discovery.store.store import Store
    from flawline.settings.tree import Settings
    from flawline.stopping import Stop

DEBUG_VARIABLE = "FLAWLINE_DEBUG"

AGE_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _writable(file: Path | None) -> Path | None:
    """Return the file of `--json-file`. Raises UsageError, before any work is done, when it cannot be written."""
    if file is not None:
        folder = file.absolute().parent
        if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(
                f"--json-file {file}: cannot be written: name a file in a folder that exists and is writable"
            )
    return file


def _set_debug(debug: bool) -> bool:
    """Ask for tracebacks, in this process and in the roles that it starts."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    return debug


Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file; default line.toml, if it exists.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, not as text.")]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json-file", metavar="FILE", help="Write the result as JSON to FILE.", callback=_writable),
]
ModelRole = Annotated[str, typer.Option("--role", help="active or shadow.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", help=f"Show tracebacks; also {DEBUG_VARIABLE}=1.", is_eager=True, callback=_set_debug),
]


def debuggable(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the option `--debug` added, so that the option may stand after the command's name."""

    @functools.wraps(command)
    def with_debug(*, debug: bool, **values: Any) -> None:
        command(**values)  # the option's callback has done its work

    signature = inspect.signature(command, eval_str=True)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    with_debug.__signature__ = signature.replace(parameters=[*signature.parameters.values(), debug])  # type: ignore[attr-defined]
    with_debug.__annotations__ = {**inspect.get_annotations(command, eval_str=True), "debug": Debug}
    return with_debug


def age_s(age: str, option: str) -> float:
    """Return the seconds of an age like `90s`, `30m`, `12h` or `7d`. Raises UsageError for anything else."""
    number, unit = age[:-1], age[-1:]
    if unit not in AGE_UNITS_S or not number.replace(".", "", 1).isdigit():
        raise UsageError(f"{option} {age}: give a number and a unit, such as 90s, 30m, 12h or 7d")
    return float(number) * AGE_UNITS_S[unit]


def time_ns(text: str, option: str, now_ns: int) -> int:
    """Return the time (UTC ns) of an age before `now_ns`, or of a date with or without a time of this machine's zone.

    Raises UsageError for anything else, and for a time in the future.
    """
    try:
        at_ns = int(datetime.fromisoformat(text).timestamp() * 1e9)
    except ValueError:
        try:
            at_ns = now_ns - int(age_s(text, option) * 1e9)
        except UsageError:
            raise UsageError(f"{option} {text}: give an age such as 2h, or a time such as 2026-11-27T06:00") from None
    if at_ns > now_ns:
        raise UsageError(f"{option} {text}: this time is in the future: give one that has passed")
    return at_ns


def role_of(name: str) -> str:
    """Return the model role of `--role`. Raises UsageError for another word."""
    from workers.active_model import ROLES

    if name not in ROLES:
        raise UsageError(f"--role {name}: choose from {', '.join(ROLES)}")
    return name


def settings_of(config: Path | None, role: str = "") -> Settings:
    """Return the settings and set up the logs: a long-running `role` has its log level, other commands warnings."""
    from flawline.logs import configure_logging
    from flawline.settings.tree import load_settings

    if config is not None:
        os.environ["FLAWLINE_CONFIG"] = str(config.absolute())  # for the roles that a command starts
    settings = load_settings(config)
    configure_logging(settings, role)
    return settings


@contextmanager
def opened_store(settings: Settings) -> Iterator[Store]:
    """Give the store of discovery, and close it. Raises DatabaseAway or UsageError."""
    from discovery.store.store import Store

    store = Store(settings.store_url)
    try:
        yield store
    finally:
        store.close()


def until_stopped(work: Callable[[Stop], object]) -> None:
    """Do a role's work until it ends or is told to stop; Ctrl-C ends with exit code 130."""
    from flawline.stopping import stop_on_signals

    with stop_on_signals() as stop:
        work(stop)
    if stop.exit_code:
        raise typer.Exit(stop.exit_code)
