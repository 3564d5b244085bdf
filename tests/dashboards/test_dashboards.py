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

from discovery import dashboards
from discovery.dashboards import push
from discovery.dashboards.panels import GRID_WIDTH, POSTGRESQL, PROMETHEUS
from flawline import telemetry
from tests.dashboards import queries

ROOT = Path(__file__).parents[2]
BOARDS = dashboards.build()


def declared_series() -> set[str]:
    """Return the names that Prometheus gets from the declared metrics."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {
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
        committed = ROOT / "deploy" / "grafana" / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"{committed.name}: run `flawline dashboards write`"


def test_provisioning_writes_two_data_sources_one_provider_and_the_dashboards_without_a_password(tmp_path):
    files = {str(path.relative_to(tmp_path)): path.read_text() for path in push.write_provisioning(tmp_path)}
    sources = yaml.safe_load(files["provisioning/datasources/flawline.yaml"])["datasources"]
    assert {source["uid"] for source in sources} == {PROMETHEUS.uid, POSTGRESQL.uid}
    assert [source["secureJsonData"] for source in sources if "secureJsonData" in source] == [
        {"password": "$__env{GRAFANA_READER_PASSWORD}"}
    ]
    provider = yaml.safe_load(files["provisioning/dashboards/flawline.yaml"])["providers"][0]
    assert provider["options"]["path"] == push.PROVISIONED_DASHBOARDS
    assert {json.loads(files[f"dashboards/{uid}.json"])["uid"] for uid in BOARDS} == set(BOARDS)


def test_provisioning_into_a_folder_that_cannot_be_written_says_which(tmp_path):
    (tmp_path / "provisioning").write_text("a file where a folder should be")
    with pytest.raises(push.FlawlineError, match="cannot be written"):
        push.write_provisioning(tmp_path)


def test_the_scrape_interval_that_grafana_is_told_is_that_of_prometheus():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert config["global"]["scrape_interval"] == push.SCRAPE_INTERVAL
