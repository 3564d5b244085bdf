"""Frames that nobody may send: each is a dead letter that says why, in bounded time, and the cameras go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from flawline import imaging, messages
from flawline.messages import DeadLetter, DeadLetterReason, Frame, Verdict
from tests.support.brokers import RunningBroker
from tests.support.hostile_images import WORST
from tests.workers.conftest import either_broker
from tests.workers.line import EPOCH, Feeder, committed, feeding, frame, inspecting, line_settings, read, wait_until

__all__ = ["either_broker"]

RECORDS = json.loads((Path(__file__).parents[1] / "flawline" / "records_of_version_1.json").read_text())


def _fields(**changes: Any) -> Callable[[Feeder], None]:
    """Return what sends a frame of camera cam-0 with fields that no producer sends."""

    def send(feeder: Feeder) -> None:
        content = msgpack.unpackb(messages.encode(frame("cam-0", 500)))
        feeder.send_bytes("cam-0", msgpack.packb(content | changes))

    return send


def _record(name: str, version: int | None = None, **extra: Any) -> Callable[[Feeder], None]:
    """Return what sends a record of before, with `extra` fields, under another version."""

    def send(feeder: Feeder) -> None:
        content = msgpack.unpackb(bytes.fromhex(RECORDS[name]["value"]))
        content |= {"sequence": 600} | extra | ({"v": version} if version else {})
        feeder.send_bytes("cam-0", msgpack.packb(content))

    return send


REFUSED: dict[str, tuple[DeadLetterReason, str, Callable[[Feeder], None]]] = {
    "a megabyte as the part": (DeadLetterReason.UNDECODABLE, "part has 1048576 bytes", _fields(part="p" * (1 << 20))),
    "a control character": (DeadLetterReason.UNDECODABLE, "lot holds the control", _fields(lot="7\n8")),
    "a camera that is a path": (DeadLetterReason.UNDECODABLE, "no camera name", _fields(camera="..")),
    "a time after every clock": (DeadLetterReason.UNDECODABLE, "captured_at", _fields(captured_at=(1 << 64) - 1)),
    "a time before every clock": (DeadLetterReason.UNDECODABLE, "captured_at", _fields(captured_at=-1)),
    "a sequence that no camera reaches": (DeadLetterReason.UNDECODABLE, "sequence", _fields(sequence=1 << 60)),
    "an object that is a path": (
        DeadLetterReason.UNDECODABLE,
        "no object key",
        _fields(data=b"", object_key="../../../../etc/passwd"),
    ),
    "a newer version": (DeadLetterReason.WRONG_SCHEMA, "frame/2", _record("a frame that can be scored", version=2)),
}
"""What is sent, with the reason and the words of its dead letter."""


def test_text_and_numbers_beyond_their_limits_are_dead_letters_and_the_cameras_go_on(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings):
        for sequence, (_, _, send) in enumerate(REFUSED.values()):
            feeder.send(frame("cam-0", sequence), frame("cam-1", sequence))
            send(feeder)
        feeder.flush()
        wait_until(lambda: [committed(settings, i) for i in (0, 1)] == [2 * len(REFUSED), len(REFUSED)])
        verdicts = read(settings, "verdicts", Verdict, 2 * len(REFUSED))
        letters = read(settings, "dead-letters", DeadLetter, 1)
    assert len(verdicts) == 2 * len(REFUSED)
    assert [letter.reason for letter in letters] == [reason for reason, _, _ in REFUSED.values()]
    for letter, (_, words, _) in zip(letters, REFUSED.values(), strict=True):
        assert words in letter.error


@pytest.mark.parametrize("image", WORST)
def test_an_image_that_costs_too_much_is_a_dead_letter_and_the_cameras_go_on(
    either_broker: RunningBroker, tmp_path: Path, image: str
) -> None:
    data = WORST[image]()
    header = imaging.probe(data)
    hostile = frame(
        "cam-0",
        1,
        data=data,
        codec=header.codec,
        height=header.height,
        width=header.width,
        size_bytes=len(data),
        checksum=messages.checksum(data),
    )
    settings = line_settings(either_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings) as inspector:
        feeder.send(frame("cam-0", 0), hostile, frame("cam-0", 2), frame("cam-1", 0))
        feeder.flush()
        verdicts = read(settings, "verdicts", Verdict, 3)
        (letter,) = read(settings, "dead-letters", DeadLetter, 1)
        wait_until(lambda: [committed(settings, i) for i in (0, 1)] == [3, 1])
        wait_until(lambda: inspector._decoded.held_bytes == 0)
    assert {verdict.frame_id for verdict in verdicts} == {f"cam-0:{EPOCH}:0", f"cam-0:{EPOCH}:2", f"cam-1:{EPOCH}:0"}
    assert letter.frame_id == hostile.frame_id
    assert letter.reason in (DeadLetterReason.OVERSIZE, DeadLetterReason.UNDECODABLE)


def test_a_record_with_a_key_and_headers_of_any_size_is_a_letter_too(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings):
        headers = [("n" * 5_000, b"x"), ("a", b"x" * 4_000_000), ("frame-id", b"\xff" * 100_000)]
        feeder._producer.send(settings.topic("frames"), key=b"k" * 4_000_000, value=b"v", headers=headers, partition=0)
        feeder.send(frame("cam-0", 0))
        feeder.flush()
        (verdict,) = read(settings, "verdicts", Verdict, 1)
        (letter,) = read(settings, "dead-letters", DeadLetter, 1)
        wait_until(lambda: committed(settings, 0) == 2)
    assert verdict.sequence == 0
    assert (letter.value, letter.reason) == (b"v", DeadLetterReason.UNDECODABLE)


class Latin(str):
    """A name that the client sends in another encoding, as some clients do."""

    def encode(self, *_: Any) -> bytes:
        return b"gr\xf6\xdfe"


def test_a_record_with_a_header_name_that_is_no_text_is_scored_like_any_other(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings):
        sent = frame("cam-0", 0)
        names = [*messages.headers(sent), (Latin("size"), b"\xff"), ("grün", b"")]
        feeder.send_bytes("cam-0", messages.encode(sent), names)
        feeder.send_bytes("cam-0", b"gr\xf6\xdfe", [(Latin("size"), b"7")])
        feeder.send(frame("cam-0", 1))
        feeder.flush()
        verdicts = read(settings, "verdicts", Verdict, 2)
        (letter,) = read(settings, "dead-letters", DeadLetter, 1)
    assert {verdict.sequence for verdict in verdicts} == {0, 1}
    assert (letter.value, letter.headers) == (b"gr\xf6\xdfe", (("gr??e", b"7"),))


@pytest.mark.parametrize("extra", [{}, {"colour": "red", "depth_map": b"new"}], ids=["older", "newer"])
def test_frames_of_older_and_newer_producers_are_scored(
    either_broker: RunningBroker, tmp_path: Path, extra: dict[str, Any]
) -> None:
    settings = line_settings(either_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder, inspecting(settings):
        _record("a frame that can be scored", **extra)(feeder)
        feeder.flush()
        (verdict,) = read(settings, "verdicts", Verdict, 1)
    sent = messages.decode(Frame, bytes.fromhex(RECORDS["a frame that can be scored"]["value"]))
    assert (verdict.part, verdict.view, verdict.lot) == (sent.part, sent.view, sent.lot) == ("bolt", "top", "7")
