"""Names of parts and lots: from messages in front of a trigger, from file names, from codes in the picture."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline import imaging
from flawline.errors import FlawlineError, UsageError
from flawline.messages import Codec
from flawline.settings.parts import PartSettings
from flawline.settings.producers import CameraBase, FolderCamera
from producers.camera import Capture
from producers.folder import FolderReplay
from producers.framing import to_frame
from producers.part_codes import code_reader
from producers.part_door import PATH, open_doors
from producers.part_names import PartNames, parsed
from tests.support.mosquitto import Mosquitto, mqtt_client
from tests.support.ports import reserved_port

S_NS = 1_000_000_000
PIXELS = np.zeros((8, 8, 3), np.uint8)


def captured(at_s: float, **names: str) -> Capture:
    return Capture(round(at_s * S_NS), pixels=PIXELS, **names)


def message(**fields: Any):
    return parsed(json.dumps(fields).encode())


def names_of(capture: Capture) -> tuple[str | None, str | None, str | None]:
    return capture.part, capture.lot, capture.trigger


@pytest.fixture
def names() -> PartNames:
    return PartNames(["a", "b"], hold_s=10)


def test_a_capture_has_the_names_that_held_when_it_was_taken(names: PartNames) -> None:
    names.take(message(part="P1", lot="L1"), 100 * S_NS)
    names.take(message(part="P2"), 102 * S_NS)
    assert [names_of(names.named("a", captured(at)))[:2] for at in (99, 100, 101.9, 102)] == [
        (None, None), ("P1", "L1"), ("P1", "L1"), ("P2", "L1")
    ]  # fmt: skip


def test_a_part_is_held_for_a_while_and_a_lot_until_another_is_named(names: PartNames) -> None:
    names.take(message(part="P1", lot="L1"), 100 * S_NS)
    assert names_of(names.named("a", captured(110)))[:2] == ("P1", "L1")
    assert names_of(names.named("a", captured(110.1)))[:2] == (None, "L1")
    names.take(message(lot="L2"), 111 * S_NS)
    assert names_of(names.named("a", captured(112)))[:2] == (None, "L2"), "a lot brings no part back"
    names.take(message(lot=None), 113 * S_NS)
    assert names_of(names.named("a", captured(114))) == (None, None, None)


def test_a_message_may_say_how_many_captures_show_the_part_for_each_camera(names: PartNames) -> None:
    names.take(message(part="P1", captures=2, trigger="t1"), S_NS)
    assert [names.named("a", captured(2)).part for _ in range(3)] == ["P1", "P1", None]
    assert names_of(names.named("b", captured(2))) == ("P1", None, "t1")
    names.take(message(part="P2", captures=1), 3 * S_NS)
    assert names_of(names.named("a", captured(4))) == ("P2", None, None), "the trigger was that of the other part"
    names.take(message(lot="L9"), 5 * S_NS)
    assert names.named("a", captured(6)).part is None, "a lot does not begin the count anew"


def test_a_message_may_be_for_some_cameras_and_what_a_capture_says_itself_holds(names: PartNames) -> None:
    names.take(message(part="P1", lot="L1", cameras=["b"]), S_NS)
    assert names.named("a", captured(2)).part is None
    assert names_of(names.named("b", captured(2, part="own"))) == ("own", "L1", None)
    with pytest.raises(UsageError, match="camera 'c' is none of this producer: it has a, b"):
        names.take(message(part="P1", cameras=["a", "c"]), 3 * S_NS)
    assert names.named("a", captured(4)).part is None, "nothing of a refused message holds"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "message"), (b"[]", "message"), (b'{"part": 5}', "part"), (b'{"lot": "a\\nb"}', "lot"),
        (b'{"part": "' + b"x" * 300 + b'"}', "part"), (b'{"captures": 0}', "captures"), (b'{"cameras": []}', "cameras"),
        (b'{"serial": "x"}', "serial"), (b"\xff", "message"), (b'{"part": "\\ud800"}', "message"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_refused_in_one_line(body: bytes, where: str) -> None:
    with pytest.raises(UsageError, match=rf"^{where}: ") as caught:
        parsed(body)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    with contextlib.suppress(UsageError):
        parsed(body)


# File names


def folder(tmp_path: Path, *files: str, pattern: str = r"(?P<lot>[^/]+)/(?P<part>[^/_]+)_(?P<view>top|side)\.png"):
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(imaging.encode(PIXELS, Codec.PNG))
    return FolderCamera(name="f", kind="folder", path=tmp_path, file_names=pattern, view="back")


def test_file_names_give_part_lot_and_view_and_the_camera_the_rest(tmp_path: Path, caplog) -> None:
    camera = folder(tmp_path, "L1/P1_top.png", "L1/P2_side.png", "L2/other.png")
    with caplog.at_level(logging.WARNING):
        frames = [to_frame(capture, camera, 1, n) for n, capture in enumerate(FolderReplay(camera).frames())]
    assert [(frame.lot, frame.part, frame.view) for frame in frames] == [
        ("L1", "P1", "top"), ("L1", "P2", "side"), (None, None, "back")
    ]  # fmt: skip
    assert "does not match 1 of 3 files, such as 'L2/other.png'" in caplog.text


def test_a_pattern_that_matches_no_file_is_refused_at_the_start(tmp_path: Path) -> None:
    camera = folder(tmp_path, "P1.png")
    with pytest.raises(UsageError, match=r"file_names matches none of 1 files, such as 'P1\.png'"):
        FolderReplay(camera)


def test_a_name_that_no_message_can_hold_costs_no_frame(tmp_path: Path) -> None:
    camera = folder(tmp_path, "a\tb/" + "ü" * 120 + "/c.png", pattern=r"(?P<part>.+)\.png")
    (capture,) = FolderReplay(camera).frames()
    part = to_frame(capture, camera, 1, 0).part
    assert part is not None and part.startswith("a?b/ü") and len(part.encode()) <= 256


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("(", "regular expression"), ("x", "named groups"), ("(?P<serial>.)", "and not serial"), ("(?P<1>.)", "regular")],
)
def test_a_pattern_that_names_nothing_is_refused(tmp_path: Path, pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FolderCamera(name="f", kind="folder", path=tmp_path, file_names=pattern)


# Codes


def with_code(text: str, kind: str = "DataMatrix") -> np.ndarray:
    """Return a grey picture of 400 x 600 pixels with a code in its lower right quarter."""
    zxing = pytest.importorskip("zxingcpp")
    made = zxing.create_barcode(text, getattr(zxing.BarcodeFormat, kind))
    code = np.array(zxing.write_barcode_to_image(made))
    code = np.repeat(
        np.repeat(code.reshape(code.shape[:2]), max(1, 120 // code.shape[0]), 0), max(1, 120 // code.shape[1]), 1
    )
    picture = np.full((400, 600, 3), 200, np.uint8)
    picture[230 : 230 + code.shape[0], 350 : 350 + code.shape[1]] = code[..., None]
    return picture


CODE = CameraBase(name="c", code=(0.5, 0.5, 0.5, 0.5), code_names=r"(?P<lot>L\d+)-(?P<part>.+)")


@pytest.mark.parametrize("kind", ["DataMatrix", "QRCode"])
def test_a_code_in_the_picture_names_part_and_lot(kind: str) -> None:
    read = code_reader(CODE, 1 << 30)
    picture = with_code("L7-SN-0815", kind)
    assert names_of(read(Capture(1, pixels=picture)))[:2] == ("SN-0815", "L7")
    encoded = read(Capture(1, data=imaging.encode(picture, Codec.PNG)))
    assert (encoded.part, encoded.lot) == ("SN-0815", "L7")
    assert read(Capture(1, pixels=picture, part="own")).part == "own"


@pytest.mark.parametrize("picture", [PIXELS, np.full((300, 300, 3), 60_000, np.uint16)])
def test_a_picture_without_a_code_has_no_name(picture: np.ndarray) -> None:
    pytest.importorskip("zxingcpp")
    read = code_reader(CODE, 1 << 30)
    assert read(Capture(1, pixels=picture)).part is None
    assert read(Capture(1, data=b"no image")).part is None


def test_a_code_elsewhere_or_of_another_form_names_nothing() -> None:
    picture = with_code("L7-SN-0815")
    elsewhere = CODE.model_copy(update={"code": (0.0, 0.0, 0.5, 0.5)})
    assert code_reader(elsewhere, 1 << 30)(Capture(1, pixels=picture)).part is None
    other = CODE.model_copy(update={"code_names": r"(?P<part>\d+)"})
    assert code_reader(other, 1 << 30)(Capture(1, pixels=picture)).part is None


@pytest.mark.parametrize("code", [(0.5, 0.5, 0.6, 0.1), (0, 0, 0, 1), (0, 0, 1)])
def test_a_rectangle_outside_the_frame_is_refused(code) -> None:
    with pytest.raises(ValueError):
        CameraBase(name="c", code=code)


# HTTP


def sent(port: int, body: bytes, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def port() -> int:
    return reserved_port()


@pytest.mark.system
def test_a_message_by_http_holds_when_it_is_answered(names: PartNames, port: int) -> None:
    with open_doors(PartSettings(port=port), names, lambda: 5 * S_NS):
        assert sent(port, b'{"part": "P1", "cameras": ["a"]}') == (200, {"cameras": ["a"]})
        assert names.named("a", captured(5)).part == "P1"
        assert sent(port, b'{"part": "P1", "cameras": ["z"]}')[0] == 400
        assert sent(port, b"x" * 5000) == (413, {"error": "the message is larger than 4096 bytes"})
        assert sent(port, b'{"part": "P2"}', Origin="http://elsewhere")[0] == 403
        assert names.named("a", captured(6)).part == "P1"
    with pytest.raises(urllib.error.URLError):
        sent(port, b"{}")


@pytest.mark.system
def test_with_a_token_only_those_who_have_it_name_parts(names: PartNames, port: int) -> None:
    with open_doors(PartSettings(port=port, token="a-word-of-the-plant"), names, lambda: 5 * S_NS):
        assert sent(port, b'{"part": "P1"}')[0] == 401
        assert sent(port, b'{"part": "P1"}', Authorization="Bearer wrong")[0] == 401
        assert sent(port, b'{"part": "P1"}', Authorization="Bearer a-word-of-the-plant")[0] == 200


@pytest.mark.system
def test_doors_that_cannot_be_opened_are_told_in_one_line(names: PartNames, port: int) -> None:
    with pytest.raises(UsageError, match=r"parts\.host 0\.0\.0\.0: others could name parts: set parts\.token"):
        open_doors(PartSettings(port=port, host="0.0.0.0"), names)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(FlawlineError, match=r"parts\.port .* cannot be used"),
    ):
        open_doors(PartSettings(port=port), names)
    with pytest.raises(ValueError, match="mqtt://HOST:PORT"):
        PartSettings(mqtt_url="http://x")


# MQTT


class TellingNames(PartNames):
    """Puts each message that it takes into a queue."""

    def __init__(self) -> None:
        super().__init__(["a"], 10)
        self.taken: queue.Queue[Any] = queue.Queue()

    def take(self, message: Any, now_ns: int) -> list[str]:
        cameras = super().take(message, now_ns)
        self.taken.put(message)
        return cameras


@pytest.mark.system
def test_messages_come_by_mqtt_also_after_the_broker_was_away_and_a_retained_part_is_old(mosquitto: Mosquitto) -> None:
    names = TellingNames()
    settings = PartSettings(mqtt_url=f"mqtt://127.0.0.1:{mosquitto.port}", mqtt_topic="plant/+/parts")
    with open_doors(settings, names, lambda: 5 * S_NS):  # the broker is not there yet
        mosquitto.start()
        with mqtt_client(mosquitto.port) as client:
            # Subscriptions cannot be seen, so the first message is retained: it comes whenever the producer does.
            client.publish("plant/line-1/parts", b'{"part": "old", "lot": "L1"}', qos=1, retain=True).wait_for_publish(
                30
            )
            assert names.taken.get(timeout=30).lot == "L1"
            client.publish("plant/line-1/parts", b"nonsense", qos=1)
            client.publish("plant/line-1/parts", b'{"part": "P1"}', qos=1)
            while names.taken.get(timeout=30).part != "P1":
                pass
        capture = names.named("a", captured(6))
        assert (capture.part, capture.lot) == ("P1", "L1")


@pytest.mark.system
def test_a_retained_message_names_its_lot_and_no_part(mosquitto: Mosquitto) -> None:
    mosquitto.start()
    with mqtt_client(mosquitto.port) as client:
        client.publish("flawline/parts", b'{"part": "P0", "lot": "L5"}', qos=1, retain=True).wait_for_publish(30)
        names = TellingNames()
        with open_doors(PartSettings(mqtt_url=f"mqtt://127.0.0.1:{mosquitto.port}"), names, lambda: 5 * S_NS):
            names.taken.get(timeout=30)
            assert names_of(names.named("a", captured(6))) == (None, "L5", None)
