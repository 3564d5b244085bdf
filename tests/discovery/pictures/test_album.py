"""Whole frames from their topic to the picture store, and out of it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from discovery.pictures import album, keeper
from discovery.service import DiscoveryService
from discovery.store import frame_pictures, judgements, schema
from discovery.store.database import fact
from discovery.store.store import Store
from flawline import imaging, kafka_clients, messages, topics
from flawline.messages import Codec, Decision, Frame, Verdict
from flawline.object_store import MissingObjectError
from flawline.settings.tree import Settings
from tests.discovery import factories, line
from tests.support.brokers import unique

pytestmark = pytest.mark.system


@pytest.fixture
def settings(embedded_broker, tmp_path) -> Settings:
    made = line.settings_for(tmp_path, embedded_broker.bootstrap, unique("album"))
    kafka_clients.ensure_topics(made, only=[topics.FRAMES.name])
    made.pictures.sample_one_in = 1_000_000
    return made


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = Store(settings.store_url)
    yield opened
    opened.close()


def send(settings: Settings, sent: Sequence[tuple[Frame, Verdict]]) -> None:
    """Send frames and then their verdicts, which name the places of the frames."""
    client = kafka_clients.producer(settings)
    try:
        for frame, verdict in sent:
            place = client.send(
                settings.topic(topics.FRAMES.name), value=messages.encode(frame), headers=messages.headers(frame),
                partition=1,
            ).get(timeout=60)  # fmt: skip
            client.send(
                settings.topic(topics.VERDICTS.name), value=messages.encode(verdict), partition=1,
                headers=[*messages.headers(verdict), (messages.FRAME_OFFSET, str(place.offset).encode())],
            ).get(timeout=60)  # fmt: skip
    finally:
        client.close()


def scored(sequence: int, decision: Decision = Decision.ACCEPT, p_value: float = 0.5) -> Verdict:
    return replace(factories.verdict(sequence, decision=decision), p_value=p_value)


def rows(store: Store) -> dict[str, tuple[str, str, str | None]]:
    """Return stratum, state and reason of each picture by frame."""
    p = schema.frame_pictures.c
    with store.reading() as connection:
        return {row.frame_id: (row.stratum, row.state, row.reason) for row in connection.execute(
            select(p.frame_id, p.stratum, p.state, p.reason))}  # fmt: skip


def bytes_of(settings: Settings, store: Store, frame_id: str) -> bytes:
    with store.reading() as connection:
        row = frame_pictures.by_frame(connection, frame_id)
    return keeper.picture_store(settings).get(row.object_key, row.size_bytes)


def test_frames_are_kept_by_value_and_go_by_age_and_room(settings: Settings, store: Store, tmp_path: Path) -> None:
    jpeg, as_captured = factories.frame(0)
    raw, _ = factories.frame(1, Codec.RAW)
    near, _ = factories.frame(2)
    damaged, _ = factories.frame(3, checksum=1)
    others = [factories.frame(n)[0] for n in range(4, 30)]
    late = replace(factories.frame(50)[0], captured_at=factories.START_NS + 80 * 86_400_000_000_000)
    sent = [
        (jpeg, scored(0, Decision.REJECT)),
        (raw, scored(1, Decision.REVIEW)),
        (near, scored(2, p_value=0.01)),
        (damaged, scored(3, Decision.REJECT)),
        *((frame, scored(frame.sequence)) for frame in others),
    ]
    send(settings, sent)
    line.publish(settings, [scored(40, Decision.REJECT)])  # a verdict that does not name its frame
    with DiscoveryService(settings) as running:
        running.drain()

    known = rows(store)
    assert known["cam-1:1:0"] == ("reject", "kept", None)
    assert known["cam-1:1:1"] == ("review", "kept", None)
    assert known["cam-1:1:2"] == ("near-miss", "kept", None)
    assert known["cam-1:1:3"] == ("reject", "lost", "damaged")
    assert known["cam-1:1:40"] == ("reject", "lost", "expired")
    sample = [frame_id for frame_id, (stratum, state, _) in known.items() if (stratum, state) == ("accepted", "kept")]
    assert len(sample) == 1  # all are of one minute
    assert bytes_of(settings, store, "cam-1:1:0") == as_captured
    (tmp_path / "raw.png").write_bytes(bytes_of(settings, store, "cam-1:1:1"))
    assert (imaging.read_image(tmp_path / "raw.png") == 30).all()
    with store.reading() as connection:
        hours = {row.stratum: row.frames for row in connection.execute(select(schema.stratum_hours))}
        opened = fact(connection, album.PICTURE_STORE, "")
    assert hours == {"reject": 3, "review": 1, "near-miss": 1, "accepted": 26}
    pictures = keeper.picture_store(settings)
    marker = pictures.marker()
    assert marker is not None and opened == f"{pictures.root} {marker.id}"

    # The service reads the verdicts again and keeps nothing twice.
    with store.transaction() as connection:
        connection.execute(schema.positions.delete())
    with DiscoveryService(settings) as running:
        running.drain()
    assert rows(store) == known

    # Judgements reach the topic, and so do those that people take back.
    judgements.judge(store, "cam-1:1:0", "real", who="ana", is_offered=True)
    judgements.judge(store, "cam-1:1:0", "false", who="ben", why="oil", is_offered=True)
    judgements.undo(store, who="ben")
    judgements.undo(store, who="ana")
    with DiscoveryService(settings) as running:
        running.drain()
    published = line.published_judgements(settings)
    assert [(event.judgement, event.who, event.why) for event in published] == [
        ("real", "ana", None), ("false", "ben", "oil"), ("real", "ben", None), (None, "ana", None),
    ]  # fmt: skip
    assert {(event.frame_id, event.decision, event.is_offered) for event in published} == {
        ("cam-1:1:0", Decision.REJECT, True)
    }
    assert judgements.outbox(store) == []

    # After 80 days near misses and samples are too old, and the store has room for one frame only.
    send(settings, [(late, replace(scored(50, Decision.REJECT), captured_at=late.captured_at))])
    with store.reading() as connection:
        sizes = {
            frame_id: frame_pictures.by_frame(connection, frame_id).size_bytes for frame_id in known
        }  # fmt: skip
    settings.pictures.limit_bytes = sizes["cam-1:1:0"] + 1
    keys = {frame_id: key_of(store, frame_id) for frame_id in ("cam-1:1:0", "cam-1:1:2", sample[0])}
    with DiscoveryService(settings) as running:
        running.drain()
    with DiscoveryService(settings) as running:  # it forgets at its start, when it has the last frame
        running.drain()
    known = rows(store)
    assert {frame_id for frame_id, (_, state, _) in known.items() if state == "kept"} == {"cam-1:1:50"}
    assert known["cam-1:1:3"] == ("reject", "lost", "damaged")
    for frame_id in ("cam-1:1:0", "cam-1:1:1", "cam-1:1:2", sample[0]):
        assert frame_id not in known
    for key in keys.values():
        with pytest.raises(MissingObjectError):
            keeper.picture_store(settings).get(key, 1)
    with store.reading() as connection:
        facts = {row.name: row.value for row in connection.execute(select(schema.facts))}
    assert facts["forgotten frames NEAR_MISS age"] == facts["forgotten frames SAMPLE age"] == "1"
    assert facts["forgotten frames DEFECT room"] == "2"
    assert facts["lost frames damaged"] == "1"


def key_of(store: Store, frame_id: str) -> str:
    with store.reading() as connection:
        return str(frame_pictures.by_frame(connection, frame_id).object_key)


def test_a_line_without_room_for_pictures_keeps_none_and_still_counts(settings: Settings, store: Store) -> None:
    settings.pictures.limit_bytes = 0
    send(settings, [(factories.frame(0)[0], scored(0, Decision.REJECT))])
    with DiscoveryService(settings) as running:
        running.drain()
    assert rows(store) == {}
    with store.reading() as connection:
        assert [row.frames for row in connection.execute(select(schema.stratum_hours))] == [1]
    assert not (settings.data_dir / "pictures").exists()
