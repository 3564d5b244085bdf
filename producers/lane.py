"""The way of one camera's frames to the broker, in order: memory first, the disk spool when the broker is away.

Two threads meet here: the camera's, which calls `publish` and never waits for Kafka unless its policy says so, and the
lane's own, which sends. A lane is in one of two modes, so that order never depends on luck:

- MEMORY: what is pending or unacknowledged in memory comes before everything in the spool.
- SPOOL: everything in the spool comes before what is pending in memory.

MEMORY becomes SPOOL when the memory is empty and the spool is not; SPOOL becomes MEMORY when all of the spool is
acknowledged. A producer starts in SPOOL mode, with what an earlier one left behind.

What a kill can lose: the frames of this process's memory, that is the unacknowledged ones, at most
`in_flight_limit_bytes`. They were counted at capture, so the ledger shows them as gaps. Frames in the spool are safe.
A frame that was sent, and stored by the broker, but not acknowledged before a kill or a stop, may come a second time
with the same identity.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from flawline import messages, telemetry
from flawline.clock import Monotonic, UtcNs, monotonic, utc_ns
from flawline.messages import DropReason, Frame, LedgerEntry
from producers.accounts import Accounts
from producers.camera import Capture
from producers.delivery import fate
from producers.flow import ByteBudget, RateLimit
from producers.framing import to_frame
from producers.journal import Journal
from producers.records import Record
from producers.settings import CameraBase, ProducerSettings, WhenFull
from producers.spool import DamagedRecord, Spool, SpoolFull

log = logging.getLogger(__name__)

POLL_S = 0.05
"""Room in the shared byte budget and the replay's rate come without a notification; nobody waits longer for them."""

RETRY_PAUSE_S = 0.5
MOST_REFUSALS = 5
"""A frame that the broker answers with an unexplained error so often is dropped, for it blocks the ones behind it."""

REPLAY_SHARE = 0.5
"""Of the shared bytes in memory, the part that the spools may use: live cameras find room beside them."""


class _Mode(Enum):
    MEMORY = "memory"
    SPOOL = "spool"


@dataclass(eq=False)
class _Entry:
    frame: Frame
    size_bytes: int
    spooled: bool
    taken_at: float = 0.0
    client: Any = None

    @property
    def key(self) -> tuple[int, int]:
        return self.frame.epoch, self.frame.sequence


class Lane:
    """One camera's identity, order, bounds and account.

    `send` hands a frame to the client and gives the future and the client. `renew` asks to replace a client that is
    broken, and says whether that is news.
    """

    def __init__(
        self,
        camera: CameraBase,
        epoch: int,
        spool: Spool,
        budget: ByteBudget,
        settings: ProducerSettings,
        limit_bytes: int,
        topic: str,
        send: Callable[[Frame], tuple[Any, Any]],
        renew: Callable[[Any], bool],
        clock: Monotonic = monotonic,
        now_ns: UtcNs = utc_ns,
    ) -> None:
        self.camera = camera
        self._spool = spool
        self._budget = budget
        self._settings = settings
        self._limit_bytes = limit_bytes
        self._topic = topic
        self._send = send
        self._renew = renew
        self._clock = clock
        self._now_ns = now_ns
        self._rate = RateLimit(settings.replay_limit_bytes_per_s, clock)
        self._capturing = threading.Lock()
        self._changed = threading.Condition(threading.RLock())
        self._mode = _Mode.SPOOL
        self._pending: deque[_Entry] = deque()
        self._held: _Entry | None = None  # read from the spool, waits for its turn
        self._in_flight: dict[tuple[int, int], _Entry] = {}
        self._returned: list[_Entry] = []
        self._refusals: Counter[tuple[int, int]] = Counter()
        self._not_before = 0.0
        self._troubled = False
        self._said_away = False
        self._unauthorised = False
        self._finished = False
        self._stopped = False
        self._oldest_spooled_ns: int | None = None
        self._accounts = Accounts(spool.folder, camera.name, epoch, spool.last_sequence)
        self.epoch = self._accounts.epoch
        self._thread = threading.Thread(target=self._run, name=f"lane-{camera.name}", daemon=True)
        if spool.frames:
            log.info("camera %s: %d frames of earlier runs wait on disk", camera.name, spool.frames)
            self._oldest_spooled_ns = min(spool.outstanding, default=self.epoch) * 1_000_000

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    # -- the camera's side ---------------------------------------------------------------------------------------

    def publish(self, capture: Capture) -> str | None:
        """Account for a capture and send it on its way; its frame id, or None when the lane takes no more."""
        with self._capturing:
            if self._finished:
                return None
            sequence = self._accounts.capture()
            telemetry.CAPTURED.labels(self.camera.name).inc()
            try:
                frame = to_frame(capture, self.camera, self.epoch, sequence)
            except Exception as error:  # whatever an encoder says of it: the capture is accounted for, the line goes on
                source = f" ({capture.replay_key})" if capture.replay_key else ""
                log.warning("camera %s: capture %d%s is dropped: %s", self.camera.name, sequence, source, error)
                self._drop(self.epoch, sequence, DropReason.ENCODING_FAILED)
            else:
                if frame.size_bytes > self._limit_bytes:
                    log.warning("camera %s: capture %d of %d bytes is dropped, frames.limit_bytes is %d",
                                self.camera.name, sequence, frame.size_bytes, self._limit_bytes)  # fmt: skip
                    self._drop(self.epoch, sequence, DropReason.OVERSIZE)
                else:
                    self._offer(_Entry(frame, frame.size_bytes, spooled=False))
            return messages.frame_id(self.camera.name, self.epoch, sequence)

    def finish(self) -> None:
        """Take no more captures."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def _offer(self, entry: _Entry) -> None:
        policy = self.camera.full_policy
        with self._changed:
            while True:
                if self._fits(entry, policy):
                    self._pending.append(entry)
                    self._changed.notify_all()
                    return
                if policy is WhenFull.DROP:
                    self._drop(*entry.key, DropReason.IN_FLIGHT_FULL)
                    return
                if policy is WhenFull.SPOOL or self._finished:
                    self._put_to_spool(entry)
                    return
                self._changed.wait(POLL_S)

    def _fits(self, entry: _Entry, policy: WhenFull) -> bool:
        """Whether the frame may stay in memory; its bytes are taken then."""
        # While frames wait on disk, a new one goes behind them.
        if policy is WhenFull.SPOOL and (self._spool.unread or self._held or self._is_away()):
            return False
        if self._finished and self._spool.unread:
            return False
        return self._budget.acquire(entry.size_bytes)

    def _is_away(self) -> bool:
        oldest = next(iter(self._in_flight.values()), None)
        late = oldest is not None and self._clock() - oldest.taken_at > self._settings.away_after_s
        return self._troubled or late

    def _put_to_spool(self, entry: _Entry) -> None:
        if not self._spool.frames:
            log.warning("camera %s: the broker does not keep up or is away, frames go to disk", self.camera.name)
            self._oldest_spooled_ns = entry.frame.captured_at
        if self._mode is _Mode.SPOOL:  # what is pending came before this one
            while self._pending:
                earlier = self._pending.popleft()
                self._budget.release(earlier.size_bytes)
                self._append(earlier)
        self._append(entry)
        self._changed.notify_all()

    def _append(self, entry: _Entry) -> None:
        try:
            self._spool.append(Record(*entry.key, messages.encode(entry.frame)))
        except SpoolFull as error:
            log.debug("camera %s: %s", self.camera.name, error)
            self._drop(*entry.key, self._no_room)

    @property
    def _no_room(self) -> DropReason:
        stopping = self._finished and self._settings.spool_limit_bytes == 0
        return DropReason.STOPPED if stopping else DropReason.SPOOL_FULL

    def _drop(self, epoch: int, sequence: int, reason: DropReason) -> None:
        telemetry.DROPPED.labels(self.camera.name, reason).inc()
        self._accounts.drop(epoch, sequence, reason)

    # -- the lane's own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while (entry := self._take()) is not None:
            try:
                future, entry.client = self._send(entry.frame)
            except Exception as error:  # every error of a delivery has a fate, one that is unknown is tried again
                self._failed(entry, error)
            else:
                future.add_callback(self._delivered, entry)
                future.add_errback(self._failed, entry)

    def _take(self) -> _Entry | None:
        """Wait for the next frame to send; None at the end."""
        with self._changed:
            while not self._stopped:
                entry = self._choose()
                if entry is not None:
                    entry.taken_at = self._clock()
                    self._in_flight[entry.key] = entry
                    return entry
            return None

    def _choose(self) -> _Entry | None:
        """The next frame in order; None after waiting, or after a change that needs another look."""
        if self._returned:
            if self._in_flight:  # those behind a failed one are settled first, so that order can be restored
                self._changed.wait(POLL_S)
            else:
                self._recover()
            return None
        if (pause_s := self._not_before - self._clock()) > 0:
            self._changed.wait(pause_s)
            return None
        if self._mode is _Mode.MEMORY:
            if self._pending:
                return self._pending.popleft()
            if not self._in_flight and self._spool.unread:
                self._mode = _Mode.SPOOL
                return None
        else:
            if self._held is None and self._spool.unread:
                self._read_spool()
            if self._held is not None:
                delay_s = self._rate.delay_s()
                alone = not self._in_flight
                if delay_s == 0 and self._budget.acquire(self._held.size_bytes, share=REPLAY_SHARE, force=alone):
                    entry, self._held = self._held, None
                    self._rate.spend(entry.size_bytes)
                    return entry
                self._changed.wait(min(max(delay_s, 0.001), POLL_S))
                return None
            if not self._in_flight and not self._spool.unread:
                self._mode = _Mode.MEMORY
                return None
        self._changed.wait(None if self._mode is _Mode.MEMORY and not self._spool.unread else POLL_S)
        return None

    def _read_spool(self) -> None:
        try:
            record = self._spool.next()
        except DamagedRecord as error:
            log.error("%s", error)
            self._drop_spooled(error.epoch, error.sequence)
            return
        except OSError as error:
            log.error("camera %s: the spool cannot be read: %s", self.camera.name, error)
            self._not_before = self._clock() + RETRY_PAUSE_S
            return
        if record is None:
            return
        try:
            frame = messages.decode(Frame, record.payload)
        except messages.SchemaError as error:  # written by another version
            log.error("camera %s: spooled frame %d cannot be read: %s", self.camera.name, record.sequence, error)
            self._drop_spooled(record.epoch, record.sequence)
            return
        self._held = _Entry(frame, frame.size_bytes, spooled=True)
        self._oldest_spooled_ns = frame.captured_at

    def _drop_spooled(self, epoch: int, sequence: int) -> None:
        self._spool.confirm(epoch, sequence)
        self._drop(epoch, sequence, DropReason.SPOOL_DAMAGED)

    def _recover(self) -> None:
        """Put what came back where it was, nothing being under way."""
        returned, self._returned = sorted(self._returned, key=lambda entry: entry.key), []
        if self._mode is _Mode.MEMORY:
            self._pending.extendleft(reversed(returned))
        else:
            for entry in returned:
                self._budget.release(entry.size_bytes)
            self._held = None
            self._spool.rewind()
        for entry in returned:
            entry.client = None
        self._not_before = self._clock() + RETRY_PAUSE_S

    # -- answers (the client's thread) ---------------------------------------------------------------------------

    def _delivered(self, entry: _Entry, _: object = None) -> None:
        name = self.camera.name
        with self._changed:
            if self._in_flight.pop(entry.key, None) is None:
                return
            self._settle(entry)
            self._troubled = self._said_away = False
            if self._unauthorised:
                self._unauthorised = False
                telemetry.CAMERA_UP.labels(name).set(1)
            self._changed.notify_all()
        telemetry.PUBLISHED.labels(name).inc()
        telemetry.PUBLISHED_BYTES.labels(name).inc(entry.size_bytes)
        telemetry.PUBLISH_LATENCY.labels(name).observe(max(0, self._now_ns() - entry.frame.captured_at) / 1e9)

    def _failed(self, entry: _Entry, error: BaseException) -> None:
        what = fate(error, self._topic)
        # An error that `send` itself raises leaves the client whole, and there is only this frame to blame.
        news = self._renew(entry.client) if what.breaks and entry.client is not None else True
        with self._changed:
            if self._in_flight.pop(entry.key, None) is None:
                return
            to_blame = news or what.shared
            self._refusals[entry.key] += what.counts and to_blame
            reason = what.drop if to_blame else None
            if reason is None and self._refusals[entry.key] >= MOST_REFUSALS:
                reason = DropReason.BROKER_REFUSED
            if reason is None:
                self._returned.append(entry)
                if not self._troubled:
                    log.warning("camera %s: frames cannot be delivered now: %s: %s",
                                self.camera.name, type(error).__name__, error)  # fmt: skip
                self._troubled = True
            else:
                self._say_dropped(entry, reason, error)
                self._settle(entry)
                self._drop(*entry.key, reason)
            self._changed.notify_all()

    def _say_dropped(self, entry: _Entry, reason: DropReason, error: BaseException) -> None:
        name = self.camera.name
        if reason is not DropReason.NOT_AUTHORISED:
            log.error("camera %s: frame %d is dropped as %s: %s", name, entry.frame.sequence, reason, error)
        elif not self._unauthorised:  # once, not for each frame
            log.error("camera %s: this producer may not write to the topic frames (%s), captures are dropped: "
                      "grant WRITE to its user", name, type(error).__name__)  # fmt: skip
            self._unauthorised = True
            telemetry.CAMERA_UP.labels(name).set(0)

    def _settle(self, entry: _Entry) -> None:
        """An entry needs no delivery any more."""
        self._budget.release(entry.size_bytes)
        self._refusals.pop(entry.key, None)
        if entry.spooled:
            self._spool.confirm(*entry.key)

    # -- account and end -----------------------------------------------------------------------------------------

    def _waiting(self, epoch: int) -> int:
        """Captures of an epoch that are neither delivered nor dropped; in SPOOL mode the spool counts its own."""
        moving = [*self._in_flight.values(), *self._returned, *self._pending]
        return self._spool.outstanding[epoch] + sum(not one.spooled and one.frame.epoch == epoch for one in moving)

    @property
    def idle(self) -> bool:
        """Whether every capture so far is delivered or dropped."""
        with self._changed:
            return not (self._pending or self._in_flight or self._returned or self._spool.frames)

    @property
    def owes_entries(self) -> bool:
        """Whether the topic `ledger` does not say yet what is known here."""
        with self._changed:
            return self._accounts.owes(self._has_ended)

    def ledger_entries(self) -> list[tuple[Journal, LedgerEntry]]:
        """What the topic `ledger` must be told now; each is answered by its journal's `confirmed` or `failed`."""
        with self._changed:
            return self._accounts.due(self._now_ns(), self._has_ended)

    def _has_ended(self, epoch: int) -> bool:
        # A capture that is being encoded is counted already, and waits nowhere yet.
        over = epoch != self.epoch or (self._finished and not self._capturing.locked())
        return over and self._waiting(epoch) == 0

    def observe(self) -> None:
        """Set the spool's metrics, sync it to the disk, and say once when the broker does not answer."""
        with self._changed:
            if self._is_away() and not self._said_away:
                self._said_away = True
                log.warning("camera %s: the broker acknowledges nothing since %.0f s", self.camera.name,
                            self._settings.away_after_s)  # fmt: skip
            frames, size_bytes, oldest_ns = self._spool.frames, self._spool.size_bytes, self._oldest_spooled_ns
        name = self.camera.name
        telemetry.SPOOL_FRAMES.labels(name).set(frames)
        telemetry.SPOOL_BYTES.labels(name).set(size_bytes)
        age_s = (self._now_ns() - oldest_ns) / 1e9 if frames and oldest_ns else 0.0
        telemetry.SPOOL_OLDEST_AGE.labels(name).set(max(0.0, age_s))
        try:
            self._spool.sync()
        except OSError as error:
            log.error("camera %s: the spool cannot be synced: %s", name, error.strerror)

    def stop(self, timeout_s: float) -> None:
        """End the sending thread; what is not acknowledged stays in memory until `put_away`."""
        self.finish()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def put_away(self) -> int:
        """Bring what is left in memory to the spool, in order, for the next start; how many frames are on disk."""
        with self._changed:
            left = [*self._in_flight.values(), *self._returned, *self._pending]
            self._in_flight, self._returned, self._held = {}, [], None
            self._pending.clear()
            for entry in left:
                self._budget.release(entry.size_bytes)
            fresh = sorted((entry for entry in left if not entry.spooled), key=lambda entry: entry.key)
            self._spool.rewind()
            if self._settings.spool_limit_bytes == 0:
                lost = fresh
            elif self._mode is _Mode.MEMORY:
                records = [Record(*entry.key, messages.encode(entry.frame)) for entry in fresh]
                refused = {(one.epoch, one.sequence) for one in self._spool.put_first(records)}
                lost = [entry for entry in fresh if entry.key in refused]
            else:
                lost = []
                for entry in fresh:
                    self._append(entry)
            for entry in lost:
                self._drop(*entry.key, self._no_room)
            return self._spool.frames

    def close(self) -> None:
        """Let the files go."""
        with self._changed:
            self._accounts.close()
            self._spool.close()
