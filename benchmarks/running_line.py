"""A whole line as an operator runs it, `flawline up` on a broker behind a proxy, for benchmarks that disturb it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import psutil
import tomli_w
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from benchmarks.clocks import Clocks
from benchmarks.kafka_cluster import NODES, KafkaCluster
from benchmarks.small_disk import SmallDisk
from benchmarks.tcp_proxy import TcpProxy
from embedded_broker import EmbeddedBroker
from flawline import imaging, kafka_clients, messages
from flawline.child_process import ChildProcess
from flawline.clock import NS
from flawline.errors import FlawlineError
from flawline.messages import Verdict
from flawline.settings.tree import Settings, load_settings
from ledger.accounting import Report
from ledger.reader import LedgerReader
from producers.simulation import LineSettings, SimulatedLine
from tests.support.brokers import ApacheKafka, kafka_home

PARTS: Final = 84
"""Parts that the cameras show in a loop, one in ten with a defect."""

FIT_PARTS: Final = 112
FLOOD_HZ: Final = 40.0
FLOOD_S: Final = 30.0
STOP_TIMEOUT_S: Final = 90.0
DRAIN_S: Final = 300.0
"""What cameras that end leave in their spool has no verdict until they start again, and here they do not."""

POLL_S: Final = 0.05

METRICS_PORTS: Final = tuple(f"{role}_port" for role in ("producers", "workers", "discovery", "ledger", "up"))
ROLES: Final = ("produce", "work", "actor", "discover", "ledger", "console", "broker")

Broker = EmbeddedBroker | ApacheKafka | KafkaCluster


def make_broker(kind: str, folder: Path, proxy: TcpProxy) -> Broker:
    """Return a broker, not started, whose clients come through `proxy`. Raises SystemExit without Apache Kafka."""
    if kind == "embedded":
        options = ("--advertised-port", str(proxy.port), "--no-auto-create")
        return EmbeddedBroker(folder / "broker", options=options)
    if (home := kafka_home()) is None:
        raise SystemExit("set KAFKA_HOME to a folder of Apache Kafka 4, and install java")
    if kind == "cluster":  # its nodes find each other by their own ports, so it has no proxy
        return KafkaCluster(home, folder / "broker")
    return ApacheKafka(home, folder / "broker", advertised_port=proxy.port)


@dataclass(frozen=True)
class Footprint:
    """What a role holds: memory (resident bytes), open descriptors, threads."""

    rss_bytes: int
    descriptors: int
    threads: int


@dataclass
class Arrivals:
    """The verdicts that a reader of the topic has seen, with the time (monotonic, s) at which each came.

    `latency_s` is the time from the capture to the arrival.
    """

    at_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    camera: list[str] = field(default_factory=list)
    captured_at: list[int] = field(default_factory=list)
    count: Counter[str] = field(default_factory=Counter)

    def first_after(self, moment_s: float, captured_after_ns: int = 0) -> float | None:
        """Return the time of the first verdict after `moment_s` of a frame captured after `captured_after_ns`."""
        earliest = None
        for at_s, captured_at in zip(reversed(self.at_s), reversed(self.captured_at), strict=False):
            if at_s < moment_s:
                break
            if captured_at > captured_after_ns:
                earliest = at_s
        return earliest


class RunningLine:
    """The line: model, cameras, workers, discovery, ledger, and a broker that the benchmark starts and stops.

    With `clocks` the benchmark can make the clocks of its processes jump, with `disk` it can fill the broker's disk.
    `options` are sections of `line.toml`, `priorities` those of the cameras.
    """

    def __init__(
        self,
        folder: Path,
        broker: str,
        *,
        cameras: int,
        rate_hz: float,
        actors: int = 2,
        clocks: Clocks | None = None,
        disk: SmallDisk | None = None,
        priorities: Sequence[int] = (),
        **options: Any,
    ):
        self.folder = folder
        self.clocks, self.disk = clocks, disk
        self._priorities = priorities
        self._ends = contextlib.ExitStack()
        self.proxy = TcpProxy()
        self._kind = broker
        self._cameras, self._rate_hz, self._actors, self._options = cameras, rate_hz, actors, options
        self.broker: Broker
        self.settings: Settings
        self._up: ChildProcess | None = None
        self.arrivals = Arrivals()
        self._next_offset: dict[TopicPartition, int] = {}
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._read_verdicts, name="verdicts", daemon=True)

    def __enter__(self) -> RunningLine:
        with contextlib.ExitStack() as ends:
            ends.enter_context(self.proxy)
            if self.disk is not None:
                ends.enter_context(self.disk)
            self.broker = make_broker(self._kind, self.folder, self.proxy)
            ends.callback(lambda: self.broker.kill())  # whichever it is then
            self.start_broker()
            self._write_parts()
            self.settings = self._write_settings()
            kafka_clients.ensure_topics(self.settings)
            ends.callback(self.stop_up)
            self.start_up()
            self._watch.start()
            ends.callback(self._watch.join, 10)
            ends.callback(self._done.set)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._ends.close()

    # Parts of it

    def start_broker(self) -> None:
        """Start the broker, with the data it has."""
        with self.clocks.of("broker") if self.clocks is not None else contextlib.nullcontext():
            self.broker.start()
        if not isinstance(self.broker, KafkaCluster):
            self.proxy.target_port = self.broker.port
            self.proxy.accept()

    def end_broker(self, *, kill: bool) -> None:
        """End the broker, in order or as a crash does."""
        self.broker.kill() if kill else self.broker.stop()
        self.proxy.refuse()

    @property
    def broker_runs(self) -> bool:
        """Whether the broker's process is alive."""
        return self.broker.running

    def empty_disk(self) -> None:
        """Remove all data of the broker, which must not run."""
        if not isinstance(self.broker, EmbeddedBroker):
            self.broker = make_broker(self._kind, self.folder / f"again-{time.monotonic_ns()}", self.proxy)
        else:
            shutil.rmtree(self.broker.data_dir)

    def start_up(self) -> None:
        """Start `flawline up`."""
        clock = self.clocks.of("up") if self.clocks is not None else contextlib.nullcontext()
        with (self.folder / "up.log").open("ab") as log, clock:
            self._up = ChildProcess(
                [sys.executable, "-m", "station.cli", "up"],
                environment={"FLAWLINE_CONFIG": str(self.folder / "line.toml")},
                stdout=log,
                stderr=log,
            )

    def stop_up(self) -> int | None:
        """Stop `flawline up` as an operator does; return its exit code."""
        if self._up is None:
            return None
        self._up.stop(STOP_TIMEOUT_S)
        return self._up.poll()

    @property
    def up_runs(self) -> bool:
        """Whether `flawline up` is alive."""
        return self._up is not None and self._up.poll() is None

    def processes(self, role: str) -> list[psutil.Process]:
        """Return the processes of a role: `produce`, `work`, `discover`, `ledger`, or `actor` for those of `work`."""
        mark = "ray::Inspector" if role == "actor" else f"station.cli {role}"
        return [process for process, command in self._commands() if mark in command]

    def _commands(self) -> list[tuple[psutil.Process, str]]:
        commands = []
        if self._up is not None and self.up_runs:
            for process in psutil.Process(self._up.pid).children(recursive=True):
                try:
                    commands.append((process, " ".join(process.cmdline())))
                except psutil.Error:
                    continue
        return commands

    def noted_captures(self) -> dict[str, tuple[int, int]]:
        """Return each camera's newest epoch on disk, and the captures that are noted there."""
        captures = {}
        for file in (self.folder / "data" / "spool").glob("*/journal.db"):
            with contextlib.closing(sqlite3.connect(file, timeout=5.0)) as journal, contextlib.suppress(sqlite3.Error):
                if row := journal.execute("SELECT epoch, captured FROM epochs ORDER BY epoch DESC LIMIT 1").fetchone():
                    captures[file.parent.name] = row
        return captures

    def footprint(self) -> dict[str, Footprint]:
        """Return what each role and the broker hold, summed over the processes of a role."""
        result = {}
        brokers = [] if isinstance(self.broker, KafkaCluster) else [psutil.Process(self.broker.pid)]
        for role in ROLES:
            rss_bytes = descriptors = threads = 0
            for process in brokers if role == "broker" else self.processes(role):
                try:
                    rss_bytes += process.memory_info().rss
                    descriptors += process.num_fds()
                    threads += process.num_threads()
                except psutil.Error:
                    continue
            result[role] = Footprint(rss_bytes, descriptors, threads)
        return result

    # What comes out

    def wait_for_verdicts(self, count: int = 1, timeout_s: float = 180.0) -> None:
        """Wait until so many more verdicts have come. Raises FlawlineError after `timeout_s`."""
        wanted, deadline = len(self.arrivals.at_s) + count, time.monotonic() + timeout_s
        while len(self.arrivals.at_s) < wanted:
            if time.monotonic() > deadline:
                raise FlawlineError(f"{len(self.arrivals.at_s)} of {wanted} verdicts after {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def settle(self, timeout_s: float) -> Report:
        """End the cameras; return the ledger's report when nothing is in flight any more, or after `timeout_s`."""
        asked: set[int] = set()
        deadline = time.monotonic() + timeout_s
        with LedgerReader(self.settings) as reader:
            while True:
                # One that has just been started does not know the signal yet: it dies of it, and `up` starts another.
                for process in self.processes("produce"):
                    if process.pid not in asked:
                        asked.add(process.pid)
                        process.terminate()
                report = reader.poll()
                is_over = self._cameras_have_ended() and report.total.captured and not report.total.in_flight
                if is_over or time.monotonic() > deadline:
                    return report
                time.sleep(0.5)

    def _cameras_have_ended(self) -> bool:
        return b"produce has ended" in (self.folder / "up.log").read_bytes()

    def _read_verdicts(self) -> None:
        while not self._done.is_set():
            try:
                self._follow_verdicts()
            except (KafkaError, FlawlineError):
                self._done.wait(0.2)

    def _follow_verdicts(self) -> None:
        consumer = kafka_clients.consumer(self.settings)
        topic = self.settings.topic("verdicts")
        try:
            while not (partitions := consumer.partitions_for_topic(topic)) and not self._done.wait(0.2):
                pass
            consumer.assign([TopicPartition(topic, number) for number in sorted(partitions or [])])
            for place in consumer.assignment():
                consumer.seek(place, self._next_offset.get(place, 0))
            while not self._done.is_set():
                for place, records in consumer.poll(timeout_ms=200).items():
                    for record in records:
                        self._take(record.value or b"")
                    self._next_offset[place] = records[-1].offset + 1
        finally:
            consumer.close(autocommit=False)

    def _take(self, value: bytes) -> None:
        try:
            verdict = messages.decode(Verdict, value)
        except messages.SchemaError:  # a fault put it there
            return
        self.arrivals.count[verdict.frame_id] += 1
        if self.arrivals.count[verdict.frame_id] == 1:
            self.arrivals.captured_at.append(verdict.captured_at)
            self.arrivals.latency_s.append((time.time_ns() - verdict.captured_at) * NS)
            self.arrivals.camera.append(verdict.camera)
            self.arrivals.at_s.append(time.monotonic())

    # Making it

    def _write_parts(self) -> None:
        from flawline.settings.scorer import ScorerSettings
        from scorer.fit import fit_detector

        line = SimulatedLine(LineSettings(seed=11, defect_rate=0.1))
        pictures = self.folder / "parts"
        pictures.mkdir(parents=True)
        for number in range(PARTS):
            image = line.render("camera", number).image
            (pictures / f"{number:04}.jpg").write_bytes(imaging.encode(image, messages.Codec.JPEG, quality=90))
        images = []
        for part in line.good_parts(FIT_PARTS):
            data = imaging.encode(part.image, messages.Codec.JPEG, quality=90)
            images.append(imaging.decode(data, messages.Codec.JPEG, shape=part.image.shape))
        fit_detector(images, ScorerSettings(), lambda *_: None).save(self.folder / "model")

    def _write_settings(self) -> Settings:
        kafka: dict[str, Any] = {"bootstrap_servers": self.broker.bootstrap, "camera_partitions": 4 * self._actors}
        if isinstance(self.broker, KafkaCluster):
            kafka |= {"replication_factor": NODES, "min_insync_replicas": 2}
        elif isinstance(self.broker, EmbeddedBroker):
            kafka["bootstrap_servers"] = f"127.0.0.1:{self.proxy.port}"
        content: dict[str, Any] = {
            "line": "faults",
            "data_dir": str(self.folder / "data"),
            "kafka": kafka,
            "metrics": dict.fromkeys(METRICS_PORTS, 0),
            "console": {"port": 0},
            "producer": {"drain_timeout_s": DRAIN_S},
            "worker": {"actors": self._actors, "num_cpus": 0.5, "model": str(self.folder / "model")},
            "cameras": [
                {"name": f"camera-{i}", "kind": "folder", "path": str(self.folder / "parts"), "rate_hz": self._rate_hz}
                | {"loop": True, "shuffle_seed": i}
                | ({"priority": self._priorities[i]} if self._priorities else {})
                for i in range(self._cameras)
            ],
        }
        for section, values in self._options.items():
            content[section] = content.get(section, {}) | values
        file = self.folder / "line.toml"
        file.write_text(tomli_w.dumps(content))
        os.environ.pop("FLAWLINE_CONFIG", None)
        return load_settings(file)


def capacity(broker: str, cameras: int) -> float:
    """Return the verdicts a second of a line whose cameras never let the workers rest."""
    with (
        tempfile.TemporaryDirectory(prefix="flawline-capacity-") as name,
        RunningLine(Path(name), broker, cameras=cameras, rate_hz=FLOOD_HZ) as line,
    ):
        line.wait_for_verdicts(50, timeout_s=300)
        before, started = len(line.arrivals.at_s), time.monotonic()
        time.sleep(FLOOD_S)
        return (len(line.arrivals.at_s) - before) / (time.monotonic() - started)
