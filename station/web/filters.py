"""The filter in the address of a page or of an API call, and what a person can choose from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Query, Request

from discovery.pictures.policy import Stratum
from discovery.store import group_names
from discovery.store.database import nanoseconds
from discovery.store.filters import Filter
from flawline import clock
from flawline.messages import Decision
from flawline.settings.tree import Settings
from station.language.languages import N_
from station.web import queries

HOUR_NS = 3_600_000_000_000
HOURS_LIMIT = 10 * 365 * 24
HOURS = (
    (1, N_("last hour")),
    (8, N_("last 8 hours")),
    (24, N_("last 24 hours")),
    (168, N_("last 7 days")),
    (0, N_("any time")),
)
LAST_YEAR = 2100
"""No frame is of a later time, and nanoseconds of it fit into the store."""

Text = Annotated[str, Query(max_length=256)]
Short = Annotated[str, Query(max_length=64)]


async def _wanted(
    camera: Short = "",
    class_id: Annotated[str, Query(alias="class", max_length=64)] = "",
    kind: Annotated[str, Query(max_length=64, description="Kind of a kept frame, such as reject or near-miss.")] = "",
    decision: Annotated[str, Query(max_length=64, description="accept, review, reject or unknown-product.")] = "",
    lot: Text = "",
    shift: Short = "",
    shift_day: Annotated[str, Query(max_length=10, description="Day on which the shift began: 2026-11-28.")] = "",
    group: Annotated[str, Query(max_length=300, description="Look-alike group as MODEL:NUMBER.")] = "",
    part: Text = "",
    hours: Annotated[float, Query(ge=0, le=HOURS_LIMIT, description="Captured in the last hours; 0: any time.")] = 0,
    since: Annotated[datetime | None, Query(description="Captured from then on; without a zone it is UTC.")] = None,
    until: Annotated[datetime | None, Query(description="Captured before then; without a zone it is UTC.")] = None,
) -> Filter:
    texts = (camera, class_id, kind, decision, lot, shift, shift_day, group, part)
    if any("\0" in text for text in texts):
        raise HTTPException(400, "a filter holds no zero byte: correct it")
    if kind and kind not in list(Stratum):
        raise HTTPException(400, f"kind {kind}: one of {', '.join(Stratum)}")
    if decision and decision not in list(Decision):
        raise HTTPException(400, f"decision {decision}: one of {', '.join(Decision)}")
    return Filter(
        camera=camera or None,
        class_id=class_id or None,
        stratum=Stratum(kind) if kind else None,
        since_ns=clock.utc_ns() - round(hours * HOUR_NS) if hours else _ns(since, "since"),
        until_ns=_ns(until, "until"),
        decision=decision or None,
        lot=lot or None,
        shift=shift or None,
        shift_day=shift_day or None,
        group=_group(group) if group else None,
        part=part or None,
    )


Wanted = Annotated[Filter, Depends(_wanted)]
"""The frames that are asked for; what is not said is any."""


WORDS = {"class_id": "class", "stratum": "kind", "since_ns": "since", "until_ns": "until"}
"""What the fields of a filter are called in an address."""


def refuse(wanted: Filter, *names: str) -> None:
    """Raise HTTPException 400 when the filter has one of these fields, which a list does not know."""
    for name in names:
        if getattr(wanted, name) is not None:
            raise HTTPException(400, f"this list has no filter {WORDS.get(name, name)}: leave it out")


def _ns(at: datetime | None, name: str) -> int | None:
    if at is None:
        return None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    if not 1970 < at.year < LAST_YEAR:
        raise HTTPException(400, f"{name} {at.isoformat()}: it should be a time between 1971 and {LAST_YEAR}")
    return nanoseconds(at)


def _group(text: str) -> tuple[str, int]:
    model, colon, number = text.rpartition(":")
    if not colon or not number.isdecimal() or not number.isascii() or len(number) > 9:
        raise HTTPException(400, f"group {text}: it should be MODEL:NUMBER")
    return model, int(number)


@dataclass(frozen=True)
class Choices:
    """What the filters of a page offer."""

    cameras: list[str]
    classes: list[queries.ClassRow]
    lots: list[str]
    shifts: list[str]
    groups: list[tuple[str, str]]
    decisions: tuple[str, ...]


def choices(settings: Settings, store: Any) -> Choices:
    """Return what the filters offer: cameras, classes, the latest lots, the shifts of the calendar, named groups."""
    named = [
        (f"{group['model']}:{group['group']}", group["name"])
        for group in group_names.list_groups(store)
        if group["name"] is not None
    ]
    return Choices(
        cameras=queries.cameras_with_pictures(store, (camera.name for camera in settings.cameras)),
        classes=queries.classes(store),
        lots=[row.lot for row in queries.lots(store)],
        shifts=list(dict.fromkeys(shift.name for shift in settings.shifts)),
        groups=named,
        decisions=tuple(str(decision) for decision in Decision if decision is not Decision.ACCEPT),
    )


def query_of(request: Request, **changes: Any) -> str:
    """Return the query of an address with some values changed, to lead to the same list elsewhere."""
    from urllib.parse import urlencode

    values = {name: value for name, value in request.query_params.items() if value} | {
        name: value for name, value in changes.items() if value is not None
    }
    for name in [name for name in changes if changes[name] is None]:
        values.pop(name, None)
    return urlencode(values)
