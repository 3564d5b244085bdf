"""A private PostgreSQL server for tests: the Debian package's binaries, a cluster in a folder, a port of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import sql

from tests.support.brokers import Certificates, unique
from tests.support.ports import reserved_port

# PostgreSQL refuses to run as root, so it runs as this user when the tests do not.
_USER = "postgres"
_START_TIMEOUT_S = 60.0


def binaries() -> Path | None:
    """Return the folder of initdb and postgres of the newest version, None where PostgreSQL is not installed."""
    if initdb := shutil.which("initdb"):
        return Path(initdb).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return versions[-1].parent if versions else None


class PostgresServer:
    """Runs a server on 127.0.0.1 without passwords, with settings fit for tests: a power cut may lose data.

    With `certificates` it takes TLS only, and asks the user `guarded` for the password `word-of-a-test`.
    """

    def __init__(self, binaries: Path, certificates: Certificates | None = None) -> None:
        self.port = reserved_port()
        self._binaries = binaries
        self._certificates = certificates
        # Not below pytest's folders: only root may enter those, and the server runs as another user.
        self._folder = Path(tempfile.mkdtemp(prefix="flawline-postgres-"))
        self._as_user = {"user": _USER} if os.geteuid() == 0 else {}
        if self._as_user:
            shutil.chown(self._folder, _USER)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> PostgresServer:
        """Create the cluster where there is none, start the server, and return when it accepts connections."""
        data = self._folder / "data"
        if not data.exists():
            self._run("initdb", "-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        options = ("-k", str(self._folder), "-h", "127.0.0.1", "-p", str(self.port))
        options += ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "shared_buffers=64MB")
        if self._certificates is not None:
            options += self._tls_options(self._certificates, data / "pg_hba.conf")
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", str(data), *options], cwd="/", stdout=log, stderr=log, **self._as_user
        )
        log.close()
        self._wait_until_ready()
        return self

    def _tls_options(self, certificates: Certificates, rules: Path) -> tuple[str, ...]:
        """Return the server's options for TLS, and write who may come in: nobody in plain text."""
        rules.write_text(
            "hostssl all guarded 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 trust\n", encoding="ascii"
        )
        options: tuple[str, ...] = ("-c", "ssl=on")
        for option, source in (
            ("ssl_cert_file", certificates.certificate("broker")),
            ("ssl_key_file", certificates.key("broker")),
        ):
            file = self._folder / source.name
            file.write_bytes(source.read_bytes())
            file.chmod(0o600)  # the server refuses a key that others may read
            if self._as_user:
                shutil.chown(file, _USER)
            options += ("-c", f"{option}={file}")
        return options

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                psycopg.connect(self._address("postgres")).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.1)
        log = (self._folder / "log").read_text()
        self.stop()
        raise RuntimeError(f"PostgreSQL did not start: {log}")

    def _run(self, name: str, *arguments: str) -> None:
        command = [self._binaries / name, *arguments]
        result = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120, **self._as_user)
        if result.returncode:
            raise RuntimeError(f"{name}: {result.stdout}{result.stderr}")

    def new_database(self, name: str = "line") -> str:
        """Create an empty database; return its SQLAlchemy URL."""
        database = unique(name)
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def _address(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def shut_down(self) -> None:
        """End the server at once and keep its data, which the next `start` uses."""
        if self._process is not None:
            self.thaw()
            self._process.send_signal(signal.SIGINT)  # a fast shutdown: clients are sent away
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop its processes as they are (SIGSTOP): connections stay, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let its processes go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        for process in (server, *server.children(recursive=True)):  # the parent first: it starts no more children
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def stop(self) -> None:
        """End the server at once and remove its folder."""
        self.shut_down()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Run one PostgreSQL for the whole session; skip where it is not installed."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL for one test, which may stop it and start it again."""
    with running_postgres() as server:
        yield server


@contextlib.contextmanager
def running_postgres(certificates: Certificates | None = None) -> Iterator[PostgresServer]:
    """Run a PostgreSQL, with TLS where there are certificates; skip where it is not installed."""
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    server = PostgresServer(folder, certificates)
    try:
        yield server.start()
    finally:
        server.stop()
