"""The account of the line: its ledger, its decisions, and whether the console works."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from discovery.store.database import stamp
from station import role_states
from station.remarks import remarks
from station.web import queries, views
from station.web.context import TheContext, TheLedger, TheStore, read_at

router = APIRouter()

public = APIRouter()
"""What a health check asks for, which has no user."""


@router.get("/ledger")
def line(context: TheContext, store: TheStore, ledger: TheLedger) -> Response:
    """Show the ledger, the decisions of the last hour, and the alarm share of each camera."""
    now = stamp(store.utc_ns())
    counts = queries.minute_counts(store, now - timedelta(minutes=views.HOUR_MINUTES))
    cameras, total = views.shares(counts)
    return context.page(
        "line.html",
        state=ledger,
        read_at=read_at(ledger),
        rows=views.ledger_rows(ledger.report) if ledger.report else [],
        remarks=remarks(ledger.report, context.language) if ledger.report else [],
        chart=views.chart(counts, now),
        shares=cameras,
        total=total,
        latest=queries.latest_minute(store),
        roles=role_states.read(context.settings) or [],
    )


@router.get("/api/ledger")
def api_ledger(ledger: TheLedger) -> Response:
    """Return the ledger as JSON, with status 503 while it cannot be read."""
    at = read_at(ledger)
    body = {
        "read_at": at.isoformat() if at else None,
        "error": ledger.problem or (None if ledger.report else "not read yet"),
        "ledger": ledger.report.as_dict() if ledger.report else None,
    }
    return JSONResponse(body, 503 if body["error"] else 200)


@router.get("/api/roles")
def api_roles(context: TheContext) -> Response:
    """Return what the `flawline up` of this machine says about its roles; null where none runs."""
    states = role_states.read(context.settings)
    body = None if states is None else [vars(state) | {"text": state.text} for state in states]
    return JSONResponse({"roles": body})


@public.get("/healthz")
def healthz(store: TheStore, ledger: TheLedger) -> Response:
    """Return whether the console can read its store; the broker may be away."""
    queries.ready(store)
    return JSONResponse({"status": "ok", "ledger": "away" if ledger.problem else "ok" if ledger.report else "unread"})
