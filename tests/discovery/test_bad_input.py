"""Rounds over next to nothing, over copies, and under clocks that go backwards: nothing breaks, no id is lost."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import select

from discovery.round.clustering import cluster
from discovery.store import decisions, registry, schema
from discovery.store.store import Batch, Store, TakenDefect
from flawline.messages import ClassState
from flawline.settings.discovery import DiscoverySettings
from tests.discovery.factories import DIMENSION, START_NS, VERSION, defect, directions
from tests.discovery.round_line import RoundLine
from tests.discovery.stream import Stream

HOUR_NS = 3_600_000_000_000


def copies(line, count, version=VERSION):
    vector = directions(1)[0]
    line.store.ingest(Batch(defects=[TakenDefect(defect(n, vector, version=version), (None,)) for n in range(count)]))


@pytest.mark.parametrize("mode", ["centroids", "learned"])
@pytest.mark.parametrize("count", [0, 1, 29])
def test_too_few_regions_for_a_round_change_nothing(tmp_path, vit_weights, mode, count):
    line = RoundLine(tmp_path, vit_weights, mode=mode)
    copies(line, count)
    line.round()
    assert registry.read(line.store).classes == ()
    assert registry.read(line.store).round == 0


@pytest.mark.parametrize("mode", ["centroids", "learned"])
def test_copies_are_one_class_that_keeps_its_id(tmp_path, vit_weights, mode):
    line = RoundLine(tmp_path, vit_weights, mode=mode)
    copies(line, 60)
    for _ in range(3):
        line.round()
        ((name, members),) = line.members().items()
        assert (name, members) == ("D-0001", 60)


def test_one_region_among_copies_is_no_class_of_its_own(tmp_path, vit_weights):
    line = RoundLine(tmp_path, vit_weights)
    copies(line, 60)
    other = defect(99, directions(2)[1], version=VERSION)
    line.store.ingest(Batch(defects=[TakenDefect(other, (None,))]))
    line.round()
    assert [defect_class.id for defect_class in registry.read(line.store).classes] == ["D-0001"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_clustering_of_next_to_nothing_is_none(count):
    assert cluster(np.zeros((count, DIMENSION), np.float32)) is None


def test_clocks_that_go_backwards_keep_ids_and_last_sightings(tmp_path):
    clock = [START_NS]
    store = Store(f"sqlite:///{tmp_path / 'store.db'}", utc_ns=lambda: clock[0])
    stream = Stream(store, DiscoverySettings(window_regions=200, class_limit=10), directions(3), spread=0.4)
    stream.sequence = 100_000
    for _ in range(2):
        stream.feed([0, 1, 2] * 14)
        stream.round()
    before = stream.class_of_kind()
    seen = {defect_class.id: defect_class.last_seen_at for defect_class in stream.registry().classes}
    clock[0] -= 24 * HOUR_NS
    stream.sequence -= 50_000  # captured half a day before all others
    stream.feed([0, 1, 2] * 14)
    stream.round()
    decisions.name(store, before[0], "early", who="ana")
    assert stream.class_of_kind() == before
    after = stream.registry().classes
    assert all(defect_class.last_seen_at >= seen[defect_class.id] for defect_class in after)
    assert {defect_class.state for defect_class in after} == {ClassState.CONFIRMED}
    with store.reading() as connection:
        events = connection.scalars(select(schema.class_events.c.event_id)).all()
    assert len(set(events)) == len(events)
    store.close()
