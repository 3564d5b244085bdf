"""Captures are thinned out by a policy while the workers are too slow."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import KafkaTimeoutError
from kafka.structs import OffsetAndMetadata, TopicPartition

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients
from flawline.clock import utc_ns
from flawline.messages import DropReason
from flawline.settings.producers import CameraBase
from flawline.settings.tree import Settings
from producers import overload
from producers.camera import Capture
from producers.overload import (
    OUTLOOK_VALID_S,
    SAMPLES,
    SPARSEST,
    Outlook,
    OverloadWatch,
    Pace,
    PublishedFrames,
    keep_every,
)
from producers.publisher import Publisher
from tests.producers import topics
from tests.producers.doubles import capture, picture, until

SECOND = 1_000_000_000


@given(st.floats(0, 1e6), st.floats(0.1, 1e3), st.integers(0, 9))
def test_nothing_is_thinned_up_to_the_bound_and_more_with_each_doubling_beyond(
    lag_s: float, after_s: float, priority: int
) -> None:
    every = keep_every(lag_s, after_s, priority)
    assert 1 <= every <= SPARSEST
    assert (every == 1) == (lag_s <= after_s * 2**priority)
    assert every <= keep_every(2 * lag_s, after_s, priority) <= 2 * every
    assert keep_every(lag_s, after_s, min(9, priority + 1)) <= every, "a higher rank is thinned no more"


def test_an_overload_of_three_times_settles_at_a_lag_of_some_times_the_bound() -> None:
    waiting = lag_s = 0.0
    worst_s = 0.0
    for _ in range(3600):  # seconds; the workers do 10 frames a second, the camera 30
        waiting = max(0.0, waiting + 30 / keep_every(lag_s, 30, 0) - 10)
        lag_s = waiting / 10
        worst_s = max(worst_s, lag_s)
    assert 30 <= worst_s <= 90
    assert 30 <= lag_s <= 90


@pytest.mark.parametrize("overload", [1.5, 3, 10])
def test_oldest_first_holds_the_age_of_verdicts_at_the_bound_and_the_camera_never_goes_dark(overload: float) -> None:
    """Workers finish 10 frames a second, in order; the captures come `overload` times as often."""
    pace, outlook = Pace(), None
    topic: list[float] = []  # capture times
    sent_at: list[float] = []
    finished, ages = 0, []
    captures = 0.0
    for tick in range(6000):  # tenths of seconds
        now_s = tick / 10
        if tick % 20 == 0:
            lag_s = now_s - topic[finished] if finished < len(topic) else 0.0
            outlook = Outlook(finished, lag_s, pace.look(finished, len(topic), now_s), 30, now_s)
        captures += overload
        while captures >= 1:
            captures -= 1
            if outlook is None or not outlook.is_too_late(0, len(topic), now_s):
                topic.append(now_s)
                sent_at.append(now_s)
        if finished < len(topic):
            ages.append(now_s - topic[finished])
            finished += 1
    assert max(ages) < 1.2 * 30 + 2
    assert 25 < ages[-1] < 32, "it settles there, so that as few frames as possible are lost"
    assert finished > 0.99 * 6000, "the workers always have work"
    assert max(later - earlier for earlier, later in itertools.pairwise(sent_at)) < 30 / 3


def test_oldest_first_after_an_outage_sends_only_what_can_be_in_time() -> None:
    idle = Outlook(next_offset=100, lag_s=0, per_s=10, within_s=30, seen_at_s=50)
    ages = [180, 60, 31, 29, 10, 0]
    assert [idle.is_too_late(age_s, 100, 50) for age_s in ages] == [True, True, True, False, False, False]
    behind = Outlook(next_offset=0, lag_s=20, per_s=10, within_s=30, seen_at_s=50)
    assert [behind.is_too_late(age_s, 200, 50) for age_s in ages] == [True] * 4 + [False] * 2
    assert not any(behind.is_too_late(age_s, 200, 50 + OUTLOOK_VALID_S + 1) for age_s in ages), "nothing is known"
    unknown = Outlook(next_offset=0, lag_s=20, per_s=None, within_s=30, seen_at_s=50)
    assert [unknown.is_too_late(age_s, 200, 50) for age_s in ages] == [True] * 3 + [False] * 3
    slow = Outlook(next_offset=0, lag_s=31, per_s=1000, within_s=30, seen_at_s=50)
    assert all(slow.is_too_late(age_s, 200, 50) for age_s in ages), "they have become slower than they were"


def test_the_pace_counts_only_spans_with_work_that_went_on() -> None:
    pace = Pace()
    assert pace.look(100, 100, 0) is None
    assert pace.look(110, 110, 10) is None, "they had nothing to do at first"
    assert pace.look(110, 200, 20) is None
    assert pace.look(110, 200, 30) is None, "they stand still, which says nothing of their pace"
    assert pace.look(130, 200, 40) == 2
    assert pace.look(170, 200, 50) == 3
    assert pace.look(200, 200, 60) == 3, "they had nothing to do at last"
    assert pace.look(0, 10, 70) is None, "another log"


def test_the_age_is_that_of_the_first_frame_behind_the_committed_offset() -> None:
    frames = PublishedFrames()
    for offset in range(100):
        frames.add(offset, offset * SECOND)
    assert frames.age_s(0, 100 * SECOND) == 100
    assert frames.age_s(60, 100 * SECOND) == 40
    assert frames.age_s(100, 200 * SECOND) == 0, "all are done"


def test_frames_of_one_moment_share_a_sample_and_the_oldest_samples_get_sparse() -> None:
    frames = PublishedFrames()
    for offset in range(4 * SAMPLES):
        frames.add(offset, offset * SECOND // 4)
    assert len(frames._offsets) <= SAMPLES
    assert frames.age_s(0, SAMPLES * SECOND) > 0.9 * SAMPLES


def test_a_log_that_begins_again_makes_what_was_known_void() -> None:
    frames = PublishedFrames()
    frames.add(500, 1 * SECOND)
    frames.add(0, 100 * SECOND)
    assert frames.age_s(0, 101 * SECOND) == 1


def test_while_the_broker_does_not_say_how_far_the_workers_are_every_capture_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: list[Callable[[], dict[int, int]]] = [lambda: {0: 1}, _away, lambda: {0: 2}]
    thinned: list[int] = []
    lane = SimpleNamespace(published=PublishedFrames(), camera=CameraBase(name="cam"), thin=thinned.append)
    for offset in range(3):
        lane.published.add(offset, offset * SECOND)
    watch = OverloadWatch(
        Settings(producer={"overload": "thin", "overload_after_s": 50}),
        {"cam": lane},
        lambda _: 0,
        committed=lambda _: answers.pop(0)(),
        now_ns=lambda: 101 * SECOND,
    )
    for _ in range(3):
        watch.look()
    assert thinned == [2, 1, 2]
    assert "its frames wait 100 s for the workers: 1 of 2 captures is kept" in caplog.text
    assert "every capture is kept again" in caplog.text


def test_the_log_says_once_that_frames_are_given_up_and_once_that_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    lane = SimpleNamespace(published=PublishedFrames(), camera=CameraBase(name="cam"), given_up_late=0, outlook=None)
    seconds = iter([0.0, 2, 4, 6, 90, 92])
    watch = OverloadWatch(
        Settings(producer={"overload": "oldest-first"}),
        {"cam": lane},
        lambda _: 0,
        committed=lambda _: {0: 1},
        clock=lambda: next(seconds),
    )
    for given_up in (0, 3, 3, 7, 7, 7):
        lane.given_up_late = given_up
        watch.look()
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "its frames wait 0 s for the workers: those that cannot be in time are given up",
        "every frame is sent again: it gave up 7",
    ]


def test_a_camera_without_a_partition_yet_is_not_thinned() -> None:
    thinned: list[int] = []
    lane = SimpleNamespace(published=PublishedFrames(), camera=CameraBase(name="cam"), thin=thinned.append)
    partitions: dict[str, int] = {}
    watch = OverloadWatch(Settings(), {"cam": lane}, partitions.__getitem__, committed=lambda _: {0: 1})
    watch.look()
    assert thinned == [1]


def _away() -> dict[int, int]:
    raise KafkaTimeoutError("away")


def _running(line_settings: Settings, producer: dict[str, Any]) -> tuple[Settings, Publisher]:
    """Return the settings of a line with one camera whose workers have finished no frame, and its running publisher."""
    settings = line_settings.model_copy(
        update={"producer": line_settings.producer.model_validate(producer), "cameras": []}
    )
    kafka_clients.ensure_topics(settings)
    _commit(settings, dict.fromkeys(range(3), 0))
    publisher = Publisher(settings, [CameraBase(name="cam", rate_hz=100)])
    publisher.start()
    return settings, publisher


def test_a_camera_whose_workers_stand_still_is_thinned_and_the_ledger_names_the_reason(
    embedded_broker: EmbeddedBroker, line_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "INTERVAL_S", 0.05)
    producer = {"overload": "thin", "overload_after_s": 0.5, "spool_dir": tmp_path, "ledger_interval_s": 0.1}
    settings, publisher = _running(line_settings, producer)
    for _ in range(10):
        publisher.publish("cam", capture())
    until(lambda: publisher.lanes["cam"]._every > 1, what="thinning")
    for _ in range(64):
        publisher.publish("cam", capture())
    until(lambda: publisher.idle, what="idle")
    _commit(settings, dict.fromkeys(range(3), 1000))
    until(lambda: publisher.lanes["cam"]._every == 1, what="the end of the overload")
    publisher.publish("cam", capture())
    publisher.close(10)
    (captured, dropped, closed) = next(iter(topics.accounts(settings).values()))
    assert (captured, closed) == (75, True)
    assert set(dropped.values()) == {DropReason.OVERLOAD}
    assert len(dropped) >= 32, "at least every second one of 64"
    assert len(topics.ids(settings, "cam")) == captured - len(dropped)


def test_frames_that_cannot_be_in_time_are_given_up_and_the_ledger_names_the_reason(
    embedded_broker: EmbeddedBroker, line_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "INTERVAL_S", 0.05)
    producer = {"overload": "oldest-first", "overload_after_s": 60, "spool_dir": tmp_path, "ledger_interval_s": 0.1}
    settings, publisher = _running(line_settings, producer)
    publisher.publish("cam", capture())
    until(lambda: publisher.lanes["cam"].outlook, timeout_s=60, what="the first look at the workers")
    monkeypatch.setattr(overload, "INTERVAL_S", 3600.0)  # what is known now stays
    monkeypatch.setattr(overload, "OUTLOOK_VALID_S", 3600.0)
    now_ns = utc_ns()
    for age_s in (300, 100, 2, 0):
        publisher.publish("cam", Capture(now_ns - age_s * SECOND, pixels=picture()))
    until(lambda: publisher.idle, what="idle")
    publisher.close(10)
    (captured, dropped, closed) = next(iter(topics.accounts(settings).values()))
    assert (captured, closed) == (5, True)
    assert dropped == {1: DropReason.OVERLOAD_OLDEST, 2: DropReason.OVERLOAD_OLDEST}
    assert [sequence for _, sequence in topics.ids(settings, "cam")] == [0, 3, 4]


def _commit(settings: Settings, offsets: dict[int, int]) -> None:
    """Say how far the workers are, as they do."""
    consumer = kafka_clients.consumer(settings, group="workers")
    topic = settings.topic("frames")
    consumer.assign([TopicPartition(topic, partition) for partition in offsets])
    consumer.commit(
        {TopicPartition(topic, partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
    )
    consumer.close(autocommit=False)
