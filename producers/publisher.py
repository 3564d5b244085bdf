"""The publisher of all cameras of one process: one Kafka client, one lane per camera, one bookkeeper thread."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from kafka.errors import RetriableError

from flawline import messages, telemetry, topics
from flawline.backoff import Backoff
from flawline.byte_budget import ByteBudget
from flawline.clock import Monotonic, UtcNs, monotonic, utc_ns
from flawline.errors import FlawlineError, one_line
from flawline.messages import Frame, LedgerEntry
from flawline.object_store import StoreAway
from flawline.settings.producers import CameraBase, Overload
from flawline.settings.tree import Settings
from producers.broker_connection import Link, connect, restore_topics
from producers.camera import Capture
from producers.camera_lane import CameraLane
from producers.claim_checks import ClaimChecks
from producers.delivery import NotConnected
from producers.journal import EpochAccount, has_open_accounts
from producers.overload import OverloadWatch
from producers.partitions import Partitions
from producers.spool import Quota, Spool

log = logging.getLogger(__name__)

FIRST_CONNECTION_S = 5.0
"""How long a start waits for the broker, so that frames do not go to disk while the broker is there. A judgement, not
measured."""

ENTRIES_PAUSE_S = 5.0
"""Pause after a failed ledger entry: its error can break the client that frames use too. A judgement, not measured."""

LAST_ENTRIES_S = 3.0
"""How long a stop waits for the acknowledgement of the last ledger entries. A judgement, not measured."""


class Publisher:
    """Gives each capture an identity and delivers it to the topic `frames`, also when the broker is away for a time.

    Every `ledger_interval_s` each camera's account goes to the topic `ledger`. Frames that an earlier process left on
    disk are delivered first, with their old identity, and the account of that epoch is completed. This includes cameras
    that are not in `cameras` any more.

    A camera whose spool cannot be used has no lane until `open` has made it, and stops no other camera. Raises
    UsageError when the URL of the object store can never work.
    """

    def __init__(
        self,
        settings: Settings,
        cameras: Sequence[CameraBase],
        make_client: Callable[[Settings, Partitions], Any] = connect,
        clock: Monotonic = monotonic,
        now_ns: UtcNs = utc_ns,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._now_ns = now_ns
        self._claim_checks = ClaimChecks(settings, clock) if settings.frames.objects_url else None
        self._budget = ByteBudget(settings.producer.in_flight_limit_bytes, telemetry.PRODUCER_IN_FLIGHT_BYTES.set)
        self._quota = Quota(settings.producer.spool_limit_bytes)
        self.folder = settings.producer.spool_dir or settings.data_dir / "spool"
        self._closing = threading.Event()
        self._entries_from = 0.0
        self._entry_answers: SimpleQueue[tuple[CameraLane, Callable[[], None]]] = SimpleQueue()
        self._bookkeeper = threading.Thread(target=self._keep_books, name="bookkeeper", daemon=True)
        self._lanes_lock = threading.Lock()
        self._is_started = self._is_closing = False
        self._troubled: set[str] = set()  # cameras whose account or spool fails, as the log has said
        self.lanes: dict[str, CameraLane] = {}
        orphans = self._orphans({camera.name for camera in cameras})
        for camera in [*cameras, *orphans]:
            with contextlib.suppress(FlawlineError):  # its runner opens it again, and reports what is wrong
                self.open(camera)
        for camera in orphans:
            if camera.name in self.lanes:
                self.lanes[camera.name].finish()
        configured = {camera.name: camera for camera in settings.cameras}
        elsewhere = [camera for camera in [*cameras, *orphans] if camera.name not in configured]
        self._partitions = Partitions(settings, [*configured.values(), *elsewhere])
        self._link = Link(
            lambda: make_client(settings, self._partitions),
            Backoff(0.5, 5.0),
            restore=lambda: restore_topics(settings),
            is_away=lambda: any(lane.is_away for lane in self._open_lanes()),
        )

        self._overload = OverloadWatch(settings, self.lanes, self._partitions.__getitem__)

    def open(self, camera: CameraBase) -> None:
        """Make the lane of a camera that has none, so that its captures can be published.

        Raises FlawlineError when its spool cannot be used: another producer runs this camera, or the disk fails.
        """
        with self._lanes_lock:
            if camera.name in self.lanes:
                return
            if self._is_closing:
                raise FlawlineError("the producer stops")
            try:
                spool = Spool(self.folder / camera.name, self._quota)
                try:
                    lane = self._lane(camera, spool)
                except BaseException:
                    self._quota.give_back(spool.size_bytes)
                    spool.close()  # so that the next attempt may lock it
                    raise
            except (OSError, ValueError, sqlite3.Error) as error:
                raise FlawlineError(
                    f"spool {self.folder / camera.name} cannot be used ({one_line(error, with_type=True)}): repair "
                    "the disk, or move that folder away and keep it: its frames and accounts are in it"
                ) from error
            self.lanes[camera.name] = lane
            if self._is_started:
                lane.observe()
                lane.start()

    def _lane(self, camera: CameraBase, spool: Spool) -> CameraLane:
        # Another producer may have run this camera since this process began, so the epoch is of now.
        epoch = self._now_ns() // 1_000_000
        return CameraLane(
            camera, epoch, spool, self._budget, self._settings.producer, self._settings.frames,
            self._settings.topic(topics.FRAMES.name), self._send, self._renew, self._clock, self._now_ns,
        )  # fmt: skip

    def _open_lanes(self) -> list[CameraLane]:
        """Return the lanes now; the cameras' threads may add others."""
        with self._lanes_lock:
            return list(self.lanes.values())

    def _orphans(self, known: set[str]) -> list[CameraBase]:
        """Return the cameras outside `known` that left frames or an open account, and whose spool no process uses."""
        cameras = []
        for folder in sorted(self.folder.glob("*")) if self.folder.is_dir() else []:
            if folder.name in known or not messages.CAMERA_NAME.fullmatch(folder.name):
                continue
            if _left_something(folder):
                try:
                    Spool(folder, Quota(0)).close()
                except FlawlineError:  # another producer runs this camera
                    continue
                cameras.append(CameraBase(name=folder.name))
        return cameras

    def start(self, wait_s: float = FIRST_CONNECTION_S) -> None:
        """Connect to the broker for at most `wait_s`, then start to send; without a broker, captures go to the spool.

        Raises UsageError when the configuration can never work.
        """
        self._link.start()
        if not self._link.wait(wait_s) and self._link.failure is None:
            log.warning("no connection to the broker %s yet, captures wait for it: start it, or correct "
                        "kafka.bootstrap_servers", self._settings.bootstrap_servers)  # fmt: skip
        self.check()
        with self._lanes_lock:
            self._is_started = True
            for lane in self.lanes.values():
                lane.observe()
                lane.start()
        self._bookkeeper.start()
        if self._settings.producer.overload is not Overload.KEEP:
            self._overload.start()

    def check(self) -> None:
        """Raise UsageError when the configuration makes a connection impossible."""
        if self._link.failure is not None:
            raise self._link.failure

    def publish(self, camera: str, capture: Capture) -> str | None:
        """Publish a capture of a camera whose lane is open; return its frame id, or None after `finish`."""
        return self.lanes[camera].publish(capture)

    def finish(self) -> None:
        """Refuse all later captures."""
        for lane in self._open_lanes():
            lane.finish()

    @property
    def refusal(self) -> str | None:
        """Return why the broker refuses this producer now, with the remedy, None when it does not."""
        if self._link.refusal is not None:
            return str(self._link.refusal)
        if any(lane.is_unauthorised for lane in self._open_lanes()):
            name = self._settings.topic(topics.FRAMES.name)
            return f"this producer may not write to the topic {name}, captures were dropped: grant WRITE to its user"
        return None

    @property
    def idle(self) -> bool:
        """Return whether every capture is delivered or dropped."""
        return all(lane.idle for lane in self._open_lanes())

    def close(self, drain_timeout_s: float) -> int:
        """Deliver frames for at most `drain_timeout_s`, spool the rest, and return the number of frames on disk.

        It ends within `drain_timeout_s` and a few seconds, also without a broker.
        """
        with self._lanes_lock:
            self._is_closing = True  # no lane is opened any more
        self.finish()
        deadline = self._clock() + drain_timeout_s
        while not self.idle and self._clock() < deadline and self._link.client is not None:
            self._closing.wait(0.02)
        left = 0
        for lane in self._open_lanes():
            lane.stop(timeout_s=1.0)
        for lane in self._open_lanes():
            with self._alone(lane):
                left += lane.put_away()
        if left:
            log.warning("%d frames wait in %s: the next start delivers them", left, self.folder)
        self._closing.set()
        self._overload.close()
        if self._bookkeeper.is_alive():
            self._bookkeeper.join(1.0)
        self._publish_last_entries()
        self._link.close(timeout_s=0.0)
        for lane in self._open_lanes():
            with self._alone(lane):
                lane.observe()
                lane.close()
        return left

    @contextlib.contextmanager
    def _alone(self, lane: CameraLane) -> Iterator[None]:
        """Keep an error of one camera's disk from the other cameras; the log tells it once, until it has passed."""
        name = lane.camera.name
        try:
            yield
        except Exception as error:  # SQLite and the system can raise anything
            if name not in self._troubled:
                self._troubled.add(name)
                text = "camera %s: its account cannot be kept (%s); the other cameras go on: repair the disk of %s"
                log.error(text, name, one_line(error, with_type=True), self.folder / name)
        else:
            self._troubled.discard(name)

    def _renew(self, client: Any) -> bool:
        return self._link.renew(client)

    def _send(self, frame: Frame) -> tuple[Any, Any]:
        """Send a frame; return the future and the client. Raises the errors that `producers.delivery` classifies."""
        client = self._link.client
        if client is None:
            raise NotConnected("no connection to the broker")
        if self._claim_checks is None:
            return self._send_record(client, frame), client
        frame, settled = self._claim_checks.check(frame)
        try:
            future = self._send_record(client, frame)
        except BaseException:
            settled()
            raise
        future.add_both(settled)
        return future, client

    def _send_record(self, client: Any, frame: Frame) -> Any:
        return client.send(
            self._settings.topic(topics.FRAMES.name),
            value=messages.encode(frame),
            key=frame.camera.encode(),
            headers=messages.headers(frame),
            partition=self._partitions[frame.camera],
        )

    # -- accounts ------------------------------------------------------------------------------------------------

    def _keep_books(self) -> None:
        while not self._closing.wait(self._settings.producer.ledger_interval_s):
            for lane in self._open_lanes():
                with self._alone(lane):
                    lane.observe()
            self._publish_entries()
            if self._claim_checks is not None:
                with contextlib.suppress(StoreAway):  # the lanes report it; the next turn tries again
                    self._claim_checks.refresh()

    def _publish_last_entries(self) -> None:
        deadline = self._clock() + LAST_ENTRIES_S
        self._entries_from = 0.0
        while self._link.client is not None and self._clock() < deadline:
            self._publish_entries()
            if not any(lane.owes_entries for lane in self._open_lanes()):
                return
            time.sleep(0.02)  # the answers arrive on the threads of the client
        if any(lane.owes_entries for lane in self._open_lanes()):
            log.warning("the last ledger entries are not acknowledged: the next start completes them")

    def _publish_entries(self) -> None:
        self._take_entry_answers()
        client = self._link.client
        if client is None or self._clock() < self._entries_from:
            return
        for lane in self._open_lanes():
            with self._alone(lane):
                for account, entry in lane.ledger_entries():
                    self._publish_entry(client, lane, account, entry)

    def _take_entry_answers(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                lane, answer = self._entry_answers.get_nowait()
                with self._alone(lane):
                    answer()

    def _publish_entry(self, client: Any, lane: CameraLane, account: EpochAccount, entry: LedgerEntry) -> None:
        # An account waits for its journal's disk, and the client's thread brings the answers for the frames of all
        # cameras too: so the bookkeeper's thread records the answers.
        def confirmed(_: object) -> None:
            self._entry_answers.put((lane, account.confirmed))

        def failed(error: BaseException) -> None:
            self._entry_answers.put((lane, account.failed))
            away = isinstance(error, RetriableError)
            # A broken client fails its entries and its frames; the first report of the two replaces the client.
            if away or self._link.renew(client):
                self._entries_from = self._clock() + ENTRIES_PAUSE_S
                log.warning("a ledger entry of camera %s failed and is sent again: %s", entry.camera, one_line(error))

        try:
            future = client.send(
                self._settings.topic(topics.LEDGER.name),
                value=messages.encode(entry),
                key=entry.camera.encode(),
                headers=messages.headers(entry),
            )
        except Exception as error:  # the client can raise anything; the next entry repeats the account
            failed(error)
            return
        future.add_callback(confirmed)
        future.add_errback(failed)


def _left_something(folder: Path) -> bool:
    return folder.is_dir() and (any(folder.glob("*.seg")) or has_open_accounts(folder))
