"""What a person sees: progress on stderr, tables and JSON on stdout, errors in one red line."""

from __future__ import annotations

import json
import math
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

from flawline.errors import FlawlineError
from flawline.redaction import redact

LINE_INTERVAL_S = 5.0

FILE_WIDTH = 120


def out() -> Console:
    """Return the console for results."""
    # A file or a pipe has no width: without one a table would be squeezed into 80 columns.
    return Console() if sys.stdout.isatty() else Console(soft_wrap=True, width=FILE_WIDTH)


def err() -> Console:
    """Return the console for progress and errors."""
    return Console(stderr=True, soft_wrap=True)


def fail(message: str) -> None:
    """Print one red line on stderr."""
    err().print(Text(" ".join(message.split()), style="red"))


@contextmanager
def progress(description: str) -> Iterator[Callable[..., None]]:
    """Show a bar with an ETA on stderr, or a line every few seconds where stderr is no terminal.

    The callback takes what is done and the total, and optionally the name of the stage.
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
    """Return progress for a log file: nothing for quick work, then a line every few seconds."""
    printed_at = time.monotonic()
    started: dict[str, tuple[float, float]] = {}  # of each stage: the time of its first call, and what was done then

    def advance(done: float, total: float, stage: str = description) -> None:
        nonlocal printed_at
        now = time.monotonic()
        since, before = started.setdefault(stage, (now, done))
        if now - printed_at >= LINE_INTERVAL_S:
            printed_at = now
            left = (max(total, done) - done) * (now - since) / (done - before) if done > before else 0
            eta = f", about {left:.0f} s to go" if left >= 1 else ""
            print(f"{stage}: {done:.0f} of {max(total, done):.0f}{eta}", file=sys.stderr, flush=True)

    return advance


def emit_json(report: Any, to_stdout: bool, file: Path | None) -> bool:
    """Write a report as JSON to stdout, to a file, to both or to neither, and return whether it was asked for.

    Raises FlawlineError when the file cannot be written.
    """
    if to_stdout:
        print(_json(report))
    if file is not None:
        try:
            write_json(file, report)
        except OSError as error:
            raise FlawlineError(f"--json-file {file}: cannot be written: {error.strerror}") from error
    return to_stdout or file is not None


def write_json(file: Path, report: Any) -> None:
    """Write a report as JSON to a file, whole or not at all. Raises OSError."""
    with tempfile.NamedTemporaryFile("w", dir=file.absolute().parent, delete=False, encoding="utf-8") as part:
        part.write(_json(report) + "\n")
    Path(part.name).chmod(0o640)
    Path(part.name).replace(file)


def _json(report: Any) -> str:
    return json.dumps(_clean(report), indent=2, default=str, allow_nan=False)


def _clean(value: Any) -> Any:
    """Return the value with None for every number that is not finite, as JSON has no NaN, and without secrets."""
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return redact(value) if isinstance(value, str) else value
