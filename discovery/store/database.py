"""The database behind the store: SQLite or PostgreSQL, transactions, and the right to be its one discovery process."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
from sqlalchemy import URL, Connection, Table, create_engine, event, func, inspect, select
from sqlalchemy import column as sql_column
from sqlalchemy import table as sql_table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.schema import CreateColumn

from discovery.store import schema
from flawline import clock
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.file_lock import try_lock

if TYPE_CHECKING:
    from psycopg.abc import RV, PQGen

BUSY_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0
"""Less than the 45 s that a role has to stop. A judgement, not measured."""
CONNECT_TIMEOUT_S = 10.0
FORMER_VERSIONS = ("1", "2")
SERVER_KEEPALIVES = ("tcp_keepalives_idle = 30", "tcp_keepalives_interval = 10", "tcp_keepalives_count = 3")
"""A client whose machine has gone is noticed by the server within a minute, which then gives its lock to a standby."""
PARAMETERS_PER_QUERY = 500
LISTED_AT_ONCE = 2_000
MINUTE_NS = 60_000_000_000
HOUR_NS = 60 * MINUTE_NS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AWAY = (OperationalError, InterfaceError, InternalError)
"""What network, disk or failover cause (a read-only standby is InternalError); other errors are mistakes of ours."""
_ADVISORY_LOCK = 0x466C61776C696E65  # "Flawline"
_TABLES_LOCK = _ADVISORY_LOCK + 1


def stamp(time_ns: int) -> datetime:
    """Return nanoseconds UTC as an aware datetime."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def nanoseconds(at: datetime) -> int:
    """Return an aware datetime as nanoseconds UTC."""
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


class DatabaseAway(FlawlineError):
    """The store does not answer, or takes nothing; it may be well at the next try, until then nothing is written."""


class LockLost(DatabaseAway):
    """Another process may be the writer of this store now: what this one knows about it is no longer true."""


class Database:
    """An opened store. Safe to use from several threads; the holder of its lock writes from one."""

    def __init__(
        self, url: str, utc_ns: clock.UtcNs = clock.utc_ns, answer_timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        """Open the store and create what is missing.

        A statement that PostgreSQL does not answer within `answer_timeout_s` is given up, and its connection with it.
        Raises UsageError for a URL that names no store, DatabaseAway, or FlawlineError for a store of another version.
        """
        self.utc_ns = utc_ns
        self.url = parse_url(url)
        self._writer: Connection | None = None
        try:
            if self.sqlite_file:
                self.sqlite_file.parent.mkdir(parents=True, exist_ok=True)
            self._engine = _engine(self.url, answer_timeout_s)
        except OSError as error:
            raise DatabaseAway(
                f"store {self.sqlite_file}: cannot be created: {error.strerror}: check its folder"
            ) from error
        try:
            self._prepare()
        except FlawlineError:
            self.close()
            raise

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
        """Give a transaction, all or nothing.

        The holder of the lock of a PostgreSQL store writes on the very connection that holds the lock: when the lock is
        gone so is the transaction, and there are never two writers. Raises DatabaseAway, LockLost or FlawlineError.
        """
        with self._translated("check that it runs and has room"):
            if self._writer is not None:
                with self._on_writer(self._writer) as connection:
                    yield connection
            else:
                with self._engine.connect().execution_options(flawline_write=True) as connection, connection.begin():
                    yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a consistent view of the store that holds up nobody. Raises DatabaseAway or FlawlineError."""
        with (
            self._translated("check that it runs and can be reached"),
            self._engine.connect() as connection,
            connection.begin(),
        ):
            yield connection

    def checkpoint(self) -> None:
        """Write the log of a SQLite store into its file, which gets as small as it can be. Raises DatabaseAway."""
        if self.sqlite_file:
            with self._translated("check that it has room"), contextlib.closing(self._engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # not in a transaction

    def try_lock(self) -> contextlib.ExitStack | None:
        """Return the right to be the one writer of this store, until it is closed; None when another process has it.

        Raises DatabaseAway.
        """
        stack = contextlib.ExitStack()
        if self.url.get_backend_name() == "postgresql":
            # The lock ends with its connection, so a killed process leaves none behind.
            with self._translated("check that it runs and can be reached"):
                connection = stack.enter_context(self._engine.connect())
                stack.callback(connection.invalidate)
                with connection.begin():
                    held = bool(connection.scalar(select(func.pg_try_advisory_lock(_ADVISORY_LOCK))))
            if held:
                self._writer = connection
                stack.callback(setattr, self, "_writer", None)
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

    def check_lock(self) -> None:
        """Raise LockLost when the lock that this store took is gone; for a writer that has had nothing to write."""
        if self._writer is not None:
            with self._translated("check that it runs"), self._on_writer(self._writer) as connection:
                connection.execute(select(1))

    @contextlib.contextmanager
    def _on_writer(self, connection: Connection) -> Iterator[Connection]:
        """Give a transaction on the connection that holds the lock. Raises LockLost when that connection has ended."""
        lost = f"store {self}: the connection that holds the right to write has ended"
        if connection.invalidated:  # SQLAlchemy would open another one, without the lock
            raise LockLost(lost)
        try:
            with connection.begin():
                yield connection
        except DBAPIError as error:
            if connection.invalidated:
                raise LockLost(f"{lost} ({_reason(error)})") from error
            raise

    @contextlib.contextmanager
    def _translated(self, remedy: str) -> Iterator[None]:
        """Turn what goes wrong with the database into an error that names the store: DatabaseAway, or FlawlineError."""
        try:
            yield
        except DBAPIError as error:
            kind = DatabaseAway if error.connection_invalidated or isinstance(error, _AWAY) else FlawlineError
            raise kind(f"store {self}: {_reason(error)}: {remedy_of(error) or remedy}") from error
        except PoolTimeout as error:  # every connection waits for an answer
            raise DatabaseAway(f"store {self}: all its connections are busy: {remedy}") from error

    def _prepare(self) -> None:
        """Create or upgrade the tables where that is needed; a store that is ready is only read."""
        current = str(schema.SCHEMA_VERSION)
        with self.reading() as connection:
            tables = set(inspect(connection).get_table_names())
            known = fact(connection, "schema", "") if schema.facts.name in tables else ""
        if known not in ("", *FORMER_VERSIONS, current):
            raise FlawlineError(
                f"store {self} has schema {known}, this version reads {current}: "
                "use the version that wrote it, or another store.url"
            )
        if known != current or schema.metadata.tables.keys() - tables:
            with self.transaction() as connection:
                if connection.dialect.name == "postgresql":  # several roles meet a new store; SQLite has one writer
                    connection.execute(select(func.pg_advisory_xact_lock(_TABLES_LOCK)))
                _upgrade(connection)
                schema.metadata.create_all(connection)
                if schema.pictures.name not in tables:
                    _list_pictures(connection)
                if schema.verdict_hours.name not in tables:
                    _count_hours(connection)
                _add_indexes(connection)
                set_fact(connection, "schema", current)


def parse_url(text: str) -> URL:
    """Return the database URL of a store. Raises UsageError, which does not repeat it: it may hold a password."""
    try:
        url = make_url(text)
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise UsageError(f"store.url names {url.get_backend_name()!r}: sqlite and postgresql are known")
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(
            "store.url is no database URL: write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from error
    return url


def _upgrade(connection: Connection) -> None:
    """Bring the tables of a former version to this one. A new store needs nothing."""
    if not inspect(connection).has_table("facts") or fact(connection, "schema", "") not in FORMER_VERSIONS:
        return
    if connection.dialect.name == "sqlite":
        # PostgreSQL replaces the view, and who may read it, where it stands.
        connection.exec_driver_sql("DROP VIEW IF EXISTS defect_minutes")
    for table in schema.metadata.sorted_tables:
        if inspect(connection).has_table(table.name):
            _add_columns(connection, table)


def _add_columns(connection: Connection, table: Table) -> None:
    """Give a table of a former version its new columns, which have a default, and the indexes that it lacks."""
    known = {column["name"] for column in inspect(connection).get_columns(table.name)}
    added = [column for column in table.columns if column.name not in known]
    has_new_key = any(column.primary_key for column in added)
    if has_new_key and connection.dialect.name == "sqlite":  # which cannot change the key of a table
        connection.exec_driver_sql(f"ALTER TABLE {table.name} RENAME TO former_{table.name}")
        table.create(connection)
        former = sql_table(f"former_{table.name}", *(sql_column(name) for name in sorted(known)))
        connection.execute(table.insert().from_select(sorted(known), select(former)))
        connection.exec_driver_sql(f"DROP TABLE former_{table.name}")
        return
    for column in added:
        definition = CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
    if has_new_key:
        keys = ", ".join(f'"{column.name}"' for column in table.primary_key)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} DROP CONSTRAINT {table.name}_pkey")
        connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD PRIMARY KEY ({keys})")
    for index in table.indexes if added else ():
        index.create(connection, checkfirst=True)


def _list_pictures(connection: Connection) -> None:
    """Fill the table `pictures` of a store that had none, in slices, so that no statement takes too long."""
    d, r = schema.defects.c, schema.regions.c
    of_regions = select(func.sum(func.length(r.crop) + func.length(r.mask))).where(r.defect_id == d.id)
    size_bytes = func.length(d.heatmap) + func.coalesce(of_regions.scalar_subquery(), 0)
    last = 0
    while rows := connection.execute(
        select(d.id, d.captured_ns, d.decision, size_bytes).where(d.id > last).order_by(d.id).limit(LISTED_AT_ONCE)
    ).all():
        last = rows[-1][0]
        names = ("defect_id", "hour", "decision", "size_bytes")
        listed = [dict(zip(names, (row[0], row[1] // HOUR_NS, *row[2:]), strict=True)) for row in rows if row[3]]
        if listed:
            connection.execute(schema.pictures.insert(), listed)


def _count_hours(connection: Connection) -> None:
    """Fill the table `verdict_hours` of a store that had none, a day at a time."""
    v = schema.verdict_minutes.c
    names = [column.name for column in schema.verdict_hours.primary_key if column.name != "hour"]
    keys = [v[name] for name in names]
    begin = connection.scalar(select(func.min(v.minute)))
    while begin is not None:
        end = stamp(nanoseconds(begin) // HOUR_NS * HOUR_NS + 24 * HOUR_NS)
        of_day = (v.minute >= begin) & (v.minute < end)
        rows = connection.execute(
            select(v.minute, func.sum(v.frames), *keys).where(of_day).group_by(v.minute, *keys)
        )  # fmt: skip
        hours: Counter[tuple[Any, ...]] = Counter()
        for minute, frames, *place in rows:
            hours[nanoseconds(minute) // HOUR_NS, *place] += int(frames)
        connection.execute(
            schema.verdict_hours.insert(),
            [
                {"hour": stamp(hour * HOUR_NS), "frames": frames, **dict(zip(names, place, strict=True))}
                for (hour, *place), frames in hours.items()
            ],
        )
        begin = connection.scalar(select(func.min(v.minute)).where(v.minute >= end))


def _add_indexes(connection: Connection) -> None:
    """Add the indexes that a table of an earlier release has not."""
    there = inspect(connection)
    for table in schema.metadata.tables.values():
        known = {index["name"] for index in there.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in known:
                index.create(connection)


def fact(connection: Connection, name: str, default: str) -> str:
    """Return a single remembered value, or the default; nothing is written."""
    value = connection.scalar(select(schema.facts.c.value).where(schema.facts.c.name == name))
    return default if value is None else str(value)


def set_fact(connection: Connection, name: str, value: str) -> None:
    """Remember a single value."""
    upsert(connection, schema.facts, {"name": name, "value": value})


def add_to_fact(connection: Connection, name: str, more: int) -> None:
    """Add to a remembered number."""
    set_fact(connection, name, str(int(fact(connection, name, "0")) + more))


def _engine(url: URL, answer_timeout_s: float) -> Engine:
    if url.get_backend_name() == "postgresql":
        return _postgresql_engine(url, answer_timeout_s)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late for a consistent read
        # A new file gets smaller when pages are given back. Before WAL, which writes the file's first page. The pragma
        # waits for the write lock, so a file that is there is left alone.
        if connection.execute("PRAGMA page_count").fetchone() == (0,):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A reader that turns writer half-way can only fail; who means to write says so at once and waits.
        write = connection.get_execution_options().get("flawline_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgresql_engine(url: URL, answer_timeout_s: float) -> Engine:
    connect_timeout_s = max(2, round(min(CONNECT_TIMEOUT_S, answer_timeout_s)))  # libpq takes whole seconds, 2 at least
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_timeout=answer_timeout_s,
        connect_args={"connect_timeout": connect_timeout_s},
    )

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
        connection = _PromptConnection.connect(*arguments, **options)
        # Longer than the server's own limit, which leaves the connection usable.
        connection.answer_timeout_s = answer_timeout_s + 2.0
        connection.autocommit = True
        connection.execute(f"SET statement_timeout = {round(1000 * answer_timeout_s)}")
        for setting in SERVER_KEEPALIVES:
            connection.execute(f"SET {setting}")
        connection.autocommit = False
        return connection

    return engine


class _PromptConnection(psycopg.Connection[Any]):
    """A connection that gives up a server which is silent for `answer_timeout_s`.

    The server's limits do not help when its processes are stopped or its machine hangs, and then the kernel, or a proxy
    between, may still acknowledge every packet.
    """

    answer_timeout_s = ANSWER_TIMEOUT_S

    def wait(self, gen: PQGen[RV], *arguments: Any, **options: Any) -> RV:
        return super().wait(self._within(gen), *arguments, **options)

    def _within(self, gen: PQGen[RV]) -> PQGen[RV]:
        """Pass on what `gen` asks for, until its time is over. Raises psycopg.OperationalError."""
        deadline = clock.monotonic() + self.answer_timeout_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and clock.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server has not answered for {self.answer_timeout_s:.0f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return cast("RV", end.value)


def _reason(error: DBAPIError) -> str:
    """Return what the database itself reports, without SQLAlchemy's statement and link around it."""
    return one_line(error.orig or error)


_REMEDIES = (
    ("root certificate file", "correct sslrootcert in store.url"),
    ("certificate verify failed", "set sslrootcert in store.url to its authority's certificate; renew an expired one"),
    ("does not match host name", "use the name that the server's certificate is for in store.url"),
    ("does not support SSL", "turn TLS on at the server (ssl = on), or correct sslmode in store.url"),
    ("no encryption", "the server may take TLS only: set sslmode=verify-full and sslrootcert in store.url"),
    ("no pg_hba.conf entry", "allow this user and this machine in the server's pg_hba.conf"),
    ("password authentication failed", "correct user and password in store.url"),
)  # fmt: skip
"""What libpq says about a connection that is refused, the first that fits, and what a person can do about it."""


def remedy_of(error: BaseException) -> str | None:
    """Return what to change when the server or libpq refuses this client, None for another error."""
    text = str(getattr(error, "orig", None) or error)
    return next((remedy for sign, remedy in _REMEDIES if sign in text), None)


def insert(connection: Connection, table: Table) -> Any:
    """Return an INSERT of the dialect, which knows ON CONFLICT."""
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
    """Return SQL's function for the larger of two values, which SQLite calls max."""
    return func.greatest if connection.dialect.name == "postgresql" else func.max


def parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield pieces that fit into the parameters of one query."""
    return (items[start : start + PARAMETERS_PER_QUERY] for start in range(0, len(items), PARAMETERS_PER_QUERY))
