"""A run that is over: its last account and verdicts in a file, so that the station shows it when its broker is gone."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flawline.messages import Decision, Verdict
from ledger.accounting import Account, Report, SequenceRange

FILE = "ended.json"
STRIP = 50
"""Verdicts of each camera that are kept: as many as the live page shows."""


@dataclass(frozen=True)
class Picture:
    """The frame that stands in a camera's tile: its bytes as JPEG, and its size in pixels."""

    frame_id: str
    jpeg: bytes
    height: int
    width: int


@dataclass(frozen=True)
class ShownVerdict:
    """A verdict as the live page shows it; times are UTC ns, boxes x, y, width and height in pixels."""

    frame_id: str
    camera: str
    captured_at: int
    decided_at: int
    decision: Decision
    score: float
    boxes: tuple[tuple[int, int, int, int], ...]
    scene: str | None = None


@dataclass(frozen=True)
class EndedRun:
    """When a run ended (UTC ns), its account, and of each camera the last verdicts, the oldest first, and a picture."""

    at_ns: int
    report: Report
    verdicts: tuple[ShownVerdict, ...]
    pictures: tuple[Picture, ...]


def shown(verdict: Verdict) -> ShownVerdict:
    """Return what the live page shows of a verdict."""
    return ShownVerdict(
        verdict.frame_id,
        verdict.camera,
        verdict.captured_at,
        verdict.decided_at,
        verdict.decision,
        verdict.score,
        tuple(region.box for region in verdict.regions),
        verdict.scene,
    )


def last_verdicts(verdicts: Sequence[Verdict]) -> list[ShownVerdict]:
    """Return the last verdicts of each camera, from all in the order of their captures."""
    by_camera: dict[str, list[ShownVerdict]] = {}
    for verdict in verdicts:
        by_camera.setdefault(verdict.camera, []).append(shown(verdict))
    return [verdict for of_camera in by_camera.values() for verdict in of_camera[-STRIP:]]


def write(data_dir: Path, run: EndedRun) -> None:
    """Keep the end of a run in its data folder. Raises OSError."""
    content = {
        "at_ns": run.at_ns,
        "report": asdict(run.report),
        "verdicts": [asdict(verdict) for verdict in run.verdicts],
        "pictures": [
            asdict(picture) | {"jpeg": base64.b64encode(picture.jpeg).decode("ascii")} for picture in run.pictures
        ],
    }
    (data_dir / FILE).write_text(json.dumps(content), encoding="utf-8")


def read(data_dir: Path) -> EndedRun | None:
    """Return the end of the run in a data folder; None when there is none, or none that can be read."""
    try:
        content = json.loads((data_dir / FILE).read_text(encoding="utf-8"))
        return EndedRun(
            int(content["at_ns"]),
            _report(content["report"]),
            tuple(_verdict(values) for values in content["verdicts"]),
            tuple(
                Picture(**values | {"jpeg": base64.b64decode(values["jpeg"], validate=True)})
                for values in content["pictures"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, binascii.Error):
        return None


def forget(data_dir: Path) -> None:
    """Let a line that starts again in a folder be no ended run."""
    (data_dir / FILE).unlink(missing_ok=True)


def _report(values: Mapping[str, Any]) -> Report:
    accounts = {name: _account(account) for name, account in values["cameras"].items()}
    return Report(accounts, dict(values["unidentified"]), tuple(values["unreadable"]))


def _account(values: Mapping[str, Any]) -> Account:
    ranges = {name: tuple(SequenceRange(**item) for item in values[name]) for name in ("gap_ranges", "conflict_ranges")}
    return Account(**{**values, **ranges})


def _verdict(values: Mapping[str, Any]) -> ShownVerdict:
    boxes = tuple((int(x), int(y), int(width), int(height)) for x, y, width, height in values["boxes"])
    return ShownVerdict(**{**values, "decision": Decision(values["decision"]), "boxes": boxes})
