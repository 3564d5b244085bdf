"""What the metrics of scores and pictures cost a worker, as shares of the time that scoring takes.

    python -m benchmarks.metrics_cost [--side 1024] [--json FILE]

Times in turns, in one process, with a model of simulated good parts: scoring a frame, counting its verdict, and
measuring its sharpness and brightness. A frame of each camera is measured once a second, so that share is also given
for a camera of 20 frames a second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from benchmarks import report
from flawline.settings.scorer import ScorerSettings
from producers.simulation.line import SimulatedLine
from producers.simulation.settings import LineSettings
from scorer.detector import Image
from scorer.fit import fit_detector
from tests.discovery.factories import verdict
from workers.image_quality import INTERVAL_S, measure
from workers.metrics import ScoreMetrics

GOALS: Final[dict[str, report.Goal]] = {"share of scoring at 20 frames/s": ("<", 0.01)}
GOOD_IMAGES, ROUNDS, RATE_HZ = 40, 60, 20


def timed(act: Callable[[], object]) -> float:
    """Return how long something takes, in seconds."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    line = SimulatedLine(LineSettings(products=("disc",)))
    good = [part.image for part in line.good_parts(GOOD_IMAGES)]
    detector = fit_detector(good, ScorerSettings())
    picture: Image = np.asarray(cv2.resize(good[0], (arguments.side, arguments.side)), np.uint8)
    counting, message = ScoreMetrics(), verdict(1)
    acts: dict[str, Callable[[], object]] = {
        "score": partial(detector.score, [picture]),
        "count": partial(counting.count, message),
        "measure": partial(measure, picture),
    }
    times: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(ROUNDS):
        for name, act in acts.items():
            times[name].append(timed(act))
    medians = {name: statistics.median(values) for name, values in times.items()}
    per_frame = medians["count"] + medians["measure"] / (RATE_HZ * INTERVAL_S)
    figures = {
        **{f"{name} (ms)": 1000 * value for name, value in medians.items()},
        "count / score": medians["count"] / medians["score"],
        "measure / score": medians["measure"] / medians["score"],
        "share of scoring at 20 frames/s": per_frame / medians["score"],
    }
    report.emit("metrics_cost", figures, GOALS, arguments.json, details={"side": arguments.side, "rounds": ROUNDS})


if __name__ == "__main__":
    main()
