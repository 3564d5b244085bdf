"""What producers do when the workers are too slow: keep everything, thin the captures out, or give up the oldest.

Without a policy an overload ends at the retention of the topic `frames`: the broker deletes the oldest frames unread.
With `thin`, each camera keeps every n-th capture while its frames wait too long, and the others are counted as dropped
with the reason `overload`. With `oldest-first`, a frame that is about to be sent and cannot have its verdict in time is
given up with the reason `overload-oldest`: frames leave in order, so the oldest go first, and those behind them are
live. A frame that is held back would wait as much less in the topic, so that would change nothing.
"""

from __future__ import annotations

import bisect
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kafka.errors import KafkaError

from flawline import kafka_clients, telemetry, topics
from flawline.clock import NS, Monotonic, UtcNs, monotonic, utc_ns
from flawline.errors import FlawlineError, one_line
from flawline.settings.producers import Overload
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
"""Pause between two looks at the workers' committed offsets. A judgement, not measured."""

SPARSEST = 32
"""At least every so many captures are kept, so that a camera never goes dark. A judgement, not measured."""

SAMPLE_NS = 500_000_000
SAMPLES = 20_000
"""Published frames whose capture time is remembered: one each half a second, for three hours."""

WELL_S = 60.0
"""At three times the load a camera gives up nothing for ten seconds now and then, which is no end of the overload."""

PACE_SPANS = 15
"""Spans between two looks over which the workers' pace is measured, half a minute: a commit comes with each batch, so a
single span says little. A judgement, not measured."""

OUTLOOK_VALID_S = 5 * INTERVAL_S
"""Age from which what is known of the workers decides nothing: the broker is away then. A judgement, not measured."""


def keep_every(lag_s: float, after_s: float, priority: int) -> int:
    """Return n: every n-th capture is kept while the oldest frame without a verdict is `lag_s` old.

    It is 1 up to `after_s` times 2^priority, then 2, and it doubles with each doubling of the lag, up to SPARSEST. So
    the lag settles where the workers keep up, and a camera of higher priority is thinned later and less.
    """
    bound_s = after_s * 2.0**priority
    if lag_s <= bound_s:
        return 1
    return int(min(SPARSEST, 2 ** math.ceil(math.log2(lag_s / bound_s))))


@dataclass(frozen=True)
class Outlook:
    """What becomes of a frame that is sent: where and how fast the workers are, and how late its verdict may come.

    `next_offset` is the offset that the workers finish next, as they said at `seen_at_s` (monotonic), and `per_s` the
    frames that they finish in a second, None when that is not known. `lag_s` is the age of the oldest frame without a
    verdict. `within_s` is the age at which a frame must have its verdict.
    """

    next_offset: int
    lag_s: float
    per_s: float | None
    within_s: float
    seen_at_s: float

    def is_too_late(self, age_s: float, ahead_of: int, now_s: float) -> bool:
        """Return whether a frame of `age_s` would have its verdict too late behind the frames before `ahead_of`."""
        since_s = now_s - self.seen_at_s
        if since_s > OUTLOOK_VALID_S:
            return False
        if self.lag_s > self.within_s:  # whatever their pace was: a frame that is sent now comes behind that one
            return True
        if self.per_s is None:
            return age_s > self.within_s
        waiting = max(0.0, ahead_of - self.next_offset - self.per_s * since_s)
        return age_s + waiting / self.per_s > self.within_s


class Pace:
    """How many frames of one camera the workers finish in a second, while there are any."""

    def __init__(self) -> None:
        self._spans: deque[tuple[int, float]] = deque(maxlen=PACE_SPANS)
        self._last: tuple[int, bool, float] | None = None

    def look(self, committed: int, published: int, at_s: float) -> float | None:
        """Return frames per second, None while unknown, from the next offsets of workers and producer at `at_s`.

        A span in which the workers had nothing to do, at its begin or its end, or finished nothing does not show it.
        """
        if self._last is not None:
            last, had_work, last_at_s = self._last
            if committed < last:  # the log was replaced by a new one
                self._spans.clear()
            elif had_work and last < committed < published and at_s > last_at_s:
                self._spans.append((committed - last, at_s - last_at_s))
        self._last = committed, published > committed, at_s
        if not self._spans:
            return None
        return sum(count for count, _ in self._spans) / sum(seconds for _, seconds in self._spans)


class PublishedFrames:
    """The capture times of frames in the log, by offset, as the acknowledgements tell them. Thread-safe."""

    def __init__(self) -> None:
        self.next_offset = 0
        self._offsets: list[int] = []
        self._captured_at: list[int] = []
        self._lock = threading.Lock()

    def add(self, offset: int, captured_at: int) -> None:
        """Remember an acknowledged frame, unless one of nearly the same time is remembered."""
        with self._lock:
            self.next_offset = offset + 1
            if self._offsets and offset <= self._offsets[-1]:
                self._offsets, self._captured_at = [], []  # the log was replaced by a new one
            if self._captured_at and captured_at - self._captured_at[-1] < SAMPLE_NS:
                return
            self._offsets.append(offset)
            self._captured_at.append(captured_at)
            if len(self._offsets) > SAMPLES:
                self._offsets, self._captured_at = self._offsets[1::2], self._captured_at[1::2]

    def age_s(self, committed: int, now_ns: int) -> float:
        """Return the age of the oldest frame at or behind the offset `committed`; 0 when none is known there."""
        with self._lock:
            index = bisect.bisect_left(self._offsets, committed)
            if index == len(self._offsets):
                return 0.0
            return max(0.0, (now_ns - self._captured_at[index]) * NS)


def committed_offsets(settings: Settings) -> dict[int, int]:
    """Return the workers' committed offset of each partition of `frames`. Raises FlawlineError or KafkaError."""
    group, frames = f"{settings.kafka.topic_prefix}{topics.WORKERS_GROUP}", settings.topic(topics.FRAMES.name)
    client = kafka_clients.admin(settings)
    try:
        offsets = client.list_group_offsets({group: None})[group]
    finally:
        client.close()
    return {place.partition: at.offset for place, at in offsets.items() if place.topic == frames}


class OverloadWatch:
    """Compares what cameras published with what the workers have finished, and tells the lanes what it means."""

    def __init__(
        self,
        settings: Settings,
        lanes: Mapping[str, Any],
        partition_of: Callable[[str], int],
        committed: Callable[[Settings], Mapping[int, int]] = committed_offsets,
        now_ns: UtcNs = utc_ns,
        clock: Monotonic = monotonic,
    ) -> None:
        self._settings = settings
        self._policy = settings.producer.overload
        self._lanes = lanes
        self._partition_of = partition_of
        self._committed = committed
        self._now_ns = now_ns
        self._clock = clock
        self._every: dict[str, int] = {}
        self._paces: dict[str, Pace] = {}
        self._given_up: dict[str, tuple[int, float | None]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="overload", daemon=True)

    def start(self) -> None:
        """Start the thread that watches."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; a question to the broker that is open ends by itself."""
        self._closed.set()

    def look(self) -> None:
        """Compare once. While the broker does not say how far the workers are, every capture is kept."""
        try:
            committed = self._committed(self._settings)
        except (FlawlineError, KafkaError) as error:
            log.debug("the workers' offsets are not known: %s", one_line(error))
            committed = {}
        now_ns = self._now_ns()
        for name, lane in list(self._lanes.items()):  # a camera that starts late adds its lane
            offset = self._offset(name, committed)
            lag_s = lane.published.age_s(offset, now_ns) if offset is not None else 0.0
            telemetry.CAMERA_LAG.labels(name).set(lag_s)
            if self._policy is Overload.OLDEST_FIRST:
                self._foretell(name, lane, offset, lag_s)
            else:
                self._thin(name, lane, lag_s)

    def _thin(self, name: str, lane: Any, lag_s: float) -> None:
        every = keep_every(lag_s, self._settings.producer.overload_after_s, lane.camera.priority)
        if every != self._every.get(name, 1):
            text = "every capture is kept again" if every == 1 else f"1 of {every} captures is kept"
            log.warning("camera %s: its frames wait %.0f s for the workers: %s", name, lag_s, text)
        self._every[name] = every
        telemetry.KEPT_SHARE.labels(name).set(1 / every)
        lane.thin(every)

    def _foretell(self, name: str, lane: Any, offset: int | None, lag_s: float) -> None:
        at_s = self._clock()
        self._report(name, lane.given_up_late, lag_s, at_s)
        if offset is None:
            lane.outlook = None
            return
        within_s = self._settings.producer.overload_after_s * 2.0**lane.camera.priority
        per_s = self._paces.setdefault(name, Pace()).look(offset, lane.published.next_offset, at_s)
        lane.outlook = Outlook(offset, lag_s, per_s, within_s, at_s)

    def _report(self, name: str, given_up: int, lag_s: float, at_s: float) -> None:
        """Log the first frames that a camera gives up, and that it has given up none for WELL_S."""
        before, last_at_s = self._given_up.get(name, (0, None))
        if given_up > before:
            if last_at_s is None:
                text = "those that cannot be in time are given up"
                log.warning("camera %s: its frames wait %.0f s for the workers: %s", name, lag_s, text)
            last_at_s = at_s
        elif last_at_s is not None and at_s - last_at_s > WELL_S:
            log.warning("camera %s: every frame is sent again: it gave up %d", name, given_up)
            last_at_s = None
        self._given_up[name] = given_up, last_at_s

    def _offset(self, camera: str, committed: Mapping[int, int]) -> int | None:
        try:
            return committed.get(self._partition_of(camera))
        except KeyError:  # the broker has just come, and the camera has no partition yet
            return None

    def _run(self) -> None:
        while not self._closed.wait(INTERVAL_S):
            self.look()
