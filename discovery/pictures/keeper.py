"""Copies frames from the topic `frames` to the picture store and removes them there, in a thread of its own.

It works beside the thread that writes the store: jobs come in by a bounded queue, results go out by another. A broker
or a picture store that is away is waited for, and the job with it; what has no room in the queue stays in the store.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from kafka.errors import KafkaError

from discovery.frame_files import DamagedFrame, file_of
from discovery.pictures.frame_reader import FrameReader
from flawline.errors import FlawlineError, one_line
from flawline.object_store import MissingObjectError, ObjectStore, StoreAway, line_name, object_store
from flawline.outage import Outage
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

QUEUE_LENGTH = 64
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
CLOSE_S = 5.0
"""Judgements, not measured."""


@dataclass(frozen=True)
class Copy:
    """Asks for a frame at a place of the topic `frames`; `picture_id` is that of its row."""

    picture_id: int
    frame_id: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Removal:
    """Asks to remove objects, the pictures of the rows `picture_ids`."""

    picture_ids: tuple[int, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Copied:
    """A frame is in the picture store as the object `key`."""

    picture_id: int
    key: str
    codec: str
    height: int
    width: int
    size_bytes: int


@dataclass(frozen=True)
class Lost:
    """A frame cannot be had any more: `expired`, `damaged`, or `no-object`."""

    picture_id: int
    reason: str


@dataclass(frozen=True)
class Removed:
    """The objects of a removal are not there any more."""

    picture_ids: tuple[int, ...]


@dataclass(frozen=True)
class Opened:
    """The picture store was opened; `store` is its place and its id."""

    store: str


Job = Copy | Removal
Result = Copied | Lost | Removed | Opened


def picture_store(settings: Settings) -> ObjectStore:
    """Return the store of the kept frames. Raises UsageError for a pictures.url that is none."""
    return ObjectStore(settings.pictures_url, line_name(settings), "pictures.url")


class Keeper:
    """Does jobs one after the other, in a thread that starts with the first.

    `known` returns what `Opened` told last, "" when nothing was opened yet; it is called from that thread.
    """

    def __init__(self, settings: Settings, known: Callable[[], str] = lambda: "") -> None:
        self._settings, self._known = settings, known
        self._jobs: queue.Queue[Job] = queue.Queue(QUEUE_LENGTH)
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._reader = FrameReader(settings)
        self._pictures: ObjectStore | None = None
        self._objects: ObjectStore | None = None

    def submit(self, job: Job) -> bool:
        """Take a job; False when there is no room."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
            self._thread.start()
        with suppress(queue.Full):
            self._jobs.put_nowait(job)
            return True
        return False

    def results(self) -> list[Result]:
        """Return what has been done since the last call."""
        done: list[Result] = []
        with suppress(queue.Empty):
            while True:
                done.append(self._results.get_nowait())
        return done

    def close(self) -> None:
        """End the thread; jobs that it has not done are asked for again by the next process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        outage = Outage(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        job: Job | None = None
        while not self._stop.is_set():
            if job is None:
                with suppress(queue.Empty):
                    job = self._jobs.get(timeout=0.2)
                continue
            try:
                self._results.put(self._done(job))
                job = None
            except (KafkaError, FlawlineError, OSError) as error:
                self._reader.close()
                failure = outage.failed()
                if failure.is_reported:
                    log.warning("pictures wait: %s; trying again with growing pauses", one_line(error))
                self._stop.wait(failure.pause_s)
                continue
            if outage.is_on:
                log.info("pictures are kept again, after %.0f s", outage.age_s())
                outage.ended()
        self._reader.close()

    def _done(self, job: Job) -> Result:
        if self._pictures is None:
            self._pictures, self._objects = self._stores()
        if isinstance(job, Removal):
            for key in job.keys:
                self._pictures.remove(key)
            return Removed(job.picture_ids)
        frame = self._reader.frame(job.frame_id, (job.partition, job.offset))
        if frame is None:
            return Lost(job.picture_id, "expired")
        try:
            data = file_of(frame, self._objects)
        except MissingObjectError:
            return Lost(job.picture_id, "no-object")
        except DamagedFrame:
            return Lost(job.picture_id, "damaged")
        key = self._pictures.put(data)
        return Copied(job.picture_id, key, str(frame.codec), frame.height, frame.width, len(data))

    def _stores(self) -> tuple[ObjectStore, ObjectStore | None]:
        """Return the picture store, made where it is new, and the store of large frames. Raises StoreAway."""
        pictures = picture_store(self._settings)
        place, _, identity = self._known().rpartition(" ")
        marker = pictures.marker()
        is_known = self._settings.pictures.url is not None and place == pictures.root
        if is_known and (marker is None or marker.id != identity):
            raise StoreAway(
                f"picture store {pictures.root} is away: another one, or none, lies in its place: mount it, or give "
                "pictures.url a new place"
            )
        if marker is None:
            if self._settings.pictures.url is not None and not pictures.is_empty():
                raise StoreAway(
                    f"picture store {pictures.root} holds other things and no marker: give pictures.url a new place"
                )
            marker = pictures.create()
        pictures.require()
        self._results.put(Opened(f"{pictures.root} {marker.id}"))
        return pictures, object_store(self._settings)
