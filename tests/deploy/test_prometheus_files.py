"""Prometheus's own tool accepts the configuration, and the alert rules fire for what they are for."""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from discovery.dashboards import alerts
from tests.dashboards.test_dashboards import declared_series
from tests.deploy.compose import ROOT
from tests.support.ports import reserved_port
from tests.support.prometheus import PROMTOOL

ALERTMANAGER = ROOT / "deploy/prometheus/alertmanager.yml"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
TESTS = Path(__file__).with_name("alerts.test.yml")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")


def promtool(*arguments: str | Path) -> None:
    result = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_prometheus_accepts_its_configuration_and_the_rules():
    promtool("check", "config", ROOT / "deploy/prometheus/prometheus.yml")


@needs_promtool
def test_every_alert_fires_for_its_incident_and_for_nothing_else(tmp_path):
    content = yaml.safe_load(TESTS.read_text())
    annotations = {alert.name: alert.annotations for alert in alerts.ALERTS}
    for case in content["tests"]:
        for check in case["alert_rule_test"]:
            for expected in check.get("exp_alerts", []):
                expected["exp_annotations"] = annotations[check["alertname"]] | expected["exp_annotations"]
    # Each case as often as its series have values: hours in steps of 15 s would take a minute.
    for number, case in enumerate(content["tests"]):
        file = tmp_path / f"{number}.yml"
        tests = {"rule_files": [str(ALERTS)], "evaluation_interval": case["interval"], "tests": [case]}
        file.write_text(yaml.safe_dump(tests))
    promtool("test", "rules", *sorted(tmp_path.glob("*.yml")))


def test_every_alert_is_tested_and_names_declared_metrics():
    rules = ALERTS.read_text()
    tested = TESTS.read_text()
    names = re.findall(r"alert: (\w+)", rules)
    assert names and all(
        tested.count(f"alertname: {name}\n") + tested.count(f"alertname: {name}}}") == 2 for name in names
    )
    assert set(re.findall(r"flawline[_:][\w:]+", rules)) <= declared_series()


needs_alertmanager = pytest.mark.skipif(
    shutil.which("prometheus-alertmanager") is None,
    reason="Alertmanager is not installed (Debian package prometheus-alertmanager)",
)


def _alertmanager_config(folder: Path, address: str) -> Path:
    """Write the plant's configuration with the webhook's address in it: Debian's 0.25 reads no `url_file` yet."""
    content = yaml.safe_load(ALERTMANAGER.read_text())
    (webhook,) = content["receivers"][0]["webhook_configs"]
    webhook["url"] = webhook.pop("url_file").replace("/run/secrets/alert_webhook", address)
    content["route"]["group_wait"] = "0s"
    file = folder / "alertmanager.yml"
    file.write_text(yaml.safe_dump(content))
    return file


@needs_alertmanager
def test_alertmanager_accepts_its_configuration_and_routes_every_severity(tmp_path):
    file = _alertmanager_config(tmp_path, "http://127.0.0.1:1")
    assert subprocess.run(["amtool", "check-config", file], capture_output=True, timeout=60).returncode == 0
    for severity in (alerts.CRITICAL, alerts.WARNING, alerts.INFO):
        route = subprocess.run(
            ["amtool", "config", "routes", "test", f"--config.file={file}", "alertname=FlawlineGaps",
             f"severity={severity}"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert route.returncode == 0 and route.stdout.strip() == "plant"


def test_what_alertmanager_silences_for_a_cause_are_alerts_that_exist():
    content = yaml.safe_load(ALERTMANAGER.read_text())
    named = set(re.findall(r"Flawline\w+", json.dumps(content["inhibit_rules"])))
    assert named and named <= {alert.name for alert in alerts.ALERTS}


@needs_alertmanager
def test_an_alert_reaches_the_webhook(tmp_path):
    received: queue.SimpleQueue[dict] = queue.SimpleQueue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    file = _alertmanager_config(tmp_path, f"http://127.0.0.1:{receiver.server_port}/")
    url = f"http://127.0.0.1:{reserved_port()}"
    command = ["prometheus-alertmanager", f"--config.file={file}", f"--storage.path={tmp_path / 'data'}",
               f"--web.listen-address={url.removeprefix('http://')}", "--cluster.listen-address="]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        rule = alerts.prometheus_rules()["groups"][-1]["rules"][0]
        alert = {"labels": rule["labels"] | {"alertname": rule["alert"]}, "annotations": rule["annotations"]}
        deadline = time.monotonic() + 60
        while True:
            request = urllib.request.Request(f"{url}/api/v2/alerts", json.dumps([alert]).encode(), method="POST",
                                             headers={"Content-Type": "application/json"})  # fmt: skip
            try:
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        message = received.get(timeout=60)
        assert message["status"] == "firing" and message["alerts"][0]["labels"]["alertname"] == rule["alert"]
        assert "runbook" in message["alerts"][0]["annotations"]
    finally:
        process.terminate()
        process.wait(20)
        receiver.shutdown()
        receiver.server_close()
