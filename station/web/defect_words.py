"""What is known of a frame that was not accepted, in sentences for people who do not know the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

RATIO_LIMIT = 100.0
DECIDED = {
    "reject": "Rejected",
    "review": "Sent to review",
    "unknown-product": "Not decided: it looks like no product that the model knows",
}


def sentences(frame: Any, regions: Sequence[Any]) -> list[str]:
    """Return sentences about a frame (a row of `defects` with `class_name`) and its regions, the hottest first."""
    ratio = math.exp(min(frame.score, 20.0))
    times = f"{ratio:.1f}" if ratio < RATIO_LIMIT else f"more than {RATIO_LIMIT:g}"
    lines = [
        f"{DECIDED.get(frame.decision, frame.decision)}: its hottest place is {times} times as unusual as the hottest "
        "place of the good parts that look like it."
    ]
    if frame.p_value > 0:
        lines.append(
            f"Of good parts about 1 in {_count(1 / frame.p_value)} is as unusual (p-value {frame.p_value:.3g})."
        )
    local = [region for region in regions if region.area_px]
    if local:
        hottest = max(local, key=lambda region: region.peak)
        number = "One place stands out" if len(local) == 1 else f"{len(local)} places stand out, the hottest"
        joint = ", it is" if len(local) == 1 else " is"
        lines.append(f"{number}{joint} {place(frame, hottest)}, {hottest.width} × {hottest.height} px.")
    elif regions:
        lines.append("No single place stands out: the picture as a whole is unusual.")
    else:
        lines.append(
            "Its places were not described: the workers had no time for it, or its description is not there yet."
        )
    if frame.class_id:
        lines.append(f"It looks like class {frame.class_name or frame.class_id}.")
    elif regions:
        lines.append("It looks like no class that is known yet.")
    return lines


def place(frame: Any, region: Any) -> str:
    """Return where a region lies in its frame, as in "at the upper left"."""
    x = (region.x + region.width / 2) / frame.width
    y = (region.y + region.height / 2) / frame.height
    row = "upper" if y < 1 / 3 else "lower" if y > 2 / 3 else ""
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    if not row and not column:
        return "in the middle"
    if row and not column:
        return f"at the {row} edge"
    return f"at the {' '.join(word for word in (row, column) if word)}"


def _count(number: float) -> str:
    """Return a number as people say it, with two digits that count."""
    digits = max(0, math.floor(math.log10(max(number, 1))) - 1)
    return f"{round(number, -digits):,.0f}"
