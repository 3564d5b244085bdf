"""Everybody can use a page: axe-core finds nothing serious in either theme, and a finger meets each target."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from discovery.pictures.keeper import picture_store
from discovery.store import class_commands, group_names, judgements
from discovery.store.store import Batch, Store
from flawline import clock
from flawline.messages import Decision
from flawline.settings.producers import SimulatedCamera
from flawline.settings.tree import Settings
from station.web.accounts import Accounts, Role
from station.web.ledger_watch import LedgerWatch
from station.web.live import LiveVerdict, LiveWatch
from tests.discovery.factories import START_NS, frame, verdict
from tests.discovery.pictures import photos
from tests.station.web.conftest import served
from tests.support import chromium

AXE = find_spec("axe_playwright_python")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(chromium.EXECUTABLE is None, reason="install chromium to run this"),
    pytest.mark.skipif(AXE is None, reason="pip install 'flawline[test-tools]' to run this"),
]
FRAME = "cam-1:1:0"
PAGES = (
    "/", "/review", "/parts", "/parts/1", "/classes?all=true", "/classes/D-0001", "/map", "/unassigned", "/defects",
    f"/defects/{FRAME}", "/groups", "/ledger", "/operating-point", "/report", "/nothing",
)  # fmt: skip
SERIOUS = """(async () => {
    const {violations} = await axe.run(document, OPTIONS);
    return violations.filter(({impact}) => impact === 'serious' || impact === 'critical')
      .map(({id, nodes}) => id + ': ' + nodes.slice(0, 3).map(({html}) => html.slice(0, 200)).join(' | '));
})()"""
TARGET_PX = 44
SMALL_TARGETS = """[...document.querySelectorAll('a, button, select, input:not([type=hidden])')].flatMap((element) => {
    const target = element.matches('[type=checkbox], [type=radio]') ? element.closest('label') || element : element;
    const isInText = element.matches('p a, li a, dd a, figcaption a, .soft a');
    if (isInText || !element.checkVisibility() || element.closest('.skip, svg, .strip')) return [];
    const {width, height} = target.getBoundingClientRect();
    return Math.min(width, height) >= SIZE - 0.5 ? [] : [`${target.outerHTML.slice(0, 120)} ${width} x ${height}`];
})"""
"""Links within a sentence are as high as its lines (WCAG 2.5.5 leaves them out); the strip of verdicts is a chart."""


@pytest.fixture
def full(settings: Settings, store: Store) -> Store:
    """Return a store in which every page has something to show."""
    place = picture_store(settings)
    place.create()
    shown = [photos.scored(0), photos.scored(1, Decision.REVIEW), photos.scored(200, Decision.ACCEPT)]
    keys = tuple(place.put(frame(n)[1]) for n in range(len(shown)))
    photos.keep(store, *shown, keys=keys, size_bytes=len(frame(0)[1]))
    part = replace(verdict(500, "cam-2", captured_at=START_NS), part="P1", view="top", lot="L1")
    store.ingest(Batch(verdicts=[part]))
    judgements.judge(store, FRAME, "real", who="ana", why="a dent", is_offered=True)
    group_names.name(store, "m1", 0, "lid", who="ana")
    first, second = (row["id"] for row in class_commands.list_classes(store))
    class_commands.name(store, first, "dent", who="ana")
    class_commands.set_severity(store, second, "critical", who="ana")
    class_commands.split(store, first, who="ana")
    return store


@pytest.fixture
def address(settings: Settings, full: Store, watch: LedgerWatch, accounts: Accounts) -> Iterator[str]:
    """Serve the console of two cameras for a browser; one of them has just had a verdict."""
    cameras = [
        SimulatedCamera(kind="simulated", name=name, products=["disc"], rate_hz=0.01) for name in ("cam-1", "cam-3")
    ]
    live, now = LiveWatch(settings), clock.utc_ns()
    live._shown["cam-1"] = LiveVerdict(FRAME, "cam-1", now, now, Decision.REJECT, 3.0, (), serial=1)
    live._strips["cam-1"] = deque([live._shown["cam-1"]])
    with served(settings.model_copy(update={"cameras": cameras}), full, watch, accounts, live=live) as url:
        yield url


def test_no_page_keeps_anybody_out_in_either_theme(address: str, accounts: Accounts, tmp_path: Path) -> None:
    assert AXE is not None and AXE.origin is not None
    axe = (Path(AXE.origin).parent / "axe.min.js").read_text("utf-8")
    problems: dict[str, Any] = {}
    with chromium.Page(tmp_path / "browser", 1024, 768) as page:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=axe)

        def check(name: str) -> None:
            # The dark theme differs in colours alone.
            for theme, options in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
                page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
                options = json.dumps({"resultTypes": ["violations"], **options})
                if serious := page.evaluate(SERIOUS.replace("OPTIONS", options)):
                    problems[f"{name}, {theme}"] = serious
            if small := page.evaluate(SMALL_TARGETS.replace("SIZE", str(TARGET_PX))):
                problems[f"{name}, targets"] = small[:6]

        for path in PAGES:
            page.open(address + path)
            check(path)
        page.open(f"{address}/classes/D-0002")
        page.evaluate("document.querySelector('form[action$=dismiss] [name=who]').value = 'ana'")
        page.follow("document.querySelector('form[action$=dismiss] button').click()")
        check("confirm")
        page.open(f"{address}/classes")
        page.evaluate("document.querySelectorAll('.tick input').forEach((tick) => tick.click())")
        page.follow("document.querySelector('#chosen button').click()")
        check("merge")
        accounts.add("ana", Role.ADMIN, "correct horse battery")
        page.open(f"{address}/login")
        check("login")
        page.evaluate("document.querySelector('.login [name=name]').value = 'ana'")
        page.evaluate("document.querySelector('.login [name=password]').value = 'correct horse battery'")
        page.follow("document.querySelector('.login button').click()")
        page.open(f"{address}/users")
        check("users")
    assert problems == {}, json.dumps(problems, indent=1)


def test_the_switch_of_the_language_moves_nothing_and_is_kept(address: str, tmp_path: Path) -> None:
    places = (
        "JSON.stringify([...document.querySelectorAll('body > header, #theme, #language, main')]"
        ".map((element) => [element.getBoundingClientRect().y, element.getBoundingClientRect().height]))"
    )
    with chromium.Page(tmp_path / "browser") as page:
        page.open(f"{address}/ledger")
        before = page.evaluate(places)
        page.follow(
            "const s = document.getElementById('language'); s.value = 'de'; s.dispatchEvent(new Event('change'))"
        )
        assert "Bilanz" in page.evaluate("document.querySelector('nav').textContent")
        assert page.evaluate(places) == before
        page.open(f"{address}/")
        page.wait_for("document.querySelector('.word').textContent", lambda text: text == "Ausschuss")
        assert page.evaluate("document.documentElement.lang") == "de" and page.errors == []


def test_the_hour_of_the_ledger_is_in_the_time_of_its_reader(address: str, tmp_path: Path) -> None:
    with chromium.Page(tmp_path / "browser") as page:
        page.call("Emulation.setTimezoneOverride", timezoneId="Asia/Kolkata")
        page.open(f"{address}/ledger")
        marks = page.evaluate(
            "[...document.querySelectorAll('[data-minute]')].map((mark) => [mark.dataset.minute, mark.textContent])"
        )
    assert len(marks) >= 2
    for moment, words in marks:
        assert words[:5] == f"{datetime.fromisoformat(moment).astimezone(ZoneInfo('Asia/Kolkata')):%H:%M}"
