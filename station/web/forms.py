"""The forms that people send: small and urlencoded, checked before they have an effect."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, unquote

from fastapi import Depends, HTTPException, Request
from fastapi.responses import Response

from discovery.store import class_commands, decisions
from discovery.store.store import Store
from flawline.errors import UsageError
from station.web.access import TheVisitor, Visitor

LIMIT_BYTES = 512 << 10
"""Room for 20,000 regions that a person has picked out, 15 characters each at most."""
LOG_IN_LIMIT_BYTES = 16 << 10
FIELDS_LIMIT = 200
MANY = ("regions", "classes")
"""Fields that come once for each thing that is ticked: their values are joined by commas."""
WHO_LENGTH = 64
WHY_LENGTH = 500
WHO_COOKIE = "flawline_who"
YEAR_S = 365 * 86_400

Form = dict[str, str]


async def read_form(request: Request, limit_bytes: int = LIMIT_BYTES) -> Form:
    """Return the fields of a form, without blanks around them. Raises HTTPException for anything else."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "a form was expected: use the forms of the pages")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise HTTPException(413, f"the form is larger than {limit_bytes} bytes")
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
    except ValueError:
        raise HTTPException(400, f"the form has more than {FIELDS_LIMIT} fields") from None
    return {name: ",".join(values) if name in MANY else values[-1].strip() for name, values in fields.items()}


def check_token(form: Form, token: str) -> None:
    """Raise HTTPException 403 for a form that is not from a page of this console: other sites cannot read the token."""
    if not hmac.compare_digest(form.get("token", "").encode(), token.encode()):
        raise HTTPException(403, "the form is not from this console, or is older than its start: load the page again")


async def _checked(request: Request, visitor: TheVisitor) -> Form:
    """Return the fields of a form of this visitor's pages. Raises HTTPException for one of another site."""
    form = await read_form(request)
    if visitor.form_token is not None:
        check_token(form, visitor.form_token)
    return form


Checked = Annotated[Form, Depends(_checked)]
"""The form of a request that changes something: every such route takes it, and so refuses what another site sends."""


def person(form: Form, visitor: Visitor) -> tuple[str, str | None]:
    """Return who acts and why, for the audit trail; the form says who where no users exist. Raises UsageError."""
    who, why = visitor.name or form.get("who", ""), form.get("why", "")
    if not 1 <= len(who) <= WHO_LENGTH or not who.isprintable():
        raise UsageError(f"who: give your name, 1 to {WHO_LENGTH} printable characters")
    if len(why) > WHY_LENGTH or not why.isprintable():
        raise UsageError(f"why: at most {WHY_LENGTH} printable characters")
    return who, why or None


def remember(response: Response, form: Form, visitor: Visitor) -> None:
    """Let the browser keep the name that the form gives, where no users exist."""
    if visitor.name is None:
        response.set_cookie(WHO_COOKIE, quote(form["who"]), max_age=YEAR_S, httponly=True, samesite="strict")


def remembered(request: Request) -> str:
    """Return the name that a person gave in the last form, where no users exist."""
    return unquote(request.cookies.get(WHO_COOKIE, ""))


HIDING = ("dismiss", "merge")
"""Actions that take frames from a person's eyes: they are confirmed on a page that counts the frames."""


def act(store: Store, class_id: str, action: str, form: Form, visitor: Visitor) -> str:
    """Do to a class what a form asks for, and return the id of the class to show next. Raises UsageError."""
    who, why = person(form, visitor)
    if action == "split" and form.get("by") in SPLITS:
        regions = decisions.region_ids(form.get("regions", ""))
        if not regions:
            raise UsageError("choose the members that the new class shall have: tick their pictures")
        report = class_commands.split(store, class_id, who, why, regions, SPLITS[form["by"]])
        if form.get("name"):
            try:
                report = class_commands.name(store, report["id"], form["name"], who, why)
            except UsageError as error:
                raise UsageError(f"the members are class {report['id']} now, without a name: {error}") from error
    else:
        report = ACTIONS[action](store, class_id, form.get("value", ""), who, why)
    return str(report["id"])


def assign(store: Store, form: Form, visitor: Visitor) -> str:
    """Give the ticked regions to the class `value`, or to a new one where it is empty. Raises UsageError."""
    who, why = person(form, visitor)
    regions = decisions.region_ids(form.get("regions", ""))
    if not regions:
        raise UsageError("choose the regions that the class shall have: tick their pictures")
    report = class_commands.assign(
        store, regions, form.get("value") or None, form.get("name") or None, who=who, why=why
    )
    return str(report["id"])


SPLITS = {"alike": True, "only": False}
"""How the members that a person has picked out part a class: with what looks like them, or they alone."""


Action = Callable[[Store, str, str, str, str | None], dict[str, Any]]

ACTIONS: dict[str, Action] = {
    "name": class_commands.name,
    "severity": class_commands.set_severity,
    "merge": class_commands.merge,
    "dismiss": lambda store, class_id, _, who, why: class_commands.dismiss(store, class_id, who, why),
    "split": lambda store, class_id, _, who, why: class_commands.split(store, class_id, who, why),
    "restore": lambda store, class_id, _, who, why: class_commands.restore(store, class_id, who, why),
    "undo": lambda store, class_id, _, who, why: class_commands.undo(store, class_id, who, why),
}
