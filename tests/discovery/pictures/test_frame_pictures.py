"""The rows of pictures: what is asked for, what is shared, and what a heat map's life hangs on."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from discovery.store import frame_pictures, pruning, schema
from discovery.store.frame_pictures import Pile
from discovery.store.store import Batch
from flawline.retention import Value
from flawline.settings.retention import RetentionSettings
from tests.discovery.factories import START_NS
from tests.discovery.pictures.photos import keep, pick_of, scored
from tests.discovery.stream import Stream

pytestmark = pytest.mark.system

HOUR = START_NS // pruning.HOUR_NS


def test_frames_beyond_what_may_wait_are_counted_and_not_asked_for(stream: Stream, monkeypatch) -> None:
    monkeypatch.setattr(frame_pictures, "WANTED_LIMIT", 3)
    with stream.store.transaction() as connection:
        assert frame_pictures.want(connection, [pick_of(scored(n)) for n in range(2)]) == 0
        assert frame_pictures.want(connection, [pick_of(scored(n)) for n in range(2, 5)]) == 2
        rows = frame_pictures.wanted(connection, 10)
        assert [row.frame_id for row in rows] == ["cam-1:1:0", "cam-1:1:1", "cam-1:1:2"]
        assert [row.id for row in frame_pictures.wanted(connection, 2, {rows[0].id})] == [rows[1].id, rows[2].id]
        facts = {row.name: row.value for row in connection.execute(select(schema.facts))}
    assert facts["lost frames backlog"] == "2"


def test_what_is_kept_lies_on_piles_by_hour_and_stratum(stream: Stream) -> None:
    keep(stream.store, scored(0), scored(1), scored(2, captured_at=START_NS + pruning.HOUR_NS))
    with stream.store.reading() as connection:
        holdings = {holding.key: holding for holding in frame_pictures.holdings(connection)}
    assert {pile: holding.size_bytes for pile, holding in holdings.items()} == {
        Pile(HOUR, "reject"): 200, Pile(HOUR + 1, "reject"): 100,
    }  # fmt: skip
    assert holdings[Pile(HOUR, "reject")].value == Value.DEFECT
    assert holdings[Pile(HOUR, "reject")].at_ns == (HOUR + 1) * pruning.HOUR_NS


def test_an_object_that_two_frames_share_is_no_frame_s_own(stream: Stream) -> None:
    keep(stream.store, scored(0), scored(1), scored(2), keys=("a" * 64, "a" * 64, "b" * 64))
    with stream.store.reading() as connection:
        first, second, third = frame_pictures.of_pile(connection, Pile(HOUR, "reject"), 10)
        assert frame_pictures.shared_keys(connection, [first.id, third.id], {"a" * 64, "b" * 64}) == {"a" * 64}
        assert frame_pictures.shared_keys(connection, [first.id, second.id], {"a" * 64}) == set()


def test_lost_frames_are_forgotten_by_age_and_stay_counted(stream: Stream) -> None:
    with stream.store.transaction() as connection:
        frame_pictures.want(connection, [pick_of(scored(0)), pick_of(scored(1, captured_at=START_NS + pruning.DAY_NS))])
        for row in frame_pictures.wanted(connection, 2):
            frame_pictures.lose(connection, row.id, "expired")
        frame_pictures.forget_lost(connection, START_NS + pruning.HOUR_NS)
        assert frame_pictures.by_frame(connection, "cam-1:1:0") is None
        assert frame_pictures.by_frame(connection, "cam-1:1:1") is not None
        assert frame_pictures.report(connection).lost == {"expired": 2}


def test_the_heat_map_of_a_frame_stays_as_long_as_its_picture(stream: Stream) -> None:
    with stream.store.reading() as connection:
        d = schema.defects.c
        first, second = connection.execute(select(d.frame_id, d.sequence).order_by(d.id).limit(2)).all()
    keep(stream.store, scored(first.sequence))
    keep_days = RetentionSettings(min_free_bytes=0, rejected_pictures_days=1, near_miss_pictures_days=1)
    stream.store.utc_ns = lambda: START_NS + 90 * pruning.DAY_NS
    keep(stream.store, scored(900, captured_at=START_NS + 90 * pruning.DAY_NS))
    stream.store.ingest(Batch(verdicts=[scored(901, captured_at=START_NS + 90 * pruning.DAY_NS)]))
    pruning.prune(stream.store, keep_days)

    def heat_bytes(frame_id: str) -> int:
        with stream.store.reading() as connection:
            row = connection.execute(select(schema.defects).where(schema.defects.c.frame_id == frame_id)).one()
        return len(row.heatmap)

    assert heat_bytes(first.frame_id) > 0
    assert heat_bytes(second.frame_id) == 0
    with stream.store.transaction() as connection:
        row = frame_pictures.by_frame(connection, first.frame_id)
        frame_pictures.forget(connection, [row.id], "DEFECT", "age")
    assert heat_bytes(first.frame_id) == 0
