"""A small line for the workers' tests: deterministic frames, a detector whose scores are plain arithmetic, readers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from kafka.structs import TopicPartition

from flawline import imaging, kafka_clients, messages
from flawline.errors import FlawlineError
from flawline.messages import Codec, Decision, Frame
from flawline.settings.tree import KafkaSettings, Settings
from flawline.settings.workers import WorkerSettings
from scorer.scores import RegionInputs, Scores
from tests.support.brokers import unique
from workers.active_model import ModelRef
from workers.inspector import Inspector, member_name

SIDE = 32
EPOCH = 1_700_000_000_000
POISON = 1
NOT_FINITE = 2
FULL = 255


@dataclass
class PlainDetector:
    """Scores an image by the mean of its pixels, bright ones are rejected; the first pixel can make it fail."""

    version: str = "plain-1"
    seconds_per_image: float = 0.0
    alarm_rate: float = 0.01
    heatmap_range: tuple[float, float] = (1.0, 8.0)
    embedding_version: str = "plain"
    groups: int = 1
    sample_bits: tuple[int, ...] = (8,)
    memory_shortages: int = 0
    batches: list[int] = field(default_factory=list)

    def score(self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray | None] | None = None) -> list[Scores]:
        self.batches.append(len(images))
        time.sleep(self.seconds_per_image * len(images))
        return [self._score(image) for image in images]

    def field_px(self, height: int, width: int) -> int | None:
        return None

    def is_unusual_throughout(self, scores: Scores) -> bool:
        return False

    def close_ups(self, parts: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        return [[cv2.resize(part, (side, side)).astype(np.float32) for side in (16, 8)] for part in parts]

    def _score(self, image: np.ndarray) -> Scores:
        first = tuple(image[0, 0])
        if first == (POISON,) * 3:
            raise ValueError("this image breaks the model")
        raw = float(np.float64(image.mean()))
        aligned = float("nan") if first == (NOT_FINITE,) * 3 else raw / 10 - 10
        heatmap = np.zeros((8, 8), np.float32)
        if raw <= 128:
            return Scores(0, raw, aligned, 0.5, Decision.ACCEPT, heatmap)
        heatmap[2:5, 2:5] = 10
        grid = np.linspace(0, 1, 8 * 8 * 4, dtype=np.float32).reshape(8, 8, 4)
        return Scores(0, raw, aligned, 0.001, Decision.REJECT, heatmap, RegionInputs.of(grid, grid * 0.5))


def load_plain(path: Path, settings: WorkerSettings) -> PlainDetector:
    """Return the detector that folder `path` describes: its version, and how slow it is."""
    try:
        version, seconds = (path / "plain.txt").read_text().split()
    except (OSError, ValueError) as error:
        raise FlawlineError(f"{path}: no model") from error
    return PlainDetector(version, float(seconds))


@dataclass
class StrictDetector(PlainDetector):
    """Rejects what is not quite dark."""

    def _score(self, image: np.ndarray) -> Scores:
        return super()._score(image + (100 if image.mean() > 50 else 0))


@dataclass
class DeadlyDetector(PlainDetector):
    """Ends its process with the first image that is no canary."""

    def _score(self, image: np.ndarray) -> Scores:
        if image.shape[0] == SIDE:
            os._exit(9)
        return super()._score(image)


@dataclass
class MuteDetector(PlainDetector):
    """Never ends a description of a frame that is no canary."""

    is_at_work: bool = False

    def close_ups(self, parts: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        time.sleep(600 if self.is_at_work else 0)
        return super().close_ups(parts)

    def _score(self, image: np.ndarray) -> Scores:
        self.is_at_work = self.is_at_work or image.shape[0] == SIDE
        return super()._score(image)


def load_any(path: Path, settings: WorkerSettings) -> PlainDetector:
    """Return a plain, strict, mute or deadly detector, as the version in `path` says; a lethal one ends its process."""
    plain = load_plain(path, settings)
    if plain.version.startswith("lethal"):
        os._exit(9)
    kind = {"strict": StrictDetector, "mute": MuteDetector, "deadly": DeadlyDetector}.get(
        plain.version.split("-")[0], PlainDetector
    )
    return kind(plain.version, plain.seconds_per_image)


def write_model(path: Path, version: str = "plain-1", seconds_per_image: float = 0.0) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "plain.txt").write_text(f"{version} {seconds_per_image}")
    return path


def line_settings(bootstrap: str, tmp_path: Path, *, partitions: int = 4, **worker: Any) -> Settings:
    """Return settings of a line of its own on a shared broker."""
    model = worker.pop("model", None) or str(write_model(tmp_path / "model"))
    delivery = worker.pop("delivery", "at-least-once")
    options = {"actors": 1, "session_timeout_s": 6.0, "num_cpus": 0.5} | worker
    return Settings(
        line=unique("line"),
        data_dir=tmp_path / "data",
        kafka=KafkaSettings(
            bootstrap_servers=bootstrap,
            topic_prefix=unique("t") + ".",
            camera_partitions=partitions,
            delivery=delivery,
        ),
        worker=WorkerSettings(model=model, **options),
    )


def frame(
    camera: str,
    sequence: int,
    level: int = 20,
    first_pixel: int | None = None,
    spot: int | None = None,
    **changes: Any,
) -> Frame:
    """Return a grey frame; `level` decides its score, `spot` is a pixel in its region. Any field can be made wrong."""
    pixels = np.full((SIDE, SIDE, 3), level, np.uint8)
    pixels[14:17, 14:17] = level if spot is None else spot
    pixels[-1, -1] = sequence % 256
    pixels[0, 0] = level if first_pixel is None else first_pixel
    data = imaging.encode(pixels, Codec.PNG)
    fields = {
        "camera": camera,
        "epoch": EPOCH,
        "sequence": sequence,
        "captured_at": time.time_ns(),
        "codec": Codec.PNG,
        "height": SIDE,
        "width": SIDE,
        "channels": 3,
        "data": data,
        "checksum": messages.checksum(data),
        "size_bytes": len(data),
    }
    return Frame(**(fields | changes))


class Feeder:
    """Puts frames, and bytes that are none, on the line's topic."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = kafka_clients.producer(settings)
        self._partitions = settings.kafka.camera_partitions

    def partition(self, camera: str) -> int:
        return int(camera.rsplit("-", 1)[1]) % self._partitions

    def send(self, *frames: Frame) -> None:
        for sent in frames:
            self.send_bytes(sent.camera, messages.encode(sent), messages.headers(sent))

    def send_bytes(self, camera: str, value: bytes, headers: list[tuple[str, bytes]] | None = None) -> None:
        self._producer.send(
            self._settings.topic("frames"),
            key=camera.encode(),
            value=value,
            headers=headers or [],
            partition=self.partition(camera),
        )

    def flush(self) -> None:
        self._producer.flush(timeout=30)

    def close(self) -> None:
        self._producer.close(timeout=30)


@contextmanager
def feeding(settings: Settings) -> Iterator[Feeder]:
    kafka_clients.ensure_topics(settings)
    feeder = Feeder(settings)
    try:
        yield feeder
    finally:
        feeder.close()


@contextmanager
def inspecting(
    settings: Settings,
    slot: int = 0,
    detector: PlainDetector | None = None,
    wait_s: float = 20,
    *,
    is_awaited: bool = True,
) -> Iterator[Inspector]:
    """Run an inspector in this process; leaving the block stops it and raises what it failed with.

    The block begins when the inspector is in the group, or at once unless it `is_awaited`.
    """
    assert settings.worker.model
    load = load_plain if detector is None else lambda path, worker: detector
    inspector = Inspector(settings, member_name(settings, slot), ModelRef(settings.worker.model), load)
    errors: list[Exception] = []

    def run() -> None:
        try:
            inspector.run()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while is_awaited and not inspector.ready(0.1) and thread.is_alive():
            wait_s -= 0.1
            assert wait_s > 0, "the inspector did not join"
        if thread.is_alive():
            yield inspector
    finally:
        inspector.stop()
        thread.join(30)
        if errors:
            raise errors[0]
        assert not thread.is_alive()


def read(settings: Settings, name: str, kind: type, count: int, timeout_s: float = 60) -> list[Any]:
    """Return the messages of a topic in log order per partition, as soon as it holds `count` different frames."""
    return [message for message, _ in read_records(settings, name, kind, count, timeout_s)]


def read_records(settings: Settings, name: str, kind: type, count: int, timeout_s: float = 60) -> list[tuple[Any, Any]]:
    consumer = kafka_clients.consumer(settings)
    topic = settings.topic(name)
    pairs: list[tuple[Any, Any]] = []
    deadline = time.monotonic() + timeout_s
    try:
        partitions = sorted(consumer.partitions_for_topic(topic))
        consumer.assign([TopicPartition(topic, partition) for partition in partitions])
        consumer.seek_to_beginning()
        while len({message.frame_id for message, _ in pairs}) < count:
            assert time.monotonic() < deadline, f"{len(pairs)} of {count} messages on {name}"
            for records in consumer.poll(timeout_ms=200).values():
                pairs += [(messages.decode(kind, record.value), record) for record in records]
        # What was written before now, too: a surplus must not hide behind the count.
        ends = consumer.end_offsets(consumer.assignment())
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for records in consumer.poll(timeout_ms=200).values():
                pairs += [(messages.decode(kind, record.value), record) for record in records]
    finally:
        consumer.close(autocommit=False)
    return pairs


def committed(settings: Settings, partition: int) -> int | None:
    """Return the workers' committed offset of a partition of `frames`."""
    last = last_commit(settings, partition)
    return last.offset if last else None


def last_commit(settings: Settings, partition: int) -> Any:
    """Return the workers' last commit of a partition of `frames`, with its metadata; None when there is none."""
    consumer = kafka_clients.consumer(settings, group="workers")
    try:
        return consumer.committed(TopicPartition(settings.topic("frames"), partition), metadata=True)
    finally:
        consumer.close(autocommit=False)


def wait_until(condition: Any, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def assert_in_order(verdicts: Sequence[Any]) -> None:
    """Check that the first occurrences of each camera's frames come in sequence order."""
    last: dict[str, int] = {}
    seen: set[str] = set()
    for verdict in verdicts:
        if verdict.frame_id in seen:
            continue
        seen.add(verdict.frame_id)
        assert verdict.sequence > last.get(verdict.camera, -1), verdict.frame_id
        last[verdict.camera] = verdict.sequence
