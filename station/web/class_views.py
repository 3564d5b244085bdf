"""Pure functions from what is known of classes to what their pages show: order, sparklines, lineage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from discovery.store.decisions import SEVERITIES
from station.language.languages import N_
from station.web.queries import ClassRow

SORTS: dict[str, tuple[str, Callable[[ClassRow], Any]]] = {
    "members": (N_("most members"), lambda row: (-row.regions, row.id)),
    "last": (N_("last seen"), lambda row: (-row.last_seen_at.timestamp(), row.id)),
    "first": (N_("newest class"), lambda row: (-row.born_at.timestamp(), row.id)),
    "severity": (N_("most severe"), lambda row: (-_severity(row), -row.regions, row.id)),
    "name": (N_("name"), lambda row: ((row.name or "\U0010ffff").casefold(), row.id)),
}
"""The orders of the wall, with their words."""

SPARK_WIDTH, SPARK_HEIGHT = 240, 36
BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW = 150, 44, 230, 56


def _severity(row: ClassRow) -> int:
    return SEVERITIES.index(row.severity) + 1 if row.severity in SEVERITIES else 0


def matching(rows: Iterable[ClassRow], text: str, sort: str) -> list[ClassRow]:
    """Return the classes in whose id, name, state or severity each word of a text occurs, in an order of SORTS."""
    words = text.casefold().split()

    def fits(row: ClassRow) -> bool:
        content = " ".join((row.id, row.name or "", row.state, row.severity or "")).casefold()
        return all(word in content for word in words)

    return sorted((row for row in rows if fits(row)), key=SORTS[sort][1])


def spark(counts: Sequence[int]) -> str:
    """Return the points of a sparkline's bars as an SVG path, in units of SPARK_WIDTH x SPARK_HEIGHT; '' for none."""
    highest = max(counts, default=0)
    if not highest:
        return ""
    step = SPARK_WIDTH / len(counts)
    bars = []
    for place, count in enumerate(counts):
        if count:
            height = max(2.0, SPARK_HEIGHT * count / highest)
            bars.append(f"M{place * step:.1f} {SPARK_HEIGHT}v{-height:.1f}h{max(1.0, step - 1):.1f}v{height:.1f}z")
    return "".join(bars)


@dataclass(frozen=True)
class Box:
    """A class in the drawing of a lineage: its upper left corner, and whether it is the class of the page."""

    id: str
    x: int
    y: int
    is_shown: bool


@dataclass(frozen=True)
class Line:
    """A line from one box to another; a merge is dashed."""

    path: str
    is_merge: bool


@dataclass(frozen=True)
class Drawing:
    """The lineage of a class: what it came from on the left, what came from it on the right."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    width: int
    height: int


def lineage(class_id: str, parents: Mapping[str, Sequence[str]], merged_into: Mapping[str, str]) -> Drawing | None:
    """Return the drawing of a class's relatives, None for a class without any.

    `parents` has the classes from which each class was split, `merged_into` the class that each merged one is part of.
    """
    left = [(name, False) for name in parents.get(class_id, ())]
    left += [(name, True) for name, into in sorted(merged_into.items()) if into == class_id]
    right = [(child, False) for child, names in sorted(parents.items()) if class_id in names]
    right += [(merged_into[class_id], True)] if class_id in merged_into else []
    if not left and not right:
        return None
    rows = max(len(left), len(right), 1)
    place = COLUMN if left else 0
    middle = (rows - 1) * ROW // 2
    boxes, lines = [Box(class_id, place, middle, True)], []
    for column, x in ((left, 0), (right, place + COLUMN)):
        top = (rows - len(column)) * ROW // 2
        for number, (name, is_merge) in enumerate(column):
            y = top + number * ROW
            boxes.append(Box(name, x, y, False))
            first, last = ((x, y), (place, middle)) if x < place else ((place, middle), (x, y))
            x1, y1, x2, y2 = first[0] + BOX_WIDTH, first[1] + BOX_HEIGHT // 2, last[0], last[1] + BOX_HEIGHT // 2
            half = (x1 + x2) // 2
            lines.append(Line(f"M{x1} {y1}C{half} {y1} {half} {y2} {x2} {y2}", is_merge))
    width = max(box.x for box in boxes) + BOX_WIDTH
    return Drawing(tuple(boxes), tuple(lines), width, rows * ROW - (ROW - BOX_HEIGHT))
