"""Finds every text of the station, and brings the catalogues up to date: `python -m station.language.extract [CODE]`.

Texts are marked by `_`, `gettext`, `ngettext`, `pgettext`, `N_` and `{% trans %}` in Python, templates and scripts.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from babel import Locale, UnknownLocaleError
from babel.messages.catalog import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract
from babel.messages.pofile import read_po, write_po

from station.language.languages import FOLDER, Language
from station.language.vocabulary import VOCABULARY

STATION = FOLDER.parent
SOURCES = {"*.py": "python", "pages/templates/*.html": "jinja2.ext:babel_extract", "pages/static/*.js": "javascript"}
OPTIONS: dict[str, Any] = {"extensions": "jinja2.ext.i18n", "trimmed": "true", "trim_blocks": "true", "silent": "false",
                           "newstyle_gettext": "true"}  # fmt: skip
MARKS = (b"_(", b"gettext(", b"trans ")
LINE_LENGTH = 140
HEADER = """msgid ""
msgstr ""
"Language: {code}\\n"
"Plural-Forms: {plural}\\n"
"Content-Type: text/plain; charset=utf-8\\n"

"""


def texts(pattern: str) -> Iterator[tuple[str, str | tuple[str, ...], str | None]]:
    """Yield place, text or forms, and context of each marked text in the files of the station that fit a pattern."""
    method = SOURCES[pattern]
    options = OPTIONS if method.startswith("jinja2") else {"encoding": "utf-8", "template_string": "false"}
    for file in sorted(STATION.rglob(pattern)):
        content = file.read_bytes()
        if not any(mark in content for mark in MARKS):
            continue  # to look closer takes a second for all files of the station
        for _, message, _, context in extract(method, io.BytesIO(content), DEFAULT_KEYWORDS, (), options):
            yield str(file.relative_to(STATION)), message, context


def template() -> Catalog:
    """Return a catalogue of all texts, without translations."""
    catalog = Catalog(charset="utf-8")
    for pattern in SOURCES:
        for place, message, context in texts(pattern):
            catalog.add(message, locations=[(place, 0)], context=context)
    for kind, values in VOCABULARY.items():
        for value in values:
            catalog.add(str(value), locations=[("language/vocabulary.py", 0)], context=kind)
    return catalog


def of_scripts() -> list[tuple[str, str | None]]:
    """Return the texts of the scripts: singular, and plural or None."""
    messages = (message for _, message, _ in texts("pages/static/*.js"))
    return sorted({(text[0], text[1]) if isinstance(text, tuple) else (text, None) for text in messages}, key=str)


@cache
def script(language: Language) -> str:
    """Return the texts of the scripts in a language, as a script that comes before them."""
    forms = {singular: language.forms(singular, plural) for singular, plural in of_scripts()}
    words = {kind: {str(value): language.word(value, kind) for value in values} for kind, values in VOCABULARY.items()}
    return (
        f"const LANGUAGE = {json.dumps(language.tag)};\nconst TEXTS = {json.dumps(forms)};\n"
        f"const VOCABULARY = {json.dumps(words)};\nconst pluralOf = (n) => Number({language.plural});\n"
    )


def update(file: Path) -> Catalog:
    """Write the texts of today into a catalogue, keep its translations, and return it; a new file begins empty."""
    locale = Locale.parse(file.stem)
    catalog = Catalog(locale)
    if file.exists():
        with file.open("rb") as opened:
            catalog = read_po(opened, locale)
    catalog.update(template(), no_fuzzy_matching=True)
    catalog.obsolete.clear()
    body = io.BytesIO()
    write_po(body, catalog, width=LINE_LENGTH, omit_header=True, sort_by_file=True, include_lineno=False)
    header = HEADER.format(code=file.stem, plural=catalog.plural_forms)
    file.write_bytes(header.encode() + body.getvalue())
    return catalog


def main(codes: list[str]) -> None:
    """Update every catalogue, and those of the codes that are named, and say what is left to translate."""
    for code in sorted({file.stem for file in FOLDER.glob("*.po")} | set(codes)):
        try:
            catalog = update(FOLDER / f"{code}.po")
        except (ValueError, UnknownLocaleError) as error:
            sys.exit(f"{code}: {error}: give the code of a language, such as fr or pt_BR")
        left = [message for message in catalog if message.id and not all(forms(message.string))]
        print(f"{code}.po: {len(catalog)} texts, {len(left)} to translate")


def forms(text: Any) -> tuple[str, ...]:
    """Return the forms of a text of a catalogue, one where it has no plural."""
    return tuple(text) if isinstance(text, list | tuple) else (text,)


if __name__ == "__main__":
    main(sys.argv[1:])
