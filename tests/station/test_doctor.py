"""Each check of the doctor says what is wrong and the remedy, and a healthy line has none."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from discovery.store import frame_pictures, pruning
from discovery.store.store import Batch, Store, TakenDefect
from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, telemetry, topics
from flawline.object_store import MARKER, object_store
from flawline.settings.outbound import WebhookSettings
from flawline.settings.producers import UsbCamera
from flawline.settings.tree import Settings
from producers.partitions import Partitions
from station.cli import doctor, doctor_checks
from station.cli.finding import Finding, Status
from tests.discovery.factories import START_NS, defect, directions
from tests.discovery.pictures import photos
from tests.support.ports import reserved_port
from tests.support.talking_line import TalkingLine

pytestmark = pytest.mark.system

PASSWORD = "pass-word-of-a-test"


def changed(settings: Settings, section: str, **values: Any) -> Settings:
    part = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: part})


def worst(findings: list[Finding], name: str) -> Finding:
    order = [Status.OK, Status.WARN, Status.FAIL]
    return max(
        (finding for finding in findings if finding.name == name), key=lambda finding: order.index(finding.status)
    )


def test_healthy_line_has_no_failure_and_exit_0(
    line: TalkingLine, settings_file: Callable[[Settings], Path], tmp_path: Path
) -> None:
    settings = changed(line.settings, "frames", objects_url=f"file://{tmp_path}/objects")
    settings = changed(settings, "grafana", url=f"http://admin:{PASSWORD}@grafana:3000")
    file = settings_file(settings)
    done = flawline("doctor", "--config", str(file), "--json-file", str(tmp_path / "doctor.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["healthy"] and {check["status"] for check in report["checks"]} <= {"ok", "warn"}
    names = {check["name"] for check in report["checks"]}
    assert {"crc32c", "broker", "limits", "topics", "cameras", "weights", "model", "store", "objects", "disk"} <= names
    assert {"ports", "clock"} <= names
    assert report["settings"]["kafka"]["bootstrap_servers"] == settings.bootstrap_servers
    assert PASSWORD not in json.dumps(report)
    shown = flawline("doctor", "--config", str(file))
    assert shown.returncode == 0 and "bootstrap_servers" in shown.stdout and PASSWORD not in shown.stdout
    assert not list((tmp_path / "objects").rglob("*.part"))


@pytest.mark.parametrize("command", ["doctor", "work"])
def test_exactly_once_on_a_broker_without_transactions_is_exit_2_with_one_line(
    command: str, embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    file = tmp_path / "line.toml"
    for address in ("", f'bootstrap_servers = "{embedded_broker.bootstrap}"\n'):
        file.write_text(
            f'data_dir = "{tmp_path}"\n[kafka]\n{address}delivery = "exactly-once"\n[metrics]\nworkers_port = 0\n'
        )
        done = flawline(command, "--config", str(file))
        told = [line for line in done.stderr.splitlines() if "no transactions" in line]
        assert done.returncode == 2 and len(told) == 1, done.stderr
        assert "kafka.bootstrap_servers" in told[0] and "at-least-once" in told[0]


def test_any_failure_is_exit_1(tmp_path: Path, refusing_port: int) -> None:
    file = tmp_path / "line.toml"
    file.write_text(f'[kafka]\nbootstrap_servers = "127.0.0.1:{refusing_port}"\n')
    done = flawline("doctor", "--config", str(file))
    assert done.returncode == 1 and "does not answer" in done.stdout and not done.stderr


def test_embedded_broker_that_does_not_run_says_how_to_start_it(line_settings: Settings, refusing_port: int) -> None:
    settings = changed(line_settings, "kafka", bootstrap_servers=None)
    settings = changed(settings, "embedded", port=refusing_port)
    [finding] = doctor_checks.broker_answers(settings)
    assert finding.status is Status.WARN and "flawline up" in finding.remedy


def test_something_else_on_the_brokers_port_is_a_failure(line_settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        settings = changed(line_settings, "kafka", bootstrap_servers=address)
        [finding] = doctor._guarded(doctor_checks.broker_answers, settings)
    assert finding.status is Status.FAIL and address in finding.text


def test_missing_topics_are_named_with_their_remedy(line_settings: Settings) -> None:
    missing = [finding for finding in doctor_checks.topic_limits(line_settings) if finding.name == "topics"]
    assert len(missing) == len(topics.ALL) and all("flawline topics create" in finding.remedy for finding in missing)


def test_topics_that_agree_are_ok(line: TalkingLine) -> None:
    assert worst(doctor_checks.topic_limits(line.settings), "topics").status is Status.OK


def test_topic_with_a_smaller_limit_than_the_frames_is_a_failure(line: TalkingLine) -> None:
    grown = changed(line.settings, "frames", limit_bytes=20 << 20)
    finding = worst(doctor_checks.topic_limits(grown), "topics")
    assert finding.status is Status.FAIL and str((20 << 20) + 65536) in finding.remedy


def test_topic_with_fewer_partitions_is_a_failure(line: TalkingLine) -> None:
    finding = worst(doctor_checks.topic_limits(changed(line.settings, "kafka", camera_partitions=9)), "topics")
    assert finding.status is Status.FAIL and "has 3 partitions" in finding.text


def test_more_actors_than_partitions_is_a_warning(line: TalkingLine) -> None:
    finding = worst(doctor_checks.topic_limits(changed(line.settings, "worker", actors=5)), "partitions")
    assert finding.status is Status.WARN and "2 will be idle" in finding.text


def test_partitions_of_cameras_are_shown_and_a_move_is_a_warning(line: TalkingLine) -> None:
    (finding,) = doctor_checks.camera_partitions(line.settings)
    assert "no camera has a partition yet" in finding.text
    names = ("a", "b", "c", "d")
    cameras = [UsbCamera(kind="usb", name=name) for name in names]
    settings = line.settings.model_copy(update={"cameras": cameras})
    producer = kafka_clients.producer(settings)
    Partitions(settings, cameras).update(producer)
    kafka_clients.close_producer(producer)
    (finding,) = doctor_checks.camera_partitions(settings)
    assert finding.status is Status.OK
    assert "a: 0, b: 1, c: 2, d: 0; 1 of them serve several cameras" in finding.text
    cameras[1].partition = 2
    finding = worst(doctor_checks.camera_partitions(settings), "cameras")
    assert finding.status is Status.WARN and "b has partition 1 and its setting says 2" in finding.text


def test_frame_that_does_not_fit_into_a_dead_letter_is_a_failure(line_settings: Settings) -> None:
    finding = worst(doctor_checks.topic_limits(changed(line_settings, "frames", limit_bytes=40 << 20)), "limits")
    assert finding.status is Status.FAIL and "dead letter" in finding.text


@pytest.mark.parametrize(
    ("camera", "status", "word"),
    [
        ({"kind": "simulated", "codec": "raw", "height": 4000, "width": 4000}, Status.FAIL, "48000000"),
        ({"kind": "simulated", "height": 4000, "width": 4000}, Status.WARN, "48000000"),
        ({"kind": "simulated"}, Status.OK, "1 configured"),
        ({"kind": "folder", "path": "/no/such/folder"}, Status.FAIL, "/no/such/folder"),
        ({"kind": "simulated", "mask": "/no/such/mask.png"}, Status.FAIL, "/no/such/mask.png"),
        ({"kind": "simulated", "ignore": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}, Status.FAIL, "nothing of a"),
        (None, Status.WARN, "none is configured"),
    ],
)
def test_cameras(line_settings: Settings, camera: dict[str, Any] | None, status: Status, word: str) -> None:
    cameras = [{"name": "c", **camera}] if camera else []
    settings = Settings(**(line_settings.model_dump(exclude_unset=True) | {"cameras": cameras}))
    [finding] = doctor_checks.cameras(settings)
    assert finding.status is status and word in finding.text


def test_missing_weights_file_is_a_failure_and_packaged_ones_are_ok(line_settings: Settings) -> None:
    assert doctor_checks.weights(line_settings)[0].status is Status.OK
    [finding] = doctor._guarded(doctor_checks.weights, changed(line_settings, "scorer", weights=Path("/gone.pth")))
    assert finding.status is Status.FAIL and "/gone.pth" in finding.text
    [unknown] = doctor_checks.weights(changed(line_settings, "scorer", backbone="resnet18"))
    assert unknown.status is Status.WARN


def test_model_that_does_not_verify_is_a_failure(line: TalkingLine, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    settings = changed(line.settings, "worker", model=str(tmp_path / "model"))
    [finding] = doctor._guarded(doctor_checks.model, settings)
    assert finding.status is Status.FAIL and str(tmp_path / "model") in finding.text
    [none] = doctor_checks.model(line.settings)
    assert none.status is Status.WARN and "flawline publish" in none.remedy


def test_store(line_settings: Settings, tmp_path: Path, refusing_port: int) -> None:
    from pydantic import SecretStr

    assert doctor_checks.store(line_settings)[0].status is Status.OK
    assert not (tmp_path / "data").exists()  # the check creates no file
    away = f"postgresql+psycopg://flawline:{PASSWORD}@127.0.0.1:{refusing_port}/flawline"
    [finding] = doctor_checks.store(changed(line_settings, "store", url=SecretStr(away)))
    assert finding.status is Status.FAIL and PASSWORD not in finding.text + finding.remedy
    [wrong] = doctor_checks.store(changed(line_settings, "store", url=SecretStr("no url")))
    assert wrong.status is Status.FAIL


def test_object_store_that_cannot_be_written_is_a_failure(line_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("no folder")
    settings = changed(line_settings, "frames", objects_url=f"file://{tmp_path}/taken")
    [finding] = doctor_checks.objects(settings)
    assert finding.status is Status.FAIL and "frames.objects_url" in finding.remedy


def test_object_store_is_looked_at_and_nothing_stays_behind(line_settings: Settings, tmp_path: Path) -> None:
    settings = changed(line_settings, "frames", objects_url=f"file://{tmp_path}/objects")
    [finding] = doctor_checks.objects(settings)
    assert finding.status is Status.WARN and not (tmp_path / "objects").exists()
    object_store(settings).create()
    [finding] = doctor_checks.objects(settings)
    assert finding.status is Status.OK, finding
    assert [path.name for path in (tmp_path / "objects").rglob("*") if path.is_file()] == [MARKER]
    (tmp_path / "objects" / MARKER).rename(tmp_path / "objects" / "file")
    [finding] = doctor_checks.objects(settings)
    assert finding.status is Status.FAIL and "flawline objects create" in finding.text


def test_disk(line_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("no folder")
    [finding] = doctor_checks.disk(line_settings.model_copy(update={"data_dir": tmp_path / "taken" / "data"}))
    assert finding.status is Status.FAIL
    usage = doctor_checks.shutil.disk_usage(tmp_path)
    for free, status in ((1 << 20, Status.FAIL), (2 << 30, Status.WARN), (1 << 50, Status.OK)):
        monkeypatch.setattr(doctor_checks.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        embedded = changed(line_settings, "kafka", bootstrap_servers=None)
        assert doctor_checks.disk(embedded)[0].status is status


def test_retention_that_a_topic_has_not_is_named_with_the_remedy(line_settings: Settings) -> None:
    kafka_clients.ensure_topics(line_settings)
    [finding] = doctor_checks.retention(line_settings)
    assert finding.status is Status.OK and "have gone: none" in finding.text
    [wrong, _] = doctor_checks.retention(changed(line_settings, "retention", frames_hours=1.0))
    assert wrong.status is Status.WARN and "retention.ms=3600000" in wrong.text and "topics create" in wrong.remedy


def test_what_the_store_has_forgotten_is_shown(line_settings: Settings, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    settings = changed(line_settings, "store", url=SecretStr(url))
    assert doctor_checks.forgotten(settings) == [] and not (tmp_path / "store.db").exists()
    store = Store(url)
    at = START_NS + 100 * pruning.DAY_NS
    taken = [defect(n, directions(1)[0], captured_at=when) for n, when in enumerate((START_NS, at))]
    store.ingest(Batch(defects=[TakenDefect(item, (None,)) for item in taken]))
    store.utc_ns = lambda: at
    assert pruning.prune(store, settings.retention).pictures == 1
    photos.keep(store, photos.scored(0), photos.scored(1))
    with store.transaction() as connection:
        frame_pictures.lose(connection, frame_pictures.by_frame(connection, "cam-1:1:1").id, "expired")
    store.close()
    [finding, frames] = doctor_checks.forgotten(settings)
    assert finding.status is Status.OK and "1 pictures DEFECT age" in finding.text
    assert frames.text == "1 whole frames take 0.00 GB of 68.7 GB, 0 wait; lost: 1 expired"


def test_ports_in_use(line_settings: Settings) -> None:
    endpoint = telemetry.serve(reserved_port(), "127.0.0.1", *telemetry.OF_THE_LEDGER)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        ours = changed(line_settings, "metrics", ledger_port=endpoint.port)
        assert [finding.status for finding in doctor_checks.ports(ours)] == [Status.OK]
        theirs = changed(line_settings, "metrics", workers_port=server.server_port)
        [finding] = doctor_checks.ports(theirs)
        assert finding.status is Status.FAIL and str(server.server_port) in finding.text
    finally:
        endpoint.close()
        server.shutdown()
        server.server_close()
        thread.join()


def test_receivers_that_cannot_be_reached_are_warned_of_and_told_nothing(
    line_settings: Settings, refusing_port: int
) -> None:
    assert doctor_checks.receivers(line_settings) == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        hooks = [
            WebhookSettings(name=name, url=f"http://127.0.0.1:{number}/{PASSWORD}?key={PASSWORD}")
            for name, number in (("mes", port), ("chat", refusing_port))
        ]
        mqtt = changed(line_settings, "outbound", mqtt_url=SecretStr(f"mqtt://u:{PASSWORD}@127.0.0.1:{port}"))
        findings = doctor_checks.receivers(mqtt.model_copy(update={"webhooks": hooks}))
    assert [finding.status for finding in findings] == [Status.OK, Status.WARN, Status.OK]
    assert "chat cannot be reached" in findings[1].text and PASSWORD not in findings[1].text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mqtt_url": SecretStr("mqtt://")}, "names no host"),
        ({"mqtt_url": SecretStr("mqtt://h"), "mqtt_cafile": Path("ca.pem")}, "takes no certificates"),
        ({"mqtt_url": SecretStr("mqtts://h"), "mqtt_cafile": Path("/nowhere.pem")}, "certificates cannot be used"),
    ],
)
def test_an_mqtt_broker_that_cannot_be_used_is_a_failure(
    line_settings: Settings, values: dict[str, Any], message: str
) -> None:
    [finding] = doctor._guarded(doctor_checks.receivers, changed(line_settings, "outbound", **values))
    assert finding.status is Status.FAIL and message in finding.text


def test_clock(line: TalkingLine, monkeypatch: pytest.MonkeyPatch) -> None:
    line.captured(1)
    assert doctor_checks.clock(line.settings)[0].status is Status.OK
    now = doctor_checks.utc_ns()
    monkeypatch.setattr(doctor_checks, "utc_ns", lambda: now - 600 * 10**9)
    [behind] = doctor_checks.clock(line.settings)
    assert behind.status is Status.WARN and "future" in behind.text
    monkeypatch.setattr(doctor_checks, "utc_ns", lambda: 0)
    assert doctor_checks.clock(line.settings)[0].status is Status.FAIL


def test_missing_checksum_library_is_a_failure(line_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_clients.record_util, "crc32c_c", None)
    [finding] = doctor._guarded(doctor_checks.checksum_library, line_settings)
    assert finding.status is Status.FAIL and "pip install crc32c" in finding.text


def test_check_that_breaks_is_a_failure_and_not_the_end(line_settings: Settings) -> None:
    def broken(_: Settings) -> list[Finding]:
        raise RuntimeError("two\nlines")

    [finding] = doctor._guarded(broken, line_settings)
    assert finding.status is Status.FAIL and "RuntimeError: two lines" in finding.text


def test_doctor_against_apache_kafka(apache_kafka: Any, line_settings: Settings) -> None:
    settings = changed(line_settings, "kafka", bootstrap_servers=apache_kafka.bootstrap)
    kafka_clients.ensure_topics(settings)
    assert doctor_checks.broker_answers(settings)[0].status is Status.OK
    assert worst(doctor_checks.topic_limits(settings), "topics").status is Status.OK
    grown = changed(settings, "frames", limit_bytes=20 << 20)
    assert worst(doctor_checks.topic_limits(grown), "topics").status is Status.FAIL


def test_embedded_broker_answers(embedded_broker: EmbeddedBroker, line_settings: Settings) -> None:
    assert doctor_checks.broker_answers(line_settings)[0].status is Status.OK


def flawline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "station.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
