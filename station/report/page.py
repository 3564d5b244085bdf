"""A report as a page of HTML that needs no other file, and the same page as PDF."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from markupsafe import Markup

from flawline.errors import FlawlineError, UsageError
from station.language import languages
from station.language.languages import Language
from station.pages import stacked_bars
from station.pages.rendering import STATIC, render
from station.pages.stacked_bars import DECISIONS, Chart
from station.report.figures import NO_LOT, NO_SHIFT, STOP_MINUTES, UNASSIGNED, Bar, Figures

STYLE_SHEET = STATIC / "report.css"
"""Of its own: a printer has no dark side, and WeasyPrint does not know all that browsers do."""
ENDINGS = (".html", ".pdf")
NO_PDF = "PDF needs WeasyPrint: pip install 'flawline[pdf]', or name a file that ends in .html and print it"
PARETO_LIMIT = 12
UNNAMED_GROUP = re.compile(r"group (\d+)")
OTHERS = re.compile(r"(\d+) others")


def wall_clock(time_zone: str, language: Language | None = None) -> Callable[[datetime], str]:
    """Return what writes a time as the clock on the wall shows it, in English or another language."""
    zone, language = ZoneInfo(time_zone), language or languages.english()
    return lambda at: language.time(at.astimezone(zone), languages.MINUTE)


def values_of(figures: Figures, time_zone: str, language: Language) -> dict[str, Any]:
    """Return what the template needs: the figures, the chart, and times on the wall of `time_zone`."""
    return {
        "figures": figures,
        "decisions": DECISIONS,
        "pareto": shown(figures.pareto),
        "chart": _chart(figures, ZoneInfo(time_zone), language),
        "named": partial(named, language=language),
        "wall": wall_clock(time_zone, language),
        "field": lambda at: f"{at.astimezone(ZoneInfo(time_zone)):%Y-%m-%dT%H:%M}",
        "zone": time_zone,
        "stop_minutes": STOP_MINUTES,
        "links": False,
    }


def named(name: str, language: Language) -> str:
    """Return the name of a row or bar; what has none, as in "group 3" and "no lot", is told in a language."""
    if number := UNNAMED_GROUP.fullmatch(name):
        return language.gettext("group %(number)s", number=number[1])
    if number := OTHERS.fullmatch(name):
        return language.ngettext("%(number)s other", "%(number)s others", int(number[1]))
    return language.known(name) if name in (NO_LOT, NO_SHIFT, UNASSIGNED) else name


def html(figures: Figures, time_zone: str, language: Language) -> str:
    """Return the page in one file."""
    style = Markup(STYLE_SHEET.read_text("utf-8"))
    return render("report_alone.html", language, style=style, **values_of(figures, time_zone, language))


def pdf(figures: Figures, time_zone: str, language: Language) -> bytes:
    """Return the page as PDF. Raises UsageError where WeasyPrint is missing, or the libraries that it needs."""
    try:
        from weasyprint import HTML
    except (ImportError, OSError) as error:
        raise UsageError(f"{NO_PDF} ({error})") from error
    # Nothing is fetched: the page needs no other file, and no name in it may make one needed.
    document = HTML(string=html(figures, time_zone, language), url_fetcher=_refuse)
    data: bytes = document.write_pdf()
    return data


def write(path: Path, figures: Figures, time_zone: str, language: Language) -> None:
    """Write the page, as HTML or PDF by the ending of the name. Raises FlawlineError."""
    is_pdf = path.suffix.lower() == ".pdf"
    data = pdf(figures, time_zone, language) if is_pdf else html(figures, time_zone, language).encode()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise FlawlineError(f"--out {path}: cannot be written: {error.strerror}: choose another place") from error


def check_name(path: Path) -> None:
    """Raise UsageError for a file that is neither .html nor .pdf."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"--out {path}: give the name the ending .html or .pdf")


def shown(bars: tuple[Bar, ...]) -> tuple[Bar, ...]:
    """Return the bars that a page has room for; what is rarer is one bar `others`."""
    if len(bars) <= PARETO_LIMIT:
        return bars
    head, rest = bars[: PARETO_LIMIT - 1], bars[PARETO_LIMIT - 1 :]
    frames, share = sum(bar.frames for bar in rest), sum(bar.share for bar in rest)
    return (*head, Bar(None, f"{len(rest)} others", None, frames, share, 1.0))


def _chart(figures: Figures, zone: ZoneInfo, language: Language) -> Chart:
    """Return the decisions of each hour that has frames."""
    words = [language.time(hour.astimezone(zone), languages.SHORT) for hour, _ in figures.hours]
    places = [(place, words[place], counts) for place, (_, counts) in enumerate(figures.hours)]
    return stacked_bars.chart(places, len(words), words[0] if words else "", words[-1] if words else "")


def _refuse(url: str, *_: Any, **__: Any) -> Any:
    raise ValueError(f"{url}: a report needs no other file")
