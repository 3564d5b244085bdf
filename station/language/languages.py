"""What the station says, in the language of the person who reads it: texts of a catalogue file, numbers and times."""

from __future__ import annotations

import gettext
import io
import re
from collections.abc import Collection
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from babel import Locale, UnknownLocaleError
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import PoFileError, read_po
from babel.numbers import format_decimal, format_percent

from flawline.errors import UsageError

FOLDER = Path(__file__).parent
"""Each `CODE.po` in it is a language."""
ENGLISH = "en"
PLURAL = re.compile(r"[n0-9\s()!=<>&|%?:*+-]+")

TOKENS = {"YYYY": "%Y", "MM": "%m", "DD": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}
"""What stands for the parts of a time in the forms below."""


def N_(message: str) -> str:
    """Mark a text for the catalogue that is looked up elsewhere, and return it."""
    return message


STAMP = N_("YYYY-MM-DD hh:mm:ss")
MINUTE = N_("YYYY-MM-DD hh:mm")
SHORT = N_("MM-DD hh:mm")


class Language:
    """One language. Texts with values hold them as `%(name)s`, and a per cent sign as `%%`.

    `code` is that of the file's name, such as `de` or `pt_BR`; `tag` is what HTML calls it, `name` its own name.
    """

    def __init__(self, code: str, catalog: Catalog | None = None) -> None:
        """`catalog` is None for English, the language of the code."""
        self.code, self.tag = code, code.replace("_", "-")
        self.locale = Locale.parse(code)
        self.name = str(self.locale.get_display_name(self.locale) or code)
        self.direction = self.locale.text_direction
        self.plural = catalog.plural_expr if catalog is not None else "(n != 1)"
        self.texts = gettext.NullTranslations() if catalog is None else _translations(catalog)

    def gettext(self, message: str, **values: Any) -> str:
        """Return a text with its values."""
        return self.texts.gettext(message) % values

    def ngettext(self, singular: str, plural: str, number: int, **values: Any) -> str:
        """Return the form of a text that fits a number, which is its value `number`."""
        return self.texts.ngettext(singular, plural, number) % {"number": self.number(number), **values}

    def known(self, message: str) -> str:
        """Return a text without values, or the text itself where the catalogue does not have it."""
        return self.texts.gettext(message) if message else ""

    def forms(self, singular: str, plural: str | None = None) -> list[str]:
        """Return all forms of a text, without values put in; one form where the text has no plural."""
        if plural is None:
            return [self.texts.gettext(singular)]
        catalog: dict[Any, str] = getattr(self.texts, "_catalog", {})
        forms = [catalog[key] for number in range(10) if (key := (singular, number)) in catalog]
        return forms or [singular, plural]

    def word(self, value: str, kind: str) -> str:
        """Return a word of the vocabulary, such as the decision `reject`."""
        return self.texts.pgettext(kind, str(value))

    def number(self, value: float, digits: int = 0) -> str:
        """Return a number with so many digits behind the point, in groups of thousands."""
        return format_decimal(value, "#,##0" + (f".{'0' * digits}" if digits else ""), self.locale)

    def significant(self, value: float, digits: int = 3) -> str:
        """Return a number with so many digits that count, as `%.3g` writes it."""
        return f"{value:.{digits}g}".replace(".", str(self.locale.number_symbols["latn"]["decimal"]))

    def percent(self, share: float, digits: int = 2) -> str:
        """Return a share in per cent."""
        before, zero, after = str(self.locale.percent_formats[None].pattern).rpartition("0")
        return format_percent(share, f"{before}{zero}.{'0' * digits}{after}", self.locale)

    def time(self, at: datetime, form: str = STAMP) -> str:
        """Return a time in one of the forms above, in the zone that it has."""
        form = self.texts.gettext(form)
        for token, directive in TOKENS.items():
            form = form.replace(token, directive)
        return at.strftime(form)


def _translations(catalog: Catalog) -> gettext.GNUTranslations:
    """Return the texts of a catalogue, compiled in memory; what is marked as fuzzy is left out."""
    compiled = io.BytesIO()
    write_mo(compiled, catalog)
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def load(folder: Path) -> dict[str, Language]:
    """Return the languages of a folder by code, English first. Raises UsageError for a file that cannot be used."""
    languages = {ENGLISH: Language(ENGLISH)}
    for file in sorted(folder.glob("*.po")):
        try:
            with file.open("rb") as opened:
                catalog = read_po(opened, locale=file.stem, abort_invalid=True)
            languages[file.stem] = Language(file.stem, catalog)
            if not PLURAL.fullmatch(catalog.plural_expr):
                raise ValueError(f"plural {catalog.plural_expr!r}")
        except (OSError, ValueError, UnknownLocaleError, PoFileError) as error:
            raise UsageError(
                f"{file}: no catalogue of a language: {error}: name it by a code such as de.po, and correct it"
            ) from error
    return languages


@cache
def known() -> dict[str, Language]:
    """Return the languages of this installation by code. Raises UsageError."""
    return load(FOLDER)


def english() -> Language:
    """Return the language of the code, in which the command line speaks."""
    return known()[ENGLISH]


def of_code(code: str, setting: str) -> Language:
    """Return a language that a setting names. Raises UsageError."""
    if code not in known():
        raise UsageError(f"{setting} {code}: no such language: choose from {', '.join(known())}, or add its catalogue")
    return known()[code]


def chosen(cookie: str, accepted: str, default: str) -> Language:
    """Return the language of a page: the one a person chose, else the best that the browser asks for, else `default`.

    `accepted` is the header Accept-Language.
    """
    code = cookie if cookie in known() else preferred(accepted, known())
    return known()[code or default]


def preferred(accepted: str, codes: Collection[str]) -> str | None:
    """Return the code that a browser likes best (RFC 9110, 12.5.4), None where it asks for none of them."""
    by_tag = {code.replace("_", "-").lower(): code for code in codes}
    weighted = []
    for place, text in enumerate(accepted.lower().split(",")):
        tag, _, weight = (part.strip() for part in text.partition(";"))
        try:
            quality = float(weight.removeprefix("q=")) if weight else 1.0
        except ValueError:
            continue
        if quality > 0:
            weighted.append((-quality, place, tag))
    for _, _, tag in sorted(weighted):
        if code := by_tag.get(tag) or by_tag.get(tag.partition("-")[0]):
            return code
    return None
