"""TCP ports on 127.0.0.1 for tests: one that a server will bind, and one where nobody listens.

Where a server can take port 0 and tell which port it got, a test does that and needs nothing of this module.
"""

from __future__ import annotations

import getpass
import random
import socket
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from flawline.file_lock import try_lock

PORTS = range(20_000, 30_000)
"""Below the ports that systems choose from for port 0 and for outgoing connections (Linux from 32768, others from
49152), so that no other process gets one of these by chance."""

_locks: list[FileIO] = []


def reserved_port() -> int:
    """Return a port that no other process binds by chance, and no other test run at all, until this process ends.

    It is for servers that must be told their port: Apache Kafka, PostgreSQL and Prometheus have it in their
    configuration, a metrics endpoint takes 0 as "off", and a server that restarts must find its port free again. A
    port that the system chose for a probe, which is then closed, does not do: until the server binds it, the system
    may give it to any other process. So these ports lie outside of the system's choice. A lock file for each port
    keeps the test runs of one user apart, and a port where another server listens already is passed over.

    Raises RuntimeError when no port is left.
    """
    folder = Path(tempfile.gettempdir()) / f"flawline-test-ports-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    # Not the module's own generator: Hypothesis seeds it, and every test run would begin with the same port.
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        lock = try_lock(folder / str(port))
        if lock is None:
            continue
        if _can_be_bound(port):
            _locks.append(lock)
            return port
        lock.close()
    raise RuntimeError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free")


def _can_be_bound(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """Hold a port that refuses connections: it is bound, so that no process takes it, but nobody listens on it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
