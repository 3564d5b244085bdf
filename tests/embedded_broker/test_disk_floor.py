"""A disk that is nearly full costs records that every group has read, and nothing else; a full one costs time."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from embedded_broker import EmbeddedBroker, disk_floor
from embedded_broker.disk_floor import DiskFloor, finished, read_by_all
from embedded_broker.log import PartitionLog
from embedded_broker.store import CommittedOffset, FsyncPolicy, MetadataStore, TopicRow
from embedded_broker.topic_config import TopicConfig
from embedded_broker.topics import Topic
from tests.embedded_broker.contract.clients import CLIENTS, wait_until
from tests.support.small_disk import fill, small_disk
from tests.support.wire import record_batch

HOUR_MS = 3_600_000
Usage = namedtuple("Usage", "free")


def topic_of(folder: Path, name: str, retention_ms: int, records: int, partitions: int = 2, **config: object) -> Topic:
    """Return a topic whose segments have three records of 100 bytes each."""
    made = TopicConfig(segment_bytes=600, retention_ms=retention_ms, **config)
    logs = [PartitionLog(folder / name / str(number), made) for number in range(partitions)]
    for at in range(records):
        for log in logs:
            log.append(memoryview(record_batch([bytes(100)], timestamp=1_000 * at)))
    return Topic(TopicRow(name, name, partitions, {}), made, logs)


@pytest.fixture
def store(tmp_path: Path) -> MetadataStore:
    return MetadataStore(tmp_path / "metadata.sqlite", FsyncPolicy.NEVER)


def test_only_segments_that_every_group_has_read_are_finished(tmp_path: Path, store: MetadataStore) -> None:
    frames = topic_of(tmp_path, "frames", 6 * HOUR_MS, 30)
    compacted = topic_of(tmp_path, "models", 6 * HOUR_MS, 0, cleanup_policy="compact")
    store.commit("workers", [CommittedOffset("frames", 0, 20, 0, None), CommittedOffset("models", 0, 9, 0, None)])
    store.commit("tools", [CommittedOffset("frames", 0, 11, 0, None)])
    read_to = read_by_all(store)
    assert read_to["frames", 0] == 11
    keys = [item.key for item in finished([frames, compacted], read_to)]
    assert keys and all(log is frames.partitions[0] and segment.next_offset <= 11 for log, segment in keys)
    following = frames.partitions[0].segments[len(keys)]
    assert following.next_offset > 11, "no finished segment is left out"


@pytest.mark.parametrize("seed", range(20))
def test_room_is_made_of_the_shortest_kept_and_oldest_and_of_no_more_than_needed(
    tmp_path: Path, store: MetadataStore, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    verdicts = topic_of(tmp_path, "verdicts", 7 * 24 * HOUR_MS, 20)
    frames = topic_of(tmp_path, "frames", 6 * HOUR_MS, 20)
    topics = [verdicts, frames]
    logs = [log for topic in topics for log in topic.partitions]
    for topic in topics:
        for number in range(2):
            store.commit("g", [CommittedOffset(topic.row.name, number, chance.randint(0, 20), 0, None)])
    read_to = read_by_all(store)
    size_before = sum(log.size_bytes for log in logs)
    could_go = sum(item.size_bytes for item in finished(topics, read_to))
    lacking = chance.randint(1, 4000)

    def usage(_: Path) -> Usage:
        return Usage(10_000 - lacking + size_before - sum(log.size_bytes for log in logs))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    floor = DiskFloor(tmp_path, 10_000)
    floor.keep(topics, store)
    for topic in topics:
        for number, log in enumerate(topic.partitions):
            assert log.log_start <= read_to[topic.row.name, number], "what a group has not read stays"
            assert log.segments, "the log can be written to"
    largest = max(segment.size_bytes for log in logs for segment in log.segments) + 600
    assert min(lacking, could_go) <= floor.deleted_bytes <= lacking + largest
    if any(log.log_start for log in verdicts.partitions):
        assert not finished([frames], read_to), "verdicts go when no frames are left that may"
    deleted = floor.deleted_bytes
    floor.keep(topics, store)
    assert floor.deleted_bytes == deleted, "the second look finds enough, or nothing that may go"


def test_floor_of_zero_is_off_and_one_line_says_what_went(
    tmp_path: Path, store: MetadataStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames = topic_of(tmp_path, "frames", 6 * HOUR_MS, 20)
    store.commit("g", [CommittedOffset("frames", number, 20, 0, None) for number in range(2)])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0))
    DiskFloor(tmp_path, 0).keep([frames], store)
    assert frames.partitions[0].log_start == 0
    now_s = [0.0]
    floor = DiskFloor(tmp_path, 500, monotonic=lambda: now_s[0])
    for now_s[0] in range(0, 290, 10):
        floor.keep([frames], store)
    assert caplog.text.count("every group has read") == 1
    now_s[0] = disk_floor.REPORT_INTERVAL_S
    floor.keep([frames], store)
    assert caplog.text.count("every group has read") == 2


def commit(address: str, topic: str, offset: int) -> None:
    consumer = KafkaConsumer(bootstrap_servers=address, group_id="readers", enable_auto_commit=False)
    consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(offset, "", -1)})
    consumer.close()


@pytest.mark.system
def test_disk_of_a_broker_never_fills_with_what_was_read_and_the_unread_waits(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 24 << 20) as disk:
        options = ("--min-free-bytes", str(12 << 20), "--housekeeping-interval", "0.05")
        with EmbeddedBroker(disk / "broker", options=options) as broker:
            client = CLIENTS["kafka-python"](broker.bootstrap)
            for name in ("read", "unread"):
                client.create_topic(name, configs={"segment.bytes": str(1 << 20)})
            producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
            for _ in range(4):
                producer.send("unread", os.urandom(500_000), partition=0).get(60)
            for count in range(1, 61):  # 30 MB into 24 MiB
                producer.send("read", os.urandom(500_000), partition=0).get(60)
                if count % 5 == 0:
                    commit(broker.bootstrap, "read", count)
            wait_until(lambda: shutil.disk_usage(disk).free >= 12 << 20, "room on the disk")
            consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
            read, unread = TopicPartition("read", 0), TopicPartition("unread", 0)
            assert consumer.beginning_offsets([read, unread]) == {
                unread: 0,
                read: consumer.beginning_offsets([read])[read],
            }
            assert consumer.beginning_offsets([read])[read] > 30
            assert consumer.end_offsets([read])[read] == 60
            consumer.close()
            producer.close()
            client.close()


@pytest.mark.system
def test_broker_on_a_disk_that_something_else_fills_waits_for_room_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16 << 20) as disk, EmbeddedBroker(disk / "broker") as broker:
        client = CLIENTS["kafka-python"](broker.bootstrap)
        client.create_topic("topic")
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, delivery_timeout_ms=120_000)
        acknowledged = [producer.send("topic", bytes(10_000), partition=0).get(60).offset]
        ballast = fill(disk)
        waiting = [producer.send("topic", bytes(10_000), partition=0) for _ in range(20)]
        # The broker has no room for its own log either: what the producer is told is seen by its retries.
        time.sleep(2.0)
        assert broker.running
        assert not any(future.is_done for future in waiting)
        ballast.unlink()
        acknowledged += [future.get(60).offset for future in waiting]
        assert acknowledged == list(range(21))
        producer.close()
        client.close()
