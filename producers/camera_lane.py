"""The path of one camera's captures to the broker: identity, account, policy when there is no room, delivery.

Two threads use a lane. The camera's thread calls `publish`; it waits for Kafka only when the policy is `wait`. The
lane's thread sends the frame that `producers.backlog` returns as the next one. The Kafka client's thread brings the
answers for all cameras, so it must never wait for a disk: it takes the lock of the lane, and no thread writes or reads
a file while it holds that lock.

A kill loses the frames that are only in the memory of this process: the unacknowledged ones, at most
`in_flight_limit_bytes`. The journal counted them at capture, so the ledger shows them as gaps. Frames in the spool are
safe. A frame that the broker stored, but did not acknowledge before a kill or a stop, can arrive a second time with the
same identity.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from flawline import messages, telemetry
from flawline.byte_budget import ByteBudget
from flawline.clock import NS, Monotonic, UtcNs, monotonic, utc_ns
from flawline.errors import one_line
from flawline.imaging import ImageTooLarge
from flawline.messages import DropReason, Frame, LedgerEntry
from flawline.settings.producers import CameraBase, Durability, Overload, ProducerSettings, WhenFull
from flawline.settings.tree import FrameSettings
from producers.backlog import POLL_S, Backlog, Entry
from producers.camera import Capture
from producers.delivery import Drop, classify, decide
from producers.framing import to_frame
from producers.journal import EpochAccount, Journal
from producers.overload import Outlook, PublishedFrames
from producers.spool import Spool

log = logging.getLogger(__name__)

RECOVERY_PAUSE_S = 30.0
"""Pause of a camera's sending thread after an error that nobody foresaw. A judgement, not measured."""


DISK_PAUSE_S = 0.5
"""Pause between two attempts of a source that waits for a disk which refuses its frames. A judgement, not measured."""


class CameraLane:
    """Keeps one camera's identity, order, limits and account.

    `send` hands a frame to the Kafka client and returns the future and the client. `renew` asks for a new client in
    place of a broken one; it returns True for the first report of that client.
    """

    def __init__(
        self,
        camera: CameraBase,
        epoch: int,
        spool: Spool,
        budget: ByteBudget,
        settings: ProducerSettings,
        limits: FrameSettings,
        topic: str,
        send: Callable[[Frame], tuple[Any, Any]],
        renew: Callable[[Any], bool],
        clock: Monotonic = monotonic,
        now_ns: UtcNs = utc_ns,
    ) -> None:
        self.camera = camera
        self._settings = settings
        self._is_durable = settings.durability is Durability.DISK
        self._disk_bytes = settings.in_flight_limit_bytes  # of a source that waits or drops
        self._limits = limits
        self._topic = topic
        self._send = send
        self._renew = renew
        self._now_ns = now_ns
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        # A source that waits may not lose frames.
        sheds_oldest = settings.overload is Overload.OLDEST_FIRST and camera.full_policy is not WhenFull.WAIT
        self._backlog = Backlog(
            camera.name, spool, budget, settings, self._drop, clock, self._changed,
            self._is_too_late if sheds_oldest else lambda _: False, sheds_oldest, self._is_durable,
        )  # fmt: skip
        self._journal = Journal(spool.folder, camera.name, epoch, spool.last_sequence)
        self.epoch = self._journal.epoch
        self.published = PublishedFrames()
        self.outlook: Outlook | None = None
        self.given_up_late = 0
        self._every = 1
        self._capturing = threading.Lock()
        self._is_capturing = False
        self._refusals: Counter[tuple[int, int]] = Counter()
        self._has_trouble = False
        self._is_away_logged = False
        self._is_unauthorised = False
        self._finished = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"lane-{camera.name}", daemon=True)
        if spool.frames:
            log.info("camera %s: %d frames of earlier runs wait on disk", camera.name, spool.frames)

    def start(self) -> None:
        """Start the thread that sends frames."""
        self._thread.start()

    # -- the camera's side ---------------------------------------------------------------------------------------

    def publish(self, capture: Capture) -> str | None:
        """Count a capture and queue its frame; return the frame id, or None after `finish`."""
        with self._capturing:
            self._is_capturing = True  # set first, so that `_has_ended` sees each counted capture
            try:
                return None if self._finished else self._publish(capture)
            finally:
                self._is_capturing = False

    def _publish(self, capture: Capture) -> str:
        name = self.camera.name
        sequence = self._journal.next_sequence if self._is_durable else self._journal.capture()
        telemetry.CAPTURED.labels(name).inc()
        # A source that waits is held back by its own policy, and may not lose frames.
        if sequence % self._every and self.camera.full_policy is not WhenFull.WAIT:
            self._drop(self.epoch, sequence, DropReason.OVERLOAD)
            return messages.frame_id(name, self.epoch, sequence)
        try:
            frame = to_frame(capture, self.camera, self.epoch, sequence, self._limits.decoded_limit_bytes)
        except ImageTooLarge as error:
            log.warning("camera %s: capture %d is dropped: %s: raise frames.decoded_limit_bytes", name, sequence, error)
            self._drop(self.epoch, sequence, DropReason.OVERSIZE)
        except Exception as error:  # an encoder can raise anything: count a drop and continue
            source = f" ({capture.replay_key})" if capture.replay_key else ""
            log.warning("camera %s: capture %d%s is dropped: %s", name, sequence, source, error)
            self._drop(self.epoch, sequence, DropReason.ENCODING_FAILED)
        else:
            if frame.size_bytes > self._limits.limit_bytes:
                log.warning("camera %s: capture %d of %d bytes is dropped: frames.limit_bytes is %d, raise it",
                            name, sequence, frame.size_bytes, self._limits.limit_bytes)  # fmt: skip
                self._drop(self.epoch, sequence, DropReason.OVERSIZE)
            else:
                self._offer(Entry(frame))
                self._journal.count(sequence)
        return messages.frame_id(name, self.epoch, sequence)

    def thin(self, every: int) -> None:
        """Publish every n-th capture from now on, and drop the others for overload; 1 publishes all."""
        self._every = every

    def finish(self) -> None:
        """Refuse all later captures."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def _offer(self, entry: Entry) -> None:
        while (place := self._find_place(entry)) is WhenFull.SPOOL:
            waits = self.camera.full_policy is WhenFull.WAIT and not self._finished
            has_place = self._backlog.write(None if waits else self._no_room)
            if has_place and self._is_durable:
                self._backlog.sync()
            with self._changed:
                self._changed.notify_all()
                if has_place:
                    return
                self._changed.wait_for(lambda: self._finished, DISK_PAUSE_S)
        if place is WhenFull.DROP:
            self._drop(*entry.key, DropReason.IN_FLIGHT_FULL)

    def _find_place(self, entry: Entry) -> WhenFull | None:
        """Return what to do with a new frame, SPOOL or DROP, or None when it has found room in memory."""
        policy = self.camera.full_policy
        with self._changed:
            while True:
                if self._is_durable:
                    if policy is WhenFull.SPOOL or self._finished or self._backlog.on_disk[1] <= self._disk_bytes:
                        self._backlog.leave_memory(entry)
                        return WhenFull.SPOOL
                    if policy is WhenFull.DROP:
                        return WhenFull.DROP
                    self._changed.wait(POLL_S)
                    continue
                # A new frame must not overtake the frames on disk. Without a broker, memory would only fill up.
                to_disk = policy is WhenFull.SPOOL and (self._backlog.unread or self._is_away())
                to_disk |= self._finished and self._backlog.unread
                if not to_disk and self._backlog.keep(entry):
                    self._changed.notify_all()
                    return None
                if policy is WhenFull.DROP:
                    return WhenFull.DROP
                if policy is WhenFull.SPOOL or self._finished:
                    self._backlog.leave_memory(entry)
                    return WhenFull.SPOOL
                self._changed.wait(POLL_S)

    @property
    def is_away(self) -> bool:
        """Return whether the broker acknowledges no frames."""
        with self._changed:
            return self._is_away()

    def _is_away(self) -> bool:
        return self._has_trouble or self._backlog.unanswered_s() > self._settings.away_after_s

    @property
    def _no_room(self) -> DropReason:
        stopping = self._finished and self._settings.spool_limit_bytes == 0
        return DropReason.STOPPED if stopping else DropReason.SPOOL_FULL

    def _is_too_late(self, frame: Frame) -> bool:
        """Return whether the workers would finish the frame, which is the next to be sent, too late."""
        if (outlook := self.outlook) is None:
            return False
        age_s = (self._now_ns() - frame.captured_at) * NS
        return outlook.is_too_late(age_s, self.published.next_offset + self._backlog.in_flight, self._clock())

    def _drop(self, epoch: int, sequence: int, reason: DropReason) -> None:
        self.given_up_late += reason is DropReason.OVERLOAD_OLDEST
        telemetry.DROPPED.labels(self.camera.name, reason).inc()
        self._journal.drop(epoch, sequence, reason)

    # -- the lane's own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._send_frames()
            except Exception as error:  # an error of the disk that nobody foresaw must not end the camera
                log.error("camera %s: its frames cannot be sent (%s): trying again each %.0f s",
                          self.camera.name, one_line(error, with_type=True), RECOVERY_PAUSE_S)  # fmt: skip
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, RECOVERY_PAUSE_S)

    def _send_frames(self) -> None:
        while (entry := self._take()) is not None:
            try:
                future, entry.client = self._send(entry.frame)
            except Exception as error:  # `_failed` classifies it and retries after an unknown one
                self._failed(entry, error)
            else:
                future.add_callback(self._delivered, entry)
                future.add_errback(self._failed, entry)

    def _take(self) -> Entry | None:
        """Wait for the next frame to send; return None after `stop`."""
        while not self._stopped:
            self._backlog.work_on_disk()
            with self._changed:
                if self._stopped:  # meanwhile
                    break
                entry, wait_s = self._backlog.next()
                if entry is not None:
                    return entry
                if wait_s != 0:
                    self._changed.wait(wait_s)
        return None

    # -- answers (the client's thread) ---------------------------------------------------------------------------

    def _delivered(self, entry: Entry, metadata: Any = None) -> None:
        name = self.camera.name
        if metadata is not None:
            self.published.add(metadata.offset, entry.frame.captured_at)
        with self._changed:
            if not self._backlog.answered(entry):
                return
            self._settle(entry)
            self._has_trouble = self._is_away_logged = False
            if self._is_unauthorised:
                self._is_unauthorised = False
                telemetry.CAMERA_UP.labels(name).set(1)
            self._changed.notify_all()
        telemetry.PUBLISHED.labels(name).inc()
        telemetry.PUBLISHED_BYTES.labels(name).inc(entry.size_bytes)
        telemetry.PUBLISH_LATENCY.labels(name).observe(max(0, self._now_ns() - entry.frame.captured_at) / 1e9)

    def _failed(self, entry: Entry, error: BaseException) -> None:
        failure = classify(error, self._topic)
        # An error that `send` itself raises does not break the client: only this frame is the cause.
        is_first_report = self._renew(entry.client) if failure.breaks and entry.client is not None else True
        with self._changed:
            if not self._backlog.answered(entry):
                return
            decision = decide(failure, is_first_report=is_first_report, refusals=self._refusals[entry.key])
            if not isinstance(decision, Drop):
                self._refusals[entry.key] = decision.refusals
                self._backlog.give_back(entry)
                if not self._has_trouble:
                    log.warning("camera %s: frames cannot be delivered now: %s", self.camera.name, one_line(error))
                self._has_trouble = self._is_away_logged = True
            else:
                self._report_drop(entry, decision.reason, error)
                self._settle(entry, decision.reason)
            self._changed.notify_all()

    def _report_drop(self, entry: Entry, reason: DropReason, error: BaseException) -> None:
        name = self.camera.name
        if reason is not DropReason.NOT_AUTHORISED:
            log.error("camera %s: frame %d is dropped as %s: %s", name, entry.frame.sequence, reason, error)
        elif not self._is_unauthorised:  # reported once, not for each frame
            log.error("camera %s: this producer may not write to the topic %s (%s), captures are dropped: "
                      "grant WRITE to its user", name, self._topic, type(error).__name__)  # fmt: skip
            self._is_unauthorised = True
            telemetry.CAMERA_UP.labels(name).set(0)

    def _settle(self, entry: Entry, reason: DropReason | None = None) -> None:
        self._backlog.settle(entry, reason)
        self._refusals.pop(entry.key, None)

    # -- account and end -----------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Return whether every capture so far is delivered or dropped."""
        with self._changed:
            return self._backlog.is_empty

    @property
    def is_unauthorised(self) -> bool:
        """Return whether the broker lets this producer write no frames."""
        return self._is_unauthorised

    @property
    def owes_entries(self) -> bool:
        """Return whether the topic `ledger` lacks entries for what this lane knows."""
        return self._journal.owes(self._has_ended)

    def ledger_entries(self) -> list[tuple[EpochAccount, LedgerEntry]]:
        """Return the entries to publish now; call `confirmed` or `failed` of the account after each of them."""
        return self._journal.due(self._now_ns(), self._has_ended)

    def _has_ended(self, epoch: int) -> bool:
        # A capture that is being encoded is counted, but the backlog does not hold it yet.
        with self._changed:
            over = epoch != self.epoch or (self._finished and not self._is_capturing)
            return over and not self._backlog.is_waiting(epoch)

    def observe(self) -> None:
        """Set the spool's metrics, sync the spool to the disk, and log once that the broker does not answer."""
        name = self.camera.name
        with self._changed:
            if self._is_away() and not self._is_away_logged:
                self._is_away_logged = True
                log.warning("camera %s: the broker acknowledges no frames, it counts as away", name)
            (frames, size_bytes), oldest_ns = self._backlog.on_disk, self._backlog.oldest_on_disk_ns
        telemetry.SPOOL_FRAMES.labels(name).set(frames)
        telemetry.SPOOL_BYTES.labels(name).set(size_bytes)
        telemetry.SPOOL_OLDEST_AGE.labels(name).set(max(0.0, (self._now_ns() - oldest_ns) / 1e9) if frames else 0.0)
        self._backlog.sync()

    def stop(self, timeout_s: float) -> None:
        """End the sending thread; unacknowledged frames stay in memory until `put_away`."""
        self.finish()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def put_away(self) -> int:
        """Write the frames in memory to the spool for the next start; return the number of frames on disk."""
        return self._backlog.put_away(self._no_room, has_spool=self._settings.spool_limit_bytes > 0)

    def close(self) -> None:
        """Close the journal and the spool."""
        self._journal.close()
        self._backlog.close()
