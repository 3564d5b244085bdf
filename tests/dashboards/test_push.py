"""Pushing the dashboards: against a stand-in for Grafana's API, because Grafana is no Debian package."""

from __future__ import annotations

import socket

import pytest

from discovery import dashboards
from discovery.dashboards import defect_trends, line_overview, push
from discovery.dashboards.panels import POSTGRESQL, PROMETHEUS
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings
from tests.dashboards.grafana_double import TOKEN, GrafanaDouble

pytestmark = pytest.mark.system

STORE = "postgresql+psycopg://reader:a%40b@store.plant:5433/line?sslmode=require"


def settings(url: str, token: str | None = TOKEN, store: str | None = STORE) -> Settings:
    return Settings(grafana={"url": url, "token": token, "prometheus_url": "http://prom:9090"}, store={"url": store})


@pytest.fixture
def double():
    double = GrafanaDouble()
    yield double
    double.stop()


def test_push_creates_the_folder_both_data_sources_and_both_dashboards(double):
    done = push.push(settings(double.url))
    assert list(double.folders) == [push.FOLDER_UID]
    assert double.sources[PROMETHEUS.uid]["url"] == "http://prom:9090"
    store = double.sources[POSTGRESQL.uid]
    assert (store["url"], store["user"]) == ("store.plant:5433", "reader")
    assert store["jsonData"]["database"] == "line" and store["jsonData"]["sslmode"] == "require"
    assert store["secureJsonData"] == {"password": "a@b"}
    assert double.dashboards == dashboards.build()
    assert f"dashboard {line_overview.TITLE}: {double.url}/d/{line_overview.UID}/x" in done


def test_a_second_push_changes_nothing_but_the_dashboards(double):
    push.push(settings(double.url))
    double.sources[PROMETHEUS.uid]["url"] = "http://changed-by-the-operator"
    double.dashboards[line_overview.UID] = {"title": "changed by hand"}
    done = push.push(settings(double.url))
    assert double.sources[PROMETHEUS.uid]["url"] == "http://changed-by-the-operator"
    assert double.dashboards == dashboards.build()
    assert sum(line.endswith(": kept") for line in done) == 3


def test_a_grafana_below_a_path_is_found():
    double = GrafanaDouble(prefix="/grafana")
    try:
        push.push(settings(double.url + "/"))
        assert len(double.dashboards) == 2
    finally:
        double.stop()


def test_with_sqlite_the_dashboard_of_the_store_is_left_out_and_said_so(double):
    done = push.push(settings(double.url, store=None))
    assert list(double.dashboards) == [line_overview.UID] and list(double.sources) == [PROMETHEUS.uid]
    assert any(defect_trends.TITLE in line and "store.url" in line for line in done)


def test_grafana_may_reach_the_store_by_another_address_and_role_than_discovery(double):
    basis = settings(double.url)
    reader = {"store_url": "postgresql://grafana_reader:pw@db-for-grafana/line"}
    changed = Settings(grafana=basis.grafana.model_dump() | reader, store={"url": STORE})
    push.push(changed)
    store = double.sources[POSTGRESQL.uid]
    assert (store["url"], store["user"]) == ("db-for-grafana:5432", "grafana_reader")


@pytest.mark.parametrize("key", ["store", "grafana"])
def test_a_store_address_that_is_none_is_a_usage_error_that_hides_it(double, key):
    basis = settings(double.url, store="no address, secret1" if key == "store" else STORE)
    if key == "grafana":
        wrong = basis.grafana.model_dump() | {"store_url": "no address, secret1"}
        basis = Settings(grafana=wrong, store={"url": STORE})
    with pytest.raises(UsageError) as error:
        push.push(basis)
    assert "store" in one_line(error) and "secret1" not in one_line(error)
    assert not double.requests


def one_line(error: pytest.ExceptionInfo[FlawlineError]) -> str:
    text = str(error.value)
    assert "\n" not in text and TOKEN not in text
    return text


def test_a_wrong_token_is_named(double):
    with pytest.raises(FlawlineError) as error:
        push.push(settings(double.url, token="wrong"))
    assert double.url in one_line(error) and "grafana.token" in one_line(error)


def test_a_token_without_the_right_role_is_named():
    double = GrafanaDouble(role="Viewer")
    try:
        with pytest.raises(FlawlineError) as error:
            push.push(settings(double.url))
        assert "role Admin" in one_line(error)
    finally:
        double.stop()


def test_without_a_token_nothing_is_sent(double):
    with pytest.raises(UsageError, match="FLAWLINE_GRAFANA__TOKEN"):
        push.push(settings(double.url, token=None))
    assert not double.requests


def test_a_grafana_that_is_away_is_named(refusing_port):
    with pytest.raises(FlawlineError) as error:
        push.push(settings(f"http://127.0.0.1:{refusing_port}"))
    assert "cannot be reached (" in one_line(error) and "grafana.url" in one_line(error)


def test_a_server_that_is_no_grafana_is_named(double):
    with pytest.raises(FlawlineError) as error:
        push.push(settings(double.url + "/nothing-here"))
    assert "grafana.url" in one_line(error)


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(push, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(FlawlineError) as error:
        push.push(settings(f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert "does not answer" in one_line(error)


@pytest.mark.parametrize("url", ["grafana:3000", "ftp://grafana", "nonsense", ""])
def test_an_address_that_is_none_is_a_usage_error(url):
    with pytest.raises(UsageError, match=r"grafana\.url"):
        push.push(settings(url))
