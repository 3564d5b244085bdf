"""Frames that retention deletes before a worker reads them are reported, and are no gaps in the ledger."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, messages
from flawline.messages import ExpiredFrames, LedgerEntry
from flawline.settings.tree import Settings
from ledger import reader as ledger
from tests.support.talking_line import TalkingLine
from tests.workers.line import EPOCH, committed, feeding, frame, inspecting, line_settings, wait_until
from workers import expiry
from workers.expiry import METADATA_LIMIT_BYTES, ReadFrames, last_frames_of, with_last_frames
from workers.suspects import Note

cameras = st.dictionaries(
    st.from_regex(messages.CAMERA_NAME, fullmatch=True), st.tuples(st.integers(0), st.integers(0))
)


@given(cameras, st.sampled_from([Note(), Note(begun=7, owner="host/1/2.00"), Note(until=9, trying=8, attempt=2)]))
def test_a_note_and_the_last_frames_stand_beside_the_offset_together(
    last: dict[str, tuple[int, int]], note: Note
) -> None:
    text = with_last_frames(note.text(), last)
    assert len(text) <= METADATA_LIMIT_BYTES
    assert Note.of(text) == note
    restored = last_frames_of(text)
    assert restored.items() <= last.items() and (restored == last or len(last) > 20)


def test_metadata_holds_the_cameras_that_finished_last() -> None:
    last = {f"camera-{number:060d}": (EPOCH, number) for number in range(200)}
    restored = last_frames_of(with_last_frames(Note(begun=3).text(), last))
    assert 20 < len(restored) < 200 and list(restored) == list(last)[-len(restored) :]


@pytest.mark.parametrize("text", [None, "", "{}", "nonsense", '{"last":3}', '{"last":{"a":[1]}}', "[]"])
def test_metadata_without_last_frames_has_none(text: str | None) -> None:
    assert last_frames_of(text) == {}


def named(camera: str, sequence: int) -> list[tuple[str, bytes]]:
    return [("frame-id", messages.frame_id(camera, EPOCH, sequence).encode())]


def test_cameras_are_reported_once_from_behind_their_last_frame_and_unknown_ones_from_the_beginning() -> None:
    read = ReadFrames(10, {"b": (EPOCH, 4)})
    for offset, camera, sequence in ((10, "a", 6), (11, "b", 5), (12, "a", 7)):
        read.register(offset, named(camera, sequence))
    read.register(11, named("b", 5))  # read again
    assert read.finish_before(11) == {"b": (EPOCH, 4), "a": (EPOCH, 6)}
    assert not read.reports(3, ["a", "b", "c"], at=1), "nothing was missed"
    read.jump(13, 40)
    reports = read.reports(3, ["a"], at=1)
    assert reports == [ExpiredFrames("a", EPOCH, 8, 3, 13, 40, 1), ExpiredFrames("b", EPOCH, 6, 3, 13, 40, 1)]
    assert read.reports(3, ["a"], at=1) == reports, "they were not confirmed"
    read.reported(reports)
    assert read.reports(3, ["a", "b"], at=1) == []
    assert read.reports(3, ["c"], at=2) == [ExpiredFrames("c", 0, 0, 3, 13, 40, 2)]


def test_frame_without_a_name_has_no_identity() -> None:
    for headers in (None, [], [("frame-id", b"nonsense")], [("frame-id", b"\xff:1:1")]):
        assert expiry.identity_of(headers) is None


def keep_little(settings: Settings) -> None:
    """Let the topic `frames` keep about 60 frames of each partition."""
    admin = kafka_clients.admin(settings)
    configs = {"retention.bytes": "30000", "segment.bytes": "10000", "max.message.bytes": "1000000"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.topic("frames"), configs)])
    admin.close()


def log_start(settings: Settings, partition: int) -> int:
    consumer = kafka_clients.consumer(settings)
    try:
        place = TopicPartition(settings.topic("frames"), partition)
        return int(consumer.beginning_offsets([place])[place])
    finally:
        consumer.close(autocommit=False)


@pytest.mark.system
def test_frames_that_went_while_no_worker_ran_are_expired_and_not_gaps(
    fresh_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line_settings(fresh_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        keep_little(settings)
        line = TalkingLine(settings, "cam-0", EPOCH)
        feeder.send(*(frame("cam-0", i) for i in range(10)))
        feeder.send(*(frame("cam-4", i) for i in range(5)))  # in the same partition
        feeder.flush()
        with inspecting(settings):
            wait_until(lambda: committed(settings, 0) == 15)
        for i in range(10, 500):
            feeder.send(frame("cam-0", i))
            if i % 5 == 0:
                feeder.send(frame("cam-4", i // 5 + 3))
            if i % 2 == 0:
                feeder.send(frame("cam-1", i))  # it was never read
        feeder.flush()
        wait_until(lambda: log_start(settings, 0) > 15 and log_start(settings, 1) > 0)
        for camera, count in (("cam-0", 500), ("cam-4", 103), ("cam-1", 499)):
            line.say("ledger", LedgerEntry(camera, EPOCH, count, (), time.time_ns(), closed=True))
        with inspecting(settings):
            wait_until(lambda: committed(settings, 0) == 15 + 490 + 98 and committed(settings, 1) == 245)
        line.close()
    report = ledger.read(settings)
    for camera in ("cam-0", "cam-4"):
        account = report.cameras[camera]
        assert account.gaps == account.in_flight == 0
        assert account.expired == account.captured - account.scored > 0
    # Of cam-1 only every second capture was published: those between frames that were read are gaps.
    other = report.cameras["cam-1"]
    assert other.expired == 10 + 2 * log_start(settings, 1) > 10
    assert other.gaps == other.captured - other.scored - other.expired
    assert report.balanced


@pytest.mark.system
def test_a_report_that_cannot_be_published_holds_the_frames_back(
    fresh_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = line_settings(fresh_broker.bootstrap, tmp_path)
    answers = iter([False, False])
    publish = expiry.publish
    monkeypatch.setattr(expiry, "publish", lambda settings, reports: next(answers, True) and publish(settings, reports))
    with feeding(settings) as feeder:
        keep_little(settings)
        feeder.send(*(frame("cam-0", i) for i in range(500)))
        feeder.flush()
        wait_until(lambda: log_start(settings, 0) > 0)
        TalkingLine(settings, "cam-0", EPOCH).captured(500, closed=True)
        with inspecting(settings):
            wait_until(lambda: committed(settings, 0) == 500)
    account = ledger.read(settings).total
    assert next(answers, None) is None and account.gaps == 0
    assert account.expired == 500 - account.scored > 0
