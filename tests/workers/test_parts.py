"""Lanes, bisection, reading, dead letters, defects and metrics, each without a broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import (
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumberError,
    TopicAuthorizationFailedError,
    UnknownProducerIdError,
)
from kafka.future import Future
from kafka.structs import TopicPartition

from flawline import imaging, messages, telemetry
from flawline.byte_budget import ByteBudget
from flawline.checked_producer import ImplausibleAcknowledgement
from flawline.messages import Codec, DeadLetter, DeadLetterReason, Decision, Defect, Verdict
from flawline.object_store import ObjectStore, StoreAway
from flawline.settings.tree import FrameSettings
from flawline.settings.workers import WorkerSettings
from scorer.regions import regions
from tests.discovery import factories
from tests.workers.line import FULL, POISON, SIDE, PlainDetector, frame, wait_until
from workers import metrics, scoring, verdicts
from workers.dead_letters import dead_letter
from workers.inspector import load_detector
from workers.lane import RECORD_BYTES, Job, Lane, Outcome, Outgoing
from workers.reading import Reader, Rejected
from workers.sending import OutcomeSender

PARTITION = TopicPartition("frames", 0)
DONE = Outcome(Outgoing("verdicts", 0, b"cam-0", b"", []), "cam-0", 0)
DEFECT_FOLLOWS = replace(DONE, defect_follows=True)


def record(offset: int, value: bytes | None = b"x" * 10, **fields: Any) -> SimpleNamespace:
    defaults = {"topic": "frames", "partition": 0, "key": None, "headers": [], "timestamp": 1000 + offset}
    return SimpleNamespace(offset=offset, value=value, **(defaults | fields))


class RecordingSender:
    """Keeps what a lane sends."""

    def __init__(self) -> None:
        self.offsets: list[int] = []

    def __call__(self, job: Job, outcome: Outcome) -> None:
        self.offsets.append(job.offset)


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


# Lanes


@given(st.permutations(range(20)), st.permutations(range(20)))
def test_a_lane_sends_in_log_order_commits_contiguously_and_gives_all_bytes_back(
    completions: list[int], acknowledgements: list[int]
) -> None:
    gate, sent = ByteBudget(1 << 20), RecordingSender()
    lane = Lane(PARTITION, gate, sent)
    jobs = [lane.admit(record(offset), 0) for offset in range(20)]
    assert gate.held_bytes == 20 * (10 + RECORD_BYTES)
    assert all(lane.begin(job) for job in jobs)
    for offset in completions:
        lane.complete(jobs[offset], DONE)
    assert sent.offsets == list(range(20))
    assert lane.committable is None, "sent is not acknowledged"
    for offset in acknowledgements:
        lane.acknowledge(jobs[offset])
    assert lane.committable == 20
    assert lane.idle
    assert gate.held_bytes == 0


def test_a_closed_lane_sends_nothing_and_its_unfinished_frames_are_read_again(sender: RecordingSender) -> None:
    gate = ByteBudget(1 << 20)
    lane = Lane(PARTITION, gate, sender)
    first, second, third, fourth = (lane.admit(record(offset), 0) for offset in (3, 4, 5, 6))
    for job in (first, second, third):
        assert lane.begin(job)
    lane.complete(first, DONE)
    lane.acknowledge(first)
    lane.complete(third, DONE)  # waits for the second
    lane.close()
    lane.complete(second, DONE)
    assert not lane.begin(fourth)
    assert sender.offsets == [3]
    assert lane.resume_offset == 4
    assert gate.held_bytes == 0


def test_an_acknowledgement_after_the_lane_closed_counts_for_nobody(sender: RecordingSender) -> None:
    gate = ByteBudget(1 << 20)
    lane = Lane(PARTITION, gate, sender)
    job = lane.admit(record(0), 0)
    lane.begin(job)
    lane.complete(job, DONE)
    lane.close()
    lane.acknowledge(job)
    assert lane.committable is None
    assert gate.held_bytes == 0


def test_a_leaving_lane_begins_nothing_and_is_idle_when_the_begun_are_finished(sender: RecordingSender) -> None:
    gate = ByteBudget(1 << 20)
    lane = Lane(PARTITION, gate, sender)
    begun, not_begun = lane.admit(record(0), 0), lane.admit(record(1), 0)
    assert lane.begin(begun)
    lane.refuse()
    assert not lane.begin(not_begun)
    assert not lane.idle
    lane.complete(begun, DONE)
    lane.acknowledge(begun)
    assert lane.idle
    assert lane.committable == 1
    assert gate.held_bytes == 0


def test_an_abandoned_frame_is_neither_sent_nor_committed(sender: RecordingSender) -> None:
    gate = ByteBudget(1 << 20)
    lane = Lane(PARTITION, gate, sender)
    job = lane.admit(record(0), 0)
    lane.begin(job)
    lane.abandon(job)
    assert lane.idle
    assert (lane.committable, lane.resume_offset, gate.held_bytes) == (None, 0, 0)


def test_a_lane_closes_while_a_send_blocks_and_what_has_not_left_is_the_next_owners() -> None:
    gate, sends, may_return = ByteBudget(1 << 20), threading.Semaphore(0), threading.Event()
    sent: list[int] = []

    def blocking_send(job: Job, outcome: Outcome) -> None:
        sent.append(job.offset)
        sends.release()
        assert may_return.wait(30)

    lane = Lane(PARTITION, gate, blocking_send)
    first, second = lane.admit(record(0), 0), lane.admit(record(1), 0)
    assert lane.begin(first)
    assert lane.begin(second)
    lane.complete(second, DONE)  # waits for the first
    sending = threading.Thread(target=lane.complete, args=(first, DONE))
    sending.start()
    assert sends.acquire(timeout=30)
    closing = threading.Thread(target=lane.close)
    closing.start()
    closing.join(30)
    assert not closing.is_alive(), "the consumer's own loop would miss its heartbeats"
    may_return.set()
    sending.join(30)
    assert sent == [0]
    lane.acknowledge(first)
    assert (lane.committable, lane.resume_offset, gate.held_bytes) == (None, 0, 0)


def test_a_rejected_frame_frees_its_bytes_with_its_verdict_and_is_finished_with_its_defect(
    sender: RecordingSender,
) -> None:
    gate = ByteBudget(1 << 20)
    lane = Lane(PARTITION, gate, sender)
    job = lane.admit(record(0), 0)
    assert lane.begin(job)
    lane.complete(job, DEFECT_FOLLOWS)
    lane.acknowledge(job)
    assert (gate.held_bytes, lane.committable, lane.idle) == (0, None, False)
    assert (lane.undecided_offset, lane.resume_offset) == (1, 0), "it is not behind, but would be read again"
    lane.add_defect(job, DONE)
    lane.acknowledge(job)
    assert (sender.offsets, lane.committable, lane.idle) == ([0, 0], 1, True)


def test_a_frame_that_was_decided_before_takes_its_place_in_the_order_and_sends_nothing(
    sender: RecordingSender,
) -> None:
    gate = ByteBudget(1 << 20)
    lane = Lane(PARTITION, gate, sender)
    first, accepted, rejected, last = (lane.admit(record(offset), 0) for offset in range(4))
    assert all(lane.begin(job) for job in (first, accepted, rejected, last))
    lane.complete_decided(accepted, defect_follows=False)
    lane.complete_decided(rejected, defect_follows=True)
    lane.complete(last, DONE)
    assert (sender.offsets, lane.committable) == ([], None), "the first frame has no verdict yet"
    lane.complete(first, DONE)
    assert sender.offsets == [0, 3]
    lane.acknowledge(first)
    lane.acknowledge(last)
    assert (lane.committable, lane.undecided_offset, gate.held_bytes) == (2, 4, 0), "its defect is missing"
    lane.add_defect(rejected, DONE)
    lane.acknowledge(rejected)
    assert (sender.offsets, lane.committable, lane.idle) == ([0, 3, 2], 4, True)


# Sending


class ManualProducer:
    """Keeps the futures of its records for the test to resolve."""

    def __init__(self, refuses: Exception | None = None) -> None:
        self.futures: list[Future] = []
        self.was_closed = threading.Event()
        self._refuses = refuses

    @property
    def closed(self) -> bool:
        return self.was_closed.is_set()

    def close(self, timeout: float) -> None:
        self.was_closed.set()
        for future in self.futures:
            if not future.is_done:
                future.failure(IllegalStateError("closed"))

    def send(self, topic: str, **record: Any) -> Future:
        if self._refuses:
            raise self._refuses
        self.futures.append(Future())
        return self.futures[-1]


class Publishing:
    """A lane with one begun job whose outcome, a verdict and a defect, is sent."""

    def __init__(
        self, *producers: ManualProducer, now: Callable[[], float] = time.monotonic, loses_topics: bool = False
    ) -> None:
        self.gate, self.unacknowledged = ByteBudget(1 << 20), ByteBudget(1 << 20)
        self.lost: list[Lane] = []
        self.refused: list[tuple[Job, str, str]] = []
        self.fatal: list[Exception] = []
        clients = iter(producers)
        self.sender = OutcomeSender(
            lambda: next(clients),
            self.unacknowledged,
            on_lost=self.lost.append,
            on_refused=lambda job, outcome, error: self.refused.append((job, outcome.record.topic, error)),
            on_fatal=self.fatal.append,
            restore=lambda: loses_topics,
            patience_s=60.0,
            now=now,
        )
        self.lane = Lane(PARTITION, self.gate, self.sender.send)
        self.job = self.lane.admit(record(0), 0)
        self.lane.begin(self.job)
        verdict, defect = (Outgoing(topic, 0, b"cam-0", b"value", []) for topic in ("verdicts", "defects"))
        rejected = Outcome(verdict, "cam-0", 0, decision=Decision.REJECT, defect_follows=True)
        self.lane.complete(self.job, rejected)
        self.lane.add_defect(self.job, Outcome(defect, "cam-0", 0))

    @property
    def holds(self) -> tuple[int, int, bool]:
        """Bytes in work, unacknowledged bytes, and whether nothing is begun."""
        return self.gate.held_bytes, self.unacknowledged.held_bytes, self.lane.idle


def test_a_frame_is_finished_when_the_last_of_its_records_is_acknowledged() -> None:
    producer = ManualProducer()
    case = Publishing(producer)
    assert case.unacknowledged.held_bytes == 10
    producer.futures[1].success(None)
    assert case.lane.committable is None
    producer.futures[0].success(None)
    assert case.lane.committable == 1
    assert case.holds == (0, 0, True)


def test_a_record_that_times_out_makes_its_partition_be_read_again_once() -> None:
    producer = ManualProducer()
    case = Publishing(producer)
    for future in producer.futures:
        future.failure(KafkaTimeoutError("no answer"))
    assert case.lost == [case.lane]
    assert (case.refused, case.fatal, producer.closed) == ([], [], False)
    assert case.lane.resume_offset == 0
    assert case.holds == (0, 0, True)


@pytest.mark.parametrize(
    "error",
    [
        OutOfOrderSequenceNumberError(),
        UnknownProducerIdError(),
        ImplausibleAcknowledgement("offset 3"),
        IllegalStateError(),
    ],
)
def test_a_client_that_lost_its_state_is_replaced_and_its_frames_are_read_again(error: KafkaError) -> None:
    old, new = ManualProducer(), ManualProducer()
    case = Publishing(old, new)
    for future in old.futures:
        future.failure(error)
    assert case.lost == [case.lane]
    assert (case.refused, case.fatal) == ([], [])
    assert case.holds == (0, 0, True)
    lane = Lane(PARTITION, case.gate, case.sender.send)
    job = lane.admit(record(0), 0)
    lane.begin(job)
    lane.complete(job, Outcome(Outgoing("verdicts", 0, b"cam-0", b"value", []), "cam-0", 0))  # waits for the new client
    assert old.closed
    new.futures[0].success(None)
    assert lane.committable == 1


def test_the_first_record_of_a_client_that_the_broker_refuses_is_reported_and_the_others_are_read_again() -> None:
    producer = ManualProducer()
    case = Publishing(producer, ManualProducer())
    producer.futures[0].failure(MessageSizeTooLargeError("1048589 bytes"))
    producer.futures[1].failure(MessageSizeTooLargeError("1048589 bytes"))
    ((job, topic, error),) = case.refused
    assert (job, topic) == (case.job, "verdicts")
    assert "MessageSizeTooLargeError" in error
    assert case.lost == [case.lane], "the defect shared the client, so its frame is read again"
    assert case.fatal == []


def test_a_worker_without_rights_ends_and_says_which() -> None:
    for producer in (ManualProducer(), ManualProducer(refuses=TopicAuthorizationFailedError({"verdicts"}))):
        case = Publishing(producer, ManualProducer(), ManualProducer())
        for future in producer.futures:
            future.failure(TopicAuthorizationFailedError({"verdicts"}))
        assert "may not write to topic verdicts" in str(case.fatal[0])
        assert (case.lost, case.refused) == ([], [])
        assert case.gate.held_bytes == 0
        assert case.lane.committable is None


@pytest.mark.parametrize(("age_s", "loses_topics"), [(61.0, False), (4.0, True)])
def test_a_client_that_leaves_records_unanswered_is_replaced_when_the_broker_can_be_reached(
    monkeypatch: pytest.MonkeyPatch, age_s: float, loses_topics: bool
) -> None:
    for name in ("WATCH_S", "GRACE_S"):
        monkeypatch.setattr(f"workers.sending.{name}", 0.01)
    now_s = 0.0
    silent, new = ManualProducer(), ManualProducer()
    case = Publishing(silent, new, now=lambda: now_s, loses_topics=loses_topics)
    assert case.sender.unacknowledged_for_s == 0
    now_s = age_s
    assert silent.was_closed.wait(10)
    wait_until(lambda: case.lost == [case.lane])
    assert case.holds == (0, 0, True)


# Scoring


def image(level: int, first: int | None = None) -> np.ndarray:
    pixels = np.full((SIDE, SIDE, 3), level, np.uint8)
    if first is not None:
        pixels[0, 0] = first
    return pixels


@given(st.lists(st.booleans(), min_size=1, max_size=33))
def test_only_the_frames_that_break_the_model_lose_their_scores(bad: list[bool]) -> None:
    images = [image(20 + i, POISON if is_bad else None) for i, is_bad in enumerate(bad)]
    results = scoring.score_each(PlainDetector(), images, [None] * len(images))
    for i, (result, is_bad) in enumerate(zip(results, bad, strict=True)):
        assert isinstance(result, ValueError) == is_bad
        if not is_bad:
            assert result.raw == images[i].mean()


def test_a_model_that_fails_on_everything_costs_no_frame() -> None:
    class BrokenDetector(PlainDetector):
        def score(self, images: Any, masks: Any = None) -> Any:
            raise RuntimeError("no memory on the device")

    with pytest.raises(scoring.DetectorBroken, match="plain-1 fails on a plain image: no memory"):
        scoring.score_each(BrokenDetector(), [image(11), image(12)], [None, None])


def test_a_model_that_returns_too_few_scores_is_not_believed() -> None:
    class ForgetfulDetector(PlainDetector):
        def score(self, images: Any, masks: Any = None) -> Any:
            return super().score(images, masks)[:1]

    results = scoring.score_each(ForgetfulDetector(), [image(11), image(12)], [None, None])
    assert [result.raw for result in results] == [11.0, 12.0]


# Reading


def reader(tmp_path: Any = None, limit_bytes: int = 1 << 20) -> Reader:
    store = store_in(tmp_path) if tmp_path else None
    return Reader(FrameSettings(limit_bytes=limit_bytes), store, ByteBudget(1 << 20), threading.Event())


def store_in(folder: Any) -> ObjectStore:
    store = ObjectStore(f"file://{folder}/objects", "line-1")
    store.create()
    return store


def rejection(opener: Reader, value: bytes | None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        opener.read(value)
    return caught.value


def test_a_good_frame_is_read_with_its_pixels() -> None:
    sent = frame("cam-0", 7, level=99)
    picture = reader().read(messages.encode(sent))
    pixels = picture.pixels
    assert picture.frame == sent
    assert pixels.shape == (SIDE, SIDE, 3)
    assert int(pixels[5, 5, 0]) == 99


def test_a_claim_check_frame_is_fetched_and_a_missing_object_is_named(tmp_path: Any) -> None:
    inline = frame("cam-0", 7)
    key = store_in(tmp_path).put(inline.data)
    claim = replace(inline, data=b"", object_key=key)
    fetched, sent = reader(tmp_path).read(messages.encode(claim)), reader().read(messages.encode(inline))
    assert (fetched.pixels == sent.pixels).all()
    gone = rejection(reader(tmp_path), messages.encode(replace(claim, object_key="0" * 64)))
    assert gone.reason is DeadLetterReason.MISSING_OBJECT
    unset = rejection(reader(), messages.encode(claim))
    assert unset.reason is DeadLetterReason.MISSING_OBJECT
    assert "frames.objects_url is not set" in str(unset)


def test_a_store_that_is_away_costs_time_and_no_frame(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.reading.STORE_RETRY_S", (0.001, 0.001))
    inline = frame("cam-0", 7)

    class FlakyStore:
        def __init__(self) -> None:
            self.calls = 0

        def get(self, key: str, size_bytes: int) -> bytes:
            self.calls += 1
            if self.calls < 4:
                raise StoreAway("store is restarting")
            return inline.data

    store = FlakyStore()
    claim = replace(inline, data=b"", object_key="0" * 64)
    memory = ByteBudget(1 << 20)
    assert Reader(FrameSettings(), store, memory, threading.Event()).read(messages.encode(claim)).frame == claim
    assert store.calls == 4
    assert [line.getMessage() for line in caplog.records if line.levelname == "WARNING"] == [
        "store is restarting; large frames wait for it"
    ], "one line for an outage, not one for each attempt"
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(InterruptedError):
        Reader(FrameSettings(), FlakyStore(), memory, stopped).read(messages.encode(claim))


def test_a_frame_is_decoded_when_there_is_memory_for_it_and_gives_it_back_whatever_becomes_of_it() -> None:
    memory = ByteBudget(10_000)  # a frame takes 6,144
    opener = Reader(FrameSettings(), None, memory, stop := threading.Event())
    first = opener.read(messages.encode(frame("cam-0", 1)))
    assert memory.held_bytes == 6 * SIDE * SIDE
    waiting = threading.Thread(target=lambda: opener.read(messages.encode(frame("cam-0", 2))), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "the second frame waits for the memory of the first"
    first.let_go()
    waiting.join(30)
    assert not waiting.is_alive()
    assert memory.held_bytes == 0, "a frame that nobody holds any more takes no memory"
    rejection(opener, messages.encode(_with_data(frame("cam-0", 3), frame("cam-0", 3).data[:-20])))
    assert memory.held_bytes == 0
    held = opener.read(messages.encode(frame("cam-0", 4)))
    stop.set()
    with pytest.raises(InterruptedError, match="cam-0:"):
        opener.read(messages.encode(frame("cam-0", 5)))
    del held
    assert memory.held_bytes == 0


def test_a_deep_frame_is_read_at_the_depth_of_the_model_and_its_memory_stays_counted() -> None:
    pixels = np.full((SIDE, SIDE, 3), 100 << 4, np.uint16)
    sent = _with_data(frame("cam-0", 1), imaging.encode(pixels, Codec.PNG))
    memory = ByteBudget(1 << 20)
    picture = Reader(FrameSettings(), None, memory, threading.Event()).read(messages.encode(sent))
    assert picture.pixels.dtype == np.uint16
    with pytest.raises(imaging.ImageError, match="samples of 16 bits, and the good images of the model have 8"):
        picture.at_depth((8,))
    with pytest.raises(imaging.ImageError, match="take 11 bits, and images of 10 bits"):
        picture.at_depth((10,))
    held_bytes = memory.held_bytes
    picture = picture.at_depth((8, 12))
    assert (picture.pixels == 100).all() and picture.pixels.dtype == np.uint8 and picture.sample_bits == 12
    assert memory.held_bytes == held_bytes > 0
    assert picture.at_depth((8, 12)) is picture
    del picture
    assert memory.held_bytes == 0


def test_a_frame_that_takes_too_much_memory_is_oversize_and_names_the_setting() -> None:
    opener = Reader(FrameSettings(decoded_limit_bytes=6_000), None, ByteBudget(1 << 20), threading.Event())
    refused = rejection(opener, messages.encode(frame("cam-0", 1)))
    assert refused.reason is DeadLetterReason.OVERSIZE
    assert "png of 32x32x3 takes 6144 bytes to decode, over the limit of 6000" in str(refused)
    assert "frames.decoded_limit_bytes" in str(refused)


def test_every_unreadable_record_has_its_reason() -> None:
    good = frame("cam-0", 1)
    cases = {
        "no value": (None, DeadLetterReason.UNDECODABLE),
        "no msgpack": (b"\xc1 nonsense", DeadLetterReason.UNDECODABLE),
        "damaged image": (messages.encode(_with_data(good, good.data[:-40])), DeadLetterReason.UNDECODABLE),
        "another size": (messages.encode(replace(good, height=SIDE + 1)), DeadLetterReason.UNDECODABLE),
        "another codec": (messages.encode(replace(good, codec=Codec.JPEG)), DeadLetterReason.UNDECODABLE),
        "checksum": (messages.encode(replace(good, checksum=good.checksum ^ 1)), DeadLetterReason.CHECKSUM),
        "next schema": (messages.encode(good).replace(b"\xa1v\x01", b"\xa1v\x02", 1), DeadLetterReason.WRONG_SCHEMA),
        "too large": (messages.encode(_with_data(good, bytes((1 << 20) + 1))), DeadLetterReason.OVERSIZE),
        "far too large": (bytes(3 << 20), DeadLetterReason.OVERSIZE),
        "too many pixels": (messages.encode(replace(good, height=60_000, width=60_000)), DeadLetterReason.OVERSIZE),
    }
    for name, (value, reason) in cases.items():
        assert rejection(reader(), value).reason is reason, name


def _with_data(original: messages.Frame, data: bytes) -> messages.Frame:
    return replace(original, data=data, size_bytes=len(data), checksum=messages.checksum(data))


# Dead letters and defects


def test_a_dead_letter_keeps_key_headers_and_as_much_of_the_value_as_fits() -> None:
    original = record(
        9, b"v" * 200_000, key=b"cam-0", headers=[("frame-id", b"cam-0:1:2"), ("schema", b"frame/1"), ("none", None)]
    )
    outcome = dead_letter(original, DeadLetterReason.CHECKSUM, "bad", 5, topic="dead", limit_bytes=100_000)
    sent = outcome.record
    letter = messages.decode(DeadLetter, sent.value)
    assert (sent.topic, sent.key, letter.key, letter.frame_id) == ("dead", b"cam-0", b"cam-0", "cam-0:1:2")
    assert letter.headers == (("frame-id", b"cam-0:1:2"), ("schema", b"frame/1"), ("none", b""))
    assert len(sent.value) <= 100_000
    assert len(letter.value) > 30_000
    assert "of 200000 bytes are kept" in letter.error


def test_a_header_that_names_no_frame_is_not_taken_for_one() -> None:
    for content in (b"cam-0", b"\xff", b"a:b:c", None):
        outcome = dead_letter(
            record(1, headers=[("frame-id", content)]),
            DeadLetterReason.UNDECODABLE,
            "bad",
            5,
            topic="dead",
            limit_bytes=1 << 20,
        )
        assert messages.decode(DeadLetter, outcome.record.value).frame_id is None


def described(detector: PlainDetector, scores: Any) -> list[messages.DefectRegion]:
    located = verdicts.locate(frame("cam-0", 1, FULL), scores, detector)
    assert located is not None
    return regions.describe(image(FULL), located, *scores.region_inputs.grids, closer=detector.close_ups)


def test_a_rejected_frame_has_regions_and_an_accepted_one_has_none() -> None:
    detector = PlainDetector()
    dark, bright = detector.score([image(20), image(FULL)])
    assert verdicts.locate(frame("cam-0", 1), dark, detector) is None
    both = described(detector, bright)
    assert both
    defect = verdicts.defect(frame("cam-0", 1, FULL), bright, both, detector)
    assert messages.decode(Defect, messages.encode(defect)) == defect
    assert defect.decision is Decision.REJECT
    assert defect.heatmap.dtype == "float16"
    bare = verdicts.defect(frame("cam-0", 1, FULL), bright, [], detector)
    assert (bare.regions, bare.embedding_version) == ((), defect.embedding_version)
    with pytest.raises(ValueError, match="without the inputs of regions"):
        verdicts.locate(frame("cam-0", 1, FULL), replace(bright, region_inputs=None), detector)


def test_a_defect_over_the_limit_loses_its_last_regions_only() -> None:
    detector = PlainDetector()
    (bright,) = detector.score([image(FULL)])
    (region,) = described(detector, bright)[:1]
    many = [replace(region, crop=bytes([i]) * 10_000) for i in range(5)]
    defect = verdicts.defect(frame("cam-0", 1, FULL), bright, many, detector)
    left = messages.decode(Defect, verdicts.encode_within(defect, 35_000)).regions
    assert left == tuple(many[:3])


def test_a_large_heat_map_is_made_coarse_and_fits_half_floats() -> None:
    large = np.full((600, 300), 1e6, np.float32)
    small = verdicts.coarse(large)
    assert small.shape == (128, 64)
    assert np.isfinite(small.astype(np.float16)).all()
    assert verdicts.coarse(np.ones((8, 9), np.float32)).shape == (8, 9)


# Models and metrics


def test_an_actor_with_a_share_of_a_gpu_loads_its_model_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from scorer import load

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(load, "load_detector", lambda path, **options: asked.append({"path": path, **options}))
    load_detector(tmp_path, WorkerSettings(num_gpus=0.5, runtime="torch"))
    load_detector(tmp_path, WorkerSettings(num_cpus=3.5, precision="f32", weights=tmp_path))
    assert asked == [
        {
            "path": tmp_path,
            "runtime": "torch",
            "precision": "auto",
            "device": "cuda",
            "threads": 1,
            "weights": None,
            "batch": 64,
            "device_share": 0.5,
        },
        {
            "path": tmp_path,
            "runtime": "auto",
            "precision": "f32",
            "device": "cpu",
            "threads": 3,
            "weights": tmp_path,
            "batch": 1,
            "device_share": 1.0,
        },
    ]


def test_frames_are_batched_on_a_gpu_only_and_keys_without_effect_are_refused() -> None:
    for options, expected in (
        ({"num_gpus": 0.5}, (2, 64, 0.02)),
        ({"num_gpus": 1, "batch_limit": 16, "latency_cap_ms": 5}, (2, 16, 0.005)),
        ({"num_cpus": 3.5}, (3, 1, 0.0)),
    ):
        worker = WorkerSettings(**options)
        assert (worker.score_threads, worker.active_batch_limit, worker.active_latency_cap_s) == expected
    for name in ("batch_limit", "latency_cap_ms"):
        with pytest.raises(ValueError, match=f"{name} has no effect without a GPU"):
            WorkerSettings(**{name: 4})


def test_a_revocation_must_end_within_the_session() -> None:
    with pytest.raises(ValueError, match=r"revoke_timeout_s 8\.0 is not below session_timeout_s 7.0"):
        WorkerSettings(revoke_timeout_s=8, session_timeout_s=7)


def test_metrics_of_all_actors_are_one_family_with_their_label() -> None:
    text = "# HELP flawline_verdicts_total Verdicts.\n# TYPE flawline_verdicts_total counter\n"
    families = metrics.merged(
        {
            "0": text + 'flawline_verdicts_total{camera="a",decision="accept"} 3.0\n',
            "1": text + 'flawline_verdicts_total{camera="b",decision="accept"} 4.0\n',
        }
    )
    (family,) = families.values()
    assert {(sample.labels["actor"], sample.labels["camera"]): sample.value for sample in family.samples} == {
        ("0", "a"): 3.0,
        ("1", "b"): 4.0,
    }


def test_decoding_refuses_an_image_larger_than_it_announces() -> None:
    # A message may lie about its image's size; the image's own header decides before memory is taken.
    big = imaging.encode(np.zeros((400, 400, 3), np.uint8), Codec.PNG)
    lying = replace(frame("cam-0", 1), data=big, size_bytes=len(big), checksum=messages.checksum(big))
    assert rejection(reader(), messages.encode(lying)).reason is DeadLetterReason.UNDECODABLE


def test_scores_are_counted_by_group_and_begin_anew_with_another_model() -> None:
    def count(**labels: str) -> float | None:
        return telemetry.REGISTRY.get_sample_value("flawline_accepted_score_count", labels)

    def verdict_of(model: str, group: int, decision: Decision = Decision.ACCEPT) -> Verdict:
        return replace(
            factories.verdict(1), model_version=model, group=group, decision=decision, score=0.1, p_value=0.5
        )

    counting, before = metrics.ScoreMetrics(), telemetry.REGISTRY.get_sample_value("flawline_p_value_count") or 0
    for group in (0, 0, metrics.GROUPS_SHOWN, 10_000):
        counting.count(verdict_of("one", group))
    counting.count(verdict_of("one", 0, Decision.REJECT))
    assert (count(model="one", group="0"), count(model="one", group="other")) == (2, 2)
    counting.count(verdict_of("two", 1))
    assert count(model="one", group="0") is None and count(model="two", group="1") == 1
    assert telemetry.REGISTRY.get_sample_value("flawline_p_value_count") == before + 6


def test_the_supervisor_shows_its_own_process_and_a_takt_only_where_one_is_set() -> None:
    def names(takt_s: float | None) -> set[tuple[str, str]]:
        families = metrics.ActorCollector(dict, takt_s).collect()
        return {(sample.name, sample.labels.get("actor", "")) for family in families for sample in family.samples}

    assert ("flawline_process_resident_memory_bytes", "supervisor") in names(None)
    assert ("flawline_takt_seconds", "supervisor") in names(2.0)
    assert "flawline_takt_seconds" not in {name for name, _ in names(None)}
