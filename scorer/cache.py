"""Where the scorer keeps what it can make again, and how many CPUs it may use."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_count() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_dir() -> Path:
    """Where converted backbones are kept: `FLAWLINE_CACHE`, default `~/.cache/flawline`."""
    return Path(os.environ.get("FLAWLINE_CACHE") or Path.home() / ".cache" / "flawline")
