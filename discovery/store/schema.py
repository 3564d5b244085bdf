"""The tables of the store, the same on SQLite and PostgreSQL. This page is for authors of queries.

Stamps named `*_at` and `minute` are UTC: `timestamptz` on PostgreSQL (fit for Grafana's `$__timeFilter`), ISO text on
SQLite. `captured_ns` is the exact capture time in nanoseconds. Defect classes have ids like `D-0007`, which are never
reused; a class that was merged away stays as a row with `merged_into`, and its defects point at the survivor.

- `verdict_minutes`: frames by minute of capture, camera, model, group, decision, lot and shift, each frame counted
  once. `lot` is '' for none and `(other)` beyond the number of lots that are counted by name; `shift` is '' between
  shifts, and `shift_day` the day on which the shift began, as `2026-11-28`.
- `verdict_hours`: the same frames by the hour, which is what queries over more than a day read.
- `defects`: one row per frame that was not accepted; `class_id` is the frame's class, NULL while it has none.
- `defect_minutes` (view): frames by minute, camera, group, decision, class, model, lot and shift, to be summed, with
  the class's name and severity, as they are known now: a class that is found later is found in the past as well.
- `defect_totals`: defects that are only counted any more, since they are older than `retention.defect_rows_days`; the
  view has them too. Like `verdict_minutes` it counts by the hour what is older than `retention.minutes_days`.
- `pictures`: how large the crops, masks and heat map of a defect are, until they are forgotten.
- `regions`: the pieces of a defect with crop, mask and embedding; each has its own class.
- `classes`: the registry; `state` is confirmed, dormant, merged or dismissed (candidate only in a store of before).
- `candidates`: clusters that may become classes, with the evidence for it; they have no public id, and their regions no
  class. `class_id` is what they became. Those that nobody has seen for a month are forgotten.
- `class_parents`: from which classes a class was split.
- `class_events`: every transition, as published on the topic `classes`; for annotations.
- `audit`: what people did to classes: who, when, why; `audit_notes` says how to take it back, and what was taken back.
- `rounds`: every round of clustering with the number of classes, its range and how stable it was.
- `rejections`: records that could not be used, by reason.
- `positions`, `sequences_seen`, `facts`: bookkeeping that makes a redelivered record change nothing.
- `decided_sequences`: what the first verdict on each frame decided, as runs of sequences; defects go along with it.
- `frame_pictures`: whole frames that stay, or stayed, for people to judge: where they are, why they were chosen, and
  how probable that was.
- `judgements`: what people said of frames, with all that the rates of overkill and escapes need.
- `judgement_events`: changes of what people say of frames that the topic `judgements` does not have yet.
- `stratum_hours`: all frames by hour, camera, stratum, lot and shift, of which the pictures are a part.
- `lots`: the lots that are counted by name, with their first and latest capture.
- `groups`: the look-alike groups of each model, with the name that people gave; `group_names` has all that they said.
- `parts`: each inspection of a part with its verdict, from all its views; `missing` names the views that never came.
- `part_totals`: inspections of parts that are only counted any more, since they are older than `retention.parts_days`.
- `quality_days`, `quality_shifts`: overkill and escapes of each day (UTC) and of each shift with 95 % limits, as
  `discovery/quality_rates.py` derives them.

Defects by class over time (PostgreSQL):
    SELECT minute AS time, COALESCE(class_name, class_id, 'unassigned') AS metric, SUM(frames) AS defects
    FROM defect_minutes WHERE $__timeFilter(minute) GROUP BY 1, 2 ORDER BY 1
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    false,
)

SCHEMA_VERSION = 3

metadata = MetaData()
# SQLite counts rows in 64 bits under the name INTEGER only.
_Id = BigInteger().with_variant(Integer, "sqlite")


class UtcStamp(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite keeps no time zone, so it is taken off on the way in and put on again."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _shift_columns(primary_key: bool = False) -> tuple[Column[str], Column[str]]:
    return (
        Column("shift", Text, primary_key=primary_key, nullable=False, server_default=""),
        Column("shift_day", Text, primary_key=primary_key, nullable=False, server_default=""),
    )


classes = Table(
    "classes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("name", Text, unique=True),
    Column("severity", Text),
    Column("members", Integer, nullable=False, comment="Regions that belong to the class."),
    Column("born_at", UtcStamp, nullable=False),
    Column("born_round", Integer, nullable=False),
    Column("confirmed_at", UtcStamp),
    Column("last_seen_at", UtcStamp, nullable=False, comment="Latest capture of a member."),
    Column("merged_into", Text, ForeignKey("classes.id")),
    Column("seen_rounds", Integer, nullable=False, comment="Rounds in a row that found it."),
    Column("missed_rounds", Integer, nullable=False, comment="Rounds in a row that did not."),
    Column("announced", Integer, nullable=False, comment="Members when it was last published."),
    Column("bound", Boolean, nullable=False, server_default=false(), comment="A person named, merged or split it."),
    Column("radius", Float, nullable=False, comment="Cosine distance that holds 95 % of its exemplars."),
    Column("centroid", LargeBinary, nullable=False, comment="float32, little endian."),
    Column("embedding_version", Text, nullable=False),
)

candidates = Table(
    "candidates",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("class_id", Text, ForeignKey("classes.id"), comment="The class that it became."),
    Column("active", Boolean, nullable=False, comment="The latest round has found it."),
    Column("of_new_line", Boolean, nullable=False, comment="It was opened when all was new."),
    Column("members", Integer, nullable=False, comment="Regions when it was last found."),
    Column("opened_at", UtcStamp, nullable=False),
    Column("opened_round", Integer, nullable=False),
    Column("last_seen_at", UtcStamp, nullable=False),
    Column("trials", Integer, nullable=False, comment="Regions since then that spoke for or against it."),
    Column("evidence", Float, nullable=False, comment="Natural logarithm of the e-process."),
    Column("needed", Float, nullable=False, comment="The evidence that makes it a class."),
    Column("centroid", LargeBinary, nullable=False, comment="float32, little endian, of centred vectors."),
    Column("embedding_version", Text, nullable=False),
)

class_parents = Table(
    "class_parents",
    metadata,
    Column("class_id", Text, ForeignKey("classes.id"), primary_key=True),
    Column("parent_id", Text, ForeignKey("classes.id"), primary_key=True),
)

class_events = Table(
    "class_events",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("event_id", Text, nullable=False, unique=True),
    Column("class_id", Text, ForeignKey("classes.id"), nullable=False),
    Column("transition", Text, nullable=False),
    Column("at", UtcStamp, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("round", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("members", Integer, nullable=False),
    Column("name", Text),
    Column("severity", Text),
    Column("parents", Text, nullable=False, comment="Class ids, separated by commas."),
    Column("merged_into", Text),
    Column("who", Text),
    Column("why", Text),
    Column("selected", Integer, nullable=False, server_default="0", comment="Members that a person has picked out."),
    Column("published", Boolean, nullable=False, server_default=false(), comment="False: still to be published."),
    Index("class_events_at", "at"),
    Index("class_events_published", "published"),
)

defects = Table(
    "defects",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("frame_id", Text, nullable=False, unique=True),
    Column("camera", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("captured_at", UtcStamp, nullable=False),
    Column("captured_ns", BigInteger, nullable=False),
    Column("minute", UtcStamp, nullable=False),
    Column("group_id", Integer, nullable=False, comment="Look-alike group of the model."),
    Column("score", Float, nullable=False),
    Column("p_value", Float, nullable=False),
    Column("decision", Text, nullable=False),
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("part", Text),
    Column("lot", Text),
    *_shift_columns(),
    Column("heatmap", LargeBinary, nullable=False, comment="float16, little endian."),
    Column("heatmap_height", Integer, nullable=False),
    Column("heatmap_width", Integer, nullable=False),
    Column("class_id", Text, ForeignKey("classes.id")),
    Index("defects_minute", "minute"),
    Index("defects_class", "class_id", "captured_at"),
    Index("defects_lot", "lot", "id"),
)

defect_totals = Table(
    "defect_totals",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("minute", UtcStamp, nullable=False),
    Column("camera", Text, nullable=False),
    Column("group_id", Integer, nullable=False),
    Column("decision", Text, nullable=False),
    Column("class_id", Text, ForeignKey("classes.id")),
    Column("frames", BigInteger, nullable=False),
    Column("model_version", Text, nullable=False, server_default=""),
    Column("lot", Text, nullable=False, server_default=""),
    *_shift_columns(),
    Index("defect_totals_minute", "minute"),
)

regions = Table(
    "regions",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("defect_id", _Id, ForeignKey("defects.id"), nullable=False),
    Column("position", Integer, nullable=False, comment="Place in the defect's list."),
    Column("x", Integer, nullable=False),
    Column("y", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("area_px", Integer, nullable=False, comment="0: nothing local, the whole image."),
    Column("peak", Float, nullable=False),
    Column("crop_x", Integer, nullable=False),
    Column("crop_y", Integer, nullable=False),
    Column("crop_width", Integer, nullable=False),
    Column("crop_height", Integer, nullable=False),
    Column("mask", LargeBinary, nullable=False, comment="PNG of the crop's size."),
    Column("crop", LargeBinary, nullable=False, comment="JPEG."),
    Column("embedding", LargeBinary, nullable=False, comment="float16, little endian."),
    Column("embedding_version", Text, nullable=False),
    Column("class_id", Text, ForeignKey("classes.id")),
    Column("assigned_by", Text, comment="stream, round, crop or person."),
    Column("exemplar", Boolean, nullable=False, server_default=false(), comment="In its class's reservoir."),
    UniqueConstraint("defect_id", "position"),
    Index("regions_class", "class_id", "embedding_version"),
    Index("regions_exemplar", "exemplar", "embedding_version"),
    Index("regions_peak", "class_id", "peak", "id"),
    Index("regions_members", "class_id", "id"),
)

pictures = Table(
    "pictures",
    metadata,
    # No foreign key: it is looked up from here, and a row whose defect has gone does no harm.
    Column("defect_id", _Id, primary_key=True, autoincrement=False),
    Column("hour", Integer, nullable=False, comment="Of the capture, counted from 1970."),
    Column("decision", Text, nullable=False),
    Column("held", Boolean, nullable=False, server_default=false(), comment="What is left belongs to exemplars."),
    Column("size_bytes", BigInteger, nullable=False, comment="Of crops, masks and heat map, when it was taken in."),
    Index("pictures_worth", "held", "decision", "hour", "size_bytes"),
)

verdict_minutes = Table(
    "verdict_minutes",
    metadata,
    Column("minute", UtcStamp, primary_key=True),
    Column("camera", Text, primary_key=True),
    Column("group_id", Integer, primary_key=True, autoincrement=False),
    Column("decision", Text, primary_key=True),
    Column("model_version", Text, primary_key=True, server_default=""),
    Column("lot", Text, primary_key=True, server_default=""),
    *_shift_columns(primary_key=True),
    Column("frames", BigInteger, nullable=False),
    Column("score_sum", Float, nullable=False),
    Column("score_max", Float, nullable=False),
)

verdict_hours = Table(
    "verdict_hours",
    metadata,
    Column("hour", UtcStamp, primary_key=True),
    Column("camera", Text, primary_key=True),
    Column("group_id", Integer, primary_key=True, autoincrement=False),
    Column("decision", Text, primary_key=True),
    Column("model_version", Text, primary_key=True, server_default=""),
    Column("lot", Text, primary_key=True, server_default=""),
    *_shift_columns(primary_key=True),
    Column("frames", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("at", UtcStamp, nullable=False),
    Column("who", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("class_id", Text, ForeignKey("classes.id"), nullable=False),
    Column("value", Text, comment="The name, the severity or the other class."),
    Column("before", Text),
    Column("why", Text),
)

audit_notes = Table(
    "audit_notes",
    metadata,
    Column("audit_id", _Id, ForeignKey("audit.id"), primary_key=True, autoincrement=False),
    Column(
        "before", Text, nullable=False, comment="The changed class as it was: JSON of state, name, severity, bound."
    ),
    Column("members", Integer, nullable=False, comment="Members that went to the other class."),
    Column("regions", LargeBinary, nullable=False, comment="Their ids, int64, little endian."),
    Column(
        "totals",
        LargeBinary,
        nullable=False,
        comment="Rows of `defect_totals` that went with them: id, minute in ns, frames.",
    ),
    Column("undone_by", _Id, ForeignKey("audit.id"), comment="The entry that took it back."),
)

rounds = Table(
    "rounds",
    metadata,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcStamp, nullable=False),
    Column("regions", Integer, nullable=False, comment="Regions that were clustered."),
    Column("unassigned", Integer, nullable=False),
    Column("clusters", Integer, nullable=False),
    Column("clusters_low", Integer, nullable=False, comment="Smallest proposal for the number of clusters,"),
    Column("clusters_high", Integer, nullable=False, comment="and the largest."),
    Column("stability", Float, nullable=False, comment="Adjusted Rand index between subsamples."),
    Column("churn", Float, nullable=False, comment="Share of members that changed to another class."),
    Column("seconds", Float, nullable=False),
    Column("embedding_version", Text, nullable=False),
)

rejections = Table(
    "rejections",
    metadata,
    Column("reason", Text, primary_key=True),
    Column("records", BigInteger, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("last_at", UtcStamp, nullable=False),
)

positions = Table(
    "positions",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger, nullable=False),
)

sequences_seen = Table(
    "sequences_seen",
    metadata,
    Column("camera", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)

decided_sequences = Table(
    "decided_sequences",
    metadata,
    Column("camera", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    # The last sequence and not the first, since new ones are looked for: only the newest runs end behind them.
    Column("last", BigInteger, primary_key=True, autoincrement=False),
    Column("first", BigInteger, nullable=False),
    Column("decision", Text, nullable=False),
    Column("latest_ns", BigInteger, nullable=False, comment="Latest capture that the run was written for."),
)

frame_pictures = Table(
    "frame_pictures",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("frame_id", Text, nullable=False, unique=True),
    Column("camera", Text, nullable=False),
    Column("captured_at", UtcStamp, nullable=False),
    Column("captured_ns", BigInteger, nullable=False),
    Column("hour", Integer, nullable=False, comment="Of the capture, counted from 1970."),
    Column("stratum", Text, nullable=False, comment="reject, review, unknown-product, near-miss, accepted or picked."),
    Column("decision", Text, nullable=False),
    Column("group_id", Integer, nullable=False),
    Column("score", Float, nullable=False),
    Column("p_value", Float, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("part", Text),
    Column("lot", Text),
    *_shift_columns(),
    Column("probability", Float, nullable=False, comment="Of having been chosen."),
    Column("chance", Float, nullable=False, comment="Random number of the frame, by which audits are ordered."),
    Column("partition", Integer, nullable=False, comment="Of its record in the topic frames."),
    Column("frame_offset", BigInteger, nullable=False, comment="Of its record; -1 when it is not known."),
    Column("state", Text, nullable=False, comment="wanted, kept, or lost: it cannot be had."),
    Column("reason", Text, comment="Why it is lost."),
    Column("object_key", Text),
    Column("codec", Text),
    Column("height", Integer),
    Column("width", Integer),
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
    Index("frame_pictures_state", "state", "hour", "stratum", "size_bytes"),
    Index("frame_pictures_captured", "state", "captured_ns"),
    Index("frame_pictures_chance", "state", "chance"),
    Index("frame_pictures_backlog", "state", "stratum", "frame_id"),
    Index("frame_pictures_object", "object_key"),
)

judgements = Table(
    "judgements",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("frame_id", Text, nullable=False),
    Column("at", UtcStamp, nullable=False),
    Column("who", Text, nullable=False),
    Column("judgement", Text, nullable=False, comment="real, false or unsure."),
    Column("why", Text),
    Column("is_offered", Boolean, nullable=False, comment="False: a person looked the frame up, so it is no sample."),
    # What follows is of the frame, whose picture and rows may go.
    Column("camera", Text, nullable=False),
    Column("captured_at", UtcStamp, nullable=False),
    Column("captured_ns", BigInteger, nullable=False),
    Column("stratum", Text, nullable=False),
    Column("probability", Float, nullable=False),
    Column("decision", Text, nullable=False),
    Column("score", Float, nullable=False),
    Column("p_value", Float, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("lot", Text, nullable=False, server_default=""),
    *_shift_columns(),
    Column("undone_at", UtcStamp),
    Column("undone_by", Text),
    Index("judgements_frame", "frame_id", "undone_at"),
    Index("judgements_captured", "captured_ns"),
)

judgement_events = Table(
    "judgement_events",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("judgement_id", _Id, ForeignKey("judgements.id"), nullable=False, comment="Given, or taken back."),
    Column("judgement", Text, comment="What holds of the frame since; NULL: nothing."),
    Column("who", Text, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("why", Text),
)

stratum_hours = Table(
    "stratum_hours",
    metadata,
    Column("hour", Integer, primary_key=True, autoincrement=False, comment="Of the capture, counted from 1970."),
    Column("camera", Text, primary_key=True),
    Column("stratum", Text, primary_key=True),
    Column("lot", Text, primary_key=True, server_default=""),
    *_shift_columns(primary_key=True),
    Column("frames", BigInteger, nullable=False),
)

lots = Table(
    "lots",
    metadata,
    Column("lot", Text, primary_key=True),
    Column("hour", Integer, nullable=False, comment="Of the capture by which it is known, counted from 1970."),
    Column("first_at", UtcStamp, nullable=False),
    Column("last_at", UtcStamp, nullable=False),
    Index("lots_hour", "hour"),
    Index("lots_last", "last_at"),
)

groups = Table(
    "groups",
    metadata,
    Column("model_version", Text, primary_key=True),
    Column("group_id", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, comment="What people call it now."),
    Column("frames", BigInteger, nullable=False),
    Column("first_at", UtcStamp, nullable=False),
    Column("last_at", UtcStamp, nullable=False),
)

group_names = Table(
    "group_names",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("at", UtcStamp, nullable=False),
    Column("who", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("group_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("before", Text, comment="The name that it had."),
    Column("why", Text),
    Column("undone_at", UtcStamp),
    Column("undone_by", Text),
    Index("group_names_group", "model_version", "group_id"),
)

parts = Table(
    "parts",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("part", Text, nullable=False),
    Column("lot", Text, nullable=False, comment="'' for none."),
    *_shift_columns(),
    Column("first_at", UtcStamp, nullable=False),
    Column("first_ns", BigInteger, nullable=False),
    Column("last_ns", BigInteger, nullable=False),
    Column("frames", Integer, nullable=False),
    Column("decision", Text, nullable=False, comment="Of the worst view."),
    Column("p_value", Float, nullable=False, comment="Of all views together: their noisy OR, calibrated."),
    Column("frame_id", Text, nullable=False, comment="Frame of the worst view."),
    Column("seen", Integer, nullable=False, comment="Number of views that came."),
    Column("missing", Text, nullable=False, comment="Views that did not come, separated by commas; '' for none."),
    Column("views", Text, nullable=False, comment="JSON by view: frame, camera, decision, p_value, score."),
    Index("parts_part", "part", "lot", "last_ns"),
    Index("parts_first", "first_ns"),
    Index("parts_decision", "decision", "first_ns"),
    Index("parts_lot", "lot", "first_ns"),
)

part_totals = Table(
    "part_totals",
    metadata,
    Column("hour", Integer, primary_key=True, autoincrement=False, comment="Of the first capture, from 1970."),
    Column("lot", Text, primary_key=True),
    *_shift_columns(primary_key=True),
    Column("decision", Text, primary_key=True),
    Column("is_complete", Boolean, primary_key=True, comment="No view is missing."),
    Column("inspections", BigInteger, nullable=False),
)


def _limits(name: str) -> tuple[Column[Any], ...]:
    return (
        Column(name, Float, comment="NULL when nothing was judged."),
        Column(f"{name}_low", Float, nullable=False),
        Column(f"{name}_high", Float, nullable=False),
    )


def _rates() -> tuple[Column[Any], ...]:
    return (
        Column("frames", BigInteger, nullable=False),
        Column(
            "judgements", Integer, nullable=False, comment="That count: real or false, of frames that were offered."
        ),
        *_limits("overkill"),
        *_limits("escape"),
        *_limits("false_alarm_share"),
        *_limits("escapes_per_accepted"),
    )


quality_days = Table("quality_days", metadata, Column("day", UtcStamp, primary_key=True), *_rates())

quality_shifts = Table(
    "quality_shifts",
    metadata,
    *_shift_columns(primary_key=True),
    Column("first_at", UtcStamp, nullable=False, comment="Hour of its first frame."),
    *_rates(),
)

facts = Table(
    "facts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

_DEFECT_MINUTES = """
SELECT d.minute AS minute, d.camera AS camera, d.group_id AS group_id, d.decision AS decision, d.class_id AS class_id,
       c.name AS class_name, c.severity AS severity, c.state AS class_state, CAST(d.frames AS BIGINT) AS frames,
       d.model_version AS model_version, d.lot AS lot, d.shift AS shift, d.shift_day AS shift_day
FROM (SELECT minute, camera, group_id, decision, class_id, model_version, COALESCE(lot, '') AS lot, shift, shift_day,
             1 AS frames FROM defects
      UNION ALL SELECT minute, camera, group_id, decision, class_id, model_version, lot, shift, shift_day, frames
      FROM defect_totals) d
LEFT JOIN classes c ON c.id = d.class_id
"""
# Without a sum of its own: every query sums anyway, and a view that groups first is sorted twice. PostgreSQL replaces a
# view only when its former columns come first.
event.listen(
    metadata,
    "after_create",
    DDL(f"CREATE VIEW IF NOT EXISTS defect_minutes AS {_DEFECT_MINUTES}").execute_if(dialect="sqlite"),
)
event.listen(
    metadata,
    "after_create",
    DDL(f"CREATE OR REPLACE VIEW defect_minutes AS {_DEFECT_MINUTES}").execute_if(dialect="postgresql"),
)
