"""What every benchmark prints: its figures beside its goals, and the machine they were measured on."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import operator
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

Goal = tuple[str, float]

_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}
_PACKAGES: Final = (
    "flawline",
    "kafka-python",
    "crc32c",
    "numpy",
    "torch",
    "timm",
    "openvino",
    "faiss-cpu",
    "faiss-gpu-cuvs",
    "numba",
    "scipy",
    "scikit-learn",
    "ray",
)


def emit(
    name: str,
    figures: Mapping[str, float],
    goals: Mapping[str, Goal] | None = None,
    json_path: str | Path | None = None,
    *,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Print the report of one benchmark as JSON, write it to `json_path` too if given, and return it.

    `details` are what else the figures depend on, such as seeds and settings.
    `goals` maps a figure to `(operator, value)`, such as `(">=", 150)`; a figure that misses its goal is named on
    standard error and changes nothing else. Raises `ValueError` for a goal without a figure or an unknown operator.
    """
    goals = goals or {}
    for figure, (symbol, _) in goals.items():
        if figure not in figures or symbol not in _OPERATORS:
            raise ValueError(f"goal {figure} {symbol}: no such figure or operator")
    report = {
        "benchmark": name,
        "figures": {figure: _rounded(value) for figure, value in figures.items()},
        "goals": {figure: [symbol, value] for figure, (symbol, value) in goals.items()},
        "missed": missed(figures, goals),
        "environment": environment(),
        **({"details": dict(details)} if details else {}),
    }
    text = json.dumps(report, indent=2)
    print(text)
    for figure in report["missed"]:
        symbol, value = goals[figure]
        print(f"below goal: {figure} = {_rounded(figures[figure])}, wanted {symbol} {value}", file=sys.stderr)
    if json_path is not None:
        Path(json_path).write_text(text + "\n")
    return report


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json [FILE]`; `emit` prints the report in any case, and FILE gets it too."""
    parser.add_argument(
        "--json", nargs="?", type=Path, metavar="FILE", help="write the report, which is printed as JSON, to FILE too"
    )


def markdown(report: Mapping[str, Any], tables: Mapping[str, str]) -> str:
    """Return the report as Markdown: the benchmark's tables, all figures beside their goals, and the environment."""
    environment, goals = report["environment"], report["goals"]
    lines = [f"# Benchmark: {report['benchmark']}"]
    for name, table in tables.items():
        lines += ["", f"## {name}", "", table]
    lines += ["", "## Figures", "", "| figure | value | goal | reached |", "|---|---|---|---|"]
    for figure, value in report["figures"].items():
        goal = " ".join(map(str, goals[figure])) if figure in goals else ""
        lines.append(f"| {figure} | {value} | {goal} | {goal and ('no' if figure in report['missed'] else 'yes')} |")
    machine = {name: environment[name] for name in ("cpu", "cores", "memory_bytes", "system", "python")}
    lines += ["", "## Measured with", "", "| | |", "|---|---|"]
    for facts in (machine, environment["packages"], report.get("details", {})):
        lines += [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(lines) + "\n"


def missed(figures: Mapping[str, float], goals: Mapping[str, Goal]) -> list[str]:
    """Return the figures that do not reach their goal."""
    return [figure for figure, (symbol, value) in goals.items() if not _OPERATORS[symbol](figures[figure], value)]


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")


def environment() -> dict[str, Any]:
    """Return what a figure depends on besides the code: processor, cores, memory, Python and package versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional part that is not installed
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def cpu_model() -> str:
    """Return the processor's name as the system knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
