"""Pushing boards, alert rules and contact points, and what differs: against a stand-in for Grafana's API."""

from __future__ import annotations

import json
import socket

import pytest
from typer.testing import CliRunner

from discovery import dashboards
from discovery.dashboards import alerts, defect_trends, grafana, line_overview, objects, push
from discovery.dashboards.panels import POSTGRESQL, PROMETHEUS
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings
from station.cli.main import app
from tests.dashboards.grafana_double import TOKEN, GrafanaDouble

pytestmark = pytest.mark.system

STORE = "postgresql+psycopg://reader:a%40b@store.plant:5433/line?sslmode=require"
STATION = "https://station.plant"
POINT = {
    "uid": "shift",
    "name": "Shift leader",
    "type": "webhook",
    "settings": {"url": "https://x/hook", "maxAlerts": 3},
}


def settings(url: str, token: str | None = TOKEN, store: str | None = STORE, **more) -> Settings:
    address = {"url": url, "token": token, "prometheus_url": "http://prom:9090", "station_url": STATION}
    return Settings(grafana=address | more, store={"url": store})


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setattr(grafana, "FIRST_PAUSE_S", 0.001)
    double = GrafanaDouble()
    yield double
    double.stop()


@pytest.fixture
def points(tmp_path):
    file = tmp_path / "points.json"
    file.write_text(json.dumps([POINT]))
    return file


def saved(double):
    """The dashboards without what Grafana adds."""
    return {
        uid: {key: value for key, value in board.items() if key not in ("id", "version")}
        for uid, board in double.dashboards.items()
    }


def test_push_creates_folder_data_sources_contact_points_dashboards_and_alert_rules(double, points):
    done = push.push(settings(double.url, contact_points=points))
    assert list(double.folders) == [push.FOLDER_UID]
    assert double.sources[PROMETHEUS.uid]["url"] == "http://prom:9090"
    store = double.sources[POSTGRESQL.uid]
    assert (store["url"], store["user"]) == ("store.plant:5433", "reader")
    assert store["jsonData"]["database"] == "line" and store["jsonData"]["sslmode"] == "require"
    assert store["secureJsonData"] == {"password": "a@b"}
    assert saved(double) == dashboards.build(STATION)
    assert len(double.rules) == len(alerts.ALERTS)
    assert {rule["notification_settings"]["receiver"] for rule in double.rules.values()} == {POINT["name"]}
    assert double.points["shift"]["settings"] == POINT["settings"]
    assert f"dashboard {line_overview.TITLE}: created: {double.url}/d/{line_overview.UID}" in done


def test_a_push_that_changes_nothing_writes_nothing(double, points):
    of_line = settings(double.url, contact_points=points)
    push.push(of_line)
    before = len(double.writes)
    done = push.push(of_line)
    assert len(double.writes) == before
    assert all("unchanged" in line for line in done)
    assert push.diff(of_line) == []
    assert len(double.writes) == before


def test_push_mends_what_was_changed_by_hand_but_keeps_a_data_source(double):
    of_line = settings(double.url)
    push.push(of_line)
    double.sources[PROMETHEUS.uid]["url"] = "http://changed-by-the-operator"
    double.dashboards[line_overview.UID]["title"] = "changed by hand"
    double.dashboards[line_overview.UID]["liveNow"] = True  # a part that is not wanted
    double.rules["flawline-gaps"]["for"] = "3h"
    double.folders[push.FOLDER_UID]["title"] = "Line"
    double.rules["flawline-of-before"] = double.rules["flawline-gaps"] | {"uid": "flawline-of-before", "title": "old"}
    double.rules["by-hand"] = double.rules["flawline-gaps"] | {"uid": "by-hand"}
    differences = push.diff(of_line)
    before = len(double.writes)
    assert any(line.startswith("dashboard Line overview: title: 'changed by hand'") or "title" in line
               for line in differences)  # fmt: skip
    assert "alert rule FlawlineGaps: for: '3h', wanted '1m'" in differences
    assert "folder Flawline: title: 'Line', wanted 'Flawline'" in differences
    assert any("liveNow: True, wanted None" in line for line in differences)
    assert any("changed-by-the-operator" in line and "a push keeps it" in line for line in differences)
    assert "alert rule old: is not wanted" in differences
    done = push.push(of_line)
    assert double.sources[PROMETHEUS.uid]["url"] == "http://changed-by-the-operator"
    assert saved(double) == dashboards.build(STATION)
    assert double.rules["flawline-gaps"]["for"] == "1m" and double.folders[push.FOLDER_UID]["title"] == "Flawline"
    assert "flawline-of-before" not in double.rules and "by-hand" in double.rules
    assert len(double.writes) == before + 4
    assert sum(": updated" in line for line in done) == 3 and sum(": kept" in line for line in done) == 1


def test_diff_tells_what_is_missing_and_writes_nothing(double):
    differences = push.diff(settings(double.url))
    assert "folder Flawline: is missing" in differences and "dashboard Line overview: is missing" in differences
    assert not double.writes


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_an_answer_that_may_pass_is_asked_for_again(double, status):
    double.trouble.extend([status, ("POST", status), ("GET", status)])
    push.push(settings(double.url))
    assert saved(double) == dashboards.build(STATION) and not double.trouble


def test_a_write_that_came_through_before_its_answer_was_lost_is_not_made_twice(double):
    double.trouble.append(("POST", 502))
    double.has_come_through = True
    push.push(settings(double.url))
    assert saved(double) == dashboards.build(STATION)
    assert sum(request == "POST /api/folders" for request in double.requests) == 1


def test_a_server_that_stays_in_trouble_is_named_with_its_answer(double):
    double.trouble.extend([503] * grafana.ATTEMPTS)
    with pytest.raises(FlawlineError) as error:
        push.push(settings(double.url))
    text = one_line(error)
    assert "503" in text and f"{grafana.ATTEMPTS} times" in text and "Grafana's log" in text
    assert len(double.requests) == grafana.ATTEMPTS


def test_a_dashboard_that_somebody_saves_meanwhile_is_read_again(double):
    of_line = settings(double.url)
    push.push(of_line)
    double.dashboards[line_overview.UID]["title"] = "changed by hand"

    def save_first():
        double.before_write = lambda: None
        double.dashboards[line_overview.UID] |= {"title": "changed again", "version": 9}

    double.before_write = save_first
    push.push(of_line)
    assert saved(double) == dashboards.build(STATION)
    assert double.dashboards[line_overview.UID]["version"] == 10


def test_a_dashboard_that_is_saved_all_the_time_is_given_up_with_a_remedy(double):
    of_line = settings(double.url)
    push.push(of_line)
    double.dashboards[line_overview.UID]["title"] = "changed by hand"

    def save_first():
        double.dashboards[line_overview.UID]["version"] += 1

    double.before_write = save_first
    with pytest.raises(FlawlineError) as error:
        push.push(of_line)
    assert "412" in one_line(error) and "run the command again" in one_line(error)


def test_without_alerts_no_rule_is_pushed_and_none_is_deleted(double):
    push.push(settings(double.url))
    push.push(settings(double.url, alerts=False))
    assert len(double.rules) == len(alerts.ALERTS)
    other = GrafanaDouble()
    try:
        push.push(settings(other.url, alerts=False))
        assert not other.rules and other.dashboards
    finally:
        other.stop()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no YAML"),
        ("a: 1", "a list of contact points"),
        ("[]", "a list of contact points"),
        ("- {uid: a, name: b, type: email}", "entry 1 needs uid, name, type and settings"),
    ],
)
def test_a_file_of_contact_points_that_holds_something_else_is_a_usage_error(double, tmp_path, text, message):
    (tmp_path / "points.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        push.push(settings(double.url, contact_points=tmp_path / "points.yaml"))
    with pytest.raises(UsageError, match="cannot be read"):
        push.push(settings(double.url, contact_points=tmp_path / "missing.yaml"))
    assert not double.requests


def test_export_writes_what_grafana_has_without_secrets(double, points, tmp_path):
    of_line = settings(double.url, contact_points=points)
    push.push(of_line)
    double.dashboards[line_overview.UID]["title"] = "changed by hand"
    written = push.export(of_line, tmp_path / "out")
    content = {path.relative_to(tmp_path / "out").as_posix(): json.loads(path.read_text()) for path in written}
    assert content[f"dashboards/{line_overview.UID}.json"]["title"] == "changed by hand"
    assert {rule["uid"] for rule in content["alert-rules.json"]} == set(double.rules)
    assert content["contact-points.json"][0]["settings"]["url"] == objects.REDACTED
    assert "https://x/hook" not in "".join(path.read_text() for path in written)


def test_the_commands_push_diff_and_export_speak_and_end_as_their_results_say(double, tmp_path, monkeypatch):
    file = tmp_path / "line.toml"
    file.write_text(f'[grafana]\nurl = "{double.url}"\ntoken = "{TOKEN}"\n[store]\nurl = "{STORE}"\n')
    config = ["--config", str(file)]
    run = CliRunner().invoke
    result = run(app, ["dashboards", "diff", *config])
    assert result.exit_code == 1 and "dashboard Line overview: is missing" in result.output
    assert run(app, ["dashboards", "push", *config]).exit_code == 0
    result = run(app, ["dashboards", "diff", "--json", *config])
    assert result.exit_code == 0 and json.loads(result.stdout) == {"differences": []}
    result = run(app, ["dashboards", "export", str(tmp_path / "out"), *config])
    assert result.exit_code == 0 and (tmp_path / "out" / "alert-rules.json").is_file()


def test_a_grafana_below_a_path_is_found():
    double = GrafanaDouble(prefix="/grafana")
    try:
        push.push(settings(double.url + "/"))
        assert len(double.dashboards) == 6
    finally:
        double.stop()


def test_with_sqlite_the_boards_and_marks_of_the_store_are_left_out_and_said_so(double):
    done = push.push(settings(double.url, store=None))
    assert list(double.sources) == [PROMETHEUS.uid]
    assert set(double.dashboards) == set(dashboards.build(STATION)) - set(dashboards.OF_THE_STORE)
    assert POSTGRESQL.uid not in json.dumps(double.dashboards)
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
    monkeypatch.setattr(grafana, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(FlawlineError) as error:
        push.push(settings(f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert "does not answer" in one_line(error)


@pytest.mark.parametrize("url", ["grafana:3000", "ftp://grafana", "nonsense", ""])
def test_an_address_that_is_none_is_a_usage_error(url):
    with pytest.raises(UsageError, match=r"grafana\.url"):
        push.push(settings(url))
