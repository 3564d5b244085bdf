"""What every request of the console can depend on: the store, the ledger, the form token, and the page renderer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response

from discovery.store.database import stamp
from discovery.store.store import Store
from flawline.settings.tree import Settings
from station.language import languages
from station.language.languages import Language
from station.pages import rendering
from station.web.access import Access, Visitor
from station.web.good_patches import GoodPatches
from station.web.ledger_watch import LedgerState, LedgerWatch
from station.web.live import LiveWatch
from station.web.models import Models
from station.web.region_map import RegionMaps
from station.web.store_watch import StoreWatch

THEME_COOKIE = "flawline_theme"
THEMES = ("light", "dark")
"""What a person has chosen by the switch; else the page follows the system."""
LANGUAGE_COOKIE = "flawline_language"
"""What a person has chosen by the switch; else the page follows the browser, then `console.language`."""

MAX_ROW_ID = 2**63 - 1


@dataclass(frozen=True)
class Context:
    """The console of one line, and the `visitor` who sends the request, None before the log-in."""

    settings: Settings
    stores: StoreWatch
    watch: LedgerWatch
    live: LiveWatch
    access: Access
    maps: RegionMaps
    models: Models
    patches: GoodPatches
    visitor: Visitor | None = None
    theme: str = ""
    language: Language = field(default_factory=languages.english)

    @property
    def store(self) -> Store:
        """The store. Raises DatabaseAway while it does not answer."""
        return self.stores.store

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page of the console, in the language of the request."""
        shared: dict[str, Any] = {"line": self.settings.line, "visitor": self.visitor, "theme": self.theme}
        shared["languages"] = languages.known().values()
        headers = {"Content-Language": self.language.tag, "Vary": "Accept-Language, Cookie"}
        return HTMLResponse(rendering.render(template, self.language, **shared, **values), status, headers)


def context_of(request: Request) -> Context:
    """Return the context that `create` gave to the app, with the visitor and the language of this request."""
    context: Context = request.app.state.context
    theme = request.cookies.get(THEME_COOKIE, "")
    visitor = getattr(request.state, "visitor", None)
    language = languages.chosen(
        request.cookies.get(LANGUAGE_COOKIE, ""),
        request.headers.get("accept-language", ""),
        context.settings.console.language,
    )
    return replace(context, visitor=visitor, theme=theme if theme in THEMES else "", language=language)


async def _context(request: Request) -> Context:
    return context_of(request)


async def _store(request: Request) -> Store:
    return context_of(request).store


async def _ledger(request: Request) -> LedgerState:
    return context_of(request).watch.state


TheContext = Annotated[Context, Depends(_context)]
TheStore = Annotated[Store, Depends(_store)]
TheLedger = Annotated[LedgerState, Depends(_ledger)]


Before = Annotated[int | None, Query(ge=1, le=MAX_ROW_ID)]
"""Only rows with an id below this one: the next page of a list."""


def read_at(ledger: LedgerState) -> datetime | None:
    """Return when the ledger was last read, None before the first time."""
    return None if ledger.read_at_ns is None else stamp(ledger.read_at_ns)


def image_response(data: bytes | None, media_type: str, missing: str) -> Response:
    """Return an image. Raises HTTPException 404 with the text `missing` when there is none."""
    if data is None:
        raise HTTPException(404, missing)
    # Rows are never overwritten, so a loaded image stays valid.
    return Response(data, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})
