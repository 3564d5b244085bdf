"""The database behind the store: SQLite or PostgreSQL, transactions, and the right to be its one discovery process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, create_engine, event, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from discovery.store import schema
from flawline import clock
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.file_lock import try_lock

BUSY_TIMEOUT_S = 30.0
PARAMETERS_PER_QUERY = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ADVISORY_LOCK = 0x466C61776C696E65  # "Flawline"


def stamp(time_ns: int) -> datetime:
    """Nanoseconds UTC as an aware datetime."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def nanoseconds(at: datetime) -> int:
    """An aware datetime as nanoseconds UTC."""
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


class Database:
    """An opened store. Safe to use from several threads."""

    def __init__(self, url: str, utc_ns: clock.UtcNs = clock.utc_ns) -> None:
        """Open the store and create what is missing. Raises UsageError or FlawlineError in one line."""
        self.utc_ns = utc_ns
        try:
            self.url = make_url(url)
            if self.url.drivername == "postgresql":
                self.url = self.url.set(drivername="postgresql+psycopg")
            if self.url.get_backend_name() not in ("sqlite", "postgresql"):
                raise UsageError(f"store.url names {self.url.get_backend_name()!r}: sqlite and postgresql are known")
            if self.sqlite_file:
                self.sqlite_file.parent.mkdir(parents=True, exist_ok=True)
            self._engine = _engine(self.url.render_as_string(hide_password=False))
        except (ArgumentError, NoSuchModuleError) as error:
            raise UsageError(
                "store.url is no database URL: write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
            ) from error
        except OSError as error:
            raise FlawlineError(f"{self.sqlite_file}: cannot be created: {error.strerror}") from error
        with self.transaction() as connection:
            _upgrade(connection)
            schema.metadata.create_all(connection)
            known = fact(connection, "schema", str(schema.SCHEMA_VERSION))
        if known != str(schema.SCHEMA_VERSION):
            self.close()
            raise FlawlineError(
                f"store {self} has schema {known}, this version reads {schema.SCHEMA_VERSION}: "
                "use the version that wrote it, or another store.url"
            )

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @property
    def sqlite_file(self) -> Path | None:
        """The database file, None for PostgreSQL and for memory."""
        if self.url.get_backend_name() != "sqlite" or self.url.database in (None, "", ":memory:"):
            return None
        return Path(str(self.url.database))

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All or nothing. What goes wrong with the database is a FlawlineError that names the store."""
        try:
            with self._engine.connect().execution_options(flawline_write=True) as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise FlawlineError(f"store {self}: {_reason(error)}: check that it runs and has room") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent view of the store that holds up nobody."""
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise FlawlineError(f"store {self}: {_reason(error)}: check that it runs and can be reached") from error

    def try_lock(self) -> contextlib.ExitStack | None:
        """The right to be the one discovery process of this store until the result is closed; None: another has it."""
        stack = contextlib.ExitStack()
        if self.url.get_backend_name() == "postgresql":
            # The lock ends with its connection, so a killed process leaves none behind.
            connection = stack.enter_context(self._engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
            held = connection.scalar(select(func.pg_try_advisory_lock(_ADVISORY_LOCK)))
            stack.callback(connection.invalidate)
        elif self.sqlite_file:
            lock = try_lock(self.sqlite_file.with_name(self.sqlite_file.name + ".lock"))
            held = lock is not None
            stack.callback(lock.close if lock else lambda: None)
        else:
            held = True
        if not held:
            stack.close()
            return None
        return stack


def _upgrade(connection: Connection) -> None:
    """Bring a store of version 1 to 2, which has one table more and counts it in the view. Nothing for a new store."""
    if not inspect(connection).has_table("facts"):
        return
    if known_fact(connection, "schema", "") == "1":
        if connection.dialect.name == "sqlite":  # PostgreSQL replaces the view, and who may read it, where it stands
            connection.exec_driver_sql("DROP VIEW IF EXISTS defect_minutes")
        set_fact(connection, "schema", "2")


def fact(connection: Connection, name: str, default: str) -> str:
    """A single remembered value; the default is written when there is none."""
    table = schema.facts
    value = connection.scalar(select(table.c.value).where(table.c.name == name))
    if value is None:
        set_fact(connection, name, default)
        return default
    return str(value)


def known_fact(connection: Connection, name: str, default: str) -> str:
    """A single remembered value, or the default; nothing is written."""
    value = connection.scalar(select(schema.facts.c.value).where(schema.facts.c.name == name))
    return default if value is None else str(value)


def set_fact(connection: Connection, name: str, value: str) -> None:
    """Remember a single value."""
    upsert(connection, schema.facts, {"name": name, "value": value})


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late for a consistent read
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A reader that turns writer half-way can only fail; who means to write says so at once and waits.
        write = connection.get_execution_options().get("flawline_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _reason(error: DBAPIError) -> str:
    """Return what the database itself reports, without SQLAlchemy's statement and link around it."""
    return one_line(error.orig or error)


def insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows ON CONFLICT."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def upsert(
    connection: Connection,
    table: Table,
    row: Mapping[str, Any],
    add: tuple[str, ...] = (),
    highest: tuple[str, ...] = (),
) -> None:
    """Insert a row or overwrite it; columns of `add` are summed, those of `highest` keep the larger value."""
    statement = insert(connection, table).values(dict(row))
    keys = [column.name for column in table.primary_key]
    changes = {}
    for name in row.keys() - set(keys):
        old, new = table.c[name], statement.excluded[name]
        larger = greatest(connection)
        changes[name] = old + new if name in add else larger(old, new) if name in highest else new
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes))


def greatest(connection: Connection) -> Any:
    """SQL's larger of two values, which SQLite calls max."""
    return func.greatest if connection.dialect.name == "postgresql" else func.max


def parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Pieces that fit into the parameters of one query."""
    return (items[start : start + PARAMETERS_PER_QUERY] for start in range(0, len(items), PARAMETERS_PER_QUERY))
