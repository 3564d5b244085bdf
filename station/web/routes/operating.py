"""The operating point: what the alarm rate costs and finds, and what another one would have."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from discovery.store import group_names
from station.web import operating, queries
from station.web.context import TheContext, TheStore
from station.web.filters import HOURS, Wanted, choices, query_of, refuse

router = APIRouter()

DEFAULT_HOURS = 24
HOUR_NS = 3_600_000_000_000

Percent = Annotated[
    float | None, Query(ge=100 * operating.RATES_RANGE[0], le=100 * operating.RATES_RANGE[1], allow_inf_nan=False)
]
Model = Annotated[str, Query(max_length=256)]


@router.get("/operating-point")
def operating_point(
    request: Request,
    context: TheContext,
    store: TheStore,
    wanted: Wanted,
    hours: float = DEFAULT_HOURS,
    percent: Percent = None,
    model: Model = "",
) -> Response:
    """Show the operating point, by default of the day that ends with the latest frame."""
    refuse(wanted, "class_id", "stratum", "decision", "part")
    if "\0" in model:
        raise HTTPException(400, "model: a version holds no zero byte: correct it")
    if "hours" not in request.query_params and wanted.since_ns is None and wanted.until_ns is None:
        wanted = replace(wanted, since_ns=max(queries.latest_capture_ns(store) - DEFAULT_HOURS * HOUR_NS, 0))
    shown = operating.report(
        store,
        context.models,
        wanted,
        model=model or None,
        rate=None if percent is None else round(percent / 100, 12),
        near_miss_p_value=context.settings.pictures.near_miss_p_value,
        language=context.language,
    )
    for frame in [*shown["what_if"]["passing"], *shown["what_if"]["caught"]] if shown["what_if"] else ():
        frame["at"] = datetime.fromisoformat(frame["at"])
    values: dict[str, Any] = {
        "report": shown,
        "known_models": list(dict.fromkeys(group["model"] for group in group_names.list_groups(store))),
        "wanted": wanted,
        "hours": hours,
        "all_hours": HOURS,
        "choices": choices(context.settings, store),
        "range": [100 * rate for rate in operating.RATES_RANGE],
        "address": lambda rate: f"/operating-point?{query_of(request, percent=f'{100 * rate:g}')}",
    }
    return context.page("operating_point.html", **values)
