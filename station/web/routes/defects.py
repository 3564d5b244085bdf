"""The frames that were not accepted, with their heat maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

from discovery.store import group_names, judgements
from station.pages.heat import HEAT_RANGE, heat_legend
from station.web import queries, views
from station.web.context import Before, TheContext, TheStore, image_response
from station.web.filters import HOURS, Wanted, choices, query_of

DEFECTS_PER_PAGE = 50

router = APIRouter()


@router.get("/defects")
def defects(
    request: Request, context: TheContext, store: TheStore, wanted: Wanted, before: Before = None, hours: float = 0
) -> Response:
    """List the frames that were not accepted, the latest first."""
    rows = queries.defects(store, before, DEFECTS_PER_PAGE + 1, replace(wanted, stratum=None))
    older = views.next_page([row.id for row in rows], DEFECTS_PER_PAGE)
    shown = rows[:DEFECTS_PER_PAGE]
    regions = queries.regions_of(store, [row.id for row in shown])
    values: dict[str, Any] = {
        "defects": shown,
        "regions": regions,
        "older": query_of(request, before=older) if older else None,
        "latest": query_of(request, before=None),
        "before": before,
        "wanted": wanted,
        "hours": hours,
        "all_hours": HOURS,
        "choices": choices(context.settings, store),
    }
    return context.page("defects.html", **values)


@router.get("/defects/{frame_id}")
def defect(context: TheContext, store: TheStore, frame_id: str) -> Response:
    """Show a frame that was not accepted, with its heat map and its regions."""
    row = queries.defect(store, frame_id)
    if row is None:
        raise HTTPException(404, _missing(frame_id))
    regions = queries.regions_of(store, [row.id]).get(row.id, [])
    values = {
        "frame": row,
        "regions": regions,
        "group_name": group_names.names(store).get((row.model_version, row.group_id)),
        "is_kept": judgements.picture(store, frame_id) is not None,
        "judgements": judgements.of_frame(store, frame_id),
    }
    return context.page("defect.html", legend=heat_legend(), heat_range=HEAT_RANGE, **values)


@router.get("/defects/{frame_id}/heatmap.png")
def heat_map(store: TheStore, frame_id: str) -> Response:
    """Return the heat map of a frame."""
    row = queries.defect(store, frame_id)
    data = views.heat_png(row.heatmap, row.heatmap_height, row.heatmap_width) if row and row.heatmap else None
    return image_response(data, "image/png", _missing(frame_id))


def _missing(frame_id: str) -> str:
    return f"no frame {frame_id} that was not accepted: see the list of defects"
