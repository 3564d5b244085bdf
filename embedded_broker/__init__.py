"""The embedded broker: a server of one node for the Kafka protocol, for the demo, tests and lines on one machine.

It does not replace Apache Kafka: it is one process with one disk and no security. `UNSUPPORTED` lists what it lacks.
`EmbeddedBroker` runs it as a child process, `python -m embedded_broker` in the foreground.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from embedded_broker.unsupported import UNSUPPORTED
from flawline.child_process import ChildProcess, last_line
from flawline.errors import FlawlineError

__all__ = ["ADDRESS_FILE", "READY_PREFIX", "UNSUPPORTED", "EmbeddedBroker"]

READY_PREFIX: Final = "listening on "
ADDRESS_FILE: Final = "address"
"""File in the data directory with the `host:port` of the broker that runs, or ran last."""

_START_TIMEOUT_S: Final = 30.0  # a judgement, not measured
_STOP_TIMEOUT_S: Final = 20.0  # a judgement, not measured


class EmbeddedBroker:
    """A broker in a child process that ends with its parent, also when that is killed.

    Port 0 takes a free port at the first start and keeps it for later starts. The broker logs to `broker.log` in the
    data directory.
    """

    def __init__(
        self,
        data_dir: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        fsync: str = "interval",
        options: tuple[str, ...] = (),
    ) -> None:
        self.data_dir = Path(data_dir)
        self.host = host
        self.port = port
        self._arguments = ("--fsync", fsync, *options)
        self._process: ChildProcess | None = None

    @property
    def bootstrap(self) -> str:
        """The address for `bootstrap_servers`: `host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running broker. Raises FlawlineError when none runs."""
        if self._process is None:
            raise FlawlineError(f"the embedded broker on {self.data_dir} is not running: call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the child process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> EmbeddedBroker:
        """Start the broker and return once clients can connect. Raises FlawlineError with the broker's last line."""
        if self.running:
            return self
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            log = (self.data_dir / "broker.log").open("ab")
        except OSError as error:
            raise FlawlineError(
                f"the broker's data directory {self.data_dir} cannot be used ({error.strerror}): name another one"
            ) from error
        log_start = log.tell()
        command = [sys.executable, "-m", "embedded_broker", "--data", str(self.data_dir), "--host", self.host]
        command += ["--port", str(self.port), *self._arguments]
        with log:
            self._process = ChildProcess(command, stdout=subprocess.PIPE, stderr=log)
        address = self._wait_until_ready(self._process)
        if address is None:
            self.kill()
            raise FlawlineError(self._failure(log_start))
        self.port = int(address.rpartition(":")[2])
        return self

    def _wait_until_ready(self, process: ChildProcess) -> str | None:
        assert process.stdout is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (left_s := deadline - time.monotonic()) > 0:
            if select.select([process.stdout], [], [], left_s)[0]:
                line = process.stdout.readline().decode()
                if line.startswith(READY_PREFIX):
                    return line.removeprefix(READY_PREFIX).strip()
                if not line:
                    return None
        return None

    def _failure(self, log_start: int) -> str:
        line = last_line(self.data_dir / "broker.log", log_start).removeprefix("error: ")
        return f"the embedded broker did not start: {line or f'no answer within {_START_TIMEOUT_S:g} s'}"

    def stop(self) -> None:
        """Stop the broker and wait until its data is on the disk; harmless when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(_STOP_TIMEOUT_S)

    def kill(self) -> None:
        """Kill the broker, as a crash would; harmless when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def restart(self) -> EmbeddedBroker:
        """Stop the broker and start it again on the same port and data."""
        self.stop()
        return self.start()

    def __enter__(self) -> EmbeddedBroker:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
