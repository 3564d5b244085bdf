"""The review page: what is offered, who may judge, and that a judgement survives."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from discovery import quality_rates
from discovery.pictures.keeper import picture_store
from discovery.pictures.policy import Candidate
from discovery.store import frame_pictures, judgements
from discovery.store.store import Store
from flawline.messages import Decision
from flawline.settings.tree import Settings
from station.web.accounts import Accounts, Role
from station.web.ledger_watch import LedgerWatch
from station.web.live import LiveWatch
from tests.discovery.factories import START_NS, frame
from tests.discovery.pictures import photos
from tests.discovery.pictures.photos import scored
from tests.station.web.conftest import browser, served
from tests.support import chromium

pytestmark = pytest.mark.system

ALARMS = ["cam-2:1:2", "cam-1:1:1", "cam-1:1:0"]
"""Alarms with a picture, the latest first."""


@pytest.fixture
def pictures(settings: Settings, store: Store) -> Store:
    """Add pictures of frames 0 (reject) and 1 (review) of cam-1, 2 (reject) of cam-2, and of three accepted frames."""
    place = picture_store(settings)
    place.create()
    size_bytes = len(frame(0)[1])
    shown = [
        scored(0), scored(1, Decision.REVIEW), scored(2, camera="cam-2"), scored(200, Decision.ACCEPT, p_value=0.01),
        scored(201, Decision.ACCEPT), scored(202, Decision.ACCEPT),
    ]  # fmt: skip
    keys = tuple(place.put(frame(n)[1]) for n in range(len(shown)))
    photos.keep(store, *shown, keys=keys, size_bytes=size_bytes)
    return store


def token(client: TestClient) -> str:
    match = re.search(r'data-token="([^"]+)"', client.get("/review").text)
    assert match is not None
    return match[1]


def state(client: TestClient, query: str = "") -> Any:
    match = re.search(r'data-state="([^"]+)"', client.get(f"/review{query}").text)
    assert match is not None
    return json.loads(html.unescape(match[1]))


def frames(content: Any) -> list[str]:
    return [item["frame"] for item in content["items"]]


def judge(client: TestClient, frame_id: str, judgement: str, **fields: str) -> Any:
    form = {"token": token(client), "who": "ana", "frame": frame_id, "judgement": judgement, "offered": "yes"}
    return client.post("/api/review/judge", data=form | fields)


def test_the_page_and_the_interface_offer_the_same_frames(client: TestClient, pictures: Store) -> None:
    assert frames(state(client)) == frames(client.get("/api/review").json()) == ALARMS
    audit = state(client, "?queue=audit")
    assert sorted(frames(audit)) == ["cam-1:1:200", "cam-1:1:201", "cam-1:1:202"]
    assert audit["waiting"] == {"alarms": 3, "audit": 3}
    (item,) = (item for item in state(client)["items"] if item["frame"] == "cam-1:1:0")
    assert item["class"]["id"] in ("D-0001", "D-0002")
    assert (item["has_heat"], item["boxes"], item["size"]) == (True, [[10, 12, 8, 8]], [64, 64])


def test_the_queue_is_filtered_and_read_on_behind_a_frame(client: TestClient, pictures: Store) -> None:
    assert frames(client.get("/api/review?camera=cam-2").json()) == ["cam-2:1:2"]
    assert frames(client.get("/api/review?kind=review").json()) == ["cam-1:1:1"]
    assert frames(client.get("/api/review?hours=1").json()) == []  # all are of 2023
    assert frames(client.get("/api/review?after=cam-2:1:2").json()) == ["cam-1:1:1", "cam-1:1:0"]
    audit = frames(client.get("/api/review?queue=audit").json())
    assert frames(client.get(f"/api/review?queue=audit&after={audit[0]}").json()) == audit[1:]
    assert client.get("/review?camera=&class=&kind=&hours=0").status_code == 200
    for wrong in ("kind=nonsense", "queue=nonsense", "hours=-1", "hours=x", f"camera={'x' * 65}"):
        assert client.get(f"/api/review?{wrong}").status_code == 400


def test_a_picture_is_the_frame_as_captured(client: TestClient, pictures: Store, settings: Settings) -> None:
    answer = client.get("/pictures/cam-1:1:0")
    assert (answer.content, answer.headers["content-type"]) == (frame(0)[1], "image/jpeg")
    assert client.get("/pictures/cam-1:1:9").status_code == 404
    with pictures.reading() as connection:
        picture_store(settings).remove(frame_pictures.by_frame(connection, "cam-1:1:0").object_key)
    assert client.get("/pictures/cam-1:1:0").status_code == 404
    (settings.data_dir / "pictures" / ".flawline-store").unlink()
    away = client.get("/pictures/cam-1:1:0")
    assert away.status_code == 503
    assert "cannot be read" in away.text


def test_a_judgement_is_kept_and_taken_back(client: TestClient, pictures: Store) -> None:
    answer = judge(client, "cam-1:1:1", "false", why="dust <b>")
    assert answer.status_code == 200
    assert answer.json()["waiting"]["alarms"] == 2
    assert frames(state(client)) == ["cam-2:1:2", "cam-1:1:0"]
    (row,) = judgements.latest(pictures)
    assert (row.who, row.judgement, row.why, row.is_offered) == ("ana", "false", "dust <b>", True)
    assert "dust <b>" not in client.get("/review").text
    undone = client.post("/api/review/undo", data={"token": token(client), "who": "ana"})
    assert frames(undone.json()) == ["cam-1:1:1"]
    assert frames(state(client)) == ALARMS
    again = client.post("/api/review/undo", data={"token": token(client), "who": "ana"})
    assert (again.status_code, again.json()["error"]) == (400, "nothing to take back of ana")


def test_the_rates_are_those_of_the_command(client: TestClient, pictures: Store) -> None:
    judge(client, "cam-1:1:0", "false")
    judge(client, "cam-2:1:2", "real")
    content = client.get("/api/review/rates").json()
    assert content["rates"]["false_alarm_share"]["value"] == pytest.approx(0.5)
    assert content == quality_rates.report(judgements.judged(pictures))
    camera_content = client.get("/api/review/rates?camera=cam-2").json()
    assert (camera_content["rates"]["false_alarm_share"]["value"], camera_content["confidence"]) == (0, 0.95)


def test_a_frame_that_is_looked_up_is_judged_but_tells_nothing_of_the_others(
    client: TestClient, pictures: Store
) -> None:
    assert frames(state(client, "?frame=cam-1:1:201")) == ["cam-1:1:201"]
    assert judge(client, "cam-1:1:201", "real", offered="no").status_code == 200
    assert [row.is_offered for row in judgements.latest(pictures)] == [False]
    assert client.get("/review?frame=cam-1:1:9").status_code == 404


@pytest.mark.parametrize(
    ("frame_id", "fields", "status", "words"),
    [
        ("cam-1:1:9", {}, 400, "no picture"),
        ("cam-1:1:0", {"judgement": "perhaps"}, 400, "one of real, false, unsure"),
        ("cam-1:1:0", {"who": ""}, 400, "give your name"),
        ("cam-1:1:0", {"why": "x" * 501}, 400, "at most 500"),
        ("cam-1:1:0", {"why": "a\0b"}, 400, "printable"),
        ("cam-1:1:0", {"token": "another"}, 403, "not from this console"),
        ("\u202e" * 300, {}, 400, "no picture"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(
    client: TestClient, pictures: Store, frame_id: str, fields: dict[str, str], status: int, words: str
) -> None:
    answer = judge(client, frame_id, **({"judgement": "real"} | fields))
    assert (answer.status_code, words in answer.json()["error"]) == (status, True)
    assert judgements.latest(pictures) == []


def test_who_may_only_look_sees_the_queue_and_cannot_judge(
    settings: Settings, pictures: Store, watch: LedgerWatch, accounts: Accounts
) -> None:
    keys = {role: accounts.add(role, role, None) for role in (Role.VIEW, Role.REVIEW)}
    client = browser(settings, pictures, watch, accounts)
    form = {"frame": "cam-1:1:0", "judgement": "real", "offered": "yes", "who": "somebody else"}
    assert client.get("/review").status_code == 303
    assert client.post("/api/review/judge", data=form).status_code == 401
    looking = {"Authorization": f"Bearer {keys[Role.VIEW]}"}
    page = client.get("/review", headers=looking)
    assert "You may look" in page.text
    assert 'data-judgement="real"' not in page.text
    for path in ("judge", "undo"):
        assert client.post(f"/api/review/{path}", data=form, headers=looking).status_code == 403
    judging = {"Authorization": f"Bearer {keys[Role.REVIEW]}"}
    answer = client.post("/api/review/judge", data=form, headers=judging)
    assert answer.json()["entry"]["who"] == "review"  # who is logged in, whatever the form says


def test_the_page_of_a_defect_has_its_picture_and_what_was_said_of_it(client: TestClient, pictures: Store) -> None:
    before = client.get("/defects/cam-1:1:0").text
    assert '<image href="/pictures/cam-1%3A1%3A0"' in before
    assert "/layer.png" in before
    assert "Nobody has judged it yet" in before
    judgements.judge(pictures, "cam-1:1:0", "real", who="ana")
    judgements.judge(pictures, "cam-1:1:0", "false", who="ben", why="oil <b>")
    judgements.undo(pictures, who="ben")
    after = client.get("/defects/cam-1:1:0").text
    assert '<b class="said real">real</b><span>ana' in after
    assert "taken back by ben" in after
    assert "oil &lt;b&gt;" in after
    without = client.get("/defects/cam-1:1:20").text
    assert "/heatmap.png" in without
    assert "/pictures/" not in without
    assert "Does it show a defect" not in without


def test_a_defect_is_judged_on_its_page_and_the_judgement_taken_back(client: TestClient, pictures: Store) -> None:
    form = {"token": token(client), "who": "ana", "judgement": "false", "why": "oil"}
    done = client.post("/defects/cam-1:1:0/judge?class=D-0001", data=form)
    assert (done.status_code, done.headers["location"]) == (303, "/defects/cam-1%3A1%3A0?class=D-0001")
    (row,) = judgements.latest(pictures)
    assert (row.frame_id, row.judgement, row.who, row.why, row.is_offered) == (
        "cam-1:1:0",
        "false",
        "ana",
        "oil",
        False,
    )
    assert client.post("/defects/cam-1:1:0/undo", data=form).status_code == 303
    assert judgements.latest(pictures) == []
    for path, fields, words in (
        ("cam-1:1:0/undo", {}, "nothing to take back"),
        ("cam-1:1:0/judge", {"judgement": "perhaps"}, "one of real, false, unsure"),
        ("cam-1:1:20/judge", {}, "no picture"),
        ("cam-1:1:0/judge", {"who": ""}, "give your name"),
    ):
        answer = client.post(f"/defects/{path}", data=form | fields)
        assert answer.status_code == 400 and words in answer.text
    assert client.post("/defects/cam-1:1:0/judge", data=form | {"token": "x"}).status_code == 403
    assert judgements.latest(pictures) == []


def test_a_frame_of_the_last_minutes_gets_a_picture_when_a_person_asks_for_it(
    settings: Settings, pictures: Store, watch: LedgerWatch, accounts: Accounts
) -> None:
    live = LiveWatch(settings)
    candidate = Candidate(scored(300, Decision.ACCEPT), 1, 42)
    live._remember(candidate)
    client = browser(settings, pictures, watch, accounts, live=live)
    name = candidate.verdict.frame_id
    assert state(client, f"?frame={name}") == state(client) | {"items": [], "can_keep": name}
    form = {"token": token(client)}
    assert client.post("/api/review/keep", data=form | {"frame": name}).status_code == 202
    with pictures.reading() as connection:
        row = frame_pictures.by_frame(connection, name)
    assert (row.stratum, row.state, row.partition, row.frame_offset) == ("picked", "wanted", 1, 42)
    with pictures.transaction() as connection:
        frame_pictures.keep(connection, row.id, object_key="b" * 64, codec="jpeg", height=16, width=24, size_bytes=1)
    assert frames(client.get(f"/api/review/{name}").json()) == [name]
    assert name not in frames(client.get("/api/review?queue=audit").json())  # it was not drawn
    assert judge(client, name, "real", offered="no").status_code == 200
    assert sum(part.judgements for part in judgements.judged(pictures)) == 0
    assert client.post("/api/review/keep", data=form | {"frame": "cam-1:1:999"}).status_code == 404


@pytest.fixture
def live(settings: Settings) -> LiveWatch:
    return LiveWatch(settings)


@pytest.fixture
def address(
    settings: Settings, pictures: Store, watch: LedgerWatch, accounts: Accounts, live: LiveWatch
) -> Iterator[str]:
    """Serve the console for a browser."""
    with served(settings, pictures, watch, accounts, live) as url:
        yield url


@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="install chromium to run this")
def test_a_person_judges_with_the_keyboard_alone(address: str, pictures: Store, tmp_path: Path) -> None:
    shown = "document.getElementById('facts').lastElementChild?.textContent"

    def is_shown(frame_id: str) -> None:
        page.wait_for(shown, lambda text: text == frame_id)

    with chromium.Page(tmp_path / "browser") as page:
        page.open(f"{address}/review")
        is_shown(ALARMS[0])
        page.wait_for("document.querySelector('.view image').getBBox().width", lambda width: width == 64)
        page.press("r")
        page.wait_for("document.getElementById('problem').textContent", lambda text: "give your name" in text)
        assert judgements.latest(pictures) == []
        page.errors.clear()  # the browser notes the refused request
        page.evaluate("document.getElementById('who').value = 'ana'")
        page.press("r")
        is_shown(ALARMS[1])
        page.press("f")
        is_shown(ALARMS[2])
        page.press("z")
        is_shown(ALARMS[1])
        page.press("u")
        is_shown(ALARMS[2])
        page.wait_for("document.getElementById('rates').textContent", lambda text: "too few are judged" in text)
        assert page.evaluate("document.querySelector('[data-waiting=alarms]').textContent") == "1"
        page.press("n")
        page.wait_for("document.getElementById('none').textContent", lambda text: "1 frame of this list" in text)
        page.press("ArrowLeft")
        is_shown(ALARMS[2])
        page.press("h")
        assert page.evaluate("getComputedStyle(document.querySelector('.heat-layer')).display") == "none"
        assert [(row.frame_id, row.judgement, row.who) for row in judgements.latest(pictures)] == [
            (ALARMS[1], "unsure", "ana"), (ALARMS[0], "real", "ana"),
        ]  # fmt: skip
        page.open(f"{address}/review?queue=alarms")  # a judgement survives, and so does the name
        is_shown(ALARMS[2])
        page.press("f")
        page.wait_for("document.getElementById('none').textContent", lambda text: "All frames" in text)
        late = replace(scored(3), captured_at=START_NS + 10**10)
        photos.keep(pictures, late, keys=("a" * 64,))
        is_shown("cam-1:1:3")  # new frames appear by themselves
        assert [error for error in page.errors if "/pictures/" not in error and "404" not in error] == []


@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="install chromium to run this")
def test_a_frame_without_a_picture_is_fetched_and_judged(
    address: str, pictures: Store, live: LiveWatch, tmp_path: Path
) -> None:
    candidate = Candidate(scored(300, Decision.ACCEPT), 1, 42)
    live._remember(candidate)
    name = candidate.verdict.frame_id
    with chromium.Page(tmp_path / "browser") as page:
        page.open(f"{address}/review?frame={name}")
        page.wait_for("document.getElementById('none').textContent", lambda text: "being fetched" in text)

        def is_asked_for() -> bool:
            with pictures.reading() as connection:
                return frame_pictures.by_frame(connection, name) is not None

        page.wait_for("document.getElementById('problem').textContent", lambda _: is_asked_for())
        photos.keep(pictures, candidate.verdict, keys=("c" * 64,))  # as discovery does
        page.wait_for("document.getElementById('question').textContent", lambda text: "Does it show a defect" in text)
        page.evaluate("document.getElementById('who').value = 'ana'")
        page.press("r")
        page.wait_for("document.getElementById('history').textContent", lambda text: name in text)
    (row,) = judgements.latest(pictures)
    assert (row.frame_id, row.judgement, row.is_offered, row.stratum) == (name, "real", False, "picked")
