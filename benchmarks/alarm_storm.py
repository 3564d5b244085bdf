"""What an alarm storm costs the line: every frame a reject, as under a lamp that fails, against every frame accepted.

    python -m benchmarks.alarm_storm [--json FILE] [--seconds N] [--rounds N]

One Ray actor with one CPU and the embedded broker, on this machine; simulated parts of 256 px as JPEG. Calm and storm
take turns on one actor, and a figure is the median over the rounds. Latencies are measured at half of what the calm
line can do.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import Goal, add_json_option, emit
from benchmarks.workers import CAMERAS, DISTINCT, GOOD_PARTS, PACE, backlog, bare, paced, working
from embedded_broker import EmbeddedBroker
from flawline import imaging
from flawline.messages import Codec, Decision
from flawline.ray_session import stop_ray
from flawline.settings.scorer import ScorerSettings
from producers.simulation import LineSettings, SimulatedLine
from scorer.fit import fit_detector
from scorer.load import load_detector

BRIGHTNESS = 0.3
"""Of a lamp that fails: dark enough that no part passes, bright enough that its look-alikes are known."""


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds, rounds = arguments.seconds, arguments.rounds
    rates: dict[str, list[float]] = {"calm": [], "storm": []}
    latencies_ms: dict[str, list[float]] = {"calm": [], "storm": []}
    with tempfile.TemporaryDirectory(prefix="flawline-benchmark-") as folder:
        root = Path(folder)
        line = SimulatedLine(LineSettings(defect_rate=0.0))
        fit_detector([part.image for part in line.good_parts(GOOD_PARTS)], ScorerSettings()).save(root / "model")
        encoded = frames_of(root / "model", [line.render(f"cam-{i % CAMERAS}", i).image for i in range(2 * DISTINCT)])
        bare_hz = bare(root / "model", [imaging.decode(data, Codec.JPEG) for data in encoded["calm"][:16]], seconds)
        with EmbeddedBroker(root / "broker") as running, working(running.bootstrap, root, "storm") as settings:
            for turn in range(2 * rounds):
                kind, epoch = ("calm", "storm")[turn % 2], 1 + 2 * turn
                rates[kind].append(backlog(settings, encoded[kind], int(bare_hz * seconds), epoch))
                times_ms = paced(settings, encoded[kind], PACE * rates["calm"][0], seconds, epoch + 1)
                latencies_ms[kind].append(float(np.percentile(times_ms, 99)))
        stop_ray()
    figures = {"bare_detector_images_per_second": bare_hz}
    for kind in ("calm", "storm"):
        figures[f"{kind}_frames_per_second"] = float(np.median(rates[kind]))
        figures[f"{kind}_latency_p99_ms"] = float(np.median(latencies_ms[kind]))
    figures["throughput_share"] = figures["storm_frames_per_second"] / figures["calm_frames_per_second"]
    figures["latency_p99_ratio"] = figures["storm_latency_p99_ms"] / figures["calm_latency_p99_ms"]
    goals: dict[str, Goal] = {"throughput_share": (">=", 0.85), "latency_p99_ratio": ("<=", 1.3)}
    emit("alarm_storm", figures, goals, arguments.json, details={"rates": rates, "latencies_p99_ms": latencies_ms})


def frames_of(model: Path, images: list[np.ndarray]) -> dict[str, list[bytes]]:
    """Return the JPEGs that the model accepts as "calm", and the same parts in the dark, none accepted, as "storm".

    Raises SystemExit when the model does not tell them apart, which would measure nothing.
    """
    detector = load_detector(model, device="cpu", threads=1)
    bright = [imaging.encode(image, Codec.JPEG) for image in images]
    dark = [imaging.encode((image * BRIGHTNESS).astype(np.uint8), Codec.JPEG) for image in images]
    accepted = {
        data: scores.decision is Decision.ACCEPT
        for data in (*bright, *dark)
        for scores in detector.score([imaging.decode(data, Codec.JPEG)])
    }
    pairs = [pair for pair in zip(bright, dark, strict=True) if accepted[pair[0]] and not accepted[pair[1]]]
    if len(pairs) < DISTINCT // 2:
        raise SystemExit(f"only {len(pairs)} of {len(images)} parts are accepted by day and not in the dark")
    return {"calm": [pair[0] for pair in pairs], "storm": [pair[1] for pair in pairs]}


if __name__ == "__main__":
    main()
