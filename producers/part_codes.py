"""Names of parts from codes that a camera sees: QR, Data Matrix, Code 128, EAN and what else ZXing reads."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from flawline import imaging
from flawline.errors import UsageError
from flawline.settings.producers import CameraBase
from producers.camera import Capture
from producers.part_names import matched

log = logging.getLogger(__name__)


def code_reader(camera: CameraBase, memory_limit_bytes: int) -> Callable[[Capture], Capture]:
    """Return what gives a camera's captures the names in their codes.

    Encoded captures are decoded for it, unless that takes more than `memory_limit_bytes`. Raises UsageError without the
    library.
    """
    if camera.code is None:
        return lambda capture: capture
    try:
        import zxingcpp
    except ImportError as error:
        raise UsageError(
            f"camera {camera.name}: code needs a library that is not installed: pip install 'flawline[codes]'"
        ) from error
    rectangle, pattern = camera.code, re.compile(camera.code_names)

    def read(capture: Capture) -> Capture:
        if capture.part is not None and capture.lot is not None:
            return capture
        pixels = _pixels(capture, memory_limit_bytes)
        codes = zxingcpp.read_barcodes(_cut(pixels, rectangle)) if pixels is not None else []
        names = next((names for code in codes if (names := matched(pattern, code.text))), {})
        added: dict[str, Any] = {name: value for name, value in names.items() if getattr(capture, name) is None}
        return replace(capture, **added)

    return read


def _pixels(capture: Capture, memory_limit_bytes: int) -> np.ndarray | None:
    """Return the pixels of a capture (H, W, 3) uint8; None for what the publisher counts as a drop, since no image."""
    try:
        if capture.pixels is not None:
            pixels = imaging.to_rgb(capture.pixels)
        else:
            plan = imaging.plan(capture.data or b"", capture.codec, memory_limit_bytes=memory_limit_bytes)
            pixels = imaging.pixels(plan)
    except imaging.ImageError as error:
        log.debug("no code is read: %s", error)
        return None
    if pixels.dtype == np.uint16:  # whatever bits the sensor has, the brightest sample is white
        return (pixels * (255 / max(int(pixels.max()), 1))).astype(np.uint8)
    return pixels


def _cut(pixels: np.ndarray, rectangle: tuple[float, float, float, float]) -> np.ndarray:
    height, width = pixels.shape[:2]
    x, y, w, h = rectangle
    top, left = int(y * height), int(x * width)
    cut = pixels[top : top + max(round(h * height), 1), left : left + max(round(w * width), 1)]
    return np.ascontiguousarray(cut)
