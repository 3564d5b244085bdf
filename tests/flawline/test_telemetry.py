"""Each role shows its own metrics, and each metric belongs to one role."""

import socket
import urllib.request
from collections import Counter

import pytest

import discovery.metrics
import ledger.metrics
import producers.metrics
import station.outbound.metrics
import workers.metrics
from flawline import telemetry
from flawline.errors import FlawlineError
from flawline.settings.tree import Settings
from tests.support.ports import reserved_port

ROLES = (
    producers.metrics.OF_PRODUCERS,
    workers.metrics.OF_AN_ACTOR,
    (*telemetry.OF_THE_SUPERVISOR, workers.metrics.TAKT_SECONDS),
    discovery.metrics.OF_DISCOVERY,
    ledger.metrics.OF_THE_LEDGER,
    telemetry.OF_UP,
    station.outbound.metrics.OF_NOTIFY,
)


SHARED = Counter(
    {
        "flawline_object_store_away": 1,
        "flawline_broker_wait_seconds": 3,
        "flawline_disk_short": 1,
        "flawline_disk_free_bytes": 2,
    }
)
"""Metrics that several roles have, each for itself, with the number of roles beyond the first."""


def test_every_metric_belongs_to_exactly_one_role_or_is_shared_on_purpose() -> None:
    shown = Counter(family.name for role in ROLES for collector in role for family in collector.collect())
    known = Counter(family.name for family in telemetry.REGISTRY.collect())
    processes = Counter({family.name: 4 for family in telemetry.PROCESS.collect()})  # of five roles
    assert shown == known + SHARED + processes


@pytest.mark.system
def test_a_role_does_not_show_the_gauges_of_another() -> None:
    port = reserved_port()
    telemetry.SPOOL_FRAMES.labels("cam").set(3)
    endpoint = telemetry.serve(port, "127.0.0.1", *telemetry.OF_PRODUCERS)
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    finally:
        endpoint.close()
        telemetry.SPOOL_FRAMES.remove("cam")
    assert 'flawline_spool_frames{camera="cam"} 3.0' in page
    assert "flawline_ledger_balanced" not in page and "flawline_actors" not in page


@pytest.mark.system
def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FlawlineError, match=rf"metrics port 127.0.0.1:{port} cannot be opened"):
            telemetry.serve(port, "127.0.0.1")


@pytest.mark.system
def test_connection_to_an_endpoint_that_sends_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "REQUEST_TIMEOUT_S", 0.2)
    endpoint = telemetry.serve(reserved_port(), "127.0.0.1", *telemetry.OF_THE_LEDGER)
    try:
        with socket.create_connection(("127.0.0.1", endpoint.port)) as silent:
            silent.settimeout(30)
            assert silent.recv(100) == b""
    finally:
        endpoint.close()


def test_endpoints_listen_on_this_machine_unless_a_setting_says_otherwise() -> None:
    assert Settings().metrics.host == "127.0.0.1"
