"""Frames that were alarms for nothing, from a dismissed class to a folder of good images."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from discovery import dismissed
from discovery.frame_files import Exported
from discovery.pictures.keeper import picture_store
from discovery.round.lineage import DefectClass
from discovery.store import decisions, registry
from discovery.store.store import Batch, Store, TakenDefect
from flawline import imaging, kafka_clients, messages, topics
from flawline.messages import ClassState, Codec
from flawline.object_store import object_store
from station.cli.main import main
from tests.discovery import line
from tests.discovery.factories import START_NS, VERSION, defect, directions, frame
from tests.discovery.pictures import photos
from tests.support.brokers import unique

pytestmark = pytest.mark.system


@pytest.fixture
def settings(embedded_broker, tmp_path):
    made = line.settings_for(tmp_path, embedded_broker.bootstrap, unique("dismissed"))
    kafka_clients.ensure_topics(made, only=[topics.FRAMES.name])
    return made


@pytest.fixture
def store(settings):
    """Yield a store with five frames: only dismissed, twice dismissed, dismissed and another class, and none, other."""
    opened = Store(settings.store_url, utc_ns=lambda: START_NS)
    with opened.transaction() as connection:
        classes = [
            DefectClass(f"D-{n:04d}", n, ClassState.CONFIRMED, 0, START_NS, 1, START_NS, directions(4)[n], 0.1, VERSION)
            for n in (1, 2)
        ]
        registry.save_classes(connection, classes, 3)
    nothing, fault = "D-0001", "D-0002"
    assignments = [(nothing,), (nothing, nothing), (nothing, fault), (nothing, None), (fault,)]
    opened.ingest(
        Batch(
            defects=[
                TakenDefect(defect(n, *directions(4)[: len(classes)], peaks=(3.0, 1.5)[: len(classes)]), classes)
                for n, classes in enumerate(assignments)
            ]
        )
    )
    decisions.dismiss(opened, nothing, who="ana")
    yield opened
    opened.close()


def send(settings, *frames):
    client = kafka_clients.producer(settings)
    try:
        for message in frames:
            value, headers = messages.encode(message), messages.headers(message)
            client.send(settings.topic(topics.FRAMES.name), key=b"cam-1", value=value, headers=headers, partition=1)
        client.flush(timeout=30)
    finally:
        client.close()


def test_only_frames_without_a_doubtful_region_are_candidates(store):
    assert [candidate.frame_id for candidate in dismissed.frames(store)] == ["cam-1:1:0", "cam-1:1:1"]


def test_whole_frames_are_written_as_they_were_captured(settings, store, tmp_path):
    first, data = frame(0)
    second, _ = frame(1, Codec.RAW)
    send(settings, first, frame(2)[0], second, first)
    wanted, folder = dismissed.frames(store), tmp_path / "good"
    exported = dismissed.export(settings, wanted, folder)
    assert exported == Exported(("cam-1:1:0", "cam-1:1:1"), ())
    assert (folder / "cam-1-1-0.jpg").read_bytes() == data
    assert (imaging.read_image(folder / "cam-1-1-1.png") == 30).all()
    assert len(list(folder.iterdir())) == 2
    (folder / "cam-1-1-0.jpg").write_bytes(b"kept as it lies")
    assert dismissed.export(settings, wanted, folder) == exported
    assert (folder / "cam-1-1-0.jpg").read_bytes() == b"kept as it lies"


def test_frames_behind_a_claim_check_and_damaged_ones(settings, store, tmp_path):
    first, data = frame(0)
    settings.frames.objects_url = f"file://{tmp_path / 'objects'}"
    objects = object_store(settings)
    objects.create()
    key = objects.put(data)
    send(settings, replace(first, data=b"", object_key=key), replace(frame(1)[0], checksum=1))
    exported = dismissed.export(settings, dismissed.frames(store), tmp_path / "good")
    assert exported == Exported(("cam-1:1:0",), ("cam-1:1:1",))
    assert (tmp_path / "good" / "cam-1-1-0.jpg").read_bytes() == data


def test_command_exports_what_is_kept_and_counts_what_is_gone(settings, store, tmp_path, capsys):
    send(settings, frame(1)[0])
    folder, config = tmp_path / "good", str(tmp_path / "line.toml")
    with pytest.raises(SystemExit) as ended:
        main(["classes", "dismissed", "--export", str(folder), "--json", "--config", config])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["exported"], report["gone"]) == (["cam-1:1:1"], ["cam-1:1:0"])
    assert [row["class"] for row in report["frames"]] == ["D-0001", "D-0001"]
    with pytest.raises(SystemExit) as ended:
        main(["classes", "dismissed", "--config", config])
    assert ended.value.code == 0
    assert "2 frames show nothing but dismissed classes" in capsys.readouterr().out


def test_a_frame_that_its_topic_has_lost_comes_from_the_picture_store(settings, store, tmp_path, capsys):
    send(settings, frame(1)[0])
    place = picture_store(settings)
    place.create()
    _, data = frame(0)
    photos.keep(store, photos.scored(0), keys=(place.put(data),), size_bytes=len(data))
    folder, config = str(tmp_path / "good"), str(tmp_path / "line.toml")
    with pytest.raises(SystemExit) as ended:
        main(["classes", "dismissed", "--export", folder, "--json", "--config", config])
    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["exported"], printed["gone"]) == (["cam-1:1:0", "cam-1:1:1"], [])
    assert (tmp_path / "good" / "cam-1-1-0.jpg").read_bytes() == data


def test_folder_that_cannot_be_made_is_said_in_one_line(settings, store, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["classes", "dismissed", "--export", str(tmp_path / "file"), "--config", str(tmp_path / "line.toml")])
    assert ended.value.code == 1
    assert "cannot be written" in capsys.readouterr().err
