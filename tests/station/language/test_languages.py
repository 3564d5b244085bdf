"""A page speaks the language of its reader, in texts, numbers and times."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from discovery.store import class_commands
from discovery.store.store import Store
from flawline.errors import UsageError
from flawline.settings.tree import Settings
from station.language import languages
from station.web.accounts import Accounts
from station.web.context import LANGUAGE_COOKIE
from station.web.ledger_watch import LedgerWatch
from tests.station.web.conftest import browser

GERMAN = {"Accept-Language": "de-AT,de;q=0.9,en;q=0.8"}
AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("accepted", "code"),
    [
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en;q=0.2, DE;q=0.8", "de"),
        ("fr, en-GB;q=0.1", "en"),
        ("fr", None),
        ("de;q=0, fr", None),
        ("de;q=much, en;q=0.1", "en"),
        ("", None),
        ("*", None),
    ],
)
def test_language_that_a_browser_likes_best_is_taken(accepted: str, code: str | None) -> None:
    assert languages.preferred(accepted, ("en", "de")) == code


def test_region_of_a_language_goes_before_the_language_alone() -> None:
    assert languages.preferred("pt-BR", ("pt", "pt_BR")) == "pt_BR"
    assert languages.preferred("pt-PT", ("pt", "pt_BR")) == "pt"


def test_choice_of_a_person_goes_before_the_browser_and_the_browser_before_the_setting() -> None:
    assert languages.chosen("de", "en", "en").code == "de"
    assert languages.chosen("", "de", "en").code == "de"
    assert languages.chosen("xx", "fr", "de").code == "de"


def test_setting_that_names_no_language_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"console\.language xx: no such language: choose from en, de"):
        languages.of_code("xx", "console.language")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("en", ("1,234,567", "-0.50", "0.00297", "1e-05", "99.97%", "2026-03-04 05:06:07", "2 frames")),
        ("de", ("1.234.567", "-0,50", "0,00297", "1e-05", "99,97\xa0%", "04.03.2026 05:06:07", "2 Aufnahmen")),
    ],
)
def test_numbers_shares_times_and_plurals_are_those_of_the_language(code: str, expected: tuple[str, ...]) -> None:
    language = languages.known()[code]
    assert expected == (
        language.number(1_234_567),
        language.number(-0.5, 2),
        language.significant(0.00297),
        language.significant(0.00001),
        language.percent(0.9997),
        language.time(AT),
        language.ngettext("%(number)s frame", "%(number)s frames", 2),
    )


def test_page_is_in_the_language_of_its_reader_and_says_so(client: TestClient) -> None:
    answer = client.get("/ledger", headers=GERMAN)
    assert '<html lang="de"' in answer.text and answer.headers["content-language"] == "de"
    assert answer.headers["vary"] == "Accept-Language, Cookie"
    assert ">Bilanz<" in answer.text and "25,00\xa0%" in answer.text and "22:14 Ausschuss: 5" in answer.text
    assert '<option value="de" lang="de" selected>Deutsch</option>' in answer.text
    client.cookies.set(LANGUAGE_COOKIE, "en")
    assert '<html lang="en"' in client.get("/ledger", headers=GERMAN).text


def test_setting_is_the_language_of_a_reader_who_asks_for_none(
    settings: Settings, store: Store, watch: LedgerWatch, accounts: Accounts
) -> None:
    console = settings.console.model_copy(update={"language": "de"})
    german = browser(settings.model_copy(update={"console": console}), store, watch, accounts)
    assert '<html lang="de"' in german.get("/").text
    assert '<html lang="en"' in german.get("/", headers={"Accept-Language": "en"}).text
    assert (
        german.get("/api/v1/cameras").json() == german.get("/api/v1/cameras", headers={"Accept-Language": "en"}).json()
    )


def test_names_of_classes_stay_as_people_wrote_them(client: TestClient, store: Store) -> None:
    first = class_commands.list_classes(store)[0]["id"]
    class_commands.name(store, first, "reject", who="Parts")
    text = client.get(f"/classes/{first}", headers=GERMAN).text
    assert "<h1>reject</h1>" in text and "<td>Parts</td>" in text and "<td>reject</td>" in text


def test_errors_of_the_interface_stay_english_and_a_page_marks_them_so(client: TestClient) -> None:
    assert client.get("/api/v1/classes/D-9", headers=GERMAN).json()["detail"].startswith("no class 'D-9'")
    text = client.get("/classes/D-9", headers=GERMAN).text
    assert '<p class="notice" lang="en">no class D-9' in text and "Das hat nicht geklappt" in text
