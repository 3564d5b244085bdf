"""What people say of frames: offered, judged, taken back, counted into rates."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from discovery.quality_rates import rates
from discovery.store import frame_pictures, judgements, schema
from discovery.store.judgements import Filter, Judgement, Queue
from discovery.store.store import Store
from flawline.errors import UsageError
from flawline.messages import Decision
from tests.discovery.factories import MINUTE_NS, START_NS
from tests.discovery.pictures.photos import keep, scored
from tests.discovery.stream import Stream

pytestmark = pytest.mark.system

HOUR_NS = 60 * MINUTE_NS
ALL = Filter()


@pytest.fixture
def store(stream: Stream) -> Store:
    """Return a store: frames 0 to 3 are rejects, 4 is for review, 5 and 6 are near misses, 7 to 16 are sampled."""
    opened = stream.store
    keep(opened, *(scored(n) for n in range(4)), scored(4, Decision.REVIEW))
    keep(opened, *(scored(n, Decision.ACCEPT, p_value=0.01) for n in (5, 6)))
    keep(opened, *(scored(n, Decision.ACCEPT) for n in range(7, 17)))
    return opened


def offered(store: Store, queue: Queue, wanted: Filter = ALL) -> list[int]:
    """Return the sequences of the frames that a queue offers."""
    return [int(row.frame_id.rpartition(":")[2]) for row in judgements.offered(store, queue, wanted)]


def test_alarms_are_offered_from_the_latest_on_and_audits_at_random(store: Store) -> None:
    assert offered(store, Queue.ALARMS) == [4, 3, 2, 1, 0]
    audit = offered(store, Queue.AUDIT)
    assert sorted(audit) == list(range(5, 17))
    assert audit not in (sorted(audit), sorted(audit, reverse=True))
    assert judgements.backlogs(store) == {Queue.ALARMS: 5, Queue.AUDIT: 12}


def test_the_queue_goes_on_behind_a_frame_also_when_that_is_judged_by_then(store: Store) -> None:
    judgements.judge(store, "cam-1:1:3", "real", who="ana")
    behind = judgements.offered(store, Queue.ALARMS, after="cam-1:1:3")
    assert [row.frame_id for row in behind] == ["cam-1:1:2", "cam-1:1:1", "cam-1:1:0"]
    audit = [row.frame_id for row in judgements.offered(store, Queue.AUDIT)]
    assert [row.frame_id for row in judgements.offered(store, Queue.AUDIT, after=audit[4])] == audit[5:]
    assert len(judgements.offered(store, Queue.AUDIT, after="unknown")) == len(audit)


def test_a_judged_frame_is_offered_no_more_until_it_is_taken_back(store: Store) -> None:
    entry = judgements.judge(store, "cam-1:1:4", "false", who="ana", why="dust", is_offered=True)
    assert (entry["judgement"], entry["who"], entry["why"], entry["stratum"]) == ("false", "ana", "dust", "review")
    assert offered(store, Queue.ALARMS) == [3, 2, 1, 0]
    assert judgements.undo(store, who="ana")["frame"] == "cam-1:1:4"
    assert offered(store, Queue.ALARMS) == [4, 3, 2, 1, 0]
    assert judgements.latest(store) == []
    (kept,) = judgements.of_frame(store, "cam-1:1:4")
    assert (kept.undone_by, kept.undone_at is not None) == ("ana", True)
    with pytest.raises(UsageError, match="nothing to take back of ana"):
        judgements.undo(store, who="ana")


def test_the_latest_judgement_of_a_frame_holds_and_undo_brings_back_the_one_before(store: Store) -> None:
    judgements.judge(store, "cam-1:1:0", Judgement.REAL, who="ana")
    judgements.judge(store, "cam-1:1:0", Judgement.FALSE, who="ben")
    assert [(row.judgement, row.who) for row in judgements.latest(store)] == [("false", "ben")]
    judgements.undo(store, who="cyd", frame_id="cam-1:1:0")
    assert [(row.judgement, row.who) for row in judgements.latest(store)] == [("real", "ana")]
    assert judgements.by_person(store) == {"ana": {"real": 1}}


def test_undo_takes_back_the_own_word_and_not_another_person_s(store: Store) -> None:
    judgements.judge(store, "cam-1:1:0", "real", who="ana")
    judgements.judge(store, "cam-1:1:1", "real", who="ben")
    assert judgements.undo(store, who="ana")["frame"] == "cam-1:1:0"
    assert [row.frame_id for row in judgements.latest(store)] == ["cam-1:1:1"]


@pytest.mark.parametrize(
    ("frame_id", "judgement", "who", "why", "words"),
    [
        ("cam-1:1:99", "real", "ana", None, "has no picture"),
        ("cam-1:1:0", "perhaps", "ana", None, "one of real, false, unsure"),
        ("cam-1:1:0", "real", "", None, "give a name"),
        ("cam-1:1:0", "real", "a\nb", None, "give a name"),
        ("cam-1:1:0", "real", "ana", "x" * 501, "at most 500"),
        ("cam-1:1:0", "real", "ana", "a\x00b", "at most 500"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(
    store: Store, frame_id: str, judgement: str, who: str, why: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        judgements.judge(store, frame_id, judgement, who=who, why=why)
    assert judgements.latest(store) == []


def test_the_queue_is_filtered_by_camera_class_stratum_and_time(store: Store, stream: Stream) -> None:
    keep(store, scored(0, camera="cam-2"), scored(20, captured_at=START_NS + HOUR_NS))
    assert offered(store, Queue.ALARMS, Filter(camera="cam-2")) == [0]
    assert offered(store, Queue.ALARMS, Filter(since_ns=START_NS + HOUR_NS)) == [20]
    assert offered(store, Queue.ALARMS, Filter(until_ns=START_NS + 2_000_000_000)) == [1, 0, 0]
    assert offered(store, Queue.ALARMS, Filter(stratum=frame_pictures.Stratum.REVIEW)) == [4]
    with store.reading() as connection:
        d = schema.defects.c
        class_id = connection.scalar(select(d.class_id).where(d.frame_id == "cam-1:1:2"))
        others = set(connection.scalars(select(d.sequence).where(d.class_id == class_id, d.sequence < 5)))
    shown = judgements.offered(store, Queue.ALARMS, Filter(class_id=class_id))
    assert {row.frame_id for row in shown} == {f"cam-1:1:{n}" for n in others}
    assert {row.class_id for row in shown} == {class_id}


def test_rates_come_from_offered_frames_only_with_the_weight_of_each(store: Store) -> None:
    for number, judgement in enumerate(("real", "real", "false", "unsure")):
        judgements.judge(store, f"cam-1:1:{number}", judgement, who="ana", is_offered=True)
    judgements.judge(store, "cam-1:1:5", "real", who="ana", is_offered=True)
    judgements.judge(store, "cam-1:1:6", "false", who="ana", is_offered=True)
    for number in range(7, 16):
        judgements.judge(store, f"cam-1:1:{number}", "false", who="ana", is_offered=True)
    judgements.judge(store, "cam-1:1:16", "real", who="ana")  # a person looked it up, so it stands for no other frame
    by_stratum = {part.stratum: part for part in judgements.judged(store)}
    assert by_stratum["reject"].real == ((1.0, 2),)
    assert (by_stratum["reject"].frames, by_stratum["reject"].unsure) == (4, 1)
    assert by_stratum["accepted"].false == ((10.0, 9),)
    assert by_stratum["accepted"].real == ()
    estimates = rates(judgements.judged(store))
    assert estimates.escapes.value == pytest.approx(1)  # half of two near misses
    assert estimates.escape.high > 0.5  # nine sampled frames exclude little


def test_rates_of_a_time_take_whole_hours(store: Store) -> None:
    keep(store, scored(30, captured_at=START_NS + 2 * HOUR_NS))
    judgements.judge(store, "cam-1:1:30", "false", who="ana", is_offered=True)
    judgements.judge(store, "cam-1:1:0", "real", who="ana", is_offered=True)
    later = {part.stratum: part for part in judgements.judged(store, Filter(since_ns=START_NS + 2 * HOUR_NS))}
    assert (later["reject"].frames, later["reject"].real, later["reject"].false) == (1, (), ((1.0, 1),))
    assert sum(part.frames for part in judgements.judged(store, Filter(camera="cam-9"))) == 0


def test_false_alarms_are_alarms_with_a_picture_that_are_judged_false(store: Store) -> None:
    judgements.judge(store, "cam-1:1:0", "false", who="ana")
    judgements.judge(store, "cam-1:1:1", "real", who="ana")
    judgements.judge(store, "cam-1:1:5", "false", who="ana")  # it was accepted: no alarm
    judgements.judge(store, "cam-1:1:2", "false", who="ana")
    judgements.judge(store, "cam-1:1:2", "real", who="ben")
    assert [row.frame_id for row in judgements.false_alarms(store)] == ["cam-1:1:0"]
    with store.transaction() as connection:
        frame_pictures.forget(connection, [frame_pictures.by_frame(connection, "cam-1:1:0").id], "DEFECT", "age")
    assert judgements.false_alarms(store) == []
    assert [row.frame_id for row in judgements.latest(store, judgement="false")] == ["cam-1:1:5", "cam-1:1:0"]
