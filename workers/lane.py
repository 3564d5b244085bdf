"""One assigned partition: which of its frames are in work, what may leave next and what may be committed."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from kafka.structs import TopicPartition

from flawline.byte_budget import ByteBudget
from flawline.messages import DeadLetterReason, Decision, Verdict
from workers.standing import Standing

T = TypeVar("T")

RECORD_BYTES = 4096
"""What a record counts besides its value, so that the byte bound also bounds how many small records are held."""


class ContiguousOffsets:
    """Records of one partition, registered in log order and finished in any order.

    Offsets need not be consecutive: compaction and transaction markers leave holes in a log.
    """

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()
        self._unfinished: set[int] = set()
        self._next: int | None = None
        self._last = -1

    def register(self, offset: int) -> None:
        """Take a record into account. Raises ValueError when offsets do not ascend."""
        if offset <= self._last:
            raise ValueError(f"offset {offset} comes after {self._last}")
        self._last = offset
        self._waiting.append(offset)
        self._unfinished.add(offset)

    def finish(self, offset: int) -> None:
        """Count a record as finished. Raises ValueError when it is unknown or was finished before."""
        if offset not in self._unfinished:
            raise ValueError(f"offset {offset} is not in work")
        self._unfinished.remove(offset)
        while self._waiting and self._waiting[0] not in self._unfinished:
            self._next = self._waiting.popleft() + 1

    @property
    def committable(self) -> int | None:
        """The offset to commit: one past the last record before which all are finished; None when there is none."""
        return self._next

    @property
    def last(self) -> int:
        """The last registered offset; -1 when there is none."""
        return self._last

    @property
    def oldest(self) -> int | None:
        """The first record that is not finished."""
        return self._waiting[0] if self._waiting else None

    @property
    def unfinished(self) -> int:
        """How many registered records are not finished."""
        return len(self._unfinished)

    def open(self) -> list[int]:
        """Return the records that are not finished, in log order."""
        return [offset for offset in self._waiting if offset in self._unfinished]


class InOrder(Generic[T]):
    """Gives results out in the order in which their keys were registered, each as soon as all before it are out."""

    def __init__(self) -> None:
        self._expected: deque[int] = deque()
        self._known: set[int] = set()
        self._results: dict[int, T] = {}

    def register(self, key: int) -> None:
        """Reserve the next place. Raises ValueError when the key waits already."""
        if key in self._known:
            raise ValueError(f"key {key} is registered already")
        self._known.add(key)
        self._expected.append(key)

    def complete(self, key: int, result: T) -> list[T]:
        """Take a result and return what may leave now, in order. Raises ValueError for an unknown or completed key."""
        if key not in self._known or key in self._results:
            raise ValueError(f"key {key} does not wait for a result")
        self._results[key] = result
        released = []
        while self._expected and self._expected[0] in self._results:
            first = self._expected.popleft()
            self._known.remove(first)
            released.append(self._results.pop(first))
        return released

    def waits(self, key: int) -> bool:
        """Tell whether the result of a key, given or not, is not out yet."""
        return key in self._known

    def clear(self) -> list[T]:
        """Forget every place and return the results that waited for an earlier one."""
        waiting = list(self._results.values())
        self._expected.clear()
        self._known.clear()
        self._results.clear()
        return waiting


@dataclass(frozen=True)
class Outgoing:
    """A record for the broker; `partition` None leaves the choice to the client."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Outcome:
    """A record that a frame leaves behind: its verdict, its defect or its dead letter.

    `defect_follows` says that the frame is finished only when its defect, a second outcome, is acknowledged too.
    """

    record: Outgoing
    camera: str
    captured_at: int
    decision: Decision | None = None
    reason: DeadLetterReason | None = None
    defect_follows: bool = False


@dataclass(eq=False)
class Job:
    """One fetched record on its way through the worker.

    `attempt` counts how often work on the record began, where earlier attempts ended with their process. `ended` is
    set for such a record when it is finished or given up. `decided` is the verdict that the frame had when its
    partition was taken over.
    """

    lane: Lane
    record: Any
    size_bytes: int
    fetched_at: int
    attempt: int = 1
    ended: threading.Event | None = None
    decided: Verdict | None = None
    _bytes_held: bool = field(default=True)
    _outcomes_left: int = field(default=1)
    _abandoned: bool = field(default=False)

    @property
    def offset(self) -> int:
        """The record's place in its partition."""
        return int(self.record.offset)


class Lane:
    """The frames of one partition for as long as it is assigned; a new assignment or a rewind makes a new lane.

    Life of a job:

    1. `admit`: the intake has fetched its record, whose bytes count as in flight.
    2. `begin`: a decode thread works on it.
    3. `complete`: its verdict or dead letter leaves, in log order. A frame that has its verdict already takes its place
       with `complete_decided`, and nothing leaves.
    4. `add_defect`: the defect of a frame that was not accepted leaves, after its verdict.
    5. `acknowledge`: the broker holds an outcome. With the first the bytes are free again, with the last the job is
       finished and its offset may be committed.

    A closed lane sends nothing more: the partition's next owner does its frames again. `decided` holds the verdicts
    that were in the topic before the first job, encoded, by the identity of their frames; None until that is known.
    With exactly-once delivery a lane goes on where it stood with its last owner (`resume`), which is exact.
    """

    def __init__(self, partition: TopicPartition, gate: ByteBudget, send: Callable[[Job, Outcome], None]) -> None:
        self.partition = partition
        self.decided: dict[tuple[str, int, int], bytes] | None = None
        self._resumed = Standing(0, 0)
        self._gate = gate
        self._send = send
        self._offsets = ContiguousOffsets()
        self._decided = ContiguousOffsets()
        self._order: InOrder[tuple[Job, Outcome | None]] = InOrder()
        self._early: dict[int, Outcome] = {}
        self._jobs: dict[int, Job] = {}
        self._begun = 0
        self._begun_offset = -1
        self._refuses = False
        self._closed = False
        self._last_timestamp_ms = 0
        # Two locks: an acknowledgement must never wait for a send, which itself may wait for the client's I/O thread.
        self._state = threading.Lock()
        self._sending = threading.Lock()

    def admit(self, record: Any, fetched_at: int, attempt: int = 1, ended: threading.Event | None = None) -> Job:
        """Take a fetched record in. Its bytes count as in flight until an outcome is acknowledged or it is dropped."""
        job = Job(self, record, len(record.value or b"") + RECORD_BYTES, fetched_at, attempt, ended)
        with self._state:
            self._offsets.register(record.offset)
            self._decided.register(record.offset)
            self._order.register(record.offset)
            self._jobs[record.offset] = job
        self._gate.add(job.size_bytes)
        return job

    def resume(self, standing: Standing) -> None:
        """Go on where the last owner was; call it before the first frame is admitted."""
        self._resumed = standing

    def is_finished(self, offset: int) -> bool:
        """Tell whether an earlier owner left nothing to do for a frame."""
        return self._resumed.is_finished(offset)

    def owes_defect_only(self, offset: int) -> bool:
        """Tell whether a frame's verdict is in the topic for certain, and only its defect is not."""
        return offset in self._resumed.owed

    def pass_over(self, offset: int) -> None:
        """Count a frame as finished that an earlier owner has finished."""
        with self._state:
            for offsets in (self._offsets, self._decided):
                offsets.register(offset)
                offsets.finish(offset)

    def begin(self, job: Job) -> bool:
        """Tell whether work on a job may start; if not, the partition is leaving and the job is dropped."""
        with self._state:
            allowed = not self._refuses
            if allowed:
                self._begun += 1
                self._begun_offset = max(self._begun_offset, job.offset)
        if not allowed:
            self._drop(job)
        return allowed

    def complete(self, job: Job, outcome: Outcome) -> None:
        """Send a job's verdict or dead letter, and those that waited for it, in log order."""
        self._leave(job, outcome, outcome.defect_follows)

    def complete_decided(self, job: Job, defect_follows: bool) -> None:
        """Count a job's verdict, which the broker holds from before, and send those that waited for it."""
        self._leave(job, None, defect_follows)

    def _leave(self, job: Job, outcome: Outcome | None, defect_follows: bool) -> None:
        with self._sending:
            with self._state:
                job._outcomes_left = 2 if defect_follows else 1
                released = [(job, outcome)] if self._closed else self._order.complete(job.offset, (job, outcome))
            for ready, result in released:
                # A send may take seconds. What is still here when the lane is closed meanwhile is the next owner's.
                if self._closed:
                    self._drop(ready)
                    continue
                if result is None:
                    self.acknowledge(ready)
                else:
                    self._send(ready, result)
                if defect := self._early.pop(ready.offset, None):
                    self._send(ready, defect)

    def add_defect(self, job: Job, outcome: Outcome) -> None:
        """Send the defect of a job whose verdict was completed before, as soon as that has left."""
        with self._sending:
            with self._state:
                waits = not self._closed and self._order.waits(job.offset)
                if waits:
                    self._early[job.offset] = outcome
            if self._closed:
                self._drop(job)
            elif not waits:
                self._send(job, outcome)

    def abandon(self, job: Job) -> bool:
        """Give up a begun job, whose frame stays unfinished; return False when it was given up before."""
        with self._state:
            first, job._abandoned = not job._abandoned, True
            self._begun -= first and not self._closed
        self._drop(job)
        return first

    def acknowledge(self, job: Job) -> None:
        """Count that the broker holds an outcome of a job; with the last one the job is finished."""
        with self._state:
            job._outcomes_left -= 1
            finished = job._outcomes_left == 0
            # After a rewind or a revocation the offset belongs to somebody else.
            if not self._closed:
                if job._bytes_held:  # the first of its outcomes
                    self._decided.finish(job.offset)
                    self._last_timestamp_ms = job.record.timestamp
                if finished:
                    self._offsets.finish(job.offset)
                    del self._jobs[job.offset]
                    self._begun -= 1
        self._release(job)
        if finished and job.ended:
            job.ended.set()

    def refuse(self) -> None:
        """Begin no further job; those begun may finish."""
        with self._state:
            self._refuses = True

    def close(self) -> None:
        """Send and count nothing more. Never waits for a send: the consumer's own loop calls this."""
        with self._state:
            self._refuses = self._closed = True
            waiting = [job for job, _ in self._order.clear()]
            self._early.clear()
            self._jobs.clear()
        for job in waiting:
            self._drop(job)

    def _drop(self, job: Job) -> None:
        self._release(job)
        if job.ended:
            job.ended.set()

    def _release(self, job: Job) -> None:
        with self._state:
            held, job._bytes_held = job._bytes_held, False
        if held:
            self._gate.release(job.size_bytes)

    @property
    def closed(self) -> bool:
        """Whether the lane has ended."""
        return self._closed

    @property
    def leaving(self) -> bool:
        """Whether the partition is about to move, or has moved."""
        return self._refuses

    @property
    def idle(self) -> bool:
        """Whether no begun job is unfinished."""
        return self._begun == 0

    @property
    def in_flight(self) -> int:
        """Records that are admitted and not finished."""
        return self._offsets.unfinished

    @property
    def last_offset(self) -> int:
        """The last offset that was admitted; -1 when there is none."""
        return self._offsets.last

    @property
    def begun_offset(self) -> int:
        """The furthest offset that work has begun on; -1 when there is none."""
        return self._begun_offset

    @property
    def committable(self) -> int | None:
        """The offset to commit, None when nothing has finished yet."""
        with self._state:
            return self._offsets.committable

    def standing(self, last_offset: int, outcomes: Counter[Job]) -> Standing | None:
        """Return how far the partition is once the broker also holds these further outcomes of its jobs.

        `outcomes` counts them; a verdict or dead letter is among them before the job's defect. `last_offset` is the
        offset of the last commit. Returns None for a closed lane, which knows no more.
        """
        with self._state:
            if self._closed:
                return None
            left = {
                offset: self._jobs[offset]._outcomes_left - outcomes[self._jobs[offset]]
                for offset in self._offsets.open()
            }
            unfinished = [offset for offset, number in left.items() if number > 0]
            undecided = [
                offset
                for offset in self._decided.open()
                if offset >= self._resumed.decided and not outcomes[self._jobs[offset]]
            ]
            end = max(last_offset, self._offsets.last + 1)
            decided = undecided[0] if undecided else max(end, self._resumed.decided)
            unread = [offset for offset in self._resumed.owed if offset > self._offsets.last]
        owed = [offset for offset in unfinished if offset < decided] + unread
        return Standing(min([decided, *owed]), decided, tuple(owed))

    @property
    def resume_offset(self) -> int | None:
        """Where to read again so that no unfinished record is skipped; None when nothing was read."""
        with self._state:
            oldest = self._offsets.oldest
            return self._offsets.committable if oldest is None else oldest

    @property
    def undecided_offset(self) -> int | None:
        """Where the first record without a verdict or a dead letter is; None when nothing was read."""
        with self._state:
            oldest = self._decided.oldest
            return self._decided.committable if oldest is None else oldest

    @property
    def undecided_since_ms(self) -> int:
        """When the first record without an outcome was written; the last decided one's when there is none; else 0."""
        with self._state:
            oldest = self._decided.oldest
            job = None if oldest is None else self._jobs.get(oldest)
            return job.record.timestamp if job else self._last_timestamp_ms
