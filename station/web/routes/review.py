"""The review page: frames are offered one after the other, and a person says of each what it shows."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from discovery import quality_rates
from discovery.pictures.keeper import picture_store
from discovery.pictures.policy import asked_for
from discovery.shifts import Calendar
from discovery.store import frame_pictures, group_names, judgements
from discovery.store.judgements import Filter, Queue
from discovery.store.store import Store
from flawline.errors import FlawlineError
from flawline.messages import Codec
from flawline.object_store import MissingObjectError, StoreAway
from station.language.languages import N_
from station.pages.heat import HEAT_RANGE, heat_legend
from station.web import forms, queries
from station.web.access import TheVisitor, needs
from station.web.accounts import Role
from station.web.context import Context, TheContext, TheStore
from station.web.filters import HOURS, Wanted, choices

BATCH = 20
"""Frames that the page gets at once; it asks again before it is through them."""
HISTORY = 20
MEDIA_TYPES = {Codec.JPEG: "image/jpeg", Codec.PNG: "image/png", Codec.RAW: "image/png"}

router = APIRouter()

FrameId = Annotated[str | None, Query(max_length=256)]


@router.get("/review")
def review(
    request: Request,
    context: TheContext,
    store: TheStore,
    wanted: Wanted,
    hours: float = 0,
    queue: Queue = Queue.ALARMS,
    frame: FrameId = None,
) -> Response:
    """Show the queue, or the one frame that somebody looks up."""
    values: dict[str, Any] = {
        "state": _queue(store, queue, wanted, None) if frame is None else _looked_up(context, store, frame),
        "queue": queue,
        "queues": {Queue.ALARMS: N_("Alarms"), Queue.AUDIT: N_("Accepted")},
        "wanted": wanted,
        "hours": hours,
        "all_hours": HOURS,
        "frame": frame,
        "choices": choices(context.settings, store),
        "who": forms.remembered(request),
        "why_length": forms.WHY_LENGTH,
    }
    return context.page("review.html", legend=heat_legend(), heat_range=HEAT_RANGE, **values)


@router.get("/api/review")
def api_queue(store: TheStore, wanted: Wanted, queue: Queue = Queue.ALARMS, after: FrameId = None) -> Response:
    """Return the next frames of a queue, behind the frame `after`; how many wait; and the latest judgements."""
    return JSONResponse(_queue(store, queue, wanted, after))


@router.get("/api/review/rates")
def api_rates(store: TheStore, wanted: Wanted) -> Response:
    """Return overkill and escapes with their intervals, of a camera and of the last `hours`, by whole hours."""
    return JSONResponse(quality_rates.report(judgements.judged(store, wanted)))


@router.get("/api/review/{frame_id}")
def api_frame(context: TheContext, store: TheStore, frame_id: str) -> Response:
    """Return one frame, whether it is judged or not."""
    return JSONResponse(_looked_up(context, store, frame_id))


@router.post("/api/review/keep", dependencies=[needs(Role.REVIEW)])
def keep(context: TheContext, store: TheStore, form: forms.Checked) -> Response:
    """Ask discovery to keep the picture of a frame of the last minutes; it is there some seconds later."""
    frame_id = form.get("frame", "")
    candidate = context.live.recent(frame_id)
    if candidate is None:
        raise HTTPException(404, f"frame {frame_id} is none of the last minutes")
    pick = asked_for(candidate, context.settings.pictures.near_miss_p_value)
    with store.transaction() as connection:
        calendar = Calendar(context.settings.shifts, context.settings.time_zone)
        if frame_pictures.want(connection, [pick], calendar):
            raise HTTPException(503, "too many frames wait to be kept: try again later")
    return JSONResponse({"frame": frame_id}, 202)


@router.post("/api/review/judge", dependencies=[needs(Role.REVIEW)])
def judge(store: TheStore, visitor: TheVisitor, wanted: Wanted, form: forms.Checked) -> Response:
    """Note what a person says of a frame: frame, judgement, why, and offered, which is yes for a frame of a queue."""
    who, why = forms.person(form, visitor)
    is_offered = form.get("offered") == "yes"
    entry = judgements.judge(
        store, form.get("frame", ""), form.get("judgement", ""), who=who, why=why, is_offered=is_offered
    )
    response = JSONResponse({"entry": entry} | _overview(store, wanted))
    forms.remember(response, form, visitor)
    return response


@router.post("/api/review/undo", dependencies=[needs(Role.REVIEW)])
def undo(store: TheStore, visitor: TheVisitor, wanted: Wanted, form: forms.Checked) -> Response:
    """Take back the last judgement of this person, and return its frame, to be judged again."""
    who, _ = forms.person(form, visitor)
    entry = judgements.undo(store, who=who)
    row = judgements.picture(store, entry["frame"])
    items = _items(store, [row] if row is not None else [])
    return JSONResponse({"entry": entry, "items": items} | _overview(store, wanted))


@router.get("/pictures/{frame_id}")
def picture(context: TheContext, store: TheStore, frame_id: str) -> Response:
    """Return a frame as it was captured."""
    return picture_response(context, store, frame_id)


def picture_response(context: Context, store: Store, frame_id: str) -> Response:
    """Return a frame as it was captured. Raises HTTPException 404 for one that is not kept, FlawlineError."""
    row = judgements.picture(store, frame_id)
    if row is None:
        raise HTTPException(404, f"no picture of frame {frame_id} is kept")
    try:
        data = picture_store(context.settings).get(row.object_key, row.size_bytes)
    except MissingObjectError as error:
        raise HTTPException(404, f"the picture of frame {frame_id} is gone: {error}") from error
    except StoreAway as error:
        raise FlawlineError(f"the picture of frame {frame_id} cannot be read: {error}") from error
    headers = {"Cache-Control": "private, max-age=86400, immutable", "ETag": f'"{row.object_key}"'}
    return Response(data, media_type=MEDIA_TYPES[Codec(row.codec)], headers=headers)


def _queue(store: Store, queue: Queue, wanted: Filter, after: str | None) -> dict[str, Any]:
    """Return the next frames of a queue, and what stands beside them."""
    return _overview(store, wanted) | {"items": _items(store, judgements.offered(store, queue, wanted, BATCH, after))}


def _looked_up(context: Context, store: Store, frame_id: str) -> dict[str, Any]:
    """Return one frame; `can_keep` names one without a picture that can still have one."""
    row = judgements.picture(store, frame_id)
    if row is None and context.live.recent(frame_id) is None:
        raise HTTPException(404, f"no picture of frame {frame_id} is kept, so it cannot be judged")
    shown = {"items": _items(store, [row] if row is not None else []), "can_keep": frame_id if row is None else None}
    return _overview(store, Filter()) | shown


def _overview(store: Store, wanted: Filter) -> dict[str, Any]:
    """Return how many frames wait, and the latest judgements."""
    return {
        "waiting": {str(queue): count for queue, count in judgements.backlogs(store, wanted).items()},
        "history": [judgements.as_dict(row) for row in judgements.latest(store, limit=HISTORY)],
    }


def _items(store: Store, rows: list[Any]) -> list[dict[str, Any]]:
    """Return frames as the page shows them; boxes are x, y, width, height in pixels."""
    regions = queries.regions_of(store, [row.defect_id for row in rows if row.defect_id is not None])
    names = group_names.names(store)
    return [
        {
            "frame": row.frame_id,
            "camera": row.camera,
            "captured_at": row.captured_at.isoformat(),
            "stratum": row.stratum,
            "score": round(row.score, 3),
            "p_value": row.p_value,
            "group": names.get((row.model_version, row.group_id)) or row.group_id,
            "model": row.model_version,
            "part": row.part,
            "lot": row.lot,
            "shift": f"{row.shift} {row.shift_day}" if row.shift else None,
            "class": {"id": row.class_id, "name": row.class_name} if row.class_id else None,
            "size": [row.width, row.height],
            "boxes": [[box.x, box.y, box.width, box.height] for box in regions.get(row.defect_id, [])],
            "has_heat": bool(row.heat_bytes),
        }
        for row in rows
    ]
