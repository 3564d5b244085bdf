"""The console of a line as an ASGI app: its routers, its guard, and how errors look."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from discovery.store.database import DatabaseAway
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings
from station.language.languages import N_
from station.pages.rendering import STATIC
from station.web.access import Access, LogIn, needs
from station.web.accounts import Accounts, Role
from station.web.api.app import create_api
from station.web.context import Context, context_of
from station.web.good_patches import GoodPatches
from station.web.ledger_watch import LedgerWatch
from station.web.live import LiveWatch
from station.web.models import Models
from station.web.problems import PREFIX, is_of_api, problem
from station.web.region_map import RegionMaps
from station.web.routes import classes, defects, groups, line, operating, parts, people, reports, review
from station.web.routes import live as live_routes
from station.web.routes import map as map_routes
from station.web.security import Guard
from station.web.store_watch import StoreWatch

HEADING = N_("That did not work")


def create(
    settings: Settings, stores: StoreWatch, watch: LedgerWatch, live: LiveWatch, accounts: Accounts, is_open: bool
) -> FastAPI:
    """Return the console of a line, over its store, its ledger, its verdicts and its users.

    `is_open` says that while there is no user everybody may do everything, since only this machine reaches it.
    """
    app = FastAPI(title="Flawline", docs_url=None, redoc_url=None, openapi_url=None)
    access = Access(accounts, settings.console, is_open)
    models = Models(settings)
    patches = GoodPatches(settings, models, live.pictures)
    app.state.context = Context(settings, stores, watch, live, access, RegionMaps(), models, patches)
    app.add_middleware(LogIn, access=access)
    app.add_middleware(Guard, names=[*settings.console.names, settings.console.host])
    app.mount("/static", StaticFiles(directory=STATIC))
    app.mount(PREFIX, create_api(app.state.context))
    for module in (live_routes, review, line, parts, classes, map_routes, defects, groups, operating, reports, people):
        app.include_router(module.router, dependencies=[needs(Role.VIEW)])
    for router in (line.public, people.public):
        app.include_router(router)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(FlawlineError, _on_flawline_error)
    return app


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(request, error.status_code, str(error.detail))


def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _error(request, 400, f"{first['loc'][-1]}: {first['msg']}")


def _on_flawline_error(request: Request, error: Exception) -> Response:
    """Return the error of the store: what a person asked wrongly, or what cannot be reached."""
    heading = N_("The store is away") if isinstance(error, DatabaseAway) else HEADING
    return _error(request, 400 if isinstance(error, UsageError) else 503, str(error), heading)


def _error(request: Request, status: int, message: str, heading: str = HEADING) -> Response:
    """Return an error in the form that the address has: JSON or a page; a page of 503 looks again by itself."""
    if is_of_api(request.url.path):  # an address that the mounted interface does not take, such as one with a line feed
        return problem(status, message)
    if request.url.path.startswith(("/api/", "/healthz")):
        return JSONResponse({"error": message}, status)
    looks_again = status == 503 and request.method == "GET"
    return context_of(request).page("error.html", status, heading=heading, message=message, looks_again=looks_again)
