"""Templates to HTML: pages that the console serves, and pages that stand alone in one file."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flawline.clock import NS
from station.language import languages
from station.language.languages import Language
from station.pages.stacked_bars import INK

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
STYLE_SHEET = STATIC / "style.css"


@cache
def _environment(language: Language) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.policies["ext.i18n.trimmed"] = True
    texts: Any = environment  # the extension adds this method
    texts.install_gettext_translations(language.texts, newstyle=True)
    environment.globals |= {"inks": INK, "language": language}
    environment.filters |= {
        "reasons": partial(reasons, language=language),
        "time": partial(_time, language=language),
        "local": partial(_local, language=language),
        "twice": lambda value: (value, value),
        "worded": lambda values, kind: [(value, language.word(value, kind)) for value in values],
        "word": language.word,
        "known": language.known,
        "number": language.number,
        "significant": language.significant,
        "percent": language.percent,
    }
    return environment


def render(template: str, language: Language | None = None, **values: Any) -> str:
    """Return a page of the console as HTML, in English or another language; every value is escaped."""
    return _environment(language or languages.english()).get_template(template).render(**values)


def render_alone(template: str, **values: Any) -> str:
    """Return a page as HTML that needs no other file: the style sheet is part of it; every value is escaped."""
    return render(template, style=Markup(STYLE_SHEET.read_text(encoding="utf-8")), **values)


def data_uri(data: bytes, media_type: str) -> str:
    """Return the address of an image that is part of the page, such as `image/jpeg`."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def reasons(counts: Mapping[str, int], language: Language) -> str:
    """Return counts with their reasons in one line, `0` for none."""
    lines = (f"{language.word(reason, 'reason')} {language.number(count)}" for reason, count in counts.items())
    return ", ".join(lines) or "0"


def _local(at: datetime | int | None, language: Language) -> Markup:
    """Return a time as an element whose text the page's script changes from UTC into local time."""
    if isinstance(at, int):
        at = datetime.fromtimestamp(at * NS, UTC)
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), _time(at, language)) if at else Markup("–")


def _time(at: datetime | int | None, language: Language) -> str:
    """Return a time, which may be ns UTC, to the second; a dash for none."""
    if isinstance(at, int):
        at = datetime.fromtimestamp(at * NS, UTC)
    return language.time(at) if at else "–"
