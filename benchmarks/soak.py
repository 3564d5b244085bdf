"""A whole line at a steady load for long, or overloaded: does anything grow, is every drop explained?

    python -m benchmarks.soak [--minutes N] [--load SHARE] [--broker apache] [--json FILE]
    python -m benchmarks.soak --overload FACTOR [--policy thin|oldest-first|keep] [--minutes N] [--json FILE]

First a line is flooded to learn how many verdicts a second this machine makes. Then the cameras of another line run at
`load` of that, or at `overload` times as much, and every few seconds it is noted what each role holds. The slope of
memory is that of a straight line through the means of twenty spans, with its 95 % confidence interval; the first part
of the run, in which caches fill, is left out. In an overload the first camera has a higher priority than the others.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import stats

from benchmarks.report import Goal, add_json_option, emit
from benchmarks.running_line import METRICS_PORTS, ROLES, Footprint, RunningLine, capacity
from flawline.errors import FlawlineError
from flawline.messages import DropReason
from flawline.settings.producers import Overload
from tests.support.ports import reserved_port

SAMPLE_S: Final = 2.0
WARM_SHARE: Final = 0.2
SPANS: Final = 20
SETTLE_S: Final = 900.0
FIRST_PRIORITY: Final = 2
BOUND_S: Final = 10.0
"""`producer.overload_after_s` in an overload, so that five minutes show where the line settles."""

LATE: Final = {Overload.OLDEST_FIRST: 2.0, Overload.THIN: 8.0}
"""How often the bound a verdict may be late: the workers' pace, as `oldest-first` measures it, is up to twice as slow
on a busy machine; `thin` settles at a multiple of the bound that grows with the overload (producers/overload.py)."""

MB: Final = 1e6
GAUGES: Final = {
    "producers_port": "flawline_producer_in_flight_bytes",
    "workers_port": "flawline_worker_in_flight_bytes",
}


@dataclass
class Samples:
    """What was seen over a run, each a list with one item for each sample."""

    at_s: list[float] = field(default_factory=list)
    footprints: dict[str, list[Footprint]] = field(default_factory=lambda: defaultdict(list))
    in_flight_bytes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def take(self, line: RunningLine) -> None:
        """Look at every role and at the metrics once."""
        self.at_s.append(time.monotonic())
        for role, held in line.footprint().items():
            self.footprints[role].append(held)
        for port, name in GAUGES.items():
            self.in_flight_bytes[name].append(largest(getattr(line.settings.metrics, port), name))


def largest(port: int, name: str) -> float:
    """Return the largest value of a metric of an endpoint over its labels, 0 when it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return 0.0
    return max((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), default=0.0)


def slope(at_s: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Return the slope of `values` per minute and its 95 % confidence interval, from the means of SPANS spans.

    Means of spans, because samples that follow each other are not independent.
    """
    spans = np.array_split(np.arange(len(at_s)), min(SPANS, max(3, len(at_s) // 3)))
    minutes, means = (np.array([series[span].mean() for span in spans]) for series in (at_s / 60, values))
    fit = stats.linregress(minutes, means)
    margin = stats.t.ppf(0.975, len(spans) - 2) * fit.stderr
    return fit.slope, fit.slope - margin, fit.slope + margin


def steadiness(samples: Samples) -> dict[str, float]:
    """Return for each role the slope of its memory, and how many descriptors and threads it has more at the end."""
    figures: dict[str, float] = {}
    first = int(len(samples.at_s) * WARM_SHARE)
    at_s = np.array(samples.at_s[first:])
    for role in ROLES:
        held = samples.footprints[role][first:]
        memory = np.array([sample.rss_bytes for sample in held]) / MB
        middle, low, high = slope(at_s, memory)
        figures |= {
            f"{role}_mb": float(np.median(memory)),
            f"{role}_mb_per_min": middle,
            f"{role}_mb_per_min_low": low,
            f"{role}_mb_per_min_high": high,
        }
        fifth = max(1, len(held) // 5)
        for name in ("descriptors", "threads"):
            counts = [getattr(sample, name) for sample in held]
            figures[f"{role}_more_{name}"] = float(np.median(counts[-fifth:]) - np.median(counts[:fifth]))
    return figures


def run(
    broker: str, minutes: float, cameras: int, rate_hz: float, policy: Overload, log: Path | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the figures of one run and its details; `rate_hz` is that of each camera."""
    priorities = [FIRST_PRIORITY] + [0] * (cameras - 1)
    with (
        tempfile.TemporaryDirectory(prefix="flawline-soak-") as name,
        RunningLine(
            Path(name),
            broker,
            cameras=cameras,
            rate_hz=rate_hz,
            priorities=priorities,
            producer={"overload": str(policy), "overload_after_s": BOUND_S},
            metrics={port: reserved_port() for port in METRICS_PORTS},
            console={"port": reserved_port()},
        ) as line,
    ):
        try:
            line.wait_for_verdicts(20, timeout_s=300)
            # What was captured while the workers still started waited for them, not for their work.
            samples, first, started, started_ns = Samples(), len(line.arrivals.at_s), time.monotonic(), time.time_ns()
            while time.monotonic() < started + minutes * 60:
                samples.take(line)
                time.sleep(SAMPLE_S)
            seconds, verdicts = time.monotonic() - started, len(line.arrivals.at_s) - first
            report = line.settle(SETTLE_S)
            time.sleep(1)  # the reader of verdicts is as far as the ledger
        finally:
            if log is not None:
                log.write_bytes((line.folder / "up.log").read_bytes())
        total, arrivals = report.total, line.arrivals
        measured = zip(arrivals.camera, arrivals.captured_at, arrivals.latency_s, strict=True)
        by_camera: dict[str, list[float]] = defaultdict(list)
        for camera, captured_at, latency_s in measured:
            if captured_at >= started_ns:
                by_camera[camera].append(latency_s)
        latencies = {camera: np.array(by_camera[camera]) for camera in sorted(by_camera)}
        others = np.concatenate(list(latencies.values())[1:])
        scored = Counter(arrivals.camera)
        figures = {
            "captures_per_s": cameras * rate_hz,
            "verdicts_per_s": verdicts / seconds,
            "captured": total.captured,
            "scored": total.scored,
            "dropped": sum(total.dropped.values()),
            "dropped_without_policy": sum(
                count
                for reason, count in total.dropped.items()
                if reason not in (DropReason.OVERLOAD, DropReason.OVERLOAD_OLDEST)
            ),
            "dead_lettered": sum(total.dead_lettered.values()),
            "in_flight": total.in_flight,
            "gaps": total.gaps,
            "conflicts": total.conflicts,
            "balanced": float(total.balanced),
            "latency_p50_s": float(np.quantile(others, 0.5)),
            "latency_p99_s": float(np.quantile(others, 0.99)),
            "latency_max_s": float(others.max()),
            "first_camera_latency_max_s": float(latencies["camera-0"].max()),
            "first_camera_verdicts_to_others": scored["camera-0"]
            / max(1, *(count for camera, count in scored.items() if camera != "camera-0")),
            "producer_in_flight_share": max(samples.in_flight_bytes[GAUGES["producers_port"]])
            / line.settings.producer.in_flight_limit_bytes,
            "worker_in_flight_share": max(samples.in_flight_bytes[GAUGES["workers_port"]])
            / line.settings.worker.in_flight_limit_bytes,
            "up_runs": float(line.up_runs),
            **steadiness(samples),
        }
    details = {
        "broker": broker,
        "minutes": minutes,
        "cameras": cameras,
        "rate_hz": rate_hz,
        "policy": str(policy),
        "dropped": dict(total.dropped),
        "samples": len(samples.at_s),
        "load_average": os.getloadavg(),
    }
    return figures, details


def goals(policy: Overload, *, is_overload: bool) -> dict[str, Goal]:
    """Return what a run must show."""
    wanted: dict[str, Goal] = {
        **dict.fromkeys(("dropped_without_policy", "dead_lettered", "in_flight", "gaps", "conflicts"), ("==", 0)),
        "balanced": ("==", 1),
        "up_runs": ("==", 1),
        # One frame may exceed the limit; the gauge of a worker adds what is decoded.
        "producer_in_flight_share": ("<=", 1),
        "worker_in_flight_share": ("<=", 2),
    }
    if is_overload:
        if policy in LATE:
            wanted["latency_max_s"] = ("<=", LATE[policy] * BOUND_S)
            wanted["dropped"] = (">", 0)
            wanted["first_camera_verdicts_to_others"] = (">=", 1)
        return wanted
    wanted["dropped"] = ("==", 0)
    for role in ROLES:
        wanted[f"{role}_mb_per_min_low"] = ("<=", 0)
        wanted[f"{role}_more_descriptors"] = ("<=", 2)
        wanted[f"{role}_more_threads"] = ("<=", 2)
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--load", type=float, default=0.8, help="share of what the line can do")
    parser.add_argument("--overload", type=float, help="captures for each verdict that the line can do")
    parser.add_argument("--policy", type=Overload, choices=list(Overload), default=Overload.THIN)
    parser.add_argument("--per-second", type=float, help="verdicts a second that the line can do; measured by default")
    parser.add_argument("--broker", choices=["apache", "embedded"], default="embedded")
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--log", type=Path, help="file for the log of the line")
    add_json_option(parser)
    arguments = parser.parse_args()
    try:
        per_s = arguments.per_second or capacity(arguments.broker, arguments.cameras)
        print(f"the line makes {per_s:.1f} verdicts a second", file=sys.stderr)
        rate_hz = round(per_s * (arguments.overload or arguments.load) / arguments.cameras, 2)
        figures, details = run(
            arguments.broker,
            arguments.minutes,
            arguments.cameras,
            rate_hz,
            arguments.policy if arguments.overload else Overload.KEEP,
            arguments.log,
        )
    except FlawlineError as error:
        raise SystemExit(f"soak: {error}") from error
    figures["capacity_per_s"] = per_s
    details["load"] = arguments.overload or arguments.load
    wanted = goals(arguments.policy, is_overload=arguments.overload is not None)
    emit("soak", figures, wanted, arguments.json, details=details)


if __name__ == "__main__":
    main()
