"""`flawline up` keeps its roles alive at a bounded rate, stops them all, and leaves none behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from embedded_broker import EmbeddedBroker
from flawline.errors import FlawlineError, UsageError
from flawline.restarts import RestartLimit
from flawline.settings.tree import Settings, load_settings
from station import up
from station.up import Child, Role
from tests.support.brokers import free_port

pytestmark = pytest.mark.system


def tend_until(child: Child, over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not over():
        assert time.monotonic() < deadline
        child.tend()
        time.sleep(0.05)


def a_child(*arguments: str, may_end: bool = False, limit: int = 1, **environment: str) -> Child:
    restarts = RestartLimit(limit=limit, window_s=60)
    return Child(Role("role", arguments, may_end), environment, restarts, time.monotonic)


def test_role_with_wrong_configuration_is_not_tried_again() -> None:
    with pytest.raises(UsageError, match="role role refuses"):
        tend_until(a_child("ledger", FLAWLINE_CONFIG="/nowhere.toml"), lambda: False)


def test_role_that_keeps_dying_ends_the_line_with_its_exit_code(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        child = a_child("broker", FLAWLINE_EMBEDDED__PORT=port, FLAWLINE_DATA_DIR=str(tmp_path))
        with pytest.raises(FlawlineError, match=r"2 times .* exit code 1"):
            tend_until(child, lambda: False)


def test_cameras_that_have_an_end_may_end() -> None:
    child = a_child("--version", may_end=True)
    tend_until(child, lambda: child.ended)
    child.tend()
    assert child.pid is None


@contextmanager
def running(settings: Settings) -> Iterator[threading.Event]:
    """`up` in a thread; what it raised is raised here."""
    stop, errors = threading.Event(), []

    def run() -> None:
        try:
            up.run(settings, stop)
        except FlawlineError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(90)
    assert not thread.is_alive() and errors == []


def children_with(word: str) -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if word in command_of(child)]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.05)


def answers(port: int) -> bool:
    try:
        return b"flawline_ledger_balanced 1.0" in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read()
    except OSError:
        return False


def test_killed_roles_and_broker_come_back_and_a_stop_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    file = tmp_path / "line.toml"
    file.write_text(f'data_dir = "{tmp_path}/data"\n[embedded]\nport = 0\n[metrics]\nledger_port = {port}\n')
    monkeypatch.setenv("FLAWLINE_CONFIG", str(file))
    monkeypatch.setattr(up, "roles", lambda settings: [Role("ledger", ("ledger", "--watch", "--interval", "0.2"))])
    with running(load_settings(file)):
        wait_for(lambda: answers(port))
        address = (tmp_path / "data" / "broker" / "address").read_text()
        for name in ("ledger", "broker"):
            [victim] = children_with(name)
            victim.kill()
            wait_for(lambda name=name, pid=victim.pid: [c for c in children_with(name) if c.pid != pid])
        wait_for(lambda: answers(port))
        assert (tmp_path / "data" / "broker" / "address").read_text() == address, "a restart keeps the port"
        pids = [child.pid for child in children_with("station.cli")]
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_a_role_cleanly(
    tmp_path: Path, embedded_broker: EmbeddedBroker, number: signal.Signals, code: int
) -> None:
    port = free_port()
    file = tmp_path / "line.toml"
    file.write_text(f'[kafka]\nbootstrap_servers = "{embedded_broker.bootstrap}"\n[metrics]\nledger_port = {port}\n')
    command = [sys.executable, "-m", "station.cli", "ledger", "--watch", "--config", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: listening(port))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code and "Traceback" not in stderr


def listening(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).close()
    except OSError:
        return False
    return True


def test_role_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "line.toml"
    file.write_text(f'data_dir = "{tmp_path}/data"\n[embedded]\nport = 0\n')
    # The parent starts the broker the way `up` does, tells its process id, and waits to be killed.
    script = (
        "import os, subprocess, sys, time; "
        "env = dict(os.environ) | {'FLAWLINE_PARENT_PID': str(os.getpid())}; "
        f"command = [sys.executable, '-m', 'station.cli', 'broker', '--config', {str(file)!r}]; "
        "child = subprocess.Popen(command, env=env); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    role = psutil.Process(int(parent.stdout.readline()))
    assert parent.stdout.readline().startswith("listening on")
    parent.kill()
    parent.wait()
    role.wait(timeout=30)
    parent.stdout.close()
