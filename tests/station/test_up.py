"""`flawline up` keeps every role alive, stops all of them, and leaves no process."""

from __future__ import annotations

import itertools
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tomli_w

from embedded_broker import EmbeddedBroker
from flawline import telemetry
from flawline.errors import FlawlineError
from flawline.settings.tree import Settings, load_settings
from station import up
from station.cli import doctor_checks
from station.role_states import RoleState, read
from station.up import Child, Patience, Role
from tests.support.brokers import unique
from tests.support.ports import reserved_port

pytestmark = pytest.mark.system


QUICK = Patience(first_pause_s=0.2, longest_pause_s=0.2, well_s=60, reminder_s=60)


def tend_until(child: Child, over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not over():
        assert time.monotonic() < deadline
        child.tend()
        time.sleep(0.05)


def a_child(*arguments: str, may_end: bool = False, patience: Patience = QUICK, **environment: str) -> Child:
    return Child(Role(unique("role"), arguments, may_end=may_end), environment, patience)


def metric(name: str, role: str) -> float:
    value = telemetry.REGISTRY.get_sample_value(f"flawline_role_{name}", {"role": role})
    assert value is not None
    return value


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_role_that_refuses_its_configuration_is_tried_again_and_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    child = a_child("ledger", FLAWLINE_CONFIG="/nowhere.toml")
    tend_until(child, lambda: metric("restarts_total", child.role.name) >= 2)
    child.stop(30)
    assert len(errors(caplog)) == 1 and "refuses its configuration" in errors(caplog)[0]
    assert metric("failing_seconds", child.role.name) > 0


def test_role_whose_port_is_taken_runs_as_soon_as_the_port_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        child = a_child("broker", FLAWLINE_EMBEDDED__PORT=port, FLAWLINE_DATA_DIR=str(tmp_path))
        tend_until(child, lambda: child.is_failing)
    # It is well when it has run for longer than a start that fails.
    child._patience = replace(QUICK, well_s=5.0)
    tend_until(child, lambda: not child.is_failing)
    child.stop(30)
    assert len(errors(caplog)) == 1 and "died with exit code 1" in errors(caplog)[0]
    assert "is well again" in caplog.text
    assert metric("failing_seconds", child.role.name) == 0


def test_a_line_that_tells_somebody_has_a_role_for_it() -> None:
    hook = {"name": "mes", "url": "http://h/"}
    told = (Settings(webhooks=[hook]), Settings(outbound={"mqtt_url": "mqtt://h"}), Settings())
    assert ["notify" in [role.name for role in up.roles(settings)] for settings in told] == [True, True, False]


def test_role_that_may_end_is_not_started_again_after_its_end() -> None:
    child = a_child("--version", may_end=True)
    tend_until(child, lambda: child.has_ended)
    child.tend()
    assert child.pid is None and not child.is_failing


class DeadProcess:
    """Is a process that has ended already."""

    pid = 1

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def poll(self) -> int:
        return -signal.SIGKILL


def test_pauses_grow_and_the_log_has_a_line_at_intervals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, starts = [0.0], []

    def start(*_: object, **__: object) -> DeadProcess:
        starts.append(now[0])
        return DeadProcess()

    monkeypatch.setattr(up, "ChildProcess", start)
    child = Child(Role(unique("role"), ()), {}, clock=lambda: now[0])
    while now[0] < 3600:
        child.tend()
        now[0] += up.POLL_S
    pauses_s = [b - a for a, b in itertools.pairwise(starts)]
    assert pauses_s[0] <= 1.0 + 2 * up.POLL_S and max(pauses_s[:3]) < 6
    assert all(14 < pause_s < 31 for pause_s in pauses_s[10:])
    assert 11 <= len(errors(caplog)) <= 13, "the first failure, then one line every five minutes"


def test_role_fails_on_a_machine_without_room_for_a_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(up, "ChildProcess", refuse)
    child = Child(Role(unique("role"), ()), {})
    child.tend()
    assert child.is_failing and "cannot be started (Resource temporarily unavailable)" in errors(caplog)[0]


@contextmanager
def running(settings: Settings) -> Iterator[threading.Event]:
    """Run `up` in a thread; raise here what it raised there."""
    stop, raised = threading.Event(), []

    def run() -> None:
        try:
            up.run(settings, stop)
        except FlawlineError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(90)
    assert not thread.is_alive() and raised == []


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


def test_killed_roles_and_broker_are_started_again_and_a_stop_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = reserved_port()
    file = tmp_path / "line.toml"
    file.write_text(
        f'data_dir = "{tmp_path}/data"\n[embedded]\nport = 0\n[metrics]\nledger_port = {port}\nup_port = 0\n'
    )
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
    port = reserved_port()
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


@pytest.mark.parametrize(("arguments", "code"), [(["work"], 0), (["ledger", "--watch"], 0), (["fit", "data"], 143)])
def test_role_that_is_stopped_before_it_has_begun_ends_with_0(arguments: list[str], code: int) -> None:
    script = (
        "import os, signal; from station.cli import main; "
        f"main._run = lambda arguments: os.kill(os.getpid(), signal.SIGTERM); main.main({arguments!r})"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == code


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


def role_states(settings: Settings) -> dict[str, RoleState]:
    return {state.name: state for state in read(settings) or ()}


def captured(port: int) -> float:
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        return 0.0
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("flawline_published_frames_t"))


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Hold a port on which a server listens, so that no role can."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_line_without_store_and_workers_captures_until_it_is_stopped(
    tmp_path: Path, embedded_broker: EmbeddedBroker, refusing_port: int, taken_port: int
) -> None:
    ports = {name: reserved_port() for name in ("producers_port", "up_port")}
    content = {
        "data_dir": str(tmp_path / "data"),
        "kafka": {"bootstrap_servers": embedded_broker.bootstrap, "topic_prefix": unique("up") + "-"},
        "cameras": [{"name": "cam", "kind": "simulated", "rate_hz": 5.0, "height": 64, "width": 64}],
        "store": {"url": f"postgresql://line:secret@127.0.0.1:{refusing_port}/line"},
        "metrics": {"workers_port": taken_port, "discovery_port": 0, "ledger_port": 0} | ports,
        "console": {"port": reserved_port()},
    }
    file = tmp_path / "line.toml"
    file.write_text(tomli_w.dumps(content))
    settings = load_settings(file)
    command = [sys.executable, "-m", "station.cli", "up", "--config", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: {"work"} <= {name for name, state in role_states(settings).items() if state.failing_s})
        before = captured(ports["producers_port"])
        wait_for(lambda: captured(ports["producers_port"]) >= before + 10)
        wait_for(lambda: role_states(settings)["work"].restarts >= 1)
        states = role_states(settings)
        assert states["produce"].text == states["ledger"].text == "runs" and states["produce"].restarts == 0
        checks = {(finding.name, finding.status) for finding in doctor_checks.roles(settings)}
        assert checks == {("roles", doctor_checks.Status.FAIL)}
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and not any(child.is_running() for child in children)
    assert "Traceback" not in stderr and "secret" not in stderr
    for role in ("work", "discover", "console"):
        assert sum(f"station.up: {role} " in line and "ERROR" in line for line in stderr.splitlines()) <= 1
