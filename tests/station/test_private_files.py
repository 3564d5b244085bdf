"""What a line writes is hidden from other users of the machine, also when the shell lets everybody read (umask 022)."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from flawline import imaging
from flawline.messages import Codec
from tests.producers.doubles import picture, until
from tests.support.modes import open_to_others
from tests.support.ports import reserved_port

pytestmark = pytest.mark.system

EVERYBODY_MAY_READ = 0o022


def role(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "station.cli", *arguments, "--config", str(folder / "line.toml")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdout=log, stderr=log, umask=EVERYBODY_MAY_READ
        )


def stop(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(60)


def write_settings(folder: Path, **sections: Any) -> None:
    ports = ("producers_port", "workers_port", "discovery_port", "ledger_port", "up_port", "notify_port")
    camera = {"kind": "folder", "name": "cam", "path": str(folder / "images"), "rate_hz": 20, "loop": True}
    content = {
        "data_dir": str(folder / "data"),
        "embedded": {"port": reserved_port()},
        "frames": {"inline_limit_bytes": 1000, "objects_url": f"file://{folder}/data/objects"},
        "metrics": dict.fromkeys(ports, 0),
        "cameras": [camera],
    }
    (folder / "line.toml").write_text(tomli_w.dumps(content | sections))


def test_files_of_broker_producer_discovery_and_reports_are_hidden_from_others(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(5):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(imaging.encode(picture(number), Codec.JPEG))
    write_settings(tmp_path)
    data = tmp_path / "data"
    producer = role(tmp_path, "produce")
    try:
        until(lambda: any(file.stat().st_size for file in data.glob("spool/*/*.seg")), 60, "frames on disk")
    finally:
        stop(producer)
    left = sorted(path.name for path in data.glob("spool/*/*"))
    assert any(name.endswith(".seg") for name in left), left
    seen_of_the_spool = open_to_others(data)
    broker = role(tmp_path, "broker")
    try:
        roles = [role(tmp_path, "produce"), role(tmp_path, "discover")]
        try:
            until(lambda: (data / "store.db").exists(), 60, "the store of discovery")
            until(lambda: any(data.glob("objects/??/*")), 60, "an object")
            until(lambda: any(data.glob("broker/**/*.log")), 60, "a log of the broker")
            time.sleep(1.0)  # for files that come late, such as those of SQLite's log
            report = role(tmp_path, "ledger", "--json-file", str(data / "ledger.json"))
            report.wait(60)
            assert (data / "ledger.json").is_file()
        finally:
            stop(*roles)
    finally:
        stop(broker)
    assert seen_of_the_spool + open_to_others(data) == []
