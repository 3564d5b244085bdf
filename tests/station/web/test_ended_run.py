"""A run that is over is shown as such when its broker is gone, and not as a fault."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi.testclient import TestClient

from flawline import imaging
from flawline.messages import Codec, Decision
from flawline.settings.tree import Settings
from ledger.accounting import Account, Report, SequenceRange
from station import ended_run
from station.ended_run import EndedRun, Picture, last_verdicts
from station.web.ledger_watch import LedgerWatch
from station.web.live import LiveWatch
from tests.discovery import factories


@pytest.fixture(autouse=True)
def _short_wait_for_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawline.kafka_clients.BOOTSTRAP_TIMEOUT_MS", 300)


def the_run() -> EndedRun:
    verdicts = [
        *(factories.verdict(n, "camera-1") for n in range(70)),
        factories.verdict(70, "camera-1", Decision.REJECT),
    ]
    jpeg = imaging.encode(np.full((8, 16, 3), 90, np.uint8), Codec.JPEG)
    account = Account(captured=80, scored=71, dropped={"oversize": 8}, gaps=1, gap_ranges=(SequenceRange(5, 3, 3),))
    return EndedRun(
        factories.START_NS,
        Report({"camera-1": account}, {"undecodable": 2}, ("a record",)),
        tuple(last_verdicts(verdicts)),
        (Picture(verdicts[-1].frame_id, jpeg, 8, 16),),
    )


def live_of(client: TestClient) -> LiveWatch:
    return client.app.state.context.live  # type: ignore[attr-defined, no-any-return]


def test_what_is_kept_of_a_run_is_read_as_it_was_until_a_line_starts_there_again(settings: Settings) -> None:
    run = the_run()
    assert len(run.verdicts) == ended_run.STRIP and run.verdicts[-1].decision is Decision.REJECT
    ended_run.write(settings.data_dir, run)
    assert ended_run.read(settings.data_dir) == run
    ended_run.forget(settings.data_dir)
    assert ended_run.read(settings.data_dir) is None


def test_file_of_another_kind_is_no_ended_run(settings: Settings) -> None:
    for text in ("", "[]", '{"at_ns": 1}', '{"at_ns": "soon", "report": {}, "verdicts": [], "pictures": []}'):
        (settings.data_dir / ended_run.FILE).write_text(text)
        assert ended_run.read(settings.data_dir) is None


def test_pages_of_an_ended_run_say_that_it_is_over_and_show_no_fault(
    client: TestClient, watch: LedgerWatch, settings: Settings
) -> None:
    run, live = the_run(), live_of(client)
    ended_run.write(settings.data_dir, run)
    watch.poll()
    live.poll()
    [tile] = [tile for tile in client.get("/api/live").json()["tiles"] if tile["camera"] == "camera-1"]
    assert tile["kind"] == "ended" and tile["words"].startswith("over: last frame at")
    assert len(tile["strip"]) == ended_run.STRIP and tile["shown"]["size"] == [16, 8]
    assert client.get(f"/live/{tile['shown']['frame_id']}.jpg").content == run.pictures[0].jpeg
    page = client.get("/").text
    assert "this run is over" in page and "KafkaTimeoutError" not in page
    page = client.get("/ledger").text
    assert "This run is over" in page and 'class="notice"' not in page and ">80<" in page
    assert client.get("/healthz").json()["ledger"] == "ok"


def test_broker_that_is_away_without_an_ended_run_stays_a_fault(client: TestClient, watch: LedgerWatch) -> None:
    live = live_of(client)
    assert watch.poll().problem is not None and not watch.state.has_ended
    live.poll()
    assert live.problem is not None and not live.has_ended
