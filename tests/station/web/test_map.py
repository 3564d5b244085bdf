"""The map of regions: where they lie, and that what is encircled becomes a class of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from discovery.store import class_commands
from discovery.store.store import Store
from flawline.messages import Transition
from flawline.settings.tree import Settings
from station.web.accounts import Accounts
from station.web.ledger_watch import LedgerWatch
from station.web.region_map import SIDE, RegionMaps, projected
from tests.discovery import factories
from tests.station.web.conftest import served
from tests.support import chromium


@pytest.fixture
def ids(store: Store) -> list[str]:
    return [row["id"] for row in class_commands.list_classes(store)]


def test_map_has_every_region_with_its_class_of_now(store: Store, ids: list[str]) -> None:
    maps = RegionMaps()
    content = maps.content(store)
    assert len(content["ids"]) == len(set(content["ids"])) == 56
    assert Counter(content["of"]) == {0: 28, 1: 28}
    assert {row["id"] for row in content["classes"]} == set(ids)
    child = class_commands.split(store, ids[0], regions=members(content, ids[0])[:3], alike=False)["id"]
    later = maps.content(store)
    assert (later["ids"], later["x"], later["y"]) == (content["ids"], content["x"], content["y"])
    assert members(later, child) == members(content, ids[0])[:3]
    assert maps.content(store, ids[1])["ids"] == members(content, ids[1])


def members(content: dict, class_id: str) -> list[int]:
    place = [row["id"] for row in content["classes"]].index(class_id)
    return [number for number, owner in zip(content["ids"], content["of"], strict=True) if owner == place]


@pytest.mark.parametrize("kinds", [1, 2, 4])
def test_kinds_lie_apart_on_the_plane_whatever_their_product_and_always_at_the_same_place(kinds: int) -> None:
    rng = np.random.default_rng(0)
    axes = factories.directions(8)
    owners, groups = np.arange(400) % kinds, np.arange(400) // kinds % 2
    products = 1.5 * axes[[6, 7]][groups]
    vectors = np.stack([factories.near(axes[kind], rng, 0.3) for kind in owners]) + products
    points = projected(vectors.astype(np.float32), groups, owners)
    assert points.min() >= 0 and points.max() <= SIDE
    assert (projected(vectors.astype(np.float32), groups, owners) == points).all()
    if kinds == 4:  # with fewer, the mean of a product is that of all, and products lie apart, too
        middles = np.stack([points[owners == kind].mean(axis=0) for kind in range(kinds)])
        nearest = ((points[:, None] - middles[None]) ** 2).sum(axis=2).argmin(axis=1)
        assert (nearest == owners).mean() > 0.9


def test_map_of_an_empty_store_and_of_one_region_is_no_error(tmp_path: Path) -> None:
    opened = Store(f"sqlite:///{tmp_path / 'empty.db'}")
    assert RegionMaps().content(opened)["ids"] == []
    opened.close()
    vector = factories.directions(1)
    assert projected(vector, np.zeros(1, int), np.array([-1])).shape == (1, 2)
    assert projected(np.repeat(vector, 9, axis=0), np.zeros(9, int), np.full(9, -1)).shape == (9, 2)


def test_map_of_an_unknown_class_is_404(client: TestClient) -> None:
    assert client.get("/map?class=D-9").status_code == client.get("/api/map?class=D-9").status_code == 404
    assert client.get("/map?class=").status_code == client.get("/api/map").status_code == 200


@pytest.fixture
def address(settings: Settings, store: Store, watch: LedgerWatch, accounts: Accounts) -> Iterator[str]:
    """Serve the console for a browser."""
    with served(settings, store, watch, accounts) as url:
        yield url


def drag(page: chromium.Page, corners: list[tuple[float, float]]) -> None:
    """Draw a line through points of the window with the pointer held down."""
    for number, (x, y) in enumerate([*corners, corners[-1]]):
        kind = "mousePressed" if not number else "mouseReleased" if number == len(corners) else "mouseMoved"
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


@pytest.mark.system
@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="install chromium to run this")
def test_regions_that_a_person_encircles_become_a_class_that_survives_a_reload_and_is_told(
    address: str, store: Store, ids: list[str], tmp_path: Path
) -> None:
    content = RegionMaps().content(store, ids[0])
    low = np.quantile(content["x"], 0.5)
    expected = {number for number, x in zip(content["ids"], content["x"], strict=True) if x < low}
    with chromium.Page(tmp_path / "browser") as page:
        page.open(f"{address}/map?class={ids[0]}")
        page.wait_for("document.getElementById('desk').dataset.ready === 'yes'")
        box = page.evaluate(
            "(({left, top, width, height}) => [left, top, width, height])"
            "(document.getElementById('map').getBoundingClientRect())"
        )
        left, top, width, height = box
        edge = left + low / SIDE * width - 0.5
        first, last = top + 8, top + height - 8  # within the rounded corners
        drag(page, [(left + 8, first), (edge, first), (edge, last), (left + 8, last)])
        page.wait_for("document.getElementById('chosen').textContent", lambda text: text.startswith("14 chosen"))
        page.evaluate("document.querySelector('#split [name=name]').value = 'lower half'")
        page.evaluate("document.querySelector('#split [name=who]').value = 'ana'")
        page.follow("document.getElementById('only').click()")
        assert page.evaluate("document.querySelector('h1').textContent") == "lower half"
        child = page.evaluate("location.pathname").rpartition("/")[2]
        page.open(f"{address}/map")  # it survives a reload
        page.wait_for("document.getElementById('desk').dataset.ready === 'yes'")
        assert "lower half · 14" in page.evaluate("document.getElementById('key').textContent")
        page.open(f"{address}/classes/{ids[0]}")
        page.evaluate("document.querySelectorAll('.picks input')[0].click()")
        assert page.evaluate("document.querySelector('[data-count]').textContent") == "1 member chosen"
        page.evaluate("document.querySelector('#chosen [name=who]').value = 'ana'")
        page.follow("document.querySelector('#chosen [value=only]').click()")
        assert page.evaluate("document.querySelectorAll('.picks input').length") == 1
        assert page.errors == []
    content = RegionMaps().content(store)
    assert set(members(content, child)) == expected
    told = [(event.class_id, event.transition, event.parents, event.selected, event.who) for _, event in store.outbox()]
    assert (child, Transition.BORN, (ids[0],), 14, "ana") in told
    assert class_commands.show(store, child)["name"] == "lower half"
