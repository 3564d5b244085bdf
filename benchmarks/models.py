"""What models under load cost: a shadow model beside the active one, and a publication in the middle of a stream.

    python -m benchmarks.models [--json FILE] [--seconds N] [--rounds N]

One Ray actor with one CPU and the embedded broker, simulated parts of 256 px as JPEG. Each round measures without the
shadow model and with it, one after the other, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import workers
from benchmarks.report import Goal, add_json_option, emit
from embedded_broker import EmbeddedBroker
from flawline import imaging, kafka_clients
from flawline.messages import Codec, ModelPointer
from flawline.settings.scorer import ScorerSettings
from flawline.settings.tree import KafkaSettings, Settings
from flawline.settings.workers import WorkerSettings
from producers.simulation import LineSettings, SimulatedLine
from scorer.fit import fit_detector
from workers import shadow_report
from workers.publish_model import publish_model, rollback, withdraw_shadow
from workers.supervisor import Supervisor, stop_ray

READY_S = 120.0
HELD = 2.0
"""A frame counts as held by a publication when it waits for so many times the p99 of the frames before."""


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="times that each measurement is made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flawline-benchmark-") as folder:
        root = Path(folder)
        line = SimulatedLine(LineSettings(defect_rate=0.1))
        for name, alarm_rate in (("first", 0.01), ("second", 0.02)):
            parts = [part.image for part in line.good_parts(workers.GOOD_PARTS)]
            fit_detector(parts, ScorerSettings(alarm_rate=alarm_rate)).save(root / name)
        images = [line.render(f"cam-{i % workers.CAMERAS}", i).image for i in range(workers.DISTINCT)]
        encoded = [imaging.encode(image, Codec.JPEG) for image in images]
        bare_hz = workers.bare(root / "first", images, arguments.seconds / 2)
        with EmbeddedBroker(root / "broker") as running:
            settings = Settings(
                data_dir=root,
                line="models",
                kafka=KafkaSettings(bootstrap_servers=running.bootstrap, camera_partitions=workers.CAMERAS),
                worker=WorkerSettings(actors=1),
            )
            kafka_clients.ensure_topics(settings)
            publish_model(settings, root / "first")
            supervisor = Supervisor(settings)
            try:
                supervisor.start()
                figures = beside_a_shadow(settings, supervisor, root, encoded, bare_hz, arguments)
                figures |= published(settings, root, encoded, bare_hz, arguments)
            finally:
                supervisor.stop()
        stop_ray()
    goals: dict[str, Goal] = {
        "shadow_throughput_ratio": (">=", 0.75),
        "shadow_p99_ratio": ("<=", 2.0),
        "publish_frames_decided_twice": ("==", 0),
    }
    emit("models", figures, goals, arguments.json)


def beside_a_shadow(
    settings: Settings,
    supervisor: Supervisor,
    root: Path,
    encoded: list[bytes],
    bare_hz: float,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Return throughput and latency without a shadow model and with it, and the share of frames that it scores."""
    hz: dict[bool, list[float]] = {False: [], True: []}
    p50_ms: dict[bool, list[float]] = {False: [], True: []}
    p99_ms: dict[bool, list[float]] = {False: [], True: []}
    epoch = scored = paced_frames = 0
    for _ in range(arguments.rounds):
        for with_shadow in (False, True):
            if with_shadow:
                publish_model(settings, root / "second", "shadow")
                wait_for(lambda: all(health.shadow for health in supervisor.health().values()))
            epoch += 2
            hz[with_shadow].append(workers.backlog(settings, encoded, int(0.7 * bare_hz * arguments.seconds), epoch))
            before = shadows(settings)
            latencies_ms = workers.paced(settings, encoded, workers.PACE * bare_hz, arguments.seconds, epoch + 1)
            p50_ms[with_shadow].append(float(np.percentile(latencies_ms, 50)))
            p99_ms[with_shadow].append(float(np.percentile(latencies_ms, 99)))
            if with_shadow:
                scored, paced_frames = scored + shadows(settings) - before, paced_frames + len(latencies_ms)
                withdraw_shadow(settings)
                wait_for(lambda: not any(health.shadow for health in supervisor.health().values()))
    figures = {"shadow_share_of_frames": scored / paced_frames}
    for name, values in (("frames_per_second", hz), ("latency_p50_ms", p50_ms), ("latency_p99_ms", p99_ms)):
        figures[f"{name}_alone"] = float(np.median(values[False]))
        figures[f"{name}_with_shadow"] = float(np.median(values[True]))
    # Of neighbours in time, then the median: the machine's other work changes both alike.
    figures["shadow_throughput_ratio"] = _ratio(hz)
    figures["shadow_p50_ratio"] = _ratio(p50_ms)
    figures["shadow_p99_ratio"] = _ratio(p99_ms)
    return figures


def _ratio(values: dict[bool, list[float]]) -> float:
    return float(np.median([beside / alone for alone, beside in zip(values[False], values[True], strict=True)]))


def published(
    settings: Settings,
    root: Path,
    encoded: list[bytes],
    bare_hz: float,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Return what a publication, and a rollback, do to a stream at a steady rate."""
    rate_hz, epoch = workers.PACE * bare_hz, 1_000
    first_s: list[float] = []
    back_s: list[float] = []
    held, longest_ms, command_s, twice = [], [], [], 0
    changes: list[tuple[list[float], Callable[[], ModelPointer]]] = [
        (first_s, lambda: publish_model(settings, root / "second")),
        (back_s, lambda: rollback(settings)),
    ]
    for _ in range(arguments.rounds):
        for times_s, change in changes:
            epoch += 1
            count = int(rate_hz * 3 * arguments.seconds)
            streaming = threading.Thread(
                target=workers.paced, args=(settings, encoded, rate_hz, 3 * arguments.seconds, epoch)
            )
            streaming.start()
            time.sleep(arguments.seconds)
            begun = time.monotonic()
            pointer = change()
            took_s = time.monotonic() - begun
            streaming.join()
            pairs = workers.verdicts(settings, epoch, count)
            times = np.array([stamp_ms / 1000 for _, stamp_ms in pairs])
            latency_ms = np.array([stamp_ms - verdict.captured_at / 1e6 for verdict, stamp_ms in pairs])
            announced_s = pointer.published_at / 1e9
            by_new = np.array([verdict.model_version == pointer.version for verdict, _ in pairs])
            times_s.append(float(times[by_new].min() - announced_s))
            twice += sum(number > 1 for number in Counter(verdict.frame_id for verdict, _ in pairs).values())
            if times_s is first_s:
                command_s.append(took_s)
                usual_ms = np.percentile(latency_ms[times < announced_s - 1], 99)
                during = (times >= announced_s) & (times < announced_s + times_s[-1] + 1)
                held.append(int((latency_ms[during] > HELD * usual_ms).sum()))
                longest_ms.append(float(latency_ms[during].max()))
    return {
        "publish_command_s": float(np.median(command_s)),
        "publish_to_first_verdict_s": float(np.median(first_s)),
        "rollback_to_first_verdict_s": float(np.median(back_s)),
        "publish_frames_held": float(np.median(held)),
        "publish_longest_latency_ms": float(np.median(longest_ms)),
        "publish_frames_decided_twice": twice,
    }


def shadows(settings: Settings) -> int:
    """Return how many results of the shadow model the topic has."""
    return sum(1 for _ in shadow_report.read(settings))


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true. Raises TimeoutError after READY_S."""
    deadline = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the workers did not follow within {READY_S:g} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
