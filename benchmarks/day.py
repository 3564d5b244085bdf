"""A day of a line's ledger, discovery and store in simulated time: sizes on disk against their limits, and what went.

    python -m benchmarks.day [--cameras 10] [--rate-hz 5] [--defect-share 0.01] [--json FILE]

Simulated: the clock; the workers, whose messages are made here and go to an embedded broker in large batches; and how
long things are kept, which is a fraction of a day so that everything that retention does happens within it. Pictures
are random bytes of usual sizes. Frames are left out: a day of them is the limit of their topic, whatever comes.

Real: messages and their encoding, the broker's log and its retention, the ledger's reader and its snapshots, the store,
its intake (in batches of a minute, without the rounds of discovery) and its pruning.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from kafka.record.default_records import DefaultRecordBatchBuilder
from sqlalchemy import func, select

from benchmarks import report
from benchmarks.ledger import verdict
from discovery.store import pruning, registry, schema
from discovery.store.store import Batch, Store, TakenDefect
from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, messages, topics
from flawline.messages import (
    DeadLetter,
    DeadLetterReason,
    Decision,
    Defect,
    DefectRegion,
    DroppedRange,
    DropReason,
    LedgerEntry,
    Message,
    Tensor,
    Verdict,
)
from flawline.settings.retention import LEAST_TOPIC_BYTES
from flawline.settings.tree import Settings
from ledger.reader import LedgerReader
from tests.support.wire import Wire

SECOND_NS = 1_000_000_000
HOUR_S = 3600
DAY_S = 24 * HOUR_S
GROUPS = 7
DEAD_SHARE, DROPPED_SHARE = 1e-4, 5e-4
CROP_BYTES, MASK_BYTES, HEATMAP_SIDE, DIMENSION = 8_000, 600, 64, 512
VERDICT_BYTES = 320  # in the log, with headers
PICTURE_BYTES = CROP_BYTES + MASK_BYTES + 2 * HEATMAP_SIDE**2
KEPT_SHARE = 0.6
"""Topics and pictures may hold this share of what a day brings, so that their limits act."""

GOALS: dict[str, report.Goal] = {
    "things_over_their_limit": ("==", 0),
    "counts_that_differ": ("==", 0),
    "gaps": ("==", 0),
    "gaps_without_snapshot": ("==", 0),
    "ledger_start_s": ("<", 5),
    "store_start_s": ("<", 2),
    "broker_start_s": ("<", 5),
}


@dataclass(frozen=True)
class Plan:
    """What a day brings. A batch holds `step_s` seconds; the ledger reads and the store is pruned every `watch_s`."""

    cameras: int = 10
    rate_hz: float = 5.0
    defect_share: float = 0.01
    near_miss_share: float = 0.005
    report_s: int = 1
    step_s: int = 60
    watch_s: int = HOUR_S

    @property
    def captures(self) -> int:
        """All captures of the day."""
        return self.cameras * round(DAY_S * self.rate_hz)

    def settings(self, folder: Path, bootstrap: str) -> Settings:
        """Return the settings of a line whose limits act within the day."""
        defects = self.captures * (self.defect_share + self.near_miss_share)
        retention = {
            "min_free_bytes": 0,
            "verdicts_limit_bytes": max(LEAST_TOPIC_BYTES, round(KEPT_SHARE * self.captures * VERDICT_BYTES)),
            "defects_limit_bytes": max(LEAST_TOPIC_BYTES, round(KEPT_SHARE * defects * PICTURE_BYTES)),
            "pictures_limit_bytes": round(KEPT_SHARE * defects * PICTURE_BYTES),
            "near_miss_pictures_days": 0.25,
            "rejected_pictures_days": 0.75,
            "minutes_days": 0.5,
            "defect_rows_days": 0.9,
        }
        kafka = {"bootstrap_servers": bootstrap, "camera_partitions": self.cameras}
        return Settings.model_validate({"data_dir": folder, "kafka": kafka, "retention": retention})


class Clock:
    """The simulated time. It begins with the next full hour: the time stamps of snapshots are real, and lie before."""

    def __init__(self) -> None:
        self.begin_ns = time.time_ns() // (HOUR_S * SECOND_NS) * (HOUR_S * SECOND_NS) + HOUR_S * SECOND_NS
        self.second = 0

    def utc_ns(self) -> int:
        """Return the simulated time, UTC in ns."""
        return self.begin_ns + self.second * SECOND_NS

    def monotonic(self) -> float:
        """Return the seconds since the begin."""
        return float(self.second)


class SimulatedLine:
    """Cameras and workers of a day: writes their messages to the topics and gives what discovery takes in."""

    def __init__(self, plan: Plan, settings: Settings, wire: Wire, clock: Clock) -> None:
        self.plan, self._settings, self._wire, self._clock = plan, settings, wire, clock
        self._chance = random.Random(0)
        self._bytes = np.random.default_rng(0)
        self._epoch = clock.begin_ns // 1_000_000
        self._captured = [0] * plan.cameras
        self.dead = self.dropped = self.scored = self.defects = 0

    def step(self) -> Batch:
        """Make the messages of the next `step_s` seconds, and return what discovery takes in of them."""
        verdicts: list[Verdict] = []
        defects: list[TakenDefect] = []
        for camera in range(self.plan.cameras):
            made, camera_defects = self._camera_step(camera)
            verdicts += made
            defects += camera_defects
        self._clock.second += self.plan.step_s
        return Batch(verdicts, defects)

    def _camera_step(self, camera: int) -> tuple[list[Verdict], list[TakenDefect]]:
        plan, name = self.plan, str(camera)
        verdicts: list[Verdict] = []
        defects: list[Defect] = []
        letters: list[DeadLetter] = []
        entries: list[LedgerEntry] = []
        dropped: list[DroppedRange] = []
        for second in range(self._clock.second, self._clock.second + plan.step_s):
            at = self._clock.begin_ns + second * SECOND_NS
            while self._captured[camera] < (second + 1) * plan.rate_hz:
                sequence, draw = self._captured[camera], self._chance.random()
                self._captured[camera] += 1
                if draw < DEAD_SHARE:
                    letters.append(self._letter(name, sequence, at))
                elif draw < DEAD_SHARE + DROPPED_SHARE:
                    dropped.append(DroppedRange(sequence, sequence, DropReason.OVERSIZE))
                else:
                    verdicts.append(self._verdict(name, sequence, at, 1 - draw))
                    if verdicts[-1].decision is not Decision.ACCEPT:
                        defects.append(self._defect(verdicts[-1]))
            if (second + 1) % plan.report_s == 0:
                entries.append(LedgerEntry(name, self._epoch, self._captured[camera], tuple(dropped), at))
                self.dropped += len(dropped)
                dropped = []
        self._say(topics.VERDICTS, camera, verdicts)
        self._say(topics.DEFECTS, camera, defects)
        self._say(topics.LEDGER, 0, entries)
        self._say(topics.DEAD_LETTERS, 0, letters)
        self.dead, self.scored = self.dead + len(letters), self.scored + len(verdicts)
        self.defects += len(defects)
        return verdicts, [TakenDefect(item, (None,) * len(item.regions)) for item in defects]

    def _verdict(self, camera: str, sequence: int, at: int, draw: float) -> Verdict:
        reject, near = self.plan.defect_share, self.plan.near_miss_share
        decision = Decision.REJECT if draw < reject else Decision.REVIEW if draw < reject + near else Decision.ACCEPT
        made = verdict(camera, self._epoch, sequence)
        return replace(made, captured_at=at, decided_at=at, group=sequence % GROUPS, decision=decision)

    def _defect(self, of: Verdict) -> Defect:
        vector = self._bytes.normal(size=DIMENSION)
        region = DefectRegion(
            (10, 12, 8, 8), 64, 2.5, (8, 8, 12, 12), self._bytes.bytes(MASK_BYTES), self._bytes.bytes(CROP_BYTES),
            Tensor.of(vector / np.linalg.norm(vector), "float16"),
        )  # fmt: skip
        heat = Tensor("float16", (HEATMAP_SIDE, HEATMAP_SIDE), bytes(2 * HEATMAP_SIDE**2))
        return Defect(
            camera=of.camera, epoch=of.epoch, sequence=of.sequence, captured_at=of.captured_at,
            model_version=of.model_version, group=of.group, score=3.0, p_value=0.001, decision=of.decision,
            height=256, width=256, embedding_version="simulated", heatmap=heat, regions=(region,),
        )  # fmt: skip

    def _letter(self, camera: str, sequence: int, at: int) -> DeadLetter:
        name = messages.frame_id(camera, self._epoch, sequence)
        return DeadLetter(DeadLetterReason.UNDECODABLE, "simulated", "frames", 0, sequence, None, b"", (), at, name)

    def _say(self, topic: topics.Topic, partition: int, items: list[Any]) -> None:
        """Write messages as batches of at most half a MiB, each with the time of its capture."""
        for batch in _batches(items):
            error, _ = self._wire.produce(self._settings.topic(topic.name), batch, partition=partition)
            if error:
                raise RuntimeError(f"the broker refuses a batch for {topic.name} with error {error}")


def _batches(items: list[Message]) -> Iterator[bytes]:
    builder, size = None, 0
    for message in items:
        value, headers = messages.encode(message), messages.headers(message)
        if builder is not None and size + len(value) > 1 << 19:
            yield bytes(builder.build())
            builder = None
        if builder is None:
            builder, size, number = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 30), 0, 0
        at_ns: int = getattr(message, "captured_at", 0) or getattr(message, "at", 0)
        builder.append(number, at_ns // 1_000_000, None, value, headers)
        number += 1
        size += len(value) + 100
    if builder is not None:
        yield bytes(builder.build())


def run(plan: Plan, folder: Path) -> dict[str, float]:
    """Simulate a day and return its figures."""
    clock = Clock()
    with EmbeddedBroker(folder / "broker", options=("--housekeeping-interval", "0.2")) as broker:
        settings = plan.settings(folder, broker.bootstrap)
        kafka_clients.ensure_topics(settings)
        store = Store(settings.store_url, clock.utc_ns)
        with contextlib.closing(store), Wire(broker.bootstrap, timeout_s=60.0) as wire:
            line = SimulatedLine(plan, settings, wire, clock)
            with LedgerReader(settings, clock.utc_ns, monotonic=clock.monotonic) as follower:
                figures = _live(line, store, settings, clock, follower)
            figures |= _sizes(store, settings, folder)
            figures |= {f"forgotten {name}".replace(" ", "_"): count for name, count in _forgotten(store).items()}
            figures["counts_that_differ"] = _counts_that_differ(store, line)
        figures |= _starts(settings, clock, broker)
        figures["captures"] = plan.captures
    return figures


def _live(
    line: SimulatedLine, store: Store, settings: Settings, clock: Clock, follower: LedgerReader
) -> dict[str, float]:
    """Let the day go by; return how long the store took, and the ledger's account at its end."""
    longest_slice_s = longest_poll_s = ingest_s = 0.0
    pruner = pruning.Pruner(store, settings.retention, clock.monotonic)
    total = None
    while clock.second < DAY_S:
        batch = line.step()
        begun = time.perf_counter()
        store.ingest(batch)
        ingest_s += time.perf_counter() - begun
        if clock.second % line.plan.watch_s == 0:
            begun = time.perf_counter()
            total = follower.poll().total
            longest_poll_s = max(longest_poll_s, time.perf_counter() - begun)
            follower.keep_snapshot(0.0)
            while True:
                begun = time.perf_counter()
                if pruner.step() is None:
                    break
                longest_slice_s = max(longest_slice_s, time.perf_counter() - begun)
    assert total is not None
    return {
        "scored": total.scored,
        "gaps": total.gaps,
        "left_out": total.left_out,
        "ingest_s": ingest_s,
        "longest_poll_s": longest_poll_s,
        "longest_pruning_slice_s": longest_slice_s,
    }


def _sizes(store: Store, settings: Settings, folder: Path) -> dict[str, float]:
    """Return what lies on the disk, and how many things are larger than their limit."""
    time.sleep(2.0)  # some looks of the broker
    figures: dict[str, float] = {}
    over = 0
    for name, topic in topics.named():
        size = sum(file.stat().st_size for file in folder.glob(f"broker/topics/{name}~*/*/*.log"))
        figures[f"topic_{name}_bytes"] = size
        if topic.retention is not None:
            limit = topic.retention(settings.retention).limit_bytes
            figures[f"topic_{name}_limit_bytes"] = limit
            over += size > limit
    with store.reading() as connection:
        pictures = sum(pruning.picture_bytes(connection).values())
        figures["minutes"] = connection.scalar(select(func.count()).select_from(schema.verdict_minutes)) or 0
    limit = settings.retention.pictures_limit_bytes
    figures |= {"picture_bytes": pictures, "picture_limit_bytes": limit}
    figures["store_bytes"] = sum(file.stat().st_size for file in folder.glob("store.db*"))
    figures["things_over_their_limit"] = over + (pictures > limit)
    return figures


def _forgotten(store: Store) -> dict[str, int]:
    with store.reading() as connection:
        return pruning.forgotten(connection)


def _counts_that_differ(store: Store, line: SimulatedLine) -> int:
    """Return how many of the store's counts are not what the line has sent, whatever was forgotten."""
    minutes, defects, totals = schema.verdict_minutes.c, schema.defects, schema.defect_totals.c
    with store.reading() as connection:
        frames = connection.scalar(select(func.sum(minutes.frames))) or 0
        stored = connection.scalar(select(func.count()).select_from(defects)) or 0
        counted = connection.scalar(select(func.sum(totals.frames))) or 0
    return int(frames != line.scored) + int(stored + counted != line.defects)


def _starts(settings: Settings, clock: Clock, broker: EmbeddedBroker) -> dict[str, float]:
    """Return how long broker, store and ledger take to start: the ledger from its snapshot, and without one."""
    begun = time.perf_counter()
    broker.restart()
    figures: dict[str, float] = {"broker_start_s": time.perf_counter() - begun}
    begun = time.perf_counter()
    with contextlib.closing(Store(settings.store_url)) as store:
        registry.read(store)
        store.positions()
        figures["store_start_s"] = time.perf_counter() - begun
    for name in ("", "_without_snapshot"):
        if name:
            with contextlib.closing(kafka_clients.admin(settings)) as admin:
                admin.delete_topics([settings.topic(topics.LEDGER_SNAPSHOTS.name)])
        begun = time.perf_counter()
        with LedgerReader(settings, clock.utc_ns) as reader:
            total = reader.poll().total
        figures[f"ledger_start{name}_s"] = time.perf_counter() - begun
        figures[f"gaps{name}"] = total.gaps
        figures[f"left_out{name}"] = total.left_out
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=10)
    parser.add_argument("--rate-hz", type=float, default=5.0, help="captures of a camera in a second")
    parser.add_argument("--defect-share", type=float, default=0.01, help="share of the captures that is rejected")
    report.add_json_option(parser)
    options = parser.parse_args(arguments)
    plan = Plan(options.cameras, options.rate_hz, options.defect_share, options.defect_share / 2)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(plan, Path(folder))
    report.emit("day", figures, GOALS, options.json)


if __name__ == "__main__":
    main()
