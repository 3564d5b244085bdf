"""The second stage: the description of a frame that was not accepted, after its verdict, within a budget.

A description costs several passes of the backbone, more than scoring does. When every frame is a reject, as under a
broken lamp, the line must go on at its pace. So descriptions are bounded three times: by camera and second, by the
bytes that wait, and by the share of a CPU that they take while frames wait for their scores. A frame beyond the
budget has a defect all the same, without regions; it is counted with the reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from flawline import clock, telemetry
from flawline.errors import one_line
from flawline.messages import DefectRegion, Frame
from flawline.settings.workers import WorkerSettings
from scorer.regions.regions import LocalRegions, describe
from workers import scoring
from workers.lane import Job, Lane, Outcome
from workers.suspects import ATTEMPT_LIMIT

if TYPE_CHECKING:
    from scorer.detector import Detector
    from scorer.scores import Scores

log = logging.getLogger(__name__)

STEP_S = 0.005
"""How often a description that is over its share looks whether it may go on: half the time of scoring a frame."""

BURST_S = 0.2
"""Unused share that is kept, in seconds of work: some ten passes of the backbone. A judgement, not measured."""

QUEUE_LIMIT = 256
"""Most frames that wait. With exactly-once delivery their offsets stand beside a commit, in 4,096 bytes.

A judgement: with the default of `describe_queue_bytes` some 50 frames of 1 MB wait.
"""

CAMERA_LIMIT = 4096
"""Cameras that are remembered, so that a stream of invented names cannot take all memory."""


class Undescribed(StrEnum):
    """Why a defect left without its regions."""

    CAMERA_RATE = "camera-rate"
    QUEUE_FULL = "queue-full"
    SUSPECT = "suspect"
    FAILED = "failed"
    REFUSED = "broker-refused"
    DECIDED_BEFORE = "decided-before"


@dataclass(frozen=True, eq=False)
class Judged:
    """A frame whose verdict has left, with all that its defect is made of."""

    job: Job
    frame: Frame
    pixels: np.ndarray
    scores: Scores
    located: LocalRegions
    detector: Detector

    @property
    def size_bytes(self) -> int:
        """The memory that it holds while it waits."""
        scores, located = self.scores, self.located
        arrays = [self.pixels, scores.heatmap, located.fine, located.mask]
        arrays += [region.mask for region in located.regions]
        inputs_bytes = scores.region_inputs.size_bytes if scores.region_inputs is not None else 0
        return sum(array.nbytes for array in arrays) + inputs_bytes


class CameraRate:
    """At most `per_s` descriptions of each camera and second; what a camera does not use it has for one second."""

    def __init__(self, per_s: float, now: clock.Monotonic = clock.monotonic) -> None:
        self._per_s = per_s
        self._now = now
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, camera: str) -> bool:
        """Take one of a camera's descriptions; return False when it has none left."""
        now, most = self._now(), max(1.0, self._per_s)
        left, since = self._left.get(camera, (most, now))
        left = min(most, left + (now - since) * self._per_s)
        if camera not in self._left and len(self._left) >= CAMERA_LIMIT:
            self._left.clear()
        self._left[camera] = (left - 1 if left >= 1 else left), now
        return left >= 1


class CpuShare:
    """Lets work go on while no frame waits for its verdict, and otherwise for a share of the time.

    The work calls `step` before each of its parts, the shorter the better: a frame that arrives waits for one part.
    """

    def __init__(
        self,
        share: float,
        is_free: Callable[[], bool],
        wait: Callable[[float], object],
        now: clock.Monotonic = clock.monotonic,
    ) -> None:
        self._share = share
        self._is_free = is_free
        self._wait = wait
        self._now = now
        self._credit_s = BURST_S
        self._checked = now()
        self.working_since: float | None = None
        self._pays = False

    def step(self) -> None:
        """Wait until the next part of the work may begin."""
        self.rest()
        while not (free := self._is_free()):
            now = self._now()
            self._credit_s = min(BURST_S, self._credit_s + (now - self._checked) * self._share)
            self._checked = now
            if self._credit_s > 0:
                break
            self._wait(STEP_S)
        self.working_since, self._pays = self._now(), not free

    def rest(self) -> None:
        """Count what the part that has ended took. Work while no frame waits costs nothing."""
        if self.working_since is not None and self._pays:
            self._credit_s -= self._now() - self.working_since
        self.working_since = None


class HasSize(Protocol):
    """What knows the memory that it holds."""

    @property
    def size_bytes(self) -> int:
        """The memory in bytes."""


T = TypeVar("T", bound=HasSize)


class ByteQueue(Generic[T]):
    """What waits for the second stage: bounded in bytes and number, in order of arrival.

    `put` never waits, `take` does.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Add an item; return False when there is no room. A single one over the bound passes alone."""
        size_bytes = item.size_bytes
        with self._changed:
            is_full = len(self._items) >= QUEUE_LIMIT or self._bytes + size_bytes > self._limit_bytes
            if self._closed or (self._items and is_full):
                return False
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            self._changed.notify()
            return True

    def take(self) -> T | None:
        """Return the next item as soon as there is one; None once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            if not self._items:
                return None
            item, size_bytes = self._items.popleft()
            self._bytes -= size_bytes
            return item

    def close(self) -> None:
        """Let `put` refuse and `take` hand out what is left, then None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Describer:
    """Describes frames whose verdict has left, on a thread of its own and within the budget.

    `defect_of(judged, regions)` makes the outcome that a frame's lane sends. `is_idle` tells whether no frame waits for
    its verdict.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        defect_of: Callable[[Judged, list[DefectRegion]], Outcome],
        is_idle: Callable[[], bool],
        now: clock.Monotonic = clock.monotonic,
    ) -> None:
        self._defect_of = defect_of
        self._is_idle = is_idle
        self._rate = CameraRate(settings.describe_frames_per_s, now)
        self._queue = ByteQueue[Judged](settings.describe_queue_bytes)
        self._share = CpuShare(settings.describe_cpu_share, self._is_free, time.sleep, now)
        self._at_once = settings.active_batch_limit
        self._now = now
        self._lane: Lane | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def working_for_s(self) -> float:
        """How long the part of a description that goes on now has taken."""
        since = self._share.working_since
        return self._now() - since if since is not None else 0.0

    def add(self, judged: Judged, without_regions: Undescribed | None = None) -> None:
        """Take a frame in; when the budget is used up its defect leaves at once, without regions. Never waits.

        `without_regions` is a reason for its defect to have none in any case.
        """
        if without_regions is not None:
            self._send(judged, [], without_regions)
        elif judged.job.attempt >= ATTEMPT_LIMIT:
            # Should it be the description that kills, the frame's last attempt must get past it.
            self._send(judged, [], Undescribed.SUSPECT)
        elif not self._rate.take(judged.frame.camera):
            self._send(judged, [], Undescribed.CAMERA_RATE)
        elif not self._queue.put(judged):
            self._send(judged, [], Undescribed.QUEUE_FULL)

    def run(self) -> None:
        """Describe until the queue is closed and empty. Raises DetectorBroken when the model is to blame."""
        while (judged := self._queue.take()) is not None:
            self._lane = judged.job.lane
            if self._lane.closed:
                self._lane.abandon(judged.job)
                continue
            try:
                regions = self._described(judged)
            except Exception as error:  # whatever it is, the verdict stands and the line goes on
                scoring.check_canary(judged.detector)
                log.warning("%s has no description: %s", judged.frame.frame_id, one_line(error, with_type=True))
                self._send(judged, [], Undescribed.FAILED)
                continue
            finally:
                self._share.rest()
            self._send(judged, regions, None)

    def close(self) -> None:
        """Let `run` end when everything that waits is done."""
        self._queue.close()

    def _is_free(self) -> bool:
        # Frames of a partition that leaves are to be finished before it goes.
        return self._is_idle() or (self._lane is not None and self._lane.leaving)

    def _described(self, judged: Judged) -> list[DefectRegion]:
        def close_ups(parts: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
            # As they are asked for: what is made of one look belongs to the same step as its pass.
            for start in range(0, len(parts), self._at_once):
                self._share.step()
                yield from judged.detector.close_ups(parts[start : start + self._at_once])

        inputs = judged.scores.region_inputs
        assert inputs is not None
        self._share.step()
        return describe(
            judged.pixels,
            judged.located,
            *inputs.grids,
            closer=close_ups,
            field_px=judged.detector.field_px(*judged.pixels.shape[:2]),
        )

    def _send(self, judged: Judged, regions: list[DefectRegion], reason: Undescribed | None) -> None:
        if reason is not None:
            telemetry.UNDESCRIBED_DEFECTS.labels(judged.frame.camera, reason).inc()
        judged.job.lane.add_defect(judged.job, self._defect_of(judged, regions))
