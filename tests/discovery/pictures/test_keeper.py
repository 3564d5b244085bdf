"""The thread that copies frames: what is away is waited for, and no job is lost meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from discovery.pictures.frame_reader import FETCH_BYTES, FrameReader
from discovery.pictures.keeper import (
    QUEUE_LENGTH,
    Copied,
    Copy,
    Keeper,
    Lost,
    Opened,
    Removal,
    Removed,
    Result,
    picture_store,
)
from flawline import kafka_clients, messages, topics
from flawline.object_store import object_store
from flawline.settings.tree import Settings, load_settings
from tests.discovery import factories, line
from tests.support.brokers import unique


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def results_of(keeper: Keeper, count: int) -> list[Result]:
    results: list[Result] = []

    def are_there() -> bool:
        results.extend(result for result in keeper.results() if not isinstance(result, Opened))
        return len(results) >= count

    wait_for(are_there)
    return results


@pytest.fixture
def settings(embedded_broker, tmp_path) -> Settings:
    made = line.settings_for(tmp_path, embedded_broker.bootstrap, unique("keeper"))
    kafka_clients.ensure_topics(made, only=[topics.FRAMES.name])
    return made


def send(settings: Settings, *values: bytes) -> None:
    client = kafka_clients.producer(settings)
    with closing(client):
        for value in values:
            client.send(settings.topic(topics.FRAMES.name), value=value, partition=0).get(timeout=60)


def test_a_picture_store_that_cannot_be_used_is_waited_for(settings: Settings, tmp_path, caplog) -> None:
    frame, data = factories.frame(0)
    send(settings, messages.encode(frame))
    (tmp_path / "pictures").write_text("a file stands in the place of the folder")
    with closing(Keeper(settings)) as keeper:
        assert keeper.submit(Copy(7, frame.frame_id, 0, 0))
        wait_for(lambda: "pictures wait" in caplog.text)
        assert keeper.results() == []
        (tmp_path / "pictures").unlink()
        (copied,) = results_of(keeper, 1)
        assert isinstance(copied, Copied)
        assert picture_store(settings).get(copied.key, copied.size_bytes) == data
        assert keeper.submit(Removal((7,), (copied.key,)))
        assert results_of(keeper, 1) == [Removed((7,))]


@pytest.mark.parametrize("in_its_place", ["nothing", "another store"])
def test_a_picture_store_that_was_opened_before_is_waited_for_whatever_lies_in_its_place(
    in_its_place: str, settings: Settings, tmp_path, caplog
) -> None:
    place, away = tmp_path / "volume", tmp_path / "not mounted"
    settings.pictures.url = place.as_uri()
    frame, data = factories.frame(0)
    send(settings, messages.encode(frame))
    with closing(Keeper(settings)) as keeper:
        keeper.submit(Copy(7, frame.frame_id, 0, 0))
        wait_for(lambda: any(place.glob("??/*")))
        (opened,) = [result for result in keeper.results() if isinstance(result, Opened)]
    place.rename(away)
    place.mkdir()
    if in_its_place == "another store":
        picture_store(settings).create()
    before = sorted(place.rglob("*"))
    with closing(Keeper(settings, lambda: opened.store)) as keeper:
        keeper.submit(Copy(8, frame.frame_id, 0, 0))
        wait_for(lambda: "another one, or none, lies in its place" in caplog.text)
        assert sorted(place.rglob("*")) == before
        place.rename(tmp_path / "other")
        away.rename(place)
        (copied,) = results_of(keeper, 1)
        assert isinstance(copied, Copied)
        assert picture_store(settings).get(copied.key, copied.size_bytes) == data


def test_a_place_with_other_things_is_left_alone(settings: Settings, tmp_path, caplog) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "report.pdf").write_text("not ours")
    settings.pictures.url = other.as_uri()
    frame, _ = factories.frame(0)
    send(settings, messages.encode(frame))
    with closing(Keeper(settings)) as keeper:
        keeper.submit(Copy(7, frame.frame_id, 0, 0))
        wait_for(lambda: "holds other things" in caplog.text)
    assert [file.name for file in other.iterdir()] == ["report.pdf"]


def test_frames_that_cannot_be_had_are_lost_with_their_reason(settings: Settings, tmp_path) -> None:
    first, second, third = (factories.frame(n)[0] for n in range(3))
    damaged, _ = factories.frame(3, checksum=1)
    settings.frames.objects_url = (tmp_path / "objects").as_uri()
    store = object_store(settings)
    assert store is not None
    store.create()
    large, _ = factories.frame(4, data=b"", object_key="a" * 64)
    send(settings, *(messages.encode(frame) for frame in (first, second, third, damaged, large)), b"no frame")
    jobs = [
        Copy(1, first.frame_id, 0, 1),  # another frame is there
        Copy(2, second.frame_id, 0, 99),  # beyond the end
        Copy(3, third.frame_id, 0, -1),  # the verdict names no place
        Copy(4, damaged.frame_id, 0, 3),
        Copy(5, large.frame_id, 0, 4),
        Copy(6, "cam-1:1:9", 0, 5),
        Copy(7, third.frame_id, 9_999, 0),
        Copy(8, third.frame_id, 0, 2),
    ]
    with closing(Keeper(settings)) as keeper:
        for job in jobs:
            assert keeper.submit(job)
        results = results_of(keeper, len(jobs))
    lost = {result.picture_id: result.reason for result in results if isinstance(result, Lost)}
    assert lost == {1: "expired", 2: "expired", 3: "expired", 4: "damaged", 5: "no-object", 6: "expired", 7: "expired"}
    assert [result.picture_id for result in results if isinstance(result, Copied)] == [8]


def test_a_keeper_whose_broker_is_away_takes_no_more_jobs_than_its_queue_holds(tmp_path, refusing_port) -> None:
    (tmp_path / "nothing.toml").touch()
    settings = load_settings(
        tmp_path / "nothing.toml", data_dir=str(tmp_path), kafka={"bootstrap_servers": f"127.0.0.1:{refusing_port}"}
    )
    with closing(Keeper(settings)) as keeper:
        taken = sum(keeper.submit(Copy(n, f"cam-1:1:{n}", 0, n)) for n in range(QUEUE_LENGTH + 5))
        assert QUEUE_LENGTH <= taken <= QUEUE_LENGTH + 1  # one may be in work
        assert keeper.results() == []


@pytest.mark.parametrize("broker", ["embedded_broker", "apache_kafka"])
def test_frames_larger_than_a_fetch_and_in_one_batch_are_read_one_by_one(
    broker: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = line.settings_for(tmp_path, request.getfixturevalue(broker).bootstrap, unique("keeper"))
    kafka_clients.ensure_topics(settings, only=[topics.FRAMES.name])
    frames = []
    for number in range(6):
        data = bytes([number]) * (3 * FETCH_BYTES if number % 2 else 100)
        frames.append(factories.frame(number, data=data, size_bytes=len(data), checksum=messages.checksum(data))[0])
    with closing(kafka_clients.producer(settings, linger_ms=200)) as client:
        for sent in [
            client.send(settings.topic(topics.FRAMES.name), value=messages.encode(frame), partition=0)
            for frame in frames
        ]:
            sent.get(timeout=60)
    with closing(FrameReader(settings)) as reader:
        for offset in (5, 0, 3, 4, 1, 2):
            answer = reader.frame(frames[offset].frame_id, (0, offset))
            assert answer == frames[offset]
        assert reader.frame(frames[0].frame_id, (0, 6)) is None
