"""The object store goes away under a running line: it costs time, no frame, and all go on when it is back."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, telemetry
from flawline.messages import DropReason, Verdict
from flawline.object_store import MARKER
from flawline.settings.tree import Settings
from producers import service
from tests.producers import topics
from tests.producers.doubles import ScriptedCamera, until
from tests.support.brokers import unique
from tests.support.folders import remove, replace_by_a_file, unmount
from tests.support.s3 import BUCKET, S3Server
from tests.workers.line import assert_in_order, inspecting, read, write_model

RATE_HZ = 40
S3_RATE_HZ = 8  # the server of the tests is slow


def line(bootstrap: str, tmp_path: Path, objects_url: str, rate_hz: int = RATE_HZ) -> Settings:
    """Return settings of a line with one camera, all of whose frames go by claim check."""
    settings = Settings(
        line=unique("line"),
        data_dir=tmp_path / "data",
        kafka={"bootstrap_servers": bootstrap, "topic_prefix": unique("t") + ".", "camera_partitions": 2},
        frames={"inline_limit_bytes": 100, "objects_url": objects_url},
        metrics={"producers_port": 0},
        producer={"ledger_interval_s": 0.2, "away_after_s": 0.5, "drain_timeout_s": 20},
        worker={"model": str(write_model(tmp_path / "model"))},
        cameras=[{"kind": "folder", "name": unique("cam"), "path": tmp_path, "rate_hz": rate_hz}],
    )
    kafka_clients.ensure_topics(settings)
    return settings


class RunningProducer:
    """One camera of new pictures, published in a thread until `finish`."""

    def __init__(self, settings: Settings) -> None:
        self.camera = settings.cameras[0].name
        self._stop = threading.Event()
        camera = ScriptedCamera(self.camera, 100_000, "end")
        self._thread = threading.Thread(target=service.run, args=(settings, self._stop, [camera]), daemon=True)
        self._thread.start()

    @property
    def captured(self) -> int:
        return int(telemetry.CAPTURED.labels(self.camera)._value.get())

    @property
    def scored(self) -> int:
        return int(telemetry.VERDICTS.labels(self.camera, "accept")._value.get()) + int(
            telemetry.VERDICTS.labels(self.camera, "reject")._value.get()
        )

    def finish(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def go_on_for(producer: RunningProducer, captures: int) -> None:
    """Wait until the camera has made so many more captures."""
    target = producer.captured + captures
    until(lambda: producer.captured >= target, what=f"{captures} more captures")


def wait_for_verdicts_of_all_so_far(producer: RunningProducer) -> None:
    target = producer.captured
    until(lambda: producer.scored >= target, timeout_s=240, what=f"{target} verdicts")


UNDER_WAY = 2
"""A writing that is under way when a volume goes away ends in the folder below it, as its folder and its file."""


def written_below(folder: Path) -> int:
    """Return how many folders and files lie in the place of a store that went away."""
    return len(list(folder.rglob("*"))) if folder.is_dir() else 0


def assert_nothing_is_lost(settings: Settings) -> None:
    """Check that every capture has one verdict, in order, and that none was dropped or became a dead letter."""
    assert topics.records(settings, "dead-letters") == []
    ((captured, dropped, closed),) = topics.accounts(settings).values()
    assert (dropped, closed) == ({}, True)
    verdicts = read(settings, "verdicts", Verdict, captured)
    assert len({verdict.frame_id for verdict in verdicts}) == captured
    assert_in_order(verdicts)


@pytest.mark.parametrize("going", [remove, replace_by_a_file, unmount])
def test_folder_that_goes_away_twice_costs_no_frame(
    going: Callable[[Path], None], embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    folder = tmp_path / "objects"
    settings = line(embedded_broker.bootstrap, tmp_path, f"file://{folder}")
    producer = RunningProducer(settings)
    try:
        until(lambda: (folder / MARKER).is_file(), what="the store that the producer makes")
        with inspecting(settings):
            go_on_for(producer, RATE_HZ)
            wait_for_verdicts_of_all_so_far(producer)
            for _ in range(2):
                going(folder)
                until(lambda: telemetry.OBJECT_STORE_AWAY._value.get() == 1, what="the outage in the metrics")
                go_on_for(producer, 3 * RATE_HZ)
                assert written_below(folder) <= UNDER_WAY, "nothing is written in the store's place"
                if folder.is_dir():
                    shutil.rmtree(folder)
                folder.unlink(missing_ok=True)
                folder.with_name("aside").rename(folder)
                wait_for_verdicts_of_all_so_far(producer)
                until(lambda: telemetry.OBJECT_STORE_AWAY._value.get() == 0, what="the end of the outage")
            producer.finish()
            wait_for_verdicts_of_all_so_far(producer)
    finally:
        producer.finish()
    assert sum(telemetry.DROPPED.labels(producer.camera, reason)._value.get() for reason in DropReason) == 0
    assert_nothing_is_lost(settings)


def test_bucket_whose_server_goes_away_costs_no_frame(
    s3_server: S3Server, embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    settings = line(embedded_broker.bootstrap, tmp_path, f"s3://{BUCKET}/{unique('frames')}", rate_hz=S3_RATE_HZ)
    producer = RunningProducer(settings)
    try:
        with inspecting(settings):
            go_on_for(producer, S3_RATE_HZ)
            wait_for_verdicts_of_all_so_far(producer)
            s3_server.stop()
            until(lambda: telemetry.OBJECT_STORE_AWAY._value.get() == 1, what="the outage in the metrics")
            go_on_for(producer, 3 * S3_RATE_HZ)
            s3_server.start()
            wait_for_verdicts_of_all_so_far(producer)
            producer.finish()
            wait_for_verdicts_of_all_so_far(producer)
    finally:
        producer.finish()
    assert_nothing_is_lost(settings)


def test_store_that_is_away_when_the_producer_starts_is_not_made_anew(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    folder = tmp_path / "objects"
    settings = line(embedded_broker.bootstrap, tmp_path, f"file://{folder}")
    first = RunningProducer(settings)
    go_on_for(first, RATE_HZ)
    first.finish()
    unmount(folder)
    second = RunningProducer(settings)
    try:
        go_on_for(second, RATE_HZ)
        assert list(folder.iterdir()) == []
        folder.rmdir()
        folder.with_name("aside").rename(folder)
        with inspecting(settings):
            wait_for_verdicts_of_all_so_far(second)
            second.finish()
            wait_for_verdicts_of_all_so_far(second)
    finally:
        second.finish()
    assert topics.records(settings, "dead-letters") == []
    assert all(not dropped and closed for _, dropped, closed in topics.accounts(settings).values())
