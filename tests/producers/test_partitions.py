"""A camera keeps its partition: no other camera that comes, goes or changes its place in the configuration moves it."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, messages
from flawline.messages import Frame
from flawline.settings.producers import CameraBase
from flawline.settings.tree import Settings
from producers import partitions
from producers.partitions import Partitions, assign
from producers.publisher import Publisher
from tests.producers import topics
from tests.producers.doubles import capture, until
from tests.support.brokers import RunningBroker, unique

names = st.text("abcdef", min_size=1, max_size=3)


@pytest.fixture(params=["embedded_broker", "apache_kafka"])
def either_broker(request: pytest.FixtureRequest) -> RunningBroker:
    """Return the embedded broker, then Apache Kafka where KAFKA_HOME is set."""
    return request.getfixturevalue(request.param)


def cameras(*names: str, **partition: int) -> list[CameraBase]:
    return [CameraBase(name=name, partition=partition.get(name)) for name in names]


def line(bootstrap: str, tmp_path: Path, prefix: str, *names: str, **options: Any) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        kafka={"bootstrap_servers": bootstrap, "topic_prefix": prefix, "camera_partitions": 4},
        cameras=[{"kind": "usb", "name": name, "device": "/dev/null"} for name in names],
        producer={"ledger_interval_s": 0.2, "away_after_s": 0.5},
        **options,
    )


def publish(settings: Settings, *names: str, count: int = 3) -> None:
    """Run a producer of the cameras `names` for `count` captures each."""
    publisher = Publisher(settings, [camera for camera in settings.cameras if camera.name in names])
    publisher.start()
    for number in range(count):
        for name in names:
            publisher.publish(name, capture(number))
    until(lambda: publisher.idle)
    assert publisher.close(10) == 0


def where(settings: Settings) -> dict[str, set[int]]:
    """Return the partitions that hold frames of each camera."""
    by_camera = defaultdict(set)
    for record in topics.records(settings, "frames"):
        by_camera[messages.decode(Frame, record.value).camera].add(record.partition)
    return dict(by_camera)


# The policy


@given(
    st.lists(st.tuples(names, st.none() | st.integers(0, 20)), unique_by=lambda item: item[0], max_size=12),
    st.dictionaries(names, st.integers(0, 9), max_size=12),
    st.integers(1, 10),
)
def test_known_cameras_stay_and_new_cameras_go_to_the_emptiest_partition(
    configured: list[tuple[str, int | None]], known: dict[str, int], count: int
) -> None:
    wanted = [CameraBase(name=name, partition=partition) for name, partition in configured]
    result = assign(wanted, known, count)
    assert set(result) >= {camera.name for camera in wanted}
    assert all(0 <= partition < count for partition in result.values())
    settings = {camera.name: camera.partition for camera in wanted}
    for camera, partition in known.items():
        if partition < count and settings.get(camera) is None:
            assert result[camera] == partition
    for camera, setting in settings.items():
        if setting is not None:
            assert result[camera] == setting % count
    assert assign(wanted, result, count) == result, "a second start changes nothing"
    assert assign(wanted[::-1], result, count) == result, (
        "the order in the configuration means nothing once they are known"
    )


@given(st.lists(names, unique=True, max_size=12), st.integers(1, 8))
def test_first_cameras_get_their_places_in_the_list(configured: list[str], count: int) -> None:
    result = assign(cameras(*configured), {}, count)
    assert [result[name] for name in configured] == [place % count for place in range(len(configured))]
    load = Counter(result.values())
    assert not load or max(load.values()) - min(load[i] for i in range(min(count, len(configured)))) <= 1


def test_camera_of_another_machine_counts_as_load() -> None:
    assert assign(cameras("new"), {"elsewhere": 0, "there": 1}, 3)["new"] == 2


def test_camera_whose_partition_does_not_exist_gets_another_one() -> None:
    assert assign(cameras("a", "b"), {"a": 7, "b": 1}, 4) == {"b": 1, "a": 0}


# On a broker


def test_inserting_removing_and_renaming_cameras_moves_no_other_camera(
    either_broker: RunningBroker, tmp_path: Path
) -> None:
    prefix = unique("p") + "."

    def settings(*names: str) -> Settings:
        return line(either_broker.bootstrap, tmp_path, prefix, *names)

    publish(settings("a", "b", "c"), "a", "b", "c")
    assert where(settings()) == {"a": {0}, "b": {1}, "c": {2}}
    publish(settings("first", "a", "b", "c"), "first", "a", "b", "c")  # inserted at the top
    publish(settings("c", "first"), "c", "first")  # two removed, the order turned
    publish(settings("first", "renamed", "c"), "first", "renamed", "c")  # a is renamed
    assert where(settings()) == {"a": {0}, "b": {1}, "c": {2}, "first": {3}, "renamed": {0}}
    sequences = [(frame.epoch, frame.sequence) for frame in topics.frames(settings()) if frame.camera == "c"]
    assert sequences == sorted(sequences) and len(set(sequences)) == 12


def test_two_producers_of_one_line_agree(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    prefix = unique("p") + "."
    first = line(embedded_broker.bootstrap, tmp_path / "one", prefix, "a", "b")
    other = line(embedded_broker.bootstrap, tmp_path / "other", prefix, "x", "y")
    publish(first, "a")
    publish(other, "x", "y")
    publish(first, "b")
    places = where(first)
    assert places == {"a": {0}, "b": {1}, "x": {2}, "y": {3}}
    assert partitions.read(first) == partitions.read(other) == {name: min(place) for name, place in places.items()}


def test_partition_in_the_settings_moves_a_camera_and_the_move_is_logged_once(
    embedded_broker: EmbeddedBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = unique("p") + "."
    settings = line(embedded_broker.bootstrap, tmp_path, prefix, "a", "b")
    publish(settings, "a", "b")
    moved = settings.model_copy(deep=True)
    moved.cameras[0].partition = 3
    with caplog.at_level(logging.WARNING):
        publish(moved, "a")
        publish(moved, "a")
    assert caplog.text.count("camera a moves from partition 0 to 3") == 1
    publish(settings, "a")  # the setting is taken out again: it stays where it is
    assert partitions.read(settings) == {"a": 3, "b": 1}


def test_camera_of_a_partition_that_is_not_counted_any_more_moves_and_the_reason_is_logged(
    embedded_broker: EmbeddedBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path, unique("p") + ".", "a", "b")
    settings.cameras[0].partition = 3
    publish(settings, "a")
    fewer = settings.model_copy(deep=True)
    fewer.cameras[0].partition = None
    fewer.kafka.camera_partitions = 2
    with caplog.at_level(logging.WARNING):
        publish(fewer, "a")
    assert "camera a moves from partition 3 to 1 because kafka.camera_partitions is 2" in caplog.text
    assert "as its setting says" not in caplog.text


def test_frames_that_wait_on_disk_go_to_the_partition_of_their_camera(
    fresh_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    prefix = unique("p") + "."
    settings = line(fresh_broker.bootstrap, tmp_path, prefix, "a", "b")
    settings.cameras[0].when_full = settings.cameras[1].when_full = "spool"  # type: ignore[assignment]
    publish(settings, "a", "b")
    fresh_broker.kill()
    publisher = Publisher(settings, settings.cameras)
    publisher.start(wait_s=0.1)  # the broker is away: captures wait for nothing
    for number in range(3):
        publisher.publish("b", capture(number))
    assert publisher.close(0.5) == 3
    fresh_broker.start()
    without_b = line(fresh_broker.bootstrap, tmp_path, prefix, "new", "a")
    publish(without_b, "new", "a")  # what b left on disk is delivered by a start that does not run b
    assert where(settings) == {"a": {0}, "b": {1}, "new": {2}}
    assert len(topics.ids(settings, "b")) == 6


def test_unreadable_entry_is_an_error_that_names_camera_and_topic(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path, unique("p") + ".", "a")
    kafka_clients.ensure_topics(settings)
    producer = kafka_clients.producer(settings)
    producer.send(settings.topic("partitions"), key=b"a", value=b"nonsense", partition=0).get(timeout=30)
    with pytest.raises(messages.FlawlineError, match=r"partition of camera 'a' cannot be read"):
        Partitions(settings, cameras("a")).update(producer)
    kafka_clients.close_producer(producer)
