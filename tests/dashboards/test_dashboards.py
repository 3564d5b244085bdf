"""The dashboards' JSON is what Grafana accepts, and names only what exists."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

import discovery.metrics
import ledger.metrics
import producers.metrics
import station.outbound.metrics
import workers.metrics
from discovery import dashboards
from discovery.dashboards import alerts, push
from discovery.dashboards.boards import STATION_PAGES
from discovery.dashboards.panels import DECISION_COLOURS, GRID_WIDTH, POSTGRESQL, PROMETHEUS, of_line
from discovery.dashboards.promql import recorded
from flawline import telemetry
from tests.dashboards import queries

ROOT = Path(__file__).parents[2]
BOARDS = dashboards.build(queries.STATION)
ROOMS = (discovery.metrics, ledger.metrics, producers.metrics, station.outbound.metrics, workers.metrics)
"""Each declares its own metrics."""


def declared_series() -> set[str]:
    """Return the names that Prometheus gets from the declared metrics."""
    suffixes = {
        "counter": ("_total",),
        "gauge": ("",),
        "histogram": ("_bucket", "_sum", "_count"),
        "summary": ("_sum", "_count"),
    }
    return set(recorded()) | {
        family.name + suffix for family in telemetry.REGISTRY.collect() for suffix in suffixes.get(family.type, ("",))
    }


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_have_ids_of_their_own_and_lie_inside_the_grid_without_overlap(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) and min(ids) > 0
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert place["x"] >= 0 and place["x"] + place["w"] <= GRID_WIDTH, panel["title"]
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_panel_has_a_title_of_its_own_an_explanation_and_queries_with_letters_of_their_own(board):
    titles = [panel["title"] for panel in board["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in board["panels"]:
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(set(letters)) == len(letters), panel["title"]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_data_source_that_is_named_is_one_that_is_provisioned(board):
    text = json.dumps(board)
    named = {json.dumps(ref) for ref in _references(board)}
    known = {
        json.dumps({"type": source["type"], "uid": source["uid"]})
        for source in (push.prometheus_source("http://x"), push.postgresql_source(push.PLANT_STORE))
    }
    assert named and named <= known
    assert "${DS_" not in text  # the placeholder of exported dashboards, which nobody would fill


def test_a_decision_has_one_colour_on_every_board_and_accept_and_reject_differ_in_lightness():
    seen = {}
    for board in BOARDS.values():
        for panel in board["panels"]:
            for override in panel.get("fieldConfig", {}).get("overrides", []):
                name = override["matcher"]["options"]
                for item in override["properties"]:
                    if name in DECISION_COLOURS and item["id"] == "color":
                        seen.setdefault(name, set()).add(item["value"]["fixedColor"])
    assert seen == {name: {colour} for name, colour in DECISION_COLOURS.items()}
    light, dark = (_luminance(DECISION_COLOURS[name]) for name in ("accept", "reject"))
    assert (light + 0.05) / (dark + 0.05) >= 3  # the contrast of WCAG 2 for graphics


def _luminance(colour: str) -> float:
    """The relative luminance of a colour, as WCAG 2 defines it."""
    parts = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_panel_of_decisions_has_their_colours():
    for query in queries.ALL:
        board = next(board for board in BOARDS.values() if query.where.startswith(f"{board['title']} / "))
        title = query.where.split(" / ")[1]
        if "by (decision)" in query.text or "decision AS metric" in query.text:
            panel = next(panel for panel in board["panels"] if panel["title"] == title)
            names = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
            assert names >= set(DECISION_COLOURS), query.where


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_board_links_to_the_others_and_to_the_station(board):
    assert all("flawline" in other["tags"] for other in BOARDS.values())
    (boards,) = [link for link in board["links"] if link["type"] == "dashboards"]
    assert boards["tags"] == ["flawline"] and boards["includeVars"] and boards["keepTime"]
    pages = {link["url"] for link in board["links"] if link["type"] == "link"}
    assert pages == {f"{queries.STATION}{path}" for path in STATION_PAGES.values()}


def test_a_query_is_limited_to_the_chosen_lines_selector_by_selector():
    assert of_line('sum(rate(flawline_a_total{camera=~"$camera"}[5m])) / on (job) flawline_b + up') == (
        'sum(rate(flawline_a_total{line=~"$line", camera=~"$camera"}[5m])) / on (job) flawline_b{line=~"$line"} '
        '+ up{line=~"$line"}'
    )


@pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: alert.name)
def test_every_alert_has_a_runbook_and_names_what_exists(alert):
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/alerts.md").read_text(), re.MULTILINE)
    assert headings.count(alert.name) == 1 and len(headings) == len(alerts.ALERTS)
    assert alert.annotations["runbook"] == f"docs/alerts.md#{alert.name.lower()}"
    assert alert.severity in (alerts.CRITICAL, alerts.WARNING, alerts.INFO)
    assert queries.metrics_in(alert.expr) <= declared_series() or alert.expr.startswith("up{")


def test_grafana_gets_the_same_alerts_with_its_own_name_for_the_value():
    rules = {rule["title"]: rule for rule in alerts.grafana_rules("folder", "point")}
    assert set(rules) == {alert.name for alert in alerts.ALERTS}
    assert len({rule["uid"] for rule in rules.values()}) == len(rules)
    assert all(len(rule["uid"]) <= 40 for rule in rules.values())  # Grafana's limit
    for alert in alerts.ALERTS:
        rule = rules[alert.name]
        assert rule["data"][0]["model"]["expr"] == alert.expr
        assert "$value " not in json.dumps(rule) and rule["condition"] == "B"


def _references(value):
    if isinstance(value, dict):
        if "datasource" in value:
            yield value["datasource"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_the_official_types_read_the_panels_and_lose_nothing(board):
    plugins.register_default_plugins()
    read = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
    for part in ("panels", "templating"):
        assert _is_part_of(board[part], read[part])


def _is_part_of(part, whole):
    """Tell whether `whole` holds all of `part`; types add their defaults to `whole`."""
    if isinstance(part, dict):
        return all(key in whole and _is_part_of(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(_is_part_of, part, whole))
    return part == whole


@pytest.mark.parametrize("query", queries.ON_PROMETHEUS, ids=str)
def test_every_metric_of_a_query_is_declared_by_the_line(query):
    assert queries.metrics_in(query.text)
    assert queries.metrics_in(query.text) <= declared_series()


@pytest.mark.parametrize("query", queries.ALL, ids=str)
def test_every_variable_of_a_query_is_one_of_its_dashboard_or_a_macro(query):
    board = next(board for board in BOARDS.values() if query.where.startswith(board["title"]))
    known = {variable["name"] for variable in board["templating"]["list"]}
    used = {name for name in re.findall(r"\$(\w+)", query.text) if not name.startswith("__")}
    assert used <= known


def test_the_files_that_the_plant_mounts_are_the_generated_ones(tmp_path):
    for path in push.write_provisioning(tmp_path):
        committed = ROOT / "deploy" / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"{committed.name}: run `flawline dashboards write deploy`"


def test_provisioning_writes_data_sources_one_provider_and_the_dashboards_without_a_password(tmp_path):
    files = {str(path.relative_to(tmp_path)): path.read_text() for path in push.write_provisioning(tmp_path)}
    sources = yaml.safe_load(files["grafana/provisioning/datasources/flawline.yaml"])["datasources"]
    assert {source["uid"] for source in sources} == {PROMETHEUS.uid, POSTGRESQL.uid, "flawline-alertmanager"}
    assert [source["secureJsonData"] for source in sources if "secureJsonData" in source] == [
        {"password": "$__env{GRAFANA_READER_PASSWORD}"}
    ]
    provider = yaml.safe_load(files["grafana/provisioning/dashboards/flawline.yaml"])["providers"][0]
    assert provider["options"]["path"] == push.PROVISIONED_DASHBOARDS
    assert {json.loads(files[f"grafana/dashboards/{uid}.json"])["uid"] for uid in BOARDS} == set(BOARDS)


def test_provisioning_into_a_folder_that_cannot_be_written_says_which(tmp_path):
    (tmp_path / "grafana").write_text("a file where a folder should be")
    with pytest.raises(push.FlawlineError, match="cannot be written"):
        push.write_provisioning(tmp_path)


def test_the_scrape_interval_that_grafana_is_told_is_that_of_prometheus():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert config["global"]["scrape_interval"] == push.SCRAPE_INTERVAL
