"""What the demo runs on: its folder, its settings as a `line.toml` of their own, and the roles as child processes."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from flawline.child_process import ChildProcess, exit_text, last_line
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings, load_settings

MARKER = ".flawline-demo"
CAMERAS = 4
STOP_TIMEOUT_S = 60.0

DESCRIBE_QUEUE_BYTES = 256 << 20
"""Eight times the default: on a slow machine the rejects of a short run wait for their description, none loses it."""

FAINT = {"contrast": 0.25, "size": 0.7}
"""Defects near what can be found: a model of 30 good parts of two products finds 23 of 32 such defects (AUROC 0.95),
and all of 32 at their usual size with a contrast of 0.4."""


def prepare_folder(out: Path) -> Path:
    """Return an empty folder for this run. A former run in it is replaced; any other content raises UsageError."""
    out = out.absolute()
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise UsageError(f"--out {out}: holds files that are not a demo run: name a new or empty folder")
    shutil.rmtree(out, ignore_errors=True)
    try:
        (out / "logs").mkdir(parents=True)
        (out / MARKER).touch()
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror}") from error
    return out


def simulated_cameras(frames: int, rate_hz: float, seed: int, *, hard: bool = False) -> list[dict[str, Any]]:
    """Return four cameras over which `frames` parts pass, one in five with a defect; faint defects with `hard`."""
    shares = [frames // CAMERAS + (index < frames % CAMERAS) for index in range(CAMERAS)]
    return [
        {"name": f"camera-{index + 1}", "kind": "simulated", "seed": seed, "frames": share, "rate_hz": rate_hz}
        | {"defect_rate": 0.2}
        | (FAINT if hard else {})
        for index, share in enumerate(shares)
        if share
    ]


def folder_cameras(data: Path, rate_hz: float, seed: int) -> list[dict[str, Any]]:
    """Return four cameras that share the test images of `data`, mixed."""
    return [
        {"name": f"camera-{index + 1}", "kind": "folder", "path": str(data.absolute()), "rate_hz": rate_hz}
        | {"shuffle_seed": seed, "shard": index, "shards": CAMERAS}
        for index in range(CAMERAS)
    ]


def write_settings(
    out: Path, base: Settings, bootstrap: str, cameras: list[dict[str, Any]], actors: int, *, is_embedded: bool = False
) -> Settings:
    """Write the run's settings to `out/line.toml`, for later commands on the run, and return them.

    An embedded broker is named by its port, so that `flawline up` can start it again on what the run has left.
    """
    values = base.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    kafka: dict[str, Any] = {"camera_partitions": max(8, 4 * actors)}
    embedded = values.get("embedded", {})
    if is_embedded:
        host, _, port = bootstrap.rpartition(":")
        embedded = embedded | {"host": host, "port": int(port)}
    else:
        kafka["bootstrap_servers"] = bootstrap
    if base.kafka.bootstrap_servers is not None:
        # On a broker that others use too, the run's topics must not mix with those of a line.
        kafka["topic_prefix"] = f"demo-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-"
    metrics = dict.fromkeys(
        ("producers_port", "workers_port", "discovery_port", "ledger_port", "up_port", "notify_port"), 0
    )
    content = values | {
        "line": "demo",
        "data_dir": str(out),
        "kafka": values.get("kafka", {}) | kafka,
        "embedded": embedded,
        "metrics": values.get("metrics", {}) | metrics,
        "console": values.get("console", {}) | {"port": _console_port(base)},
        "worker": {"describe_queue_bytes": DESCRIBE_QUEUE_BYTES} | values.get("worker", {}) | {"actors": actors},
        "cameras": cameras,
    }
    file = out / "line.toml"
    for section, secret in (
        ("kafka", "sasl_password"),
        ("grafana", "token"),
        ("grafana", "store_url"),
        ("store", "url"),
    ):
        content.get(section, {}).pop(secret, None)  # dumped masked; the roles read secrets from the environment
    for section, place in (("frames", "objects_url"), ("pictures", "url")):
        content.get(section, {}).pop(place, None)  # the run's frames stay in its folder: a store serves one line
    content.pop("parts", None)  # the messages of a plant are about the parts of another line
    for section in ("outbound", "webhooks"):
        content.pop(section, None)  # a plant is not told of a simulation
    file.touch(mode=0o600)  # other addresses may hold credentials
    file.write_text(tomli_w.dumps(json.loads(json.dumps(content))), encoding="utf-8")
    return load_settings(file)


def let_go_on(file: Path) -> Settings:
    """Change the settings of a run so that its cameras never end, and return them."""
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    for camera in content["cameras"]:
        camera.pop("frames", None)
        if camera["kind"] == "folder":
            camera["loop"] = True
    for name in content["metrics"]:
        if name.endswith("_port"):
            content["metrics"][name] = _free_port()
    file.write_text(tomli_w.dumps(content), encoding="utf-8")
    return load_settings(file)


def _console_port(base: Settings) -> int:
    """Return the port of the station: the configured one, or a free one where that is taken or turned off."""
    port = base.console.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return _free_port()
        return port or int(probe.getsockname()[1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Role:
    """A sub-command of flawline in a child process that ends with this one, its output in `logs/NAME.txt`."""

    def __init__(self, out: Path, name: str, *arguments: str) -> None:
        self.name = name
        self.log = out / "logs" / f"{name}.txt"
        with self.log.open("wb") as output:
            self._process = ChildProcess(
                [sys.executable, "-m", "station.cli", *arguments],
                environment={"FLAWLINE_CONFIG": str(out / "line.toml")},
                stdout=output,
                stderr=output,
            )

    @property
    def running(self) -> bool:
        """Return whether the role still runs. Raises FlawlineError with its last line when it failed."""
        code = self._process.poll()
        if code not in (None, 0):
            reason = last_line(self.log) or "it printed nothing"
            raise FlawlineError(f"role {self.name} ended with {exit_text(code)}: {reason} (see {self.log})")
        return code is None

    def stop(self) -> None:
        """End the role: SIGTERM, and SIGKILL after STOP_TIMEOUT_S."""
        self._process.stop(STOP_TIMEOUT_S)


def require_running(roles: Sequence[Role]) -> None:
    """Raise FlawlineError when one of the roles, none of which ends by itself, has ended."""
    for role in roles:
        if not role.running:
            raise FlawlineError(f"role {role.name} ended before its work was done (see {role.log})")
