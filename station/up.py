"""All roles of a line on one machine: child processes, watched, restarted at a limited rate, stopped in order."""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from embedded_broker import ADDRESS_FILE
from flawline import kafka_clients
from flawline.child_process import ChildProcess, exit_text
from flawline.clock import Monotonic, monotonic
from flawline.errors import FlawlineError, UsageError
from flawline.restarts import RestartLimit
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

POLL_S = 0.2
BROKER_READY_S = 30.0
STOP_TIMEOUT_S = 45.0
"""A role has this long to stop (drain, spool, commit); then it is killed."""

USAGE_EXIT = 2


@dataclass(frozen=True)
class Role:
    """A sub-command that `up` runs; `may_end` says that exit code 0 is no death (cameras that have an end)."""

    name: str
    arguments: tuple[str, ...]
    may_end: bool = False


class Child:
    """One role's process, over its restarts."""

    def __init__(self, role: Role, environment: dict[str, str], limit: RestartLimit, clock: Monotonic) -> None:
        self.role = role
        self.ended = False
        self._environment = environment
        self._limit = limit
        self._clock = clock
        self._process: ChildProcess | None = None
        self._start_at = clock()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    def tend(self) -> None:
        """Start the process when it is due, and check whether it died. Raises FlawlineError when it died too often."""
        if self.ended:
            return
        if self._process is None:
            if self._clock() >= self._start_at:
                self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        self._process = None
        if code == 0 and self.role.may_end:
            self.ended = True
            log.info("%s has ended: its cameras have no more frames", self.role.name)
            return
        if code == USAGE_EXIT:
            raise UsageError(f"role {self.role.name} refuses its configuration: correct what it reports above")
        wait_s = self._limit.wait_s()
        if wait_s is None:
            raise FlawlineError(
                f"role {self.role.name} died {self._limit.limit + 1} times within {self._limit.window_s:.0f} s, "
                f"last with {exit_text(code)}: correct what it reports above, then start again"
            )
        log.warning("%s died with %s, it starts again in %.1f s", self.role.name, exit_text(code), wait_s)
        self._start_at = self._clock() + wait_s

    def _start(self) -> None:
        command = [sys.executable, "-m", "station.cli", *self.role.arguments]
        self._process = ChildProcess(command, environment=self._environment)
        log.info("%s runs as process %d", self.role.name, self._process.pid)

    def stop(self, deadline: float) -> None:
        """Ask the process to end, and kill it when it has not ended by `deadline` (seconds of the clock)."""
        if self._process is not None and not self._process.stop(max(0.1, deadline - self._clock())):
            log.error("%s does not stop, so it is killed", self.role.name)


def roles(settings: Settings) -> list[Role]:
    """Return the roles of a line in the order in which they stop: those that make work first."""
    result = [Role("produce", ("produce",), may_end=True)] if settings.cameras else []
    result += [Role("work", ("work",)), Role("discover", ("discover",)), Role("ledger", ("ledger", "--watch"))]
    return [*result, Role("console", ("console",))] if settings.console.port else result


def run(settings: Settings, stop: threading.Event, config: Path | None = None) -> None:
    """Run every role until `stop` is set. Raises FlawlineError when a role keeps dying."""
    environment: dict[str, str] = {}
    if config:
        environment["FLAWLINE_CONFIG"] = str(config.absolute())
    server: Child | None = None
    children: list[Child] = []
    try:
        if settings.kafka.bootstrap_servers is None:
            address = settings.data_dir / "broker" / ADDRESS_FILE
            address.unlink(missing_ok=True)  # it may be of an earlier start
            server = Child(Role("broker", ("broker",)), environment, _restart_limit(), monotonic)
            port = _wait_for_broker(settings, address, server, stop)
            if port and settings.embedded.port == 0:
                # The roles, and the broker when it starts again, use the port that it got.
                environment["FLAWLINE_EMBEDDED__PORT"] = str(port)
                embedded = settings.embedded.model_copy(update={"port": port})
                settings = settings.model_copy(update={"embedded": embedded})
        if stop.is_set():
            return
        kafka_clients.ensure_topics(settings)
        children = [Child(role, environment, _restart_limit(), monotonic) for role in roles(settings)]
        if not settings.cameras:
            log.warning("no cameras are configured: the line waits for frames from elsewhere")
        tended = [*([server] if server else []), *children]
        while not stop.wait(POLL_S):
            for child in tended:
                child.tend()
    finally:
        for child in [*children, *([server] if server else [])]:
            child.stop(monotonic() + STOP_TIMEOUT_S)


def _wait_for_broker(settings: Settings, address: Path, server: Child, stop: threading.Event) -> int | None:
    """Start the embedded broker and return its port once it listens, None when `stop` comes first.

    The broker writes the file `address` when it listens. Raises FlawlineError when it does not within BROKER_READY_S.
    """
    deadline = monotonic() + BROKER_READY_S
    while not stop.is_set():
        server.tend()
        if address.is_file() and (text := address.read_text().strip()):
            return int(text.rpartition(":")[2])
        if monotonic() > deadline:
            raise FlawlineError(
                f"the embedded broker does not listen on {settings.bootstrap_servers} after {BROKER_READY_S:.0f} s: "
                "see what it reports above"
            )
        stop.wait(POLL_S)
    return None


def _restart_limit() -> RestartLimit:
    return RestartLimit(limit=5, window_s=60.0, first_wait_s=0.5)  # a judgement, not measured
