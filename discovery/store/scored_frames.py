"""The scores that the store holds of a model's frames: all alarms and near misses, and a sample of the accepted rest.

Alarms are rows of `defects`, the others rows of `frame_pictures`, which go with their pictures
(`pictures.near_miss_days`, `pictures.sample_days`). Judgements hold their scores themselves; the group of a judged
frame is known while the frame has a row in either.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import func, literal, select

from discovery.operating_point import Frames, Judgements
from discovery.pictures.policy import AUDITED, Stratum
from discovery.store import judgements, schema
from discovery.store.database import HOUR_NS, MINUTE_NS, stamp
from discovery.store.filters import EQUAL, Filter, limited
from discovery.store.frame_pictures import KEPT, LOST, WANTED
from discovery.store.store import Store
from flawline.messages import Decision

ROWS_LIMIT = 200_000
"""Alarms, and accepted frames, that are read at most, the latest. A judgement, not measured: one to two seconds."""

DAY_NS = 24 * HOUR_NS


@dataclass(frozen=True)
class Counted:
    """How many frames a model has decided: (frames, alarms) by camera and by group."""

    cameras: dict[str, tuple[int, int]]
    groups: dict[int, tuple[int, int]]

    @property
    def frames(self) -> int:
        """All frames."""
        return sum(frames for frames, _ in self.groups.values())

    @property
    def alarms(self) -> int:
        """Those that were not accepted."""
        return sum(alarms for _, alarms in self.groups.values())


@dataclass(frozen=True)
class JudgedFrame:
    """A frame with a judgement, as a page lists it."""

    frame: str
    camera: str
    at: Any
    decision: str
    score: float
    group: int
    word: str
    class_id: str | None
    class_name: str | None


def latest_model(store: Store) -> str | None:
    """Return the model that decided last, None before the first frame."""
    g = schema.groups.c
    with store.reading() as connection:
        return connection.scalar(select(g.model_version).order_by(g.last_at.desc()).limit(1))


def _is_long(store: Store, wanted: Filter) -> bool:
    return wanted.since_ns is None or (wanted.until_ns or store.utc_ns()) - wanted.since_ns > DAY_NS


def in_steps(store: Store, wanted: Filter) -> Filter:
    """Return a filter whose times are widened to what is counted: of more than a day whole hours, else minutes."""
    step_ns = HOUR_NS if _is_long(store, wanted) else MINUTE_NS
    since_ns, until_ns = wanted.since_ns, wanted.until_ns
    return replace(
        wanted,
        since_ns=None if since_ns is None else since_ns // step_ns * step_ns,
        until_ns=None if until_ns is None else -(-until_ns // step_ns) * step_ns,
    )


def counted(store: Store, model: str, wanted: Filter) -> Counted:
    """Return how many frames a model has decided, of a filter as `in_steps` returns it."""
    is_long = _is_long(store, wanted)
    table = schema.verdict_hours if is_long else schema.verdict_minutes
    v = table.c
    at = v.hour if is_long else v.minute
    query = select(v.camera, v.group_id, v.decision, func.sum(v.frames)).where(v.model_version == model)
    for name in EQUAL:
        if (value := getattr(wanted, name)) is not None:
            query = query.where(v[name] == value)
    if wanted.since_ns is not None:
        query = query.where(at >= stamp(wanted.since_ns))
    if wanted.until_ns is not None:
        query = query.where(at < stamp(wanted.until_ns))
    if wanted.group is not None:
        query = query.where(v.group_id == wanted.group[1])
    cameras: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    groups: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    with store.reading() as connection:
        for camera, group, decision, frames in connection.execute(query.group_by(v.camera, v.group_id, v.decision)):
            for counts in (cameras[camera], groups[group]):
                counts[0] += int(frames)
                counts[1] += int(frames) if decision != Decision.ACCEPT else 0
    return Counted(
        {camera: (frames, alarms) for camera, (frames, alarms) in sorted(cameras.items())},
        {group: (frames, alarms) for group, (frames, alarms) in sorted(groups.items())},
    )


def frames(store: Store, model: str, wanted: Filter, widths: np.ndarray) -> tuple[Frames, bool]:
    """Return the stored frames of a model, and whether there are more than ROWS_LIMIT; `widths` (K,) standardise."""
    d, f = schema.defects.c, schema.frame_pictures.c
    alarms: Any = select(d.camera, d.group_id, d.decision, d.score, literal(1.0)).where(d.model_version == model)
    accepted: Any = select(f.camera, f.group_id, f.stratum, f.score, 1 / f.probability).where(
        f.model_version == model, f.stratum.in_([str(stratum) for stratum in AUDITED])
    )
    alarms, accepted = limited(alarms, d, wanted), limited(accepted, f, wanted)
    latest, latest_accepted = d.id, f.id
    if wanted.since_ns is not None:  # by the indexes of time
        alarms = alarms.where(d.minute >= stamp(wanted.since_ns))
        accepted = accepted.where(f.state.in_((WANTED, KEPT, LOST)))
        latest, latest_accepted = d.minute, f.captured_ns
    with store.reading() as connection:
        rows: Any = connection.execute(alarms.order_by(latest.desc()).limit(ROWS_LIMIT + 1)).all()
        others: Any = connection.execute(accepted.order_by(latest_accepted.desc()).limit(ROWS_LIMIT + 1)).all()
    is_cut = max(len(rows), len(others)) > ROWS_LIMIT
    rows = [*rows[:ROWS_LIMIT], *others[:ROWS_LIMIT]]
    cameras, groups, strata, scores, weights = zip(*rows, strict=True) if rows else ((),) * 5
    strata_of, group_of = np.array(strata, str), np.array(groups, np.int64)
    return Frames(
        np.array(cameras, str),
        group_of,
        strata_of,
        standardised(np.array(scores, np.float64), group_of, strata_of, widths),
        np.array(weights, np.float64),
    ), is_cut


def standardised(scores: np.ndarray, groups: np.ndarray, strata: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return aligned scores as cut-offs compare them, infinite of unknown products; NaN of a group without a width."""
    known = (groups >= 0) & (groups < len(widths))
    divisors = np.full(len(groups), np.nan)
    divisors[known] = np.asarray(widths, np.float64)[groups[known]]
    return np.where(strata == str(Stratum.UNKNOWN_PRODUCT), np.inf, scores / divisors)


def judged(store: Store, model: str, wanted: Filter, widths: np.ndarray) -> tuple[Judgements, list[JudgedFrame], int]:
    """Return the judgements that hold of a model's frames, the same as a list, and how many have no group any more."""
    rows = judgements.scored(store, model, replace(wanted, group=None))
    if wanted.group is not None:
        rows = [row for row in rows if row.group_id == wanted.group[1]]
    known = [row for row in rows if row.group_id is not None]
    groups = np.array([row.group_id for row in known], np.int64)
    strata = np.array([row.stratum for row in known], str)
    values = Judgements(
        groups,
        strata,
        standardised(np.array([row.score for row in known], np.float64), groups, strata, widths),
        np.array([1 / row.probability for row in known], np.float64),
        np.array([row.judgement for row in known], str),
        np.array([row.is_offered for row in known], bool),
    )
    shown = [
        JudgedFrame(
            row.frame_id, row.camera, row.captured_at, row.decision, row.score, row.group_id, row.judgement,
            row.class_id, row.class_name,
        )
        for row in known
    ]  # fmt: skip
    return values, shown, len(rows) - len(known)
