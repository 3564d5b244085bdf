"""The publisher of all cameras: a slow disk of one stops no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients
from flawline.settings.producers import CameraBase
from flawline.settings.tree import Settings
from producers.journal import EpochAccount
from producers.publisher import Publisher
from tests.producers import topics
from tests.producers.doubles import capture, until
from tests.support.brokers import unique

pytestmark = pytest.mark.system


@pytest.fixture
def settings(embedded_broker: EmbeddedBroker, tmp_path: Path) -> Settings:
    """Return the settings of a line that publishes its accounts often; its topics do not exist yet."""
    return Settings(
        data_dir=tmp_path,
        kafka={"bootstrap_servers": embedded_broker.bootstrap, "topic_prefix": unique("line") + "-"},
        producer={"ledger_interval_s": 0.05},
    )


@pytest.fixture
def journal_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let every account hang when it records an answer; return an event that it sets, and one that ends the wait."""
    hangs, go_on = threading.Event(), threading.Event()

    def slow(method: Callable[[EpochAccount], None]) -> Callable[[EpochAccount], None]:
        def waiting(account: EpochAccount) -> None:
            hangs.set()
            assert go_on.wait(60)
            method(account)

        return waiting

    for name in ("confirmed", "failed"):
        monkeypatch.setattr(EpochAccount, name, slow(getattr(EpochAccount, name)))
    return hangs, go_on


def test_journal_that_hangs_on_its_disk_stops_no_delivery(
    settings: Settings, journal_disk: tuple[threading.Event, threading.Event]
) -> None:
    hangs, go_on = journal_disk
    kafka_clients.ensure_topics(settings)
    publisher = Publisher(settings, [CameraBase(name=name, when_full="spool") for name in ("slow", "fast")])
    publisher.start()
    try:
        publisher.publish("slow", capture())
        assert hangs.wait(20)
        publisher.publish("fast", capture())
        until(lambda: publisher.idle, what="delivery while a journal hangs")
    finally:
        go_on.set()
        publisher.close(10)
    accounts = topics.accounts(settings)
    assert [(captured, lost, closed) for captured, lost, closed in accounts.values()] == [(1, {}, True)] * 2


def test_refused_ledger_entry_replaces_the_client_while_the_journal_hangs_and_costs_no_frame(
    settings: Settings, journal_disk: tuple[threading.Event, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    hangs, go_on = journal_disk
    admin = kafka_clients.admin(settings)
    small = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "10"}}
    admin.create_topics({settings.topic("ledger"): small})
    admin.close()
    kafka_clients.ensure_topics(settings)
    publisher = Publisher(settings, [CameraBase(name="cam", when_full="spool")])
    publisher.start()
    try:
        publisher.publish("cam", capture())
        assert hangs.wait(20)
        until(lambda: "a new one is made" in caplog.text, what="a new client")
        publisher.publish("cam", capture())
        until(lambda: publisher.idle, what="delivery through the new client")
    finally:
        go_on.set()
        publisher.close(1)
    assert [sequence for _, sequence in topics.ids(settings, "cam")] == [0, 1]
