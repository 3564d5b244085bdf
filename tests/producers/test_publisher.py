"""The publisher of all cameras: a slow disk of one stops no other."""

from __future__ import annotations

import threading
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


def test_journal_that_hangs_on_its_disk_stops_no_delivery(
    embedded_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        kafka={"bootstrap_servers": embedded_broker.bootstrap, "topic_prefix": unique("line") + "-"},
        producer={"ledger_interval_s": 0.05},
    )
    kafka_clients.ensure_topics(settings)
    hangs, go_on = threading.Event(), threading.Event()
    confirmed = EpochAccount.confirmed

    def slow_confirmed(account: EpochAccount) -> None:
        hangs.set()
        assert go_on.wait(60)
        confirmed(account)

    monkeypatch.setattr(EpochAccount, "confirmed", slow_confirmed)
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
