"""Try a camera before the line uses it: open it, read a few frames, and say what they are like."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np

from flawline import imaging
from flawline.clock import Monotonic, monotonic
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.messages import Codec
from flawline.redaction import redact
from flawline.settings.producers import CameraBase
from producers.camera import Camera, CameraError, Capture
from producers.service import make_camera
from producers.supervise import OPEN_TIMEOUT_S

TOGETHER = 8
"""Most cameras that are tried at the same time. A judgement, not measured."""

SLOWER_THAN_ASKED = 0.8
DARK, BRIGHT, FLAT = 10.0, 245.0, 2.0
"""Judgements, not measured: a share of `rate_hz`; mean and standard deviation of brightness, 0 to 255."""


@dataclass(frozen=True)
class Look:
    """What the frames of a camera are like.

    `bits` is the depth in use, `rate_hz` None for a single frame and for sources that are as fast as their reader.
    `brightness` (0 to 255), `contrast` (standard deviation) and `sharpness` (variance of the Laplacian, Pech-Pacheco
    et al. 2000; it depends on what is seen, so compare it with the same camera's) are medians over the frames.
    """

    frames: int
    width: int
    height: int
    bits: int
    format: str
    rate_hz: float | None
    first_frame_s: float
    brightness: float
    contrast: float
    sharpness: float
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Trial:
    """What came of trying one camera: its look and its last frame (uint8 (H, W, 3) RGB), or why there is none."""

    camera: str
    kind: str
    look: Look | None = None
    picture: np.ndarray | None = None
    error: str | None = None


def try_cameras(
    cameras: Sequence[CameraBase], frames: int, make: Callable[[CameraBase], Camera] = make_camera
) -> list[Trial]:
    """Try cameras, several at the same time, and return what came of each, in their order."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(lambda settings: try_camera(settings, frames, make), cameras))


def try_camera(
    settings: CameraBase,
    frames: int,
    make: Callable[[CameraBase], Camera] = make_camera,
    clock: Monotonic = monotonic,
) -> Trial:
    """Open one camera and read up to `frames` captures. A camera that blocks is given up, and its thread goes on."""
    kind = str(getattr(settings, "kind", ""))
    open_s = getattr(settings, "open_timeout_s", OPEN_TIMEOUT_S)
    slowest_s = open_s + frames / settings.rate_hz if settings.rate_hz else open_s + frames
    begun, taken = clock(), list[tuple[float, Capture]]()
    problems: list[str] = []

    def read() -> None:
        try:
            camera = make(settings)
            camera.open()
            try:
                for capture in islice(camera.frames(), frames):
                    taken.append((clock(), capture))
            finally:
                camera.close()
        except CameraError as error:
            if not taken:  # a short recording that ends as a device shows its frames all the same
                problems.append(str(error))
        except (FlawlineError, ImportError) as error:
            problems.append(one_line(error))

    thread = threading.Thread(target=read, name=f"try-{settings.name}", daemon=True)
    thread.start()
    thread.join(slowest_s)
    captures = list(taken)
    if problems:
        return Trial(settings.name, kind, error=redact(problems[0]))
    if not captures:
        waited = f"no frame within {slowest_s:.0f} s" if thread.is_alive() else "it has no frame"
        return Trial(
            settings.name, kind, error=f"{waited}: see that the camera is on and sends, or raise open_timeout_s"
        )
    try:
        pictures = [_pixels(capture) for _, capture in captures]
    except (imaging.ImageError, ValueError) as error:
        return Trial(settings.name, kind, error=f"a frame cannot be decoded: {one_line(error)}")
    look = look_of(
        pictures,
        [at - begun for at, _ in captures],
        _format(captures[-1][1], settings.codec),
        asked_hz=settings.rate_hz,
        is_live=settings.is_live,
    )
    return Trial(settings.name, kind, look, imaging.eight_bits(pictures[-1], look.bits))


def look_of(
    pictures: Sequence[np.ndarray], seconds: Sequence[float], format: str, *, asked_hz: float, is_live: bool
) -> Look:
    """Return what frames are like: pixels (H, W, 3) of uint8 or uint16, and when each came, in seconds.

    Raises UsageError without a frame.
    """
    if not pictures:
        raise UsageError("no frame to look at")
    height, width = pictures[-1].shape[:2]
    bits = max(imaging.bits_in_use(pixels) for pixels in pictures)
    greys = [cv2.cvtColor(imaging.eight_bits(pixels, bits), cv2.COLOR_RGB2GRAY) for pixels in pictures]
    span_s = seconds[-1] - seconds[0]
    rate_hz = (len(seconds) - 1) / span_s if is_live and span_s > 0 else None
    brightness = float(np.median([grey.mean() for grey in greys]))
    contrast = float(np.median([grey.std() for grey in greys]))
    sizes = {pixels.shape[:2] for pixels in pictures}
    remarks = []
    if len(sizes) > 1:
        remarks.append(f"its frames have {len(sizes)} different sizes")
    if brightness < DARK:
        remarks.append("nearly black: see to light, lens cap and exposure")
    elif brightness > BRIGHT:
        remarks.append("nearly white: lower exposure or gain")
    elif contrast < FLAT:
        remarks.append("shows one even grey: see to focus and lens cap")
    if is_live and len(greys) > 1 and len(sizes) == 1 and all(np.array_equal(greys[0], grey) for grey in greys[1:]):
        remarks.append("every frame is the same: a frozen picture, or a test signal")
    if asked_hz and rate_hz is not None and rate_hz < SLOWER_THAN_ASKED * asked_hz:
        remarks.append(f"slower than its rate_hz {asked_hz:g}")
    return Look(
        frames=len(pictures),
        width=width,
        height=height,
        bits=bits,
        format=format,
        rate_hz=rate_hz,
        first_frame_s=seconds[0],
        brightness=brightness,
        contrast=contrast,
        sharpness=float(np.median([cv2.Laplacian(grey, cv2.CV_64F).var() for grey in greys])),
        remarks=tuple(remarks),
    )


def _pixels(capture: Capture) -> np.ndarray:
    """Return the pixels of a capture, uint8 or uint16 (H, W, 3) RGB. Raises ImageError."""
    if capture.pixels is None:
        return imaging.pixels(imaging.plan(capture.data or b"", capture.codec))
    return capture.pixels if capture.pixels.ndim == 3 else imaging.to_rgb(capture.pixels)


def _format(capture: Capture, codec: Codec) -> str:
    """Return how the frames travel: as the source encoded them, or as the line encodes its pixels."""
    if capture.data is not None:
        return f"{imaging.probe(capture.data).codec}, as the source encodes it"
    return f"pixels, sent as {capture.codec or codec}"
