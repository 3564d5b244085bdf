"""The live page: a tile for every camera, dead ones too, with the picture of the verdict that matters."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from discovery.store.store import Batch, Store, TakenDefect
from embedded_broker import EmbeddedBroker
from flawline import imaging, kafka_clients, messages
from flawline.messages import Codec, Decision, Frame, Region
from flawline.object_store import object_store
from flawline.settings.tree import Settings
from station.pages import heat
from station.pages.rendering import STYLE_SHEET
from station.web import camera_states, live
from station.web.accounts import Accounts, Role
from station.web.camera_states import Kind, camera_state
from station.web.context import Context
from station.web.ledger_watch import LedgerWatch
from station.web.live import LiveVerdict, LiveWatch, Picture, Pictures
from station.web.routes import live as routes
from tests.discovery import factories
from tests.station.web.conftest import browser
from tests.support.talking_line import TalkingLine

S = 1_000_000_000
NOW = 1_000 * S
LIMIT = 1 << 30


@pytest.mark.parametrize(
    ("last_s", "facts", "kind", "words"),
    [
        (995, {"is_up": True}, Kind.LIVE, ""),
        (989, {"is_up": True}, Kind.SILENT, "no frame since {since}: connected, delivers nothing"),
        (989, {"rate_hz": 0.2}, Kind.LIVE, ""),
        (970, {"rate_hz": 0.2}, Kind.SILENT, "no frame since {since}: silent"),
        (900, {"is_up": False}, Kind.AWAY, "no frame since {since}: does not answer"),
        (900, {"in_flight": 1_200}, Kind.WAITING, "no verdict since {since}: 1,200 frames wait for the workers"),
        (900, {"is_up": False, "in_flight": 3}, Kind.AWAY, "no frame since {since}: does not answer"),
        (None, {}, Kind.NEVER, "no frame yet: never seen"),
        (None, {"is_up": False}, Kind.AWAY, "no frame yet: does not answer"),
        (None, {"in_flight": 2}, Kind.WAITING, "no verdict yet: 2 frames wait for the workers"),
        (None, {"is_up": True}, Kind.SILENT, "no frame yet: connected, delivers nothing"),
    ],
)
def test_state_of_a_camera_is_told_in_words(last_s: int | None, facts: dict[str, Any], kind: Kind, words: str) -> None:
    last_ns = last_s * S if last_s else None
    asked: dict[str, Any] = {"rate_hz": None, "is_up": None, "in_flight": 0} | facts
    state = camera_state(last_ns, NOW, **asked)
    assert (state.kind, state.words) == (kind, words)


def verdict(serial: int, decision: Decision = Decision.ACCEPT) -> LiveVerdict:
    return LiveVerdict(f"cam:1:{serial}", "cam", NOW, NOW, decision, 0.0, (), serial=serial)


def test_verdict_that_is_no_acceptance_stands_in_the_tile() -> None:
    accept, review, last = verdict(1), verdict(2, Decision.REVIEW), verdict(3)
    assert live.most_important([accept, review, last]) is review
    assert live.most_important([accept, last]) is last


def test_pictures_are_kept_up_to_a_limit_in_bytes() -> None:
    pictures = Pictures(limit_bytes=100)
    for n in range(10):
        pictures.add(Picture(f"cam:1:{n}", b"x" * 40, 4, 4))
        pictures.add(Picture(f"cam:1:{n}", b"x" * 40, 4, 4))
    assert [n for n in range(10) if pictures.get(f"cam:1:{n}")] == [8, 9]


def frame_of(pixels: np.ndarray, codec: Codec, sequence: int = 0, camera: str = "cam", at: int = NOW) -> Frame:
    data = pixels.tobytes() if codec is Codec.RAW else imaging.encode(pixels, codec)
    return Frame(
        camera=camera,
        epoch=1,
        sequence=sequence,
        captured_at=at,
        codec=codec,
        height=pixels.shape[0],
        width=pixels.shape[1],
        channels=3,
        data=data,
        checksum=messages.checksum(data),
        size_bytes=len(data),
    )


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)


@pytest.mark.parametrize("codec", Codec)
def test_picture_is_a_jpeg_that_fits_the_page_whatever_the_camera_sends(codec: Codec) -> None:
    frame = frame_of(picture(300, 3 * live.PICTURE_SIDE_PX), codec)
    shown = live.picture_of(frame, frame.data, LIMIT)
    assert (shown.height, shown.width) == (300, 3 * live.PICTURE_SIDE_PX)
    assert imaging.decode(shown.jpeg, Codec.JPEG).shape == (100, live.PICTURE_SIDE_PX, 3)


def test_small_jpeg_is_shown_as_it_was_captured() -> None:
    frame = frame_of(picture(60, 80), Codec.JPEG)
    assert live.picture_of(frame, frame.data, LIMIT).jpeg == frame.data


def test_frame_that_takes_too_much_memory_is_not_decoded() -> None:
    frame = frame_of(picture(60, 80), Codec.PNG)
    with pytest.raises(imaging.ImageError):
        live.picture_of(frame, frame.data, 1_000)
    with pytest.raises(imaging.ImageError):
        live.picture_of(frame, b"no image", LIMIT)


def test_layer_is_transparent_where_a_part_is_normal() -> None:
    layer = heat.heat_layer(np.array([[-1.0, 0.0, 0.5, 9.0]]))
    assert layer[0, :, 3].tolist() == [0, 0, 128, 204]
    assert np.array_equal(layer[..., :3], heat.heat_colours(np.array([[-1.0, 0.0, 0.5, 9.0]])))


# The page


CAMERAS: list[dict[str, Any]] = [
    {"name": "cam", "kind": "simulated", "rate_hz": 1.0},
    {"name": "dead", "kind": "rtsp", "url": "rtsp://10.0.0.9/s"},
]


@pytest.fixture
def with_cameras(settings: Settings) -> Settings:
    return Settings(**settings.model_dump() | {"cameras": CAMERAS})


def test_every_configured_camera_is_a_tile_before_any_frame_has_come(
    with_cameras: Settings, store: Store, watch: LedgerWatch, accounts: Accounts
) -> None:
    following = LiveWatch(with_cameras)
    client = browser(with_cameras, store, watch, accounts, live=following)
    state = client.get("/api/live").json()
    assert [(tile["kind"], tile["words"]) for tile in state["tiles"]] == [("waiting", live.READING)] * 2
    following.problem = None
    page = client.get("/").text
    assert re.findall(r'data-camera="(\w+)" data-kind="(\w+)"', page) == [("cam", "never"), ("dead", "never")]
    assert page.count("no frame yet: never seen") >= 2
    state = client.get("/api/live").json()
    assert [tile["words"] for tile in state["tiles"]] == ["no frame yet: never seen"] * 2


def test_camera_that_does_not_answer_is_told_so(
    with_cameras: Settings,
    store: Store,
    watch: LedgerWatch,
    accounts: Accounts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (
        '# TYPE flawline_camera_up gauge\nflawline_camera_up{camera="dead"} 0.0\nflawline_camera_up{camera="cam"} 1.0\n'
    )
    monkeypatch.setattr(camera_states, "metrics_text", lambda host, port, timeout_s: text)
    following = LiveWatch(with_cameras)
    following.cameras_up = camera_states.cameras_up(with_cameras)
    state = browser(with_cameras, store, watch, accounts, live=following).get("/api/live").json()
    assert [tile["kind"] for tile in state["tiles"]] == ["silent", "away"]


def test_page_says_why_there_are_no_verdicts(
    with_cameras: Settings, store: Store, watch: LedgerWatch, accounts: Accounts
) -> None:
    following = LiveWatch(with_cameras)
    following.problem = "broker <b>127.0.0.1:1</b> does not answer"
    page = browser(with_cameras, store, watch, accounts, live=following).get("/").text
    assert "broker &lt;b&gt;127.0.0.1:1&lt;/b&gt; does not answer</span>" in page


def test_page_needs_no_store(with_cameras: Settings, store: Store, watch: LedgerWatch, accounts: Accounts) -> None:
    with store.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE verdict_minutes")
    assert browser(with_cameras, store, watch, accounts).get("/").status_code == 200


def test_heat_map_is_laid_over_the_picture_when_the_store_has_it(client: TestClient) -> None:
    assert client.get("/defects/cam-1:1:55/layer.png").headers["content-type"] == "image/png"
    assert client.get("/defects/cam-1:1:999/layer.png").status_code == 404
    assert client.get("/live/cam-1:1:999.jpg").status_code == 404


def test_names_of_cameras_cannot_leave_their_attribute(
    with_cameras: Settings, store: Store, watch: LedgerWatch, accounts: Accounts
) -> None:
    following = LiveWatch(with_cameras)
    evil = "\"><script>alert('x')</script>"
    following._strips[evil] = live.deque([replace(verdict(1), camera=evil)])
    page = browser(with_cameras, store, watch, accounts, live=following).get("/").text
    assert "<script>alert" not in page and "alert(" in page


@pytest.mark.parametrize("page", ["/", "/classes", "/defects", "/ledger", "/defects/cam-1:1:55"])
def test_theme_that_a_person_has_chosen_is_in_the_page_from_the_start(client: TestClient, page: str) -> None:
    assert '<html lang="en">' in client.get(page).text
    client.cookies.set("flawline_theme", "dark")
    assert '<html lang="en" data-theme="dark">' in client.get(page).text
    client.cookies.set("flawline_theme", "x")
    assert '<html lang="en">' in client.get(page).text


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour: str, other: str) -> float:
    low, high = sorted((luminance(colour), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_decisions_are_told_apart_in_grey_too_and_words_can_be_read(theme: int) -> None:
    text = STYLE_SHEET.read_text(encoding="utf-8")
    colours = {name: pair[theme] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", text)}
    colours |= dict(re.findall(r"--([\w-]+): (#\w{6})", text))
    assert contrast(colours["accept"], colours["reject"]) >= 3
    for decision in ("accept", "review", "reject", "odd"):
        assert contrast(colours[decision], colours["card"]) >= 3, decision
    for ink, back in (
        ("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"), ("good", "card"), ("bad", "card"),
        ("ink", "accept-quiet"), ("review-ink", "review"), ("reject-ink", "reject"), ("odd-ink", "odd"),
    ):  # fmt: skip
        assert contrast(colours[ink], colours[back]) >= 4.5, (ink, back)


# The topics


@pytest.fixture
def running(with_cameras: Settings, embedded_broker: EmbeddedBroker, tmp_path: Path) -> Settings:
    """Return the settings of a line with a broker and an object store."""
    kafka = {"bootstrap_servers": embedded_broker.bootstrap, "topic_prefix": f"t{time.time_ns()}-"}
    frames = {"objects_url": f"file://{tmp_path / 'objects'}"}
    settings = Settings(
        **with_cameras.model_dump() | {"kafka": kafka, "frames": frames, "metrics": {"producers_port": 0}}
    )
    kafka_clients.ensure_topics(settings)
    return settings


@pytest.fixture
def line(running: Settings) -> Iterator[TalkingLine]:
    talking = TalkingLine(running)
    yield talking
    talking.close()


@pytest.fixture
def following(running: Settings) -> Iterator[LiveWatch]:
    watch = LiveWatch(running)
    yield watch
    watch.close()


def say(line: TalkingLine, frame: Frame, decision: Decision, *, with_frame: bool = True) -> None:
    offset = line.say("frames", frame, partition=2).offset if with_frame else 0
    boxes = () if decision is Decision.ACCEPT else (Region((10, 20, 30, 40), 100, 1.0),)
    decided = replace(
        factories.verdict(frame.sequence, frame.camera, decision, frame.captured_at), regions=boxes, epoch=frame.epoch
    )
    headers = [*messages.headers(decided), (messages.FRAME_OFFSET, str(offset).encode())]
    line.say("verdicts", decided, partition=2, headers=headers)


def poll_until(watch: LiveWatch, done: Any) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, (watch.problem, watch.cameras)
        time.sleep(min(watch.poll(), 0.5))


@pytest.mark.system
@pytest.mark.parametrize("place", ["topic", "object store"])
def test_tile_shows_the_frame_of_its_verdict(
    place: str,
    running: Settings,
    line: TalkingLine,
    following: LiveWatch,
    store: Store,
    watch: LedgerWatch,
    accounts: Accounts,
) -> None:
    frame = frame_of(picture(60, 80), Codec.JPEG, at=time.time_ns())
    original = frame.data
    if place == "object store":
        objects = object_store(running)
        assert objects is not None
        objects.create()
        frame = replace(frame, object_key=objects.put(original), data=b"")
    say(line, frame, Decision.REJECT)
    poll_until(following, lambda: following.shown("cam"))
    client = browser(running, store, watch, accounts, live=following)
    tile = client.get("/api/live").json()["tiles"][0]
    assert (tile["kind"], tile["shown"]["decision"], tile["shown"]["size"]) == ("live", "reject", [80, 60])
    assert tile["shown"]["boxes"] == [[10, 20, 30, 40]] and len(tile["strip"]) == 1
    assert client.get(f"/live/{frame.frame_id}.jpg").content == original
    assert client.get("/").text.count('data-shape="tall"') == 1


@pytest.mark.system
def test_verdict_whose_frame_is_gone_is_shown_without_a_picture(line: TalkingLine, following: LiveWatch) -> None:
    say(line, frame_of(picture(60, 80), Codec.JPEG, at=time.time_ns()), Decision.REVIEW, with_frame=False)
    poll_until(following, lambda: following.shown("cam"))
    shown = following.shown("cam")
    assert shown is not None and shown.decision is Decision.REVIEW and following.pictures.get(shown.frame_id) is None


@pytest.mark.system
def test_reject_between_two_pictures_is_not_passed_over(line: TalkingLine, following: LiveWatch) -> None:
    say(line, frame_of(picture(60, 80), Codec.JPEG, 0, at=time.time_ns()), Decision.ACCEPT)
    poll_until(following, lambda: following.shown("cam"))
    for n, decision in enumerate([Decision.REJECT, Decision.ACCEPT, Decision.ACCEPT], start=1):
        say(line, frame_of(picture(60, 80), Codec.JPEG, n, at=time.time_ns()), decision)
    poll_until(following, lambda: following.shown("cam").decision is Decision.REJECT)  # type: ignore[union-attr]
    say(line, frame_of(picture(60, 80), Codec.JPEG, 4, at=time.time_ns()), Decision.ACCEPT)
    poll_until(following, lambda: following.shown("cam").decision is Decision.ACCEPT)  # type: ignore[union-attr]
    assert [verdict.frame_id for verdict in following.strip("cam")] == [f"cam:1:{n}" for n in range(5)]


@pytest.mark.system
def test_line_without_topics_is_waited_for_in_silence(
    settings: Settings, embedded_broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "kafka")  # as the role does: on a busy machine the client warns of itself
    kafka = {"bootstrap_servers": embedded_broker.bootstrap, "topic_prefix": f"t{time.time_ns()}-"}
    following = LiveWatch(Settings(**settings.model_dump() | {"kafka": kafka}))
    assert following.poll() > 0
    assert following.problem == "no verdict yet: no worker has started" and not caplog.records
    following.close()


@pytest.mark.system
def test_broker_that_is_away_is_a_problem_in_words(settings: Settings) -> None:
    following = LiveWatch(settings)
    assert following.poll() > 0
    assert following.problem is not None and len(following.problem.splitlines()) == 1


# Server-sent events


def events_of(context: Context, count: int, cookies: str = "") -> list[str]:
    """Return the first events, fewer when the stream ends before."""

    async def read() -> list[str]:
        headers = [(b"cookie", cookies.encode())]
        scope = {
            "type": "http",
            "scheme": "http",
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": headers,
        }
        told = []
        async for event in routes._events(Request(scope), context):
            told.append(event)
            if len(told) == count:
                break
        return told

    return asyncio.run(asyncio.wait_for(read(), 60))


def test_event_holds_what_is_new_and_a_quiet_line_gives_signs_of_life(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "STEP_S", 0.01)
    monkeypatch.setattr(routes, "CHECK_S", 0.05)
    context: Context = client.app.state.context  # type: ignore[attr-defined]
    context.live._strips["cam"] = live.deque([verdict(1), verdict(2, Decision.REJECT)])
    first, second = events_of(context, 2)
    state = json.loads(first.removeprefix("data: "))
    assert [entry[0] for entry in state["tiles"][0]["strip"]] == ["accept", "reject"] and state["serial"] == 2
    assert second.startswith(": ")


def test_events_end_with_the_session(client: TestClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "STEP_S", 0.01)
    monkeypatch.setattr(routes, "CHECK_S", 0.05)
    accounts.add("wall", Role.VIEW, None)
    context: Context = client.app.state.context  # type: ignore[attr-defined]
    assert len(events_of(context, 100, "flawline_session=ended")) < 100


def test_store_of_a_live_line_gives_the_layer(client: TestClient, store: Store) -> None:
    defect = factories.defect(700, factories.directions(1)[0])
    store.ingest(Batch(defects=[TakenDefect(defect, (None,))]))
    assert client.get(f"/defects/{defect.frame_id}/layer.png").status_code == 200
