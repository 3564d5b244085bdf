"""What exactly-once delivery costs beside at-least-once: latency of a paced line, and frames per second of a backlog.

    python -m benchmarks.delivery [--json FILE] [--seconds N] [--rounds N]

One inspector in this process, without a model, so that only the way from frame to visible verdict is measured: a reader
that sees what is committed takes the time. Both deliveries take turns on one Apache Kafka (KAFKA_HOME).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from kafka.structs import TopicPartition

from benchmarks.report import Goal, add_json_option, emit
from benchmarks.workers import CAMERAS, frames, load_instant, send
from flawline import imaging, kafka_clients, messages
from flawline.errors import FlawlineError
from flawline.messages import Codec, Frame, Verdict
from flawline.settings.tree import KafkaSettings, Settings
from flawline.settings.workers import WorkerSettings
from tests.support.brokers import ApacheKafka, kafka_home, unique
from workers.active_model import ModelRef
from workers.inspector import Inspector, member_name

DELIVERIES = ("at-least-once", "exactly-once")
RATE_HZ = 20.0
BACKLOG = 2_000


class Arrivals(threading.Thread):
    """Takes the time at which each verdict becomes visible, as (milliseconds since capture, monotonic seconds)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._client = kafka_clients.consumer(settings, max_poll_records=2_000)
        topic = settings.topic("verdicts")
        self._client.assign([TopicPartition(topic, number) for number in range(CAMERAS)])
        self._client.seek_to_beginning()
        self._ended = threading.Event()
        self.seen: list[tuple[float, float]] = []

    def run(self) -> None:
        """Read until the end."""
        while not self._ended.is_set():
            for records in self._client.poll(timeout_ms=100).values():
                for record in records:
                    captured_at = messages.decode(Verdict, record.value).captured_at
                    self.seen.append(((time.time_ns() - captured_at) / 1e6, time.monotonic()))
        self._client.close(autocommit=False)

    def wait_for(self, count: int, timeout_s: float = 120.0) -> list[tuple[float, float]]:
        """Return the first `count` arrivals, and end. Raises FlawlineError."""
        deadline = time.monotonic() + timeout_s
        while len(self.seen) < count:
            if time.monotonic() > deadline:
                raise FlawlineError(f"{len(self.seen)} of {count} verdicts within {timeout_s:.0f} s")
            time.sleep(0.05)
        self._ended.set()
        self.join()
        return self.seen[:count]


@contextmanager
def inspecting(bootstrap: str, root: Path, delivery: str) -> Iterator[Settings]:
    """Give the settings of a new line with one inspector at work."""
    (root / "model").mkdir(exist_ok=True)
    (root / "model" / "instant").touch()
    settings = Settings(
        data_dir=root,
        kafka=KafkaSettings(
            bootstrap_servers=bootstrap, topic_prefix=unique("d") + ".", camera_partitions=CAMERAS, delivery=delivery
        ),
        worker=WorkerSettings(model=str(root / "model"), actors=1),
    )
    kafka_clients.ensure_topics(settings)
    inspector = Inspector(settings, member_name(settings, 0), ModelRef(str(root / "model")), load_instant)
    thread = threading.Thread(target=inspector.run, daemon=True)
    thread.start()
    try:
        if not inspector.ready(60):
            raise FlawlineError("the inspector did not join")
        yield settings
    finally:
        inspector.stop()
        thread.join(30)


def paced(settings: Settings, encoded: list[bytes], seconds: float) -> list[float]:
    """Return the milliseconds from capture to visible verdict, RATE_HZ frames a second of all cameras together."""
    count = int(RATE_HZ * seconds)

    def on_time() -> Iterator[Frame]:
        started = time.monotonic()
        for index, frame in enumerate(frames(encoded, 1, count)):
            time.sleep(max(0.0, started + index / RATE_HZ - time.monotonic()))
            yield Frame(**{**vars(frame), "captured_at": time.time_ns()})

    arrivals = Arrivals(settings)
    arrivals.start()
    send(settings, on_time())
    return [latency_ms for latency_ms, _ in arrivals.wait_for(count)]


def backlog(settings: Settings, encoded: list[bytes]) -> float:
    """Return the frames per second of a backlog, by the times at which its verdicts become visible."""
    arrivals = Arrivals(settings)
    arrivals.start()
    send(settings, frames(encoded, 1, BACKLOG))
    times_s = sorted(at_s for _, at_s in arrivals.wait_for(BACKLOG))
    half = times_s[BACKLOG // 4 :]
    return (len(half) - 1) / (half[-1] - half[0])


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each paced measurement")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    home = kafka_home()
    if home is None:
        raise SystemExit("delivery: set KAFKA_HOME to a folder of Apache Kafka 4 (and have java)")
    picture = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    encoded = [imaging.encode(picture, Codec.JPEG)]
    latencies_ms: dict[str, list[float]] = defaultdict(list)
    rates_hz: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="flawline-delivery-") as folder:
        kafka = ApacheKafka(home, Path(folder) / "kafka")
        kafka.start()
        try:
            for delivery in DELIVERIES * arguments.rounds:
                with inspecting(kafka.bootstrap, Path(folder), delivery) as settings:
                    latencies_ms[delivery] += paced(settings, encoded, arguments.seconds)
                with inspecting(kafka.bootstrap, Path(folder), delivery) as settings:
                    rates_hz[delivery].append(backlog(settings, encoded))
        finally:
            kafka.stop()
    figures: dict[str, float] = {}
    for delivery in DELIVERIES:
        name = delivery.replace("-", "_")
        for share in (50, 99):
            figures[f"{name}_p{share}_ms"] = float(np.percentile(latencies_ms[delivery], share))
        figures[f"{name}_frames_per_second"] = float(np.median(rates_hz[delivery]))
    figures["latency_p50_added_ms"] = figures["exactly_once_p50_ms"] - figures["at_least_once_p50_ms"]
    figures["throughput_ratio"] = figures["exactly_once_frames_per_second"] / figures["at_least_once_frames_per_second"]
    goals: dict[str, Goal] = {"exactly_once_p99_ms": ("<=", 250), "throughput_ratio": (">=", 0.8)}
    emit("delivery", figures, goals, arguments.json, details={"load_average": os.getloadavg()})


if __name__ == "__main__":
    main()
