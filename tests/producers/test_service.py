"""The whole producer, with a real broker that is killed, absent, or well."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from kafka.errors import TopicAuthorizationFailedError

from embedded_broker import EmbeddedBroker
from flawline import imaging, kafka_clients, messages, telemetry
from flawline.errors import FlawlineError, UsageError
from flawline.messages import Codec, DropReason
from flawline.object_store import object_store
from flawline.settings.producers import CameraBase
from flawline.settings.tree import Settings
from producers import broker_connection, service
from producers.publisher import Publisher
from producers.simulation.products import product
from producers.spool import Quota, Spool
from tests.producers import topics
from tests.producers.doubles import ScriptedCamera, capture, picture, until
from tests.support.brokers import unique
from tests.support.ports import reserved_port

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of 30 JPEG files and one file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:03d}.jpg").write_bytes(imaging.encode(picture(number), Codec.JPEG))
    (folder / "bad.jpg").write_bytes(b"not an image")
    return folder


def line(bootstrap: str, tmp_path: Path, *cameras: dict[str, Any], **options: Any) -> Settings:
    """Return the settings of a new line on a broker."""
    return Settings(
        data_dir=tmp_path / "data",
        kafka={"bootstrap_servers": bootstrap, "topic_prefix": unique("t") + "."},
        metrics={"producers_port": 0},
        cameras=list(cameras),
        producer={"ledger_interval_s": 0.2, "away_after_s": 0.5, "drain_timeout_s": 5, **options.pop("producer", {})},
        **options,
    )


def folder(name: str, path: Path, **options: Any) -> dict[str, Any]:
    return {"kind": "folder", "name": name, "path": path, **options}


class Producer:
    """Runs `service.run` in a thread."""

    def __init__(self, settings: Settings, cameras: Any = None) -> None:
        self.stop = threading.Event()
        self.captured: int | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(settings, cameras))
        self._thread.start()

    def _run(self, settings: Settings, cameras: Any) -> None:
        try:
            self.captured = service.run(settings, self.stop, cameras)
        except BaseException as error:
            self.error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float = 60) -> int:
        self._thread.join(timeout_s)
        assert not self.running, "the producer does not end"
        if self.error:
            raise self.error
        assert self.captured is not None
        return self.captured


@pytest.fixture
def produce() -> Iterator[Callable[..., Producer]]:
    made: list[Producer] = []

    def start(*arguments: Any) -> Producer:
        made.append(Producer(*arguments))
        return made[-1]

    yield start
    for producer in made:
        producer.stop.set()
        producer._thread.join(30)


def captures_in(journal: Path) -> int:
    """Return the number of captures of all epochs in a journal, 0 without a journal."""
    if not journal.is_file():
        return 0
    with contextlib.closing(sqlite3.connect(journal)) as file:
        try:
            return file.execute("SELECT sum(captured) FROM epochs").fetchone()[0] or 0
        except sqlite3.OperationalError:  # it has no tables yet
            return 0


def spooled(settings: Settings) -> int:
    """Return the bytes in all spool segments, without those that are removed meanwhile."""
    total = 0
    for path in (settings.data_dir / "spool").rglob("*.seg"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


# -- a broker that is well ---------------------------------------------------------------------------------------------


def test_folders_are_published_and_in_the_ledger_and_the_run_ends(
    embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path
) -> None:
    settings = line(
        embedded_broker.bootstrap, tmp_path, folder("cam-1", images, view="top"), folder("cam-2", images, partition=5)
    )
    assert service.run(settings, threading.Event()) == 62
    records = topics.records(settings, "frames")
    assert len(records) == 60
    for record in records:
        frame = messages.decode(messages.Frame, record.value)
        assert record.key == frame.camera.encode()
        assert record.partition == {"cam-1": 0, "cam-2": 5}[frame.camera]
        assert dict(record.headers) == {"schema": b"frame/1", "frame-id": frame.frame_id.encode()}
        assert frame.checksum == messages.checksum(frame.data)
        assert frame.data == (images / f"{frame.sequence:03d}.jpg").read_bytes()
        assert frame.view == ("top" if frame.camera == "cam-1" else None)
    assert [sequence for _, sequence in topics.ids(settings, "cam-1")] == list(range(30))
    for (captured, dropped, closed), name in zip(topics.accounts(settings).values(), ("cam-1", "cam-2"), strict=True):
        assert (captured, dropped, closed) == (31, {30: DropReason.ENCODING_FAILED}, True), name
    assert list((settings.data_dir / "spool").rglob("journal.db*")) == []


def test_simulated_and_video_cameras_reach_the_topic_as_decodable_frames(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for level in range(6):
        writer.write(np.full((48, 64, 3), level * 40, np.uint8))
    writer.release()
    settings = line(
        embedded_broker.bootstrap, tmp_path,
        {"kind": "simulated", "name": "sim", "frames": 5, "height": 96, "width": 80, "codec": "png"},
        {"kind": "video", "name": "film", "path": path, "codec": "raw"},
    )  # fmt: skip
    assert service.run(settings, threading.Event()) == 11
    shapes = {"sim": (96, 80, 3), "film": (48, 64, 3)}
    frames = topics.frames(settings)
    assert len(frames) == 11
    for frame in frames:
        shape = (frame.height, frame.width, frame.channels)
        assert shape == shapes[frame.camera]
        assert imaging.decode(frame.data, frame.codec, shape=shape).shape == shape
    assert all(closed and not dropped for _, dropped, closed in topics.accounts(settings).values())


def test_run_takes_names_of_configured_cameras_or_camera_objects(
    embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path
) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path, folder("cam-1", images), folder("cam-2", images))
    assert service.run(settings, threading.Event(), ["cam-2"]) == 31
    assert service.run(settings, threading.Event(), [ScriptedCamera("guest", 4, "end")]) == 4
    assert {frame.camera for frame in topics.frames(settings)} == {"cam-2", "guest"}


def test_stop_ends_an_endless_camera_after_its_frames_are_delivered(
    embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path, produce: Callable[..., Producer]
) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path, folder("endless", images, loop=True, rate_hz=100))
    running = produce(settings)
    until(lambda: telemetry.CAPTURED.labels("endless")._value.get() > 20)
    running.stop.set()
    captured = running.join(15)
    ((count, dropped, closed),) = topics.accounts(settings).values()
    assert (count, closed) == (captured, True)
    assert sorted([*(sequence for _, sequence in topics.ids(settings, "endless")), *dropped]) == list(range(captured))


def test_large_frames_go_by_claim_check(embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path) -> None:
    settings = line(
        embedded_broker.bootstrap, tmp_path, folder("cam", images),
        frames={"inline_limit_bytes": 1000, "objects_url": f"file://{tmp_path / 'objects'}"},
    )  # fmt: skip
    service.run(settings, threading.Event())
    objects = object_store(settings)
    frames = topics.frames(settings)
    assert len(frames) == 30
    for frame in frames:
        assert frame.data == b"" and frame.object_key is not None
        assert objects.get(frame.object_key, frame.size_bytes) == (images / f"{frame.sequence:03d}.jpg").read_bytes()


def test_frames_over_the_limit_are_dropped_as_oversize(
    embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path
) -> None:
    (images / "000.jpg").write_bytes(imaging.encode(picture(0, 400, 400), Codec.PNG))
    settings = line(embedded_broker.bootstrap, tmp_path, folder("cam", images), frames={"limit_bytes": 20_000})
    assert service.run(settings, threading.Event()) == 31
    ((captured, dropped, closed),) = topics.accounts(settings).values()
    assert (captured, closed) == (31, True)
    assert dropped == {0: DropReason.OVERSIZE, 30: DropReason.ENCODING_FAILED}


def test_topic_with_a_lower_size_limit_costs_the_large_frame_only(
    embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path
) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path, folder("cam", images))
    small = settings.model_copy(update={"frames": settings.frames.model_copy(update={"limit_bytes": 20_000})})
    kafka_clients.ensure_topics(small)  # as if limit_bytes had been raised after the topic was created
    (images / "000.jpg").write_bytes(imaging.encode(picture(0, 400, 400), Codec.PNG))
    service.run(settings, threading.Event())
    ((_, dropped, closed),) = topics.accounts(settings).values()
    assert closed and dropped == {0: DropReason.OVERSIZE, 30: DropReason.ENCODING_FAILED}
    assert len(topics.frames(settings)) == 29


# -- a broker that goes away -------------------------------------------------------------------------------------------


def test_killed_broker_that_comes_back_has_every_capture_exactly_once_in_order(
    fresh_broker: EmbeddedBroker, tmp_path: Path, images: Path, produce: Callable[..., Producer]
) -> None:
    settings = line(
        fresh_broker.bootstrap, tmp_path,
        folder("cam-1", images, loop=True, rate_hz=60), folder("cam-2", images, loop=True, rate_hz=20),
    )  # fmt: skip
    running = produce(settings)
    for _ in range(2):
        before = telemetry.PUBLISHED.labels("cam-1")._value.get()
        until(lambda before=before: telemetry.PUBLISHED.labels("cam-1")._value.get() > before + 30)
        fresh_broker.kill()
        until(lambda: spooled(settings) > 50_000, what="frames on disk")
        fresh_broker.start()
        until(lambda: spooled(settings) == 0, timeout_s=40, what="the spool's delivery")
    running.stop.set()
    captured = running.join(30)
    accounts = topics.accounts(settings)
    assert sum(count for count, _, _ in accounts.values()) == captured
    for (camera, epoch), (count, dropped, closed) in accounts.items():
        assert closed
        delivered = topics.ids(settings, camera)
        assert delivered == [(epoch, n) for n in range(count) if n not in dropped], camera
        assert set(dropped.values()) <= {DropReason.ENCODING_FAILED}


def test_start_without_a_broker_keeps_the_captures_until_it_comes(
    fresh_broker: EmbeddedBroker, tmp_path: Path, images: Path, produce: Callable[..., Producer]
) -> None:
    settings = line(fresh_broker.bootstrap, tmp_path, folder("cam", images, rate_hz=200))
    fresh_broker.kill()
    running = produce(settings)
    until(lambda: spooled(settings) > 20_000, timeout_s=40, what="frames on disk")
    assert running.running
    fresh_broker.start()
    assert running.join(40) == 31
    assert [sequence for _, sequence in topics.ids(settings, "cam")] == list(range(30))
    ((captured, dropped, closed),) = topics.accounts(settings).values()
    assert (captured, dropped, closed) == (31, {30: DropReason.ENCODING_FAILED}, True)


def test_stop_while_the_broker_is_away_ends_in_time_and_the_next_start_completes_everything(
    fresh_broker: EmbeddedBroker, tmp_path: Path, images: Path, produce: Callable[..., Producer]
) -> None:
    settings = line(
        fresh_broker.bootstrap, tmp_path, folder("cam", images, loop=True, rate_hz=100), folder("gone", images),
        producer={"drain_timeout_s": 1},
    )  # fmt: skip
    running = produce(settings)
    published = telemetry.PUBLISHED.labels("cam")
    before = published._value.get()
    until(lambda: published._value.get() > before + 10)
    fresh_broker.kill()
    until(lambda: spooled(settings) > 50_000, what="frames on disk")
    running.stop.set()
    started = time.monotonic()
    first = running.join(30)
    assert time.monotonic() - started < 1 + 12
    assert spooled(settings) > 0
    fresh_broker.start()
    # `gone` is not in the configuration any more; its account must be complete all the same.
    again = line(fresh_broker.bootstrap, tmp_path, folder("cam", images))
    again.kafka.topic_prefix = settings.kafka.topic_prefix
    second = service.run(again, threading.Event())
    accounts = topics.accounts(settings)
    assert sum(count for count, _, _ in accounts.values()) == first + second
    for (camera, epoch), (count, dropped, closed) in accounts.items():
        assert closed, (camera, epoch)
        delivered = [sequence for of, sequence in topics.ids(settings, camera) if of == epoch]
        assert list(dict.fromkeys(delivered)) == [n for n in range(count) if n not in dropped]
    epochs = [epoch for epoch, _ in topics.ids(settings, "cam")]
    assert epochs == sorted(epochs) and len(set(epochs)) == 2  # the old frames first, under their old identity


ENDLESS = """
import json, sys, threading
from flawline.settings.tree import Settings
from producers import service
service.run(Settings(**json.loads(sys.argv[1])), threading.Event())
"""


@pytest.mark.parametrize("durability", ["memory", "disk"])
def test_killed_producer_delivers_its_spool_at_the_next_start_and_shows_what_was_in_memory_as_gaps(
    fresh_broker: EmbeddedBroker, tmp_path: Path, images: Path, durability: str
) -> None:
    (images / "bad.jpg").unlink()
    settings = line(fresh_broker.bootstrap, tmp_path, folder("cam", images, loop=True, rate_hz=100))
    options = {
        "data_dir": str(settings.data_dir),
        "kafka": {"bootstrap_servers": fresh_broker.bootstrap, "topic_prefix": settings.kafka.topic_prefix},
        "metrics": {"producers_port": 0},
        "cameras": [folder("cam", str(images), loop=True, rate_hz=100)],
        "producer": {"ledger_interval_s": 0.2, "away_after_s": 0.5, "durability": durability},
    }
    child = subprocess.Popen([sys.executable, "-c", ENDLESS, json.dumps(options)], cwd=REPOSITORY)
    try:
        journal = settings.data_dir / "spool" / "cam" / "journal.db"
        until(lambda: captures_in(journal) > 50, timeout_s=60)
        fresh_broker.kill()
        until(lambda: spooled(settings) > 100_000, what="frames on disk")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    captured_at_kill = captures_in(journal)
    fresh_broker.start()
    again = line(fresh_broker.bootstrap, tmp_path, folder("cam", images))
    again.kafka.topic_prefix = settings.kafka.topic_prefix
    assert service.run(again, threading.Event()) == 30
    accounts = topics.accounts(settings)
    (old, new) = sorted(epoch for _, epoch in accounts)
    captured, *others = accounts["cam", old]
    assert others == [{}, True]
    # With durability on disk, a frame is there before it counts, and the kill may come in between.
    assert captured - captured_at_kill in ((0, 1) if durability == "disk" else (0,))
    assert accounts["cam", new] == (30, {}, True)
    delivered = topics.ids(settings, "cam")
    assert len(delivered) == len(set(delivered))
    assert delivered == sorted(delivered)
    missing = sorted(set(range(captured)) - {sequence for epoch, sequence in delivered if epoch == old})
    if durability == "disk":
        assert missing == []
        return
    # Lost are the frames in the client's memory and, at most, the one under way to the disk: everything before and
    # behind them is there. At 100 frames/s and half a second to notice that the broker is away, that is about 50.
    lost_in_the_middle = [n for n in missing if n != captured_at_kill - 1]
    assert 0 < len(lost_in_the_middle) < 150
    assert lost_in_the_middle == list(range(lost_in_the_middle[0], lost_in_the_middle[-1] + 1))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_cameras_that_cannot_start_stop_no_other_and_run_when_they_can(
    embedded_broker: EmbeddedBroker,
    tmp_path: Path,
    images: Path,
    produce: Callable[..., Producer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # as if the library of the simulated camera were not installed
    product.cache_clear()  # another test may have drawn it
    (tmp_path / "nothing.mp4").write_bytes(b"no video")
    sick = ("no-folder", "no-video", "no-library", "no-device", "spool-in-use", "spool-damaged")
    settings = line(
        embedded_broker.bootstrap, tmp_path,
        folder("no-folder", tmp_path / "later"),
        {"kind": "video", "name": "no-video", "path": tmp_path / "nothing.mp4"},
        {"kind": "simulated", "name": "no-library", "products": ["brick"]},
        {"kind": "usb", "name": "no-device", "device": str(tmp_path / "video9")},
        folder("spool-in-use", images),
        folder("spool-damaged", images),
        folder("sound", images),
        producer={"reconnect_backoff_s": (0.2, 0.5)},
    )  # fmt: skip

    def published(name: str) -> float:
        return telemetry.PUBLISHED.labels(name)._value.get()

    spools = settings.data_dir / "spool"
    other_producer = Spool(spools / "spool-in-use", Quota(0))
    (spools / "spool-damaged").mkdir()
    (spools / "spool-damaged" / "stray.seg").touch()
    running = produce(settings)
    until(lambda: published("sound") == 30 or not running.running, 60, what="the frames of the other")
    until(lambda: all(f"camera {name}: " in caplog.text for name in sick) or not running.running, 60)
    assert running.running
    for name in sick:
        assert telemetry.CAMERA_UP.labels(name)._value.get() == 0
        assert len([text for text in caplog.messages if text.startswith(f"camera {name}: ")]) == 1, name
    (tmp_path / "later").symlink_to(images)
    other_producer.close()
    (spools / "spool-damaged" / "stray.seg").unlink()
    for name in ("no-folder", "spool-in-use", "spool-damaged"):
        until(lambda name=name: published(name) == 30, 60, what=f"the frames of {name}")
    assert running.running
    running.stop.set()
    assert running.join() == 4 * 31
    assert {camera for camera, _ in topics.accounts(settings)} == {
        "sound",
        "no-folder",
        "spool-in-use",
        "spool-damaged",
    }


def test_replay_that_breaks_off_is_named_at_the_end_when_the_others_have_delivered(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path)
    cameras = [ScriptedCamera("broken", 2, "away"), ScriptedCamera("well", 4, "end")]
    with pytest.raises(FlawlineError, match="camera broken: the cable was pulled"):
        service.run(settings, threading.Event(), cameras)
    assert {camera: count for (camera, _), (count, _, _) in topics.accounts(settings).items()} == {
        "broken": 2,
        "well": 4,
    }


def test_settings_that_name_a_product_that_does_not_exist_are_refused(tmp_path: Path) -> None:
    settings = line("127.0.0.1:1", tmp_path, {"kind": "simulated", "name": "sim", "products": ["spoon"]})
    with pytest.raises(UsageError, match="unknown name 'spoon' in products"):
        service.run(settings, threading.Event())
    assert not settings.data_dir.exists()


def test_camera_that_never_answers_delays_no_other_camera_and_no_stop(
    embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path, produce: Callable[..., Producer]
) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        dead = {"kind": "rtsp", "name": "dead", "url": f"rtsp://a:b@127.0.0.1:{mute.getsockname()[1]}/1"}
        settings = line(embedded_broker.bootstrap, tmp_path, dead, folder("cam", images))
        running = produce(settings)
        until(lambda: len(topics.ids(settings, "cam")) == 30 if running.running else True, what="the other's frames")
        assert running.running
        running.stop.set()
        started = time.monotonic()
        assert running.join(20) == 31
        assert time.monotonic() - started < 10


def test_metrics_port_in_use_is_one_line(embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = line(embedded_broker.bootstrap, tmp_path, folder("cam", images))
        settings.metrics.producers_port = taken.getsockname()[1]
        with pytest.raises(FlawlineError, match="cannot be opened"):
            service.run(settings, threading.Event())


def test_metrics_are_served_while_it_runs(
    embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path, produce: Callable[..., Producer]
) -> None:
    from urllib.request import urlopen

    settings = line(embedded_broker.bootstrap, tmp_path, folder("metered", images, loop=True, rate_hz=50))
    settings.metrics.producers_port = reserved_port()
    running = produce(settings)
    until(lambda: telemetry.PUBLISHED.labels("metered")._value.get() > 5)
    with urlopen(f"http://127.0.0.1:{settings.metrics.producers_port}/metrics") as answer:
        text = answer.read().decode()
    for name in (
        "captured_frames_total",
        "published_bytes_total",
        "camera_up",
        "spool_bytes",
        "camera_reconnects_total",
    ):
        assert f'flawline_{name}{{camera="metered"}}' in text
    running.stop.set()
    running.join()


def test_topic_with_too_few_partitions_is_refused_with_the_remedy(
    embedded_broker: EmbeddedBroker, tmp_path: Path, images: Path
) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path, folder("cam", images, partition=6))
    fewer = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"camera_partitions": 2})})
    kafka_clients.ensure_topics(fewer)
    with pytest.raises(UsageError, match=r"has 2 partitions and kafka\.camera_partitions is 8"):
        service.run(settings, threading.Event())


def test_unknown_camera_and_no_camera_are_refused(tmp_path: Path, images: Path) -> None:
    with pytest.raises(UsageError, match="'cam-9' is not in the configuration"):
        service.run(line("127.0.0.1:1", tmp_path, folder("cam", images)), threading.Event(), ["cam-9"])
    with pytest.raises(UsageError, match="no camera to run"):
        service.run(line("127.0.0.1:1", tmp_path), threading.Event())


# -- authorisation: a double refuses, since the embedded broker has no permissions ---------------------------------


class UnauthorisedClient:
    """Is a Kafka client whose user may not write to the topic frames."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def send(self, topic: str, **record: Any) -> Any:
        if topic.endswith("frames"):
            raise TopicAuthorizationFailedError(topic)
        return self._client.send(topic, **record)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_missing_write_permission_is_accounted_for_and_turns_the_camera_down(
    embedded_broker: EmbeddedBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path)
    publisher = Publisher(
        settings,
        [CameraBase(name="barred")],
        make_client=lambda *line: UnauthorisedClient(broker_connection.connect(*line)),
    )
    publisher.start()
    for number in range(5):
        publisher.publish("barred", capture(number))
    until(lambda: publisher.idle)
    assert telemetry.CAMERA_UP.labels("barred")._value.get() == 0
    assert publisher.close(5) == 0
    ((captured, dropped, closed),) = topics.accounts(settings).values()
    assert (captured, closed) == (5, True)
    assert dropped == dict.fromkeys(range(5), DropReason.NOT_AUTHORISED)
    assert "grant WRITE" in caplog.text


def test_epochs_never_repeat_even_when_the_clock_goes_back(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path)
    settings.producer.spool_dir = tmp_path / "spool"
    journal = tmp_path / "spool" / "cam" / "4000000000000.journal"
    journal.parent.mkdir(parents=True)
    journal.write_text(f"{3:020d}\n")
    publisher = Publisher(settings, [CameraBase(name="cam")], now_ns=lambda: 1_000_000_000)
    publisher.start()
    assert publisher.publish("cam", capture()) == "cam:4000000000001:0"
    publisher.close(10)
    assert topics.accounts(settings)["cam", 4_000_000_000_000] == (3, {}, True)
    assert not journal.exists()
