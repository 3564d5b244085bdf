"""The undelivered frames of one camera, in memory and on disk, and the order in which they are sent.

A backlog is in one of two modes, so that the order of frames is always defined:

- MEMORY: frames that are pending or unacknowledged in memory come before all frames in the spool.
- SPOOL: all frames in the spool come before the frames that are pending in memory.

The mode changes from MEMORY to SPOOL when the memory is empty and the spool is not. It changes from SPOOL to MEMORY
when all frames of the spool are acknowledged. A process starts in SPOOL mode, with the frames of earlier
processes.
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
"""Longest wait before the next check: the byte budget and the replay rate send no notification. A judgement, not
measured."""

RETRY_PAUSE_S = 0.5
"""Pause before frames are sent again, or the spool is read again, after a failure. A judgement, not measured."""

REPLAY_SHARE = 0.5
"""Part of the shared byte budget that spools can use; the rest is for live cameras. A judgement, not measured."""


class _Mode(Enum):
    MEMORY = "memory"
    SPOOL = "spool"


@dataclass(eq=False)
class Entry:
    """Holds an undelivered frame; `client` is the Kafka client that the frame was handed to."""

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

    `give_up` is called with epoch, sequence and reason of each frame that is lost here: no room on disk, or a damaged
    record.
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
        self._held: Entry | None = None  # read from the spool, not sent yet
        self._in_flight: dict[tuple[int, int], Entry] = {}
        self._returned: list[Entry] = []
        self._not_before = 0.0
        self.oldest_on_disk_ns = min(spool.outstanding, default=0) * 1_000_000
        """Approximate capture time of the oldest frame on disk."""

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def unread(self) -> bool:
        """Return whether the disk holds frames that are not in flight."""
        return self._spool.unread or self._held is not None

    @property
    def on_disk(self) -> tuple[int, int]:
        """Return the number of frames and of bytes on disk."""
        return self._spool.frames, self._spool.size_bytes

    @property
    def is_empty(self) -> bool:
        """Return whether every frame is delivered or given up."""
        return not (self._pending or self._in_flight or self._returned or self._spool.frames)

    def waiting(self, epoch: int) -> int:
        """Return the number of frames of an epoch that are neither delivered nor given up."""
        moving = [*self._in_flight.values(), *self._returned, *self._pending]
        return self._spool.outstanding[epoch] + sum(not one.spooled and one.frame.epoch == epoch for one in moving)

    def unanswered_s(self) -> float:
        """Return for how long the oldest frame in flight has no answer; 0 when no frame is in flight."""
        oldest = next(iter(self._in_flight.values()), None)
        return self._clock() - oldest.taken_at if oldest else 0.0

    # -- in ------------------------------------------------------------------------------------------------------

    def keep(self, entry: Entry) -> bool:
        """Put a new frame in memory; return False when there is no room."""
        if not self._budget.acquire(entry.size_bytes):
            return False
        self._pending.append(entry)
        return True

    def put_to_disk(self, entry: Entry, no_room: DropReason) -> None:
        """Put a new frame in the spool; give it up with the reason `no_room` when the spool has no room."""
        if not self._spool.frames:
            log.warning("camera %s: the broker is too slow or away, frames go to disk", self._camera)
            self.oldest_on_disk_ns = entry.frame.captured_at
        if self._mode is _Mode.SPOOL:  # the pending frames are older than this one
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
        """Return the next frame, or None and the seconds to wait before the next call (None: until a change)."""
        if self._returned:
            if self._in_flight:  # wait for the answers of the later frames, so that the order can be restored
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
        """Return `held` if the rate and the byte budget permit it, else None and the seconds to wait."""
        delay_s = self._rate.delay_s()
        alone = not self._in_flight  # one frame always goes, so that the replay advances
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
        except messages.SchemaError as error:  # another version wrote it
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
        """Record that a frame in flight has an answer; return False when the frame is not in flight any more."""
        return self._in_flight.pop(entry.key, None) is not None

    def settle(self, entry: Entry) -> None:
        """Forget an answered frame that is delivered or given up."""
        self._budget.release(entry.size_bytes)
        if entry.spooled:
            self._spool.confirm(*entry.key)

    def give_back(self, entry: Entry) -> None:
        """Queue an answered frame to be sent again, before the later frames."""
        self._returned.append(entry)

    def _restore(self) -> None:
        """Put the returned frames back in their place; no frame may be in flight."""
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
        """Write the frames in memory to the spool for the next start; return the number of frames on disk."""
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
        """Sync the spool to the disk; needs no lock."""
        try:
            self._spool.sync()
        except OSError as error:
            log.error("camera %s: the spool cannot be synced: %s", self._camera, error.strerror)
