"""The wall of classes: which pictures, in which order, and what people do with what they have ticked."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from discovery.store import class_commands, schema
from discovery.store.store import Store, refresh_frame_classes
from flawline.messages import Transition
from station.web import class_queries, class_views
from station.web.class_queries import Picture
from tests.station.web.conftest import token

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


@pytest.fixture
def ids(store: Store) -> list[str]:
    return [row["id"] for row in class_commands.list_classes(store)]


def picture(number: int, camera: str, group: int, minutes: int) -> Picture:
    return Picture(number, "D-0001", f"{camera}:1:{number}", camera, ("m", group), NOON + timedelta(minutes=minutes))


def test_pictures_are_spread_over_products_then_cameras_then_time_with_the_newest_first() -> None:
    common = [picture(number, "cam-1", 0, number) for number in range(50)]
    rare = [picture(100, "cam-1", 1, 3), picture(101, "cam-2", 0, 4), picture(102, "cam-2", 1, 5)]
    chosen = class_queries.spread([*common, *rare], 6)
    assert chosen[0].id == 49
    assert {shown.id for shown in chosen[1:4]} == {100, 101, 102}
    assert chosen[4].id == 27  # as far in time as can be from what was taken, minutes 3 to 5 and 49
    assert len({shown.id for shown in chosen}) == 6
    assert class_queries.spread(common[:2], 6) == [common[1], common[0]]
    assert class_queries.spread([], 6) == []


def shown_ids(client: TestClient, query: str) -> list[str]:
    return re.findall(r'<b><a href="/classes/(D-\d+)">', client.get(f"/classes{query}").text)


def test_wall_is_searched_and_sorted(client: TestClient, store: Store, ids: list[str]) -> None:
    class_commands.name(store, ids[1], "Deep scratch")
    class_commands.set_severity(store, ids[1], "critical")
    assert shown_ids(client, "?q=scr%20deep") == shown_ids(client, "?q=critical") == [ids[1]]
    assert shown_ids(client, f"?q={ids[0].lower()}") == [ids[0]]
    assert shown_ids(client, "?sort=severity") == shown_ids(client, "?sort=name") == [ids[1], ids[0]]
    assert "No class fits “&lt;b&gt;”" in client.get("/classes?q=<b>").text
    assert client.get("/classes?sort=nonsense").status_code == 400


def test_wall_shows_share_trend_and_first_seen(client: TestClient, ids: list[str]) -> None:
    text = client.get("/classes").text
    assert text.count("<b>50 %</b>") == 2
    assert len(re.findall(r'class="spark"[^>]*aria-label="frames by minute"><path d="M', text)) == 2


def test_trend_counts_every_frame_of_its_time_once(store: Store, ids: list[str]) -> None:
    for since in (NOON - timedelta(days=900), NOON):
        trend = class_queries.trend(store, since)
        assert trend is not None
        assert {name: sum(counts) for name, counts in trend.counts.items()} == dict.fromkeys(ids, 28)


def send(client: TestClient, path: str, class_id: str, fields: dict[str, Any]) -> Any:
    return client.post(path, data={"token": token(client, class_id), "who": "ana"} | fields)


def test_ticked_classes_are_shown_and_counted_and_then_merged_into_the_chosen_one(
    client: TestClient, store: Store, ids: list[str]
) -> None:
    page = send(client, "/classes/merge", ids[0], {"classes": ids})
    assert page.status_code == 200 and "<b>56 frames</b>" in page.text and page.text.count("<img") == 16
    assert {row["id"] for row in class_commands.list_classes(store)} == set(ids)
    done = send(client, "/classes/merge", ids[0], {"classes": ids, "into": ids[1], "confirmed": "yes"})
    assert done.headers["location"] == f"/classes/{ids[1]}"
    assert class_commands.show(store, ids[1])["merged_from"] == [ids[0]]
    wall = client.get("/classes?all=true").text
    assert f'merged into <a href="/classes/{ids[1]}">' in wall
    assert '<svg class="lineage"' in client.get(f"/classes/{ids[1]}").text


@pytest.mark.parametrize(
    ("classes", "into", "status"),
    [("{0}", "{0}", 400), ("", "", 400), ("{0},{1}", "D-9", 400), ("{0},D-9", "{0}", 404)],
)
def test_choice_that_cannot_be_merged_is_refused(
    client: TestClient, store: Store, ids: list[str], classes: str, into: str, status: int
) -> None:
    fields = {"classes": classes.format(*ids), "into": into.format(*ids), "confirmed": "yes"}
    assert send(client, "/classes/merge", ids[0], fields).status_code == status
    assert len(class_commands.list_classes(store)) == 2


def ticked(client: TestClient, class_id: str) -> list[str]:
    return re.findall(r'name="regions" value="(\d+)" form="chosen" checked', client.get(f"/classes/{class_id}").text)


def test_ticked_members_become_a_class_and_tell_so(client: TestClient, store: Store, ids: list[str]) -> None:
    members = re.findall(r'name="regions" value="(\d+)"', client.get(f"/classes/{ids[0]}").text)
    assert len(members) == 28
    path = f"/classes/{ids[0]}/split"
    done = send(client, path, ids[0], {"regions": members[:5], "by": "only", "why": "these are dents"})
    child = done.headers["location"].rpartition("/")[2]
    assert sorted(re.findall(r'name="regions" value="(\d+)"', client.get(f"/classes/{child}").text)) == sorted(
        members[:5]
    )
    born = next(event for _, event in store.outbox() if event.class_id == child)
    assert (born.transition, born.parents, born.selected, born.who) == (Transition.BORN, (ids[0],), 5, "ana")
    assert f'split from <a href="/classes/{ids[0]}">' in client.get("/classes").text
    undone = send(client, f"/classes/{child}/undo", ids[0], {})
    assert undone.headers["location"] == f"/classes/{ids[0]}"
    assert class_commands.show(store, ids[0])["regions"] == 28


@pytest.mark.parametrize(
    ("regions", "words"),
    [([], "tick their pictures"), (["x"], "give ids of regions"), (["999999"], "no member of class")],
)
def test_choice_that_is_no_part_is_one_line_and_changes_nothing(
    client: TestClient, store: Store, ids: list[str], regions: list[str], words: str
) -> None:
    answer = send(client, f"/classes/{ids[0]}/split", ids[0], {"regions": regions, "by": "alike"})
    assert answer.status_code == 400 and words in answer.text
    assert len(class_commands.list_classes(store)) == 2


def test_lineage_is_drawn_from_left_to_right() -> None:
    parents = {"D-3": ["D-1"], "D-4": ["D-3"], "D-5": ["D-3"]}
    drawing = class_views.lineage("D-3", parents, {"D-2": "D-3"})
    assert drawing is not None
    by_id = {box.id: box for box in drawing.boxes}
    assert by_id["D-1"].x == by_id["D-2"].x < by_id["D-3"].x < by_id["D-4"].x == by_id["D-5"].x
    assert [box.id for box in drawing.boxes if box.is_shown] == ["D-3"]
    assert sum(line.is_merge for line in drawing.lines) == 1 and len(drawing.lines) == 4
    assert all(0 <= box.y <= drawing.height - class_views.BOX_HEIGHT for box in drawing.boxes)
    assert class_views.lineage("D-9", parents, {}) is None


def test_spark_has_a_bar_for_each_step_with_frames() -> None:
    assert class_views.spark([0, 0]) == class_views.spark([]) == ""
    assert class_views.spark([0, 4, 1]).count("M") == 2


@pytest.fixture
def loose(store: Store, ids: list[str]) -> list[int]:
    """Return the ids of three regions that have lost their class."""
    r = schema.regions
    with store.transaction() as connection:
        chosen = list(connection.scalars(select(r.c.id).where(r.c.class_id == ids[0]).order_by(r.c.id).limit(3)))
        connection.execute(update(r).where(r.c.id.in_(chosen)).values(class_id=None))
        defects = list(connection.scalars(select(r.c.defect_id).where(r.c.id.in_(chosen))))
        refresh_frame_classes(connection, defects)
    return chosen


def test_regions_without_a_class_are_ticked_and_given_to_one_and_it_is_taken_back(
    client: TestClient, store: Store, ids: list[str], loose: list[int]
) -> None:
    assert "3 without a class" in client.get("/classes").text
    page = client.get("/unassigned").text
    assert re.findall(r'name="regions" value="(\d+)"', page) == [str(region) for region in reversed(loose)]
    refused = send(client, "/unassigned", ids[0], {"regions": loose[:1], "value": "", "name": ids[1]})
    assert refused.status_code == 400 and "is taken by class" in refused.text
    assert refused.text.count(" checked>") == 1
    assert send(client, "/unassigned", ids[0], {"value": ids[1]}).status_code == 400
    done = send(client, "/unassigned", ids[0], {"regions": loose[:2], "name": "burr", "why": "as on the drawing"})
    made = class_commands.show(store, "burr")
    assert done.headers["location"] == f"/classes/{made['id']}" and made["regions"] == 2
    assert "1 without a class" in client.get("/classes").text
    undone = send(client, "/classes/undo", ids[0], {})
    assert undone.headers["location"] == f"/classes/{made['id']}" and "3 without" in client.get("/classes").text


def test_regions_without_a_class_are_given_to_one_by_api_and_from_the_page_of_their_frame(
    client: TestClient, store: Store, ids: list[str], loose: list[int]
) -> None:
    items = client.get("/api/v1/regions/unassigned").json()["items"]
    assert [item["region"] for item in items] == loose[::-1]
    page = client.get(f"/defects/{items[0]['frame']}").text
    assert f'name="regions" value="{loose[-1]}" form="chosen" checked' in page and "Give the ticked regions" in page
    body = {"regions": loose, "into": ids[1], "who": "ana"}
    answer = client.post("/api/v1/regions/assign", json=body)
    assert answer.status_code == 200 and answer.json()["regions"] == 31
    assert client.post("/api/v1/regions/assign", json=body).status_code == 400
    assert client.get("/api/v1/regions/unassigned").json()["items"] == []
    assert "Give the ticked regions" not in client.get(f"/defects/{items[0]['frame']}").text
    assert "Every region has a class" in client.get("/unassigned").text
