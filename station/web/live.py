"""What the live page shows: the latest verdicts of each camera, and pictures of some of them.

One thread follows the end of the topic `verdicts`, and reads for each camera at most one frame a second from the topic
`frames` or the object store: the latest that was not accepted, else the latest. It is a reader beside the line, with
limits in bytes, so that no verdict waits for it.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import cv2
from kafka.errors import KafkaError

from discovery.frame_files import bytes_of
from discovery.pictures.frame_reader import FrameReader, place_of
from discovery.pictures.policy import Candidate
from flawline import clock, imaging, messages
from flawline.errors import FlawlineError, one_line
from flawline.messages import Codec, Decision, Frame, SchemaError, Verdict
from flawline.object_store import ObjectStore, object_store
from flawline.outage import Outage
from flawline.settings.tree import Settings
from station import ended_run, verdict_tail
from station.ended_run import EndedRun, Picture, ShownVerdict
from station.language.languages import N_
from station.web import camera_states

log = logging.getLogger(__name__)

STRIP = 50
"""Verdicts that are kept of each camera."""
POLL_MS = 250
UP_INTERVAL_S = 2.0
PICTURE_INTERVAL_S = 1.0
PICTURE_SIDE_PX = 1280
PICTURES_LIMIT_BYTES = 48 << 20
RECENT_S, RECENT_FRAMES = 600.0, 20_000
"""Verdicts are remembered for so long, and at most so many (some 20 MB), so that a person can ask for their frames."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Judgements, all of these: a picture a second is what an eye follows, and 1280 px fill half of a large screen."""
READING = N_("the verdicts are being read")
"""Stands in the page and its tiles until the broker, or a run that is over, has told what there is."""


@dataclass(frozen=True)
class LiveVerdict(ShownVerdict):
    """A verdict as the page shows it; `serial` grows with each."""

    serial: int = 0


class Pictures:
    """The latest pictures, up to a limit in bytes. Safe for several threads."""

    def __init__(self, limit_bytes: int = PICTURES_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._by_frame: OrderedDict[str, Picture] = OrderedDict()
        self._bytes = 0

    def add(self, picture: Picture) -> None:
        """Keep a picture; the oldest go."""
        with self._lock:
            known = self._by_frame.pop(picture.frame_id, None)
            self._bytes += len(picture.jpeg) - (len(known.jpeg) if known else 0)
            self._by_frame[picture.frame_id] = picture
            while self._bytes > self._limit_bytes and len(self._by_frame) > 1:
                self._bytes -= len(self._by_frame.popitem(last=False)[1].jpeg)

    def get(self, frame_id: str) -> Picture | None:
        """Return a picture that is still kept."""
        with self._lock:
            return self._by_frame.get(frame_id)


class LiveWatch:
    """Follows the verdicts of a line for all who look at it."""

    def __init__(self, settings: Settings, utc_ns: clock.UtcNs = clock.utc_ns) -> None:
        self._settings = settings
        self._utc_ns = utc_ns
        self._outage = Outage(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._serials = count(1)
        self._strips: dict[str, deque[LiveVerdict]] = {}
        self._recent: OrderedDict[str, tuple[int, Candidate]] = OrderedDict()
        self._shown: dict[str, LiveVerdict] = {}
        self._shown_at: dict[str, int] = {}
        self._verdicts: Any = None
        self._frames = FrameReader(settings)
        self._objects: ObjectStore | None = None
        self._asked_at = 0
        self.cameras_up: dict[str, bool] = {}
        self.pictures = Pictures()
        self.problem: str | None = READING
        self.has_ended = False
        """Whether this is a run that is over, and its broker gone."""

    @property
    def cameras(self) -> list[str]:
        """The names of the cameras that have had a verdict since this console started."""
        return sorted(self._strips)

    def strip(self, camera: str, after: int = 0) -> list[LiveVerdict]:
        """Return the latest verdicts of a camera, the oldest first; only serials above `after`."""
        return [verdict for verdict in tuple(self._strips.get(camera, ())) if verdict.serial > after]

    def shown(self, camera: str) -> LiveVerdict | None:
        """Return the verdict that stands in a camera's tile: of those in the last second the one that matters most."""
        return self._shown.get(camera)

    def recent(self, frame_id: str) -> Candidate | None:
        """Return a verdict of the last RECENT_S with the place of its frame, None for another one."""
        known = self._recent.get(frame_id)
        return known[1] if known is not None else None

    def run(self, stop: threading.Event) -> None:
        """Poll until `stop`."""
        try:
            while not stop.is_set():
                stop.wait(self.poll())
        finally:
            self.close()

    def poll(self) -> float:
        """Read what is new and return the seconds to wait. For one thread."""
        if self._utc_ns() - self._asked_at > UP_INTERVAL_S / clock.NS:
            self.cameras_up, self._asked_at = camera_states.cameras_up(self._settings), self._utc_ns()
        try:
            if not self._read_verdicts():
                self.problem = N_("no verdict yet: no worker has started")
                return LONGEST_PAUSE_S / 4
            for camera in self.cameras:
                self._renew(camera)
        except (KafkaError, FlawlineError, OSError) as error:
            self.problem = one_line(error)
            self.close()
            if (run := ended_run.read(self._settings.data_dir)) is not None:
                self._show_ended(run)
                return LONGEST_PAUSE_S
            failure = self._outage.failed()
            if failure.is_reported:
                log.warning("the live page has no verdicts: %s; trying again with growing pauses", self.problem)
            return failure.pause_s
        if self._outage.is_on:
            log.info("the live page has verdicts again, after %.0f s", self._outage.age_s())
            self._outage.ended()
        self.problem, self.has_ended = None, False
        return 0.0

    def _show_ended(self, run: EndedRun) -> None:
        """Show the last verdicts of a run that is over, and the picture of each camera."""
        self.problem = N_("this run is over: its frames are under Review, its classes under Classes")
        if self.has_ended:
            return
        self.has_ended = True
        pictured = {picture.frame_id: picture for picture in run.pictures}
        for last in run.verdicts:
            verdict = LiveVerdict(serial=next(self._serials), **vars(last))
            self._strips.setdefault(verdict.camera, deque(maxlen=STRIP)).append(verdict)
            if picture := pictured.get(verdict.frame_id):
                self.pictures.add(picture)
                self._shown[verdict.camera] = verdict

    def close(self) -> None:
        """Close the connections."""
        self._frames.close()
        if self._verdicts is not None:
            self._verdicts.close()
        self._verdicts = None

    def _read_verdicts(self) -> bool:
        """Read what is new; return False while there is no topic to read."""
        if self._verdicts is None:
            self._verdicts = verdict_tail.consumer(self._settings, STRIP)
            if self._verdicts is None:
                return False
            self._objects = object_store(self._settings)
        polled = self._verdicts.poll(timeout_ms=POLL_MS)
        fresh = (live for records in polled.values() for record in records if (live := self._seen(record)))
        for verdict in fresh:
            self._strips.setdefault(verdict.camera, deque(maxlen=STRIP)).append(verdict)
        return True

    def _seen(self, record: Any) -> LiveVerdict | None:
        try:
            verdict = messages.decode(Verdict, record.value or b"")
        except SchemaError:
            return None  # the ledger counts it
        self._remember(Candidate(replace(verdict, regions=()), *place_of(record)))
        return LiveVerdict(serial=next(self._serials), **vars(ended_run.shown(verdict)))

    def _remember(self, candidate: Candidate) -> None:
        now = self._utc_ns()
        self._recent[candidate.verdict.frame_id] = now, candidate
        while self._recent:
            frame_id, (at, _) = next(iter(self._recent.items()))
            if len(self._recent) <= RECENT_FRAMES and now - at <= RECENT_S / clock.NS:
                break
            self._recent.pop(frame_id, None)

    def _renew(self, camera: str) -> None:
        """Show another verdict of a camera with its picture, at most once in PICTURE_INTERVAL_S."""
        now, before = self._utc_ns(), self._shown.get(camera)
        fresh = self.strip(camera, before.serial if before else 0)
        if not fresh or now - self._shown_at.get(camera, 0) < PICTURE_INTERVAL_S / clock.NS:
            return
        target = most_important(fresh)
        try:
            frame = self._frame_of(target)
            if frame is not None:
                limit_bytes = self._settings.frames.decoded_limit_bytes
                self.pictures.add(picture_of(frame, bytes_of(frame, self._objects), limit_bytes))
        except (FlawlineError, imaging.ImageError) as error:
            log.debug("no picture of %s: %s", target.frame_id, error)
        # What came before the target is passed over, so a later acceptance does not show an older reject again.
        self._shown[camera], self._shown_at[camera] = replace(target, serial=fresh[-1].serial), now

    def _frame_of(self, verdict: LiveVerdict) -> Frame | None:
        """Return the frame of a verdict, None when the topic does not hold it any more."""
        candidate = self.recent(verdict.frame_id)
        if candidate is None:
            return None
        return self._frames.frame(verdict.frame_id, (candidate.partition, candidate.offset))


def most_important(verdicts: Iterable[LiveVerdict]) -> LiveVerdict:
    """Return the latest verdict that is no acceptance, or the latest of all."""
    return max(verdicts, key=lambda verdict: (verdict.decision is not Decision.ACCEPT, verdict.serial))


def picture_of(frame: Frame, data: bytes, limit_bytes: int) -> Picture:
    """Return the picture of a frame, made smaller where it is larger than what is shown.

    Raises ImageError, also when decoding would take more than `limit_bytes`.
    """
    shape = frame.height, frame.width, frame.channels
    pixels = imaging.pixels(imaging.plan(data, frame.codec, shape=shape, memory_limit_bytes=limit_bytes))
    share = min(PICTURE_SIDE_PX / max(pixels.shape[:2]), 1)
    if share < 1 or frame.codec is not Codec.JPEG:
        size = max(round(pixels.shape[1] * share), 1), max(round(pixels.shape[0] * share), 1)
        data = imaging.encode(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), Codec.JPEG)
    return Picture(frame.frame_id, data, frame.height, frame.width)
