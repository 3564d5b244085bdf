"""All roles of a line on one machine: child processes, watched, started again when they die, stopped in order.

A role fails alone. One that dies, cannot start or refuses its configuration is started again with growing pauses, for
as long as `up` runs, and the others go on: a store, a console or a model that is away must not cost a capture.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from discovery.store.database import parse_url
from embedded_broker import ADDRESS_FILE
from flawline import telemetry
from flawline.child_process import ChildProcess, exit_text
from flawline.clock import Monotonic, monotonic
from flawline.outage import REMINDER_S, Outage
from flawline.settings.tree import Settings
from station import ended_run, terminal

log = logging.getLogger(__name__)

POLL_S = 0.2
BROKER_READY_S = 30.0
LISTEN_TIMEOUT_S = 1.0  # a judgement, not measured
STOP_TIMEOUT_S = 45.0
"""A role has this long to stop (drain, spool, commit); then it is killed."""

USAGE_EXIT = 2

# Judgements, not measured: a role that dies of a passing fault is back within a second, and one whose fault stays costs
# a start (2 s of one core) every half a minute.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
WELL_S = 60.0
"""A role is well when it has run for so long; a model that cannot be loaded ends the workers within 12 s."""


@dataclass(frozen=True)
class Role:
    """A sub-command that `up` runs.

    `stage` says when it stops: those of stage 0 first, those of one stage together. `may_end` says that exit code 0 is
    no death (cameras that have an end).
    """

    name: str
    arguments: tuple[str, ...]
    stage: int = 2
    may_end: bool = False


@dataclass(frozen=True)
class Patience:
    """How `up` treats a role that dies: its pauses, when it is well again, how often the log says that it is not."""

    first_pause_s: float = FIRST_PAUSE_S
    longest_pause_s: float = LONGEST_PAUSE_S
    well_s: float = WELL_S
    reminder_s: float = REMINDER_S


PATIENCE = Patience()


class Child:
    """One role's process, over its restarts. Nothing that happens to it is raised."""

    def __init__(
        self, role: Role, environment: dict[str, str], patience: Patience = PATIENCE, clock: Monotonic = monotonic
    ) -> None:
        self.role = role
        self.has_ended = False
        self._environment = environment
        self._patience = patience
        self._clock = clock
        self._outage = Outage(
            patience.first_pause_s, patience.longest_pause_s, reminder_s=patience.reminder_s, clock=clock
        )
        self._process: ChildProcess | None = None
        self._start_at = clock()
        self._started_at = 0.0
        telemetry.ROLE_RESTARTS.labels(role.name)  # a counter that begins at 0 shows its first increment
        telemetry.ROLE_FAILING_SECONDS.labels(role.name).set_function(self._outage.age_s)
        telemetry.ROLE_UP.labels(role.name).set_function(lambda: self._process is not None)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def is_failing(self) -> bool:
        """Whether the process has died and has not run for long enough since then."""
        return self._outage.is_on

    def tend(self) -> None:
        """Start the process when it is due, and see whether it has died or is well again."""
        if self._process is not None:
            code = self._process.poll()
            if code is not None:
                self._process = None
                self._on_exit(code)
            elif self.is_failing and self._clock() - self._started_at >= self._patience.well_s:
                self._on_well()
        elif not self.has_ended and self._clock() >= self._start_at:
            self._start()

    def stop(self, timeout_s: float) -> None:
        """Ask the process to end, and kill it when it has not ended after `timeout_s`."""
        if self._process is not None and not self._process.stop(timeout_s):
            log.error("%s did not stop within %.0f s, so it was killed", self.role.name, timeout_s)

    def _start(self) -> None:
        command = [sys.executable, "-m", "station.cli", *self.role.arguments]
        self._started_at = self._clock()
        if self.is_failing:
            telemetry.ROLE_RESTARTS.labels(self.role.name).inc()
        try:
            self._process = ChildProcess(command, environment=self._environment)
        except OSError as error:  # no memory or no process left on this machine
            self._on_failure(f"cannot be started ({error.strerror})")
            return
        log.log(
            logging.DEBUG if self.is_failing else logging.INFO,
            "%s runs as process %d",
            self.role.name,
            self._process.pid,
        )

    def _on_exit(self, code: int) -> None:
        if code == 0 and self.role.may_end:
            self.has_ended = True
            self._outage.ended()
            log.info("%s has ended: its cameras have no more frames, and the other roles go on", self.role.name)
        elif code == USAGE_EXIT:
            self._on_failure("refuses its configuration")
        else:
            self._on_failure(f"died with {exit_text(code)}")

    def _on_failure(self, what: str) -> None:
        """Plan the next start, and log the first failure and now and then a later one."""
        failure = self._outage.failed()
        self._start_at = self._clock() + failure.pause_s
        if failure.is_first:
            log.error(
                "%s %s: it starts again in %.1f s, then with growing pauses, and the other roles go on; "
                "correct what it reports above",
                self.role.name,
                what,
                failure.pause_s,
            )
        elif failure.is_reported:
            log.error(
                "%s has been failing for %.0f s (%d times, now it %s): correct what it reports above",
                self.role.name,
                failure.since_s,
                failure.number,
                what,
            )

    def _on_well(self) -> None:
        failed_s = self._outage.age_s() - (self._clock() - self._started_at)
        log.info("%s is well again, after %.0f s and %d failures", self.role.name, failed_s, self._outage.failures)
        self._outage.ended()


def roles(settings: Settings) -> list[Role]:
    """Return the roles of a line; those that make work stop first."""
    result = [Role("produce", ("produce",), stage=0, may_end=True)] if settings.cameras else []
    result += [Role("work", ("work",), stage=1), Role("discover", ("discover",)), Role("ledger", ("ledger", "--watch"))]
    if settings.has_receivers:
        result.append(Role("notify", ("notify",)))
    return [*result, Role("console", ("console",))] if settings.console.port else result


def run(settings: Settings, stop: threading.Event, config: Path | None = None) -> None:
    """Run every role until `stop` is set, whatever happens to each of them.

    Raises UsageError for a store.url that is no database URL, and FlawlineError when the port of the metrics is in use,
    before anything is started.
    """
    parse_url(settings.store_url)
    ended_run.forget(settings.data_dir)
    environment = {"FLAWLINE_CONFIG": str(config.absolute())} if config else {}
    metrics = settings.metrics
    children: list[Child] = []
    with contextlib.closing(telemetry.serve(metrics.up_port, metrics.host, *telemetry.OF_UP)):
        try:
            if settings.kafka.bootstrap_servers is None:
                children.append(Child(Role("broker", ("broker",), stage=3), environment))
                # The broker has the same environment: when it starts again it takes the port that it got.
                environment.update(_wait_for_broker(settings, children[0], stop))
            if stop.is_set():
                return
            children += [Child(role, environment) for role in roles(settings)]
            if not settings.cameras:
                log.warning("no cameras are configured: the line waits for frames from elsewhere")
            # What listens there before our console has started is somebody else's.
            is_announced = not settings.console.port or listens(settings.console.host, settings.console.port)
            while not stop.wait(POLL_S):
                for child in children:
                    child.tend()
                if not is_announced and (is_announced := listens(settings.console.host, settings.console.port)):
                    terminal.out().print(f"the station is on {station_url(settings)}, Ctrl-C ends the line")
        finally:
            _stop(children)


def station_url(settings: Settings) -> str:
    """Return the address of the station."""
    host, scheme = settings.console.host, "https" if settings.console.tls_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.console.port}"


def listens(host: str, port: int) -> bool:
    """Return whether a server of this machine listens on a port."""
    try:
        socket.create_connection((_reached(host), port), LISTEN_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _reached(host: str) -> str:
    """Return the address under which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def _wait_for_broker(settings: Settings, broker: Child, stop: threading.Event) -> dict[str, str]:
    """Start the embedded broker and wait until it listens; return what the environment of the roles needs to find it.

    A broker of a known port is not waited for longer than BROKER_READY_S: cameras keep their frames on disk meanwhile.
    One that is to choose a free port is waited for until `stop`, since nobody could find it.
    """
    address = settings.data_dir / "broker" / ADDRESS_FILE
    address.unlink(missing_ok=True)  # it may be of an earlier start
    deadline = monotonic() + BROKER_READY_S
    while not stop.is_set():
        broker.tend()
        if address.is_file() and (text := address.read_text().strip()):
            return {} if settings.embedded.port else {"FLAWLINE_EMBEDDED__PORT": text.rpartition(":")[2]}
        if settings.embedded.port and monotonic() > deadline:
            log.error(
                "the embedded broker does not listen on %s after %.0f s: the roles start without it; see what it "
                "reports above",
                settings.bootstrap_servers,
                BROKER_READY_S,
            )
            return {}
        stop.wait(POLL_S)
    return {}


def _stop(children: Iterable[Child]) -> None:
    """Stop the children stage by stage, those of one stage at the same time."""
    ordered = sorted(children, key=lambda child: child.role.stage)
    for _, group in groupby(ordered, key=lambda child: child.role.stage):
        stage = list(group)
        with ThreadPoolExecutor(len(stage)) as pool:
            list(pool.map(lambda child: child.stop(STOP_TIMEOUT_S), stage))
