"""The role `work` in a process of its own, with the plain detector, whose load can be held up: `python -m` this FILE.

A folder `worker.model` that holds a file `held` is loaded for ever, and a file `loading` tells that it has begun.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import tomli_w

from flawline.settings.tree import Settings, load_settings
from flawline.settings.workers import WorkerSettings
from flawline.stopping import stop_on_signals
from tests.workers.line import PlainDetector, load_plain
from workers import supervisor


def start(settings: Settings, folder: Path) -> subprocess.Popen[bytes]:
    """Start the role with `settings`; its log is the file work.log of `folder`."""
    file = folder / "line.toml"
    values = settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    values["metrics"] = dict.fromkeys(
        ("producers_port", "workers_port", "discovery_port", "ledger_port", "up_port", "notify_port"), 0
    )
    file.write_text(tomli_w.dumps(values))
    with (folder / "work.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", __name__, str(file)], stdout=log, stderr=log)


def load_or_hang(path: Path, settings: WorkerSettings) -> PlainDetector:
    """Load the plain detector, unless the folder of `worker.model` holds the file `held`."""
    folder = Path(str(settings.model))
    if (folder / "held").exists():
        (folder / "loading").touch()
        time.sleep(600)
    return load_plain(path, settings)


class PlainSupervisor(supervisor.Supervisor):
    """A supervisor of actors with the plain detector."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, load=load_or_hang)


def main() -> None:
    """Run the role until it is told to stop."""
    supervisor.Supervisor = PlainSupervisor  # type: ignore[misc]
    with stop_on_signals() as stop:
        supervisor.run(load_settings(Path(sys.argv[1])), stop)


if __name__ == "__main__":
    main()
