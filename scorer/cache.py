"""Where the scorer keeps what it can make again, and how many CPUs it may use."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_dir() -> Path:
    """Return the folder of converted backbones and kernels: `FLAWLINE_CACHE`, by default `~/.cache/flawline`."""
    return Path(os.environ.get("FLAWLINE_CACHE") or Path.home() / ".cache" / "flawline")
