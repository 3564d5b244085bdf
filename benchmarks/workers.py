"""What the worker around the detector costs: one actor against the bare detector, and the latency of a paced line.

    python -m benchmarks.workers [--json FILE] [--seconds N]

All of it runs on this machine with the embedded broker: one Ray actor with one CPU, simulated parts of 256 px as JPEG.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from kafka.structs import TopicPartition

from benchmarks.report import Goal, add_json_option, emit
from embedded_broker import EmbeddedBroker
from flawline import imaging, kafka_clients, messages
from flawline.messages import Codec, Decision, Frame, Verdict
from flawline.settings.scorer import ScorerSettings
from flawline.settings.tree import KafkaSettings, Settings
from flawline.settings.workers import WorkerSettings
from producers.simulation import LineSettings, SimulatedLine
from scorer.features.graph import Image, Maps
from scorer.fit import fit_detector
from scorer.load import load_detector
from scorer.regions.masks import Mask
from scorer.scores import Scores
from workers.supervisor import Supervisor, stop_ray

CAMERAS = 4
DISTINCT = 64
GOOD_PARTS = 100
WARM_UP_SHARE = 0.2
PACE = 0.5  # of what the bare detector can do


class InstantDetector:
    """Accepts everything at once, so that only the way through the worker is measured."""

    version = "instant"
    embedding_version = "instant"
    heatmap_range = (0.0, 1.0)
    alarm_rate = 0.0
    groups = 1
    sample_bits: tuple[int, ...] = (8,)
    memory_shortages = 0

    def score(self, images: Sequence[Image], masks: Sequence[Mask | None] | None = None) -> list[Scores]:
        heatmap = np.zeros((8, 8), np.float32)
        return [Scores(0, 1.0, 0.0, 1.0, Decision.ACCEPT, heatmap) for _ in images]

    def field_px(self, height: int, width: int) -> int | None:
        return None

    def is_unusual_throughout(self, scores: Scores) -> bool:
        return False

    def close_ups(self, parts: Sequence[Image]) -> list[Maps]:
        return [[np.zeros((8, 8, 1), np.float32)] for _ in parts]


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each measurement")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="flawline-benchmark-") as folder:
        root = Path(folder)
        line = SimulatedLine(LineSettings(defect_rate=0.1))
        fitted = fit_detector([part.image for part in line.good_parts(GOOD_PARTS)], ScorerSettings())
        fitted.save(root / "model")
        images = [line.render(f"cam-{i % CAMERAS}", i).image for i in range(DISTINCT)]
        encoded = [imaging.encode(image, Codec.JPEG) for image in images]
        bare_hz = bare(root / "model", images, arguments.seconds)
        figures["bare_detector_images_per_second"] = bare_hz
        with EmbeddedBroker(root / "broker") as running:
            with working(running.bootstrap, root, "scoring") as settings:
                figures["actor_frames_per_second"] = backlog(settings, encoded, int(bare_hz * arguments.seconds))
                latencies_ms = paced(settings, encoded, PACE * bare_hz, arguments.seconds)
            with working(running.bootstrap, root, "instant", instant=True) as settings:
                figures["frames_per_second_without_scoring"] = backlog(settings, encoded, int(400 * arguments.seconds))
        stop_ray()
    figures["share_of_bare_detector"] = figures["actor_frames_per_second"] / bare_hz
    for name, share in (("p50", 50), ("p99", 99)):
        figures[f"latency_{name}_ms"] = float(np.percentile(latencies_ms, share))
    goals: dict[str, Goal] = {"share_of_bare_detector": (">=", 0.8), "latency_p99_ms": ("<=", 150)}
    emit("workers", figures, goals, arguments.json)


def bare(model: Path, images: list[np.ndarray], seconds: float) -> float:
    """Return the images per second of the detector alone, loaded as by an actor with one CPU."""
    loaded = load_detector(model, device="cpu", threads=1)
    loaded.score(images[:4])
    started, done = time.monotonic(), 0
    while time.monotonic() < started + seconds:
        loaded.score(images[:16])
        done += 16
    return done / (time.monotonic() - started)


def load_instant(path: Path, settings: WorkerSettings) -> InstantDetector:
    """Return a detector that needs no time, in place of a loaded model."""
    return InstantDetector()


@contextmanager
def working(bootstrap: str, root: Path, prefix: str, *, instant: bool = False) -> Iterator[Settings]:
    """Run one actor on separate topics and yield its settings."""
    settings = Settings(
        data_dir=root,
        line=prefix,
        kafka=KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=f"{prefix}.", camera_partitions=CAMERAS),
        worker=WorkerSettings(model=str(root / "model"), actors=1),
    )
    supervisor = Supervisor(settings, load=load_instant) if instant else Supervisor(settings)
    try:
        supervisor.start()
        yield settings
    finally:
        supervisor.stop()


def frames(encoded: list[bytes], epoch: int, count: int) -> Iterator[Frame]:
    """Yield `count` frames of the cameras in turn, captured when they are asked for."""
    for index in range(count):
        data = encoded[index % len(encoded)]
        header = imaging.probe(data)
        yield Frame(
            camera=f"cam-{index % CAMERAS}",
            epoch=epoch,
            sequence=index // CAMERAS,
            captured_at=time.time_ns(),
            codec=Codec.JPEG,
            height=header.height,
            width=header.width,
            channels=3,
            data=data,
            checksum=messages.checksum(data),
            size_bytes=len(data),
        )


def backlog(settings: Settings, encoded: list[bytes], count: int, epoch: int = 1) -> float:
    """Return the frames per second through an actor that always finds more to do, after a warm-up."""
    send(settings, frames(encoded, epoch, count))
    times_s = np.sort([stamp_ms / 1000 for _, stamp_ms in verdicts(settings, epoch, count)])
    measured = times_s[int(count * WARM_UP_SHARE) :]
    return (len(measured) - 1) / (measured[-1] - measured[0])


def paced(settings: Settings, encoded: list[bytes], rate_hz: float, seconds: float, epoch: int = 2) -> list[float]:
    """Return the milliseconds from capture to the verdict's time in the log, at a steady rate."""
    count = int(rate_hz * seconds)

    def on_time() -> Iterator[Frame]:
        started = time.monotonic()
        # Captured when it is due: a frame that leaves late has waited for its turn.
        for index, frame in enumerate(frames(encoded, epoch, count)):
            time.sleep(max(0.0, started + index / rate_hz - time.monotonic()))
            yield Frame(**{**vars(frame), "captured_at": time.time_ns()})

    send(settings, on_time())
    return [stamp_ms - verdict.captured_at / 1e6 for verdict, stamp_ms in verdicts(settings, epoch, count)]


def send(settings: Settings, all_frames: Iterator[Frame]) -> None:
    """Publish frames, each on its camera's partition."""
    producer = kafka_clients.producer(settings)
    for frame in all_frames:
        producer.send(
            settings.topic("frames"),
            key=frame.camera.encode(),
            value=messages.encode(frame),
            headers=messages.headers(frame),
            partition=int(frame.camera[-1]),
        )
    producer.close()


def verdicts(settings: Settings, epoch: int, count: int) -> list[tuple[Verdict, int]]:
    """Wait for all `count` verdicts of an epoch and return them with their time in the log in ms."""
    consumer = kafka_clients.consumer(settings)
    consumer.assign([TopicPartition(settings.topic("verdicts"), partition) for partition in range(CAMERAS)])
    consumer.seek_to_beginning()
    stamped: list[tuple[Verdict, int]] = []
    while len(stamped) < count:
        for records in consumer.poll(timeout_ms=500, max_records=500).values():
            decoded = [(messages.decode(Verdict, record.value), record.timestamp) for record in records]
            stamped += [pair for pair in decoded if pair[0].epoch == epoch]
    consumer.close()
    return stamped


if __name__ == "__main__":
    main()
