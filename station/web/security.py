"""Keeps other web sites out: which Host names are ours, where a POST may come from, what a page may load."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from station.web.problems import is_of_api, problem

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # With no-referrer browsers would send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
}


class Guard:
    """ASGI middleware. It adds the headers to every response and refuses, in one line, what another site sends."""

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        if refusal:
            status, text = refusal
            answer = problem(status, text) if is_of_api(scope["path"]) else PlainTextResponse(f"{text}\n", status)
            await answer(scope, receive, send_guarded)
            return
        if scope["method"] == "HEAD":  # uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        method, host = scope["method"], headers.get("host", "")
        if scope["scheme"] != "https" and not is_loopback(scope["client"][0] if scope["client"] else ""):
            return 403, (
                "the console answers other machines over HTTPS only: set console.tls_certfile, or let a proxy of "
                "console.proxies send X-Forwarded-Proto"
            )
        if not is_own_host(host, self._names):
            return 421, f"the console does not know the host name {host!r}: add it to console.names"
        if "\0" in scope["path"]:
            return 400, "an address holds no zero byte: correct it"
        if method not in ("GET", "HEAD"):
            origin = headers.get("origin")
            foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
            if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "refused: another site sent the form: use the forms of the console's own pages"
        return None


def is_loopback(address: str) -> bool:
    """Return whether an IP address is of this machine; False for anything else."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def is_own_host(host: str, names: Iterable[str]) -> bool:
    """Return whether a Host header may be ours: localhost, an IP address, or one of `names`.

    Another site can make its own name point at this machine (DNS rebinding) and would then count as the same origin;
    with an address it cannot.
    """
    name = host.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
