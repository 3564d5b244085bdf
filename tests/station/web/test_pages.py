"""Each page shows the content of the store."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from fastapi.testclient import TestClient

from discovery.store import class_commands
from discovery.store.store import Store
from flawline import imaging
from flawline.messages import Codec
from flawline.settings.tree import Settings
from station.pages import heat, stacked_bars
from station.web import views
from station.web.accounts import Accounts
from station.web.ledger_watch import LedgerWatch
from station.web.queries import MinuteCount
from tests.discovery import factories
from tests.station.web.conftest import browser, filled
from tests.support.postgres import PostgresServer

FRAME = "cam-1:1:55"


def test_line_page_shows_the_verdicts_of_the_last_hour(client: TestClient) -> None:
    text = client.get("/ledger").text
    titles = re.findall(r"<title data-minute=\"[^\"]+\">(\d\d:\d\d [a-z]+: \d+)</title>", text)
    assert sorted(titles) == ["22:14 accept: 75", "22:14 reject: 5", "22:15 accept: 20"]
    assert re.search(r"<td>cam-2</td><td class=\"n\">20</td>\s*<td class=\"n\">5</td><td class=\"n\">25.00%", text)
    assert re.search(r"<td>all</td><td class=\"n\">100</td>\s*<td class=\"n\">5</td><td class=\"n\">5.00%", text)


@pytest.mark.system
def test_line_page_is_served_while_the_broker_is_away(client: TestClient, watch: LedgerWatch) -> None:
    assert client.get("/api/ledger").status_code == 503
    assert client.get("/api/ledger").json() == {"read_at": None, "error": "not read yet", "ledger": None}
    assert watch.poll().problem is not None
    page = client.get("/ledger")
    assert page.status_code == 200 and "The ledger cannot be read now" in page.text and "cam-2" in page.text
    assert "cannot be used" in client.get("/api/ledger").json()["error"]
    assert client.get("/healthz").json() == {"status": "ok", "ledger": "away"}
    assert client.get("/classes").status_code == client.get("/defects").status_code == 200


def test_classes_are_listed_with_crops_and_as_the_command_lists_them(client: TestClient, store: Store) -> None:
    known = class_commands.list_classes(store)
    assert len(known) == 2
    assert client.get("/api/classes").json() == {"classes": known}
    text = client.get("/classes").text
    assert all(row["id"] in text for row in known) and text.count("28 members in 28 frames") == 2
    crops = re.findall(r'src="(/regions/\d+/crop\.jpg)"', text)
    assert len(crops) == 16
    image = client.get(crops[0])
    assert image.headers["content-type"] == "image/jpeg"
    assert imaging.decode(image.content, Codec.JPEG).shape == (8, 8, 3)


def test_hidden_classes_are_shown_when_asked_for(client: TestClient, store: Store) -> None:
    first, second = (row["id"] for row in class_commands.list_classes(store))
    class_commands.merge(store, first, second, who="ana")
    assert [row["id"] for row in client.get("/api/classes").json()["classes"]] == [second]
    assert {row["id"] for row in client.get("/api/classes?all=true").json()["classes"]} == {first, second}
    assert first in client.get("/classes?all=1").text
    gone = client.get(f"/classes/{first}").text
    assert f'merged into <a href="/classes/{second}">' in gone and "Part the two again" in gone and "/name" not in gone


def test_class_page_shows_its_members_and_events(client: TestClient, store: Store) -> None:
    row = class_commands.list_classes(store)[0]
    text = client.get(f"/classes/{row['id']}").text
    assert len(set(re.findall(r'href="/defects/([^"]+)"', text))) == 28
    assert "<td>born</td>" in text and "<td>named</td>" not in text
    class_commands.name(store, row["id"], "dent", who="ana")
    text = client.get(f"/classes/{row['id']}").text
    assert "<td>named</td>" in text and "<td>ana</td>" in text


def test_defects_are_paged_from_the_latest_on(client: TestClient) -> None:
    first = client.get("/defects").text
    older = re.search(r"/defects\?before=(\d+)", first)
    assert older is not None
    second = client.get(older[0]).text
    pages = [re.findall(r'href="/defects/cam-1%3A1%3A(\d+)"', page) for page in (first, second)]
    assert [int(n) for page in pages for n in page] == list(range(55, -1, -1)) and len(pages[0]) == 50
    assert ">Older<" not in second


def test_defect_page_shows_scores_regions_and_the_heat_map(client: TestClient) -> None:
    text = client.get(f"/defects/{FRAME}").text
    assert FRAME in text and "3.000" in text and "0.001" in text and "8 × 8" in text
    image = client.get(f"/defects/{FRAME}/heatmap.png")
    stored = factories.defect(55).heatmap.array()
    assert image.headers["content-type"] == "image/png"
    assert np.array_equal(imaging.decode(image.content, Codec.PNG), heat.heat_colours(stored))


def test_heat_maps_share_one_scale() -> None:
    low, high = heat.HEAT_RANGE
    faint, strong = heat.heat_colours(np.array([[low, (low + high) / 2]])), heat.heat_colours(np.array([[high] * 2]))
    assert faint.sum(axis=2)[0, 0] < faint.sum(axis=2)[0, 1] < strong.sum(axis=2)[0, 0]
    beyond = heat.heat_colours(np.array([[low - 9, high + 9]]))
    assert np.array_equal(beyond[0, 0], faint[0, 0]) and np.array_equal(beyond[0, 1], strong[0, 0])


def test_chart_stacks_the_hour_and_leaves_the_rest_out() -> None:
    now = datetime(2026, 3, 4, 12, 30, 20, tzinfo=UTC)
    minute = now.replace(second=0)
    counts = [
        MinuteCount(minute, "a", "reject", 1),
        MinuteCount(minute, "b", "accept", 3),
        MinuteCount(minute - timedelta(minutes=59), "a", "accept", 2),
        MinuteCount(minute - timedelta(minutes=60), "a", "accept", 99),
    ]
    chart = views.chart(counts, now)
    assert chart.highest == 4 and [bar.decision for bar in chart.bars] == ["accept", "accept", "reject"]
    oldest, bottom, top = chart.bars
    assert oldest.x == stacked_bars.LEFT and bottom.x == top.x > oldest.x
    assert (chart.first_moment, chart.last_moment) == (oldest.moment, top.moment)
    assert (oldest.at, oldest.moment) == ("11:31", "2026-03-04T11:31:00+00:00")
    assert (top.y, top.y + top.height, bottom.y + bottom.height) == (0, bottom.y, stacked_bars.HEIGHT)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/classes/D-9999", 404),
        ("/defects/cam-1:1:999", 404),
        ("/defects/cam-1:1:999/heatmap.png", 404),
        ("/regions/999999/crop.jpg", 404),
        ("/nothing", 404),
        ("/docs", 404),
        ("/defects?before=latest", 400),
        (f"/defects?before={2**70}", 400),
        ("/regions/0/crop.jpg", 400),
    ],
)
def test_missing_page_is_one_line(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.text.count('<p class="notice">') == 1 and "Traceback" not in answer.text


def test_zero_byte_in_an_address_is_refused_before_it_meets_a_database(client: TestClient) -> None:
    assert client.get("/defects/%00/heatmap.png").status_code == 400


@pytest.mark.parametrize(
    "path",
    ["/", "/review", "/parts", "/classes", "/classes/D-0001", "/unassigned", "/map", "/defects", f"/defects/{FRAME}",
     "/groups", "/ledger", "/report", "/report.html", "/static/style.css", "/texts/de.js", "/healthz"],
)  # fmt: skip
def test_head_is_answered_as_get_is(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]


def test_store_that_goes_away_is_a_503_of_one_line(client: TestClient, store: Store) -> None:
    with store.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE verdict_minutes")
    answer = client.get("/ledger")
    assert answer.status_code == 503 and "no such table: verdict_minutes" in answer.text
    assert client.get("/defects").status_code == 200


def test_pages_are_the_same_on_postgresql(
    client: TestClient,
    settings: Settings,
    watch: LedgerWatch,
    accounts: Accounts,
    postgres_server: PostgresServer,
) -> None:
    class_id = client.get("/api/classes").json()["classes"][0]["id"]
    with closing(filled(postgres_server.new_database())) as other:
        there = browser(settings, other, watch, accounts)
        for path in (
            "/ledger",
            "/classes",
            "/api/classes",
            "/defects",
            "/defects?before=9",
            f"/defects/{FRAME}",
            "/healthz",
        ):
            pages = (browser_there.get(path).text for browser_there in (there, client))
            texts = [re.sub('name="token" value="[^"]+"', "", page) for page in pages]
            assert texts[0] == texts[1], path
        page = there.get(f"/classes/{class_id}?before=40")
        assert page.status_code == 200 and page.text.count('href="/defects/') > 1


def neighbours(client: TestClient, frame_id: str, query: str = "") -> dict[str, str]:
    text = client.get(f"/defects/{frame_id}{query}").text
    return dict(re.findall(r'rel="(prev|next)" href="/defects/([^"?]+)', text))


def test_defects_are_read_one_after_the_other_of_all_and_of_a_class(client: TestClient, store: Store) -> None:
    assert neighbours(client, FRAME) == {"next": "cam-1%3A1%3A54"}
    assert neighbours(client, "cam-1:1:0") == {"prev": "cam-1%3A1%3A1"}
    name = class_commands.list_classes(store)[0]["id"]
    frames = [frame for frame, class_id in store.assignments().items() if class_id == name]
    frames.sort(key=lambda frame: int(frame.rpartition(":")[2]), reverse=True)
    seen = frames[:1]
    while (older := neighbours(client, seen[-1], f"?class={name}").get("next")) is not None:
        seen.append(older.replace("%3A", ":"))
    assert seen == frames


def test_defect_is_told_in_words(client: TestClient) -> None:
    text = client.get(f"/defects/{FRAME}").text
    assert "Rejected: its hottest place is 20.1 times as unusual" in text
    assert "about 1 in 1,000 is as unusual (p-value 0.001)" in text
    assert "One place stands out, it is at the upper left, 8 × 8 px" in text
