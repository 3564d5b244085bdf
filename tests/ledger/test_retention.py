"""How long unread frames are kept is known before they are deleted."""

from __future__ import annotations

import math

import pytest
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.structs import TopicPartition

from flawline import kafka_clients
from flawline.topics import UNBOUNDED
from ledger.reader import LedgerReader
from ledger.retention import Retention, expires_in_s
from tests.support.talking_line import TalkingLine

NOW_MS = 1_000_000_000


@pytest.mark.parametrize(
    ("age_s", "unread", "retention", "expected_s"),
    [
        (600, 60, Retention(3_600_000, UNBOUNDED), 3000),
        (4000, 60, Retention(3_600_000, UNBOUNDED), 0),
        (600, 60, Retention(UNBOUNDED, UNBOUNDED), math.inf),
        (600, 60, Retention(UNBOUNDED, 90_000), 300),  # 60 kB are there, 100 bytes a second come
        (600, 60, Retention(3_600_000, 90_000), 300),
        (600, 60, Retention(700_000, 90_000), 100),
        (600, 60, Retention(UNBOUNDED, 50_000), 0),
    ],
)
def test_time_until_a_frame_is_deleted_is_the_lesser_of_age_and_size(
    age_s: int, unread: int, retention: Retention, expected_s: float
) -> None:
    assert expires_in_s(NOW_MS, NOW_MS - 1000 * age_s, 1000, unread, retention) == pytest.approx(expected_s)


def test_unread_frames_of_a_broker_expire_after_its_own_retention(line: TalkingLine) -> None:
    with LedgerReader(line.settings) as reader:
        assert reader.unread_expire_in_s() == {0: math.inf, 1: math.inf, 2: math.inf}
        for sequence in range(3):
            line.frame(sequence)
        hour_s = 6 * 3600
        assert hour_s - 60 < reader.unread_expire_in_s()[1] <= hour_s
        admin = kafka_clients.admin(line.settings)
        frames = line.settings.topic("frames")
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, frames, {"retention.ms": "600000"})])
        assert 540 < reader.unread_expire_in_s()[1] <= 600
        line.committed(1)
        assert 540 < reader.unread_expire_in_s()[1] <= 600
        admin.delete_records({TopicPartition(frames, 1): 2})
        admin.close()
        assert reader.unread_expire_in_s()[1] == 0, "one is gone already"
        line.committed(3)
        assert reader.unread_expire_in_s()[1] == math.inf
        line.captured(4, closed=True)
        assert reader.poll().total.gaps == 4, "the frames are searched for as before"


def test_line_without_topics_has_nothing_to_expire(line_settings) -> None:
    with LedgerReader(line_settings) as reader:
        assert reader.unread_expire_in_s() == {}
