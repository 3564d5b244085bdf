"""Which frames a person asks for: one filter for defects, pictures and judgements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, select

from discovery.pictures.policy import Stratum
from discovery.store import schema


@dataclass(frozen=True)
class Filter:
    """Which frames are meant: those for which all holds that is set.

    `since_ns` and `until_ns` are of the capture, from the first on and before the second. `group` is a look-alike group
    as model version and number.
    """

    camera: str | None = None
    class_id: str | None = None
    stratum: Stratum | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    decision: str | None = None
    lot: str | None = None
    shift: str | None = None
    shift_day: str | None = None
    group: tuple[str, int] | None = None
    part: str | None = None


ANY = Filter()

EQUAL = ("camera", "decision", "lot", "shift", "shift_day")
"""Fields of a filter that are columns of every table of frames."""


def limited(query: Select[Any], columns: Any, wanted: Filter) -> Select[Any]:
    """Return a query of frames, limited to what is wanted; `columns` are those of their table."""
    for name in EQUAL:
        if (value := getattr(wanted, name)) is not None:
            query = query.where(columns[name] == value)
    if wanted.stratum is not None:
        query = query.where(columns.stratum == str(wanted.stratum))
    if wanted.since_ns is not None:
        query = query.where(columns.captured_ns >= wanted.since_ns)
    if wanted.until_ns is not None:
        query = query.where(columns.captured_ns < wanted.until_ns)
    if wanted.class_id is not None:
        query = query.where(_of_class(columns, wanted.class_id))
    if wanted.group is not None or wanted.part is not None:
        query = query.where(_of_group_and_part(columns, wanted))
    return query


def _of_class(columns: Any, class_id: str) -> ColumnElement[bool]:
    if "class_id" in columns:
        return columns.class_id == class_id
    d = schema.defects.c
    return columns.frame_id.in_(select(d.frame_id).where(d.class_id == class_id))


def _of_group_and_part(columns: Any, wanted: Filter) -> ColumnElement[bool]:
    """Return the condition for group and part, which a judgement does not hold itself."""
    f = columns if "part" in columns else schema.frame_pictures.c
    here: list[ColumnElement[bool]] = []
    if wanted.group is not None:
        here += [f.model_version == wanted.group[0], f.group_id == wanted.group[1]]
    if wanted.part is not None:
        here.append(f.part == wanted.part)
    return and_(*here) if f is columns else columns.frame_id.in_(select(f.frame_id).where(*here))
