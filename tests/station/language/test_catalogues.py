"""Every visible text is marked, every catalogue has each of them, and a language more is one file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from fastapi.testclient import TestClient

from discovery.store import class_commands
from discovery.store.store import Store
from flawline.errors import UsageError
from station.language import extract, languages
from station.language.extract import forms
from station.pages.rendering import FOLDER, STATIC
from tests.station.language import marks

CATALOGUES = sorted(languages.FOLDER.glob("*.po"))
TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))
SCRIPTS = sorted(STATIC.glob("*.js"))
OF_THE_COMMAND_LINE = {"alone.html", "demo.html", "explain.html"}
"""Pages that the demo and `flawline explain` write: they speak English, as the command line does."""
PLACEHOLDER = re.compile(r"%\(\w+\)s|%%|\{\w+\}|</?\w+[^>]*>|\b(?:YYYY|MM|DD|hh|mm|ss)\b")

Key = tuple[Any, str | None]


def keys(catalog: Catalog) -> dict[Key, Any]:
    """Return the texts of a catalogue by what they stand for."""
    return {(message.id, message.context): message for message in catalog if message.id}


@pytest.mark.parametrize(
    "file", [file for file in TEMPLATES if file.name not in OF_THE_COMMAND_LINE], ids=lambda f: f.name
)
def test_every_visible_text_of_a_template_is_marked(file: Path) -> None:
    assert marks.unmarked(file.read_text("utf-8")) == []


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_every_text_of_a_script_is_marked(file: Path) -> None:
    assert marks.unmarked_of_script(file) == []


def test_no_marked_text_of_python_is_hidden_in_an_f_string() -> None:
    hidden = {
        file.name: marks.hidden_from_the_catalogue(file.read_text("utf-8")) for file in extract.STATION.rglob("*.py")
    }
    assert {name: texts for name, texts in hidden.items() if texts} == {}
    assert marks.hidden_from_the_catalogue("f\"{a}: {language.gettext('silent')}\"") == ["language.gettext('silent')"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<p>Nobody</p>", ["Nobody"]),
        ('<p>{{ _("Nobody") }}</p>', []),
        ("<p>{% trans %}Nobody{% endtrans %}</p>", []),
        ('<img alt="member of {{ camera }}">', ["member", "of"]),
        ('<img alt="{{ _("member of %(camera)s", camera=camera) }}" class="newest">', []),
        ('<td>{{ "yes" if is_right else "no" }}</td>', ["yes", "no"]),
        ('<td class="{{ "good" if is_right }}">{{ name }}</td>', []),
        ('<p>{% if a == "b" %}{{ rows["key"] }}{% else %}else{% endif %}</p>', ["else"]),
        ('{{ macros.card(count, "frames", mark="bad") }}', ["frames"]),
        ('{{ macros.choice("camera", _("camera"), options, wanted, "all") }}', ["all"]),
        ("<p><code>flawline users</code> 3 px</p>", []),
    ],
)
def test_a_text_that_is_not_marked_is_found(source: str, expected: list[str]) -> None:
    assert marks.unmarked(source) == expected


def test_a_text_of_a_script_that_is_not_marked_is_found(tmp_path: Path) -> None:
    file = tmp_path / "page.js"
    file.write_text(
        'none.textContent = "gone"; say(`${count} frames wait`); say(_("in order"));'
        'ngettext("a frame", "two frames", 2);'
        'page.querySelector("input, select"); line.textContent = ""; tile.title = _("fine");'
    )
    assert marks.unmarked_of_script(file) == ["page.js:1: gone", "page.js:1:  frames wait"]


@pytest.mark.parametrize("file", CATALOGUES, ids=lambda file: file.name)
def test_catalogue_has_each_text_with_its_placeholders_and_no_other(file: Path) -> None:
    with file.open("rb") as opened:
        catalog = read_po(opened, file.stem, abort_invalid=True)
    wanted, held = keys(extract.template()), keys(catalog)
    assert (sorted(map(str, wanted.keys() - held.keys())), sorted(map(str, held.keys() - wanted.keys()))) == ([], []), (
        "run `python -m station.language.extract` and translate what is new"
    )
    for (source, _), message in held.items():
        originals, translated = forms(source), forms(message.string)
        assert all(translated) and not message.fuzzy, f"{source} is not translated"
        assert len(translated) == (catalog.num_plurals if len(originals) > 1 else 1), source
        spared = {"%(number)s"} if len(originals) > 1 else set()  # a form for one thing may say it in words
        sets = {frozenset(PLACEHOLDER.findall(text)) - spared for text in (*originals, *translated)}
        assert len(sets) == 1, f"{source}: other placeholders than {message.string}"


def test_every_value_of_a_script_is_filled_in_by_its_own_name() -> None:
    """A text of a script names only values that the same file speaks of."""
    for file in SCRIPTS:
        source = file.read_text("utf-8")
        for place, message, _ in extract.texts("pages/static/*.js"):
            if place.endswith(file.name):
                names = re.findall(r"%\((\w+)\)s", " ".join(forms(message)))
                assert all(name == "number" or re.search(rf"\b{name}\b", source) for name in names), message


def bracketed(text: str) -> str:
    """Return a text in brackets, and within it the text of each element."""
    return "".join(part if part.startswith("<") else f"⟦{part}⟧" for part in re.split("(<[^>]+>)", text) if part)


@pytest.fixture
def third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a third language into the folder of catalogues: one file, whose texts stand in brackets."""
    folder = tmp_path / "languages"
    folder.mkdir()
    for file in CATALOGUES:
        (folder / file.name).write_bytes(file.read_bytes())
    catalog = Catalog("fr")
    for source, context in keys(extract.template()):
        singular, *plurals = (bracketed(form) for form in forms(source))
        text = (singular, *(plurals * (catalog.num_plurals - 1))) if plurals else singular
        catalog.add(source, text, context=context)
    with (folder / "fr.po").open("wb") as opened:
        write_po(opened, catalog)
    monkeypatch.setattr(languages, "FOLDER", folder)
    languages.known.cache_clear()
    yield
    languages.known.cache_clear()


BRACKETS = re.compile(r"⟦[^⟦⟧]*⟧")
DATA = re.compile(r"cam-\d(?::1:\d+)?|line-1|D-\d+|m1|English|Deutsch|français|scratch|ana|\d+ px")
PAGES = ("/", "/review", "/parts", "/classes", "/classes?all=true", "/defects", "/groups", "/ledger", "/map", "/report",
         "/unassigned", "/defects/cam-1:1:55", "/classes/D-0001", "/defects?hours=1", "/report.html")  # fmt: skip


def test_third_language_is_one_file_and_every_page_speaks_it(third: None, client: TestClient, store: Store) -> None:
    first, second = sorted(row["id"] for row in class_commands.list_classes(store))
    class_commands.name(store, second, "scratch", who="ana")
    class_commands.set_severity(store, first, "major", who="ana")
    for path in PAGES:
        answer = client.get(path, headers={"Accept-Language": "fr-CA, de;q=0.5"})
        assert answer.status_code == 200 and '<html lang="fr"' in answer.text, path
        left = "\n".join(marks.shown(answer.text))  # a text may hold an element, such as a time
        while BRACKETS.search(left):
            left = BRACKETS.sub("", left)
        assert not marks.words(DATA.sub("", left)), f"{path} shows {left.split()}"


def test_script_of_a_language_has_the_texts_of_all_scripts(third: None, client: TestClient) -> None:
    answer = client.get("/texts/fr.js")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/javascript")
    assert '"Pause"' not in answer.text and 'LANGUAGE = "fr"' in answer.text
    assert client.get("/texts/xx.js").status_code == 404


@pytest.mark.parametrize(
    "content", ['msgid "open\n', 'msgid ""\nmsgstr "Plural-Forms: nplurals=2; plural=alert(1);\\n"\n']
)
def test_a_file_that_is_no_catalogue_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "fr.po").write_text(content)
    with pytest.raises(UsageError, match=r"fr\.po: no catalogue"):
        languages.load(tmp_path)


def test_a_file_of_no_language_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "klingon.po").write_text('msgid ""\nmsgstr ""\n')
    with pytest.raises(UsageError, match=r"klingon\.po: no catalogue"):
        languages.load(tmp_path)


def test_a_new_catalogue_holds_every_text_and_an_old_one_keeps_its_translations(tmp_path: Path) -> None:
    file = tmp_path / "fr.po"
    extract.update(file)
    file.write_text(file.read_text().replace('msgid "Ledger"\nmsgstr ""', 'msgid "Ledger"\nmsgstr "Bilan"'))
    assert keys(extract.update(file)).keys() == keys(extract.template()).keys()
    assert languages.load(tmp_path)["fr"].gettext("Ledger") == "Bilan"
    assert languages.load(tmp_path)["fr"].gettext("Parts") == "Parts"  # English stands in
