"""What is known of a frame that was not accepted, in sentences for people who do not know the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from station.language.languages import N_, Language

RATIO_LIMIT = 100.0
DECIDED = {
    "reject": N_("Rejected"),
    "review": N_("Sent to review"),
    "unknown-product": N_("Not decided: it looks like no product that the model knows"),
}


def sentences(frame: Any, regions: Sequence[Any], language: Language) -> list[str]:
    """Return sentences about a frame (a row of `defects` with `class_name`) and its regions, the hottest first."""
    ratio = math.exp(min(frame.score, 20.0))
    is_told = ratio < RATIO_LIMIT
    limit = language.number(RATIO_LIMIT)
    times = language.number(ratio, 1) if is_told else language.gettext("more than %(limit)s", limit=limit)
    lines = [
        language.gettext(
            "%(decided)s: its hottest place is %(times)s times as unusual as the hottest place of the good parts that "
            "look like it.",
            decided=language.known(DECIDED.get(frame.decision, frame.decision)),
            times=times,
        )
    ]
    if frame.p_value > 0:
        lines.append(
            language.gettext(
                "Of good parts about 1 in %(count)s is as unusual (p-value %(p_value)s).",
                count=language.number(_rounded(1 / frame.p_value)),
                p_value=language.significant(frame.p_value),
            )
        )
    local = [region for region in regions if region.area_px]
    if local:
        hottest = max(local, key=lambda region: region.peak)
        lines.append(
            language.ngettext(
                "One place stands out, it is %(place)s, %(width)s × %(height)s px.",
                "%(number)s places stand out, the hottest is %(place)s, %(width)s × %(height)s px.",
                len(local),
                place=language.known(PLACES[place(frame, hottest)]),
                width=hottest.width,
                height=hottest.height,
            )
        )
    elif regions:
        lines.append(language.gettext("No single place stands out: the picture as a whole is unusual."))
    else:
        lines.append(
            language.gettext(
                "Its places were not described: the workers had no time for it, or its description is not there yet."
            )
        )
    if frame.class_id:
        lines.append(language.gettext("It looks like class %(name)s.", name=frame.class_name or frame.class_id))
    elif regions:
        lines.append(language.gettext("It looks like no class that is known yet."))
    return lines


PLACES = {
    ("upper", "left"): N_("at the upper left"),
    ("upper", "middle"): N_("at the upper edge"),
    ("upper", "right"): N_("at the upper right"),
    ("middle", "left"): N_("at the left"),
    ("middle", "middle"): N_("in the middle"),
    ("middle", "right"): N_("at the right"),
    ("lower", "left"): N_("at the lower left"),
    ("lower", "middle"): N_("at the lower edge"),
    ("lower", "right"): N_("at the lower right"),
}


def place(frame: Any, region: Any) -> tuple[str, str]:
    """Return the third of its frame in which a region lies: by height and by width."""
    x = (region.x + region.width / 2) / frame.width
    y = (region.y + region.height / 2) / frame.height
    row = "upper" if y < 1 / 3 else "lower" if y > 2 / 3 else "middle"
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else "middle"
    return row, column


def _rounded(number: float) -> float:
    """Return a number with two digits that count, as people say it."""
    digits = max(0, math.floor(math.log10(max(number, 1))) - 1)
    return round(number, -digits)
