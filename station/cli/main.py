"""The command `flawline`: its commands, and its edge, where arguments come in and an exit code goes out.

Each command has a file of its own beside this one, and imports what is heavy inside its functions.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from flawline import __version__
from flawline.errors import FlawlineError
from flawline.private_files import keep_files_private
from flawline.redaction import redact_output
from station.cli import cameras, classes, dashboards, groups, judgements, objects, topics, users
from station.cli.broker import broker
from station.cli.console import console
from station.cli.demo import demo
from station.cli.discover import discover
from station.cli.doctor import doctor
from station.cli.evaluate import evaluate
from station.cli.explain import explain
from station.cli.extend import extend
from station.cli.fit import fit
from station.cli.init import init
from station.cli.ledger import ledger
from station.cli.models import models
from station.cli.notify import notify
from station.cli.options import DEBUG_VARIABLE, Debug, debuggable
from station.cli.produce import produce
from station.cli.promote import promote
from station.cli.publish import publish
from station.cli.replay import replay
from station.cli.report import report
from station.cli.rollback import rollback
from station.cli.size import size
from station.cli.status import status
from station.cli.up import up
from station.cli.work import work

ROLES = (up, broker, produce, work, discover, console, notify)
MODELS = (fit, evaluate, extend, explain, publish, promote, rollback, models)
REPORTS = (init, demo, status, ledger, report, replay, doctor, size)

app = typer.Typer(
    name="flawline",
    help="Streaming visual inspection of a mixed line: every capture accounted for, defects grouped into classes.",
    invoke_without_command=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Debug = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


for command in (*ROLES, *MODELS, *REPORTS):
    app.command()(debuggable(command))
for group in (cameras, topics, objects, dashboards, classes, groups, judgements, users):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 fine, 1 the work failed, 2 bad usage or configuration, 130 interrupted, 143 ended.

    A role that is asked to end (SIGTERM) has done what it was asked for: 0, also before it has begun.
    """
    from flawline.stopping import follow_parent

    redact_output()
    keep_files_private()
    arguments = sys.argv[1:] if arguments is None else arguments
    code = 0 if _is_role(arguments) else 143
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))  # so that every `finally` runs
    follow_parent()
    sys.exit(_run(arguments))


def _is_role(arguments: list[str]) -> bool:
    """Return whether the command runs until it is asked to end."""
    return arguments[:1] in [[role.__name__] for role in ROLES] or "--watch" in arguments


def _run(arguments: list[str]) -> int:
    """Run a command and return its exit code; what goes wrong is one line on stderr."""
    try:
        return int(app(arguments, standalone_mode=False, prog_name="flawline") or 0)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except FlawlineError as error:
        if _is_debug():
            raise
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # What the command line parser raises knows its exit code; anything else is a mistake of ours.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _fail_usage(error.format_message(), arguments)
        if _is_debug():
            raise
        text = " ".join(str(error).split())
        return _fail(f"unexpected {type(error).__name__}: {text}: run it with --debug and report the output", 1)


def _is_debug() -> bool:
    return bool(os.environ.get(DEBUG_VARIABLE))


def _fail_usage(message: str, arguments: list[str]) -> int:
    if not message:  # without a command: the help was shown
        return 2
    if any(argument.partition("=")[0] == "--json" for argument in arguments):
        message = f"{message.rstrip('.')}: --json takes no value, --json-file FILE writes a file"
    return _fail(f"{message} (see flawline --help)", 2)


def _fail(message: str, code: int) -> int:
    from station import terminal

    terminal.fail(f"error: {message}")
    return code


if __name__ == "__main__":
    main()
