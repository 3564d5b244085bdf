"""The broker goes away from a running line and comes back: does every frame get its verdict, and how soon?

    python -m benchmarks.outages [--broker apache] [--plan KIND:SECONDS ...] [--log FILE] [--json FILE]

A plan is a list of outages, one after the other, each of so many seconds: `stop` (SIGTERM), `kill` (SIGKILL), `hold`
(the network drops every packet), `topic` (the topics `frames` and `verdicts` are deleted and made again; the seconds
are between the two), `disk` (the broker is killed and comes back with an empty disk), `node` (one of three nodes is
killed; with `--broker cluster`).

With `--load SHARE` the cameras run at that share of what the line can do, which a line of its own measures first. A
camera's frames keep their order, so without a policy live frames come behind those of the outage: at the share L they
are live again after the outage's length times L / (1 - L) at the soonest, a third of it at a share of a quarter.
`live_to_soonest` is how much longer it took. `--overload oldest-first` gives the old frames up instead.
"""

from __future__ import annotations

import argparse
import bisect
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.kafka_cluster import KafkaCluster
from benchmarks.report import Goal, add_json_option, emit
from benchmarks.running_line import Arrivals, RunningLine, capacity
from flawline import kafka_clients
from flawline.errors import FlawlineError
from flawline.messages import DropReason
from flawline.settings.producers import Overload

PLAN: Final = ("kill:10", "stop:20", "hold:30", "kill:45", "stop:95", "kill:180", "stop:300", "topic:5", "disk:10")
LOSSY: Final = ("topic", "disk")
"""Outages that take frames from the broker which it had acknowledged."""

BETWEEN_S: Final = 5.0
RESUME_LIMIT_S: Final = 120.0
SETTLE_S: Final = 900.0

USUAL_S: Final = 20.0
WINDOW_S: Final = 5.0
LIVE_LIMIT_S: Final = 900.0
BOUND_S: Final = 10.0
"""`producer.overload_after_s`, for `--overload`."""


def usual_latency(arrivals: Arrivals, now_s: float) -> float:
    """Return the median latency (s) of the verdicts of the last USUAL_S seconds."""
    recent = [s for at_s, s in zip(arrivals.at_s, arrivals.latency_s, strict=False) if at_s > now_s - USUAL_S]
    return statistics.median(recent)


def live_again(arrivals: Arrivals, back_at: float, usual_s: float, now_s: float) -> float | None:
    """Return how long after `back_at` verdicts were in time again: for WINDOW_S, half came within twice `usual_s`."""
    at_s = arrivals.at_s[:]
    for start in range(bisect.bisect_left(at_s, back_at), len(at_s)):
        if at_s[start] > now_s - WINDOW_S:
            break
        end = bisect.bisect_left(at_s, at_s[start] + WINDOW_S)
        if statistics.median(arrivals.latency_s[start:end]) <= 2 * usual_s:
            return at_s[start] - back_at
    return None


def soonest_live_s(away_s: float, load: float) -> float:
    """Return how soon (s) after an outage of `away_s` frames are live again that keep their order.

    `load` is the share of the line's verdicts a second that captures ask for: what is left works the backlog off.
    """
    return away_s * load / (1 - load) if load < 1 else math.inf


def catch_up_per_s(arrivals: Arrivals, back_at: float, live_s: float) -> float:
    """Return the verdicts a second from the first one after `back_at` until frames were live again."""
    first = bisect.bisect_left(arrivals.at_s, back_at)
    count = bisect.bisect_left(arrivals.at_s, back_at + live_s) - first
    return count / (back_at + live_s - arrivals.at_s[first]) if count > 0 else 0.0


def disturb(line: RunningLine, kind: str, away_s: float) -> float:
    """Do one outage; return the time (monotonic, s) at which the broker was back."""
    if kind == "hold":
        line.proxy.hold()
        time.sleep(away_s)
        line.proxy.resume()
    elif kind == "topic":
        admin = kafka_clients.admin(line.settings)
        try:
            admin.delete_topics([line.settings.topic(name) for name in ("frames", "verdicts")])
            time.sleep(away_s)
        finally:
            admin.close()
        kafka_clients.ensure_topics(line.settings)
    elif kind == "node":
        if not isinstance(line.broker, KafkaCluster):
            raise SystemExit("node: only a cluster has several: add --broker cluster")
        line.broker.kill(nodes=1)
        time.sleep(away_s)
        line.start_broker()
    else:
        line.end_broker(kill=kind != "stop")
        if kind == "disk":
            line.empty_disk()
        time.sleep(away_s)
        line.start_broker()
    return time.monotonic()


def run(
    broker: str,
    plan: list[tuple[str, float]],
    cameras: int,
    rate_hz: float,
    policy: Overload = Overload.KEEP,
    log: Path | None = None,
    load: float | None = None,
) -> dict[str, float]:
    """Return the figures of a plan of outages: kind and seconds; `log` takes the log of the line.

    `load` is the share of what the line can do at which the cameras run, None where it is not known.
    """
    figures: dict[str, float] = {}
    worst_s, longest_live_s, resumed = 0.0, 0.0, 0
    with (
        tempfile.TemporaryDirectory(prefix="flawline-outages-") as name,
        RunningLine(
            Path(name),
            broker,
            cameras=cameras,
            rate_hz=rate_hz,
            producer={"overload": str(policy), "overload_after_s": BOUND_S},
        ) as line,
    ):
        line.wait_for_verdicts(20)
        time.sleep(USUAL_S)
        try:
            for number, (kind, away_s) in enumerate(plan):
                usual_s = usual_latency(line.arrivals, time.monotonic())
                back_at, back_ns = disturb(line, kind, away_s), time.time_ns()
                first_s, new_s = wait_for(line, back_at, 0), wait_for(line, back_at, back_ns)
                figures[f"{number}_{kind}_{away_s:g}s_resumed_after_s"] = first_s
                figures[f"{number}_{kind}_{away_s:g}s_caught_up_after_s"] = new_s
                live_s = wait_until_live(line, back_at, usual_s)
                figures[f"{number}_{kind}_{away_s:g}s_live_after_s"] = live_s
                figures[f"{number}_{kind}_{away_s:g}s_catch_up_per_s"] = catch_up_per_s(line.arrivals, back_at, live_s)
                if load is not None and policy is Overload.KEEP:
                    figures[f"{number}_{kind}_{away_s:g}s_live_to_soonest"] = live_s / soonest_live_s(away_s, load)
                longest_live_s = max(longest_live_s, live_s)
                print(f"{kind} {away_s:g} s: a verdict after {first_s:.1f} s, of a new frame after {new_s:.1f} s, "
                      f"live (twice {usual_s:.2f} s) after {live_s:.1f} s", file=sys.stderr)  # fmt: skip
                resumed += new_s < RESUME_LIMIT_S
                worst_s = max(worst_s, first_s)
                time.sleep(BETWEEN_S)
            total = line.settle(SETTLE_S).total
        finally:
            if log is not None:
                log.write_bytes((line.folder / "up.log").read_bytes())
        figures |= {
            "outages": len(plan),
            "resumed": resumed,
            "longest_resume_s": worst_s,
            "longest_until_live_s": longest_live_s,
            "captured": total.captured,
            "scored": total.scored,
            "dropped": sum(total.dropped.values()),
            "dropped_without_policy": sum(total.dropped.values())
            - total.dropped.get(DropReason.OVERLOAD_OLDEST, 0)
            - total.dropped.get(DropReason.OVERLOAD, 0),
            "dead_lettered": sum(total.dead_lettered.values()),
            "in_flight": total.in_flight,
            "gaps": total.gaps,
            "conflicts": total.conflicts,
            "scored_twice": sum(count > 1 for count in line.arrivals.count.values()),
            "up_runs": float(line.up_runs),
        }
    return figures


def wait_for(line: RunningLine, back_at: float, captured_after_ns: int) -> float:
    """Return how long after `back_at` the first verdict of a frame that was captured later came; at most the limit."""
    while time.monotonic() - back_at < RESUME_LIMIT_S:
        if (first := line.arrivals.first_after(back_at, captured_after_ns)) is not None:
            return first - back_at
        time.sleep(0.1)
    return RESUME_LIMIT_S


def wait_until_live(line: RunningLine, back_at: float, usual_s: float) -> float:
    """Return how long after `back_at` verdicts were in time again; at most the limit."""
    while time.monotonic() - back_at < LIVE_LIMIT_S:
        if (after_s := live_again(line.arrivals, back_at, usual_s, time.monotonic())) is not None:
            return after_s
        time.sleep(0.5)
    return LIVE_LIMIT_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", choices=["apache", "cluster", "embedded"], default="embedded")
    parser.add_argument("--plan", nargs="+", default=list(PLAN))
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--rate-hz", type=float, default=5.0)
    parser.add_argument("--load", type=float, help="share of what the line can do, in place of --rate-hz")
    parser.add_argument("--overload", type=Overload, choices=list(Overload), default=Overload.KEEP)
    parser.add_argument("--log", type=Path, help="file for the log of the line")
    add_json_option(parser)
    arguments = parser.parse_args()
    plan = [(kind, float(seconds)) for kind, _, seconds in (item.partition(":") for item in arguments.plan)]
    rate_hz, cameras = arguments.rate_hz, arguments.cameras
    try:
        if arguments.load is not None:
            per_s = capacity(arguments.broker, cameras)
            print(f"the line makes {per_s:.1f} verdicts a second", file=sys.stderr)
            rate_hz = round(per_s * arguments.load / cameras, 2)
        figures = run(arguments.broker, plan, cameras, rate_hz, arguments.overload, arguments.log, arguments.load)
    except FlawlineError as error:
        raise SystemExit(f"outages: {error}") from error
    goals: dict[str, Goal] = {
        "resumed": ("==", len(plan)),
        "longest_resume_s": ("<=", 10),
        "longest_until_live_s": ("<=", 60),
        "dropped_without_policy": ("==", 0),
        "dead_lettered": ("==", 0),
        "in_flight": ("==", 0),
        "conflicts": ("==", 0),
        "up_runs": ("==", 1),
    }
    if not any(kind in LOSSY for kind, _ in plan):
        goals["gaps"] = ("==", 0)
    details = {
        "broker": arguments.broker,
        "plan": arguments.plan,
        "captures_per_s": rate_hz * cameras,
        "load": arguments.load,
        "overload": str(arguments.overload),
        "load_average": os.getloadavg(),
    }
    emit("outages", figures, goals, arguments.json, details=details)


if __name__ == "__main__":
    main()
