"""The defect classes, and what people decide about them, which goes the way of `flawline classes`."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, RedirectResponse, Response

from discovery.store import class_commands, group_names
from discovery.store import undo as way_back
from discovery.store.decisions import NAME_LENGTH, SEVERITIES
from discovery.store.store import Store
from flawline.errors import UsageError
from station.web import class_queries, class_views, forms, queries, views
from station.web.access import TheVisitor, needs
from station.web.accounts import Role
from station.web.context import MAX_ROW_ID, Before, Context, TheContext, TheStore, image_response
from station.web.queries import ClassRow

CLASS_CROPS = 8
MEMBERS_PER_PAGE = 60
SEARCH_LENGTH = 64

RowId = Annotated[int, PathParameter(ge=1, le=MAX_ROW_ID)]
Everything = Annotated[bool, Query(alias="all")]

router = APIRouter()


@router.get("/classes")
def classes(
    request: Request,
    context: TheContext,
    store: TheStore,
    everything: Everything = False,
    text: Annotated[str, Query(alias="q", max_length=SEARCH_LENGTH)] = "",
    sort: str = "members",
) -> Response:
    """Show the wall: each class with pictures, how often it was seen, and where it comes from."""
    if sort not in class_views.SORTS:
        raise HTTPException(400, f"sort {sort[:32]!r}: one of {', '.join(class_views.SORTS)}")
    known = queries.classes(store, everything=True)
    rows = [row for row in known if everything or _is_living(row)]
    shown = class_views.matching(rows, text, sort)
    trend = class_queries.trend(store, min(row.born_at for row in rows)) if rows else None
    values: dict[str, Any] = {
        "classes": shown,
        "rows": len(rows),
        "pictures": _pictures(store, shown),
        "total": sum(row.frames for row in known) + class_queries.unassigned_frames(store),
        "sparks": {name: class_views.spark(counts) for name, counts in trend.counts.items()} if trend else {},
        "trend": trend,
        "spark_size": (class_views.SPARK_WIDTH, class_views.SPARK_HEIGHT),
        "group_names": group_names.names(store),
        "parents": class_queries.parents(store),
        "names": {row.id: row.name or row.id for row in known},
        "sorts": {name: words for name, (words, _) in class_views.SORTS.items()},
        "unassigned": class_queries.unassigned_regions(store),
        "everything": everything,
        "text": text,
        "sort": sort,
        "last": way_back.last(store),
        "who": forms.remembered(request),
    }
    return context.page("classes.html", **values)


@router.get("/api/classes")
def api_classes(store: TheStore, everything: Everything = False) -> Response:
    """Return the classes as JSON."""
    return JSONResponse({"classes": [row.as_dict() for row in queries.classes(store, everything)]})


@router.get("/classes/{class_id}")
def class_page(request: Request, context: TheContext, class_id: str, before: Before = None) -> Response:
    """Show a class with its members, its history and its forms."""
    return _class_page(request, context, class_id, before)


@router.post("/classes/undo", dependencies=[needs(Role.REVIEW)])
def undo(context: TheContext, visitor: TheVisitor, form: forms.Checked) -> Response:
    """Take back the last thing that people said, and show the class that it was about."""
    who, why = forms.person(form, visitor)
    shown = class_commands.undo(context.store, None, who, why)
    return RedirectResponse(f"/classes/{quote(shown['id'])}", 303)


@router.post("/classes/merge", dependencies=[needs(Role.REVIEW)])
def merge(context: TheContext, visitor: TheVisitor, form: forms.Checked) -> Response:
    """Merge the chosen classes into one of them, after a page that shows and counts them."""
    store = context.store
    rows = {row.id: row for row in queries.classes(store, everything=True)}
    chosen = list(dict.fromkeys(form.get("classes", "").split(",")))
    for class_id in chosen:
        if class_id not in rows and class_id:
            raise _no_class(class_id)
    chosen_rows = [rows[class_id] for class_id in chosen if class_id]
    if len(chosen_rows) < 2:
        raise UsageError("choose two classes or more to merge: tick them on the wall")
    into = form.get("into", "")
    if form.get("confirmed") != "yes":
        into = min(chosen_rows, key=lambda row: (row.name is None, -row.frames, row.id)).id
        values: dict[str, Any] = {
            "chosen": chosen_rows,
            "into": into,
            "pictures": _pictures(store, chosen_rows),
            "form": form,
        }
        return context.page("merge.html", **values)
    if into not in chosen:
        raise UsageError("choose the class that stays")
    who, why = forms.person(form, visitor)
    for row in chosen_rows:
        if row.id != into:
            class_commands.merge(store, row.id, into, who, why)
    response = RedirectResponse(f"/classes/{quote(into)}", 303)
    forms.remember(response, form, visitor)
    return response


@router.get("/unassigned")
def unassigned(request: Request, context: TheContext, before: Before = None) -> Response:
    """Show the regions that have no class, to be given to one."""
    return _unassigned_page(request, context, before)


@router.post("/unassigned", dependencies=[needs(Role.REVIEW)])
def assign(request: Request, context: TheContext, visitor: TheVisitor, form: forms.Checked) -> Response:
    """Give the ticked regions to the chosen class or to a new one, and show that class."""
    try:
        shown_id = forms.assign(context.store, form, visitor)
    except UsageError as error:
        return _unassigned_page(request, context, None, status=400, problem=str(error), form=form)
    response = RedirectResponse(f"/classes/{quote(shown_id)}", 303)
    forms.remember(response, form, visitor)
    return response


@router.post("/classes/{class_id}/{action}", dependencies=[needs(Role.REVIEW)])
def act(
    request: Request, context: TheContext, visitor: TheVisitor, class_id: str, action: str, form: forms.Checked
) -> Response:
    """Do to a class what a form asks for, and show the class then."""
    if action not in forms.ACTIONS:
        raise HTTPException(404, f"a class has no action {action}: choose from {', '.join(forms.ACTIONS)}")
    if all(row.id != class_id for row in queries.classes(context.store, everything=True)):
        raise _no_class(class_id)
    if action in forms.HIDING and form.get("confirmed") != "yes":
        return _confirmation(context, class_id, action, form)
    try:
        shown_id = forms.act(context.store, class_id, action, form, visitor)
    except UsageError as error:
        return _class_page(request, context, class_id, None, status=400, problem=str(error), form={action: form})
    # See-other, so that loading the page again does not send the form again.
    response = RedirectResponse(f"/classes/{quote(shown_id)}", 303)
    forms.remember(response, form, visitor)
    return response


@router.get("/regions/{region_id}/crop.jpg")
def crop(store: TheStore, region_id: RowId) -> Response:
    """Return the crop of a region."""
    return image_response(queries.crop(store, region_id), "image/jpeg", f"no region {region_id}")


def _is_living(row: ClassRow) -> bool:
    return row.state not in queries.HIDDEN and row.regions > 0


def _pictures(store: Store, rows: list[ClassRow]) -> dict[str, list[class_queries.Picture]]:
    """Return the pictures of classes that have members, spread over products, cameras and time."""
    ids = [row.id for row in rows if row.merged_into is None]
    pictures = class_queries.pictures(store, ids, CLASS_CROPS)
    return {name: class_queries.spread(shown, CLASS_CROPS) for name, shown in pictures.items()}


def _class_page(
    request: Request,
    context: Context,
    class_id: str,
    before: int | None,
    *,
    status: int = 200,
    problem: str | None = None,
    form: dict[str, forms.Form] | None = None,
) -> Response:
    """Return the page of a class; after a refused form with its `problem`, and with what the form held."""
    store = context.store
    rows = queries.classes(store, everything=True)
    shown = next((row for row in rows if row.id == class_id), None)
    if shown is None:
        raise _no_class(class_id)
    members: Any = queries.members(store, class_id, before, MEMBERS_PER_PAGE + 1)
    others = [row for row in rows if row.id != class_id and row.merged_into is None]
    merged_into = {row.id: row.merged_into for row in rows if row.merged_into is not None}
    chosen = (form or {}).get("split", {}).get("regions", "")
    values: dict[str, Any] = {
        "class": shown,
        "others": others,
        "pictures": _pictures(store, [row for row in others if _is_living(row)]),
        "lineage": class_views.lineage(class_id, class_queries.parents(store), merged_into),
        "box_size": (class_views.BOX_WIDTH, class_views.BOX_HEIGHT),
        "rows": {row.id: row for row in rows},
        "chosen": set(chosen.split(",")),
        "members": members[:MEMBERS_PER_PAGE],
        "older": views.next_page([row.id for row in members], MEMBERS_PER_PAGE),
        "events": queries.history(store, class_id),
        "audit": queries.audit(store, class_id),
        "severities": SEVERITIES,
        "name_length": NAME_LENGTH,
        "who": forms.remembered(request),
        "problem": problem,
        "form": form or {},
    }
    return context.page("class.html", status, **values)


def _unassigned_page(
    request: Request,
    context: Context,
    before: int | None,
    *,
    status: int = 200,
    problem: str | None = None,
    form: forms.Form | None = None,
) -> Response:
    store = context.store
    rows: Any = queries.members(store, None, before, MEMBERS_PER_PAGE + 1)
    classes = [row for row in queries.classes(store) if _is_living(row)]
    values: dict[str, Any] = {
        "before": before,
        "members": rows[:MEMBERS_PER_PAGE],
        "older": views.next_page([row.id for row in rows], MEMBERS_PER_PAGE),
        "classes": classes,
        "pictures": _pictures(store, classes),
        "chosen": set((form or {}).get("regions", "").split(",")),
        "form": form or {},
        "name_length": NAME_LENGTH,
        "who": forms.remembered(request),
        "problem": problem,
    }
    return context.page("unassigned.html", status, **values)


def _confirmation(context: Context, class_id: str, action: str, form: forms.Form) -> Response:
    """Return the page that says how many frames an action hides, and asks for a second word."""
    rows = {row.id: row for row in queries.classes(context.store, everything=True)}
    into = rows.get(form.get("value", "")) if action == "merge" else None
    if action == "merge" and into is None:
        raise _no_class(form.get("value", ""))
    values: dict[str, Any] = {"class": rows[class_id], "into": into, "action": action, "form": form}
    return context.page("confirm.html", **values)


def _no_class(class_id: str) -> HTTPException:
    return HTTPException(404, f"no class {class_id}: see the list of classes")
