"""Checks a model on another runtime or machine with its own pictures, so that a mismatch is never silent.

Thresholds hold where they were calibrated. Another runtime (or a GPU) gives nearly the same features. How near they are
is measured when the model is loaded: its pictures are scored, and compared with their scores when it was saved.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.messages import Codec
from scorer.evidence import Evidence
from scorer.features.graph import Image

# Pictures to compare, and the largest difference of the natural log of a score: runtimes in f32 agree within 1 %.
# The number of pictures is a judgement.
_PICTURES = 8
_TOLERANCE = 0.02

Raw = Callable[[Sequence[Image]], Sequence[float]]


def reference(evidence: Evidence, raw: Raw) -> dict[str, Any]:
    """Return the numbers of the pictures to compare, their raw scores here, and what this machine is."""
    numbers = sorted(evidence.pictures)
    chosen = numbers[:: max(1, -(-len(numbers) // _PICTURES))]
    return {
        "pictures": chosen,
        "raw": [float(score) for score in raw(_pictures(evidence, chosen))],
        "machine": machine(),
    }


@functools.cache
def machine() -> str:
    """Return the kind of processor and the release of OpenVINO: both may change the arithmetic of a runtime."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{name}, OpenVINO {importlib.metadata.version('openvino')}"
    return name


def must_check(stored: dict[str, Any] | None, runtime: str, calibrated: str) -> bool:
    """Tell whether a model that was calibrated on runtime `calibrated` must be checked before it is used here."""
    return runtime != calibrated or (stored or {}).get("machine", machine()) != machine()


def check(stored: dict[str, Any] | None, evidence: Evidence | None, raw: Raw, where: str, calibrated: str) -> None:
    """Raise FlawlineError when scores here, on runtime `where`, are not those on which the model was calibrated."""
    if stored is None or evidence is None:
        raise FlawlineError(
            f"was calibrated on {calibrated}, and holds no pictures to check that its thresholds hold on {where}: "
            f"{_remedy(where, calibrated)}"
        )
    now = np.asarray(raw(_pictures(evidence, stored["pictures"])), dtype=np.float64)
    off = float(np.abs(np.log(now / np.asarray(stored["raw"]))).max())
    if not off <= _TOLERANCE:
        there = calibrated if where != calibrated else stored.get("machine", calibrated)
        raise FlawlineError(
            f"scores on {where} here are up to {np.expm1(off):.1%} off those on {there}, where its thresholds were "
            f"calibrated: {_remedy(where, calibrated)}"
        )


def _remedy(where: str, calibrated: str) -> str:
    if where == calibrated:
        return "fit it again on this machine"
    return f'set worker.runtime = "{calibrated}", or fit it again with scorer.runtime = "{where}"'


def _pictures(evidence: Evidence, numbers: Sequence[int]) -> list[Image]:
    return [np.asarray(imaging.decode(evidence.pictures[i], Codec.JPEG), dtype=np.uint8) for i in numbers]
