"""Log-in and log-out, and for administrators the users and their sessions."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response

from station.language import extract, languages
from station.web import forms
from station.web.access import COOKIE, LOG_IN, SECURE_COOKIE, TheVisitor, needs
from station.web.accounts import Role
from station.web.context import Context, TheContext

log = logging.getLogger(__name__)

public = APIRouter()
"""The log-in itself and the texts of scripts, which need no role."""

router = APIRouter()

Next = Annotated[str, Query(alias="next", max_length=2000)]


@public.get("/texts/{code}.js")
def texts(code: str) -> Response:
    """Return the texts of the scripts in a language."""
    if code not in languages.known():
        raise HTTPException(404, f"no language {code[:32]}: choose from {', '.join(languages.known())}")
    return Response(extract.script(languages.known()[code]), media_type="text/javascript")


@public.get(LOG_IN)
def log_in_page(context: TheContext, wanted: Next = "/") -> Response:
    """Show the form of the log-in; where no users exist, or for a person who is logged in, go on."""
    if context.visitor is not None:
        return RedirectResponse(_local_path(wanted), 303)
    return _log_in_page(context, wanted)


@public.post(LOG_IN)
async def log_in(request: Request, context: TheContext) -> Response:
    """Log a person in with name and password, or with name and token, and go on to the page that was asked for."""
    form = await forms.read_form(request, forms.LOG_IN_LIMIT_BYTES)
    forms.check_token(form, context.access.public_form_token)
    name, address = form.get("name", ""), request.client.host if request.client else ""
    try:
        # The hash takes a while, and the event loop serves others meanwhile.
        session = await asyncio.to_thread(context.access.log_in, name, form.get("password", ""), address)
    except HTTPException as error:
        log.warning("log-in of %r from %s refused: %s", name, address, error.detail)
        page = _log_in_page(context, form.get("next", "/"), error.status_code, str(error.detail), name)
        page.headers.update(error.headers or {})
        return page
    log.info("log-in of %r from %s", name, address)
    response = RedirectResponse(_local_path(form.get("next", "/")), 303)
    is_secure = request.url.scheme == "https"
    # Lax, so that a link from a dashboard finds the person logged in; nothing is changed by a GET.
    response.set_cookie(
        SECURE_COOKIE if is_secure else COOKIE,
        session,
        max_age=round(context.settings.console.session_limit_s),
        secure=is_secure,
        httponly=True,
        samesite="lax",
    )
    return response


@router.post("/logout", dependencies=[needs(Role.VIEW)])
def log_out(request: Request, context: TheContext, _: forms.Checked) -> Response:
    """End the session."""
    response = RedirectResponse(LOG_IN, 303)
    for cookie, is_secure in ((COOKIE, False), (SECURE_COOKIE, True)):
        if cookie in request.cookies:
            context.access.accounts.end_session(request.cookies[cookie])
            response.delete_cookie(cookie, secure=is_secure, httponly=True, samesite="lax")
    return response


@router.get("/users", dependencies=[needs(Role.ADMIN)])
def users(context: TheContext) -> Response:
    """List the users with their roles and their open sessions."""
    return context.page("users.html", users=context.access.accounts.users())


@router.post("/users/end-sessions", dependencies=[needs(Role.ADMIN)])
def end_sessions(context: TheContext, visitor: TheVisitor, form: forms.Checked) -> Response:
    """Log a user out everywhere."""
    name = form.get("name", "")
    count = context.access.accounts.end_sessions(name)
    log.info("%r ended %d sessions of %r", visitor.name, count, name)
    return RedirectResponse("/users", 303)


def _log_in_page(context: Context, wanted: str, status: int = 200, problem: str = "", name: str = "") -> Response:
    return context.page(
        "login.html",
        status,
        wanted=_local_path(wanted),
        problem=problem,
        name=name,
        token=context.access.public_form_token,
    )


def _local_path(path: str) -> str:
    """Return a path of this console, and its first page for anything that could lead elsewhere."""
    is_own = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if is_own else "/"
