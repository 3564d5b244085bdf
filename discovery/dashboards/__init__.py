"""The boards as code: *Line overview*, *Cameras*, *Model*, *Operations*; *Defect trends*, *Quality* on the store."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from discovery.dashboards import cameras, defect_trends, line_overview, model_board, operations, quality
from discovery.dashboards.panels import POSTGRESQL

SCHEMA_VERSION = 42
"""Of the plant's Grafana, 12.2; it would bring an older one up to date at each load."""
OF_THE_STORE = (defect_trends.UID, quality.UID)
"""The boards that read the store, and so PostgreSQL."""

_BOARDS = (line_overview, defect_trends, cameras, model_board, operations, quality)


def build(station_url: str, *, with_store: bool = True) -> dict[str, dict[str, Any]]:
    """Return the boards as Grafana's JSON model, by uid; their links lead to the station at `station_url`.

    Without a store that Grafana can reach, the boards of the store and the annotations from it are left out.
    """
    boards = {module.UID: _plain(module.build(station_url.rstrip("/"))) for module in _BOARDS}
    if with_store:
        return boards
    for uid in OF_THE_STORE:
        del boards[uid]
    for content in boards.values():
        marks = content["annotations"]["list"]
        content["annotations"]["list"] = [mark for mark in marks if mark["datasource"]["uid"] != POSTGRESQL.uid]
    return boards


def _plain(builder: Any) -> dict[str, Any]:
    content = builder.build()
    content.schema_version = SCHEMA_VERSION
    for number, panel in enumerate(content.panels, start=1):
        panel.id_val = number  # the builders give none, and Grafana would give new ones with every save
    plain: dict[str, Any] = json.loads(json.dumps(content, cls=JSONEncoder))
    for item in (*plain["links"], *plain["annotations"]["list"]):
        item.pop("placement", None)  # a menu that 12.2 does not have; later ones would hide links and marks in it
    return plain
