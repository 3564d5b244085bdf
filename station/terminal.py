"""What a person sees: progress on stderr, tables and JSON on stdout, errors in one red line."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from flawline.errors import FlawlineError, UsageError

LINE_INTERVAL_S = 5.0

FILE_WIDTH = 120

STDOUT = "-"
"""Target of `--json` without a file."""


def out() -> Console:
    """The console for results."""
    # A file or a pipe has no width: without one a table would be squeezed into 80 columns.
    return Console() if sys.stdout.isatty() else Console(soft_wrap=True, width=FILE_WIDTH)


def err() -> Console:
    """The console for progress and errors."""
    return Console(stderr=True, soft_wrap=True)


def fail(message: str) -> None:
    """One red line on stderr."""
    err().print(Text(" ".join(message.split()), style="red"))


@contextmanager
def progress(description: str) -> Iterator[Callable[..., None]]:
    """A bar with an ETA on stderr, or a line now and then where stderr is no terminal.

    The callback takes what is done and how much there is, and maybe the name of the stage.
    """
    console = err()
    if not console.is_terminal:
        yield _lines(description)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(done: float, total: float, stage: str = description) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=max(total, done))

        yield advance


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show the progress of each stage of work on images: the callback takes stage, done and total."""
    with progress("images") as advance:
        yield lambda stage, done, total: advance(done, total, stage)


def _lines(description: str) -> Callable[..., None]:
    """Progress for a log file: silent for what is quick, then a line every few seconds."""
    said_at = time.monotonic()
    began: dict[str, tuple[float, float]] = {}  # of each stage, when it was first heard of, and what was done by then

    def advance(done: float, total: float, stage: str = description) -> None:
        nonlocal said_at
        now = time.monotonic()
        since, before = began.setdefault(stage, (now, done))
        if now - said_at >= LINE_INTERVAL_S:
            said_at = now
            left = (max(total, done) - done) * (now - since) / (done - before) if done > before else 0
            eta = f", about {left:.0f} s to go" if left >= 1 else ""
            print(f"{stage}: {done:.0f} of {max(total, done):.0f}{eta}", file=sys.stderr, flush=True)

    return advance


def check_json_target(target: str | None) -> None:
    """UsageError when a JSON file could not be written; to be asked before the work, not after."""
    if target in (None, STDOUT):
        return
    path = Path(str(target))
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"--json {path}: cannot be written: name a file in a folder that exists and is writable")


def emit(payload: Any, target: str) -> None:
    """Write `payload` as JSON to stdout or, whole or not at all, to a file."""
    text = json.dumps(_finite(payload), indent=2, default=str, allow_nan=False)
    if target == STDOUT:
        print(text)
        return
    path = Path(target)
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.absolute().parent, delete=False, encoding="utf-8") as part:
            part.write(text + "\n")
        Path(part.name).chmod(0o644)
        Path(part.name).replace(path)
    except OSError as error:
        raise FlawlineError(f"--json {path}: cannot be written: {error.strerror}") from error


def _finite(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
