"""Parts, lots, shifts and groups in the browser: what is shown, filtered, named and taken back."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from discovery.shifts import Calendar
from discovery.store import group_names
from discovery.store.store import Batch, LineRules, Store, TakenDefect
from flawline.errors import UsageError
from flawline.messages import Decision
from flawline.settings.shifts import ShiftSettings
from tests.discovery.factories import START_NS, defect, directions, verdict

pytestmark = pytest.mark.system

S_NS = 1_000_000_000
LATE = Calendar([ShiftSettings(name="late", begin="14:00", end="23:00")])
RULES = LineRules(LATE, ("side", "top"), 60 * S_NS)
NASTY = '<b>"x"&\''


@pytest.fixture
def parts(store: Store) -> Store:
    """Add two views of P1 (one rejected), one of P2, and one of a part with a nasty name, in two lots."""
    frames = [
        replace(verdict(500, "cam-top", captured_at=START_NS), part="P1", view="top", lot="L1"),
        replace(
            verdict(500, "cam-side", Decision.REJECT, captured_at=START_NS + S_NS), part="P1", view="side", lot="L1",
            p_value=0.001,
        ),
        replace(verdict(501, "cam-top", captured_at=START_NS + 20 * S_NS), part="P2", view="top", lot="L2"),
        replace(verdict(502, "cam-top", captured_at=START_NS + 90 * S_NS), part=NASTY, view="top", lot=NASTY),
    ]  # fmt: skip
    rejected = replace(defect(500, directions(1)[0], camera="cam-side"), part="P1", lot="L1")
    store.ingest(Batch(verdicts=frames, defects=[TakenDefect(rejected, (None,))]), rules=RULES)
    return store


def shown(page: str) -> list[str]:
    return re.findall(r'<a href="/parts/\d+">([^<]*)</a>', page)


def test_parts_are_listed_with_their_views_and_what_never_came(client: TestClient, parts: Store) -> None:
    page = client.get("/parts").text
    assert shown(page) == ["&lt;b&gt;&#34;x&#34;&amp;&#39;", "P2", "P1"]
    assert page.count("side never came") == 1, "P2 is closed"
    assert page.count("waits for side") == 1, "the last one may still get its view"
    assert '<b>"x"' not in page


def test_parts_are_filtered(client: TestClient, parts: Store) -> None:
    for query, expected in (
        ("part=P1", ["P1"]), ("lot=L2", ["P2"]), ("decision=reject", ["P1"]), ("incomplete=yes&lot=L1", []),
        ("incomplete=yes&lot=L2", ["P2"]), ("shift=late&part=P2", ["P2"]), ("shift=early", []),
        ("since=2023-11-14T22:14:10&until=2023-11-14T22:15", ["P2"]), ("hours=1", []),
    ):  # fmt: skip
        assert shown(client.get(f"/parts?{query}").text) == expected, query


def test_the_page_of_a_part_shows_every_view_and_leads_to_its_defect(client: TestClient, parts: Store) -> None:
    address = re.search(r'<a href="(/parts/\d+)">P1</a>', client.get("/parts").text)
    assert address is not None
    page = client.get(address[1]).text
    assert "cam-top:1:500" in page and '<a href="/defects/cam-side%3A1%3A500">' in page
    assert "0.00459" not in page and f"{0.001 * 0.5 * (1 - __import__('math').log(0.0005)):.3g}" in page
    assert client.get("/parts/99999").status_code == 404
    assert client.get("/parts/0").status_code == client.get("/parts/x").status_code == 400


def test_defects_are_filtered(client: TestClient, parts: Store) -> None:
    for query, count in (
        ("lot=L1", 1), ("lot=L2", 0), ("shift=late", 1), ("part=P1&decision=reject", 1), ("group=m1:0&lot=L1", 1),
        ("group=m2:0", 0), ("camera=cam-side", 1), ("class=D-0001&lot=L1", 0),
    ):  # fmt: skip
        page = client.get(f"/defects?{query}").text
        assert len(re.findall(r'<a href="/defects/[^"?]+">', page)) == count, query


def test_the_next_page_keeps_the_filter(client: TestClient, parts: Store) -> None:
    older = re.search(r'href="/defects\?([^"]+)">Older', client.get("/defects?camera=cam-1&decision=reject").text)
    assert older is not None
    assert re.fullmatch(r"camera=cam-1&amp;decision=reject&amp;before=\d+", older[1])


def test_a_filter_that_means_nothing_is_refused_in_one_line(client: TestClient, parts: Store) -> None:
    for query in ("group=m1", "group=m1:x", "decision=good", "kind=x", "lot=%00", "since=yesterday", "since=0001-01-01",
                  "since=9999-12-31T23:59", "hours=nan", "hours=-1"):  # fmt: skip
        for path in ("/defects", "/parts", "/review"):
            assert client.get(f"{path}?{query}").status_code == 400, (path, query)


def form(client: TestClient, **fields: str) -> dict[str, str]:
    match = re.search(r'name="token" value="([^"]+)"', client.get("/groups").text)
    assert match is not None
    return {"token": match[1], "who": "ana", "model": "m1", "group": "0"} | fields


def test_a_group_gets_a_name_that_is_shown_and_taken_back(client: TestClient, parts: Store) -> None:
    assert client.post("/groups/name", data=form(client, value=NASTY)).status_code == 303
    page = client.get("/groups").text
    assert "&lt;b&gt;" in page and "Group 0 was named" in page
    assert '<option value="m1:0">&lt;b&gt;' in client.get("/defects").text
    assert "&lt;b&gt;" in client.get("/defects/cam-side:1:500").text
    assert client.post("/groups/undo", data=form(client)).status_code == 303
    assert group_names.names(parts) == {}
    refused = client.post("/groups/undo", data=form(client))
    assert refused.status_code == 400 and "no name of a group to take back" in refused.text


def test_a_name_that_cannot_be_is_refused_and_changes_nothing(client: TestClient, parts: Store) -> None:
    for fields in ({"value": ""}, {"value": "a\u202eb"}, {"value": "x" * 65}, {"group": "7"}, {"group": "x"},
                   {"model": "none"}, {"who": ""}):  # fmt: skip
        assert client.post("/groups/name", data=form(client, value="screws") | fields).status_code == 400, fields
    assert group_names.names(parts) == {}
    without_token = {"model": "m1", "group": "0", "value": "x", "who": "a"}
    assert client.post("/groups/name", data=without_token).status_code == 403


def test_names_are_of_one_model_until_they_are_carried_to_the_next(parts: Store) -> None:
    of_m2 = [verdict(n, "cam-9", group=n % 2, model_version="m2") for n in range(4)]
    parts.ingest(Batch(verdicts=[*of_m2, verdict(9, "cam-9", group=1)]))
    group_names.name(parts, "m1", 0, "screws", who="ana")
    group_names.name(parts, "m1", 1, "leather", who="ana")
    with pytest.raises(UsageError, match="name 'screws' is that of group 0 already"):
        group_names.name(parts, "m1", 1, "screws", who="ana")
    group_names.name(parts, "m2", 1, "screws", who="ben")
    carried = group_names.carry(parts, "m1", "m2", who="ana")
    assert carried == [], "group 0 would get a name that group 1 has"
    group_names.undo(parts, who="ben")
    assert [(row["group"], row["name"]) for row in group_names.carry(parts, "m1", "m2", who="ana")] == [
        (0, "screws"), (1, "leather")
    ]  # fmt: skip
    group_names.undo(parts, who="ana")
    assert group_names.names(parts) == {("m1", 0): "screws", ("m1", 1): "leather", ("m2", 0): "screws"}
