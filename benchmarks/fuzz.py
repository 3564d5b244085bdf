"""Damage messages and images by the hundred thousand and give them to everything that reads them.

`python -m benchmarks.fuzz [--messages 100000] [--images 10000] [--seed 0] [--json FILE]`. A process of its own reads,
so that one that crashes, hangs or takes all memory is seen and counted, and the rest goes on with the next item. What
a reader may do with an item is to take it or to refuse it with its reason; everything else is `unexpected`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import multiprocessing
import os
import random
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, Final, get_args

from benchmarks.report import Goal, add_json_option, emit
from discovery import record_checks
from flawline import imaging, messages
from flawline.byte_budget import ByteBudget
from flawline.messages import DeadLetterReason, Defect, Frame, SchemaError, Verdict
from flawline.settings.tree import FrameSettings
from tests.support.example_messages import example
from tests.support.mutations import OF_IMAGES, OF_MESSAGES, images, mutated
from workers.dead_letters import dead_letter
from workers.reading import Reader, Rejected

HANG_S: Final = 30.0
"""How long one item may take before it counts as a hang: half of `worker.hang_timeout_s`."""

LETTER_BYTES: Final = 34 << 20

GOALS: Final[dict[str, Goal]] = {
    "crashes": ("==", 0),
    "hangs": ("==", 0),
    "unexpected": ("==", 0),
    "slowest_message_ms": ("<=", 1_000),
    "slowest_image_s": ("<=", 10),
    "peak_rss_growth_mb": ("<=", 600),
}


@dataclass
class Tally:
    """What became of the items that one process has read; `slowest` has seconds and number of an item by kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, tuple[float, int]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    def add(self, kind: str, number: int, seconds: float, outcome: str) -> None:
        """Count an item."""
        self.outcomes[f"{kind}_{outcome}"] += 1
        self.slowest[kind] = max(self.slowest.get(kind, (0.0, 0)), (seconds, number))


class Readers:
    """Everything of the house that reads what came from outside."""

    def __init__(self) -> None:
        self._memory = ByteBudget(64 << 20)
        self._reader = Reader(FrameSettings(), None, self._memory, threading.Event())

    def message(self, kind: type, value: bytes) -> str:
        """Read a value as a message of a type, wherever the house does so; return what became of it."""
        try:
            messages.decode(kind, value)
            outcome = "taken"
        except SchemaError as error:
            if len(str(error)) > 1_000 or "\n" in str(error):
                raise AssertionError("a refusal is one short line") from error
            outcome = "refused"
        with contextlib.suppress(record_checks.Rejected):
            if kind is Verdict:
                record_checks.verdict_of(value)
            elif kind is Defect:
                record_checks.defect_of(value, {})
        if kind is Frame:
            self._frame(value)
        return outcome

    def image(self, data: bytes) -> str:
        """Read an image as the frame that a producer without checks would send; return what became of it."""
        frame = example(Frame)
        try:
            header = self._header(data)
        except Rejected:
            return "refused"
        value = messages.encode(
            Frame(
                frame.camera, 1, 2, 3, header.codec, header.height, header.width, header.channels, data,
                messages.checksum(data), len(data),
            )
        )  # fmt: skip
        return self._frame(value)

    def _header(self, data: bytes) -> Any:
        try:
            header = imaging.probe(data)
            if max(header.height, header.width) > messages.MAX_SIDE_PX:
                raise AssertionError("the header announces more than a frame can have")
        except imaging.ImageError as error:
            raise Rejected(DeadLetterReason.UNDECODABLE, str(error)) from error
        return header

    def _frame(self, value: bytes) -> str:
        try:
            picture = self._reader.read(value)
        except Rejected as rejected:
            record = SimpleNamespace(
                topic="frames", partition=0, offset=0, key=b"cam-1", value=value, headers=[("frame-id", value[:50])]
            )
            letter = dead_letter(record, rejected.reason, str(rejected), 1, topic="dead", limit_bytes=LETTER_BYTES)
            messages.decode(messages.DeadLetter, letter.record.value)
            return "refused"
        frame, pixels = picture.frame, picture.pixels
        if pixels.shape != (frame.height, frame.width, 3) or pixels.dtype not in ("uint8", "uint16"):
            raise AssertionError(f"{pixels.dtype} pixels of shape {pixels.shape}")
        return "taken"


def items(seed: int, message_count: int, image_count: int) -> Iterator[Callable[[], tuple[str, type, bytes]]]:
    """Yield what makes each item: its kind, its type and its bytes. The same item for the same seed and number."""
    types = get_args(messages.Message)
    originals = {kind: messages.encode(example(kind)) for kind in types}

    def message(number: int) -> tuple[str, type, bytes]:
        kind = types[number % len(types)]
        return "message", kind, mutated(random.Random(f"{seed} message {number}"), originals[kind], OF_MESSAGES)

    def image(number: int) -> tuple[str, type, bytes]:
        pictures = images()
        rng = random.Random(f"{seed} image {number}")
        return "image", Frame, mutated(rng, pictures[number % len(pictures)], OF_IMAGES)

    for number in range(message_count):
        yield functools.partial(message, number)
    for number in range(image_count):
        yield functools.partial(image, number)


def read_all(arguments: argparse.Namespace, first: int, at: Any, pipe: Connection) -> None:
    """Read the items from number `first` on, write the number of each to `at` before it, and send the tally."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # libpng writes a line for each damaged image
    readers, tally = Readers(), Tally()
    images()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, make in enumerate(items(arguments.seed, arguments.messages, arguments.images)):
        if number < first:
            continue
        at.value = number
        kind, message_type, data = make()
        started = time.perf_counter()
        try:
            outcome = readers.message(message_type, data) if kind == "message" else readers.image(data)
        except Exception as error:
            outcome = "unexpected"
            tally.unexpected.append(f"item {number}: {type(error).__name__}: {str(error)[:200]}")
        tally.add(kind, number, time.perf_counter() - started, outcome)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((tally, before_kb / 1024, peak_kb / 1024))


def watch(arguments: argparse.Namespace) -> tuple[list[tuple[Tally, float, float]], list[int], list[int]]:
    """Run readers until all items are read; return their tallies, and the numbers that crashed and that hung."""
    context = multiprocessing.get_context("spawn")
    tallies, crashed, hung, first = [], [], [], 0
    while first < arguments.messages + arguments.images:
        at = context.Value(ctypes.c_longlong, first)
        here, there = context.Pipe(duplex=False)
        reader = context.Process(target=read_all, args=(arguments, first, at, there), daemon=True)
        reader.start()
        there.close()
        seen, since = -1, time.monotonic()
        while not here.poll(0.2) and reader.is_alive():
            if at.value != seen:
                seen, since = at.value, time.monotonic()
            elif time.monotonic() - since > HANG_S and at.value > first:
                hung.append(seen)
                reader.kill()
                break
            print(f"\r{at.value} items", end="", file=sys.stderr)
        with contextlib.suppress(EOFError):
            if here.poll(0):
                tallies.append(here.recv())
                reader.join()
                break
        reader.join()
        if not hung or hung[-1] != at.value:
            crashed.append(at.value)
        first = at.value + 1
    print(file=sys.stderr)
    return tallies, crashed, hung


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    add_json_option(parser)
    arguments = parser.parse_args()
    started = time.monotonic()
    tallies, crashed, hung = watch(arguments)
    total = Tally()
    for tally, _, _ in tallies:
        total.outcomes.update(tally.outcomes)
        total.unexpected += tally.unexpected
        for kind, slowest in tally.slowest.items():
            total.slowest[kind] = max(total.slowest.get(kind, slowest), slowest)
    outcomes = total.outcomes
    emit(
        "fuzz",
        {
            "messages": outcomes["message_taken"] + outcomes["message_refused"],
            "messages_taken": outcomes["message_taken"],
            "images": outcomes["image_taken"] + outcomes["image_refused"],
            "images_taken": outcomes["image_taken"],
            "crashes": len(crashed),
            "hangs": len(hung),
            "unexpected": outcomes["message_unexpected"] + outcomes["image_unexpected"],
            "slowest_message_ms": 1_000 * total.slowest.get("message", (0.0, 0))[0],
            "slowest_image_s": total.slowest.get("image", (0.0, 0))[0],
            "peak_rss_mb": max((peak for _, _, peak in tallies), default=0.0),
            "peak_rss_growth_mb": max((peak - before for _, before, peak in tallies), default=0.0),
            "seconds": time.monotonic() - started,
        },
        GOALS,
        arguments.json,
        details={
            "seed": arguments.seed,
            "crashed": crashed,
            "hung": hung,
            "unexpected": total.unexpected[:50],
            "slowest_items": total.slowest,
        },
    )


if __name__ == "__main__":
    main()
