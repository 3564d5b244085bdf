"""The report on a shift, a lot or a span of time, as a page, as one file and as PDF."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from discovery.shifts import Calendar
from discovery.store.database import nanoseconds
from discovery.store.filters import Filter
from station.report import figures, page
from station.report.figures import Figures
from station.report.span import day_of, span_of
from station.web.context import Context, TheContext, TheStore
from station.web.filters import LAST_YEAR, Short, Text, choices

router = APIRouter()


@dataclass(frozen=True)
class Asked:
    """What a report is asked for; times without a zone are on the wall of the line."""

    lot: Text = ""
    camera: Short = ""
    shift: Short = ""
    shift_day: Short = ""
    since: Short = ""
    until: Short = ""


TheAsked = Annotated[Asked, Depends()]


@router.get("/report")
def report(request: Request, context: TheContext, store: TheStore, asked: TheAsked) -> Response:
    """Show a report: of the shift that ended last, or of the last 24 hours, when nothing is asked for."""
    shown = _figures(context, store, asked)
    settings = context.settings
    day = shown.wanted.shift_day or day_of(
        Calendar(settings.shifts, settings.time_zone), store.utc_ns(), settings.time_zone
    )
    return context.page(
        "report.html",
        choices=choices(settings, store),
        day=day,
        query=request.url.query,
        has_pdf=find_spec("weasyprint") is not None,
        **page.values_of(shown, settings.time_zone, context.language) | {"links": True},
    )


@router.get("/report.html")
def report_file(context: TheContext, store: TheStore, asked: TheAsked) -> Response:
    """Return a report in one file, to be sent and kept."""
    shown = _figures(context, store, asked)
    headers = {"Content-Disposition": f'attachment; filename="{_file_name(shown)}.html"'}
    return HTMLResponse(page.html(shown, context.settings.time_zone, context.language), headers=headers)


@router.get("/report.pdf")
def report_pdf(context: TheContext, store: TheStore, asked: TheAsked) -> Response:
    """Return a report as PDF."""
    shown = _figures(context, store, asked)
    headers = {"Content-Disposition": f'attachment; filename="{_file_name(shown)}.pdf"'}
    data = page.pdf(shown, context.settings.time_zone, context.language)
    return Response(data, media_type="application/pdf", headers=headers)


def _figures(context: Context, store: TheStore, asked: Asked) -> Figures:
    settings = context.settings
    if any("\0" in text for text in vars(asked).values()):
        raise HTTPException(400, "a filter holds no zero byte: correct it")
    wanted = Filter(camera=asked.camera or None, lot=asked.lot or None)
    span = span_of(
        settings.shifts,
        settings.time_zone,
        store.utc_ns(),
        shift=asked.shift,
        day=asked.shift_day,
        since_ns=_ns(asked.since, "since", settings.time_zone) if asked.since else None,
        until_ns=_ns(asked.until, "until", settings.time_zone) if asked.until else None,
    )
    return figures.read(store, settings.line, span, wanted, settings.retention.minutes_days)


def _ns(text: str, name: str, time_zone: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise HTTPException(400, f"{name} {text}: it should be a time such as 2026-11-28T06:00") from None
    if not 1971 <= at.year < LAST_YEAR:
        raise HTTPException(400, f"{name} {text}: it should be a time between 1971 and {LAST_YEAR}")
    return nanoseconds(at if at.tzinfo else at.replace(tzinfo=ZoneInfo(time_zone)))


def _file_name(shown: Figures) -> str:
    return f"report-{shown.since:%Y%m%dT%H%MZ}"
