"""A short run of the whole line, every role in its own process, that fills a real Prometheus and a real PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psycopg

from discovery.store import judgements
from discovery.store.store import Batch, Store
from flawline import kafka_clients
from flawline.settings.scorer import ScorerSettings
from flawline.settings.tree import load_settings
from producers.simulation.dataset import write_dataset
from producers.simulation.line import SimulatedLine
from producers.simulation.settings import LineSettings
from scorer.fit import fit_detector
from tests.discovery import factories
from tests.support.ports import reserved_port
from tests.support.prometheus import PrometheusServer
from workers.publish_model import publish_model

ROOT = Path(__file__).parents[2]
PRODUCTS = ("disc", "coffee")
DEFECTS = ("hole", "scratch")
GOOD_IMAGES = 60
FRAME_LIMIT_BYTES = 256 << 10
TIMEOUT_S = 150.0
"""Generous: what is waited for takes 40 s on two idle cores."""


class LiveLine:
    """Two cameras that loop over parts with two kinds of defect, one whose only picture is too large, one away.

    A shadow model scores beside the active one, a person judges a frame, and a verdict of an hour ago makes the time
    since a stop of the line.
    """

    def __init__(self, folder: Path, store_url: str) -> None:
        self.folder = folder
        self.store_url = store_url
        self.started = time.time()
        self._roles: subprocess.Popen[bytes] | None = None
        self.prometheus: PrometheusServer | None = None

    def start(self) -> LiveLine:
        """Return when discovery has confirmed a class, the ledger has counted, and all metrics have been scraped."""
        line = LineSettings(products=PRODUCTS, defects=DEFECTS, size=2.5)
        write_dataset(self.folder / "parts", line, train=1, test_good=10, test_per_defect=12)
        self._write_oversize_picture()
        good = [part.image for part in SimulatedLine(line).good_parts(GOOD_IMAGES)]
        fit_detector(good, ScorerSettings()).save(self.folder / "model")
        fit_detector(good[::2], ScorerSettings()).save(self.folder / "shadow")
        file = self._write_config()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FLAWLINE_")}
        with (self.folder / "roles.log").open("wb") as log:
            command = [sys.executable, "-m", "station.cli", "up", "--config", str(file)]
            self._roles = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        metrics = self.settings.metrics
        self.prometheus = PrometheusServer(
            self.folder / "prometheus",
            {
                "producers": [f"127.0.0.1:{metrics.producers_port}"],
                "workers": [f"127.0.0.1:{metrics.workers_port}"],
                "discovery": [f"127.0.0.1:{metrics.discovery_port}"],
                "ledger": [f"127.0.0.1:{metrics.ledger_port}"],
            },
            rules=[ROOT / "deploy/prometheus/alerts.yml"],
            labels={"line": "test"},
        )
        self._wait("a verdict", lambda: self._sum("flawline_verdicts_total") > 0)
        self._send_rubbish()
        self._wait("a dead letter", lambda: self._sum("flawline_dead_letters_total") > 0)
        self._wait("a record that discovery refuses", lambda: self._sum("flawline_rejected_records_total") > 0)
        publish_model(self.settings, self.folder / "shadow", "shadow")
        self._take_in_a_verdict_of_an_hour_ago()
        self._wait("a dropped frame", lambda: self._sum("flawline_dropped_frames_total") > 0)
        self._wait("a defect without description", lambda: self._sum("flawline_undescribed_defects_total") > 0)
        self._wait("a kept picture", lambda: self._count("frame_pictures", "state = 'kept'") > 0)
        self._judge()
        self._wait("a confirmed class", lambda: self._count("class_events", "transition = 'confirmed'") > 0)
        self._wait("a frame with two decisions", lambda: self._sum("flawline_shadow_decisions_total offset 2s") > 0)
        self._wait("a day with a judgement", lambda: self._count("quality_shifts", "judgements > 0") > 0)
        self._wait("a confirmed class in the metrics",
                   lambda: self._sum('flawline_class_events_total{transition="confirmed"} offset 2s') > 0)  # fmt: skip
        self._wait("what Prometheus records", lambda: self._sum("count(flawline:score_drift:effect offset 2s)") > 0)
        self._wait("the ledger", lambda: self._sum('flawline_ledger_frames{outcome="scored"}') > 0)
        self._wait("a dead letter that is still counted", self._counts_dead_letters)
        return self

    def _write_oversize_picture(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
        place = self.folder / "oversize"
        place.mkdir()
        cv2.imwrite(str(place / "noise.png"), noise)

    def _write_config(self) -> Path:
        ports = {name: reserved_port() for name in ("producers_port", "workers_port", "discovery_port", "ledger_port")}
        parts = {"kind": "folder", "path": str(self.folder / "parts"), "loop": True, "rate_hz": 2.5, "shards": 2}
        content: dict[str, Any] = {
            "line": "test",
            "data_dir": str(self.folder / "data"),
            "embedded": {"port": reserved_port()},
            "frames": {"limit_bytes": FRAME_LIMIT_BYTES},
            "store": {"url": self.store_url},
            "metrics": ports,
            "console": {"port": reserved_port()},
            "producer": {"overload": "thin", "overload_after_s": 600.0},
            # No verdict is there within a microsecond.
            "worker": {
                "model": str(self.folder / "model"),
                "actors": 1,
                "describe_frames_per_s": 2.0,
                "takt_s": 1e-6,
            },
            "discovery": {"round_regions": 15, "round_interval_s": 4.0, "min_members": 4, "confirm_rounds": 2},
            "shifts": [{"name": "day", "begin": "00:00", "end": "00:00"}],
            "cameras": [
                {"name": "camera-1", "shard": 0} | parts,
                {"name": "camera-2", "shard": 1} | parts,
                {"name": "camera-3", "kind": "folder", "path": str(self.folder / "oversize")},
                {"name": "camera-4", "kind": "usb", "device": str(self.folder / "unplugged")},
            ],
        }
        file = self.folder / "line.toml"
        file.write_text(_toml(content))
        self.settings = load_settings(file)
        return file

    def _take_in_a_verdict_of_an_hour_ago(self) -> None:
        at = time.time_ns() - 3_600_000_000_000
        with contextlib.closing(Store(self.store_url)) as store:
            store.ingest(Batch(verdicts=[factories.verdict(0, "camera-1", captured_at=at)]))

    def _judge(self) -> None:
        """Say of a frame that the review page offers that its defect is real."""
        with contextlib.closing(Store(self.store_url)) as store:
            (frame,) = judgements.offered(store, judgements.Queue.ALARMS, limit=1)
            judgements.judge(store, frame.frame_id, "real", who="ada", why="seen", is_offered=True)

    def _send_rubbish(self) -> None:
        """Send a record that workers cannot use, and one that discovery cannot use."""
        producer = kafka_clients.producer(self.settings)
        try:
            for topic in ("frames", "defects"):
                producer.send(topic, key=b"camera-1", value=b"no message", partition=0).get(timeout=30)
        finally:
            producer.close(5)

    def _counts_dead_letters(self) -> bool:
        """Return whether the counter has been there for two seconds; an actor that was replaced starts it anew."""
        if self._sum("flawline_dead_letters_total") == 0:
            self._send_rubbish()
        return self._sum("flawline_dead_letters_total offset 2s") > 0

    def _sum(self, selector: str) -> float:
        assert self.prometheus is not None
        result = self.prometheus.get("query", query=f"sum({selector})")["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def _count(self, table: str, where: str) -> int:
        with psycopg.connect(self.store_url.replace("+psycopg", "")) as connection:
            relation = connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()
            if relation is None or relation[0] is None:
                return 0
            row = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()
            return row[0] if row else 0

    def _wait(self, what: str, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not happened():
            assert self._roles is not None
            if self._roles.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{what} does not come; the roles say:\n{self.log()[-6000:]}")
            time.sleep(0.3)

    def log(self) -> str:
        return (self.folder / "roles.log").read_text(errors="replace")

    def stop(self) -> None:
        """End every process."""
        if self.prometheus is not None:
            self.prometheus.stop()
        if self._roles is not None and self._roles.poll() is None:
            self._roles.send_signal(signal.SIGTERM)
            try:
                self._roles.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._roles.pid, signal.SIGKILL)
                self._roles.wait()


def _toml(content: dict[str, Any]) -> str:
    """Return settings as TOML: scalars first, then sections, then the cameras. JSON's scalars are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items() if not isinstance(value, dict | list)]
    for key, section in content.items():
        for table, head in [(section, f"[{key}]")] if isinstance(section, dict) else []:
            lines += [head, *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
        for table in section if isinstance(section, list) else []:
            lines += [f"[[{key}]]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"
