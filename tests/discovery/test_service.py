"""The discovery process against a real broker: what is delivered twice, damaged, or interrupted by a kill."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from sqlalchemy import func, select

from discovery import service
from discovery.service import DiscoveryService
from discovery.store import decisions, registry, schema
from discovery.store.decision_records import find
from discovery.store.store import Store
from flawline import messages, telemetry
from flawline.errors import FlawlineError
from flawline.messages import Decision, Defect, Tensor, Transition, Verdict
from tests.discovery import line
from tests.discovery.factories import DIMENSION, defect, directions, near, verdict
from tests.support.brokers import unique

pytestmark = pytest.mark.system

KINDS = directions(4)


@pytest.fixture
def settings(embedded_broker, tmp_path):
    return line.settings_for(tmp_path, embedded_broker.bootstrap, unique("discovery"))


def day(frames: int, start: int = 0, seed: int = 0, cameras: int = 2):
    """Return verdicts, every second one with a defect of one of three kinds, and the kind of each such frame."""
    rng = np.random.default_rng((seed, start))
    sent, kinds = [], {}
    for sequence in range(start, start + frames):
        camera = f"cam-{sequence % cameras}"
        if sequence % 2:
            sent.append(verdict(sequence, camera=camera))
            continue
        kind = int(rng.integers(3))
        message = defect(sequence, near(KINDS[kind], rng, 0.4), camera=camera)
        kinds[message.frame_id] = kind
        sent += [verdict(sequence, camera=camera, decision=Decision.REJECT), message]
    return sent, kinds


def pairs(assignments, kinds):
    return {(kinds[frame], name) for frame, name in assignments.items()}


def counts(store):
    with store.reading() as connection:
        return (
            connection.scalar(select(func.sum(schema.verdict_minutes.c.frames))),
            connection.scalar(select(func.count()).select_from(schema.defects)),
            connection.scalar(select(func.count()).select_from(schema.regions)),
        )


def test_finite_stream_ends_in_classes_one_for_each_kind(settings):
    sent, kinds = day(200)
    line.publish(settings, sent)
    with DiscoveryService(settings) as running:
        summary = running.drain()
    assert (summary.verdicts, summary.defects) == (200, 100)
    assert summary.assignments.keys() == kinds.keys()
    assert len(pairs(summary.assignments, kinds)) == len(summary.members) == 3
    assert sum(summary.members.values()) == 100


def test_classes_are_published_with_every_transition_and_only_once(settings):
    for start in (0, 100, 200):
        line.publish(settings, day(100, start=start)[0] if start < 200 else [])
        with DiscoveryService(settings) as running:
            summary = running.drain()
    events = line.published_events(settings)
    assert len({event.event_id for event in events}) == len(events)
    assert {event.class_id for event in events if event.transition is Transition.BORN} >= summary.members.keys()
    assert {event.class_id for event in events if event.transition is Transition.CONFIRMED} == summary.members.keys()


def test_records_that_come_again_change_nothing(settings):
    sent, _ = day(160)
    line.publish(settings, sent)
    with DiscoveryService(settings) as running:
        first = running.drain()
    line.publish(settings, sent + sent[::-1])
    with DiscoveryService(settings) as running:
        assert running.drain() == first


def test_stream_into_postgresql_is_counted_once_across_processes(embedded_broker, postgres_server, tmp_path):
    url = postgres_server.new_database()
    settings = line.settings_for(tmp_path, embedded_broker.bootstrap, unique("discovery"), store_url=url)
    sent, kinds = day(160)
    store = Store(url)
    for part in (sent[:120], sent[60:]):
        before = sum(store.positions().values())
        line.publish(settings, part)
        process = line.start_process(tmp_path)
        wait_for(lambda known=before, child=process: reads_on(store, known, child))
        process.kill()
        process.wait()
    with DiscoveryService(settings) as running:
        summary = running.drain()
    assert counts(store) == (160, 80, 80)
    assert len(pairs(summary.assignments, kinds)) == 3
    store.close()


def changed(message: Verdict | Defect, **fields: object) -> bytes:
    """Return the bytes of a message that our own code does not make."""
    return msgpack.packb(msgpack.unpackb(messages.encode(message)) | fields)


def test_damaged_records_are_counted_and_the_rest_goes_on(settings):
    sent, _ = day(20)
    vector = KINDS[0]
    bad = [
        defect(900, np.full(DIMENSION, np.nan)),
        defect(901, np.zeros(DIMENSION)),
        defect(902, vector[:7]),
        verdict(904, score=float("nan")),
        verdict(905, group=1 << 40),
    ]
    raw = [
        ("defects", b"\xc1"),
        ("defects", None),
        ("defects", changed(defect(903, vector), captured_at=1 << 63)),
        ("verdicts", changed(verdict(906), model_version="zero\x00byte")),
        ("verdicts", messages.encode(bad[0])),
        ("verdicts", b""),
    ]
    line.publish(settings, [*sent[:10], *bad, *raw, *sent[10:]])
    with DiscoveryService(settings) as running:
        summary = running.drain()
        rejected = running.store.rejections()
    assert (summary.verdicts, summary.defects) == (20, 10)
    assert rejected == {"bad-embedding": 3, "out-of-range": 1, "not-finite": 1, "undecodable": 5, "wrong-schema": 1}


def test_embeddings_of_an_unknown_version_are_kept_without_a_class(settings):
    sent, kinds = day(200)
    line.publish(
        settings, [*sent, defect(800, KINDS[0], version="another"), defect(801, KINDS[0][:5], version="third")]
    )
    with DiscoveryService(settings) as running:
        summary = running.drain()
    assert summary.defects == 102
    assert summary.assignments.keys() == kinds.keys()


def test_change_of_embedding_with_crops_that_say_nothing_finds_classes_anew(embedded_broker, tmp_path, vit_weights):
    quick = {"crop_backbone": json.dumps("test_vit"), "crop_weights": json.dumps(str(vit_weights))}
    settings = line.settings_for(tmp_path, embedded_broker.bootstrap, unique("discovery"), **quick)
    line.publish(settings, day(200)[0])
    with DiscoveryService(settings) as running:
        before = running.drain()
    changed = [
        replace(sent, embedding_version="next", regions=tuple(replace(r, embedding=turned(r)) for r in sent.regions))
        if isinstance(sent, Defect)
        else sent
        for sent in day(200, start=200)[0]
    ]
    line.publish(settings, changed)
    with DiscoveryService(settings) as running:
        after = running.drain()
        known = {
            defect_class.id: defect_class.embedding_version for defect_class in registry.read(running.store).classes
        }
    assert before.assignments.items() <= after.assignments.items()
    new = {name for name, version in known.items() if version == "next"}
    assert len(new) == 3
    assert not new & before.members.keys()


def turned(region):
    return Tensor.of(region.embedding.array()[::-1], "float16")


def test_what_a_person_says_meanwhile_is_published_and_binds(settings):
    sent, kinds = day(200)
    line.publish(settings, sent)
    with DiscoveryService(settings) as running:
        summary = running.drain()
        first, second = sorted(summary.members)[:2]
        decisions.merge(running.store, second, first, who="ana")
        more, more_kinds = day(100, start=200)
        line.publish(settings, more)
        summary = running.drain()
    assert len(pairs(summary.assignments, kinds | more_kinds)) == 3
    assert set(summary.members) == {first, *sorted(summary.members)[1:]}
    assert second not in summary.members
    merged = [event for event in line.published_events(settings) if event.class_id == second]
    assert (merged[-1].transition, merged[-1].merged_into, merged[-1].who) == (Transition.MERGED, first, "ana")


def test_round_that_a_person_overtakes_is_run_again(settings, monkeypatch):
    line.publish(settings, day(200)[0])
    with DiscoveryService(settings) as running:
        name = min(running.drain().members)
        line.publish(settings, day(100, start=200)[0])
        write, names = registry.write_round, []

        def write_after_a_person(*arguments):
            if not names:
                names.append(decisions.name(running.store, name, "scratch"))
            return write(*arguments)

        monkeypatch.setattr(registry, "write_round", write_after_a_person)
        running.drain()
        assert find(registry.read(running.store), "scratch").id == name


def test_second_process_stands_by_until_the_first_has_gone(settings):
    sent, _ = day(60)
    line.publish(settings, sent)
    with DiscoveryService(settings) as first:
        first.drain()
        with pytest.raises(FlawlineError, match="another discovery process"), DiscoveryService(settings) as second:
            second.drain(timeout_s=1.5)
    with DiscoveryService(settings) as second:
        assert second.drain().verdicts == 60


def test_run_takes_in_what_arrives_and_stops_when_told(settings):
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(settings, stop), daemon=True)
    thread.start()
    line.publish(settings, day(120)[0])
    store = Store(settings.store_url)
    wait_for(lambda: counts(store) == (120, 60, 60))
    wait_for(lambda: registry.read(store).round >= 1)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert store.outbox() == []
    store.close()


def test_run_waits_for_a_broker_that_is_away_at_its_start_with_one_line(fresh_broker, tmp_path, caplog):
    settings = line.settings_for(tmp_path, fresh_broker.bootstrap, unique("discovery"))
    fresh_broker.kill()
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(settings, stop), daemon=True)
    thread.start()
    wait_for(lambda: telemetry.REGISTRY.get_sample_value("flawline_broker_wait_seconds") > 3)
    assert thread.is_alive()
    fresh_broker.start()
    line.publish(settings, day(20)[0])
    store = Store(settings.store_url)
    wait_for(lambda: counts(store)[0] == 20)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert telemetry.REGISTRY.get_sample_value("flawline_broker_wait_seconds") == 0
    assert sum("it is away" in text and "growing pauses" in text for text in caplog.messages) == 1
    store.close()


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def reads_on(store, before, process):
    return sum(store.positions().values()) > before or process.poll() is not None


def test_service_that_describes_crops_itself_takes_no_damaged_ones(embedded_broker, tmp_path, vit_weights):
    options = {"embedding": '"crop"', "crop_backbone": '"test_vit"', "crop_weights": json.dumps(str(vit_weights))}
    settings = line.settings_for(tmp_path, embedded_broker.bootstrap, unique("discovery"), **options)
    good, bad = defect(0, KINDS[0]), defect(2, KINDS[0])
    damaged = replace(bad, regions=(replace(bad.regions[0], crop=b"\xff\xd8 no picture"),))
    # The service ignores the workers' embeddings.
    line.publish(settings, [good, damaged, defect(4, KINDS[0][:3])])
    with DiscoveryService(settings) as running:
        assert running.drain().defects == 2
        assert running.store.rejections() == {"bad-crop": 1}
        with running.store.reading() as connection:
            versions = set(connection.scalars(select(schema.regions.c.embedding_version)))
    assert len(versions) == 1
    assert next(iter(versions)).endswith("+crop-1")


def test_service_without_the_backbone_it_is_to_use_does_not_start(embedded_broker, tmp_path):
    options = {"embedding": '"crop"', "crop_weights": json.dumps(str(tmp_path / "missing"))}
    settings = line.settings_for(tmp_path, embedded_broker.bootstrap, unique("discovery"), **options)
    with pytest.raises(FlawlineError, match="no such weights file"), DiscoveryService(settings) as running:
        running.drain()


def test_embedding_in_wider_floats_is_taken(settings):
    narrow = defect(0, KINDS[0])
    wide = replace(narrow.regions[0], embedding=Tensor.of(KINDS[0], "float32"))
    line.publish(settings, [replace(narrow, regions=(wide,))])
    with DiscoveryService(settings) as running:
        assert running.drain().defects == 1
