"""The whole line, measured from outside: `flawline demo` run once in peace and once with an actor killed.

    python -m benchmarks.line [--data DATA] [--frames N] [--json FILE]

Without `--data` on the simulated line. With it the streamed scores are compared with those of `flawline evaluate`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Goal, add_json_option, emit
from tests.e2e.running import verdicts_so_far

ACTOR_PREFIX = "ray::Inspector"
POLL_S = 0.3


def run_demo(folder: Path, arguments: list[str], kill_after: int | None = None) -> dict[str, Any]:
    """Run one demo in `folder` and return its result; kill an actor with SIGKILL after `kill_after` verdicts."""
    command = [sys.executable, "-m", "station.cli", "demo", "--no-open", "--out", str(folder / "run")]
    process = subprocess.Popen([*command, "--json-file", str(folder / "result.json"), *arguments], stdout=sys.stderr)
    if kill_after is not None:
        while process.poll() is None and verdicts_so_far(folder / "run" / "line.toml") < kill_after:
            time.sleep(POLL_S)
        victims = [child for child in children_of(process.pid) if command_of(child).startswith(ACTOR_PREFIX)]
        if not victims:
            raise SystemExit("no actor process was found to kill")
        victims[0].send_signal(signal.SIGKILL)
        print(f"killed {victims[0]}", file=sys.stderr)
    if process.wait():
        raise SystemExit(f"the demo ended with exit code {process.returncode}")
    return json.loads((folder / "result.json").read_text())


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def scores(result: dict[str, Any]) -> dict[tuple[str, int], float]:
    lines = Path(result["artefacts"]["verdicts"]).read_text().splitlines()
    return {(row["camera"], row["sequence"]): row["score"] for row in map(json.loads, lines)}


def offline_difference(result: dict[str, Any], data: Path, folder: Path) -> tuple[float, float]:
    """Return the largest difference between streamed and offline scores, and the offline pooled AUROC."""
    offline, report = folder / "offline.json", folder / "evaluation.json"
    command = [sys.executable, "-m", "station.cli", "evaluate", result["artefacts"]["model"], str(data)]
    subprocess.run([*command, "--scores", str(offline), "--json-file", str(report)], check=True, stdout=sys.stderr)
    expected = {Path(row["path"]).resolve(): row["aligned"] for row in json.loads(offline.read_text())}
    rows = [json.loads(line) for line in Path(result["artefacts"]["verdicts"]).read_text().splitlines()]
    streamed = {Path(row["path"]).resolve(): row["score"] for row in rows}
    if streamed.keys() != expected.keys():
        raise SystemExit(f"{len(streamed)} images were streamed, {len(expected)} evaluated offline")
    worst = max(abs(score - expected[path]) for path, score in streamed.items())
    return worst, json.loads(report.read_text())["pooled"]["image_auroc"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames", type=int, default=960)
    add_json_option(parser)
    arguments = parser.parse_args()
    options = ["--data", str(arguments.data)] if arguments.data else ["--frames", str(arguments.frames)]
    with tempfile.TemporaryDirectory() as scratch:
        peace, disturbed = Path(scratch) / "peace", Path(scratch) / "disturbed"
        peace.mkdir()
        disturbed.mkdir()
        result = run_demo(peace, options)
        ledger = result["ledger"]
        figures = {
            "to_first_verdict_s": result["seconds"]["to_first_verdict"],
            "total_s": result["seconds"]["total"],
            "peak_rss_gb": result["peak_rss_bytes"] / 1e9,
            "frames_per_second": result["frames_per_second"],
            "latency_p50_ms": result["latency_ms"]["p50"],
            "latency_p99_ms": result["latency_ms"]["p99"],
            "pooled_image_auroc": result["quality"]["pooled_image_auroc"],
            "alarm_rate": result["alarm_rate"]["measured"],
            "escape_rate": result["escape_rate"]["measured"],
            "classes_ari": result["classes"]["ari"],
            "captured": ledger["captured"],
            "gaps": ledger["gaps"],
            "balanced": float(ledger["balanced"]),
        }
        goals: dict[str, Goal] = {"gaps": ("==", 0), "balanced": ("==", 1), "peak_rss_gb": ("<=", 6)}
        if arguments.data:
            figures["streamed_minus_offline"], figures["offline_auroc"] = offline_difference(
                result, arguments.data, peace
            )
            goals |= {"pooled_image_auroc": (">=", 0.88), "streamed_minus_offline": ("<=", 1e-4)}
        else:
            goals |= {
                "pooled_image_auroc": (">=", 0.97),
                "to_first_verdict_s": ("<=", 30),
                "total_s": ("<=", 240),
            }
        before = scores(result)
        again = run_demo(disturbed, options, kill_after=ledger["captured"] // 3)
        after = scores(again)
        figures["killed_missing_verdicts"] = len(before.keys() ^ after.keys())
        figures["killed_score_difference"] = max(abs(before[key] - after[key]) for key in before.keys() & after.keys())
        figures["killed_extra_s"] = again["seconds"]["total"] - result["seconds"]["total"]
        goals |= {"killed_missing_verdicts": ("==", 0), "killed_score_difference": ("<=", 1e-4)}
    emit("line", figures, goals, arguments.json)


if __name__ == "__main__":
    main()
