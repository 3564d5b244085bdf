"""Prometheus's own tool accepts the configuration, and the alert rules fire for what they are for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from discovery.dashboards import alerts
from tests.dashboards.test_dashboards import declared_series
from tests.deploy.compose import ROOT
from tests.support.prometheus import PROMTOOL

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
