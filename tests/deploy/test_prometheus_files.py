"""Prometheus's own tool accepts the configuration, and the alert rules fire for what they are for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from flawline import telemetry
from tests.deploy.compose import ROOT
from tests.support.prometheus import PROMTOOL

ALERTS = ROOT / "deploy/prometheus/alerts.yml"

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")


def promtool(*arguments: str | Path) -> None:
    result = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_prometheus_accepts_its_configuration_and_the_rules():
    promtool("check", "config", ROOT / "deploy/prometheus/prometheus.yml")


@needs_promtool
def test_every_alert_fires_for_its_incident_and_for_nothing_else():
    promtool("test", "rules", Path(__file__).with_name("alerts.test.yml"))


def test_every_alert_is_tested_and_names_declared_metrics():
    rules = ALERTS.read_text()
    tested = Path(__file__).with_name("alerts.test.yml").read_text()
    names = re.findall(r"alert: (\w+)", rules)
    assert names and all(
        tested.count(f"alertname: {name}\n") + tested.count(f"alertname: {name}}}") == 2 for name in names
    )
    declared = {family.name + ("_total" if family.type == "counter" else "") for family in telemetry.REGISTRY.collect()}
    assert set(re.findall(r"flawline_\w+", rules)) <= declared
