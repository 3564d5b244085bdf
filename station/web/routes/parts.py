"""The verdicts on parts."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response

from discovery.store import frame_pictures
from discovery.store.filters import Filter
from discovery.store.store import Store
from flawline import clock
from flawline.messages import Decision
from station.web import queries, views
from station.web.context import MAX_ROW_ID, Before, TheContext, TheStore
from station.web.filters import HOURS, Wanted, choices, query_of

PARTS_PER_PAGE = 50
OTHERS = 20

RowId = Annotated[int, PathParameter(ge=1, le=MAX_ROW_ID)]

router = APIRouter()


@router.get("/parts")
def parts(
    request: Request,
    context: TheContext,
    store: TheStore,
    wanted: Wanted,
    before: Before = None,
    hours: float = 0,
    incomplete: Annotated[str, Query(max_length=8)] = "",
) -> Response:
    """List the inspections of parts, the latest first."""
    is_incomplete = incomplete == "yes"
    rows = queries.inspections(store, before, PARTS_PER_PAGE + 1, wanted, is_incomplete=is_incomplete)
    older = views.next_page([row.id for row in rows], PARTS_PER_PAGE)
    values: dict[str, Any] = {
        "parts": shown(store, rows[:PARTS_PER_PAGE], context.settings.parts.gap_s),
        "wanted": wanted,
        "hours": hours,
        "all_hours": HOURS,
        "incomplete": is_incomplete,
        "choices": choices(context.settings, store),
        "decisions": [str(decision) for decision in Decision],
        "before": before,
        "older": query_of(request, before=older) if older else None,
        "latest": query_of(request, before=None),
    }
    return context.page("parts.html", **values)


@router.get("/parts/{part_id}")
def part(context: TheContext, store: TheStore, part_id: RowId) -> Response:
    """Show an inspection of a part with its views."""
    inspection = queries.inspection(store, part_id)
    if inspection is None:
        raise HTTPException(404, f"no inspection {part_id} of a part: it may have become part of another one")
    (row,) = shown(store, [inspection], context.settings.parts.gap_s)
    frames = [view["frame_id"] for view in row["views"].values()]
    same_part = Filter(part=row["part"], lot=row["lot"])
    values: dict[str, Any] = {
        "row": row,
        "kept": {picture.frame_id for picture in frame_pictures.kept(store, frames)},
        "defects": queries.known_defects(store, frames),
        "others": [other for other in queries.inspections(store, None, OTHERS, same_part) if other.id != part_id],
    }
    return context.page("part.html", **values)


def shown(store: Store, rows: Any, gap_s: float) -> list[dict[str, Any]]:
    """Return inspections as pages show them; an open one may still get the views that it misses."""
    newest_ns = queries.latest_capture_ns(store)
    return [
        row._asdict()
        | {
            "views": json.loads(row.views),
            "missing": row.missing.split(",") if row.missing else [],
            "is_open": row.last_ns + gap_s / clock.NS >= newest_ns,
        }
        for row in rows
    ]
