"""From a record's bytes to a frame and its pixels, or to the reason why there are none."""

from __future__ import annotations

import logging
import threading

import numpy as np

from flawline import imaging, messages, telemetry
from flawline.backoff import Backoff
from flawline.messages import DeadLetterReason, Frame, SchemaError
from flawline.object_store import MissingObjectError, ObjectStore, StoreAway
from flawline.topics import ENVELOPE_BYTES

log = logging.getLogger(__name__)

STORE_RETRY_S = (0.2, 10.0)
"""First and longest wait in seconds before an object store that is away is asked again. A judgement, not measured."""


class Rejected(Exception):
    """A record that can never become pixels."""

    def __init__(self, reason: DeadLetterReason, error: str, frame: Frame | None = None) -> None:
        super().__init__(error)
        self.reason = reason
        self.frame = frame


class Reader:
    """Opens records within the line's limits. Checks come before memory is taken for what they check."""

    def __init__(self, limit_bytes: int, objects: ObjectStore | None, stop: threading.Event) -> None:
        self._limit_bytes = limit_bytes
        self._objects = objects
        self._stop = stop

    def read(self, value: bytes | None) -> tuple[Frame, np.ndarray]:
        """Return the frame in a record's value and its pixels as uint8 (H, W, 3) RGB.

        Raises Rejected, and InterruptedError when the worker stops while the object store is away.
        """
        frame = self._frame(value)
        try:
            data = self._data(frame)
            if (checksum := messages.checksum(data)) != frame.checksum:
                text = f"checksum {checksum:08x} of {len(data)} bytes is not the announced {frame.checksum:08x}"
                raise Rejected(DeadLetterReason.CHECKSUM, text)
            return frame, imaging.decode(data, frame.codec, shape=(frame.height, frame.width, frame.channels))
        except imaging.ImageError as error:
            raise Rejected(DeadLetterReason.UNDECODABLE, str(error), frame) from error
        except MissingObjectError as error:
            raise Rejected(DeadLetterReason.MISSING_OBJECT, str(error), frame) from error
        except Rejected as rejected:
            rejected.frame = frame
            raise

    def _frame(self, value: bytes | None) -> Frame:
        if value is None:
            raise Rejected(DeadLetterReason.UNDECODABLE, "record without a value")
        if len(value) > self._limit_bytes + ENVELOPE_BYTES:
            raise Rejected(DeadLetterReason.OVERSIZE, self._too_large(len(value)))
        try:
            return messages.decode(Frame, value)
        except SchemaError as error:
            raise Rejected(error.reason, str(error)) from error

    def _data(self, frame: Frame) -> bytes:
        if frame.size_bytes > self._limit_bytes:
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
        backoff = Backoff(*STORE_RETRY_S)
        while True:
            try:
                data = objects.get(key, size_bytes)
            except StoreAway as error:
                telemetry.OBJECT_STORE_AWAY.set(1)
                wait_s = backoff.next_s()
                log.warning("%s; frame waits for object %s, next attempt in %.1f s", error, key[:8], wait_s)
                if self._stop.wait(wait_s):
                    raise InterruptedError(f"stopped while object {key} could not be read: {error}") from error
            else:
                telemetry.OBJECT_STORE_AWAY.set(0)
                return data

    def _too_large(self, size_bytes: int) -> str:
        return f"frame of {size_bytes} bytes is over frames.limit_bytes = {self._limit_bytes}"
