"""What the queries of the store have in common. Grafana replaces the macros, see its PostgreSQL data source.

Ranges of up to 26 hours are read from the roll-up by minutes, longer ones from that by hours: they begin with the first
whole hour, and their buckets are hours at least.
"""

from __future__ import annotations

SHORT = "$__unixEpochTo() - $__unixEpochFrom() <= 93600"
"""A constant of each query, so PostgreSQL leaves the other half of a union out. 26 hours: a day and two shift ends."""

_STEP = f"make_interval(secs => GREATEST($__interval_ms / 1000, CASE WHEN {SHORT} THEN 60 ELSE 3600 END))"
ANY_LOT = "COALESCE(lot, '')"
CHOSEN = f"camera IN ($camera) AND group_id IN ($group) AND {ANY_LOT} IN ($lot) AND shift IN ($shift)"


def bucket(column: str = "minute") -> str:
    """Return the start of the time bucket that a row falls into."""
    return f"date_bin({_STEP}, {column}, TIMESTAMPTZ 'epoch')"


_COLUMNS = "camera, group_id, decision, model_version, lot, shift, shift_day, frames"
VERDICTS = (
    f"FROM (SELECT minute, {_COLUMNS} FROM verdict_minutes WHERE {SHORT} AND $__timeFilter(minute) AND {CHOSEN} "
    f"UNION ALL SELECT hour, {_COLUMNS} FROM verdict_hours WHERE NOT ({SHORT}) AND $__timeFilter(hour) AND {CHOSEN}) v"
)
"""All frames of the chosen range, with the columns of `verdict_minutes`."""

# A dismissed class is one of which a person has said that it is no defect.
DEFECTS = f"FROM defect_minutes WHERE $__timeFilter(minute) AND {CHOSEN} AND class_state IS DISTINCT FROM 'dismissed'"
"""Frames that were not accepted, with their class."""

NAMED = (
    "LEFT JOIN (SELECT model_version AS of_model, group_id AS number, name AS given_name FROM groups) g "
    "ON of_model = model_version AND number = group_id"
)
"""Joins the names that people gave to the groups of each model."""
GROUP = "COALESCE(given_name, 'group ' || group_id)"
LOT = "CASE lot WHEN '' THEN 'no lot' ELSE lot END"
SHIFT = "CASE shift WHEN '' THEN 'between shifts' ELSE shift END"

CLASS = "COALESCE(class_name, class_id, 'no class yet')"
SHARE = "COALESCE((SUM(frames) FILTER (WHERE decision <> 'accept'))::float8 / NULLIF(SUM(frames), 0), 0)"
"""The share of frames that were not accepted."""
