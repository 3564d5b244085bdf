"""A probe says whether a role works, from what the role itself serves."""

from __future__ import annotations

from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from flawline import telemetry
from station import probe
from tests.support.ports import reserved_port

OF_A_ROLE = {
    "producers": telemetry.OF_PRODUCERS,
    "workers": telemetry.OF_THE_SUPERVISOR,
    "discovery": telemetry.OF_DISCOVERY,
    "ledger": telemetry.OF_THE_LEDGER,
}


def page_of(role: str) -> str:
    """Return what the role serves at this moment."""
    registry = CollectorRegistry()
    registry.register(telemetry.CollectorGroup(OF_A_ROLE[role]))
    return generate_latest(registry).decode()


@pytest.fixture(autouse=True)
def _metrics_as_they_were():
    telemetry.CAMERA_UP.clear()  # another test may have had cameras
    yield
    telemetry.CAMERA_UP.clear()
    for gauge in (telemetry.ACTORS, telemetry.STORE_AWAY_SECONDS, telemetry.BROKER_WAIT_SECONDS):
        gauge.set_function(lambda: 0.0) if gauge is telemetry.STORE_AWAY_SECONDS else gauge.set(0)


def test_producers_work_while_one_camera_delivers_and_when_all_replays_have_ended():
    assert probe.problem("producers", page_of("producers")) is None
    telemetry.CAMERA_UP.labels("a").set(0)
    telemetry.CAMERA_UP.labels("b").set(0)
    assert probe.problem("producers", page_of("producers")) == "no camera delivers"
    telemetry.CAMERA_UP.labels("b").set(1)
    assert probe.problem("producers", page_of("producers")) is None


def test_workers_work_once_an_actor_inspects():
    telemetry.ACTORS.set(0)
    assert probe.problem("workers", page_of("workers")) == "no actor inspects"
    telemetry.ACTORS.set(2)
    assert probe.problem("workers", page_of("workers")) is None


def test_discovery_works_while_store_and_broker_answer():
    telemetry.STORE_AWAY_SECONDS.set_function(lambda: 0.0)
    assert probe.problem("discovery", page_of("discovery")) is None
    telemetry.STORE_AWAY_SECONDS.set_function(lambda: 3.0)
    assert probe.problem("discovery", page_of("discovery")) == "the store is away"


@pytest.mark.parametrize("role", ["discovery", "ledger"])
def test_a_role_that_waits_for_the_broker_does_not_work(role):
    telemetry.STORE_AWAY_SECONDS.set_function(lambda: 0.0)
    assert probe.problem(role, page_of(role)) is None
    telemetry.BROKER_WAIT_SECONDS.set(5)
    assert probe.problem(role, page_of(role)) == "the broker is away"


@pytest.mark.system
def test_the_command_asks_a_role_that_runs_and_says_what_is_wrong(capsys):
    telemetry.ACTORS.set(0)
    with closing(telemetry.serve(reserved_port(), "127.0.0.1", *telemetry.OF_THE_SUPERVISOR)) as endpoint:
        url = f"http://127.0.0.1:{endpoint.port}/metrics"
        assert probe.main(["workers", url]) == 1
        assert capsys.readouterr().err == "workers: no actor inspects\n"
        telemetry.ACTORS.set(1)
        assert probe.main(["workers", url]) == 0
        assert probe.main(["console", url]) == 0
    assert capsys.readouterr().err == ""
    assert probe.main(["workers", url]) == 1
    assert capsys.readouterr().err.startswith(f"workers: {url} does not answer: ")
