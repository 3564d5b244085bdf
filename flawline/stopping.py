"""How a role is asked to stop: SIGTERM, Ctrl-C, or the end of the process that started it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PARENT_VARIABLE = "FLAWLINE_PARENT_PID"
"""Environment variable that names the parent process to a child, so that no child outlives its parent."""

PARENT_CHECK_S = 0.5  # a judgement, not measured


class Stop(threading.Event):
    """An event that asks for the end; `by_keyboard` tells whether a person set it (Ctrl-C)."""

    by_keyboard = False

    @property
    def exit_code(self) -> int:
        """The exit code of a process that ends for this event."""
        return 130 if self.by_keyboard else 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Give an event that SIGTERM and Ctrl-C set; a second Ctrl-C interrupts at once. Works in the main thread only."""
    stop = Stop()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if stop.is_set():
                raise KeyboardInterrupt
            stop.by_keyboard = True
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow_parent() -> None:
    """Send this process SIGTERM when its parent has gone, if `PARENT_VARIABLE` names that parent."""
    parent = os.environ.get(PARENT_VARIABLE, "")
    if parent.isdigit():
        threading.Thread(target=_watch, args=(int(parent),), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os.kill(os.getpid(), signal.SIGTERM)
