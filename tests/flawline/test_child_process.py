"""Children have their own session, stop when asked, are killed when they do not, and end with their parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flawline.child_process import ChildProcess, exit_text, last_line

pytestmark = pytest.mark.system

READY = "print('ready', flush=True); "
IGNORES_TERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY + "time.sleep(600)"


def python(script: str) -> ChildProcess:
    """Start a Python child and wait until it prints its first line."""
    child = ChildProcess([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def test_child_has_its_own_session_no_input_and_its_parents_id() -> None:
    script = READY + "import os, sys; print(os.getsid(0), repr(sys.stdin.read()), os.environ['FLAWLINE_PARENT_PID'])"
    child = python(script)
    assert child.stdout is not None
    assert child.stdout.readline().decode().split() == [str(child.pid), "''", str(os.getpid())]
    assert child.stop(30)


def test_child_that_is_asked_to_stop_ends_by_itself() -> None:
    child = python(READY + "import time; time.sleep(600)")
    assert child.poll() is None
    assert child.stop(30) is True
    assert child.poll() == -15
    assert child.stop(30) is True


def test_child_that_ignores_the_request_is_killed() -> None:
    child = python(IGNORES_TERM)
    assert child.stop(0.2) is False
    assert child.poll() == -9


def test_killed_child_is_reaped_and_can_be_killed_again() -> None:
    child = python(IGNORES_TERM)
    child.kill()
    child.kill()
    assert child.poll() == -9
    assert not psutil.pid_exists(child.pid)


def test_child_that_follows_its_parent_ends_when_the_parent_is_killed() -> None:
    follower = "from flawline.stopping import follow_parent; import time; follow_parent(); time.sleep(600)"
    script = (
        "import sys, time; from flawline.child_process import ChildProcess; "
        f"child = ChildProcess([sys.executable, '-c', {follower!r}]); print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        follower_process = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([follower_process], timeout=30)
    assert not follower_process.is_running() or follower_process.status() == psutil.STATUS_ZOMBIE


def test_missing_program_raises() -> None:
    with pytest.raises(OSError, match="no-such-program"):
        ChildProcess(["/no-such-program"])


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "signal SIGKILL"), (-40, "signal 40")]
)
def test_exit_is_told_in_words(code: int, text: str) -> None:
    assert exit_text(code) == text


def test_last_line_skips_blank_ones_and_what_came_before_the_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\nfirst\n last \n\n \n")
    assert last_line(log) == "last"
    assert last_line(log, log.stat().st_size - 3) == ""
    log.write_bytes(b"\xff broken\n")
    assert last_line(log) == "\ufffd broken"
