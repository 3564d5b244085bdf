"""The frames that were not accepted, with their heat maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response

from discovery.store import group_names, judgements
from discovery.store.store import Store
from flawline.errors import UsageError
from station.pages.heat import HEAT_RANGE, heat_legend
from station.web import class_queries, defect_words, forms, queries, views
from station.web.access import TheVisitor, needs
from station.web.accounts import Role
from station.web.context import Before, Context, TheContext, TheStore, image_response
from station.web.filters import HOURS, Wanted, choices, query_of

DEFECTS_PER_PAGE = 50

router = APIRouter()

Within = Annotated[str | None, Query(alias="class", max_length=64)]
"""The class among whose frames one goes on; without, among all."""


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
def defect(request: Request, context: TheContext, store: TheStore, frame_id: str, within: Within = None) -> Response:
    """Show a frame that was not accepted, with its heat map and its regions, between its neighbours."""
    return _page(request, context, store, frame_id, within)


@router.post("/defects/{frame_id}/judge", dependencies=[needs(Role.REVIEW)])
def judge(
    request: Request,
    context: TheContext,
    store: TheStore,
    visitor: TheVisitor,
    frame_id: str,
    form: forms.Checked,
    within: Within = None,
) -> Response:
    """Note what a person says of the frame that is looked up, and show it again."""
    try:
        who, why = forms.person(form, visitor)
        judgements.judge(store, frame_id, form.get("judgement", ""), who=who, why=why, is_offered=False)
    except UsageError as error:
        return _page(request, context, store, frame_id, within, status=400, problem=str(error))
    response = RedirectResponse(_address(frame_id, within), 303)
    forms.remember(response, form, visitor)
    return response


@router.post("/defects/{frame_id}/undo", dependencies=[needs(Role.REVIEW)])
def undo(
    request: Request,
    context: TheContext,
    store: TheStore,
    visitor: TheVisitor,
    frame_id: str,
    form: forms.Checked,
    within: Within = None,
) -> Response:
    """Take back the last judgement of the frame, and show it again."""
    try:
        judgements.undo(store, who=forms.person(form, visitor)[0], frame_id=frame_id)
    except UsageError as error:
        return _page(request, context, store, frame_id, within, status=400, problem=str(error))
    response = RedirectResponse(_address(frame_id, within), 303)
    forms.remember(response, form, visitor)
    return response


def _page(
    request: Request,
    context: Context,
    store: Store,
    frame_id: str,
    within: str | None,
    *,
    status: int = 200,
    problem: str | None = None,
) -> Response:
    if "\0" in (within or ""):
        raise HTTPException(400, "the id of a class holds no zero byte: correct it")
    row = queries.defect(store, frame_id)
    if row is None:
        raise HTTPException(404, _missing(frame_id))
    regions = queries.regions_of(store, [row.id]).get(row.id, [])
    newer, older = class_queries.neighbours(store, row, within)
    entries = judgements.of_frame(store, frame_id)
    values = {
        "frame": row,
        "regions": regions,
        "group_name": group_names.names(store).get((row.model_version, row.group_id)),
        "words": defect_words.sentences(row, regions, context.language),
        "classes": _takers(context, regions),
        "is_kept": judgements.picture(store, frame_id) is not None,
        "judgements": entries,
        "judgement": next((entry for entry in entries if not entry.undone_at), None),
        "newer": newer,
        "older": older,
        "within": within,
        "query": _query(within),
        "who": forms.remembered(request),
        "problem": problem,
    }
    return context.page("defect.html", status, legend=heat_legend(), heat_range=HEAT_RANGE, **values)


def _takers(context: Context, regions: list[Any]) -> list[queries.ClassRow] | None:
    """Return the classes that can take the regions without a class; None where there are none, or who may not."""
    assert context.visitor is not None
    if all(region.class_id for region in regions) or not context.visitor.may(Role.REVIEW):
        return None
    return queries.classes(context.store)


def _query(within: str | None) -> str:
    return f"?class={quote(within)}" if within else ""


def _address(frame_id: str, within: str | None) -> str:
    return f"/defects/{quote(frame_id)}{_query(within)}"


@router.get("/defects/{frame_id}/heatmap.png")
def heat_map(store: TheStore, frame_id: str) -> Response:
    """Return the heat map of a frame."""
    row = queries.defect(store, frame_id)
    data = views.heat_png(row.heatmap, row.heatmap_height, row.heatmap_width) if row and row.heatmap else None
    return image_response(data, "image/png", _missing(frame_id))


def _missing(frame_id: str) -> str:
    return f"no frame {frame_id} that was not accepted: see the list of defects"
