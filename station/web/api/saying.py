"""What people say: classes, judgements, names of groups. JSON bodies only, so that no form of another site fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import Response

from discovery.pictures.policy import asked_for
from discovery.shifts import Calendar
from discovery.store import class_commands, frame_pictures, group_names, judgements
from discovery.store.store import Store
from flawline.errors import UsageError
from station.web.access import TheVisitor, Visitor, needs
from station.web.accounts import Role
from station.web.api import shapes
from station.web.api.answers import Page, answer
from station.web.api.reading import class_of
from station.web.context import TheContext, TheStore
from station.web.problems import Problem


async def _is_json(request: Request) -> None:
    """Refuse other bodies than JSON, which a form of another site can send without asking."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON: Content-Type: application/json")


router = APIRouter(dependencies=[needs(Role.REVIEW), Depends(_is_json)])

CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": Problem, "description": "It is not confirmed."}}


def person(body: shapes._Input, visitor: Visitor) -> tuple[str, str | None]:
    """Return who says it and why; the body says who where no users exist. Raises UsageError."""
    who = visitor.name or body.who
    if not who:
        raise UsageError("who: say who you are, since this station has no users")
    return who, body.why or None


def _changed(
    request: Request, store: Store, class_id: str, body: shapes._Input, visitor: Visitor, do: Callable[..., Any]
) -> Response:
    """Do something to a class that is there, and return it as it is then."""
    known = class_of(store, class_id)
    who, why = person(body, visitor)
    return answer(request, do(known["id"], who, why))


def _confirm(store: Store, class_id: str, is_confirmed: bool, what: str) -> None:
    known = class_of(store, class_id)
    if not is_confirmed:
        raise HTTPException(409, f"{known['frames']} frames of class {known['id']} {what}: confirm it with `confirmed`")


@router.put("/classes/{class_id}/name", response_model=shapes.WholeClass)
def name_class(request: Request, store: TheStore, visitor: TheVisitor, class_id: str, body: shapes.NewName) -> Response:
    """Name a class."""
    return _changed(request, store, class_id, body, visitor,
                    lambda name, who, why: class_commands.name(store, name, body.name, who, why))  # fmt: skip


@router.put("/classes/{class_id}/severity", response_model=shapes.WholeClass)
def rate_class(
    request: Request, store: TheStore, visitor: TheVisitor, class_id: str, body: shapes.NewSeverity
) -> Response:
    """Say how bad a class is."""

    def do(name: str, who: str, why: str | None) -> dict[str, Any]:
        return class_commands.set_severity(store, name, body.severity, who, why)

    return _changed(request, store, class_id, body, visitor, do)


@router.post("/classes/{class_id}/merge", response_model=shapes.WholeClass, responses=CONFLICT)
def merge(request: Request, store: TheStore, visitor: TheVisitor, class_id: str, body: shapes.Merge) -> Response:
    """Make a class part of another one, and return that one."""
    _confirm(store, class_id, body.confirmed, "go to another class")
    return _changed(request, store, class_id, body, visitor,
                    lambda name, who, why: class_commands.merge(store, name, body.into, who, why))  # fmt: skip


@router.post("/classes/{class_id}/dismiss", response_model=shapes.WholeClass, responses=CONFLICT)
def dismiss(request: Request, store: TheStore, visitor: TheVisitor, class_id: str, body: shapes.Hidden) -> Response:
    """Say that a class is no defect."""
    _confirm(store, class_id, body.confirmed, "are no defects then")
    return _changed(request, store, class_id, body, visitor,
                    lambda name, who, why: class_commands.dismiss(store, name, who, why))  # fmt: skip


@router.post("/classes/{class_id}/split", response_model=shapes.WholeClass)
def split(request: Request, store: TheStore, visitor: TheVisitor, class_id: str, body: shapes.Split) -> Response:
    """Part a class in two, by looks or by members that were picked out, and return the new class."""

    def do(name: str, who: str, why: str | None) -> dict[str, Any]:
        return class_commands.split(store, name, who, why, body.regions, body.alike)

    return _changed(request, store, class_id, body, visitor, do)


@router.post("/regions/assign", response_model=shapes.WholeClass)
def assign(request: Request, store: TheStore, visitor: TheVisitor, body: shapes.Assigned) -> Response:
    """Give regions that have no class to a class, a known or a new one, and return it."""
    who, why = person(body, visitor)
    return answer(request, class_commands.assign(store, body.regions, body.into, body.name, who, why))


@router.post("/classes/{class_id}/restore", response_model=shapes.WholeClass)
def restore(request: Request, store: TheStore, visitor: TheVisitor, class_id: str, body: shapes.Statement) -> Response:
    """Bring back a class that was dismissed or merged."""
    return _changed(request, store, class_id, body, visitor,
                    lambda name, who, why: class_commands.restore(store, name, who, why))  # fmt: skip


@router.post("/classes/{class_id}/undo", response_model=shapes.WholeClass)
def undo_class(
    request: Request, store: TheStore, visitor: TheVisitor, class_id: str, body: shapes.Statement
) -> Response:
    """Take back the last thing that people said about a class."""
    return _changed(request, store, class_id, body, visitor,
                    lambda name, who, why: class_commands.undo(store, name, who, why))  # fmt: skip


@router.post("/classes/undo", response_model=shapes.WholeClass)
def undo_any_class(request: Request, store: TheStore, visitor: TheVisitor, body: shapes.Statement) -> Response:
    """Take back the last thing that people said about any class."""
    who, why = person(body, visitor)
    return answer(request, class_commands.undo(store, None, who, why))


@router.post("/judgements", response_model=shapes.JudgementEntry, status_code=201)
def judge(request: Request, store: TheStore, visitor: TheVisitor, body: shapes.NewJudgement) -> Response:
    """Say of a kept frame what it shows."""
    who, why = person(body, visitor)
    if judgements.picture(store, body.frame) is None:
        raise HTTPException(404, f"no picture of frame {body.frame} is kept, so it cannot be judged")
    entry = judgements.judge(store, body.frame, body.judgement, who=who, why=why, is_offered=body.is_offered)
    return answer(request, entry, 201)


@router.post("/judgements/undo", response_model=shapes.JudgementEntry)
def undo_judgement(request: Request, store: TheStore, visitor: TheVisitor, body: shapes.Undone) -> Response:
    """Take back your last judgement, or the last one of a frame, and return it."""
    who, _ = person(body, visitor)
    return answer(request, judgements.undo(store, who=who, frame_id=body.frame))


@router.post("/frames/{frame_id}/keep", status_code=202)
def keep(
    request: Request, context: TheContext, store: TheStore, visitor: TheVisitor, frame_id: str, body: shapes.Statement
) -> Response:
    """Have the picture of a frame of the last minutes kept; it is there some seconds later."""
    person(body, visitor)
    candidate = context.live.recent(frame_id)
    if candidate is None:
        raise HTTPException(404, f"frame {frame_id} is none of the last minutes")
    settings = context.settings
    pick = asked_for(candidate, settings.pictures.near_miss_p_value)
    with store.transaction() as connection:
        if frame_pictures.want(connection, [pick], Calendar(settings.shifts, settings.time_zone)):
            raise HTTPException(503, "too many frames wait to be kept: try again later")
    return answer(request, {"frame": frame_id}, 202)


@router.put("/groups/{model}/{group}/name", response_model=shapes.Group)
def name_group(
    request: Request, store: TheStore, visitor: TheVisitor, model: str, group: int, body: shapes.NewName
) -> Response:
    """Name a look-alike group of a model."""
    who, why = person(body, visitor)
    if all(known["group"] != group for known in group_names.list_groups(store, model)):
        raise HTTPException(404, f"no group {group} of model {model} was seen")
    return answer(request, group_names.name(store, model, group, body.name, who=who, why=why))


@router.post("/groups/carry", response_model=Page[shapes.Group])
def carry(request: Request, store: TheStore, visitor: TheVisitor, body: shapes.Carried) -> Response:
    """Give the groups of an extended model the names of the model before it, and return those that got one."""
    who, why = person(body, visitor)
    changed = group_names.carry(store, body.old, body.new, who=who, why=why)
    return answer(request, {"items": changed, "next": None})


@router.post("/groups/undo", response_model=shapes.Group)
def undo_group(request: Request, store: TheStore, visitor: TheVisitor, body: shapes.Statement) -> Response:
    """Take back the last name of a group."""
    who, _ = person(body, visitor)
    return answer(request, group_names.undo(store, who=who))
