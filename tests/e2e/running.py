"""Starts the demo as a user does, in a process of its own, and reads what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DEADLINE_S = 280.0


def start_demo(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`flawline demo` with its run, JSON and output in `folder`; `environment` is added to this process's own."""
    command = [sys.executable, "-m", "flawline", "demo", "--no-open", "--out", str(folder / "run")]
    command += ["--json", str(folder / "result.json"), *arguments]
    with (folder / "stdout.txt").open("w") as out, (folder / "stderr.txt").open("w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err, text=True, env=os.environ | environment)


def finish(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """The JSON of a demo that ends well."""
    code = process.wait(DEADLINE_S)
    assert code == 0, (folder / "stderr.txt").read_text()[-2000:]
    return json.loads((folder / "result.json").read_text())


def verdict_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the run's `verdicts.jsonl`."""
    return [json.loads(line) for line in Path(result["artefacts"]["verdicts"]).read_text().splitlines()]
