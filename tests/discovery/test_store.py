"""The store on SQLite and on a real PostgreSQL: what comes twice counts once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, inspect, select, text
from sqlalchemy.engine import make_url

from discovery.round.lineage import DefectClass
from discovery.store import database, first_verdicts, registry, schema
from discovery.store.database import nanoseconds, stamp
from discovery.store.store import Batch, Store, TakenDefect, add_event
from flawline.errors import FlawlineError, UsageError
from flawline.messages import ClassEvent, ClassState, Decision, Transition
from station.web import queries
from tests.discovery.factories import DIMENSION, MINUTE_NS, START_NS, VERSION, defect, directions, verdict
from tests.support.postgres import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres_server").new_database()
    opened = Store(url, utc_ns=lambda: START_NS)
    yield opened
    opened.close()


def taken(sequence, *classes, **options):
    message = defect(sequence, *directions(max(len(classes), 1))[: len(classes)], **options)
    return TakenDefect(message, classes)


def with_classes(store, *numbers):
    with store.transaction() as connection:
        classes = [
            DefectClass(
                id=f"D-{number:04d}",
                number=number,
                state=ClassState.CONFIRMED,
                members=0,
                born_at=START_NS,
                born_round=1,
                last_seen_at=START_NS,
                centroid=directions(8)[number],
                radius=0.1,
                embedding_version=VERSION,
            )
            for number in numbers
        ]
        registry.save_classes(connection, classes, max(numbers) + 1)


def minutes(store):
    table = schema.verdict_minutes
    with store.reading() as connection:
        rows = connection.execute(select(table).order_by(table.c.minute, table.c.camera, table.c.decision)).all()
    return [(nanoseconds(row.minute), row.camera, row.group_id, row.decision, row.frames) for row in rows]


def test_verdicts_are_counted_by_minute_camera_group_and_decision(store):
    batch = [
        verdict(0),
        verdict(1),
        verdict(2, decision=Decision.REJECT),
        verdict(61),
        verdict(3, group=2),
        verdict(0, camera="cam-2"),
    ]
    assert store.ingest(Batch(verdicts=batch)).verdicts == 6
    assert sorted(minutes(store)) == [
        (START_NS, "cam-1", 0, "accept", 2),
        (START_NS, "cam-1", 0, "reject", 1),
        (START_NS, "cam-1", 2, "accept", 1),
        (START_NS, "cam-2", 0, "accept", 1),
        (START_NS + MINUTE_NS, "cam-1", 0, "accept", 1),
    ]


def hours(store):
    table = schema.verdict_hours
    with store.reading() as connection:
        rows = connection.execute(select(table).order_by(table.c.hour, table.c.camera, table.c.decision)).all()
    return [(nanoseconds(row.hour), row.camera, row.group_id, row.decision, row.frames) for row in rows]


def test_verdicts_are_counted_by_the_hour_and_a_store_without_hours_gets_them_at_its_next_start(store):
    frames = [verdict(second, captured_at=START_NS + second * 10**9) for second in range(0, 9000, 60)]
    store.ingest(Batch(verdicts=[*frames[:99], verdict(7, "cam-2", Decision.REJECT)]))
    store.ingest(Batch(verdicts=[*frames[90:], frames[0]]))
    counted = hours(store)
    assert sum(row[-1] for row in counted) == len(frames) + 1
    assert {row[0] % (60 * MINUTE_NS) for row in counted} == {0}
    with store.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE verdict_hours")
        connection.exec_driver_sql("DROP INDEX regions_peak")
    upgraded = Store(store.url.render_as_string(hide_password=False))
    assert hours(upgraded) == counted
    with upgraded.reading() as connection:
        assert "regions_peak" in {index["name"] for index in inspect(connection).get_indexes("regions")}
    upgraded.close()


def test_verdict_that_comes_again_changes_nothing(store):
    store.ingest(Batch(verdicts=[verdict(i) for i in range(5)]))
    before = minutes(store)
    assert store.ingest(Batch(verdicts=[verdict(3), verdict(3), verdict(4, score=9.0)])).verdicts == 0
    assert minutes(store) == before


def test_frame_scored_again_by_another_model_counts_once(store):
    store.ingest(Batch(verdicts=[verdict(7)]))
    assert store.ingest(Batch(verdicts=[verdict(7, model_version="m2", decision=Decision.REJECT)])).verdicts == 0


@pytest.mark.parametrize("order", ["verdicts first", "defect first", "defect between", "one batch"])
@pytest.mark.parametrize(("first", "second"), [("accept", "reject"), ("reject", "accept"), ("review", "reject")])
def test_a_defect_follows_the_first_of_two_verdicts_whenever_it_is_read(store, order, first, second):
    with_classes(store, 1)
    verdicts = [verdict(7, decision=Decision(name), model_version=name) for name in (first, second)]
    # The defect belongs to the verdict that rejects.
    others = [verdict(i) for i in (5, 6, 8, 9)]
    store.ingest(Batch(verdicts=[*others, verdict(10, decision=Decision.REJECT)], defects=[taken(10, "D-0001")]))
    first_verdict, second_verdict, defect_batch = (
        Batch(verdicts=verdicts[:1]),
        Batch(verdicts=verdicts[1:]),
        Batch(defects=[taken(7, "D-0001")]),
    )
    parts = {
        "verdicts first": [first_verdict, second_verdict, defect_batch],
        "defect first": [defect_batch, first_verdict, second_verdict],
        "defect between": [first_verdict, defect_batch, second_verdict],
        "one batch": [Batch(verdicts=verdicts, defects=defect_batch.defects)],
    }[order]
    withdrawn = sum(store.ingest(part).withdrawn for part in parts)
    expected = {"cam-1:1:10": "reject"} | ({} if first == "accept" else {"cam-1:1:7": first})
    assert {row.frame_id: row.decision for row in queries.defects(store, None, 10)} == expected
    assert withdrawn == store.rejections().get("withdrawn", 0) == (first == "accept")
    counts = Counter()
    for row in queries.minute_counts(store, stamp(0)):
        counts[row.decision] += row.frames
    assert counts == Counter(["accept"] * 4 + ["reject", first])
    (shown,) = queries.classes(store)
    assert (shown.frames, shown.regions) == (len(expected), len(expected))
    with store.reading() as connection:
        view = text("SELECT decision, SUM(frames) FROM defect_minutes GROUP BY decision")
        by_decision = connection.execute(view).all()
        runs = connection.execute(select(schema.decided_sequences).order_by(schema.decided_sequences.c.first)).all()
        assert connection.scalar(select(func.count()).select_from(schema.regions)) == len(expected)
    assert {name: int(frames) for name, frames in by_decision} == Counter(expected.values())
    known = [(5, 9, "accept")] if first == "accept" else [(5, 6, "accept"), (7, 7, first), (8, 9, "accept")]
    assert [(row.first, row.last, row.decision) for row in runs] == [*known, (10, 10, "reject")]
    store.ingest(Batch(defects=[taken(7, "D-0001")], verdicts=verdicts))
    assert {row.frame_id: row.decision for row in queries.defects(store, None, 10)} == expected, "redelivery"


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(list(Decision))), max_size=40), st.integers(1, 7))
def test_the_first_verdicts_are_known_in_any_order(pairs, size):
    store, first = Store("sqlite://"), {}
    for start in range(0, len(pairs), size):
        store.ingest(Batch(verdicts=[verdict(i, decision=decision) for i, decision in pairs[start : start + size]]))
    for sequence, decision in pairs:
        first.setdefault(sequence, decision)
    with store.reading() as connection:
        decided = first_verdicts.decisions(connection, [defect(i) for i in range(32)])
    assert decided == {f"cam-1:1:{i}": decision for i, decision in first.items()}
    store.close()


def test_late_frame_is_counted_although_later_ones_have_come(store):
    store.ingest(Batch(verdicts=[verdict(i) for i in (5, 6, 9)]))
    assert store.ingest(Batch(verdicts=[verdict(i) for i in (2, 6, 7)])).verdicts == 2
    with store.reading() as connection:
        table = schema.sequences_seen
        ranges = connection.execute(select(table.c.first, table.c.last).order_by(table.c.first)).all()
    assert [tuple(row) for row in ranges] == [(2, 2), (5, 7), (9, 9)]


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 25), max_size=12), max_size=8))
def test_any_order_and_repetition_counts_every_frame_once(batches):
    store = Store("sqlite://")
    for batch in batches:
        store.ingest(Batch(verdicts=[verdict(sequence) for sequence in batch]))
    assert sum(row[-1] for row in minutes(store)) == len({sequence for batch in batches for sequence in batch})
    store.close()


def test_clock_that_runs_backwards_is_counted_in_the_minute_it_says(store):
    store.ingest(Batch(verdicts=[verdict(0), verdict(1, captured_at=START_NS - 5 * MINUTE_NS)]))
    assert [row[0] for row in minutes(store)] == [START_NS - 5 * MINUTE_NS, START_NS]


def test_defect_is_kept_with_its_regions_and_comes_once(store):
    with_classes(store, 1, 2)
    first = store.ingest(Batch(defects=[taken(0, "D-0001", "D-0002"), taken(1, None), taken(0, "D-0002")]))
    assert (len(first.defects), first.regions) == (2, 3)
    assert store.ingest(Batch(defects=[taken(0, "D-0002"), taken(1, None)])).defects == ()
    with store.reading() as connection:
        rows = connection.execute(select(schema.regions).order_by(schema.regions.c.id)).all()
        members = connection.execute(select(schema.classes.c.id, schema.classes.c.members)).all()
    assert [row.class_id for row in rows] == ["D-0001", "D-0002", None]
    assert np.frombuffer(rows[0].embedding, "<f2").shape == (DIMENSION,)
    assert sorted((row.id, row.members) for row in members) == [("D-0001", 1), ("D-0002", 1)]


def test_region_of_a_class_that_was_merged_meanwhile_goes_to_the_survivor(store):
    with_classes(store, 1, 2)
    with store.transaction() as connection:
        connection.execute(
            schema.classes.update().where(schema.classes.c.id == "D-0001").values(merged_into="D-0002", state="merged")
        )
    store.ingest(Batch(defects=[taken(0, "D-0001")]))
    assert store.assignments() == {"cam-1:1:0": "D-0002"}


def test_frame_has_the_class_of_its_hottest_region(store):
    with_classes(store, 1, 2)
    message = defect(4, *directions(2), peaks=(1.5, 3.0))
    store.ingest(Batch(defects=[TakenDefect(message, ("D-0001", "D-0002"))]))
    assert store.assignments() == {"cam-1:1:4": "D-0002"}


def test_defect_without_regions_is_kept_without_a_class(store):
    assert len(store.ingest(Batch(defects=[taken(0)])).defects) == 1
    assert store.assignments() == {}


def test_positions_move_with_what_was_read_or_not_at_all(store):
    store.ingest(Batch(verdicts=[verdict(0)], positions={("verdicts", 0): 1}))
    impossible = defect(1, directions(1)[0])
    object.__setattr__(impossible, "model_version", None)  # as no reader lets it through
    with pytest.raises(FlawlineError, match="store"):
        store.ingest(
            Batch(
                verdicts=[verdict(1, decision=Decision.REJECT)],
                defects=[TakenDefect(impossible, (None,))],
                positions={("verdicts", 0): 2, ("defects", 0): 9},
            )
        )
    assert store.positions() == {("verdicts", 0): 1}
    assert sum(row[-1] for row in minutes(store)) == 1
    assert store.ingest(Batch(verdicts=[verdict(1)], positions={("verdicts", 0): 2})).verdicts == 1


def test_rejections_are_counted_by_reason(store):
    store.ingest(Batch(rejections=[("bad-embedding", "one"), ("bad-embedding", "two"), ("undecodable", "three")]))
    assert store.rejections() == {"bad-embedding": 2, "undecodable": 1}


def event(name, number, transition=Transition.BORN):
    return ClassEvent(f"{name}:{number}:{transition}", name, transition, START_NS, number, ClassState.CANDIDATE, 5)


def test_events_wait_in_the_outbox_until_they_are_published_and_are_told_once(store):
    with_classes(store, 1)
    told = [event("D-0001", 1), event("D-0001", 2, Transition.CONFIRMED)]
    with store.transaction() as connection:
        for message in (*told, told[0]):
            add_event(connection, message)
    waiting = store.outbox()
    assert [message for _, message in waiting] == told
    store.mark_published([waiting[0][0]])
    assert [message for _, message in store.outbox()] == told[1:]
    with store.transaction() as connection:
        add_event(connection, told[0])
    assert [message for _, message in store.outbox()] == told[1:]


def test_class_that_is_found_later_is_found_in_the_past(store):
    store.ingest(Batch(defects=[taken(0, None), taken(1, None), taken(70, None)]))
    with_classes(store, 3)
    with store.transaction() as connection:
        connection.execute(schema.defects.update().where(schema.defects.c.sequence < 2).values(class_id="D-0003"))
        connection.execute(schema.classes.update().values(name="scratch", severity="major"))
        rows = connection.execute(
            text(
                "SELECT minute, camera, class_id, class_name, severity, SUM(frames) FROM defect_minutes "
                "GROUP BY minute, camera, class_id, class_name, severity ORDER BY SUM(frames) DESC"
            )
        ).all()
    assert [tuple(row[1:]) for row in rows] == [
        ("cam-1", "D-0003", "scratch", "major", 2),
        ("cam-1", None, None, None, 1),
    ]


def test_one_process_at_a_time_has_the_store(store):
    first = store.try_lock()
    assert first is not None
    second = Store(store.url.render_as_string(hide_password=False))
    assert second.try_lock() is None
    first.close()
    again = second.try_lock()
    assert again is not None
    again.close()
    second.close()


def test_store_that_is_opened_again_holds_what_it_held(store):
    store.ingest(Batch(verdicts=[verdict(0)], positions={("verdicts", 3): 8}))
    again = Store(store.url.render_as_string(hide_password=False))
    assert again.positions() == {("verdicts", 3): 8}
    again.close()


def test_store_of_another_schema_is_refused_and_not_touched(store):
    with store.transaction() as connection:
        registry.set_fact(connection, "schema", "99")
    with pytest.raises(FlawlineError, match="schema 99"):
        Store(store.url.render_as_string(hide_password=False))


def test_stamps_are_exact_to_the_microsecond():
    at = 1_763_814_000_123_456_000
    assert stamp(at) == datetime(2025, 11, 22, 12, 20, 0, 123456, tzinfo=UTC)
    assert nanoseconds(stamp(at)) == at


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/x", "oracle://x", "sqlite+nothing:///x"])
def test_store_url_of_another_kind_is_bad_usage(url):
    with pytest.raises(UsageError, match=r"store\.url"):
        Store(url)


def test_database_that_cannot_be_reached_is_named_without_its_password():
    with pytest.raises(FlawlineError) as raised:
        Store("postgresql://line:secret@127.0.0.1:1/line")
    assert "127.0.0.1" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_folder_of_the_store_is_made_and_a_file_in_its_place_is_named(tmp_path):
    Store(f"sqlite:///{tmp_path / 'new' / 'store.db'}").close()
    (tmp_path / "file").write_text("")
    with pytest.raises(FlawlineError, match="file"):
        Store(f"sqlite:///{tmp_path / 'file' / 'store.db'}")


def test_counts_survive_an_empty_batch(store):
    store.ingest(Batch())
    with store.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.defects)) == 0


def test_tls_settings_of_the_url_reach_the_driver() -> None:
    wanted = {"sslmode": "verify-full", "sslrootcert": "/ca.pem", "sslcert": "/c.pem", "sslkey": "/c.key"}
    url = make_url("postgresql+psycopg://line@store.plant/line").update_query_dict(wanted)
    engine = database._engine(url, 5.0)
    _, options = engine.dialect.create_connect_args(engine.url)
    assert wanted.items() <= options.items()


def test_server_without_tls_is_refused_by_a_store_that_requires_it(postgres_server: PostgresServer) -> None:
    with pytest.raises(FlawlineError, match="SSL"):
        Store(f"{postgres_server.new_database()}?sslmode=require")
