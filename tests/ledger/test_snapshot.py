"""A ledger that goes on from a snapshot says what one says that has read everything."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from flawline import kafka_clients
from flawline.intervals import IntervalSet
from flawline.messages import DeadLetterReason, DroppedRange, DropReason, ExpiredFrames, LedgerEntry
from flawline.settings.tree import Settings
from ledger import reader as ledger
from ledger import replay, snapshot
from ledger.accounting import SILENT_AFTER_NS, Ledger, LedgerState, Report, VerdictContent
from ledger.reader import LedgerReader
from ledger.snapshot import UnusableSnapshotError, decode_state, encode_state
from tests.support.talking_line import TalkingLine

SECOND_NS = 1_000_000_000
START_NS = 1_000_000 * SECOND_NS
Call = Callable[[Ledger], None]

kinds = st.lists(st.sampled_from(["scored", "scored", "dropped", "dead", "recovered", "expired", "gap"]), max_size=30)


def topics_of(camera: str, epoch: int, outcomes: list[str], seed: int) -> list[list[Call]]:
    """Return the records about the captures of one epoch as calls, a list for each topic, in the topic's order.

    A record may come twice, the second time with another verdict. Frames that expired are reported by a worker.
    """
    chance = random.Random(seed)
    entries: list[Call] = []
    verdicts: list[Call] = []
    letters: list[Call] = []
    for sequence, outcome in enumerate(outcomes):
        at = START_NS + sequence * SECOND_NS
        name = camera, epoch, sequence
        if outcome in ("scored", "recovered"):
            for version in ["m1", chance.choice(["m1", "m2"])][: chance.choice([1, 1, 2])]:
                content = VerdictContent(version, "accept", 0.5)
                verdicts.append(lambda book, name=name, at=at, c=content: book.record_scored(name, at, c))
        if outcome in ("dead", "recovered"):
            reasons = chance.choices(list(DeadLetterReason), k=chance.choice([1, 2]))
            letters += [
                lambda book, name=name, reason=reason: book.record_dead_letter(name, reason) for reason in reasons
            ]
        if outcome == "expired" and (sequence == 0 or outcomes[sequence - 1] != "expired"):
            expired = ExpiredFrames(camera, epoch, sequence, 0, 1, 2, at)
            entries.append(lambda book, expired=expired: book.record_expired(expired))
        ranges = (DroppedRange(sequence, sequence, DropReason.OVERSIZE),) if outcome == "dropped" else ()
        entry = LedgerEntry(camera, epoch, sequence + 1, ranges, at, closed=sequence + 1 == len(outcomes))
        entries += [lambda book, entry=entry: book.record_entry(entry)] * chance.choice([1, 1, 2])
    letters.append(lambda book: book.record_unidentified(("frames", 0, seed), DeadLetterReason.UNDECODABLE))
    letters.append(lambda book: book.record_unreadable(START_NS, f"dead-letters/0 offset {seed}"))
    return [entries, verdicts, letters]


def shuffled(topics: list[list[Call]], chance: random.Random) -> list[Call]:
    """Return the calls of all topics: each in its own order, the topics in any."""
    waiting = [list(calls) for calls in topics if calls]
    result = []
    while waiting:
        chosen = chance.choice(waiting)
        result.append(chosen.pop(0))
        waiting = [calls for calls in waiting if calls]
    return result


@pytest.mark.system
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), kinds), max_size=4, unique_by=lambda item: item[:2]),
    st.integers(0, 1 << 20),
    st.lists(st.integers(0, 200), max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_snapshots_and_the_records_after_them_give_the_account_of_all_records(
    epochs: list[tuple[str, int, list[str]]], seed: int, restarts: list[int]
) -> None:
    topics = [calls for item in epochs for calls in topics_of(*item, seed)]
    calls = shuffled(topics, random.Random(seed))
    whole, restarted = Ledger(), Ledger()
    for index, call in enumerate(calls):
        if index in restarts:
            restarted.report([], START_NS)
            restarted = Ledger(state=decode_state(encode_state(restarted.state)))
        call(whole)
        call(restarted)
    now = START_NS + 2 * SILENT_AFTER_NS
    assert restarted.report([], now) == whole.report([], now)
    assert encode_state(decode_state(encode_state(whole.state))) == encode_state(whole.state)


def test_state_of_a_day_with_many_holes_is_small() -> None:
    state = LedgerState()
    book = Ledger(state=state)
    book.record_entry(LedgerEntry("cam", 7, 10_000_000, (), START_NS))
    epoch = state.epochs["cam", 7]
    epoch.dropped[DropReason.SPOOL_FULL] = IntervalSet((at, at) for at in range(0, 10_000_000, 1000))
    epoch.scored = IntervalSet([(0, 9_999_999)]) - epoch.dropped[DropReason.SPOOL_FULL]
    assert len(encode_state(state)) < 100_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        encode_state(LedgerState())[:-3],
        snapshot.zlib.compress(b"\x93"),
        snapshot.zlib.compress(b"\x80"),
    ],
)
def test_bytes_that_no_ledger_wrote_are_refused(data: bytes) -> None:
    with pytest.raises(UnusableSnapshotError):
        decode_state(data)


def test_state_that_unpacks_to_more_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "STATE_LIMIT_BYTES", 1000)
    with pytest.raises(UnusableSnapshotError, match="1000 bytes"):
        decode_state(snapshot.zlib.compress(b"\0" * 2000))


@given(st.binary(max_size=4), st.integers(0, 1 << 30))
def test_damaged_state_is_a_state_or_refused(damage: bytes, seed: int) -> None:
    book = Ledger()
    for call in shuffled(topics_of("a", 1, ["scored", "dead", "expired", "gap", "scored"], 3), random.Random(seed)):
        call(book)
    plain = bytearray(snapshot.zlib.decompress(encode_state(book.state)))
    at = seed % len(plain)
    plain[at : at + len(damage)] = damage
    try:
        decode_state(snapshot.zlib.compress(bytes(plain)))
    except UnusableSnapshotError as error:
        assert "\n" not in str(error)


# In a topic


def watch(line: TalkingLine) -> Report:
    """Poll as a watcher does, write a snapshot, and return the report."""
    with LedgerReader(line.settings) as reader:
        report = reader.poll()
        reader._snapshot_due_s = 0.0
        assert reader.keep_snapshot(interval_s=0.0)
    return report


def start(line: TalkingLine) -> tuple[int, Report]:
    """Return how many records a start reads, and what it reports."""
    totals = [0]
    report = ledger.read(line.settings, lambda done, total: totals.append(total))
    return max(totals), report


def delete_records(line: TalkingLine, topic: str, partition: int, before: int) -> None:
    admin = kafka_clients.admin(line.settings)
    admin.delete_records({TopicPartition(line.settings.topic(topic), partition): before})
    admin.close()


def make_again(line: TalkingLine, topic: str) -> None:
    admin = kafka_clients.admin(line.settings)
    admin.delete_topics([line.settings.topic(topic)])
    admin.close()
    kafka_clients.ensure_topics(line.settings)


def busy(line: TalkingLine) -> None:
    """Say five captures: two scored, one dropped, one dead-lettered and one that nobody explains."""
    line.captured(5, dropped=(DroppedRange(2, 2, DropReason.OVERSIZE),), closed=True)
    line.dead(line.frame(1), 1, DeadLetterReason.CHECKSUM)
    line.committed(1)
    line.scored(0, 3)


@pytest.fixture
def lines_of_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="ledger")
    return caplog


def test_start_reads_only_what_came_after_the_snapshot(
    line: TalkingLine, lines_of_log: pytest.LogCaptureFixture
) -> None:
    busy(line)
    before = watch(line)
    count, report = start(line)
    assert count == 0 and report == before and report.total.gaps == 1
    line.epoch = time.time_ns() // 1_000_000
    line.captured(1, closed=True)
    line.scored(0)
    count, report = start(line)
    assert (count, report.total.captured, report.total.scored, report.total.gaps) == (2, 6, 3, 1) and report.balanced
    assert not [record for record in lines_of_log.records if record.name.startswith("ledger")]


def test_second_verdict_of_a_frame_from_before_the_snapshot_is_compared_with_the_first(line: TalkingLine) -> None:
    line.captured(2, closed=True)
    line.scored(0, 1)
    watch(line)
    line.scored(0, version="m2", score=3.0)
    line.scored(1)
    account = start(line)[1].total
    assert (account.conflicting_verdicts, account.conflicts, account.scored) == (1, 1, 2) and account.balanced


def test_topic_that_was_made_again_is_read_from_its_begin(
    line: TalkingLine, lines_of_log: pytest.LogCaptureFixture
) -> None:
    line.captured(2, closed=True)
    line.scored(0, 1)
    watch(line)
    make_again(line, "verdicts")
    again = TalkingLine(line.settings)  # a producer refuses to go on in another log
    again.scored(1, 1)
    again.close()
    report = start(line)[1]
    assert (report.total.scored, report.total.gaps) == (1, 1)
    assert "another record at offset 1: all kept records are read" in lines_of_log.text.replace("(", "").replace(
        ")", ""
    )


def test_topic_that_lost_records_after_the_snapshot_is_read_from_its_begin(
    line: TalkingLine, lines_of_log: pytest.LogCaptureFixture
) -> None:
    line.captured(2)
    line.scored(0)
    watch(line)
    line.scored(1)
    line.captured(2, closed=True)
    delete_records(line, "verdicts", 1, 2)
    report = start(line)[1]
    assert (report.total.captured, report.total.gaps, report.total.left_out) == (0, 0, 2)
    assert "holds offsets 2 to 1 and was read to 0" in lines_of_log.text


def test_snapshot_outlives_the_records_that_it_was_made_of(
    line: TalkingLine, lines_of_log: pytest.LogCaptureFixture
) -> None:
    line.captured(2, closed=True)
    line.scored(0, 1)
    before = watch(line)
    delete_records(line, "verdicts", 1, 2)
    assert start(line) == (0, before)
    assert not [record for record in lines_of_log.records if record.name.startswith("ledger")]


def test_damaged_snapshot_costs_a_full_read_and_a_line(
    line: TalkingLine, lines_of_log: pytest.LogCaptureFixture
) -> None:
    busy(line)
    before = watch(line)
    reader = kafka_clients.consumer(line.settings)
    newest = snapshot.newest(line.settings, reader)
    reader.close()
    assert newest is not None
    for damaged in (replace(newest, checksum=newest.checksum ^ 1), replace(newest, state=b"nonsense")):
        line.say("ledger-snapshots", damaged)
        count, report = start(line)
        assert count > 0 and report == before
    assert lines_of_log.text.count("all kept records are read") == 2


def test_records_that_cannot_be_read_are_remembered(line: TalkingLine) -> None:
    line.say("dead-letters", LedgerEntry("cam", 1, 1, (), 1))
    assert not watch(line).balanced
    count, report = start(line)
    assert count == 0 and not report.balanced and "dead-letters/0 offset 0" in report.unreadable[0]


def test_only_one_of_several_watchers_writes(line: TalkingLine) -> None:
    busy(line)
    watch(line)
    with LedgerReader(line.settings) as second, LedgerReader(line.settings, since_ns=1) as partial:
        for reader in (second, partial):
            reader.poll()
            assert not reader.keep_snapshot()
            reader._snapshot_due_s = 0.0
            assert not reader.keep_snapshot()
        second._snapshot_due_s = partial._snapshot_due_s = 0.0
        assert second.keep_snapshot(interval_s=0.0)
        assert not partial.keep_snapshot(interval_s=0.0)


def test_watcher_forgets_what_has_expired_also_while_another_one_writes(
    line: TalkingLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(line)
    days = [0]
    with LedgerReader(line.settings, lambda: time.time_ns() + days[0] * 86_400_000_000_000) as reader:
        assert reader.poll().total.captured
        days[0], reader._snapshot_due_s = 8, 0.0
        monkeypatch.setattr(snapshot, "was_written_since", lambda *_: True)
        assert not reader.keep_snapshot()
        assert reader.poll().total.captured == 0


def test_replay_finds_the_dead_letters_from_before_the_snapshot(line: TalkingLine) -> None:
    busy(line)
    watch(line)
    assert [letter.status for letter in replay.find(line.settings, replay.Filter())] == [replay.Status.OPEN]


def test_topic_is_made_by_the_first_snapshot(line_settings: Settings) -> None:
    kafka_clients.ensure_topics(line_settings, ["ledger", "verdicts"])
    with LedgerReader(line_settings) as reader:
        assert reader.poll().balanced
        reader._snapshot_due_s = 0.0
        assert reader.keep_snapshot(interval_s=0.0)
    admin = kafka_clients.admin(line_settings)
    assert line_settings.topic("ledger-snapshots") in admin.list_topics()
    admin.close()


def topic_with(line: TalkingLine, configs: dict[str, str]) -> ConfigResource:
    return ConfigResource(ConfigResourceType.TOPIC, line.settings.topic("ledger-snapshots"), configs)


def test_watcher_that_may_not_write_says_so_and_counts_on(
    line: TalkingLine, lines_of_log: pytest.LogCaptureFixture
) -> None:
    busy(line)
    with LedgerReader(line.settings) as reader:
        before = reader.poll()
        admin = kafka_clients.admin(line.settings)
        admin.alter_configs([topic_with(line, {"max.message.bytes": "16"})])
        admin.close()
        reader._snapshot_due_s = 0.0
        assert not reader.keep_snapshot(interval_s=0.0)
        assert reader.poll() == before
    assert "no snapshot is written" in lines_of_log.text and "grant WRITE" in lines_of_log.text
