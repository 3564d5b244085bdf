"""The policies of exactly-once delivery, without a broker: how far a partition is, and what follows a failure."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from kafka.errors import (
    CommitFailedError,
    FencedInstanceIdError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    TopicAuthorizationFailedError,
    UnknownProducerIdError,
)
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition

from flawline.byte_budget import ByteBudget
from flawline.checked_producer import CheckedFuture
from flawline.errors import FlawlineError
from flawline.messages import Decision
from tests.workers.line import wait_until
from workers.expiry import with_last_frames
from workers.lane import Job, Lane, Outcome, Outgoing
from workers.standing import Standing, standing_of
from workers.suspects import Note
from workers.transactions import TransactionalSender

PARTITION = TopicPartition("frames", 0)
VERDICT = Outcome(Outgoing("verdicts", 0, b"cam-0", b"verdict", []), "cam-0", 0, decision=Decision.ACCEPT)
REJECT = Outcome(Outgoing("verdicts", 0, b"cam-0", b"reject", []), "cam-0", 0, Decision.REJECT, defect_follows=True)
DEFECT = Outcome(Outgoing("defects", 0, b"cam-0", b"defect", []), "cam-0", 0)


@dataclass
class Record:
    offset: int
    value: bytes = b"value"
    timestamp: int = 0


# How far a partition is


@pytest.mark.parametrize(
    "standing", [Standing(7, 7), Standing(7, 9, (7,)), Standing(100, 400, (100, 250, 399)), Standing(0, 3, (0,))]
)
def test_a_standing_is_read_as_it_was_written_beside_note_and_last_frames(standing: Standing) -> None:
    note = Note(begun=410, owner="host/1/2.0")
    metadata = with_last_frames(standing.beside(note.text()), {"cam-0": (1, 2)})
    assert standing_of(standing.offset, metadata) == standing
    assert Note.of(metadata) == note


@pytest.mark.parametrize("text", [None, "", "x", "[]", '{"decided":"x"}', '{"owed":7}'])
def test_metadata_of_another_program_says_that_nothing_is_decided(text: str | None) -> None:
    assert standing_of(5, text) == Standing(5, 5)


def test_two_hundred_and_fifty_six_owed_frames_fit_beside_a_commit() -> None:
    owed = tuple(range(10**9, 10**9 + 256 * 500, 500))
    assert len(Standing(owed[0], owed[-1] + 1, owed).beside(Note(begun=10**9, owner="h" * 64).text())) < 4096


def lane_with(count: int, send: Callable[[Job, Outcome], None] = lambda job, outcome: None) -> tuple[Lane, list[Job]]:
    lane = Lane(PARTITION, ByteBudget(1 << 20), send)
    jobs = [lane.admit(Record(offset), 0) for offset in range(count)]
    assert all(lane.begin(job) for job in jobs)
    return lane, jobs


def test_a_standing_counts_outcomes_that_are_on_their_way_and_changes_nothing() -> None:
    lane, (first, reject, last) = lane_with(3)
    lane.complete(first, VERDICT)
    lane.complete(reject, REJECT)
    lane.complete(last, VERDICT)
    assert lane.standing(0, Counter()) == Standing(0, 0)
    assert lane.standing(0, Counter([first])) == Standing(1, 1)
    assert lane.standing(0, Counter([first, reject, last])) == Standing(1, 3, (1,))
    assert lane.standing(0, Counter([first, reject, last, reject])) == Standing(3, 3)
    assert lane.standing(0, Counter()) == Standing(0, 0)
    for job in (first, reject, last):
        lane.acknowledge(job)
    assert lane.standing(0, Counter()) == Standing(1, 3, (1,))
    lane.add_defect(reject, DEFECT)
    assert lane.standing(0, Counter([reject])) == Standing(3, 3)


def test_a_lane_that_goes_on_keeps_what_is_owed_until_it_is_there() -> None:
    lane = Lane(PARTITION, ByteBudget(1 << 20), lambda job, outcome: None)
    lane.resume(Standing(4, 8, (4, 6)))
    assert [offset for offset in range(4, 10) if lane.is_finished(offset)] == [5, 7]
    assert lane.standing(4, Counter()) == Standing(4, 8, (4, 6))
    first = lane.admit(Record(4), 0)
    lane.begin(first)
    lane.pass_over(5)
    assert lane.standing(4, Counter()) == Standing(4, 8, (4, 6))
    lane.complete_decided(first, defect_follows=True)
    lane.add_defect(first, DEFECT)
    assert lane.standing(4, Counter([first])) == Standing(6, 8, (6,))
    lane.acknowledge(first)
    second = lane.admit(Record(6), 0)
    lane.begin(second)
    lane.complete_decided(second, defect_follows=False)
    lane.pass_over(7)
    assert lane.standing(4, Counter()) == Standing(8, 8)
    assert lane.standing(4, Counter([lane.admit(Record(8), 0)])) == Standing(9, 9)


def test_a_defect_leaves_after_its_verdict_though_it_is_ready_before() -> None:
    sent: list[tuple[int, str]] = []
    lane, (first, second) = lane_with(2, lambda job, outcome: sent.append((job.offset, outcome.record.topic)))
    lane.complete(second, REJECT)
    lane.add_defect(second, DEFECT)
    assert sent == []
    lane.complete(first, VERDICT)
    assert sent == [(0, "verdicts"), (1, "verdicts"), (1, "defects")]


# What follows a failure


class Answer:
    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def wait(self, timeout_ms: int) -> bool:
        if self._error:
            raise self._error
        return True


class Client:
    """Keeps what each transaction held; a test makes a step of the next one fail."""

    def __init__(self) -> None:
        self.committed: list[tuple[list[bytes], dict[Any, OffsetAndMetadata]]] = []
        self.aborted = 0
        self.fails: dict[str, Exception] = {}
        self.was_closed = False
        self._values: list[bytes] = []
        self._offsets: dict[Any, OffsetAndMetadata] = {}

    def begin(self) -> None:
        self._values, self._offsets = [], {}

    def send(self, topic: str, *, value: bytes, **_: Any) -> CheckedFuture:
        future = CheckedFuture()
        self._values.append(value)
        if (error := self.fails.get(value.decode())) is not None:
            del self.fails[value.decode()]
            future.failure(error)
        else:
            future.success(None)
        return future

    def add_offsets(self, offsets: dict[Any, OffsetAndMetadata], group: ConsumerGroupMetadata) -> Answer:
        self._offsets = dict(offsets)
        return Answer(self.fails.pop("offsets", None))

    def ask_commit(self) -> Answer:
        error = self.fails.pop("commit", None)
        if error is None:
            self.committed.append((self._values, self._offsets))
        return Answer(error)

    def ask_abort(self) -> Answer:
        self.aborted += 1
        return Answer(self.fails.pop("abort", None))

    def close(self, timeout: float) -> None:
        self.was_closed = True


class Case:
    """A lane whose outcomes leave in transactions of `clients`, in this order."""

    def __init__(self, *clients: Client, is_replaced: bool = False) -> None:
        self.clients = clients
        self.generation = 1
        self.remembered: list[OffsetAndMetadata] = []
        self.lost: list[Lane] = []
        self.refused: list[tuple[Job, str]] = []
        self.fatal: list[Exception] = []
        self.now = 100.0
        fresh = iter(clients)
        self.sender = TransactionalSender(
            lambda: next(fresh),
            ByteBudget(1 << 20),
            on_lost=self.lost.append,
            on_refused=lambda job, outcome, error: self.refused.append((job, outcome.record.topic)),
            on_fatal=self.fatal.append,
            restore=lambda: False,
            patience_s=60.0,
            now=lambda: self.now,
            place=lambda: self,
            is_replaced=lambda: is_replaced,
            commit_interval_s=0.05,
            timeout_s=10.0,
            period_s=0.0,
        )
        self.lane, self.jobs = lane_with(3, self.sender.send)

    def group(self) -> ConsumerGroupMetadata:
        return ConsumerGroupMetadata("workers", self.generation, "me")

    def offsets_with(self, outcomes: Counter[Job]) -> dict[Lane, OffsetAndMetadata]:
        standing = self.lane.standing(0, outcomes)
        if standing is None or not outcomes:
            return {}
        return {self.lane: OffsetAndMetadata(standing.offset, standing.beside(""), -1)}

    def remember(self, offsets: Mapping[Lane, OffsetAndMetadata]) -> None:
        self.remembered += offsets.values()

    def send_all(self) -> None:
        for job in self.jobs:
            self.lane.complete(job, VERDICT)

    def values(self, client: Client) -> list[bytes]:
        return [value for values, _ in client.committed for value in values]


@pytest.fixture
def case() -> Iterator[Callable[..., Case]]:
    made: list[Case] = []

    def make(*clients: Client, **options: Any) -> Case:
        made.append(Case(*clients, **options))
        return made[-1]

    yield make
    for created in made:
        created.sender.close(1.0)


def test_each_transaction_has_the_offset_of_its_frames_which_are_finished_when_it_is_committed(
    case: Callable[..., Case],
) -> None:
    client = Client()
    line = case(client)
    line.send_all()
    wait_until(lambda: line.lane.committable == 3)
    assert line.values(client) == [b"verdict"] * 3
    assert client.committed[-1][1] == {PARTITION: OffsetAndMetadata(3, "", -1)}
    assert line.remembered[-1].offset == 3


def test_what_a_rebalance_refuses_is_sent_again_and_the_client_stays(case: Callable[..., Case]) -> None:
    client = Client()
    client.fails["offsets"] = CommitFailedError("generation")
    line = case(client)
    line.send_all()
    wait_until(lambda: line.lane.committable == 3)
    assert line.values(client) == [b"verdict"] * 3
    assert (client.aborted, client.was_closed, line.lost) == (1, False, [])


@pytest.mark.parametrize("error", [UnknownProducerIdError(), KafkaError("error state")])
def test_a_client_that_cannot_abort_is_replaced_and_the_next_one_sends_all_again(
    case: Callable[..., Case], error: Exception
) -> None:
    old, new = Client(), Client()
    old.fails |= {"verdict": error, "abort": KafkaError("error state")}
    line = case(old, new)
    line.send_all()
    wait_until(lambda: line.lane.committable == 3)
    assert (line.values(old), line.values(new)) == ([], [b"verdict"] * 3)
    assert old.was_closed and line.lost == []


def test_what_may_have_been_committed_is_read_from_the_broker_by_a_new_lane(case: Callable[..., Case]) -> None:
    old, new = Client(), Client()
    old.fails["commit"] = KafkaError("no answer")
    line = case(old, new)
    line.send_all()
    wait_until(lambda: line.lost == [line.lane])
    assert line.lane.closed and old.was_closed
    assert (line.remembered, line.lane.committable, line.sender.unacknowledged_for_s) == ([], None, 0.0)


def test_a_record_that_the_broker_refuses_closes_its_lane_and_nothing_behind_it_leaves(
    case: Callable[..., Case],
) -> None:
    client = Client()
    client.fails["reject"] = MessageSizeTooLargeError("1048589 bytes")
    line = case(client)
    with line.sender._changed:  # so that all are in one transaction
        line.lane.complete(line.jobs[0], VERDICT)
        line.lane.complete(line.jobs[1], REJECT)
        line.lane.complete(line.jobs[2], VERDICT)
    wait_until(lambda: line.refused == [(line.jobs[1], "verdicts")])
    assert line.lane.closed
    wait_until(lambda: line.sender.unacknowledged_for_s == 0.0)
    assert client.committed == []
    wait_until(lambda: line.lost == [line.lane])


@pytest.mark.parametrize(
    ("step", "error", "told"),
    [
        ("offsets", FencedInstanceIdError(), "another process took this worker's place"),
        ("commit", ProducerFencedError(), "another process took this worker's place"),
        ("verdict", TopicAuthorizationFailedError({"verdicts"}), "grant WRITE"),
    ],
)
def test_a_worker_that_was_fenced_or_has_no_rights_ends_with_one_line_and_begins_nothing_more(
    case: Callable[..., Case], step: str, error: Exception, told: str
) -> None:
    client = Client()
    client.fails[step] = error
    line = case(client)
    line.send_all()
    wait_until(lambda: line.fatal)
    assert told in str(line.fatal[0]) and isinstance(line.fatal[0], FlawlineError)
    line.sender._thread.join(30)
    assert not line.sender._thread.is_alive()
    assert client.committed == [] and len(line.fatal) == 1


@pytest.mark.parametrize("is_replaced", [False, True])
def test_after_the_time_limit_a_fenced_worker_goes_on_unless_another_has_its_place(
    case: Callable[..., Case], is_replaced: bool
) -> None:
    old, new = Client(), Client()
    line = case(old, new, is_replaced=is_replaced)
    waited = threading.Event()

    def fenced(offsets: Any, group: Any) -> Answer:
        line.now += 11.0
        waited.set()
        return Answer(ProducerFencedError())

    old.add_offsets = fenced  # type: ignore[method-assign]
    old.fails["abort"] = KafkaError("fenced")
    line.send_all()
    assert waited.wait(30)
    if is_replaced:
        wait_until(lambda: line.fatal)
        assert "another process" in str(line.fatal[0]) and new.committed == []
    else:
        wait_until(lambda: line.lane.committable == 3)
        assert line.values(new) == [b"verdict"] * 3 and line.fatal == []


def test_outside_the_group_nothing_is_begun(case: Callable[..., Case]) -> None:
    client = Client()
    line = case(client)
    line.generation = -1
    line.send_all()
    line.sender._closed.wait(0.3)
    assert client.committed == []
    line.generation = 2
    wait_until(lambda: line.lane.committable == 3)
