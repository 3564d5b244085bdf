"""A store whose disk is full costs time and one line, and every frame is counted once there is room again."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest

from discovery import service
from discovery.store.database import DatabaseAway
from embedded_broker import EmbeddedBroker
from tests.discovery import line
from tests.discovery.test_store_away import away_s, counts, discovering, records, wait_for
from tests.support.brokers import unique
from tests.support.small_disk import fill, small_disk

pytestmark = pytest.mark.system


def test_store_on_a_full_disk_waits_for_room_and_counts_every_frame_once(
    embedded_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "LONGEST_PAUSE_S", 0.5)
    monkeypatch.setattr(service, "WELL_S", 0.5)
    caplog.set_level(logging.INFO, logger="discovery.service")
    with small_disk(tmp_path / "disk", 16 << 20) as disk:
        url = f"sqlite:///{disk / 'store.db'}"
        settings = line.settings_for(tmp_path, embedded_broker.bootstrap, unique("full"), store_url=url)
        line.publish(settings, records(0, 20))
        with discovering(settings):
            wait_for(lambda: counts(url) == (20, 10))
            ballast = fill(disk)
            line.publish(settings, records(20, 400))
            wait_for(lambda: away_s() > 1)
            with contextlib.suppress(DatabaseAway):  # a reader needs room too, unless another one has just made it
                assert counts(url)[0] < 420
            ballast.unlink()
            wait_for(lambda: counts(url) == (420, 210))
            wait_for(lambda: away_s() == 0)
    lines = [record.getMessage() for record in caplog.records if record.name == "discovery.service"]
    (trouble,) = [text for text in lines if "trying again" in text]
    assert "full" in trouble or "disk I/O" in trouble
