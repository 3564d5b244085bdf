"""The rates of each day are those of the judgements, and follow what is judged later or taken back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from sqlalchemy import select

from discovery import quality_days
from discovery.pictures.policy import Candidate, Stratum, asked_for
from discovery.quality_days import DAY_NS, QualityDays
from discovery.quality_rates import rates
from discovery.shifts import Shift
from discovery.store import frame_pictures, judgements, schema
from discovery.store.database import nanoseconds
from discovery.store.production import Origin
from discovery.store.store import Store
from flawline.messages import Decision
from tests.discovery.factories import START_NS, verdict

pytestmark = pytest.mark.system


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres_server").new_database()
    opened = Store(url, utc_ns=lambda: START_NS)
    yield opened
    opened.close()


def days(store):
    with store.reading() as connection:
        rows = connection.execute(select(schema.quality_days).order_by(schema.quality_days.c.day)).all()
    return {nanoseconds(row.day) // DAY_NS: row for row in rows}


def arrive(store, day, count, shift="", shift_day=None):
    """Take in rejected frames of a day, all with a picture."""
    cameras = f"cam-{day}-{shift}"
    frames = [verdict(n, cameras, Decision.REJECT, captured_at=day * DAY_NS + n * 10**9) for n in range(count)]
    places = Origin("", Shift(shift, str(shift_day or day) if shift else ""))
    origins = {frame.frame_id: places for frame in frames}
    with store.transaction() as connection:
        frame_pictures.count_frames(connection, [(frame, Stratum.REJECT) for frame in frames], origins)
        picks = [asked_for(Candidate(frame, 0, n), 0.01) for n, frame in enumerate(frames)]
        frame_pictures.want(connection, picks, SimpleNamespace(at=lambda _: places.shift))
        connection.execute(schema.frame_pictures.update().values(state="kept"))
    return [frame.frame_id for frame in frames]


def test_a_day_without_judgements_has_no_estimate_and_limits_that_say_so(store):
    arrive(store, 20_000, 5)
    QualityDays(store).update()
    (row,) = days(store).values()
    assert (row.frames, row.judgements, row.overkill) == (5, 0, None)
    assert (row.false_alarm_share_low, row.false_alarm_share_high) == (0, 1)


def test_each_day_has_the_rates_of_its_own_judgements_also_of_those_that_come_late_or_are_taken_back(store):
    first, second = arrive(store, 20_000, 40), arrive(store, 20_001, 10)
    for n, frame in enumerate(first[:20]):
        judgements.judge(store, frame, "false" if n < 5 else "real", who="ada", is_offered=True)
    following = QualityDays(store)
    following.update()
    expected = rates(judgements.judged(store, judgements.Filter(since_ns=20_000 * DAY_NS, until_ns=20_001 * DAY_NS)))
    row = days(store)[20_000]
    assert (row.frames, row.judgements) == (40, 20)
    assert row.false_alarm_share == pytest.approx(0.25) == pytest.approx(expected.false_alarm_share.value)
    assert (
        row.false_alarm_share_low == pytest.approx(expected.false_alarm_share.low) and row.false_alarm_share_low < 0.25
    )
    assert days(store)[20_001].judgements == 0
    judgements.judge(store, second[0], "false", who="ada", is_offered=True)
    judgements.undo(store, who="bo", frame_id=first[0])
    following.update()
    assert days(store)[20_001].false_alarm_share == 1
    assert days(store)[20_000].judgements == 19


def test_each_shift_has_the_rates_of_its_own_judgements_also_across_midnight(store):
    frames = arrive(store, 20_000, 4, shift="night")
    frames += arrive(store, 20_001, 4, shift="night", shift_day=20_000)
    arrive(store, 20_001, 3, shift="early")
    for n, frame in enumerate(frames):
        judgements.judge(store, frame, "false" if n < 2 else "real", who="ada", is_offered=True)
    QualityDays(store).update()
    with store.reading() as connection:
        rows = connection.execute(select(schema.quality_shifts)).all()
    by_name = {(row.shift_day, row.shift): row for row in rows}
    assert set(by_name) == {("20000", "night"), ("20001", "early")}
    night = by_name["20000", "night"]
    assert (night.frames, night.judgements, night.false_alarm_share) == (8, 8, 0.25)
    assert nanoseconds(night.first_at) == 20_000 * DAY_NS
    assert by_name["20001", "early"].judgements == 0


def test_a_day_that_has_not_changed_is_not_derived_again(store, monkeypatch):
    arrive(store, 20_000, 5)
    derived = []
    rates_of = quality_days._rates_of
    monkeypatch.setattr(
        quality_days,
        "_rates_of",
        lambda store, wanted: derived.append(wanted.since_ns // DAY_NS) or rates_of(store, wanted),
    )
    now_s = [0.0]
    following = QualityDays(store, lambda: now_s[0])
    for _ in range(3):
        following.step()
        now_s[0] += quality_days.INTERVAL_S
    assert derived == [20_000]
    arrive(store, 20_001, 3)
    following.step()
    assert derived == [20_000, 20_001]
