"""The undelivered frames of one camera, in memory and on disk, and which of them goes next.

It is in one of two modes, so that order never depends on luck:

- MEMORY: what is pending or unacknowledged in memory comes before everything in the spool.
- SPOOL: everything in the spool comes before what is pending in memory.

MEMORY becomes SPOOL when the memory is empty and the spool is not; SPOOL becomes MEMORY when all of the spool is
acknowledged. A process starts in SPOOL mode, with what an earlier one left behind.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from flawline import messages
from flawline.byte_budget import ByteBudget
from flawline.clock import Monotonic
from flawline.messages import DropReason, Frame
from flawline.settings.producers import ProducerSettings
from producers.rate_limit import RateLimit
from producers.spool import DamagedRecord, Record, Spool, SpoolFull

log = logging.getLogger(__name__)

POLL_S = 0.05
"""Room in the shared byte budget and the replay's rate come without a notification; nobody waits longer for them."""

RETRY_PAUSE_S = 0.5

REPLAY_SHARE = 0.5
"""Of the shared bytes in memory, the part that the spools may use: live cameras find room beside them."""


class _Mode(Enum):
    MEMORY = "memory"
    SPOOL = "spool"


@dataclass(eq=False)
class Entry:
    """A frame on its way; `client` is the one that it was handed to."""

    frame: Frame
    spooled: bool = False
    taken_at: float = 0.0
    client: Any = None

    @property
    def key(self) -> tuple[int, int]:
        return self.frame.epoch, self.frame.sequence

    @property
    def size_bytes(self) -> int:
        return self.frame.size_bytes

    @property
    def record(self) -> Record:
        return Record(*self.key, messages.encode(self.frame))


class Backlog:
    """Holds frames until they are delivered or given up. Not thread-safe: its lane calls it under one lock.

    `give_up` is told epoch, sequence and reason of each frame that is lost here: no room on disk, a damaged record.
    """

    def __init__(
        self,
        camera: str,
        spool: Spool,
        budget: ByteBudget,
        settings: ProducerSettings,
        give_up: Callable[[int, int, DropReason], None],
        clock: Monotonic,
    ) -> None:
        self._camera = camera
        self._spool = spool
        self._budget = budget
        self._give_up = give_up
        self._clock = clock
        self._rate = RateLimit(settings.replay_limit_bytes_per_s, clock)
        self._mode = _Mode.SPOOL
        self._pending: deque[Entry] = deque()
        self._held: Entry | None = None  # read from the spool, waits for its turn
        self._in_flight: dict[tuple[int, int], Entry] = {}
        self._returned: list[Entry] = []
        self._not_before = 0.0
        self.oldest_on_disk_ns = min(spool.outstanding, default=0) * 1_000_000
        """About when the oldest frame on disk was captured."""

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def unread(self) -> bool:
        """Whether frames wait on disk that are not under way."""
        return self._spool.unread or self._held is not None

    @property
    def on_disk(self) -> tuple[int, int]:
        """Frames and bytes on disk."""
        return self._spool.frames, self._spool.size_bytes

    @property
    def is_empty(self) -> bool:
        """Whether every frame is delivered or given up."""
        return not (self._pending or self._in_flight or self._returned or self._spool.frames)

    def waiting(self, epoch: int) -> int:
        """Frames of an epoch that are neither delivered nor given up."""
        moving = [*self._in_flight.values(), *self._returned, *self._pending]
        return self._spool.outstanding[epoch] + sum(not one.spooled and one.frame.epoch == epoch for one in moving)

    def unanswered_s(self) -> float:
        """For how long the oldest frame under way has no answer."""
        oldest = next(iter(self._in_flight.values()), None)
        return self._clock() - oldest.taken_at if oldest else 0.0

    # -- in ------------------------------------------------------------------------------------------------------

    def keep(self, entry: Entry) -> bool:
        """Take a new frame into memory; False when there is no room."""
        if not self._budget.acquire(entry.size_bytes):
            return False
        self._pending.append(entry)
        return True

    def put_to_disk(self, entry: Entry, no_room: DropReason) -> None:
        """Take a new frame into the spool; `no_room` is the reason to give it up with when it has no place there."""
        if not self._spool.frames:
            log.warning("camera %s: the broker does not keep up or is away, frames go to disk", self._camera)
            self.oldest_on_disk_ns = entry.frame.captured_at
        if self._mode is _Mode.SPOOL:  # what is pending came before this one
            while self._pending:
                earlier = self._pending.popleft()
                self._budget.release(earlier.size_bytes)
                self._append(earlier, no_room)
        self._append(entry, no_room)

    def _append(self, entry: Entry, no_room: DropReason) -> None:
        try:
            self._spool.append(entry.record)
        except SpoolFull as error:
            log.debug("camera %s: %s", self._camera, error)
            self._give_up(*entry.key, no_room)

    # -- out -----------------------------------------------------------------------------------------------------

    def next(self) -> tuple[Entry | None, float | None]:
        """The next frame to send; or None, and how long to wait before asking again (None: until something changes)."""
        if self._returned:
            if self._in_flight:  # those behind a failed one are answered first, so that order can be restored
                return None, POLL_S
            self._restore()
        if (pause_s := self._not_before - self._clock()) > 0:
            return None, pause_s
        if self._mode is _Mode.SPOOL:
            if self._held is None and self._spool.unread:
                self._read()
            if self._held is not None:
                return self._replay(self._held)
            if self._in_flight or self._spool.unread:
                return None, 0.0 if self._spool.unread else POLL_S
            self._mode = _Mode.MEMORY
        if self._pending:
            return self._take(self._pending.popleft()), None
        if self._spool.unread:
            if self._in_flight:
                return None, POLL_S
            self._mode = _Mode.SPOOL
            return None, 0.0
        return None, None

    def _take(self, entry: Entry) -> Entry:
        entry.taken_at = self._clock()
        self._in_flight[entry.key] = entry
        return entry

    def _replay(self, held: Entry) -> tuple[Entry | None, float | None]:
        """The frame that was read from the spool, when its rate and the bytes in memory allow."""
        delay_s = self._rate.delay_s()
        alone = not self._in_flight  # one at a time goes even beside a full memory
        if delay_s > 0 or not self._budget.acquire(held.size_bytes, share=REPLAY_SHARE, force=alone):
            return None, min(max(delay_s, 0.001), POLL_S)
        self._held = None
        self._rate.spend(held.size_bytes)
        return self._take(held), None

    def _read(self) -> None:
        try:
            record = self._spool.next()
        except DamagedRecord as error:
            log.error("%s", error)
            self._give_up_spooled(error.epoch, error.sequence)
            return
        except OSError as error:
            log.error("camera %s: the spool cannot be read: %s", self._camera, error)
            self._not_before = self._clock() + RETRY_PAUSE_S
            return
        if record is None:
            return
        try:
            frame = messages.decode(Frame, record.payload)
        except messages.SchemaError as error:  # written by another version
            log.error("camera %s: spooled frame %d cannot be read: %s", self._camera, record.sequence, error)
            self._give_up_spooled(record.epoch, record.sequence)
            return
        self._held = Entry(frame, spooled=True)
        self.oldest_on_disk_ns = frame.captured_at

    def _give_up_spooled(self, epoch: int, sequence: int) -> None:
        self._spool.confirm(epoch, sequence)
        self._give_up(epoch, sequence, DropReason.SPOOL_DAMAGED)

    # -- answers -------------------------------------------------------------------------------------------------

    def answered(self, entry: Entry) -> bool:
        """A frame that was under way has an answer; False when nobody waits for it any more."""
        return self._in_flight.pop(entry.key, None) is not None

    def settle(self, entry: Entry) -> None:
        """An answered frame is delivered, or given up: forget it."""
        self._budget.release(entry.size_bytes)
        if entry.spooled:
            self._spool.confirm(*entry.key)

    def give_back(self, entry: Entry) -> None:
        """An answered frame must be sent again, before those behind it."""
        self._returned.append(entry)

    def _restore(self) -> None:
        """Put what came back where it was, nothing being under way."""
        returned, self._returned = sorted(self._returned, key=lambda entry: entry.key), []
        for entry in returned:
            entry.client = None
        if self._mode is _Mode.MEMORY:
            self._pending.extendleft(reversed(returned))
        else:
            for entry in returned:
                self._budget.release(entry.size_bytes)
            self._held = None
            self._spool.rewind()
        self._not_before = self._clock() + RETRY_PAUSE_S

    # -- end -----------------------------------------------------------------------------------------------------

    def put_away(self, no_room: DropReason, *, has_spool: bool) -> int:
        """Bring what is left in memory to the spool, in order, for the next start; how many frames are on disk."""
        left = [*self._in_flight.values(), *self._returned, *self._pending]
        self._in_flight, self._returned, self._held = {}, [], None
        self._pending.clear()
        for entry in left:
            self._budget.release(entry.size_bytes)
        fresh = sorted((entry for entry in left if not entry.spooled), key=lambda entry: entry.key)
        self._spool.rewind()
        if has_spool and self._mode is _Mode.SPOOL:
            for entry in fresh:
                self._append(entry, no_room)
        else:
            refused = self._spool.put_first([entry.record for entry in fresh]) if has_spool else fresh
            keys = [(one.epoch, one.sequence) if isinstance(one, Record) else one.key for one in refused]
            for key in keys:
                self._give_up(*key, no_room)
        return self._spool.frames

    def sync(self) -> None:
        """Force the spool to the disk; needs no lock."""
        try:
            self._spool.sync()
        except OSError as error:
            log.error("camera %s: the spool cannot be synced: %s", self._camera, error.strerror)
