"""The lane of a camera, with a client whose answers the tests choose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka import errors
from kafka.future import Future

from flawline.byte_budget import ByteBudget
from flawline.clock import Monotonic, monotonic, utc_ns
from flawline.messages import DropReason, Frame
from flawline.settings.producers import CameraBase, ProducerSettings
from flawline.settings.tree import FrameSettings
from producers import backlog, camera_lane
from producers.camera import Capture
from producers.camera_lane import CameraLane
from producers.journal import Journal
from producers.overload import Outlook
from producers.spool import DiskFailed, Quota, Record, Spool
from tests.producers.doubles import FakeClock, capture, picture, until


class AnsweringClient:
    """Is a Kafka client: holds frames until `answer`, or answers with the result of `at_once`."""

    def __init__(self) -> None:
        self.sent: list[Frame] = []
        self.held: list[tuple[Frame, Future]] = []
        self.delivered: list[int] = []
        self.at_once: Callable[[Frame], BaseException | None] | None = None
        self.most_held_bytes = 0
        self.renewals = 0
        self.is_first_report = True
        self.lock = threading.Lock()

    def send(self, frame: Frame) -> tuple[Future, AnsweringClient]:
        self.sent.append(frame)
        future = Future()
        with self.lock:
            if self.at_once is None:
                self.held.append((frame, future))
                self.most_held_bytes = max(self.most_held_bytes, sum(waiting.size_bytes for waiting, _ in self.held))
                return future, self
        self._settle(frame, future, self.at_once(frame))
        return future, self

    def renew(self, _: Any) -> bool:
        self.renewals += 1
        return self.is_first_report

    def answer(self, *, error: BaseException | None = None, index: int = 0) -> int:
        frame, future = self.held.pop(index)
        self._settle(frame, future, error)
        return frame.sequence

    def answer_all(self) -> None:
        """Acknowledge the held frames in order, and every later frame at once."""
        while True:
            with self.lock:
                if not self.held:
                    self.at_once = lambda _: None
                    return
            self.answer()

    def fail_all(self, error: BaseException) -> None:
        """Refuse the held frames in order."""
        for _ in range(len(self.held)):
            self.answer(error=error)

    def _settle(self, frame: Frame, future: Future, error: BaseException | None) -> None:
        if error is None:
            self.delivered.append(frame.sequence)
            future.success(None)
        else:
            future.failure(error)


class SlowSpool(Spool):
    """Is a spool on a disk that hangs: the operations that `hang` names wait until `go_on`."""

    def __init__(self, folder: Path, quota: Quota) -> None:
        super().__init__(folder, quota)
        self._hanging: frozenset[str] = frozenset()
        self._is_over = threading.Event()
        self.waits = threading.Event()

    def hang(self, *operations: str) -> None:
        self._hanging = frozenset(operations)

    def go_on(self) -> None:
        self._hanging = frozenset()
        self._is_over.set()

    def _wait(self, operation: str) -> None:
        if operation in self._hanging:
            self.waits.set()
            assert self._is_over.wait(60)

    def append(self, record: Record, *, force: bool = False) -> None:
        self._wait("append")
        super().append(record, force=force)

    def next(self) -> Record | None:
        self._wait("next")
        return super().next()

    def confirm(self, epoch: int, sequence: int) -> None:
        self._wait("confirm")
        super().confirm(epoch, sequence)


class Rig:
    """Holds a lane and its answering client."""

    def __init__(
        self,
        folder: Path,
        camera: CameraBase,
        limit_bytes: int = 1 << 20,
        spool: type[Spool] = Spool,
        clock: Monotonic = monotonic,
        **options: Any,
    ) -> None:
        self.client = AnsweringClient()
        producer = ProducerSettings(**{"in_flight_limit_bytes": 1 << 20, "away_after_s": 60, **options})
        self.budget = ByteBudget(producer.in_flight_limit_bytes)
        self.spool = spool(folder / camera.name, Quota(producer.spool_limit_bytes))
        self.lane = CameraLane(
            camera, 1, self.spool, self.budget, producer, FrameSettings(limit_bytes=limit_bytes), "frames",
            self.client.send, self.client.renew, clock,
        )  # fmt: skip
        self.lane.start()
        self.closed = False

    def capture(self, count: int) -> None:
        for index in range(count):
            self.lane.publish(capture(index))

    def dropped(self) -> dict[int, DropReason]:
        """Return every dropped sequence and its reason, from the ledger entries."""
        reasons = {}
        for _, entry in self.lane.ledger_entries():
            for span in entry.dropped:
                reasons |= dict.fromkeys(range(span.first, span.last + 1), span.reason)
        return reasons

    def wait_idle(self) -> None:
        until(lambda: self.lane.idle, what="lane idle")

    def kill(self) -> None:
        """End without putting anything away, as a killed process does."""
        self.closed = True
        self.lane.stop(5)
        self.lane.close()

    def close(self) -> int:
        """Stop as the publisher does, at the first call only; return the number of frames on disk."""
        if self.closed:
            return 0
        self.closed = True
        self.lane.stop(5)
        left = self.lane.put_away()
        self.lane.close()
        return left


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "RETRY_PAUSE_S", 0.02)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(when_full: str = "spool", **options: Any) -> Rig:
        made.append(Rig(tmp_path, CameraBase(name="cam", codec="raw", when_full=when_full), **options))
        return made[-1]

    yield make
    for line in made:
        line.close()


FRAME_BYTES = 48 * 64 * 3  # raw, so every frame has the same size


def test_frames_over_the_byte_limit_go_to_disk_and_are_delivered_in_order(rig: Callable[..., Rig]) -> None:
    line = rig()
    line.capture(300)  # 2.6 MiB with a limit of 1 MiB
    until(lambda: sum(frame.size_bytes for frame, _ in line.client.held) > (1 << 20) - FRAME_BYTES)
    assert line.budget.held_bytes <= 1 << 20
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == list(range(300))
    assert line.client.most_held_bytes <= 1 << 20
    assert line.budget.held_bytes == 0


def test_new_frames_go_behind_a_backlog_until_it_is_delivered(rig: Callable[..., Rig]) -> None:
    line = rig()
    line.capture(150)
    until(lambda: len(line.client.held) > 100)
    for _ in range(20):
        line.client.answer()
    line.capture(50)  # there is room in memory again, but older frames wait on disk
    line.client.answer_all()
    line.wait_idle()
    line.capture(5)
    line.wait_idle()
    assert line.client.delivered == list(range(205))


def test_drop_policy_drops_and_counts_frames_without_room(rig: Callable[..., Rig]) -> None:
    line = rig("drop")
    line.capture(120)
    in_memory = (1 << 20) // FRAME_BYTES
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == list(range(in_memory))
    assert line.dropped() == dict.fromkeys(range(in_memory, 120), DropReason.IN_FLIGHT_FULL)


def test_wait_policy_blocks_the_source_at_the_byte_limit_and_writes_nothing_to_disk(
    rig: Callable[..., Rig], tmp_path: Path
) -> None:
    line = rig("wait")
    source = threading.Thread(target=line.capture, args=(150,))
    source.start()
    in_memory = (1 << 20) // FRAME_BYTES
    until(lambda: len(line.client.held) == in_memory)
    assert source.is_alive()
    assert list(tmp_path.rglob("*.seg")) == []
    line.client.answer_all()
    source.join(20)
    line.wait_idle()
    assert line.client.delivered == list(range(150))


def test_frame_is_on_disk_before_its_capture_counts_with_durability_disk(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[str] = []
    for kind, name in ((Spool, "append"), (Spool, "sync"), (Journal, "count")):
        monkeypatch.setattr(kind, name, _noting(steps, name, getattr(kind, name)))
    line = rig(durability="disk")
    line.capture(2)
    assert steps == ["append", "sync", "count"] * 2
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == [0, 1]
    assert line.lane.owes_entries
    assert "frames go to disk" not in caplog.text, "the broker is not away"


class FailingDisk:
    """Makes spools refuse frames while `is_full`, or as long as `answers` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self.answers: Iterator[bool] = iter(())
        append = Spool.append

        def failing(spool: Spool, record: Record, **options: Any) -> None:
            if next(self.answers, self.is_full):
                raise DiskFailed("no space left")
            append(spool, record, **options)

        monkeypatch.setattr(Spool, "append", failing)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    return FailingDisk(monkeypatch)


@pytest.mark.parametrize("durability", ["memory", "disk"])
@pytest.mark.parametrize("is_stopped", [False, True], ids=["goes on", "is started again"])
def test_disk_that_fails_again_and_again_while_the_broker_is_away_costs_no_frame_and_no_order(
    rig: Callable[..., Rig], disk: FailingDisk, durability: str, is_stopped: bool
) -> None:
    line = rig(durability=durability)
    line.client.at_once = lambda _: errors.KafkaTimeoutError("away")
    for turn in range(5):
        disk.is_full = turn % 2 == 0
        line.capture(5)
    disk.is_full = False
    assert line.dropped() == {}
    if is_stopped:
        assert line.close() == 25
        line = rig(durability=durability)
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == list(range(25))
    assert line.budget.held_bytes == 0


@pytest.mark.parametrize("answer", ["none", "delivered", "failed"])
@pytest.mark.parametrize("is_killed", [False, True], ids=["goes on", "is killed"])
def test_frames_that_wait_in_memory_for_a_full_disk_are_written_before_the_next_one(
    rig: Callable[..., Rig], disk: FailingDisk, answer: str, is_killed: bool
) -> None:
    line = rig(durability="disk")
    disk.is_full = True
    line.capture(3)
    until(lambda: line.client.held, what="a frame in flight that is only in memory")
    disk.is_full = False
    line.capture(1)
    if answer == "delivered":
        line.client.answer()
    elif answer == "failed":
        line.client.fail_all(errors.KafkaTimeoutError("away"))
    if is_killed:
        line.kill()
        delivered_before, line = set(line.client.delivered), rig(durability="disk")
        line.client.answer_all()
        line.wait_idle()
        assert line.client.delivered in (list(range(4)), [n for n in range(4) if n not in delivered_before])
    else:
        line.client.answer_all()
        line.wait_idle()
        assert line.client.delivered == list(range(4))
    assert line.dropped() == {}
    assert line.budget.held_bytes == 0


def test_disk_that_fails_while_it_takes_over_what_memory_holds_changes_no_order(
    rig: Callable[..., Rig], disk: FailingDisk
) -> None:
    line = rig(durability="disk")
    disk.is_full = True
    line.capture(3)
    until(lambda: line.client.held, what="a frame in flight that is only in memory")
    disk.answers = iter([False, False])  # the frame in flight and the one behind it
    line.capture(1)
    line.client.fail_all(errors.KafkaTimeoutError("away"))
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == [0, 1, 2, 3]
    assert (line.dropped(), line.budget.held_bytes) == ({}, 0)


def test_frame_that_is_answered_while_the_disk_takes_it_over_is_not_sent_again(tmp_path: Path) -> None:
    class FullSpool(SlowSpool):
        is_full = True

        def append(self, record: Record, *, force: bool = False) -> None:
            if self.is_full:
                raise DiskFailed("no space left")
            super().append(record, force=force)

    line = Rig(tmp_path, CameraBase(name="cam", codec="raw", when_full="spool"), spool=FullSpool, durability="disk")
    assert isinstance(line.spool, FullSpool)
    line.capture(2)
    until(lambda: line.client.held, what="a frame in flight that is only in memory")
    line.spool.is_full = False
    line.spool.hang("append")
    source = threading.Thread(target=line.capture, args=(1,))
    source.start()
    assert line.spool.waits.wait(20)
    assert line.client.answer() == 0
    line.spool.go_on()
    source.join(20)
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == [0, 1, 2]
    assert (line.close(), line.budget.held_bytes) == (0, 0)


def test_frame_in_flight_that_the_disk_took_over_is_not_given_up_as_one_of_the_oldest(
    rig: Callable[..., Rig], disk: FailingDisk
) -> None:
    class SmallSegments(Spool):
        def __init__(self, folder: Path, quota: Quota) -> None:
            super().__init__(folder, quota, segment_bytes=5 * FRAME_BYTES)

    full = rig(spool=SmallSegments, spool_limit_bytes=20 * FRAME_BYTES, overload="oldest-first", durability="disk")
    disk.is_full = True
    full.capture(1)
    until(lambda: full.client.held, what="a frame in flight that is only in memory")
    disk.is_full = False
    full.capture(40)
    dropped = full.dropped()
    assert dropped
    full.client.answer_all()
    full.wait_idle()
    assert full.client.delivered == [sequence for sequence in range(41) if sequence not in dropped]


def test_source_that_waits_is_held_back_by_a_disk_that_fails_and_none_of_its_frames_counts(
    rig: Callable[..., Rig], disk: FailingDisk
) -> None:
    line = rig("wait", durability="disk")
    line.client.at_once = lambda _: errors.KafkaTimeoutError("away")
    line.capture(2)
    disk.is_full = True
    source = threading.Thread(target=line.capture, args=(3,))
    source.start()
    source.join(0.3)
    assert source.is_alive()
    ((_, entry),) = line.lane.ledger_entries()
    assert (entry.captured, entry.dropped) == (2, ())
    disk.is_full = False
    source.join(20)
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == list(range(5))
    assert (line.dropped(), line.budget.held_bytes) == ({}, 0)


@pytest.mark.parametrize("failures", [{2, 3}, {0, 1, 2, 3, 4, 5}, {4}])
def test_disk_that_fails_for_a_while_costs_no_frame_while_memory_has_room(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, failures: set[int]
) -> None:
    line = rig(durability="disk")
    append = Spool.append

    def failing(spool: Spool, record: Record, **options: Any) -> None:
        if record.sequence in failures:
            failures.discard(record.sequence)  # so that a second attempt succeeds
            raise DiskFailed("no space left")
        append(spool, record, **options)

    monkeypatch.setattr(Spool, "append", failing)
    line.capture(6)
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == [0, 1, 2, 3, 4, 5]
    assert line.dropped() == {}
    assert line.budget.held_bytes == 0


def _noting(steps: list[str], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any, **options: Any) -> Any:
        steps.append(name)
        return method(*arguments, **options)

    return noted


def test_full_spool_drops_the_newest_frames_as_spool_full(rig: Callable[..., Rig]) -> None:
    line = rig(spool_limit_bytes=20 * FRAME_BYTES)
    line.capture(200)
    dropped = line.dropped()
    first_dropped = 200 - len(dropped)
    assert dropped == dict.fromkeys(range(first_dropped, 200), DropReason.SPOOL_FULL)
    assert 100 < first_dropped < 200
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == list(range(first_dropped))


def test_full_spool_gives_up_the_oldest_frames_that_are_not_in_flight_when_the_policy_says_so(
    rig: Callable[..., Rig],
) -> None:
    class SmallSegments(Spool):
        def __init__(self, folder: Path, quota: Quota) -> None:
            super().__init__(folder, quota, segment_bytes=10 * FRAME_BYTES)

    full = rig(spool=SmallSegments, spool_limit_bytes=100 * FRAME_BYTES, overload="oldest-first", durability="disk")
    full.capture(300)
    dropped = full.dropped()
    assert set(dropped.values()) == {DropReason.OVERLOAD_OLDEST}
    full.client.answer_all()
    full.wait_idle()
    assert full.client.delivered == [sequence for sequence in range(300) if sequence not in dropped]
    assert full.client.delivered[-30:] == list(range(270, 300)), "the newest"


@pytest.mark.system
@pytest.mark.parametrize("limit_frames", [100_000, 5_000], ids=["inside the cap", "beyond the cap"])
def test_broker_that_is_away_for_two_hours_costs_no_frame_inside_the_cap_and_the_accounts_stay_small(
    rig: Callable[..., Rig], tmp_path: Path, limit_frames: int
) -> None:
    clock = FakeClock()
    limit_bytes = limit_frames * (FRAME_BYTES + 400)  # a message is a little more than its image
    line = rig(spool_limit_bytes=limit_bytes, replay_limit_bytes_per_s=32 << 20, clock=clock, away_after_s=3)
    line.client.at_once = lambda _: errors.KafkaTimeoutError("away")
    image, captures = picture(), 2 * 3600
    for sequence in range(captures):
        line.lane.publish(Capture(utc_ns(), pixels=image))
        clock.advance(1)
        if sequence % 20 == 0:  # a broker that is away takes no account of the camera either
            for account, _ in line.lane.ledger_entries():
                account.failed()
    assert line.budget.held_bytes <= line.budget.limit_bytes
    assert sum(file.stat().st_size for file in line.spool.folder.glob("journal.db*")) < 5 << 20
    assert sum(file.stat().st_size for file in line.spool.folder.glob("*.seg")) <= limit_bytes
    line.client.at_once = lambda _: None

    def is_delivered() -> bool:
        clock.advance(0.1)  # the rate of the replay is bound to the clock
        return line.lane.idle

    until(is_delivered, timeout_s=120, what="the replay")
    dropped = line.dropped()
    assert line.client.delivered == [sequence for sequence in range(captures) if sequence not in dropped]
    assert set(dropped.values()) == (set() if limit_frames > captures else {DropReason.SPOOL_FULL})
    assert not dropped or captures - len(dropped) >= limit_frames


@pytest.mark.parametrize("durability", ["memory", "disk"])
def test_frame_that_would_be_late_is_given_up_before_it_is_sent(rig: Callable[..., Rig], durability: str) -> None:
    late = rig(overload="oldest-first", durability=durability)
    late.lane.outlook = Outlook(next_offset=0, lag_s=0, per_s=None, within_s=60, seen_at_s=monotonic())
    late.client.at_once = lambda _: None
    for age_s in (300, 100, 2, 0):
        late.lane.publish(Capture(utc_ns() - age_s * 1_000_000_000, pixels=picture()))
    late.wait_idle()
    assert late.client.delivered == [2, 3]
    assert late.dropped() == dict.fromkeys(range(2), DropReason.OVERLOAD_OLDEST)
    assert late.lane.given_up_late == 2


def test_refused_write_permission_drops_with_its_reason_and_is_logged_once(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    line = rig()
    line.client.at_once = lambda _: errors.TopicAuthorizationFailedError("frames")
    line.capture(5)
    line.wait_idle()
    assert line.dropped() == dict.fromkeys(range(5), DropReason.NOT_AUTHORISED)
    assert caplog.text.count("may not write to the topic frames") == 1
    line.client.at_once = lambda _: None  # granted meanwhile
    line.capture(1)
    line.wait_idle()
    assert line.client.delivered == [5]


def test_refusal_at_cluster_level_asks_for_a_new_client(rig: Callable[..., Rig]) -> None:
    line = rig()
    line.client.at_once = lambda _: errors.ClusterAuthorizationFailedError("no idempotent writes")
    line.capture(1)
    line.wait_idle()
    assert line.dropped() == {0: DropReason.NOT_AUTHORISED}
    assert line.client.renewals == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.MessageSizeTooLargeError("too large"), DropReason.OVERSIZE),
        (errors.RecordListTooLargeError("too large"), DropReason.OVERSIZE),
        (errors.InvalidRecordError("no"), DropReason.BROKER_REFUSED),
        (errors.UnknownError("again and again"), DropReason.BROKER_REFUSED),
    ],
)
def test_frame_that_the_broker_refuses_is_dropped_and_the_next_is_delivered(
    rig: Callable[..., Rig], error: BaseException, reason: DropReason
) -> None:
    line = rig()
    line.client.at_once = lambda frame: error if frame.sequence == 1 else None
    line.capture(3)
    line.wait_idle()
    assert line.dropped() == {1: reason}
    assert sorted(line.client.delivered) == [0, 2]


def test_frames_that_fail_only_with_the_error_of_another_are_sent_again(rig: Callable[..., Rig]) -> None:
    line = rig()
    line.capture(3)
    until(lambda: len(line.client.held) == 3)
    error = errors.MessageSizeTooLargeError("too large")
    line.client.answer(error=error)
    line.client.is_first_report = False  # the client broke with the first frame, and fails all frames that it holds
    line.client.answer(error=error)
    line.client.answer(error=error)
    line.client.answer_all()
    line.wait_idle()
    assert line.client.delivered == [1, 2]
    assert line.dropped() == {0: DropReason.OVERSIZE}


def test_refusal_of_another_topic_costs_no_frame(rig: Callable[..., Rig]) -> None:
    line = rig()
    refusals = iter([errors.TopicAuthorizationFailedError("ledger")])
    line.client.at_once = lambda _: next(refusals, None)
    line.capture(2)
    line.wait_idle()
    assert (sorted(line.client.delivered), line.dropped()) == ([0, 1], {})


def test_broker_that_is_away_costs_no_frame_after_any_number_of_failures(rig: Callable[..., Rig]) -> None:
    line = rig()
    failures = iter([errors.KafkaTimeoutError("away")] * 20)
    line.client.at_once = lambda _: next(failures, None)
    line.capture(3)
    line.wait_idle()
    assert line.client.delivered == [0, 1, 2]
    assert line.dropped() == {}


def test_failed_frame_is_sent_again_before_the_next_and_a_delivered_one_is_not(rig: Callable[..., Rig]) -> None:
    line = rig()
    line.capture(3)
    until(lambda: len(line.client.held) == 3)
    line.client.answer(error=errors.OutOfOrderSequenceNumberError("the broker lost its log"))  # 0
    line.client.answer()  # 1
    line.client.answer(error=errors.OutOfOrderSequenceNumberError("the broker lost its log"))  # 2
    line.client.answer_all()
    line.capture(1)
    line.wait_idle()
    assert line.client.delivered == [1, 0, 2, 3]
    assert line.client.renewals == 2


def test_stop_puts_memory_before_the_spool_and_the_next_start_delivers_all_in_order(
    rig: Callable[..., Rig], tmp_path: Path
) -> None:
    first = rig()
    first.capture(150)
    until(lambda: len(first.client.held) > 100)
    assert first.close() == 150
    second = Rig(tmp_path, CameraBase(name="cam", codec="raw"))
    second.client.answer_all()
    second.capture(2)
    second.wait_idle()
    assert second.client.delivered == [*range(150), 0, 1]
    assert [frame.epoch for frame in second.client.sent] == [first.lane.epoch] * 150 + [second.lane.epoch] * 2
    entries = {entry.epoch: entry for _, entry in second.lane.ledger_entries()}
    assert (entries[first.lane.epoch].captured, entries[first.lane.epoch].closed) == (150, True)
    assert (entries[second.lane.epoch].captured, entries[second.lane.epoch].closed) == (2, False)
    second.close()


def test_stop_without_a_spool_drops_as_stopped(rig: Callable[..., Rig]) -> None:
    line = rig("wait", spool_limit_bytes=0)
    line.capture(3)
    until(lambda: len(line.client.held) == 3)
    line.lane.stop(5)
    assert line.lane.put_away() == 0
    assert line.dropped() == dict.fromkeys(range(3), DropReason.STOPPED)


def test_damaged_spool_record_is_dropped_with_its_reason(rig: Callable[..., Rig], tmp_path: Path) -> None:
    first = rig()
    first.capture(3)
    first.close()
    (segment,) = tmp_path.rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1  # within the payload of the middle record
    segment.write_bytes(data)
    second = Rig(tmp_path, CameraBase(name="cam", codec="raw"))
    second.client.answer_all()
    second.wait_idle()
    assert second.client.delivered == [0, 2]
    assert second.dropped() == {1: DropReason.SPOOL_DAMAGED}
    second.close()


def test_capture_without_an_image_and_one_too_large_are_dropped_and_keep_their_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = Rig(tmp_path, CameraBase(name="cam", codec="raw"), limit_bytes=FRAME_BYTES)
    line.client.at_once = lambda _: None
    line.lane.publish(Capture(1, data=b"no image", replay_key="bad.jpg"))
    line.capture(1)
    line.lane.publish(Capture(1, pixels=capture().pixels.repeat(2, axis=0)))
    line.wait_idle()
    assert line.client.delivered == [1]
    assert line.dropped() == {0: DropReason.ENCODING_FAILED, 2: DropReason.OVERSIZE}
    assert "bad.jpg" in caplog.text
    line.close()


@pytest.mark.parametrize("operation", ["append", "next", "confirm"])
def test_disk_that_hangs_stops_no_answer_of_the_client_and_changes_no_order(tmp_path: Path, operation: str) -> None:
    slow = Rig(tmp_path, CameraBase(name="slow", codec="raw", when_full="spool"), spool=SlowSpool)
    fast = Rig(tmp_path, CameraBase(name="fast", codec="raw", when_full="spool"))
    assert isinstance(slow.spool, SlowSpool)
    in_memory = (1 << 20) // FRAME_BYTES
    source = threading.Thread(target=slow.capture, args=(in_memory + 20,))
    if operation == "append":
        slow.spool.hang("append")
    source.start()
    until(lambda: len(slow.client.held) == in_memory)
    if operation == "append":
        assert slow.spool.waits.wait(20)
    else:
        source.join(20)
        slow.spool.hang(operation)
    fast.capture(3)
    until(lambda: len(fast.client.held) == 3)

    def answer_both() -> None:  # the client has one thread for the answers of all cameras
        for _ in range(in_memory + (5 if operation == "confirm" else 0)):
            until(lambda: slow.client.held)
            slow.client.answer()
        for _ in range(3):
            fast.client.answer()

    answers = threading.Thread(target=answer_both, daemon=True)
    answers.start()
    fast.wait_idle()
    assert slow.spool.waits.wait(20)
    assert not slow.lane.idle
    fast.client.answer_all()
    fast.capture(3)
    fast.wait_idle()
    assert fast.client.delivered == list(range(6))

    slow.spool.go_on()
    answers.join(20)
    slow.client.answer_all()
    source.join(20)
    slow.wait_idle()
    assert slow.client.delivered == list(range(in_memory + 20))
    assert (slow.dropped(), slow.budget.held_bytes) == ({}, 0)
    assert slow.close() == fast.close() == 0


def test_stop_while_a_frame_is_being_written_keeps_every_frame_in_order(tmp_path: Path) -> None:
    first = Rig(tmp_path, CameraBase(name="cam", codec="raw", when_full="spool"), spool=SlowSpool)
    assert isinstance(first.spool, SlowSpool)
    in_memory = (1 << 20) // FRAME_BYTES
    first.spool.hang("append")
    source = threading.Thread(target=first.capture, args=(in_memory + 1,))
    source.start()
    assert first.spool.waits.wait(20)
    stopping = threading.Thread(target=first.lane.stop, args=(5,))
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive(), "a stop waits for the disk before it puts frames away"
    (entry,) = [entry for _, entry in first.lane.ledger_entries()]
    assert (entry.captured, entry.closed) == (in_memory + 1, False)
    first.spool.go_on()
    source.join(20)
    assert first.close() == in_memory + 1
    second = Rig(tmp_path, CameraBase(name="cam", codec="raw"))
    second.client.answer_all()
    second.wait_idle()
    assert second.client.delivered == list(range(in_memory + 1))
    second.close()


def test_answer_while_frames_are_put_away_ends_its_capture_once(tmp_path: Path) -> None:
    first = Rig(tmp_path, CameraBase(name="cam", codec="raw", when_full="spool"), spool=SlowSpool)
    assert isinstance(first.spool, SlowSpool)
    in_memory = (1 << 20) // FRAME_BYTES
    first.capture(in_memory + 4)
    until(lambda: len(first.client.held) == in_memory)
    for _ in range(in_memory):
        first.client.answer()
    until(lambda: len(first.client.held) == 4, what="frames that were read from disk")
    first.lane.stop(5)
    first.client.answer()
    first.spool.hang("confirm")
    putting_away = threading.Thread(target=first.lane.put_away)
    putting_away.start()
    assert first.spool.waits.wait(20)
    first.client.answer(error=errors.InvalidRecordError("no"))
    first.spool.go_on()
    putting_away.join(20)
    dropped = first.dropped()
    first.lane.close()
    second = Rig(tmp_path, CameraBase(name="cam", codec="raw"))
    second.client.answer_all()
    second.wait_idle()
    ended = [*first.client.delivered, *dropped, *second.client.delivered]
    assert sorted(ended) == list(range(in_memory + 4))
    second.close()


ANSWERS = {
    "ok": None,
    "away": errors.KafkaTimeoutError("away"),
    "lost": errors.UnknownProducerIdError("lost"),
    "refused": errors.InvalidRecordError("no"),
    "odd": errors.UnknownError("odd"),
}


@pytest.mark.system
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answers=st.lists(st.sampled_from(sorted(ANSWERS)), max_size=60),
    captures=st.integers(1, 160),
    durability=st.sampled_from(["memory", "disk"]),
    disk_fails=st.lists(st.booleans(), max_size=60),
    policy=st.sampled_from(["spool", "wait"]),
)
def test_every_capture_is_delivered_or_dropped_once_after_any_answers_of_the_broker_and_of_the_disk(
    tmp_path_factory: pytest.TempPathFactory,
    answers: list[str],
    captures: int,
    durability: str,
    disk_fails: list[bool],
    policy: str,
) -> None:
    camera = CameraBase(name="cam", codec="raw", when_full=policy)
    with pytest.MonkeyPatch.context() as monkeypatch:
        FailingDisk(monkeypatch).answers = iter(disk_fails)
        monkeypatch.setattr(camera_lane, "DISK_PAUSE_S", 0.01)
        line = Rig(tmp_path_factory.mktemp("lane"), camera, durability=durability)
        names = iter(answers)
        line.client.at_once = lambda _: ANSWERS[next(names, "ok")]
        line.capture(captures)
        line.wait_idle()
    line.lane.finish()
    assert line.client.delivered == sorted(set(line.client.delivered))
    dropped = line.dropped()
    assert sorted([*line.client.delivered, *dropped]) == list(range(captures))
    assert set(dropped.values()) <= {DropReason.BROKER_REFUSED}
    assert line.budget.held_bytes == 0
    line.close()
