"""The console's users and their sessions: a SQLite file of this machine that its user alone may read.

They are not in the store, because Grafana reads that, and because a person can then log in while the store is away.
What is kept of a password is its Argon2id hash, and of a token its SHA-256.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flawline import clock
from flawline.errors import FlawlineError, UsageError, one_line
from station.web import passwords

FILE_NAME = "users.db"
NAME_LENGTH = 64

SEEN_STEP_NS = 60 * 1_000_000_000
"""A session's last use is written once in this time, so that reading a page writes nothing as a rule."""

BUSY_TIMEOUT_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, password TEXT, token TEXT UNIQUE, made_at INTEGER NOT NULL,
    seen_at INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (
    token TEXT PRIMARY KEY, user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    begun_at INTEGER NOT NULL, seen_at INTEGER NOT NULL
) WITHOUT ROWID;
"""


class Role(StrEnum):
    """What a user may do: look; also judge, name and merge; also see the users and end their sessions."""

    VIEW = "view"
    REVIEW = "review"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        """Return whether this role may do what `needed` may."""
        roles = list(Role)
        return roles.index(self) >= roles.index(needed)


@dataclass(frozen=True)
class User:
    """A user; times are ns UTC, and `seen_at` is the last use of a page, None before the first."""

    name: str
    role: Role
    has_password: bool
    has_token: bool
    made_at: int
    seen_at: int | None
    sessions: int


@dataclass(frozen=True)
class Limits:
    """How long a session lasts without use, and at most, in ns."""

    idle_ns: int
    whole_ns: int


class Accounts:
    """The users of a console. Safe for several threads and processes."""

    def __init__(self, folder: Path, utc_ns: clock.UtcNs = clock.utc_ns) -> None:
        """Open the file of users in a folder, and make what is missing. Raises FlawlineError."""
        self.path = folder / FILE_NAME
        self._utc_ns = utc_ns
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # SQLite gives its other files the rights of this one.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self.path.chmod(0o600)
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise FlawlineError(
                f"users {self.path}: cannot be used: {one_line(error)}: check who owns the file and its folder"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def are_there(self) -> bool:
        """Return whether there is any user."""
        return bool(self._rows("SELECT 1 FROM users LIMIT 1"))

    def users(self) -> list[User]:
        """Return the users by name."""
        query = """SELECT name, role, password IS NOT NULL, token IS NOT NULL, made_at, seen_at,
                   (SELECT COUNT(*) FROM sessions WHERE user = name) FROM users ORDER BY name"""
        return [
            User(name, Role(role), bool(password), bool(token), made_at, seen_at, sessions)
            for name, role, password, token, made_at, seen_at, sessions in self._rows(query)
        ]

    def add(self, name: str, role: Role, password: str | None) -> str | None:
        """Add a user with a password, or without one a user with a token, which is returned. Raises UsageError."""
        if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable() or name != name.strip():
            raise UsageError(f"user {name!r}: give a name of 1 to {NAME_LENGTH} printable characters")
        hashed, token = _credentials(password)
        with self._writing() as connection:
            if connection.execute("SELECT 1 FROM users WHERE name = ?", (name,)).fetchone():
                raise UsageError(f"user {name!r} exists already: `flawline users password` changes the password")
            connection.execute(
                "INSERT INTO users (name, role, password, token, made_at) VALUES (?, ?, ?, ?, ?)",
                (name, role, hashed, passwords.digest(token) if token else None, self._utc_ns()),
            )
        return token

    def change_credentials(self, name: str, password: str | None) -> str | None:
        """Give a user another password, or a new token, which is returned; the sessions end. Raises UsageError."""
        hashed, token = _credentials(password)
        with self._writing() as connection:
            changed = connection.execute(
                "UPDATE users SET password = ?, token = ? WHERE name = ?",
                (hashed, passwords.digest(token) if token else None, name),
            )
            _require_user(changed, name)
            connection.execute("DELETE FROM sessions WHERE user = ?", (name,))
        return token

    def remove(self, name: str) -> None:
        """Remove a user; the sessions end. Raises UsageError."""
        with self._writing() as connection:
            _require_user(connection.execute("DELETE FROM users WHERE name = ?", (name,)), name)

    def role_with_password(self, name: str, password: str) -> Role | None:
        """Return the role of a user with this password, None when one of the two is wrong; both take as long."""
        rows = self._rows("SELECT password, role FROM users WHERE name = ?", name)
        hashed, role = rows[0] if rows else (None, "")
        return Role(role) if passwords.is_password(password, hashed) else None

    def user_with_token(self, token: str) -> tuple[str, Role] | None:
        """Return the name and the role of the user with this token, None for another one."""
        rows = self._rows("SELECT name, role, seen_at FROM users WHERE token = ?", passwords.digest(token))
        if not rows:
            return None
        (name, role, seen_at), now = rows[0], self._utc_ns()
        if now - (seen_at or 0) > SEEN_STEP_NS:
            with self._writing() as connection:
                connection.execute("UPDATE users SET seen_at = ? WHERE name = ?", (now, name))
        return name, Role(role)

    def begin_session(self, name: str) -> str:
        """Return the token of a new session of a user."""
        token, now = passwords.new_token(), self._utc_ns()
        with self._writing() as connection:
            connection.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", (passwords.digest(token), name, now, now))
            connection.execute("UPDATE users SET seen_at = ? WHERE name = ?", (now, name))
        return token

    def user_of_session(self, token: str, limits: Limits) -> tuple[str, Role] | None:
        """Return the name and the role of a session's user and mark it as used; None when it has ended."""
        key, now = passwords.digest(token), self._utc_ns()
        rows = self._rows(
            "SELECT name, role, begun_at, s.seen_at FROM sessions s JOIN users ON name = user WHERE s.token = ?", key
        )
        if not rows:
            return None
        name, role, begun_at, seen_at = rows[0]
        if now - seen_at > limits.idle_ns or now - begun_at > limits.whole_ns:
            self.end_session(token)
            return None
        if now - seen_at > SEEN_STEP_NS:
            with self._writing() as connection:
                connection.execute("UPDATE sessions SET seen_at = ? WHERE token = ?", (now, key))
                connection.execute("UPDATE users SET seen_at = ? WHERE name = ?", (now, name))
        return name, Role(role)

    def end_session(self, token: str) -> None:
        """End a session; one that has ended stays so."""
        with self._writing() as connection:
            connection.execute("DELETE FROM sessions WHERE token = ?", (passwords.digest(token),))

    def end_sessions(self, name: str) -> int:
        """End all sessions of a user and return how many there were."""
        with self._writing() as connection:
            return connection.execute("DELETE FROM sessions WHERE user = ?", (name,)).rowcount

    def forget_ended(self, limits: Limits) -> None:
        """Remove the sessions whose time is over, which nobody asks for any more."""
        now = self._utc_ns()
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM sessions WHERE seen_at < ? OR begun_at < ?", (now - limits.idle_ns, now - limits.whole_ns)
            )

    def _rows(self, query: str, *values: object) -> list[tuple]:
        with self._lock, self._translated():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise FlawlineError(f"users {self.path}: {one_line(error)}: check the file and its disk") from error


def _credentials(password: str | None) -> tuple[str | None, str | None]:
    """Return the hash of a password, or a new token when there is none."""
    if password is None:
        return None, passwords.new_token()
    passwords.check_password(password)
    return passwords.hash_password(password), None


def _require_user(changed: sqlite3.Cursor, name: str) -> None:
    if not changed.rowcount:
        raise UsageError(f"no user {name!r}: `flawline users list` shows the names")
