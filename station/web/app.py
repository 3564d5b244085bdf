"""The console's pages and its JSON. Reads go through `queries`, what people say goes where `flawline classes` goes."""

from __future__ import annotations

import secrets
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as AnyHTTPException

from discovery.store.database import stamp
from discovery.store.people import NAME_LENGTH, SEVERITIES
from discovery.store.store import Store
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings
from station.cli.ledger import remarks
from station.web import forms, queries, views
from station.web.ledger_watch import LedgerState, LedgerWatch
from station.web.security import Guard

FOLDER = Path(__file__).parent
CLASS_CROPS = 8
MEMBERS_PER_PAGE = 60
DEFECTS_PER_PAGE = 50
WHO_COOKIE = "flawline_who"
YEAR_S = 365 * 86_400

RowId = Annotated[int, PathParameter(ge=1, le=2**63 - 1)]
Before = Annotated[int | None, Query(ge=1, le=2**63 - 1)]
Form = Annotated[forms.Form, Depends(forms.read_form)]


def create(settings: Settings, store: Store, watch: LedgerWatch) -> FastAPI:
    """The console of a line, over its store and its ledger."""
    app = FastAPI(title="Flawline", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, names=[*settings.console.names, settings.console.host])
    app.mount("/static", StaticFiles(directory=FOLDER / "static"))
    token = secrets.token_urlsafe(32)
    templates = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters["reasons"] = views.reasons
    templates.filters["time"] = lambda at: f"{at:%Y-%m-%d %H:%M:%S}" if at else "–"

    def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(templates.get_template(template).render(line=settings.line, **values), status)

    def failed(request: Request, status: int, message: str) -> Response:
        if request.url.path.startswith(("/api/", "/healthz")):
            return JSONResponse({"error": message}, status)
        return page("error.html", status, message=message)

    @app.exception_handler(AnyHTTPException)
    def _refused(request: Request, error: AnyHTTPException) -> Response:
        return failed(request, error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    def _unreadable(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return failed(request, 400, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(FlawlineError)
    def _store_away(request: Request, error: FlawlineError) -> Response:
        return failed(request, 400 if isinstance(error, UsageError) else 503, str(error))

    # The line

    @app.get("/")
    def line() -> Response:
        state, now = watch.state, stamp(store.utc_ns())
        counts = queries.minute_counts(store, now - timedelta(minutes=views.HOUR_MINUTES))
        cameras, everything = views.shares(counts)
        return page(
            "line.html",
            state=state,
            read_at=_read_at(state),
            rows=views.ledger_rows(state.report) if state.report else [],
            remarks=remarks(state.report) if state.report else [],
            chart=views.chart(counts, now),
            chart_size=(views.CHART_WIDTH, views.CHART_HEIGHT, views.CHART_LEFT),
            decisions=views.DECISIONS,
            shares=cameras,
            total=everything,
            latest=queries.latest_minute(store),
        )

    @app.get("/api/ledger")
    def api_ledger() -> Response:
        state = watch.state
        read_at = _read_at(state)
        body = {
            "read_at": read_at.isoformat() if read_at else None,
            "error": state.problem or (None if state.report else "not read yet"),
            "ledger": state.report.as_dict() if state.report else None,
        }
        return JSONResponse(body, 503 if body["error"] else 200)

    @app.get("/healthz")
    def healthz() -> Response:
        queries.ready(store)
        state = watch.state
        return JSONResponse({"status": "ok", "ledger": "away" if state.problem else "ok" if state.report else "unread"})

    # Classes

    @app.get("/classes")
    def classes(everything: Annotated[bool, Query(alias="all")] = False) -> Response:
        rows = queries.classes(store, everything)
        crops = queries.salient_regions(store, [row.id for row in rows if row.merged_into is None], CLASS_CROPS)
        return page("classes.html", classes=rows, crops=crops, everything=everything)

    @app.get("/api/classes")
    def api_classes(everything: Annotated[bool, Query(alias="all")] = False) -> Response:
        return JSONResponse({"classes": [row.as_dict() for row in queries.classes(store, everything)]})

    def class_page(request: Request, class_id: str, before: int | None, **said: Any) -> Response:
        known = queries.classes(store, everything=True)
        one = next((row for row in known if row.id == class_id), None)
        if one is None:
            raise HTTPException(404, f"no class {class_id}: see the list of classes")
        members = queries.members(store, class_id, before, MEMBERS_PER_PAGE + 1)
        return page(
            "class.html",
            **({"status": 200, "problem": None, "form": {}} | said),
            one=one,
            others=[row for row in known if row.id != class_id and row.merged_into is None],
            members=members[:MEMBERS_PER_PAGE],
            older=views.next_page([row.id for row in members], MEMBERS_PER_PAGE),
            events=queries.history(store, class_id),
            audit=queries.audit(store, class_id),
            severities=SEVERITIES,
            name_length=NAME_LENGTH,
            who=unquote(request.cookies.get(WHO_COOKIE, "")),
            token=token,
        )

    @app.get("/classes/{class_id}")
    def class_(request: Request, class_id: str, before: Before = None) -> Response:
        return class_page(request, class_id, before)

    @app.post("/classes/{class_id}/{action}")
    def act(request: Request, class_id: str, action: str, form: Form) -> Response:
        forms.check_token(form, token)
        if action not in forms.ACTIONS:
            raise HTTPException(404, f"nothing called {action} can be done to a class")
        if all(row.id != class_id for row in queries.classes(store, everything=True)):
            raise HTTPException(404, f"no class {class_id}: see the list of classes")
        try:
            shown = forms.act(store, class_id, action, form)
        except UsageError as error:
            return class_page(request, class_id, None, status=400, problem=str(error), form={action: form})
        # See-other, so that loading the page again does not send the form again.
        answer = RedirectResponse(f"/classes/{quote(shown)}", 303)
        answer.set_cookie(WHO_COOKIE, quote(form["who"]), max_age=YEAR_S, httponly=True, samesite="strict")
        return answer

    @app.get("/regions/{region_id}/crop.jpg")
    def crop(region_id: RowId) -> Response:
        return _image(queries.crop(store, region_id), "image/jpeg", f"no region {region_id}")

    # Frames that were not accepted

    @app.get("/defects")
    def defects(before: Before = None) -> Response:
        rows = queries.defects(store, before, DEFECTS_PER_PAGE + 1)
        older = views.next_page([row.id for row in rows], DEFECTS_PER_PAGE)
        shown = rows[:DEFECTS_PER_PAGE]
        regions = queries.regions_of(store, [row.id for row in shown])
        return page("defects.html", defects=shown, regions=regions, older=older, before=before)

    @app.get("/defects/{frame_id}")
    def defect(frame_id: str) -> Response:
        row = queries.defect(store, frame_id)
        if row is None:
            raise HTTPException(404, f"no frame {frame_id} that was not accepted")
        regions = queries.regions_of(store, [row.id]).get(row.id, [])
        legend = views.heat_legend()
        return page("defect.html", frame=row, regions=regions, legend=legend, heat_range=views.HEAT_RANGE)

    @app.get("/defects/{frame_id}/heatmap.png")
    def heat_map(frame_id: str) -> Response:
        row = queries.defect(store, frame_id)
        data = views.heat_png(row.heatmap, row.heatmap_height, row.heatmap_width) if row and row.heatmap else None
        return _image(data, "image/png", f"no frame {frame_id} that was not accepted")

    return app


def _read_at(state: LedgerState) -> Any:
    return None if state.read_at_ns is None else stamp(state.read_at_ns)


def _image(data: bytes | None, media_type: str, missing: str) -> Response:
    if data is None:
        raise HTTPException(404, missing)
    # Rows are never overwritten, so what was loaded once holds.
    return Response(data, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})
