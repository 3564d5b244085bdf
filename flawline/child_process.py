"""Child processes: started in a session of their own, watched, and ended with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from flawline.stopping import PARENT_VARIABLE


class ChildProcess:
    """A running child that reads nothing from standard input.

    It has a session of its own: Ctrl-C in a terminal reaches the parent alone, which then stops its children in order.
    It finds the parent's process id in `PARENT_VARIABLE`, and ends with it when it calls `stopping.follow_parent`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdout: IO[bytes] | int | None = None,
        stderr: IO[bytes] | int | None = None,
    ) -> None:
        """Start `command` with `environment` added to this process's own; outputs as `subprocess.Popen` takes them.

        Raises OSError when it cannot be started.
        """
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {}), PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.stdout = self._process.stdout

    def poll(self) -> int | None:
        """Return the exit code, minus the number of the signal that ended it; None while it runs."""
        return self._process.poll()

    def stop(self, timeout_s: float) -> bool:
        """Ask it to end (SIGTERM) and wait; kill it after `timeout_s`. Return False when it had to be killed."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self._close()
        return True

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would; harmless when it has ended."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


def exit_text(code: int) -> str:
    """Return in words how a child ended: "exit code 3" or "signal SIGKILL"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-code}"


def last_line(log: Path, start: int = 0) -> str:
    """Return the last line with text that a child wrote to the file `log` after byte `start`, "" when there is none."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
