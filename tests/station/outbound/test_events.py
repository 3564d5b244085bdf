"""Events have the names and forms of the interface, ids that stay, and topics that no name can break."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.shifts import NO_SHIFTS, Calendar
from flawline.messages import ClassEvent, ClassState, Decision, Region, Scene, Transition
from flawline.settings.shifts import ShiftSettings
from station.outbound import events, topic_names
from station.outbound.events import Event, SeenCamera
from station.web.api import shapes, told
from station.web.camera_states import CameraState, Kind
from tests.discovery import factories

REJECTED = replace(
    factories.verdict(7, decision=Decision.REJECT),
    regions=(Region((1, 2, 3, 4), 12, 5.5),),
    part="P1",
    lot="L7",
    scene=Scene.CAMERA_CHANGED,
)
SPLIT = ClassEvent("D-0007:12:split", "D-0007", Transition.SPLIT, factories.START_NS, 4, ClassState.CONFIRMED, 12,
                   name="scratch", parents=("D-0003",), who="ana", why="as on the drawing")  # fmt: skip


SHAPES = {"verdict": told.VerdictEvent, "class": told.ClassChangeEvent, "camera": told.CameraEvent}


def content(event: Event) -> dict:
    """Return what a receiver gets, which has the shape that the interface describes."""
    body = event.body("line-1")
    SHAPES[event.kind].model_validate_json(body)
    return json.loads(body)


def test_a_verdict_has_the_names_and_forms_that_the_interface_has_for_a_defect() -> None:
    calendar = Calendar([ShiftSettings(name="all day", begin="00:00", end="00:00")])
    event = content(events.of_verdict(REJECTED, "line-1", calendar))
    data = event["data"]
    regions = [shapes.Region(region=1, class_id=None, class_name=None, crop="", **region) for region in data["regions"]]
    new = {"decided_at", "view", "scene"}
    rest = {"group_name": None, "class_id": None, "class_name": None, "heat_map": "", "regions": regions}
    shown = shapes.Defect(**{name: value for name, value in data.items() if name not in new} | rest)
    assert (shown.frame, shown.decision, shown.lot, shown.shift) == ("cam-1:1:7", "reject", "L7", "all day")
    assert data["scene"] == "camera-changed"
    assert data["captured_at"] == "2023-11-14T22:14:07+00:00"
    assert (event["type"], event["line"], event["timestamp"]) == ("verdict", "line-1", data["decided_at"])


def test_a_change_of_a_class_has_the_names_that_the_interface_has_for_classes_and_their_events() -> None:
    data = content(events.of_class(SPLIT, "line-1"))["data"]
    assert data.keys() >= {"transition", "at", "round", "who", "why", "selected"}
    whole = {"frames": 0, "born_at": data["at"], "last_seen_at": data["at"], "confirmed_at": None}
    names = shapes.DefectClass.model_fields.keys() - whole.keys()
    assert shapes.DefectClass(**{name: data[name] for name in names}, **whole).regions == 12
    assert data["parents"] == ["D-0003"]


def test_a_camera_has_the_names_that_the_interface_has_for_its_tile() -> None:
    state = CameraState(Kind.AWAY, "no frame since {since}: does not answer")
    data = content(events.of_camera("top", SeenCamera(state, factories.START_NS), "line-1", factories.START_NS))["data"]
    assert shapes.Camera(**data, shown=None, strip=[]).kind == "away"


def test_an_id_stays_and_differs_by_line_kind_and_identity() -> None:
    ids = {
        events.of_verdict(REJECTED, "line-1", NO_SHIFTS).id,
        events.of_verdict(REJECTED, "line-2", NO_SHIFTS).id,
        events.of_verdict(replace(REJECTED, sequence=8), "line-1", NO_SHIFTS).id,
        events.of_class(SPLIT, "line-1").id,
        events.of_class(replace(SPLIT, event_id="D-0007:13:grew"), "line-1").id,
    }
    assert len(ids) == 5
    again = replace(REJECTED, decided_at=REJECTED.decided_at + 1)  # of another worker
    assert events.of_verdict(again, "line-1", NO_SHIFTS).id == events.of_verdict(REJECTED, "line-1", NO_SHIFTS).id


@pytest.mark.parametrize("score", [float("inf"), float("nan")])
def test_a_number_that_json_does_not_know_is_null(score: float) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    body = events.of_verdict(replace(REJECTED, score=score), "line-1", NO_SHIFTS).body("line-1")
    assert json.loads(body, parse_constant=refuse)["data"]["score"] is None


# Topics


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("station-3.top", "station-3.top"),
        ("a/b", "a%2Fb"),
        ("+", "%2B"),
        ("#", "%23"),
        ("a\0b", "a%00b"),
        ("100%", "100%25"),
        ("größe 1", "größe 1"),
        ("\u202eevil", "%E2%80%AEevil"),
        ("", "%"),
    ],
)
def test_a_name_is_one_level_of_a_topic(name: str, level: str) -> None:
    assert topic_names.level(name) == level


@given(st.text())
def test_no_name_breaks_a_topic_and_none_is_that_of_another(name: str) -> None:
    level = topic_names.level(name)
    assert level and level.isprintable() and not set(level) & set("/+#")
    level.encode()
    assert name == "" or unquote_to_bytes(level.encode()) == name.encode(errors="surrogatepass")


def test_topics_of_a_line() -> None:
    verdict, change = events.of_verdict(REJECTED, "l", NO_SHIFTS), events.of_class(SPLIT, "l")
    camera = events.of_camera("a/+", SeenCamera(CameraState(Kind.LIVE, "")), "l", 1)
    assert topic_names.of_event("plant/qa", "l", verdict) == "plant/qa/l/camera/cam-1/verdict"
    assert topic_names.of_event("flawline", "l", change) == "flawline/l/class/D-0007"
    assert topic_names.of_event("flawline", "l", camera) == "flawline/l/camera/a%2F%2B/state"
    assert topic_names.of_role("flawline", "l") == "flawline/l/state"
