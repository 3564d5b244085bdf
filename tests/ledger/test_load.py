"""The ledger goes on when the line is busy, and takes little memory for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.tcp_proxy import TcpProxy
from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, messages
from flawline.settings.tree import Settings
from ledger import reader as ledger
from ledger.reader import LedgerReader
from tests.support.talking_line import TalkingLine

pytestmark = pytest.mark.system

FRAME_BYTES = 1 << 20
FRAMES = 12


def say_frames(settings: Settings) -> None:
    """Publish frames of FRAME_BYTES to all partitions, which the ledger must search."""
    client = kafka_clients.producer(settings)
    for sequence in range(FRAMES):
        name = messages.frame_id("cam", 1_000, sequence)
        client.send(
            settings.topic("frames"),
            value=os.urandom(FRAME_BYTES),
            headers=[("frame-id", name.encode())],
            partition=sequence % settings.kafka.camera_partitions,
        ).get(30)
    client.close()


def search(settings: Settings) -> ledger.Report:
    with LedgerReader(settings) as reader:
        return reader.poll()


def test_slow_answer_of_the_broker_is_no_stall(
    tmp_path: Path, line_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames come at 2 MB/s, as to a client that gets little of the processor: an answer must not hold many of them."""
    with (
        TcpProxy() as proxy,
        EmbeddedBroker(tmp_path / "broker", options=("--advertised-port", str(proxy.port))) as broker,
    ):
        proxy.target_port = broker.port
        kafka = line_settings.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{proxy.port}"})
        settings = line_settings.model_copy(update={"kafka": kafka})
        kafka_clients.ensure_topics(settings)
        say_frames(settings)
        line = TalkingLine(settings)
        line.captured(FRAMES + 1, closed=True)  # one is missing, and the log must be searched for the others
        line.close()
        proxy.slow(2 << 20)
        monkeypatch.setattr(ledger, "STALLED_AFTER_S", 3.0)
        total = search(settings).total
        assert (total.in_flight, total.gaps) == (FRAMES, 1)
        # With answers as large as those of the other clients the same line stalls.
        monkeypatch.setattr(ledger, "FRAME_FETCH_BYTES", 32 << 20)
        with pytest.raises(ledger.FlawlineError, match=r"gives no record .* for 3 s"):
            search(settings)
