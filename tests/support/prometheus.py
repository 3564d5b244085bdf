"""A private Prometheus server for a test: the Debian package's binary, a port of its own, its data in a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.ports import reserved_port

BINARY = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")


class PrometheusServer:
    """Scrapes `targets` ({job: [host:port]}) every second until `stop`, and evaluates the rule files `rules`.

    Every target gets the labels `labels`.
    """

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, Sequence[str]],
        rules: Sequence[Path] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        if BINARY is None:
            raise RuntimeError("prometheus is not installed")
        jobs = [
            {"job_name": job, "static_configs": [{"targets": list(hosts), "labels": dict(labels or {})}]}
            for job, hosts in targets.items()
        ]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": jobs,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self.url = f"http://127.0.0.1:{reserved_port()}"
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                BINARY,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=self._log,
        )
        self._wait_until_ready(Path(self._log.name))

    def _wait_until_ready(self, log: Path, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                if self._process.poll() is not None:
                    raise RuntimeError(f"prometheus ended: {log.read_text()}") from None
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"prometheus is not ready after {timeout_s} s")

    def get(self, path: str, **parameters: str | float) -> Any:
        """Return the `data` of an answer of the HTTP API. Raises AssertionError with Prometheus's refusal."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def range(self, expr: str, start: float, end: float, step_s: float = 1) -> list[dict[str, Any]]:
        """Return the series of a range query, as Grafana asks for panels and annotations."""
        return self.get("query_range", query=expr, start=start, end=end, step=step_s)["result"]

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
