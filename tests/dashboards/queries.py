"""All queries that the dashboards would send: of panels, annotations and variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from discovery import dashboards
from discovery.dashboards.panels import POSTGRESQL, PROMETHEUS


@dataclass(frozen=True)
class Query:
    """One query, and where it stands."""

    where: str
    source: str
    text: str
    shape: str  # of SQL: time_series, table; of PromQL: range; of both: variable

    def __str__(self) -> str:
        return self.where


def of(board: dict[str, Any]) -> Iterator[Query]:
    """Yield every query of one dashboard's JSON."""
    title = board["title"]
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield _query(f"{title} / {panel['title']} / {target['refId']}", target["datasource"]["uid"], target)
    for annotation in board["annotations"]["list"]:
        yield _query(
            f"{title} / annotation {annotation['name']}", annotation["datasource"]["uid"], annotation["target"]
        )
    for variable in board["templating"]["list"]:
        query = variable["query"]
        text = query if isinstance(query, str) else query["query"]
        yield Query(f"{title} / variable {variable['name']}", variable["datasource"]["uid"], text, "variable")


def _query(where: str, uid: str, target: dict[str, Any]) -> Query:
    if uid == PROMETHEUS.uid:
        return Query(where, uid, target["expr"], "range")
    return Query(where, uid, target["rawSql"], target["format"])


ALL = [query for board in dashboards.build().values() for query in of(board)]
ON_PROMETHEUS = [query for query in ALL if query.source == PROMETHEUS.uid]
ON_POSTGRESQL = [query for query in ALL if query.source == POSTGRESQL.uid]


def metrics_in(promql: str) -> set[str]:
    """Return the metric names of a PromQL query: the project's all begin alike."""
    return set(re.findall(r"flawline_\w+", promql))
