"""What is too old or has no room goes, the least valuable first, and no count with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import func, select, text, update

from discovery import record_checks
from discovery.record_checks import Rejected
from discovery.store import class_commands, database, decisions, pruning, registry, schema
from discovery.store.store import Batch, Store, TakenDefect
from flawline import messages
from flawline.messages import Decision
from flawline.retention import Value
from flawline.settings.discovery import DiscoverySettings
from flawline.settings.retention import RetentionSettings
from tests.discovery.factories import DIMENSION, MINUTE_NS, START_NS, VERSION, defect, directions, verdict
from tests.discovery.stream import Stream

DAY_NS = pruning.DAY_NS
ROUNDS = DiscoverySettings(window_regions=200, exemplars=8, class_limit=10)
FRAMES = 84


@pytest.fixture(params=["sqlite", "postgresql"])
def stream(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres_server").new_database()
    opened = Store(url, utc_ns=lambda: START_NS + 1_000 * DAY_NS)
    filled = Stream(opened, ROUNDS, directions(3), spread=0.4)
    for _ in range(2):
        filled.feed([0, 1, 2] * 14)
        filled.round()
    yield filled
    opened.close()


def settings(**values):
    """Return settings of a retention that keeps everything but what `values` say."""
    ages = ("rejected_pictures_days", "near_miss_pictures_days", "defect_rows_days", "minutes_days")
    return RetentionSettings(
        **{"min_free_bytes": 0, "pictures_limit_bytes": 1 << 50} | dict.fromkeys(ages, 1e5) | values
    )


def arrive(store, sequence, after_days):
    store.ingest(Batch(defects=[_taken(sequence, START_NS + int(after_days * DAY_NS))]))


def _taken(sequence, captured_at):
    return TakenDefect(defect(sequence, directions(3)[0], captured_at=captured_at), (None,))


def prune(store, wanted):
    return pruning.prune(store, wanted).defects


def frames(store):
    with store.reading() as connection:
        rows = connection.execute(text("SELECT class_id, SUM(frames) AS n FROM defect_minutes GROUP BY class_id"))
        return {row.class_id: int(row.n) for row in rows}


def count(store, table, *conditions):
    with store.reading() as connection:
        return connection.scalar(select(func.count()).select_from(table).where(*conditions))


def test_nothing_goes_before_its_age(stream):
    arrive(stream.store, 5000, 900)
    assert pruning.prune(stream.store, settings()) == pruning.Pruned()
    assert count(stream.store, schema.defects) == FRAMES + 1


def test_old_defects_are_only_counted_and_classes_keep_their_numbers(stream):
    store = stream.store
    arrive(store, 5000, 40)
    before, listed = frames(store), class_commands.list_classes(store)
    gone = prune(store, settings(defect_rows_days=30))
    # Every class keeps its exemplars.
    assert gone == FRAMES - 3 * ROUNDS.exemplars
    assert count(store, schema.defects) == 3 * ROUNDS.exemplars + 1
    assert frames(store) == before
    assert class_commands.list_classes(store) == listed
    assert [row["regions"] for row in listed] == [28, 28, 28]


def test_what_was_forgotten_follows_its_class_in_a_merge(stream):
    store = stream.store
    arrive(store, 5000, 40)
    prune(store, settings(defect_rows_days=30))
    first, second = sorted(set(stream.class_of_kind().values()))[:2]
    decisions.merge(store, second, first)
    assert frames(store)[first] == 56
    assert second not in frames(store)


@pytest.mark.system
def test_rounds_go_on_after_pruning_with_the_same_ids(stream):
    store = stream.store
    before = stream.class_of_kind()
    arrive(store, 5000, 40)
    prune(store, settings(defect_rows_days=30))
    stream.sequence = 6000
    stream.truth["cam-1:1:5000"] = 0
    stream.feed([0, 1, 2] * 14)
    stream.round()
    after = registry.read(store)
    assert stream.class_of_kind() == before
    assert sorted(defect_class.members for defect_class in after.classes) == [42, 42, 43]


def test_pictures_go_before_defects_but_those_of_exemplars_stay(stream):
    store = stream.store
    arrive(store, 5000, 40)
    prune(store, settings(rejected_pictures_days=30))
    r = schema.regions
    assert count(store, schema.defects) == FRAMES + 1
    assert count(store, r, func.length(r.c.crop) > 0) == 3 * ROUNDS.exemplars + 1
    assert count(store, r, func.length(r.c.crop) > 0, r.c.exemplar.is_(False)) == 1
    assert count(store, schema.defects, func.length(schema.defects.c.heatmap) > 0) == 1


def test_a_frame_from_the_future_empties_nothing(stream):
    store = stream.store
    store.utc_ns = lambda: START_NS + DAY_NS
    arrive(store, 5000, 5_000)
    assert prune(store, settings(defect_rows_days=30, rejected_pictures_days=30)) == 0
    assert count(store, schema.defects) == FRAMES + 1


def test_clock_that_jumped_ahead_empties_nothing(stream):
    store = stream.store
    store.utc_ns = lambda: START_NS + 100_000 * DAY_NS
    assert prune(store, settings(defect_rows_days=30, rejected_pictures_days=30)) == 0


def test_forgotten_defect_that_comes_again_is_refused(stream):
    store = stream.store
    arrive(store, 5000, 40)
    assert prune(store, settings(defect_rows_days=30))
    with store.reading() as connection:
        horizon = pruning.forgotten_before(connection)
    again = messages.encode(defect(0, directions(3)[0]))
    assert record_checks.defect_of(again, {VERSION: DIMENSION}).sequence == 0
    with pytest.raises(Rejected) as refused:
        record_checks.defect_of(again, {VERSION: DIMENSION}, horizon)
    assert refused.value.reason == "expired"


def sizes_of(store):
    with store.reading() as connection:
        return pruning.picture_bytes(connection)


def forgotten(store):
    with store.reading() as connection:
        return pruning.forgotten(connection)


def pictured(store):
    """Return how many frames have pictures, by decision."""
    d = schema.defects.c
    with store.reading() as connection:
        query = select(d.decision, func.count()).where(func.length(d.heatmap) > 0).group_by(d.decision)
        return {decision: int(number) for decision, number in connection.execute(query)}


def near_misses(store, sequences, after_days=0.0):
    at = START_NS + int(after_days * DAY_NS)
    defects = [replace(_taken(number, at).defect, decision=Decision.REVIEW) for number in sequences]
    store.ingest(Batch(defects=[TakenDefect(item, (None,)) for item in defects]))


def test_near_misses_lose_their_pictures_before_rejects(stream):
    store = stream.store
    near_misses(store, range(5000, 5010))
    arrive(store, 5010, 40)
    gone = pruning.prune(store, settings(near_miss_pictures_days=30, rejected_pictures_days=50))
    assert gone == pruning.Pruned(pictures=10)
    assert pictured(store) == {"reject": FRAMES + 1}
    assert forgotten(store) == {"pictures NEAR_MISS age": 10}


def test_pictures_beyond_their_limit_go_by_value(stream):
    store = stream.store
    near_misses(store, range(5000, 5010), after_days=1)
    dismissed = sorted(set(stream.class_of_kind().values()))[0]
    decisions.dismiss(store, dismissed)
    sizes = sizes_of(store)
    assert sizes.keys() == {Value.NEAR_MISS, Value.DISMISSED, Value.DEFECT}
    prune(store, settings(pictures_limit_bytes=sizes[Value.DISMISSED] + sizes[Value.DEFECT]))
    assert sizes_of(store).keys() == {Value.DISMISSED, Value.DEFECT}
    prune(store, settings(pictures_limit_bytes=sizes[Value.DEFECT]))
    assert sizes_of(store) == {Value.DEFECT: sizes[Value.DEFECT]}
    assert forgotten(store) == {"pictures DISMISSED room": 28, "pictures NEAR_MISS room": 10}
    assert count(store, schema.defects) == FRAMES + 10, "rows and embeddings stay"


def test_pictures_held_for_an_exemplar_go_when_it_is_none_any_more(stream):
    store, r = stream.store, schema.regions
    keep = settings(rejected_pictures_days=30)
    arrive(store, 5000, 40)
    prune(store, keep)
    assert count(store, r, func.length(r.c.crop) > 0) == 3 * ROUNDS.exemplars + 1
    with store.transaction() as connection:
        connection.execute(update(r).values(exemplar=False))
    assert pruning.prune(store, keep).pictures == 3 * ROUNDS.exemplars
    assert count(store, r, func.length(r.c.crop) > 0) == 1
    assert pruning.prune(store, keep) == pruning.Pruned()


def test_defect_that_is_only_counted_leaves_no_size_behind(stream):
    store = stream.store
    arrive(store, 5000, 40)
    prune(store, settings(defect_rows_days=30))
    assert count(store, schema.pictures) == count(store, schema.defects)


def test_old_minutes_are_counted_by_the_hour_and_the_sums_are_what_they_were(stream):
    store, v = stream.store, schema.verdict_minutes.c
    store.ingest(Batch(verdicts=[verdict(60 * minute, score=minute) for minute in range(180)]))
    store.ingest(Batch(verdicts=[verdict(100_000, captured_at=START_NS + 40 * DAY_NS)]))
    sums = select(func.sum(v.frames), func.sum(v.score_sum), func.max(v.score_max))
    arrive(store, 5000, 40)
    with store.reading() as connection:
        before = connection.execute(sums).one()
    assert count(store, schema.verdict_minutes) == 181
    totals = frames(store)
    prune(store, settings(minutes_days=30, defect_rows_days=30))
    assert count(store, schema.verdict_minutes) == 5, "3 hours touch 4 of the clock, and one minute is young"
    with store.reading() as connection:
        after = connection.execute(sums).one()
    assert (after[0], after[2]) == (before[0], before[2]) and after[1] == pytest.approx(before[1])
    assert frames(store) == totals
    late = verdict(200_000, captured_at=START_NS + 7 * MINUTE_NS)
    store.ingest(Batch(verdicts=[late]))
    prune(store, settings(minutes_days=30))
    with store.reading() as connection:
        assert connection.execute(sums).one()[0] == before[0] + 1


def test_store_that_had_no_sizes_of_pictures_gets_them_at_the_next_start(stream, monkeypatch):
    store = stream.store
    arrive(store, 5000, 40)
    sizes = sizes_of(store)
    with store.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE pictures")
    monkeypatch.setattr(database, "LISTED_AT_ONCE", 10)
    opened = Store(store.url.render_as_string(hide_password=False))
    assert sizes_of(opened) == sizes
    opened.close()


def test_disk_that_lacks_room_takes_pictures_and_gets_the_file_smaller(tmp_path, monkeypatch):
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", utc_ns=lambda: START_NS + DAY_NS)
    big = defect(0, directions(1)[0])
    heavy = replace(big.regions[0], crop=bytes(500_000))
    for hour in range(8):
        taken = replace(big, sequence=hour, captured_at=START_NS + hour * 60 * MINUTE_NS, regions=(heavy,))
        store.ingest(Batch(defects=[TakenDefect(taken, (None,))]))
    store.checkpoint()
    size = (tmp_path / "store.db").stat().st_size
    monkeypatch.setattr(pruning, "free_disk_bytes", lambda _: 10_000_000)
    keep = settings(min_free_bytes=11_400_000)
    assert pruning.prune(store, keep) == pruning.Pruned(pictures=3), "1.4 MB lack, and a frame takes 0.5 MB"
    assert size - (tmp_path / "store.db").stat().st_size >= 1_400_000
    with store.reading() as connection:
        rest = connection.scalars(select(schema.defects.c.sequence).where(func.length(schema.defects.c.heatmap) > 0))
        assert sorted(rest) == [3, 4, 5, 6, 7], "the oldest went"
    assert forgotten(store) == {"pictures DEFECT room": 3}
    store.close()


def test_passes_come_every_ten_minutes_and_every_ten_seconds_while_the_disk_is_short(tmp_path, monkeypatch):
    store, now_s = Store(f"sqlite:///{tmp_path / 'store.db'}"), [0.0]
    free = [10]
    monkeypatch.setattr(pruning, "free_disk_bytes", lambda _: free[0])
    looked = []
    monkeypatch.setattr(pruning, "_holdings", lambda _: looked.append(now_s[0]) or [])
    store.ingest(Batch(verdicts=[verdict(0)]))
    pruner = pruning.Pruner(store, settings(min_free_bytes=10), lambda: now_s[0])
    for second in range(1300):
        now_s[0], free[0] = float(second), 5 if 900 <= second < 915 else 10
        while pruner.step() is not None:
            pass
    assert looked == [0, 600, 900, 910]
    store.close()


def test_store_of_the_former_version_is_upgraded_where_it_stands(stream):
    store = stream.store
    before = frames(store)
    with store.transaction() as connection:
        connection.exec_driver_sql("DROP VIEW defect_minutes")
        connection.exec_driver_sql("DROP TABLE defect_totals")
        connection.exec_driver_sql("CREATE VIEW defect_minutes AS SELECT 1 AS frames")
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("DROP VIEW defect_minutes")
        connection.execute(update(schema.facts).where(schema.facts.c.name == "schema").values(value="1"))
    upgraded = Store(store.url.render_as_string(hide_password=False))
    assert frames(upgraded) == before
    upgraded.close()
