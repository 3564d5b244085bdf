"""Lots, shifts, groups and parts in the store, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from discovery.shifts import Calendar
from discovery.store import part_verdicts, production, pruning, schema
from discovery.store.store import Batch, LineRules, Store, TakenDefect
from flawline.messages import Decision
from flawline.settings.retention import RetentionSettings
from flawline.settings.shifts import ShiftSettings
from tests.discovery.factories import MINUTE_NS, START_NS, defect, directions, verdict

pytestmark = pytest.mark.system

S_NS = 1_000_000_000
RULES = LineRules(
    Calendar(
        [
            ShiftSettings(name="early", begin="06:00", end="22:14"),
            ShiftSettings(name="late", begin="22:14", end="06:00"),
        ]
    ),
    ("side", "top"),
    60 * S_NS,
)
"""START_NS is 22:14:00 UTC on 2023-11-14."""


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres_server").new_database()
    opened = Store(url, utc_ns=lambda: START_NS)
    yield opened
    opened.close()


def of_part(n, part="P1", view="top", at_s=0.0, lot="L1", decision=Decision.ACCEPT, p_value=0.5):
    at = START_NS + round(at_s * S_NS)
    return replace(verdict(n, f"cam-{view}", decision, at), part=part, view=view, lot=lot, p_value=p_value)


def rows(store, table, *columns):
    with store.reading() as connection:
        query = select(*(table.c[name] for name in columns)).order_by(*(table.c[name] for name in columns))
        return [tuple(row) for row in connection.execute(query)]


def test_minutes_have_lot_shift_and_model(store):
    before = replace(verdict(1, captured_at=START_NS - S_NS), lot="L1")
    others = [replace(verdict(n), lot=lot) for n, lot in ((2, "L1"), (3, "L2"), (4, None))]
    store.ingest(Batch(verdicts=[before, *others, replace(verdict(5), lot="L1", model_version="m2")]), rules=RULES)
    stored = rows(store, schema.verdict_minutes, "shift", "shift_day", "lot", "model_version", "frames")
    assert stored == [
        ("early", "2023-11-14", "L1", "m1", 1),
        ("late", "2023-11-14", "", "m1", 1),
        ("late", "2023-11-14", "L1", "m1", 1),
        ("late", "2023-11-14", "L1", "m2", 1),
        ("late", "2023-11-14", "L2", "m1", 1),
    ]
    assert rows(store, schema.groups, "model_version", "group_id", "frames") == [("m1", 0, 4), ("m2", 0, 1)]


def test_ten_thousand_lots_within_an_hour_are_a_hundred_and_the_others(store):
    lots = [f"lot-{n:05}" for n in range(10_000)]
    for start in range(0, 10_000, 2_000):
        batch = [replace(verdict(n, captured_at=START_NS), lot=lots[n]) for n in range(start, start + 2_000)]
        store.ingest(Batch(verdicts=batch))
    with store.reading() as connection:
        v = schema.verdict_minutes.c
        counts = dict(connection.execute(select(v.lot, func.sum(v.frames)).group_by(v.lot)).all())
    assert len(counts) == production.LOTS_AN_HOUR + 1
    assert counts.pop(production.OTHER_LOTS) == 10_000 - production.LOTS_AN_HOUR
    assert set(counts.values()) == {1}
    assert len(rows(store, schema.lots, "lot")) == production.LOTS_AN_HOUR
    # A lot of the next hour has its own count again, and a lot that is known keeps its own.
    known = min(counts)
    late = [
        replace(verdict(20_000 + n, captured_at=START_NS + 3600 * S_NS), lot=lot) for n, lot in enumerate((known, "x"))
    ]
    store.ingest(Batch(verdicts=late))
    with store.reading() as connection:
        assert production.counted_lots(connection, [known, "x", "", "y"]) == {
            known: known, "x": "x", "": "", "y": production.OTHER_LOTS
        }  # fmt: skip


def test_views_make_one_verdict_and_a_late_view_joins_it(store):
    store.ingest(Batch(verdicts=[of_part(1), of_part(2, "P2", at_s=5)]), rules=RULES)
    store.ingest(Batch(verdicts=[of_part(3, at_s=70)]), rules=RULES)
    columns = ("part", "decision", "missing", "seen", "frames", "shift")
    assert rows(store, schema.parts, *columns) == [
        ("P1", "accept", "side", 1, 1, "late"), ("P1", "accept", "side", 1, 1, "late"),
        ("P2", "accept", "side", 1, 1, "late"),
    ]  # fmt: skip
    # It was captured between the two inspections and makes one of them.
    late = of_part(4, view="side", at_s=30, decision=Decision.REJECT, p_value=0.001)
    store.ingest(Batch(verdicts=[late]), rules=RULES)
    assert rows(store, schema.parts, *columns) == [
        ("P1", "reject", "", 2, 3, "late"), ("P2", "accept", "side", 1, 1, "late")
    ]  # fmt: skip
    store.ingest(Batch(verdicts=[late, of_part(1)]), rules=RULES)
    assert rows(store, schema.parts, *columns)[0] == ("P1", "reject", "", 2, 3, "late"), "redelivery"


def test_parts_of_the_same_name_in_two_lots_are_two(store):
    store.ingest(Batch(verdicts=[of_part(1), of_part(2, lot="L2"), of_part(3, lot=None)]), rules=RULES)
    assert [row[0] for row in rows(store, schema.parts, "lot")] == ["", "L1", "L2"]


def summary(store):
    names = ("part", "lot", "first_ns", "last_ns", "frames", "decision", "p_value", "frame_id", "missing", "views")
    return rows(store, schema.parts, *names)


DRAWN = st.lists(
    st.tuples(st.sampled_from(["A", "B"]), st.sampled_from(["top", "side"]), st.integers(0, 400),
              st.sampled_from(list(Decision)), st.sampled_from([0.001, 0.2])),
    min_size=1, max_size=20,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(DRAWN, st.randoms(use_true_random=False), st.integers(1, 7))
def test_parts_are_the_same_for_any_order_batches_and_redelivery(drawn, chance: random.Random, size: int):
    frames = [
        of_part(n, part, view, at, decision=decision, p_value=p)
        for n, (part, view, at, decision, p) in enumerate(drawn)
    ]
    whole, pieces = Store("sqlite://"), Store("sqlite://")
    whole.ingest(Batch(verdicts=frames), rules=RULES)
    shuffled = [*frames, *chance.sample(frames, len(frames) // 2)]
    chance.shuffle(shuffled)
    for start in range(0, len(shuffled), size):
        pieces.ingest(Batch(verdicts=shuffled[start : start + size]), rules=RULES)
    assert summary(pieces) == summary(whole)
    whole.close()
    pieces.close()


def test_old_inspections_are_counted_and_go(store):
    many = [of_part(n, f"P{n}", at_s=n, decision=Decision.REJECT if n % 4 == 0 else Decision.ACCEPT) for n in range(20)]
    young = of_part(99, "young", at_s=10 * 86_400)
    store.ingest(Batch(verdicts=[*many, of_part(50, "P1", "side", 1), young]), rules=RULES)
    store.utc_ns = lambda: START_NS + 11 * 86_400 * S_NS
    pruning.prune(store, RetentionSettings(parts_days=5))
    assert rows(store, schema.parts, "part") == [("young",)]
    assert rows(store, schema.part_totals, "lot", "shift", "decision", "is_complete", "inspections") == [
        ("L1", "late", "accept", False, 14), ("L1", "late", "accept", True, 1), ("L1", "late", "reject", False, 5)
    ]  # fmt: skip
    with store.reading() as connection:
        assert part_verdicts.count(connection) == 1
        assert pruning.forgotten(connection)["parts"] == 20


def test_defects_by_minute_have_lot_and_shift_also_when_they_are_only_counted(store):
    stored = [replace(defect(n, directions(1)[0], captured_at=START_NS + n * MINUTE_NS), lot="L1") for n in range(3)]
    verdicts = [replace(verdict(n, decision=Decision.REJECT, captured_at=item.captured_at), lot="L1")
                for n, item in enumerate(stored)]  # fmt: skip
    store.ingest(Batch(verdicts=verdicts, defects=[TakenDefect(item, (None,)) for item in stored]), rules=RULES)
    query = text("SELECT lot, shift, shift_day, model_version, SUM(frames) FROM defect_minutes GROUP BY 1, 2, 3, 4")
    expected = [("L1", "late", "2023-11-14", "m1", 3)]
    with store.reading() as connection:
        assert [(*row[:4], int(row[4])) for row in connection.execute(query)] == expected
    store.utc_ns = lambda: START_NS + 20 * 86_400 * S_NS
    store.ingest(Batch(verdicts=[verdict(50, captured_at=START_NS + 19 * 86_400 * S_NS)]))
    pruning.prune(store, RetentionSettings(defect_rows_days=5, minutes_days=5))
    with store.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.defects)) == 0
        assert [(*row[:4], int(row[4])) for row in connection.execute(query)] == expected


FORMER_MINUTES = """CREATE TABLE verdict_minutes (minute {stamp} NOT NULL, camera TEXT NOT NULL,
group_id INTEGER NOT NULL, decision TEXT NOT NULL, frames BIGINT NOT NULL,
score_sum FLOAT NOT NULL, score_max FLOAT NOT NULL,
PRIMARY KEY (minute, camera, group_id, decision))"""
FORMER_HOURS = """CREATE TABLE stratum_hours (hour INTEGER NOT NULL, camera TEXT NOT NULL, stratum TEXT NOT NULL,
frames BIGINT NOT NULL, PRIMARY KEY (hour, camera, stratum))"""


def test_a_store_without_lots_and_shifts_is_upgraded_where_it_stands(store):
    store.ingest(
        Batch(verdicts=[verdict(n) for n in range(3)], defects=[TakenDefect(defect(7, directions(1)[0]), (None,))])
    )
    minutes = rows(store, schema.verdict_minutes, "minute", "camera", "frames")
    with store.transaction() as connection:
        run = connection.exec_driver_sql
        run("DROP VIEW defect_minutes")
        run("DROP INDEX defects_lot")
        run("ALTER TABLE verdict_minutes RENAME TO kept")
        if connection.dialect.name == "postgresql":
            run("ALTER TABLE kept DROP CONSTRAINT verdict_minutes_pkey")
        run(FORMER_MINUTES.format(stamp="TIMESTAMPTZ" if connection.dialect.name == "postgresql" else "DATETIME"))
        names = "minute, camera, group_id, decision, frames, score_sum, score_max"
        run(f"INSERT INTO verdict_minutes SELECT {names} FROM kept")
        for name in ("kept", "stratum_hours", "lots", "groups", "group_names", "parts", "part_totals"):
            run(f"DROP TABLE {name}")
        run(FORMER_HOURS)
        run("INSERT INTO stratum_hours VALUES (5, 'cam-1', 'reject', 9)")
        shift = ("shift", "shift_day")
        added = {
            "defects": shift,
            "frame_pictures": shift,
            "judgements": ("lot", *shift),
            "defect_totals": ("model_version", "lot", *shift),
        }
        for table, columns in added.items():
            for column in columns:
                run(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute(schema.facts.update().where(schema.facts.c.name == "schema").values(value="2"))
    upgraded = Store(store.url.render_as_string(hide_password=False))
    assert rows(upgraded, schema.verdict_minutes, "minute", "camera", "frames") == minutes
    assert rows(upgraded, schema.stratum_hours, "hour", "lot", "shift", "frames") == [(5, "", "", 9)]
    again = [replace(verdict(n), lot="L1", part="P1") for n in range(3, 6)]
    upgraded.ingest(Batch(verdicts=again), rules=RULES)
    assert [row[:2] for row in rows(upgraded, schema.verdict_minutes, "lot", "shift", "frames")] == [
        ("", ""),
        ("L1", "late"),
    ]
    with upgraded.reading() as connection:
        assert connection.execute(text("SELECT SUM(frames) FROM defect_minutes")).scalar() == 1
    upgraded.close()
