"""The defect classes, and what people decide about them, which goes the way of `flawline classes`."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, RedirectResponse, Response

from discovery.store import class_commands
from discovery.store import undo as way_back
from discovery.store.decisions import NAME_LENGTH, SEVERITIES
from flawline.errors import UsageError
from station.web import forms, queries, views
from station.web.access import TheVisitor, needs
from station.web.accounts import Role
from station.web.context import MAX_ROW_ID, Before, Context, TheContext, TheStore, image_response

CLASS_CROPS = 8
MEMBERS_PER_PAGE = 60

RowId = Annotated[int, PathParameter(ge=1, le=MAX_ROW_ID)]
Everything = Annotated[bool, Query(alias="all")]

router = APIRouter()


@router.get("/classes")
def classes(request: Request, context: TheContext, store: TheStore, everything: Everything = False) -> Response:
    """List the classes with some of their members."""
    rows = queries.classes(store, everything)
    crops = queries.salient_regions(store, [row.id for row in rows if row.merged_into is None], CLASS_CROPS)
    last = way_back.last(store)
    return context.page(
        "classes.html", classes=rows, crops=crops, everything=everything, last=last, who=forms.remembered(request)
    )


@router.get("/api/classes")
def api_classes(store: TheStore, everything: Everything = False) -> Response:
    """Return the classes as JSON."""
    return JSONResponse({"classes": [row.as_dict() for row in queries.classes(store, everything)]})


@router.get("/classes/{class_id}")
def class_page(request: Request, context: TheContext, class_id: str, before: Before = None) -> Response:
    """Show a class with its members, its history and its forms."""
    return _class_page(request, context, class_id, before)


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


@router.post("/classes/undo", dependencies=[needs(Role.REVIEW)])
def undo(context: TheContext, visitor: TheVisitor, form: forms.Checked) -> Response:
    """Take back the last thing that people said, and show the class that it was about."""
    who, why = forms.person(form, visitor)
    shown = class_commands.undo(context.store, None, who, why)
    return RedirectResponse(f"/classes/{quote(shown['id'])}", 303)


@router.get("/regions/{region_id}/crop.jpg")
def crop(store: TheStore, region_id: RowId) -> Response:
    """Return the crop of a region."""
    return image_response(queries.crop(store, region_id), "image/jpeg", f"no region {region_id}")


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
    values: dict[str, Any] = {
        "class": shown,
        "others": [row for row in rows if row.id != class_id and row.merged_into is None],
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
