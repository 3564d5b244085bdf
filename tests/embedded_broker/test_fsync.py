"""When data is forced to the disk, by policy."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import get_args

import pytest
from kafka.protocol.producer import ProduceRequest

from embedded_broker.broker import Broker, BrokerOptions
from embedded_broker.protocol import ErrorCode, Request, decode_request
from embedded_broker.record_requests import produce
from embedded_broker.segment import Segment
from embedded_broker.store import FsyncPolicy
from flawline.errors import FlawlineError
from flawline.settings.tree import EmbeddedSettings
from tests.support.wire import frame_of, record_batch


def produce_request(topic: str) -> Request:
    data = ProduceRequest.TopicProduceData
    part = data.PartitionProduceData(index=0, records=record_batch([b"value"]))
    body = ProduceRequest(
        transactional_id=None, acks=-1, timeout_ms=1000, topic_data=[data(name=topic, partition_data=[part])]
    )
    return decode_request(memoryview(frame_of(body, 8))[4:])


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the files that are forced to the disk, in order."""
    names: list[str] = []
    real = Segment.sync

    def recording(segment: Segment) -> None:
        real(segment)
        names.append(segment.path.name)

    monkeypatch.setattr(Segment, "sync", recording)
    return names


@pytest.mark.parametrize("policy", list(FsyncPolicy))
def test_an_answer_waits_for_the_disk_only_where_every_batch_is_forced(
    tmp_path: Path, synced: list[str], policy: FsyncPolicy
) -> None:
    broker = Broker(BrokerOptions(tmp_path, fsync=policy))
    broker.topics.create("topic", 1, {})

    async def scenario() -> int:
        answer = await produce(broker, produce_request("topic"))
        assert answer.responses[0].partition_responses[0].error_code == ErrorCode.NONE
        return len(synced)

    assert asyncio.run(scenario()) == (1 if policy is FsyncPolicy.ALWAYS else 0)
    broker.close()
    assert bool(synced) is (policy is not FsyncPolicy.NEVER)


def test_the_interval_policy_forces_what_was_written_and_nothing_else(tmp_path: Path, synced: list[str]) -> None:
    broker = Broker(BrokerOptions(tmp_path, fsync=FsyncPolicy.INTERVAL, fsync_interval_s=0.02))
    broker.topics.create("topic", 1, {})
    broker.topics.create("idle", 1, {})

    async def scenario() -> None:
        syncing = asyncio.create_task(broker.sync_regularly())
        await produce(broker, produce_request("topic"))
        async with asyncio.timeout(10):
            while not synced:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        syncing.cancel()

    asyncio.run(scenario())
    assert len(synced) == 1
    broker.close()


def test_a_disk_that_cannot_force_is_answered_as_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(BrokerOptions(tmp_path, fsync=FsyncPolicy.ALWAYS))
    broker.topics.create("topic", 1, {})

    def broken(_: Segment) -> None:
        raise OSError(5, "Input/output error")

    async def error_code() -> int:
        answer = await produce(broker, produce_request("topic"))
        return answer.responses[0].partition_responses[0].error_code

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "sync", broken)
        assert asyncio.run(error_code()) == ErrorCode.KAFKA_STORAGE_ERROR
    assert asyncio.run(error_code()) == ErrorCode.NONE
    broker.close()


def test_a_data_directory_of_a_later_release_is_refused_and_not_changed(tmp_path: Path) -> None:
    Broker(BrokerOptions(tmp_path)).close()
    with sqlite3.connect(tmp_path / "metadata.sqlite") as db:
        db.execute("update facts set value = '99' where name = 'schema_version'")
    db.close()
    with pytest.raises(FlawlineError, match="schema version 99"):
        Broker(BrokerOptions(tmp_path))


def test_settings_offer_exactly_the_policies_of_the_broker() -> None:
    offered = get_args(EmbeddedSettings.model_fields["fsync"].annotation)
    assert sorted(offered) == sorted(policy.value for policy in FsyncPolicy)
