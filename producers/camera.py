"""The Camera protocol and the capture: the interface of every kind of camera, independent of how it is published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flawline.errors import FlawlineError
from flawline.messages import Codec


class CameraError(FlawlineError):
    """Says that the camera is away or delivers no frames; the message names the camera and holds no credentials."""


@dataclass(frozen=True, eq=False)
class Capture:
    """Holds one capture: either `pixels`, or `data` that the source encoded and that is sent unchanged.

    `pixels` is uint8 (H, W, 3) RGB. `captured_at` is in nanoseconds UTC. `codec` is the codec of `data`, or None to
    read it from the header; with `pixels` it overrides the configured codec of the camera. `replay_key` names the item
    of the source (a path, an index), so that a replay can be joined with its truth; the producer does not send it.
    """

    captured_at: int
    pixels: np.ndarray | None = None
    data: bytes | None = None
    codec: Codec | None = None
    part: str | None = None
    view: str | None = None
    lot: str | None = None
    trigger: str | None = None
    replay_key: str | None = None

    def __post_init__(self) -> None:
        if (self.pixels is None) == (self.data is None):
            raise ValueError("a capture has both or none of pixels and data: give exactly one")


class Camera(Protocol):
    """Delivers captures. One thread opens, reads and closes it; the runner gives up that thread when it blocks.

    `frames` yields as fast as the source can; its reader keeps the configured rate. It ends when a finite source ends,
    and raises CameraError when a device goes away. To open a source again, the runner makes a new object: it never uses
    a camera again that it gave up.
    """

    name: str

    def open(self) -> None:
        """Connect to the source. Raises CameraError, or UsageError when the source itself is wrong."""

    def frames(self) -> Iterator[Capture]:
        """Yield captures in the order in which they were taken."""

    def close(self) -> None:
        """Release the source; do nothing when it is not open."""
