"""The Camera protocol: what every kind of camera gives, and nothing of how it is published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flawline.errors import FlawlineError
from flawline.messages import Codec


class CameraError(FlawlineError):
    """The camera is away or gives no frames; the message names it and holds no credentials."""


@dataclass(frozen=True, eq=False)
class Capture:
    """One capture: either `pixels`, or `data` that the source has encoded already and that is forwarded untouched.

    `pixels` is uint8 (H, W, 3) RGB. `captured_at` is nanoseconds UTC. `codec` says how `data` is encoded, None when its
    header tells; with `pixels` it overrides the camera's configured codec. `replay_key` names the source's own item (a
    path, an index), so that a replay can be joined with its truth; it never leaves the producer.
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
            raise ValueError("a capture has either pixels or encoded data")


class Camera(Protocol):
    """A source of captures. Opened, read and closed by one thread, which may be given up when it blocks.

    `frames` yields as fast as the source can; who reads it keeps the configured rate by asking no sooner. It ends when
    a finite source has ended, and raises CameraError when a device went away. `open` may be called again after `close`
    on a new object only: a camera that was given up is never used again.
    """

    name: str

    def open(self) -> None:
        """Connect to the source. Raises CameraError, or UsageError when it can never work."""

    def frames(self) -> Iterator[Capture]:
        """Yield captures in the order in which they were taken."""

    def close(self) -> None:
        """Give the source back; harmless when it is not open."""
