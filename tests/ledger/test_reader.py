"""The ledger reads every outcome from the topics of a real broker."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from prometheus_client import generate_latest

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, telemetry
from flawline.errors import FlawlineError
from flawline.messages import DeadLetterReason, DroppedRange, DropReason
from flawline.settings.tree import Settings
from ledger import reader as ledger
from ledger.accounting import Account
from ledger.reader import LedgerReader
from station.cli.ledger import watch_ledger
from tests.support.brokers import ApacheKafka, unique
from tests.support.ports import reserved_port
from tests.support.talking_line import TalkingLine

pytestmark = pytest.mark.system


def account_of(line: TalkingLine) -> Account:
    return ledger.read(line.settings).cameras[line.camera]


def test_line_that_never_ran_is_empty_and_balanced(line_settings: Settings) -> None:
    report = ledger.read(line_settings)
    assert report.balanced and report.total == Account()


def test_scored_frames_are_scored_even_when_they_were_reported_twice(line: TalkingLine) -> None:
    line.scored(0, 1, 1, 2, 0)
    line.captured(3, closed=True)
    account = account_of(line)
    assert (account.captured, account.scored, account.gaps) == (3, 3, 0) and account.balanced


@pytest.mark.parametrize("asked", ["beginning_offsets", "end_offsets"])
def test_a_partition_without_a_leader_is_one_line_and_is_read_later(
    line: TalkingLine, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    line.scored(0)
    line.captured(1, closed=True)
    letters = TopicPartition(line.settings.topic("dead-letters"), 0)
    of_all = getattr(KafkaConsumer, asked)

    def of_those_with_a_leader(self: KafkaConsumer, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return of_all(self, [place for place in places if place != letters])

    with LedgerReader(line.settings) as reader:
        with monkeypatch.context() as patched:
            patched.setattr(KafkaConsumer, asked, of_those_with_a_leader)
            with pytest.raises(FlawlineError, match="dead-letters/0 has no leader"):
                reader.poll()
        assert reader.poll().cameras[line.camera].scored == 1


@pytest.mark.parametrize("reason", list(DropReason))
def test_dropped_captures_have_their_reason(line: TalkingLine, reason: DropReason) -> None:
    line.captured(4, dropped=(DroppedRange(1, 2, reason),))
    line.captured(4, dropped=(DroppedRange(1, 2, reason),), closed=True)
    line.scored(0, 3)
    account = account_of(line)
    assert account.dropped == {reason: 2} and account.gaps == 0 and account.balanced


@pytest.mark.parametrize("reason", list(DeadLetterReason))
def test_dead_letters_have_their_reason(line: TalkingLine, reason: DeadLetterReason) -> None:
    record = line.frame(0)
    for _ in range(2):  # a redelivery
        line.dead(record, 0, reason)
    line.committed(1)
    line.captured(1, closed=True)
    account = account_of(line)
    assert account.dead_lettered == {reason: 1} and account.in_flight == 0 and account.balanced


def test_frame_after_the_committed_offset_is_in_flight_and_before_it_is_a_gap(line: TalkingLine) -> None:
    for sequence in range(4):
        line.frame(sequence)
    line.captured(4, closed=True)
    assert account_of(line).in_flight == 4
    line.scored(0)
    line.committed(2)  # 1 was passed over without an outcome
    account = account_of(line)
    assert (account.scored, account.in_flight, account.gaps) == (1, 2, 1) and account.balanced
    assert [(gap.first, gap.last) for gap in account.gap_ranges] == [(1, 1)]


def test_capture_that_never_reached_the_log_is_a_gap(line: TalkingLine) -> None:
    line.captured(3, closed=True)
    line.scored(0, 2)
    account = account_of(line)
    assert account.gaps == 1 and account.balanced


def test_capture_with_two_outcomes_does_not_balance(line: TalkingLine) -> None:
    line.captured(2, dropped=(DroppedRange(1, 1, DropReason.BROKER_REFUSED),), closed=True)
    line.scored(0, 1)
    account = account_of(line)
    assert account.conflicts == 1 and not account.balanced


def test_replayed_and_then_scored_frame_counts_as_scored(line: TalkingLine) -> None:
    line.dead(line.frame(0), 0, DeadLetterReason.SCORING_FAILED)
    line.captured(1, closed=True)
    line.committed(1)
    assert account_of(line).dead_lettered == {"scoring-failed": 1}
    line.scored(0)
    account = account_of(line)
    assert (account.scored, account.dead_lettered, account.recovered) == (1, {}, 1) and account.balanced


def test_epochs_and_cameras_are_counted_apart(line: TalkingLine) -> None:
    line.captured(2, closed=True)
    line.scored(0, 1)
    line.epoch += 1
    line.captured(1, closed=True)
    line.scored(0)
    line.camera = "other"
    line.captured(5, closed=True)
    report = ledger.read(line.settings)
    assert (report.cameras["cam"].captured, report.cameras["cam"].gaps) == (3, 0)
    assert (report.cameras["other"].captured, report.cameras["other"].gaps) == (5, 5)


def test_foreign_record_is_reported_beside_the_sum(line: TalkingLine) -> None:
    record = line.frame(0)
    line.dead(record, None, DeadLetterReason.UNDECODABLE)
    line.committed(1)
    report = ledger.read(line.settings)
    assert report.unidentified == {"undecodable": 1}


def test_record_of_a_newer_release_is_named_and_never_balanced(line: TalkingLine) -> None:
    writer = kafka_clients.producer(line.settings)
    writer.send(line.settings.topic("ledger"), value=b"no message", partition=0).get(20)
    writer.close()
    report = ledger.read(line.settings)
    assert not report.balanced and "ledger/0 offset 0" in report.unreadable[0]


def test_reader_continues_where_it_was(line: TalkingLine) -> None:
    with LedgerReader(line.settings) as reader:
        for count in range(1, 4):
            line.frame(count - 1)
            line.scored(count - 1)
            line.committed(count)
            line.captured(count)
            report = reader.poll()
            assert (report.total.captured, report.total.scored, report.total.in_flight) == (count, count, 0)
        assert report.balanced


def test_in_flight_frames_are_not_read_again_by_every_poll(line: TalkingLine) -> None:
    with LedgerReader(line.settings) as reader:
        for sequence in range(5):
            line.frame(sequence)
        line.captured(5, closed=True)
        assert reader.poll().total.in_flight == 5
        line.scored(0, 1)
        line.committed(2)
        read: list[int] = []
        report = reader.poll(lambda done, total: read.append(total))
        assert (report.total.in_flight, report.total.scored, report.total.gaps) == (3, 2, 0)
        assert sum(read) == 2  # the two verdicts


def test_expired_verdicts_leave_their_captures_out(line: TalkingLine) -> None:
    line.captured(3)
    line.scored(0, 1, 2)
    admin = kafka_clients.admin(line.settings)

    admin.delete_records({TopicPartition(line.settings.topic("verdicts"), 1): 3})
    admin.close()
    report = ledger.read(line.settings)
    assert (report.total.gaps, report.total.captured, report.balanced) == (0, 0, True)
    assert report.total.left_out == 3


def test_since_counts_the_captures_after_the_first_report_since_then(line: TalkingLine) -> None:
    line.captured(2, dropped=(DroppedRange(1, 1, DropReason.OVERSIZE),))
    line.scored(0)
    time.sleep(0.01)
    since_ns = time.time_ns()
    time.sleep(0.01)
    line.captured(3)
    line.scored(2, 3)
    line.captured(5, closed=True)
    line.epoch = time.time_ns() // 1_000_000 + 1
    line.captured(2, closed=True)
    line.scored(0, 1)
    account = ledger.read(line.settings, since_ns=since_ns).total
    # Of the first epoch 3 and 4: captures up to the first report since then, 0 to 2, may be from before.
    assert (account.captured, account.scored, account.gaps, account.left_out) == (4, 3, 1, 3) and account.balanced
    assert ledger.read(line.settings, since_ns=time.time_ns()).total.captured == 0
    assert ledger.read(line.settings, since_ns=0).total.captured == 7


def test_line_without_new_gaps_is_not_searched_for_frames(line: TalkingLine, monkeypatch: pytest.MonkeyPatch) -> None:
    for sequence in range(3):
        line.frame(sequence)
    line.captured(3)
    with LedgerReader(line.settings) as reader:
        polls: list[Any] = []
        real = reader._frames.poll
        monkeypatch.setattr(reader._frames, "poll", lambda **options: polls.append(1) or real(**options))
        assert reader.poll().total.in_flight == 3
        assert not polls, "frames of a camera that reports are in flight, whether they are in the log or not"
        line.captured(4, closed=True)
        account = reader.poll().total
        assert (account.in_flight, account.gaps) == (3, 1) and polls
        polls.clear()
        assert reader.poll().total == account and not polls


def test_figures_are_exported_by_camera_outcome_and_reason(line: TalkingLine) -> None:
    line.captured(3, dropped=(DroppedRange(2, 2, DropReason.OVERSIZE),), closed=True)
    line.scored(0)
    ledger.export(ledger.read(line.settings))
    exported = generate_latest(telemetry.REGISTRY).decode()
    assert 'flawline_ledger_frames{camera="cam",outcome="scored",reason=""} 1.0' in exported
    assert 'flawline_ledger_frames{camera="cam",outcome="dropped",reason="oversize"} 1.0' in exported
    assert 'flawline_ledger_frames{camera="cam",outcome="gap",reason=""} 1.0' in exported
    assert "flawline_ledger_balanced 1.0" in exported


def test_watch_serves_the_metric_and_outlives_a_broker_restart(
    fresh_broker: EmbeddedBroker, line_settings: Settings
) -> None:
    port = reserved_port()
    settings = line_settings.model_copy(
        update={
            "kafka": line_settings.kafka.model_copy(update={"bootstrap_servers": fresh_broker.bootstrap}),
            "metrics": line_settings.metrics.model_copy(update={"ledger_port": port}),
        }
    )
    kafka_clients.ensure_topics(settings)
    stop = threading.Event()
    watcher = threading.Thread(target=watch_ledger, args=(settings, stop, 0.2))
    watcher.start()
    try:
        line = TalkingLine(settings)
        line.captured(1, closed=True)
        line.scored(0)
        wait_for(lambda: scraped(port, "scored") == 1)
        fresh_broker.restart()
        line.scored(1)
        line.captured(2, closed=True)
        line.close()
        wait_for(lambda: scraped(port, "scored") == 2)
    finally:
        stop.set()
        watcher.join(30)
    assert not watcher.is_alive()


def test_offsets_are_accounted_for_when_the_outcomes_of_their_transaction_are_there(
    apache_kafka: ApacheKafka, tmp_path: Path
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        kafka={
            "bootstrap_servers": apache_kafka.bootstrap,
            "topic_prefix": unique("e") + ".",
            "camera_partitions": 2,
            "delivery": "exactly-once",
        },
    )
    kafka_clients.ensure_topics(settings)
    line, worker = TalkingLine(settings), TalkingLine(settings)
    plain, worker._writer = worker._writer, kafka_clients.producer(settings, transactional_id=unique("worker"))
    plain.close()
    try:
        line.captured(2, closed=True)
        worker._writer.init_transactions()
        worker._writer.begin_transaction()
        worker.scored(0)
        line.scored(1)  # another one's, behind the open transaction
        with LedgerReader(settings) as reader:
            reports: list[Any] = []
            polling = threading.Thread(target=lambda: reports.append(reader.poll()))
            polling.start()
            polling.join(1.0)
            assert polling.is_alive() and not reports
            worker._writer.commit_transaction()
            polling.join(60)
        assert (reports[0].total.scored, reports[0].total.gaps) == (2, 0)
    finally:
        worker.close()
        line.close()


def scraped(port: int, outcome: str) -> float | None:
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        return None
    wanted = f'flawline_ledger_frames{{camera="cam",outcome="{outcome}",reason=""}} '
    return next((float(row.removeprefix(wanted)) for row in text.splitlines() if row.startswith(wanted)), None)


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.05)


def run_ledger(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "station.cli", "ledger", "--config", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_command_prints_the_contract_and_exits_1_for_a_gap(
    line: TalkingLine, settings_file: Callable[[Settings], Path], tmp_path: Path
) -> None:
    file = settings_file(line.settings)
    line.captured(2, closed=True)
    line.scored(0, 1)
    fine = run_ledger(file, "--json")
    assert fine.returncode == 0, fine.stderr
    printed = json.loads(fine.stdout)
    keys = {"captured", "scored", "dropped", "dead_lettered", "gaps", "balanced", "in_flight"}
    assert keys | {"cameras"} <= printed.keys() and keys <= printed["cameras"]["cam"].keys()
    assert (printed["captured"], printed["scored"], printed["balanced"]) == (2, 2, True)

    line.captured(3, closed=True)
    gap = run_ledger(file, "--json-file", str(tmp_path / "ledger.json"))
    assert gap.returncode == 1 and not gap.stdout
    assert json.loads((tmp_path / "ledger.json").read_text())["gaps"] == 1
    table = run_ledger(file, "--camera", "cam")
    assert table.returncode == 1 and "sequence 2" in table.stdout and "cam" in table.stdout
    recent = run_ledger(file, "--json", "--since", "1h")
    assert json.loads(recent.stdout)["left_out"] == 2, recent.stderr
    for wrong in ("yesterday", "2h30", "2999-01-01"):
        refused = run_ledger(file, "--since", wrong)
        assert refused.returncode == 2 and f"--since {wrong}" in refused.stderr and "Traceback" not in refused.stderr
    unknown = run_ledger(file, "--camera", "nobody")
    assert unknown.returncode == 2 and "nobody" in unknown.stderr and "Traceback" not in unknown.stderr


def test_ledger_reads_apache_kafka_the_same(apache_kafka: Any, line_settings: Settings) -> None:
    settings = line_settings.model_copy(
        update={"kafka": line_settings.kafka.model_copy(update={"bootstrap_servers": apache_kafka.bootstrap})}
    )
    assert ledger.read(settings).total == Account()
    kafka_clients.ensure_topics(settings)
    line = TalkingLine(settings)
    try:
        for sequence in range(3):
            line.frame(sequence)
        line.captured(5, dropped=(DroppedRange(4, 4, DropReason.OVERSIZE),), closed=True)
        line.scored(0)
        line.committed(1)
        account = account_of(line)
        with LedgerReader(settings) as reader:
            assert reader.poll().total == account
            reader._snapshot_due_s = 0.0
            assert reader.keep_snapshot()
            assert 0 < reader.unread_expire_in_s()[1] < 6 * 3600 + 1
        reads: list[int] = []
        assert ledger.read(settings, lambda done, total: reads.append(total)).cameras[line.camera] == account
        assert max(reads, default=0) <= 2, "the frames in the log, and no outcome"
        assert ledger.read(settings, since_ns=time.time_ns()).total.captured == 0
    finally:
        line.close()
    assert (account.scored, account.in_flight, account.gaps, account.dropped) == (1, 2, 1, {"oversize": 1})
    assert account.balanced


def let_go(line: TalkingLine, topic: str, partition: int, before: int) -> None:
    """Delete the records before an offset, as retention by size does."""
    with contextlib.closing(kafka_clients.admin(line.settings)) as admin:
        admin.delete_records({TopicPartition(line.settings.topic(topic), partition): before})


def test_reader_whose_unread_verdicts_are_gone_begins_anew_and_shows_no_gaps_for_them(
    line: TalkingLine, caplog: pytest.LogCaptureFixture
) -> None:
    with LedgerReader(line.settings) as reader:
        line.captured(2)
        line.scored(0, 1)
        assert reader.poll().total.scored == 2
        line.scored(2, 3, 4)
        line.captured(5, closed=True)
        let_go(line, "verdicts", 1, 4)
        total = reader.poll().total
        assert (total.gaps, total.left_out) == (0, 5)
        assert "begins anew" in caplog.text
        assert reader.poll().total == total


def test_dropped_captures_whose_report_is_gone_are_left_out_and_are_no_gaps(line_settings: Settings) -> None:
    kafka_clients.ensure_topics(line_settings)
    with contextlib.closing(TalkingLine(line_settings, epoch=time.time_ns() // 1_000_000)) as line:
        line.captured(1, dropped=(DroppedRange(0, 0, DropReason.OVERSIZE),))
        line.captured(2, closed=True)
        line.scored(1)
        let_go(line, "ledger", 0, 1)
        with LedgerReader(line.settings) as reader:
            total = reader.poll().total
            assert (total.gaps, total.left_out) == (0, 2)
