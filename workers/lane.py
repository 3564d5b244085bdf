"""One assigned partition: which of its frames are in work, what may leave next and what may be committed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kafka.structs import TopicPartition

from flawline.messages import DeadLetterReason, Decision
from workers.budget import ByteGate
from workers.offsets import ContiguousOffsets
from workers.ordering import InOrder

RECORD_BYTES = 4096
"""What a record counts besides its value, so that the byte bound also bounds how many small ones are held."""


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
    """All that one frame leaves behind: a verdict with its defect, or a dead letter."""

    records: tuple[Outgoing, ...]
    camera: str
    captured_at: int
    decision: Decision | None = None
    reason: DeadLetterReason | None = None


@dataclass(eq=False)
class Job:
    """One fetched record on its way through the worker."""

    lane: Lane
    record: Any
    size_bytes: int
    fetched_at: int
    _held: bool = field(default=True)

    @property
    def offset(self) -> int:
        return self.record.offset


class Lane:
    """The frames of one partition for as long as it is assigned; a new assignment or a rewind makes a new lane.

    Life of a job: admitted by the intake, begun by a decode thread, completed with its outcome, sent in log order,
    finished when the broker has acknowledged all of its outcome. A closed lane sends nothing more: the partition's
    next owner does its frames again.
    """

    def __init__(self, partition: TopicPartition, gate: ByteGate, send: Callable[[Job, Outcome], None]) -> None:
        self.partition = partition
        self._gate = gate
        self._send = send
        self._offsets = ContiguousOffsets()
        self._order: InOrder[tuple[Job, Outcome]] = InOrder()
        self._jobs: dict[int, Job] = {}
        self._begun = 0
        self._refuses = False
        self._closed = False
        self._last_timestamp_ms = 0
        # Two locks: an acknowledgement must never wait for a send, which itself may wait for the client's I/O thread.
        self._state = threading.Lock()
        self._sending = threading.Lock()

    def admit(self, record: Any, fetched_at: int) -> Job:
        """Take a fetched record in. Its bytes count as in flight until it is finished or dropped."""
        job = Job(self, record, len(record.value or b"") + RECORD_BYTES, fetched_at)
        with self._state:
            self._offsets.register(record.offset)
            self._order.register(record.offset)
            self._jobs[record.offset] = job
        self._gate.add(job.size_bytes)
        return job

    def begin(self, job: Job) -> bool:
        """Whether work on a job may start; if not, the partition is leaving and the job is dropped."""
        with self._state:
            allowed = not self._refuses
            self._begun += allowed
        if not allowed:
            self._release(job)
        return allowed

    def complete(self, job: Job, outcome: Outcome) -> None:
        """Send a job's outcome, and those that waited for it, in log order."""
        with self._sending:
            with self._state:
                released = [] if self._closed else self._order.complete(job.offset, (job, outcome))
                dropped = self._closed
            for ready, result in released:
                self._send(ready, result)
        if dropped:
            self._release(job)

    def abandon(self, job: Job) -> None:
        """Give up a begun job without an outcome; its frame stays unfinished."""
        with self._state:
            self._begun -= not self._closed
        self._release(job)

    def finish(self, job: Job) -> None:
        """The broker holds all of a job's outcome."""
        with self._state:
            # After a rewind or a revocation the offset belongs to somebody else.
            if not self._closed:
                self._offsets.finish(job.offset)
                del self._jobs[job.offset]
                self._begun -= 1
                self._last_timestamp_ms = job.record.timestamp
        self._release(job)

    def refuse(self) -> None:
        """Begin no further job; those begun may finish."""
        with self._state:
            self._refuses = True

    def close(self) -> None:
        """Send and count nothing more."""
        with self._sending, self._state:
            self._refuses = self._closed = True
            held = [job for job, _ in self._order.clear()]
            self._jobs.clear()
        for job in held:
            self._release(job)

    def _release(self, job: Job) -> None:
        with self._state:
            held, job._held = job._held, False
        if held:
            self._gate.remove(job.size_bytes)

    @property
    def closed(self) -> bool:
        """Whether the lane has ended."""
        return self._closed

    @property
    def idle(self) -> bool:
        """Whether no begun job is unfinished."""
        return self._begun == 0

    @property
    def in_flight(self) -> int:
        """Records that are admitted and not finished."""
        return self._offsets.unfinished

    @property
    def committable(self) -> int | None:
        """The offset to commit, None when nothing has finished yet."""
        with self._state:
            return self._offsets.committable

    @property
    def resume_offset(self) -> int | None:
        """Where to read again so that no unfinished record is skipped; None when nothing was read."""
        with self._state:
            oldest = self._offsets.oldest
            return self._offsets.committable if oldest is None else oldest

    @property
    def oldest_timestamp_ms(self) -> int:
        """When the oldest unfinished record was written; the last finished one's when there is none; 0 when unknown."""
        with self._state:
            oldest = self._offsets.oldest
            job = None if oldest is None else self._jobs.get(oldest)
            return job.record.timestamp if job else self._last_timestamp_ms
