"""Drawing tools that products and defects share: clouds, photographs, sprites, and sprites on a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from flawline.errors import FlawlineError

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are not included."""


def photograph(name: str) -> np.ndarray:
    """Return a photograph that scikit-image ships inside its wheel, as uint8 (H, W, 3) RGB.

    The file is read directly: `skimage.data` would fetch some pictures from the network.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FlawlineError("simulated line: scikit-image is not installed: pip install scikit-image")
    path = Path(spec.origin).parent / "data" / name
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise FlawlineError(f"simulated line: cannot read the photograph {path}: reinstall scikit-image")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def cloud(shape: tuple[int, int], cell_px: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth random float32 (H, W) of about unit spread, with blobs of `cell_px` pixels."""
    height, width = shape
    cell_px = max(cell_px, 1.0)
    grid = rng.random((int(height / cell_px) + 3, int(width / cell_px) + 3), dtype=np.float32) * 2 - 1
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(1.7)


def ramp(grey: np.ndarray, stops: Sequence[tuple[int, tuple[int, int, int]]]) -> np.ndarray:
    """Colour a grey picture (uint8) along `stops` of (grey level, RGB); the result is uint8 (H, W, 3)."""
    levels = [level for level, _ in stops]
    table = np.stack([np.interp(np.arange(256), levels, [rgb[c] for _, rgb in stops]) for c in range(3)], axis=1)
    return table.round().astype(np.uint8)[grey]


def polar(side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return radius (1 at the middle of each side) and angle in radians of every pixel of a square, float32."""
    axis = (np.arange(side_px, dtype=np.float32) + 0.5) / side_px * 2 - 1
    x, y = np.meshgrid(axis, axis)
    return np.hypot(x, y), np.arctan2(y, x)


def sprite(rgb: np.ndarray, alpha: np.ndarray, side_px: float) -> np.ndarray:
    """Scale a drawing to a premultiplied RGBA uint8 sprite; `rgb` 0..255, `alpha` 0..1."""
    rgba = np.dstack([rgb.astype(np.float32) * alpha[..., None], alpha.astype(np.float32) * 255])
    size = (max(2, round(side_px)),) * 2
    method = cv2.INTER_AREA if size[0] <= rgb.shape[0] else cv2.INTER_LINEAR
    rgba = np.clip(np.rint(cv2.resize(rgba, size, interpolation=method)), 0, 255).astype(np.uint8)
    return np.dstack([np.minimum(rgba[..., :3], rgba[..., 3:]), rgba[..., 3]])


def clip_box(left: float, top: float, right: float, bottom: float, shape: tuple[int, ...]) -> Box | None:
    """Return the whole pixels of a rectangle that are inside a picture, or None."""
    x0, y0 = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
    x1, y1 = min(shape[1], int(np.ceil(right)) + 1), min(shape[0], int(np.ceil(bottom)) + 1)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def stamp(picture: np.ndarray, drawing: np.ndarray, matrix: np.ndarray) -> tuple[Box, np.ndarray] | None:
    """Draw a premultiplied RGBA sprite on `picture` in place; `matrix` (2, 3) maps sprite pixels to picture pixels.

    Returns the box of the sprite and its opacity (uint8) there, or None when it is outside of the picture.
    """
    height, width = drawing.shape[:2]
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64) @ matrix.T
    (left, top), (right, bottom) = corners.min(0) - 1, corners.max(0) + 1
    box = clip_box(left, top, right, bottom, picture.shape)
    if box is None:
        return None
    x0, y0, x1, y1 = box
    local = matrix.copy()
    local[:, 2] -= (x0, y0)
    landed = cv2.warpAffine(drawing, local, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    under = picture[y0:y1, x0:x1].astype(np.uint16)
    opacity = landed[..., 3]
    mixed = (under * (255 - opacity[..., None].astype(np.uint16)) + 127) // 255 + landed[..., :3]
    picture[y0:y1, x0:x1] = np.minimum(mixed, 255).astype(np.uint8)
    return box, opacity


def sprite_matrix(drawing: np.ndarray, centre_px: tuple[float, float], angle: float, scale: float) -> np.ndarray:
    """Return the matrix that turns a sprite by `angle` (radians) about its centre and puts it at `centre_px`."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    middle = np.array([(drawing.shape[1] - 1) / 2, (drawing.shape[0] - 1) / 2])
    return np.column_stack([turn, np.asarray(centre_px) - turn @ middle])
