"""The classes that a run's discovery found, read from the store."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import select

from discovery.store import schema
from discovery.store.store import Store
from flawline.messages import ClassState

CROPS_SHOWN = 12

LIVING = (ClassState.CANDIDATE.value, ClassState.CONFIRMED.value)


@dataclass(frozen=True)
class ClassView:
    """One class: its frames in order of capture, and crops (JPEG) of some of its members."""

    class_id: str
    name: str | None
    state: str
    frames: tuple[str, ...]
    crops: tuple[bytes, ...]


def found_classes(store: Store) -> list[ClassView]:
    """Return the candidate and confirmed classes that hold at least one frame, the largest first."""
    classes, defects, regions = schema.classes.c, schema.defects.c, schema.regions.c
    frames: dict[str, list[str]] = defaultdict(list)
    with store.reading() as connection:
        for member in connection.execute(
            select(defects.class_id, defects.frame_id)
            .where(defects.class_id.is_not(None))
            .order_by(defects.captured_ns, defects.id)
        ):
            frames[member.class_id].append(member.frame_id)
        views = []
        for row in connection.execute(
            select(classes.id, classes.name, classes.state).where(classes.state.in_(LIVING)).order_by(classes.number)
        ):
            if frames[row.id]:
                # The most salient members show what the class is.
                crops = connection.execute(
                    select(regions.crop)
                    .where(regions.class_id == row.id)
                    .order_by(regions.peak.desc(), regions.id)
                    .limit(CROPS_SHOWN)
                ).scalars()
                views.append(ClassView(row.id, row.name, row.state, tuple(frames[row.id]), tuple(crops)))
    return sorted(views, key=lambda view: (-len(view.frames), view.class_id))
