"""Who asks: every request has a visitor, and every address but a few needs one who has logged in."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, HTTPException, Request
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from flawline.errors import FlawlineError
from flawline.settings.console import ConsoleSettings
from station.language.languages import N_
from station.web import passwords
from station.web.accounts import Accounts, Limits, Role
from station.web.attempts import Attempts
from station.web.problems import is_of_api, problem

LOG_IN = "/login"
PUBLIC = (LOG_IN, "/healthz", "/static/", "/texts/")
"""Addresses without log-in; one that ends with a slash stands for all below it."""

COOKIE = "flawline_session"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""Over HTTPS: with this prefix a browser takes the cookie from this very host over HTTPS only (RFC 6265bis)."""

S_NS = 1_000_000_000
FORWARDED = ("x-forwarded-for", "forwarded")


@dataclass(frozen=True)
class Visitor:
    """Who sends a request. `name` is None where no users exist and everybody of this machine may do everything.

    `form_token` is the secret in the forms of the visitor's pages, None for a program with a bearer token, which sends
    no cookie that another site could use.
    """

    name: str | None
    role: Role
    form_token: str | None

    def may(self, role: str) -> bool:
        """Return whether the visitor has a role; templates call it."""
        return self.role.covers(Role(role))


class Access:
    """Finds out who sends a request, by cookie or by bearer token, and logs people in and out."""

    def __init__(self, accounts: Accounts, settings: ConsoleSettings, is_open: bool) -> None:
        """`is_open` says that without any user everybody may do everything: the console listens on loopback only."""
        self.accounts = accounts
        self.attempts = Attempts()
        self.limits = Limits(round(settings.session_idle_s * S_NS), round(settings.session_limit_s * S_NS))
        self.public_form_token = secrets.token_urlsafe(passwords.TOKEN_BYTES)
        self._is_open = is_open

    def visitor(self, headers: Headers, cookies: dict[str, str], is_secure: bool) -> Visitor | None:
        """Return who sends a request, None for somebody unknown. Raises HTTPException 403 where nobody may come in."""
        if not self.accounts.are_there():
            return self._anybody(headers)
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            known = self.accounts.user_with_token(token.strip())
            return Visitor(*known, form_token=None) if known else None
        session = cookies.get(SECURE_COOKIE if is_secure else COOKIE, "")
        known = self.accounts.user_of_session(session, self.limits) if session else None
        return Visitor(*known, form_token=passwords.form_token(session)) if known else None

    def _anybody(self, headers: Headers) -> Visitor:
        if not self._is_open:
            raise HTTPException(403, "no user exists any more: add one with `flawline users add`")
        if any(name in headers for name in FORWARDED):
            raise HTTPException(
                403, "a proxy brings others here, and no user exists: add one with `flawline users add`"
            )
        return Visitor(None, Role.ADMIN, self.public_form_token)

    def log_in(self, name: str, secret: str, address: str) -> str:
        """Return the token of a new session for a name with its password, or with its token. Raises HTTPException."""
        wait_s = self.attempts.begin(name, address)
        if wait_s > 0:
            raise HTTPException(429, f"too many attempts: wait {wait_s / 60:.0f} min and try again", _retry(wait_s))
        if secret.startswith(passwords.TOKEN_PREFIX):
            known = self.accounts.user_with_token(secret)
            is_right = known is not None and known[0] == name
        else:
            is_right = self.accounts.role_with_password(name, secret) is not None
        if not is_right:
            raise HTTPException(401, N_("this name and this password do not belong together: try again"))
        self.attempts.succeeded(name, address)
        self.accounts.forget_ended(self.limits)
        return self.accounts.begin_session(name)


def _retry(wait_s: float) -> dict[str, str]:
    return {"Retry-After": f"{wait_s:.0f}"}


class LogIn:
    """ASGI middleware: it puts the visitor into the request's state, and sends whom it does not know to the log-in."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        is_secure = request.url.scheme == "https"
        visitor: Visitor | None = None
        refusal: Response | None = None
        try:
            visitor = await asyncio.to_thread(self._access.visitor, request.headers, request.cookies, is_secure)
        except HTTPException as error:
            refusal = _plain(request, error.status_code, str(error.detail))
        except FlawlineError as error:
            refusal = _plain(request, 503, str(error))
        else:
            refusal = None if visitor else _unknown(request)
        if refusal is not None and not is_public(request.url.path):
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["visitor"] = visitor
        await self._app(scope, receive, send)


def is_public(path: str) -> bool:
    """Return whether an address needs no log-in."""
    return any(path == public or (public.endswith("/") and path.startswith(public)) for public in PUBLIC)


def _unknown(request: Request) -> Response:
    if is_of_api(request.url.path):
        return problem(401, "log in first, or send a token", {"WWW-Authenticate": "Bearer"})
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": "log in first, or send a token"}, 401, {"WWW-Authenticate": "Bearer"})
    if request.method == "GET" and "authorization" not in request.headers:
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(LOG_IN if wanted == "/" else f"{LOG_IN}?next={quote(wanted, safe='')}", 303)
    return PlainTextResponse("log in first: the session has ended\n", 401, {"WWW-Authenticate": "Bearer"})


def _plain(request: Request, status: int, message: str) -> Response:
    if is_of_api(request.url.path):
        return problem(status, message)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message}, status)
    return PlainTextResponse(message + "\n", status)


def needs(role: Role) -> Any:
    """Return the dependency of a route, or of a router, that lets a visitor with this role pass."""

    async def check(request: Request) -> Visitor:
        visitor: Visitor | None = request.state.visitor
        if visitor is None or not visitor.role.covers(role):
            held = visitor.role if visitor else "nobody"
            raise HTTPException(403, f"this needs the role {role}, and you have the role {held}: ask an administrator")
        return visitor

    check.role = role  # type: ignore[attr-defined]
    return Depends(check)


async def _visitor(request: Request) -> Visitor:
    visitor: Visitor = request.state.visitor
    return visitor


TheVisitor = Annotated[Visitor, Depends(_visitor)]
"""Who sends the request, for routes that need a role."""
