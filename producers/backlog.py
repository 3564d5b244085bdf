"""The undelivered frames of one camera, in memory and on disk, and the order in which they are sent.

The order is that of three parts, of which each can be empty:

1. FRONT: frames in memory that come before all frames on disk.
2. The disk, which also holds the frames of earlier processes.
3. BACK: frames in memory that come after all frames on disk, because the disk refused them.

Frames in flight come before all others. They are of one part: the next part is begun when all of them are
acknowledged, and the back becomes the front when both parts before it are empty.

With durability "disk" (`is_durable`) every frame goes to disk, and memory holds only what the disk has refused. When it
works again, these frames are written to it before a newer one, those in flight too (they are RESCUED): from then on a
kill costs none of them.

No thread waits for the disk while it holds the lock of the lane: the Kafka client has one thread for the answers of all
cameras, which needs that lock, so one slow disk would stop every camera. The order of frames does not need the lock:
only the camera's thread appends to the spool and only the lane's thread reads it. While the camera's thread writes
frames to disk, no newer frame exists in memory that could overtake them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from flawline import messages
from flawline.byte_budget import ByteBudget
from flawline.clock import Monotonic
from flawline.messages import DropReason, Frame
from flawline.settings.producers import ProducerSettings
from producers.rate_limit import RateLimit
from producers.spool import DamagedRecord, DiskFailed, Record, Spool, SpoolFull

log = logging.getLogger(__name__)

POLL_S = 0.05
"""Longest wait before the next check: the byte budget and the replay rate send no notification. A judgement, not
measured."""

RETRY_PAUSE_S = 0.5
"""Pause before frames are sent again, or the spool is read again, after a failure. A judgement, not measured."""

REPLAY_SHARE = 0.5
"""Part of the shared byte budget that spools can use; the rest is for live cameras. A judgement, not measured."""


@dataclass(eq=False)
class Entry:
    """Holds an undelivered frame; `client` is the Kafka client that the frame was handed to.

    `spooled` says that it was read from the disk, `rescued` that it was written there while it was in flight.
    """

    frame: Frame
    spooled: bool = False
    rescued: bool = False
    taken_at: float = 0.0
    client: Any = None

    @property
    def key(self) -> tuple[int, int]:
        return self.frame.epoch, self.frame.sequence

    @property
    def is_only_in_memory(self) -> bool:
        return not (self.spooled or self.rescued)

    @property
    def size_bytes(self) -> int:
        return self.frame.size_bytes

    @property
    def record(self) -> Record:
        return Record(*self.key, messages.encode(self.frame))


@dataclass(frozen=True)
class _OnDisk:
    """Holds the state of the spool after the last piece of work on it, which can be read without waiting for the disk.

    `outstanding` is the number of undelivered frames by epoch.
    """

    frames: int
    size_bytes: int
    unread: bool
    outstanding: Mapping[int, int]

    @classmethod
    def of(cls, spool: Spool) -> _OnDisk:
        return cls(spool.frames, spool.size_bytes, spool.unread, dict(spool.outstanding))


class Backlog:
    """Holds frames until they are delivered or given up.

    Its lane calls it under the lane's lock `changed`, except for `write`, `work_on_disk` and `put_away`: these can wait
    for the disk, so they must be called without the lock, which they take for moments only.

    `give_up` is called with epoch, sequence and reason of each frame that is lost, never under the lock. `is_too_late`
    tells that a frame which is next need not be sent any more. With `sheds_oldest`, a spool at its limit makes room for
    a new frame by giving up the oldest ones. With `is_durable` each frame goes to disk.
    """

    def __init__(
        self,
        camera: str,
        spool: Spool,
        budget: ByteBudget,
        settings: ProducerSettings,
        give_up: Callable[[int, int, DropReason], None],
        clock: Monotonic,
        changed: threading.Condition,
        is_too_late: Callable[[Frame], bool] = lambda _: False,
        sheds_oldest: bool = False,
        is_durable: bool = False,
    ) -> None:
        self._camera = camera
        self._changed = changed
        self._disk = threading.Lock()  # guards the spool; a thread that holds `changed` never waits for it
        self._spool = spool
        self._on_disk = _OnDisk.of(spool)
        self._budget = budget
        self._give_up = give_up
        self._is_too_late = is_too_late
        self._sheds_oldest = sheds_oldest
        self._is_durable = is_durable
        self._clock = clock
        self._rate = RateLimit(settings.replay_limit_bytes_per_s, clock)
        self._front: deque[Entry] = deque()
        self._back: deque[Entry] = deque()
        self._held: Entry | None = None  # read from the spool, not sent yet
        self._in_flight: dict[tuple[int, int], Entry] = {}
        self._returned: list[Entry] = []
        self._writing: list[Entry] = []  # on the way from memory to disk
        self._rescuing: list[Entry] = []  # to be written before those, and in flight, or returned
        self._settled: deque[tuple[Entry, DropReason | None]] = deque()  # answered; the disk does not show it yet
        self._is_rewind_due = False
        self._not_before = 0.0
        self.oldest_on_disk_ns = min(spool.outstanding, default=0) * 1_000_000
        """Approximate capture time of the oldest frame on disk."""

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def unread(self) -> bool:
        """Return whether the disk holds frames that are not in flight."""
        return self._on_disk.unread or self._is_rewind_due or self._held is not None

    @property
    def on_disk(self) -> tuple[int, int]:
        """Return the number of frames and of bytes on disk."""
        return self._on_disk.frames, self._on_disk.size_bytes

    @property
    def is_empty(self) -> bool:
        """Return whether every frame is delivered or given up."""
        return not (next(self._outside_of_disk(), None) or self._on_disk.frames)

    def is_waiting(self, epoch: int) -> bool:
        """Return whether a frame of an epoch is neither delivered nor given up."""
        on_disk = self._on_disk.outstanding.get(epoch, 0) > 0
        return on_disk or any(entry.frame.epoch == epoch for entry in self._outside_of_disk())

    def _outside_of_disk(self) -> Iterator[Entry]:
        """Yield the entries that are not only on disk."""
        settled = (entry for entry, _ in self._settled)
        return chain(self._in_flight.values(), self._returned, self._front, self._back, self._writing, settled)

    @property
    def in_flight(self) -> int:
        """Return the number of frames that are sent and have no answer."""
        return len(self._in_flight)

    def unanswered_s(self) -> float:
        """Return for how long the oldest frame in flight has no answer; 0 when no frame is in flight."""
        oldest = next(iter(self._in_flight.values()), None)
        return self._clock() - oldest.taken_at if oldest else 0.0

    # -- in ------------------------------------------------------------------------------------------------------

    def keep(self, entry: Entry) -> bool:
        """Put a new frame in memory; return False when there is no room."""
        if not self._budget.acquire(entry.size_bytes):
            return False
        (self._back if self._back or self._on_disk.frames else self._front).append(entry)
        return True

    def leave_memory(self, new: Entry) -> None:
        """Choose the frames that go to disk: a new one, and before it those in memory that must precede it.

        `write` must follow, on the same thread.
        """
        if not self._on_disk.frames:
            self.oldest_on_disk_ns = new.frame.captured_at
            if not self._is_durable:
                log.warning("camera %s: the broker is too slow or away, frames go to disk", self._camera)
        if self._is_durable:
            sent = chain(self._in_flight.values(), self._returned)
            self._rescuing = sorted((entry for entry in sent if entry.is_only_in_memory), key=lambda entry: entry.key)
            self._writing += self._front
            self._front.clear()
        self._writing += self._back
        self._back.clear()
        self._writing.append(new)

    def write(self, no_room: DropReason | None) -> bool:
        """Write the frames of `leave_memory` to the spool, in their order, until the disk refuses one.

        Those that it refuses stay in memory. There the new frame joins them when the disk has failed; if it finds no
        room it is given up with the reason `no_room`. None says that its source waits for the disk instead: then
        return False.
        """
        with self._disk:
            refusal: SpoolFull | None = None
            try:
                self._rescue()
                while self._writing:
                    self._store(self._writing[0])
                    with self._changed:
                        written = self._writing.pop(0)
                        if self._writing:  # else it is the new one, which the budget never counted
                            self._budget.release(written.size_bytes)
            except SpoolFull as error:
                log.debug("camera %s: %s", self._camera, error)
                refusal = error
            with self._changed:
                self._rescuing, self._on_disk = [], _OnDisk.of(self._spool)
                self._back.extend(self._writing[:-1])
                refused = self._writing[-1:]  # the new frame
                may_stay = isinstance(refusal, DiskFailed) and no_room is not None
                if may_stay and self._budget.acquire(refused[0].size_bytes):
                    self._back.append(refused.pop())
            if no_room is not None:
                for entry in refused:
                    self._give_up(*entry.key, no_room)
            with self._changed:
                self._writing = []
            return no_room is not None or not refused

    def _rescue(self) -> None:
        """Write the frames in flight that are only in memory to the spool. Raises SpoolFull."""
        for entry in self._rescuing:
            self._store(entry)
            with self._changed:
                is_undelivered = entry.key in self._in_flight or entry in self._returned
                entry.rescued = is_undelivered
            if not is_undelivered:
                self._spool.pass_over(*entry.key)

    def _append(self, entry: Entry, no_room: DropReason) -> None:
        """Write a frame to the spool, or give it up with the reason `no_room`."""
        try:
            self._store(entry)
        except SpoolFull as error:
            log.debug("camera %s: %s", self._camera, error)
            self._give_up(*entry.key, no_room)

    def _store(self, entry: Entry) -> None:
        """Write a frame to the spool, in place of the oldest ones if it is full. Raises SpoolFull."""
        while True:
            try:
                return self._spool.append(entry.record)
            except SpoolFull as error:
                with self._changed:
                    is_rescued = self._is_durable and self._is_sending_memory  # the oldest on disk can be in flight
                may_shed = self._sheds_oldest and not isinstance(error, DiskFailed) and not is_rescued
                if not may_shed or (oldest := self._spool.shed_oldest()) is None:
                    raise
                log.warning(
                    "camera %s: the spool is full, its %d oldest frames are given up", self._camera, len(oldest)
                )
                for key in oldest:
                    self._give_up(*key, DropReason.OVERLOAD_OLDEST)

    # -- out -----------------------------------------------------------------------------------------------------

    def next(self) -> tuple[Entry | None, float | None]:
        """Return the next frame, or None and the seconds to wait before the next call (None: until a change).

        Call `work_on_disk` before each call.
        """
        if self._settled:
            return None, 0.0
        if self._returned:
            # Wait for the answers of the later frames, so that the order can be restored.
            if self._in_flight or self._rescuing:
                return None, POLL_S
            self._restore()
        if (pause_s := self._not_before - self._clock()) > 0:
            return None, pause_s
        if self._front:
            return self._next_of_front()
        if self._held is not None:
            return self._next_of_disk(self._held)
        if self.unread:
            return None, POLL_S if self._is_sending_memory else 0.0
        if self._back:
            if self._in_flight:
                return None, POLL_S
            self._front, self._back = self._back, self._front
            return None, 0.0
        return None, None

    def _next_of_front(self) -> tuple[Entry | None, float | None]:
        first = self._front.popleft()
        if self._is_too_late(first.frame):
            self.settle(first, DropReason.OVERLOAD_OLDEST)
            return None, 0.0
        return self._take(first), None

    def _next_of_disk(self, held: Entry) -> tuple[Entry | None, float | None]:
        if self._is_too_late(held.frame):
            self._settled.append((held, DropReason.OVERLOAD_OLDEST))  # the budget never counted it
            self._held = None
            return None, 0.0
        return self._replay(held)

    @property
    def _is_sending_memory(self) -> bool:
        """Return whether frames of memory are in flight: then none of the disk is."""
        first = next(iter(self._in_flight.values()), None)
        return first is not None and not first.spooled

    def _take(self, entry: Entry) -> Entry:
        entry.taken_at = self._clock()
        self._in_flight[entry.key] = entry
        return entry

    def _replay(self, held: Entry) -> tuple[Entry | None, float | None]:
        """Return `held` if the rate and the byte budget permit it, else None and the seconds to wait."""
        delay_s = self._rate.delay_s()
        alone = not self._in_flight  # one frame always goes, so that the replay advances
        if delay_s > 0 or not self._budget.acquire(held.size_bytes, share=REPLAY_SHARE, force=alone):
            return None, min(max(delay_s, 0.001), POLL_S)
        self._held = None
        self._rate.spend(held.size_bytes)
        return self._take(held), None

    @property
    def _is_read_due(self) -> bool:
        is_next = self._held is None and not (self._front or self._returned or self._is_sending_memory)
        return is_next and self.unread and self._not_before <= self._clock()

    def work_on_disk(self) -> None:
        """Record on disk the frames that were delivered or given up, and read the next frame when it is due.

        Only the lane's thread calls it.
        """
        with self._changed:
            if not (self._settled or self._is_read_due):
                return
        with self._disk:
            self._record_settled()
            with self._changed:
                is_read_due, is_rewind_due = self._is_read_due, self._is_rewind_due
            if is_rewind_due:
                self._spool.rewind()
            held = self._read() if is_read_due else None
            with self._changed:
                self._is_rewind_due = False
                self._on_disk = _OnDisk.of(self._spool)
                if held is not None:
                    self._held = held
                    self.oldest_on_disk_ns = held.frame.captured_at

    def _record_settled(self) -> None:
        while self._settled:
            entry, reason = self._settled[0]  # it counts as waiting until the disk shows it
            if entry.spooled:
                self._spool.confirm(*entry.key)
            elif entry.rescued:
                self._spool.pass_over(*entry.key)
            if reason is not None:
                self._give_up(*entry.key, reason)
            with self._changed:
                self._on_disk = _OnDisk.of(self._spool)
                self._settled.popleft()

    def _read(self) -> Entry | None:
        """Return the next frame of the spool, or None when it is damaged or the disk fails."""
        try:
            record = self._spool.next()
        except DamagedRecord as error:
            log.error("%s", error)
            self._give_up_spooled(error.epoch, error.sequence)
            return None
        except OSError as error:
            log.error("camera %s: the spool cannot be read: %s", self._camera, error)
            self._not_before = self._clock() + RETRY_PAUSE_S
            return None
        if record is None:
            return None
        try:
            frame = messages.decode(Frame, record.payload)
        except messages.SchemaError as error:  # another version wrote it
            log.error("camera %s: spooled frame %d cannot be read: %s", self._camera, record.sequence, error)
            self._give_up_spooled(record.epoch, record.sequence)
            return None
        return Entry(frame, spooled=True)

    def _give_up_spooled(self, epoch: int, sequence: int) -> None:
        self._spool.confirm(epoch, sequence)
        self._give_up(epoch, sequence, DropReason.SPOOL_DAMAGED)

    # -- answers -------------------------------------------------------------------------------------------------

    def answered(self, entry: Entry) -> bool:
        """Record that a frame in flight has an answer; return False when the frame is not in flight any more."""
        return self._in_flight.pop(entry.key, None) is not None

    def settle(self, entry: Entry, reason: DropReason | None = None) -> None:
        """Forget an answered frame, which is delivered or, with a `reason`, given up."""
        self._budget.release(entry.size_bytes)
        if not entry.is_only_in_memory or reason is not None:
            self._settled.append((entry, reason))

    def give_back(self, entry: Entry) -> None:
        """Queue an answered frame to be sent again, before the later frames."""
        self._returned.append(entry)

    def _restore(self) -> None:
        """Put the returned frames back in their place; no frame may be in flight."""
        returned, self._returned = sorted(self._returned, key=lambda entry: entry.key), []
        in_memory = [entry for entry in returned if entry.is_only_in_memory]
        for entry in returned:
            entry.client = None
            if not entry.is_only_in_memory:
                self._budget.release(entry.size_bytes)
                self._held, self._is_rewind_due = None, True
        # With durability "disk" all that the disk holds is older than what it has refused.
        is_behind = self._is_durable and self._on_disk.frames and not self._front
        (self._back if is_behind else self._front).extendleft(reversed(in_memory))
        self._not_before = self._clock() + RETRY_PAUSE_S

    # -- end -----------------------------------------------------------------------------------------------------

    def put_away(self, no_room: DropReason, *, has_spool: bool) -> int:
        """Write the frames in memory to the spool for the next start; return the number of frames on disk."""
        with self._disk:
            with self._changed:
                sent = [*self._in_flight.values(), *self._returned]
                first = [entry for entry in (*sent, *self._front) if entry.is_only_in_memory]
                first.sort(key=lambda entry: entry.key)
                last = list(self._back)
                left = [*sent, *self._front, *last]
                self._in_flight, self._returned, self._held = {}, [], None
                self._front.clear()
                self._back.clear()
                self._rescuing = []
                self._writing += [*first, *last]  # so that they count as waiting until they are on disk
            self._record_settled()  # no frame is in flight any more, so no later answer can settle one
            self._spool.rewind()
            if not has_spool:
                for entry in (*first, *last):
                    self._give_up(*entry.key, no_room)
            else:
                self._put_away(first, last, no_room)
            with self._changed:
                for entry in left:
                    self._budget.release(entry.size_bytes)
                written = {*first, *last}
                self._writing = [entry for entry in self._writing if entry not in written]
                self._on_disk = _OnDisk.of(self._spool)
                return self._on_disk.frames

    def _put_away(self, first: list[Entry], last: list[Entry], no_room: DropReason) -> None:
        """Write frames to the spool, `first` before those that it holds and `last` behind them."""
        if self._is_durable:  # what the disk has refused is newer than all that it holds
            first, last = [], [*first, *last]
        if first:
            for record in self._spool.put_first([entry.record for entry in first]):
                self._give_up(*record.key, no_room)
        for entry in last:
            self._append(entry, no_room)

    def close(self) -> None:
        """Close the spool."""
        with self._disk:
            self._spool.close()

    def sync(self) -> None:
        """Sync the spool to the disk; needs no lock."""
        try:
            self._spool.sync()
        except OSError as error:
            log.error("camera %s: the spool cannot be synced: %s", self._camera, error.strerror)
