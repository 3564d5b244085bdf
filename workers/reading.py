"""From a record's bytes to a frame and its pixels, or to the reason why there are none."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flawline import imaging, messages, telemetry
from flawline.byte_budget import ByteBudget
from flawline.messages import DeadLetterReason, Frame, SchemaError
from flawline.object_store import MissingObjectError, ObjectStore, StoreAway
from flawline.outage import Outage
from flawline.settings.tree import FrameSettings
from flawline.topics import ENVELOPE_BYTES

log = logging.getLogger(__name__)

STORE_RETRY_S = (0.2, 10.0)
"""First and longest wait in seconds before an object store that is away is asked again. A judgement, not measured."""

MEMORY_RETRY_S = 0.005
"""How often a frame that waits for memory looks for it: a tenth of the time that scoring takes."""


class Rejected(Exception):
    """A record that can never become pixels."""

    def __init__(self, reason: DeadLetterReason, error: str, frame: Frame | None = None) -> None:
        super().__init__(error)
        self.reason = reason
        self.frame = frame


@dataclass(frozen=True, eq=False)
class Picture:
    """A frame and its pixels (H, W, 3) RGB: uint8, or uint16 until a model says how many of the 16 bits are used.

    `sample_bits` is the depth they were read at. `let_go` counts their memory as free before they are.
    """

    frame: Frame
    pixels: np.ndarray
    let_go: weakref.finalize
    sample_bits: int = 8

    def at_depth(self, depths: Sequence[int]) -> Picture:
        """Return the picture in uint8, for a model whose good images have samples of these depths, in bits.

        Raises ImageError for a picture of another depth.
        """
        pixels = imaging.at_depth(self.pixels, depths)
        counted = None if pixels is self.pixels else self.let_go.detach()
        if counted is None:
            return self
        _, release, arguments, _ = counted
        bits = next(bits for bits in depths if bits > 8)
        return Picture(self.frame, pixels, weakref.finalize(pixels, release, *arguments), bits)


class Reader:
    """Opens records within the line's limits. Checks come before memory is taken for what they check."""

    def __init__(
        self, limits: FrameSettings, objects: ObjectStore | None, memory: ByteBudget, stop: threading.Event
    ) -> None:
        """Open records within `limits`. `memory` is what decoded frames may take together."""
        self._limits = limits
        self._objects = objects
        self._memory = memory
        self._stop = stop
        self._outage = Outage(*STORE_RETRY_S)
        self._outage_lock = threading.Lock()

    def read(self, value: bytes | None) -> Picture:
        """Return the frame in a record's value with its pixels, once there is memory for them.

        Raises Rejected, and InterruptedError when the worker stops while it waits for memory or for the object store.
        """
        frame = self._frame(value)
        try:
            data = self._data(frame)
            if (checksum := messages.checksum(data)) != frame.checksum:
                text = f"checksum {checksum:08x} of {len(data)} bytes is not the announced {frame.checksum:08x}"
                raise Rejected(DeadLetterReason.CHECKSUM, text)
            return self._picture(frame, data)
        except imaging.ImageTooLarge as error:
            raise Rejected(DeadLetterReason.OVERSIZE, f"{error}: raise frames.decoded_limit_bytes", frame) from error
        except imaging.ImageError as error:
            raise Rejected(DeadLetterReason.UNDECODABLE, str(error), frame) from error
        except MissingObjectError as error:
            raise Rejected(DeadLetterReason.MISSING_OBJECT, str(error), frame) from error
        except Rejected as rejected:
            rejected.frame = frame
            raise

    def _picture(self, frame: Frame, data: bytes) -> Picture:
        plan = imaging.plan(
            data,
            frame.codec,
            shape=(frame.height, frame.width, frame.channels),
            memory_limit_bytes=self._limits.decoded_limit_bytes,
        )
        while not self._memory.acquire(plan.memory_bytes):
            if self._stop.wait(MEMORY_RETRY_S):
                raise InterruptedError(f"stopped while {frame.frame_id} waited for memory to be decoded in")
        try:
            pixels = imaging.pixels(plan)
        except BaseException:
            self._memory.release(plan.memory_bytes)
            raise
        # A frame may be given up at any place on its way. Its memory is free when nobody holds its pixels any more.
        return Picture(frame, pixels, weakref.finalize(pixels, self._memory.release, plan.memory_bytes))

    def _frame(self, value: bytes | None) -> Frame:
        if value is None:
            raise Rejected(DeadLetterReason.UNDECODABLE, "record without a value")
        if len(value) > self._limits.limit_bytes + ENVELOPE_BYTES:
            raise Rejected(DeadLetterReason.OVERSIZE, self._too_large(len(value)))
        try:
            return messages.decode(Frame, value)
        except SchemaError as error:
            raise Rejected(error.reason, str(error)) from error

    def _data(self, frame: Frame) -> bytes:
        if frame.size_bytes > self._limits.limit_bytes:
            raise Rejected(DeadLetterReason.OVERSIZE, self._too_large(frame.size_bytes))
        if frame.height * frame.width > imaging.PIXEL_LIMIT:
            raise Rejected(
                DeadLetterReason.OVERSIZE,
                f"frame of {frame.height}x{frame.width} px is over the limit of {imaging.PIXEL_LIMIT} pixels",
            )
        if frame.object_key is None:
            return frame.data
        if self._objects is None:
            raise Rejected(
                DeadLetterReason.MISSING_OBJECT,
                f"frame is object {frame.object_key} and frames.objects_url is not set: use the producers' setting",
            )
        return self._fetch(self._objects, frame.object_key, frame.size_bytes)

    def _fetch(self, objects: ObjectStore, key: str, size_bytes: int) -> bytes:
        while True:
            try:
                data = objects.get(key, size_bytes)
            except StoreAway as error:
                if self._stop.wait(self._away(error)):
                    raise InterruptedError(f"stopped while object {key} could not be read: {error}") from error
            else:
                self._answers()
                return data

    def _away(self, error: StoreAway) -> float:
        """Note that the object store is away; return for how many seconds to leave it alone."""
        telemetry.OBJECT_STORE_AWAY.set(1)
        with self._outage_lock:
            failure = self._outage.failed()
        if failure.is_reported:
            log.warning("%s; large frames wait for it", error)
        return failure.pause_s

    def _answers(self) -> None:
        """Note that the object store is there."""
        telemetry.OBJECT_STORE_AWAY.set(0)
        with self._outage_lock:
            if self._outage.is_on:
                log.info("the object store answers again after %.0f s", self._outage.age_s())
                self._outage.ended()

    def _too_large(self, size_bytes: int) -> str:
        return f"frame of {size_bytes} bytes is over frames.limit_bytes = {self._limits.limit_bytes}"
