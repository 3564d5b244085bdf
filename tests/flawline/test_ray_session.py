"""A Ray session starts once, leaves the signal handlers alone, and fails in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

HANDLERS = """
import os, signal, threading
from flawline import ray_session

received = []

def handler(number, frame): received.append(number)

def ask_all_the_time():
    while not started.wait(0.1):
        for number in numbers:
            os.kill(os.getpid(), number)

numbers = (signal.SIGTERM, signal.SIGINT)
started = threading.Event()
for number in numbers:
    signal.signal(number, handler)
asking = threading.Thread(target=ask_all_the_time)
asking.start()
for _ in range(2):
    ray_session.start_ray(None, log_to_driver=False, num_cpus=1, num_gpus=0, object_store_memory=80 << 20)
started.set()
asking.join()
import ray
assert set(received) == set(numbers)
received.clear()
for number in numbers:
    os.kill(os.getpid(), number)
assert set(received) == set(numbers)
assert ray.is_initialized()
assert all(signal.getsignal(number) is handler for number in numbers)
ray_session.stop_ray()
assert not ray.is_initialized()
print("done")
"""

LISTENERS = """
import psutil
from flawline import ray_session

ray_session.start_ray(None, log_to_driver=False, num_cpus=1, num_gpus=0, object_store_memory=80 << 20)
import ray

@ray.remote
class Actor:
    def ready(self):
        return True

actor = Actor.remote()
assert ray.get(actor.ready.remote())
this = psutil.Process()
hosts = [
    connection.laddr.ip
    for process in [this, *this.children(recursive=True)]
    for connection in process.net_connections("inet")
    if connection.status == psutil.CONN_LISTEN
]
ray_session.stop_ray()
assert len(hosts) >= 4, hosts
print(sorted({host.removeprefix("::ffff:") for host in hosts}))
"""

WRONG_ADDRESS = """
from flawline import ray_session
from flawline.errors import FlawlineError

try:
    ray_session.start_ray("no-port", log_to_driver=False)
except FlawlineError as error:
    print(error)
"""

HANGING_WORKERS = """
import sys, time

if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    time.sleep(600)
"""

START = """
from flawline import ray_session

ray_session.start_ray(None, log_to_driver=False, num_cpus=2, num_gpus=0, object_store_memory=80 << 20)
import ray

print("started" if ray.is_initialized() else "not started")
ray_session.stop_ray()
"""

ENDLESS_START = """
import threading
import ray
from flawline import logs, ray_session
from flawline.settings.tree import Settings

logs.configure_logging(Settings(), "work")
ray.init = lambda **_: threading.Event().wait()
ray_session.START_LIMIT_S = 0.5
ray_session.start_ray(None, log_to_driver=False)
"""


def run(script: str, **environment: str) -> str:
    """Run a script in a process of its own, because a session belongs to its process; return its last line."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_session_starts_once_and_leaves_signals_to_our_handlers_also_while_it_starts() -> None:
    assert run(HANDLERS) == "done"


def test_ray_on_one_machine_listens_on_loopback_only() -> None:
    assert run(LISTENERS) == "['127.0.0.1']"


def test_wrong_address_of_a_cluster_is_one_line_that_names_it() -> None:
    line = run(WRONG_ADDRESS)
    assert line.startswith("Ray cluster no-port cannot be joined: ")
    assert line.endswith("worker.ray_address")


def test_ray_starts_also_when_none_of_its_worker_processes_gets_up(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING_WORKERS)
    assert run(START, PYTHONPATH=str(tmp_path), RAY_worker_register_timeout_seconds="1") == "started"


def test_start_of_ray_that_does_not_end_ends_the_process_with_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", ENDLESS_START], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "Ray has not started within" in line], done.stderr
