"""What can be read: line, ledger, classes, defects, frames, queues, judgements, rates, groups, parts, counts."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response

from discovery import quality_rates
from discovery.store import class_commands, group_names, judgements
from discovery.store.judgements import Queue
from discovery.store.store import Store
from flawline.errors import UsageError
from station import role_states
from station.web import operating, queries, views
from station.web.accounts import Role
from station.web.api import shapes
from station.web.api.answers import PAGE_DEFAULT, Cursor, Limit, Page, answer, page, row_id
from station.web.context import MAX_ROW_ID, TheContext, TheLedger, TheStore, image_response, read_at
from station.web.filters import Wanted, refuse
from station.web.routes.live import tiles
from station.web.routes.parts import shown as shown_parts
from station.web.routes.review import picture_response

router = APIRouter()

RowId = Annotated[int, PathParameter(ge=1, le=MAX_ROW_ID)]
Everything = Annotated[bool, Query(alias="all", description="Merged, dismissed and emptied classes too.")]
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/png", "image/jpeg")}}
}

By = Literal["camera", "lot", "shift", "shift_day", "model", "group", "hour"]


@router.get("/line", response_model=shapes.Line)
def line(request: Request, context: TheContext) -> Response:
    """Return what the line is, and who you are."""
    settings, visitor = context.settings, context.visitor
    body = {
        "line": settings.line,
        "cameras": [camera.name for camera in settings.cameras],
        "views": list(settings.views),
        "time_zone": settings.time_zone,
        "shifts": [shift.model_dump(mode="json") for shift in settings.shifts],
        "you": visitor.name if visitor else None,
        "role": str(visitor.role if visitor else Role.VIEW),
    }
    return answer(request, body)


@router.get("/cameras", response_model=Page[shapes.Camera])
def cameras(request: Request, context: TheContext) -> Response:
    """Return the state of each camera with its last verdicts, as the live page shows it."""
    return answer(request, {"items": tiles(context, 0)["tiles"], "next": None})


@router.get("/ledger", response_model=shapes.Ledger)
def ledger(request: Request, state: TheLedger) -> Response:
    """Return the account of every capture; `error` says why it is not of now."""
    at = read_at(state)
    body = {
        "read_at": at.isoformat() if at else None,
        "error": state.problem or (None if state.report else "not read yet"),
        "ledger": state.report.as_dict() if state.report else None,
    }
    return answer(request, body)


@router.get("/roles")
def roles(request: Request, context: TheContext) -> Response:
    """Return the roles of the `flawline up` of this machine; null where none runs."""
    states = role_states.read(context.settings)
    shown = None if states is None else [vars(state) | {"text": state.text} for state in states]
    return answer(request, {"roles": shown})


@router.get("/classes", response_model=Page[shapes.DefectClass])
def classes(request: Request, store: TheStore, everything: Everything = False) -> Response:
    """Return all defect classes, the largest first."""
    items = [row.as_dict() for row in queries.classes(store, everything)]
    return answer(request, {"items": items, "next": None})


@router.get("/classes/{class_id}", response_model=shapes.WholeClass)
def defect_class(request: Request, store: TheStore, class_id: str) -> Response:
    """Return a class with its lineage, its events and what people did, by id or name."""
    return answer(request, class_of(store, class_id))


@router.get("/classes/{class_id}/members", response_model=Page[shapes.Member])
def members(
    request: Request, store: TheStore, class_id: str, limit: Limit = PAGE_DEFAULT, cursor: Cursor = ""
) -> Response:
    """Return the regions of a class, the latest first."""
    known = class_of(store, class_id)
    rows = queries.members(store, known["id"], row_id(cursor), limit + 1)
    return page(request, rows, limit, _member, lambda row: int(row.id))


@router.get("/regions/unassigned", response_model=Page[shapes.Member])
def unassigned(request: Request, store: TheStore, limit: Limit = PAGE_DEFAULT, cursor: Cursor = "") -> Response:
    """Return the regions that have no class, the latest first."""
    rows = queries.members(store, None, row_id(cursor), limit + 1)
    return page(request, rows, limit, _member, lambda row: int(row.id))


def _member(row: Any) -> dict[str, Any]:
    return {
        "region": row.id,
        "frame": row.frame_id,
        "camera": row.camera,
        "captured_at": row.captured_at.isoformat(),
        "peak": row.peak,
        "crop": f"/regions/{row.id}/crop.jpg",
    }


@router.get("/defects", response_model=Page[shapes.Defect])
def defects(
    request: Request, store: TheStore, wanted: Wanted, limit: Limit = PAGE_DEFAULT, cursor: Cursor = ""
) -> Response:
    """Return the frames that were not accepted, the latest first."""
    refuse(wanted, "stratum")
    rows = queries.defects(store, row_id(cursor), limit + 1, wanted)
    regions = queries.regions_of(store, [row.id for row in rows])
    names = group_names.names(store)
    return page(request, rows, limit, lambda row: _defect(row, regions.get(row.id, []), names), lambda row: int(row.id))


@router.get("/defects/{frame_id}", response_model=shapes.Defect)
def defect(request: Request, store: TheStore, frame_id: str) -> Response:
    """Return a frame that was not accepted."""
    row = queries.defect(store, frame_id)
    if row is None:
        raise HTTPException(404, f"no frame {frame_id} that was not accepted")
    regions = queries.regions_of(store, [row.id]).get(row.id, [])
    return answer(request, _defect(row, regions, group_names.names(store)))


@router.get("/defects/{frame_id}/heat-map", response_class=Response, responses=PICTURE)
def heat_map(store: TheStore, frame_id: str) -> Response:
    """Return the heat map of a frame as PNG."""
    row = queries.defect(store, frame_id)
    data = views.heat_png(row.heatmap, row.heatmap_height, row.heatmap_width) if row and row.heatmap else None
    return image_response(data, "image/png", f"no heat map of frame {frame_id}")


@router.get("/frames", response_model=Page[shapes.Frame])
def frames(
    request: Request, store: TheStore, wanted: Wanted, limit: Limit = PAGE_DEFAULT, cursor: Cursor = ""
) -> Response:
    """Return the whole frames that are kept, those that were kept last first."""
    names = group_names.names(store)
    rows = judgements.pictures(store, row_id(cursor), limit + 1, wanted)
    return page(request, rows, limit, lambda row: _frame(row, names), lambda row: int(row.id))


@router.get("/frames/{frame_id}", response_model=shapes.FrameWithJudgements)
def frame(request: Request, store: TheStore, frame_id: str) -> Response:
    """Return a kept frame with all that was said of it, the latest first."""
    row = _kept(store, frame_id)
    entries = [
        judgements.as_dict(entry) | {"undone_at": entry.undone_at.isoformat() if entry.undone_at else None}
        for entry in judgements.of_frame(store, frame_id)
    ]
    return answer(request, _frame(row, group_names.names(store)) | {"judgements": entries})


@router.get("/frames/{frame_id}/picture", response_class=Response, responses=PICTURE)
def picture(context: TheContext, store: TheStore, frame_id: str) -> Response:
    """Return a kept frame as it was captured."""
    return picture_response(context, store, frame_id)


@router.get("/frames/{frame_id}/good-patch", response_model=shapes.GoodPatch)
def good_patch(request: Request, context: TheContext, store: TheStore, frame_id: str) -> Response:
    """Return the good patch that the worst place of a frame was compared with; ask again while it is being made."""
    patch, language = context.patches.of(store, frame_id), context.language
    state = "pending" if patch is None else "none" if patch.jpeg is None else "ready"
    words = language.gettext("the nearest good patch is looked for")
    if patch is not None:
        words = language.known(patch.problem or "") or language.gettext(
            "%(times)s times as far from it as good patches usually are; of %(image)s",
            times=language.number(patch.times_usual, 1),
            image=patch.image,
        )
        if patch.jpeg and not patch.is_shown:
            words += " " + language.gettext("(a nearer one has no picture)")
    body = {
        "state": state,
        "words": words,
        "distance": patch.distance if patch and patch.jpeg else None,
        "times_usual": patch.times_usual if patch and patch.jpeg else None,
        "image": patch.image if patch and patch.jpeg else None,
        "picture": f"/frames/{quote(frame_id)}/good-patch/picture" if state == "ready" else None,
    }
    return answer(request, body)


@router.get("/frames/{frame_id}/good-patch/picture", response_class=Response, responses=PICTURE)
def good_patch_picture(context: TheContext, store: TheStore, frame_id: str) -> Response:
    """Return the worst place of a frame and the nearest good patch side by side, as JPEG."""
    patch = context.patches.of(store, frame_id)
    return image_response(patch.jpeg if patch else None, "image/jpeg", f"no good patch of frame {frame_id} is made yet")


@router.get("/queues/{queue}", response_model=Page[shapes.Frame])
def queue(
    request: Request,
    store: TheStore,
    queue: Queue,
    wanted: Wanted,
    limit: Limit = 20,
    after: Annotated[str, Query(max_length=256, description="Frame behind which the page begins: `next`.")] = "",
) -> Response:
    """Return frames that wait for a judgement; `next` is what `after` takes."""
    rows = judgements.offered(store, queue, wanted, limit + 1, after or None)
    names = group_names.names(store)
    items = [_frame(row, names) for row in rows[:limit]]
    return answer(request, {"items": items, "next": items[-1]["frame"] if len(rows) > limit else None})


@router.get("/judgements", response_model=Page[shapes.JudgementEntry])
def latest_judgements(
    request: Request, store: TheStore, wanted: Wanted, limit: Limit = PAGE_DEFAULT, cursor: Cursor = ""
) -> Response:
    """Return the judgements that hold, the latest first."""
    rows = judgements.latest(store, wanted, limit + 1, before=row_id(cursor))
    return page(request, rows, limit, judgements.as_dict, lambda row: int(row.id))


@router.get("/rates", response_model=shapes.Rates)
def rates(request: Request, store: TheStore, wanted: Wanted) -> Response:
    """Return overkill and escapes with their intervals, by camera, lot, shift and time; hours are taken as a whole."""
    refuse(wanted, "class_id", "stratum", "decision", "group", "part")
    return answer(request, quality_rates.report(judgements.judged(store, wanted)))


@router.get("/operating-point", response_model=shapes.OperatingPoint)
def operating_point(
    request: Request,
    context: TheContext,
    store: TheStore,
    wanted: Wanted,
    model: Annotated[str, Query(max_length=256, description="Version; default: the model that decided last.")] = "",
    rate: Annotated[
        float | None,
        Query(ge=operating.RATES_RANGE[0], le=operating.RATES_RANGE[1], description="Alarm rate to try, a fraction."),
    ] = None,
) -> Response:
    """Return what the alarm rate of a model costs and finds, and what another one would have."""
    refuse(wanted, "class_id", "stratum", "decision", "part")
    if "\0" in model:
        raise HTTPException(400, "model: a version holds no zero byte: correct it")
    near_miss = context.settings.pictures.near_miss_p_value
    shown = operating.report(store, context.models, wanted, model=model or None, rate=rate, near_miss_p_value=near_miss)
    return answer(request, shown)


@router.get("/groups", response_model=Page[shapes.Group])
def groups(request: Request, store: TheStore, model: Annotated[str, Query(max_length=256)] = "") -> Response:
    """Return the look-alike groups, those of the latest model first."""
    return answer(request, {"items": group_names.list_groups(store, model or None), "next": None})


@router.get("/parts", response_model=Page[shapes.Part])
def parts(
    request: Request,
    context: TheContext,
    store: TheStore,
    wanted: Wanted,
    incomplete: Annotated[bool, Query(description="Only parts with a view that did not come.")] = False,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = "",
) -> Response:
    """Return the verdicts on parts, the latest first."""
    refuse(wanted, "camera", "class_id", "stratum", "group")
    rows = queries.inspections(store, row_id(cursor), limit + 1, wanted, is_incomplete=incomplete)
    shown = shown_parts(store, rows, context.settings.parts.gap_s)
    return page(request, shown, limit, _part, lambda row: int(row["id"]))


@router.get("/parts/{part_id}", response_model=shapes.Part)
def part(request: Request, context: TheContext, store: TheStore, part_id: RowId) -> Response:
    """Return the verdict on a part."""
    row = queries.inspection(store, part_id)
    if row is None:
        raise HTTPException(404, f"no inspection {part_id} of a part: it may have become part of another one")
    return answer(request, _part(shown_parts(store, [row], context.settings.parts.gap_s)[0]))


@router.get("/counts", response_model=Page[shapes.Count])
def counts(
    request: Request,
    store: TheStore,
    wanted: Wanted,
    by: Annotated[list[By] | None, Query(description="What frames are counted by, beside their decision.")] = None,
) -> Response:
    """Return how many frames were scored, by decision and by what is asked for; at most 10,000 rows."""
    refuse(wanted, "class_id", "stratum", "part")
    rows = queries.counts(store, wanted, list(dict.fromkeys(by or ())))
    if len(rows) > queries.COUNT_ROWS:
        raise HTTPException(400, f"more than {queries.COUNT_ROWS} rows: ask for a shorter time or by less")
    return answer(request, {"items": rows, "next": None})


@router.get("/lots", response_model=Page[shapes.Lot])
def lots(request: Request, store: TheStore, limit: Limit = PAGE_DEFAULT) -> Response:
    """Return the lots that were seen last."""
    rows = [
        {"lot": row.lot, "first_at": row.first_at.isoformat(), "last_at": row.last_at.isoformat()}
        for row in queries.lots(store, limit)
    ]
    return answer(request, {"items": rows, "next": None})


def class_of(store: Store, reference: str) -> dict[str, Any]:
    """Return a class by id or name. Raises HTTPException 404."""
    try:
        return class_commands.show(store, reference)
    except UsageError as error:
        raise HTTPException(404, str(error)) from error


def _kept(store: Store, frame_id: str) -> Any:
    row = judgements.picture(store, frame_id)
    if row is None:
        raise HTTPException(404, f"no picture of frame {frame_id} is kept")
    return row


def _origin(row: Any, names: dict[tuple[str, int], str]) -> dict[str, Any]:
    """Return what defects and kept frames say alike."""
    return {
        "frame": row.frame_id,
        "camera": row.camera,
        "captured_at": row.captured_at.isoformat(),
        "decision": row.decision,
        "score": row.score,
        "p_value": row.p_value,
        "group": row.group_id,
        "group_name": names.get((row.model_version, row.group_id)),
        "model": row.model_version,
        "part": row.part,
        "lot": row.lot,
        "shift": row.shift or None,
        "shift_day": row.shift_day or None,
        "class_id": row.class_id,
    }


def _defect(row: Any, regions: list[Any], names: dict[tuple[str, int], str]) -> dict[str, Any]:
    return _origin(row, names) | {
        "class_name": row.class_name,
        "regions": [
            {
                "region": region.id,
                "box": [region.x, region.y, region.width, region.height],
                "area_px": region.area_px,
                "peak": region.peak,
                "class_id": region.class_id,
                "class_name": region.class_name,
                "crop": f"/regions/{region.id}/crop.jpg",
            }
            for region in regions
        ],
        "heat_map": f"/api/v1/defects/{quote(row.frame_id, safe='')}/heat-map",
    }


def _frame(row: Any, names: dict[tuple[str, int], str]) -> dict[str, Any]:
    return _origin(row, names) | {
        "stratum": row.stratum,
        "size": [row.width, row.height],
        "picture": f"/api/v1/frames/{quote(row.frame_id, safe='')}/picture",
    }


def _part(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "part": row["part"],
        "lot": row["lot"] or None,
        "shift": row["shift"] or None,
        "shift_day": row["shift_day"] or None,
        "decision": row["decision"],
        "p_value": row["p_value"],
        "captured_at": row["first_at"].isoformat(),
        "frames": row["frames"],
        "views": [
            {"view": name, "frame": view["frame_id"]}
            | {key: view[key] for key in ("camera", "decision", "p_value", "score")}
            for name, view in row["views"].items()
        ],
        "missing": row["missing"],
        "is_open": row["is_open"] and bool(row["missing"]),
    }
