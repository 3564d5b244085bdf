"""`flawline status`: what runs and how it is, also while half of it is away."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discovery.store.store import Batch, Store
from flawline import kafka_clients, messages
from flawline.messages import Decision, ModelPointer
from flawline.settings.producers import FolderCamera, RtspCamera, SimulatedCamera
from flawline.settings.tree import Settings, load_settings
from station.cli import status as command
from station.line_status import has_end, status
from tests.discovery import factories
from tests.station.test_cli import flawline
from tests.support.talking_line import TalkingLine

pytestmark = pytest.mark.system

CAMERAS: list[dict[str, Any]] = [
    {"name": "cam", "kind": "simulated", "rate_hz": 2},
    {"name": "away", "kind": "rtsp", "url": "rtsp://joe:s3cret@10.0.0.7/x"},
]


def with_cameras(settings: Settings, tmp_path: Path) -> Settings:
    values = settings.model_dump(exclude_unset=True) | {"cameras": CAMERAS, "console": {"port": 0}}
    return load_settings(tmp_path / "nothing.toml", **values)


def publish(settings: Settings, pointer: ModelPointer) -> None:
    client = kafka_clients.producer(settings)
    client.send(settings.topic("models"), key=pointer.role.encode(), value=messages.encode(pointer)).get(20)
    client.close()


def test_line_that_delivers_says_so_and_a_camera_that_never_did_is_a_problem(
    line: TalkingLine, line_settings: Settings, tmp_path: Path
) -> None:
    now = time.time_ns()
    line.captured(5)
    verdict = factories.verdict(0, "cam", captured_at=now)
    for sequence in range(3):
        line.say("verdicts", replace(verdict, epoch=line.epoch, sequence=sequence), partition=1)
    line.frame(3)
    line.frame(4)
    publish(line_settings, ModelPointer("active", "m-1", "file:///models/m-1", now))
    report = status(with_cameras(line_settings, tmp_path))
    cam, away = report["cameras"]
    assert (cam["state"], cam["captured"], cam["in_flight"], cam["gaps"]) == ("delivers", 5, 2, 0)
    assert cam["seconds_since_last_frame"] < 60
    assert away["state"] == "no frame yet: never seen" and away["captured"] is None
    assert report["broker"]["answers"] and report["ledger"]["balanced"] and report["lag"]["frames"] == 2
    assert report["model"]["version"] == "m-1" and report["model"]["actors"] == 0
    assert report["problems"] == ["camera away: no frame yet: never seen"] and not report["healthy"]
    shown = dict(command.lines(report))
    assert (
        "5 captured = 3 scored + 0 dropped + 0 dead-lettered + 2 in flight + 0 gaps" in shown["ledger"]
        and "m-1" in shown["model"]
        and "s3cret" not in str(report)
    )


def test_without_its_broker_the_store_tells_when_each_camera_had_its_last_frame(
    tmp_path: Path, refusing_port: int
) -> None:
    (tmp_path / "nothing.toml").touch()
    settings = load_settings(
        tmp_path / "nothing.toml",
        data_dir=str(tmp_path),
        embedded={"port": refusing_port},
        metrics=dict.fromkeys(
            ("producers_port", "workers_port", "discovery_port", "ledger_port", "up_port", "notify_port"), 0
        ),
        cameras=CAMERAS,
    )
    store = Store(settings.store_url)
    store.ingest(Batch(verdicts=[factories.verdict(0, "cam", Decision.ACCEPT)]))
    store.close()
    report = status(settings)
    cam, away = report["cameras"]
    assert cam["last_frame_at"] is not None and cam["state"].startswith("no frame since") and cam["captured"] is None
    assert away["state"] == "no frame yet: never seen"
    assert not report["broker"]["answers"] and report["ledger"] is None and report["model"] is None
    assert any(f"127.0.0.1:{refusing_port} is away" in problem for problem in report["problems"])
    assert report["discovery"]["classes"] == {}


def test_command_prints_one_object_or_lines_and_exit_1_while_the_broker_is_away(
    tmp_path: Path, refusing_port: int
) -> None:
    environment = {"FLAWLINE_EMBEDDED__PORT": str(refusing_port), "FLAWLINE_METRICS__UP_PORT": "0"}
    done = flawline(tmp_path, "status", "--json", **environment)
    assert done.returncode == 1 and done.stderr == ""
    assert json.loads(done.stdout)["broker"] == {"address": f"127.0.0.1:{refusing_port}", "answers": False}
    assert list(tmp_path.iterdir()) == []  # asking leaves nothing behind
    shown = flawline(tmp_path, "status", **environment)
    assert shown.returncode == 1 and f"broker     127.0.0.1:{refusing_port} is away" in shown.stdout


def test_only_replays_without_a_loop_and_counted_simulations_end() -> None:
    folder = FolderCamera(kind="folder", name="a", path="x")
    assert has_end(folder) and not has_end(folder.model_copy(update={"loop": True}))
    assert has_end(SimulatedCamera(kind="simulated", name="b", frames=3))
    assert not has_end(SimulatedCamera(kind="simulated", name="b"))
    assert not has_end(RtspCamera(kind="rtsp", name="c", url="rtsp://10.0.0.7/x"))
