"""All queries that the dashboards would send: of panels, annotations and variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from discovery import dashboards
from discovery.dashboards.boards import ANY_CLASS
from discovery.dashboards.panels import POSTGRESQL, PROMETHEUS
from discovery.dashboards.sql import ANY_LOT

STATION = "https://station.plant:8400"


@dataclass(frozen=True)
class Query:
    """A query, and where it stands."""

    where: str
    source: str
    text: str
    shape: str  # of SQL: time_series, table; of PromQL: range; of both: variable

    def __str__(self) -> str:
        return self.where


def of(board: dict[str, Any]) -> Iterator[Query]:
    """Every query of one dashboard's JSON."""
    title = board["title"]
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield _query(f"{title} / {panel['title']} / {target['refId']}", target["datasource"]["uid"], target)
    for annotation in board["annotations"]["list"]:
        yield _query(
            f"{title} / annotation {annotation['name']}", annotation["datasource"]["uid"], annotation["target"]
        )
    for variable in board["templating"]["list"]:
        if variable["type"] == "constant":
            continue
        query = variable["query"]
        text = query if isinstance(query, str) else query["query"]
        yield Query(f"{title} / variable {variable['name']}", variable["datasource"]["uid"], text, "variable")


def _query(where: str, uid: str, target: dict[str, Any]) -> Query:
    if uid == PROMETHEUS.uid:
        return Query(where, uid, target["expr"], "instant" if target.get("instant") else "range")
    return Query(where, uid, target["rawSql"], target["format"])


ALL = [query for board in dashboards.build(STATION).values() for query in of(board)]
DISTINCT = list({(query.source, query.text, query.shape): query for query in reversed(ALL)}.values())[::-1]
"""Every query once: boards share annotations and variables."""
ON_PROMETHEUS = [query for query in DISTINCT if query.source == PROMETHEUS.uid]
ON_POSTGRESQL = [query for query in DISTINCT if query.source == POSTGRESQL.uid]


def metrics_in(promql: str) -> set[str]:
    """The metric names of a PromQL query: the project's all begin alike."""
    return set(re.findall(r"flawline[_:][\w:]+", promql))


EVERYTHING = {"camera": "camera", "group": "group_id", "class": ANY_CLASS, "lot": ANY_LOT, "shift": "shift"}
"""What the variables of the store's dashboards hold when all is chosen."""
