"""The line's two dashboards as code: *Line overview* (Prometheus) and *Defect trends* (PostgreSQL)."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from discovery.dashboards import defect_trends, line_overview


def build() -> dict[str, dict[str, Any]]:
    """Return both dashboards as Grafana's JSON model, by uid."""
    return {module.UID: _plain(module.build()) for module in (line_overview, defect_trends)}


def _plain(builder: Any) -> dict[str, Any]:
    board = builder.build()
    for number, panel in enumerate(board.panels, start=1):
        panel.id_val = number  # the builders give none, and Grafana would give new ones with every save
    return json.loads(json.dumps(board, cls=JSONEncoder))
