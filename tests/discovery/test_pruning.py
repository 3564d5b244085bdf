"""What is too old goes, and no count with it."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, text, update

from discovery import record_checks
from discovery.record_checks import Rejected
from discovery.store import class_commands, decisions, pruning, registry, schema
from discovery.store.store import Batch, Store
from flawline import messages
from flawline.settings.discovery import DiscoverySettings
from tests.discovery.factories import DIMENSION, START_NS, VERSION, defect, directions
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


def settings(**days):
    return DiscoverySettings(**days)


def arrive(store, sequence, after_days):
    store.ingest(Batch(defects=[_taken(sequence, START_NS + int(after_days * DAY_NS))]))


def _taken(sequence, captured_at):
    from discovery.store.store import TakenDefect

    return TakenDefect(defect(sequence, directions(3)[0], captured_at=captured_at), (None,))


def prune(store, wanted):
    total = 0
    while (pruned := pruning.prune(store, wanted)) != pruning.Pruned():
        total += pruned.defects
    return total


def frames(store):
    with store.reading() as connection:
        rows = connection.execute(text("SELECT class_id, SUM(frames) AS n FROM defect_minutes GROUP BY class_id"))
        return {row.class_id: int(row.n) for row in rows}


def count(store, table, *conditions):
    with store.reading() as connection:
        return connection.scalar(select(func.count()).select_from(table).where(*conditions))


def test_nothing_goes_without_a_setting(stream):
    arrive(stream.store, 5000, 900)
    assert pruning.prune(stream.store, settings()) == pruning.Pruned()
    assert count(stream.store, schema.defects) == FRAMES + 1


def test_old_defects_are_only_counted_and_classes_keep_their_numbers(stream):
    store = stream.store
    arrive(store, 5000, 40)
    before, listed = frames(store), class_commands.list_classes(store)
    gone = prune(store, settings(keep_defects_days=30))
    # Every class keeps the exemplars it lives by.
    assert gone == FRAMES - 3 * ROUNDS.exemplars
    assert count(store, schema.defects) == 3 * ROUNDS.exemplars + 1
    assert frames(store) == before
    assert class_commands.list_classes(store) == listed
    assert [one["regions"] for one in listed] == [28, 28, 28]


def test_what_was_forgotten_follows_its_class_in_a_merge(stream):
    store = stream.store
    arrive(store, 5000, 40)
    prune(store, settings(keep_defects_days=30))
    first, second = sorted(set(stream.class_of_kind().values()))[:2]
    decisions.merge(store, second, first)
    assert frames(store)[first] == 56
    assert second not in frames(store)


def test_rounds_go_on_after_pruning_with_the_same_ids(stream):
    store = stream.store
    before = stream.class_of_kind()
    arrive(store, 5000, 40)
    prune(store, settings(keep_defects_days=30))
    stream.sequence = 6000
    stream.truth["cam-1:1:5000"] = 0
    stream.feed([0, 1, 2] * 14)
    stream.round()
    after = registry.read(store)
    assert stream.class_of_kind() == before
    assert sorted(one.members for one in after.classes) == [42, 42, 43]


def test_pictures_go_before_defects_but_those_of_exemplars_stay(stream):
    store = stream.store
    arrive(store, 5000, 40)
    prune(store, settings(keep_images_days=30))
    r = schema.regions
    assert count(store, schema.defects) == FRAMES + 1
    assert count(store, r, func.length(r.c.crop) > 0) == 3 * ROUNDS.exemplars + 1
    assert count(store, r, func.length(r.c.crop) > 0, r.c.exemplar.is_(False)) == 1
    assert count(store, schema.defects, func.length(schema.defects.c.heatmap) > 0) == 1


def test_a_frame_from_the_future_empties_nothing(stream):
    store = stream.store
    store.utc_ns = lambda: START_NS + DAY_NS
    arrive(store, 5000, 5_000)
    assert prune(store, settings(keep_defects_days=30, keep_images_days=30)) == 0
    assert count(store, schema.defects) == FRAMES + 1


def test_clock_that_jumped_ahead_empties_nothing(stream):
    store = stream.store
    store.utc_ns = lambda: START_NS + 100_000 * DAY_NS
    assert prune(store, settings(keep_defects_days=30, keep_images_days=30)) == 0


def test_forgotten_defect_that_comes_again_is_refused(stream):
    store = stream.store
    arrive(store, 5000, 40)
    assert prune(store, settings(keep_defects_days=30))
    with store.reading() as connection:
        horizon = pruning.forgotten_before(connection)
    again = messages.encode(defect(0, directions(3)[0]))
    assert record_checks.defect_of(again, {VERSION: DIMENSION}).sequence == 0
    with pytest.raises(Rejected) as refused:
        record_checks.defect_of(again, {VERSION: DIMENSION}, horizon)
    assert refused.value.reason == "expired"


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
