"""The same model on another runtime: checked on pictures that it carries, so that a mismatch is never silent.

Thresholds hold where they were calibrated. Another runtime (or a GPU) gives nearly the same features; how nearly is
measured at loading, on the model's own pictures, against the scores that they had when it was saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.messages import Codec
from scorer.backbone import Image
from scorer.evidence import Evidence

# Pictures that are compared, and the most that the natural log of a score may differ: runtimes in f32 agree within 1 %.
_PICTURES = 8
_TOLERANCE = 0.02

Raw = Callable[[Sequence[Image]], Sequence[float]]


def golden(evidence: Evidence, raw: Raw) -> dict[str, Any]:
    """Which pictures are compared, by number, and the raw scores that they have here."""
    numbers = sorted(evidence.pictures)
    chosen = numbers[:: max(1, -(-len(numbers) // _PICTURES))]
    return {"pictures": chosen, "raw": [float(each) for each in raw(_pictures(evidence, chosen))]}


def check(stored: dict[str, Any] | None, evidence: Evidence | None, raw: Raw, where: str, calibrated: str) -> None:
    """Raise FlawlineError when scores on runtime `where` are not those that the model was calibrated on."""
    if stored is None or evidence is None:
        raise FlawlineError(
            f"calibrated on {calibrated}, and carries no pictures to check that it holds on {where}: fit it again there"
        )
    now = np.asarray(raw(_pictures(evidence, stored["pictures"])), dtype=np.float64)
    off = float(np.abs(np.log(now / np.asarray(stored["raw"]))).max())
    if not off <= _TOLERANCE:
        raise FlawlineError(
            f"scores on {where} are up to {np.expm1(off):.1%} off those on {calibrated}, where its thresholds were "
            f"calibrated: fit it again on {where}"
        )


def _pictures(evidence: Evidence, numbers: Sequence[int]) -> list[Image]:
    return [np.asarray(imaging.decode(evidence.pictures[i], Codec.JPEG), dtype=np.uint8) for i in numbers]
