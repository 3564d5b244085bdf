"""`flawline users`: who may log in to the console."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawline.errors import FlawlineError, UsageError
from station.cli.options import Config, Json, JsonFile, debuggable, settings_of

if TYPE_CHECKING:
    from station.web.accounts import Accounts

app = typer.Typer(help="Users of the console: add, list and remove them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name that the user logs in with.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option("--password-file", metavar="FILE", help="Read the password from FILE (- for stdin), and ask nobody."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="Instead of a password make a token, and write it to the new FILE."
    ),
]


@app.command("list")
@debuggable
def list_users(json: Json = False, json_file: JsonFile = None, config: Config = None) -> None:
    """List the users, with their roles and open sessions."""
    from rich.table import Table

    from discovery.store.database import stamp
    from station import terminal

    with _accounts(config) as accounts:
        users = accounts.users()
    rows = [
        {
            "name": user.name,
            "role": str(user.role),
            "logs_in_with": "password" if user.has_password else "token",
            "added_at": stamp(user.made_at).isoformat(),
            "seen_at": stamp(user.seen_at).isoformat() if user.seen_at else None,
            "sessions": user.sessions,
        }
        for user in users
    ]
    if terminal.emit_json({"users": rows}, json, json_file):
        return
    table = Table()
    for column in ("name", "role", "logs in with", "added", "last seen", "sessions"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            *(str(value)[:16] if key.endswith("_at") and value else str(value or "") for key, value in row.items())
        )
    terminal.out().print(table)


@app.command("add")
@debuggable
def add(
    name: Name,
    role: Annotated[str, typer.Option("--role", help="view (look), review (also judge and name) or admin.")],
    password_file: PasswordFile = None,
    token_file: TokenFile = None,
    config: Config = None,
) -> None:
    """Add a user; the password is asked for, twice."""
    from station.web.accounts import Role

    if role not in list(Role):
        raise UsageError(f"--role {role}: choose from {', '.join(Role)}")
    with _accounts(config) as accounts:
        _check_name_is_free(accounts, name)
        password = _password(password_file, token_file)
        _write_token(accounts.add(name, Role(role), password), token_file)
    _report(f"user {name} has the role {role}")


@app.command("password")
@debuggable
def password(
    name: Name, password_file: PasswordFile = None, token_file: TokenFile = None, config: Config = None
) -> None:
    """Give a user another password, or a new token; the user's sessions end."""
    with _accounts(config) as accounts:
        if name not in (user.name for user in accounts.users()):
            raise UsageError(f"no user {name!r}: `flawline users list` shows the names")
        _write_token(accounts.change_credentials(name, _password(password_file, token_file)), token_file)
    _report(f"user {name} logs in with the new {'token' if token_file else 'password'}")


@app.command("remove")
@debuggable
def remove(name: Name, config: Config = None) -> None:
    """Remove a user; the user's sessions end."""
    with _accounts(config) as accounts:
        accounts.remove(name)
    _report(f"user {name} is removed")


@contextmanager
def _accounts(config: Path | None) -> Iterator[Accounts]:
    from station.web.accounts import Accounts

    accounts = Accounts(settings_of(config).data_dir)
    try:
        yield accounts
    finally:
        accounts.close()


def _check_name_is_free(accounts: Accounts, name: str) -> None:
    """Raise UsageError before a password is asked for in vain."""
    if name in (user.name for user in accounts.users()):
        raise UsageError(f"user {name!r} exists already: `flawline users password` changes the password")


def _password(password_file: Path | None, token_file: Path | None) -> str | None:
    """Return the password from a file or from the terminal, None where a token is wanted. Raises UsageError."""
    if password_file and token_file:
        raise UsageError("--password-file and --token-file: a user has a password or a token: give one of them")
    if token_file:
        if token_file.exists():
            raise UsageError(f"--token-file {token_file}: exists already: name a new file")
        return None
    if password_file:
        try:
            text = sys.stdin.read() if str(password_file) == "-" else password_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--password-file {password_file}: cannot be read: {error}") from error
        return text.removesuffix("\n").removesuffix("\r")
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for the password: use --password-file FILE, - for stdin")
    first = getpass.getpass("password: ")
    if getpass.getpass("again: ") != first:
        raise UsageError("the two passwords differ: try again")
    return first


def _write_token(token: str | None, file: Path | None) -> None:
    """Write a token to a new file that its user alone may read: no output of a command shows a secret."""
    if token is None or file is None:
        return
    try:
        with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as opened:
            opened.write(token + "\n")
    except OSError as error:
        raise FlawlineError(
            f"--token-file {file}: cannot be written ({error.strerror}): `flawline users password` makes another token"
        ) from error


def _report(text: str) -> None:
    from station import terminal

    terminal.out().print(text, highlight=False, markup=False)
