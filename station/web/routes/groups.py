"""The look-alike groups of the models, and the names that people give them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from discovery.store import group_names
from flawline.errors import UsageError
from station.web import forms, queries
from station.web.access import TheVisitor, needs
from station.web.accounts import Role
from station.web.context import Context, TheContext

EXAMPLES = 3

router = APIRouter()


@router.get("/groups")
def groups(request: Request, context: TheContext) -> Response:
    """List the groups with some pictures, and forms to name them."""
    return _page(request, context)


@router.post("/groups/name", dependencies=[needs(Role.REVIEW)])
def name(request: Request, context: TheContext, visitor: TheVisitor, form: forms.Checked) -> Response:
    """Name a group."""
    try:
        who, why = forms.person(form, visitor)
        number = form.get("group", "")
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise UsageError("group: give its number")
        group_names.name(context.store, form.get("model", ""), int(number), form.get("value", ""), who=who, why=why)
    except UsageError as error:
        return _page(request, context, str(error), 400)
    response = RedirectResponse("/groups", 303)
    forms.remember(response, form, visitor)
    return response


@router.post("/groups/undo", dependencies=[needs(Role.REVIEW)])
def undo(request: Request, context: TheContext, visitor: TheVisitor, form: forms.Checked) -> Response:
    """Take back the last name that was given."""
    try:
        who, _ = forms.person(form, visitor)
        group_names.undo(context.store, who=who)
    except UsageError as error:
        return _page(request, context, str(error), 400)
    return RedirectResponse("/groups", 303)


def _page(request: Request, context: Context, problem: str | None = None, status: int = 200) -> Response:
    rows = group_names.list_groups(context.store)
    values: dict[str, Any] = {
        "models": [(model, list(of_model)) for model, of_model in groupby(rows, lambda row: row["model"])],
        "examples": queries.examples_of_groups(context.store, EXAMPLES),
        "last": group_names.last(context.store),
        "name_length": group_names.NAME_LENGTH,
        "who": forms.remembered(request),
        "problem": problem,
    }
    return context.page("groups.html", status, **values)
