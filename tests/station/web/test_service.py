"""The role itself: a real broker's ledger, a clean stop, a port in use."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients
from flawline.settings.tree import Settings, load_settings
from station import up
from tests.support.ports import reserved_port
from tests.support.talking_line import TalkingLine


def command(tmp_path: Path, port: int, bootstrap: str) -> tuple[list[str], Settings]:
    file = tmp_path / "line.toml"
    kafka = {"bootstrap_servers": bootstrap, "topic_prefix": f"t{uuid.uuid4().hex[:10]}-", "camera_partitions": 2}
    file.write_text(tomli_w.dumps({"data_dir": str(tmp_path), "kafka": kafka, "console": {"port": port}}))
    return [sys.executable, "-m", "station.cli", "console", "--config", str(file)], load_settings(file)


def ledger_when(port: int, wanted: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/ledger", timeout=10) as answer:
                found: dict[str, Any] = json.load(answer)
                if wanted(found["ledger"]):
                    return found
        except OSError:  # not yet listening, or 503 while the ledger is being read
            pass
        time.sleep(0.1)
    raise AssertionError("the ledger did not come")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_console_follows_the_ledger_of_a_real_broker_until_it_is_stopped(
    tmp_path: Path, embedded_broker: EmbeddedBroker, number: signal.Signals, code: int
) -> None:
    port = reserved_port()
    arguments, settings = command(tmp_path, port, embedded_broker.bootstrap)
    kafka_clients.ensure_topics(settings)
    line = TalkingLine(settings)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        line.scored(0, 1)
        line.captured(2)
        found = ledger_when(port, lambda ledger: ledger["captured"] == 2)
        assert found["error"] is None and found["ledger"]["cameras"]["cam"]["scored"] == 2
        line.captured(4, closed=True)
        assert ledger_when(port, lambda ledger: ledger["gaps"] == 2)["ledger"]["balanced"]
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        line.close()
    assert process.returncode == code and "Traceback" not in stderr


@pytest.mark.system
def test_port_in_use_is_one_line_and_exit_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments, _ = command(tmp_path, port, "127.0.0.1:1")
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert str(port) in done.stderr and "console.port" in done.stderr


def test_up_runs_the_console_unless_its_port_is_0(tmp_path: Path) -> None:
    _, on = command(tmp_path, 8400, "127.0.0.1:1")
    _, off = command(tmp_path, 0, "127.0.0.1:1")
    assert "console" in [role.name for role in up.roles(on)]
    assert "console" not in [role.name for role in up.roles(off)]
