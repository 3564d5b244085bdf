"""The map of the regions by their looks, on which people encircle what is a kind of its own."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from discovery.store.decisions import NAME_LENGTH
from discovery.store.store import Store
from station.web import forms, queries
from station.web.context import TheContext, TheStore
from station.web.queries import ClassRow

router = APIRouter()

OfClass = Annotated[str | None, Query(alias="class", max_length=64)]


@router.get("/map")
def region_map(request: Request, context: TheContext, store: TheStore, of_class: OfClass = None) -> Response:
    """Show the map of all regions or of one class; its points come from `/api/map`."""
    rows = queries.classes(store)
    values: dict[str, Any] = {
        "classes": rows,
        "of_class": _known(store, of_class),
        "name_length": NAME_LENGTH,
        "who": forms.remembered(request),
    }
    return context.page("map.html", **values)


@router.get("/api/map")
def api_map(context: TheContext, store: TheStore, of_class: OfClass = None) -> Response:
    """Return the points of the map, with the class of each."""
    shown = _known(store, of_class)
    return JSONResponse(context.maps.content(store, shown.id if shown else None))


def _known(store: Store, class_id: str | None) -> ClassRow | None:
    if not class_id:
        return None
    row = next((row for row in queries.classes(store, everything=True) if row.id == class_id), None)
    if row is None:
        raise HTTPException(404, f"no class {class_id}: see the list of classes")
    return row
