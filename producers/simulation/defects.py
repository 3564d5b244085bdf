"""The defects of the simulated line: each kind is painted on the sharp, evenly lit part, and has a mask.

Lengths are in units of the shorter picture side times `size`; `contrast` is the opacity (for a deformation: its
strength). The mask depends on neither contrast nor light.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from producers.simulation.drawing import clip_box, cloud, sprite_matrix, stamp
from producers.simulation.products import Component
from producers.simulation.settings import DefectKind

_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Spot:
    """Holds place and size of a defect: its centre in picture pixels, pixels per unit, and the two controls."""

    x: float
    y: float
    unit_px: float
    size: float
    contrast: float

    def px(self, units: float) -> float:
        """Return a length of the defect in pixels."""
        return units * self.size * self.unit_px


@dataclass(frozen=True)
class Layer:
    """Holds the paint for a window of the picture: colour (h, w, 3) or one RGB, and opacity 0..1 (h, w)."""

    left: int
    top: int
    colour: np.ndarray
    opacity: np.ndarray


def _blend(picture: np.ndarray, layer: Layer, contrast: float) -> np.ndarray:
    """Paint the layer on `picture` (in place) and return the defect's mask, bool (H, W)."""
    height, width = layer.opacity.shape
    mask = np.zeros(picture.shape[:2], bool)
    box = clip_box(layer.left, layer.top, layer.left + width - 1, layer.top + height - 1, picture.shape)
    if box is None:
        return mask
    x0, y0, x1, y1 = box
    cut = np.s_[y0 - layer.top : y1 - layer.top, x0 - layer.left : x1 - layer.left]
    colour = layer.colour[cut] if layer.colour.ndim == 3 else layer.colour
    opacity = (layer.opacity[cut] * np.float32(contrast))[..., None]
    under = picture[y0:y1, x0:x1].astype(np.float32)
    picture[y0:y1, x0:x1] = np.rint(under + (colour - under) * opacity).astype(np.uint8)
    # Relative to the densest pixel: a line that is thinner than a pixel is faint everywhere, and still has a mask.
    mask[y0:y1, x0:x1] = layer.opacity[cut] > 0.2 * layer.opacity[cut].max()
    return mask


def _window(spot: Spot, reach_px: float) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Return left, top and the pixel offsets x, y (float32) from the spot of a square window around it."""
    reach = int(np.ceil(reach_px)) + 2
    left, top = int(spot.x) - reach, int(spot.y) - reach
    axis = np.arange(2 * reach + 1, dtype=np.float32)
    x, y = np.meshgrid(axis + np.float32(left - spot.x), axis + np.float32(top - spot.y))
    return left, top, x, y


def _stroke(canvas: np.ndarray, points: np.ndarray, width_px: float, value: int) -> None:
    """Draw a smooth polyline (window pixels) of any width on a uint8 canvas; below one pixel it is fainter instead."""
    thick = max(1, round(width_px))
    level = round(value * min(1.0, width_px / thick))
    fixed = np.rint(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.polylines(canvas, [fixed], False, level, thick, cv2.LINE_AA, _SUBPIXEL_BITS)


def _path(rng: np.random.Generator, steps: int, length: float, heading: float, bend: float, jag: float) -> np.ndarray:
    """Return points (steps + 1, 2) of a walk centred on 0: `bend` turns it steadily, `jag` at random (radians)."""
    turns = heading + bend * np.linspace(-0.5, 0.5, steps) + jag * (rng.random(steps) * 2 - 1)
    stride = length / steps
    points = np.vstack([np.zeros(2), np.cumsum(stride * np.column_stack([np.cos(turns), np.sin(turns)]), axis=0)])
    return points - points.mean(0)


def _scratch(picture: np.ndarray, spot: Spot, rng: np.random.Generator) -> np.ndarray:
    """Paint two or three parallel bright grooves with a dark flank."""
    length, width = spot.px(rng.uniform(0.26, 0.38)), spot.px(0.011)
    heading, bend = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5)
    left, top, x, _ = _window(spot, 0.6 * length + 4 * width)
    bright, dark = np.zeros(x.shape, np.uint8), np.zeros(x.shape, np.uint8)
    centre = np.array([spot.x - left, spot.y - top])
    normal = np.array([-np.sin(heading), np.cos(heading)])
    for k in range(int(rng.integers(2, 4))):
        slide = rng.uniform(-0.15, 0.15) * length * np.array([np.cos(heading), np.sin(heading)])
        line = _path(rng, 10, length * rng.uniform(0.6, 1.0), heading, bend, 0.04)
        line += centre + slide + normal * (k - 1) * 3.2 * width
        _stroke(dark, line + normal * 0.9 * width, 1.3 * width, 255)
        _stroke(bright, line, width, 255)
    shine, flank = bright.astype(np.float32) / 255, dark.astype(np.float32) / 255
    opacity = np.maximum(shine, 0.75 * flank)
    colour = (shine * 250 + (1 - shine) * 26)[..., None].repeat(3, axis=2)
    return _blend(picture, Layer(left, top, colour, opacity), spot.contrast)


def _hole(picture: np.ndarray, spot: Spot, rng: np.random.Generator) -> np.ndarray:
    """Paint an opening with an irregular torn rim, through which a pale cyan back light shines."""
    radius = spot.px(rng.uniform(0.044, 0.060))
    left, top, x, y = _window(spot, 1.6 * radius)
    angle = np.arctan2(y, x)
    lobes = sum(rng.uniform(0.03, 0.10) * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5))
    inside = radius * (1 + lobes) - np.hypot(x, y)
    rim = np.clip(inside + 0.28 * radius, 0, 1)
    opening = np.clip(inside, 0, 1)[..., None]
    glow = 0.9 + 0.1 * np.clip(inside / radius, 0, 1)[..., None]
    burr = 26 + 22 * np.cos(angle - rng.uniform(0, 2 * np.pi))[..., None]
    colour = np.clip(opening * glow * np.array([176, 250, 255], np.float32) + (1 - opening) * burr, 0, 255)
    return _blend(picture, Layer(left, top, colour, rim), spot.contrast)


def _stain(picture: np.ndarray, spot: Spot, rng: np.random.Generator) -> np.ndarray:
    """Paint a spot of blue transparent dye with a soft edge and the darker rim of a dried liquid."""
    radius = spot.px(rng.uniform(0.085, 0.115))
    left, top, x, y = _window(spot, 1.8 * radius)
    level = 1 - np.hypot(x, y * rng.uniform(0.8, 1.25)) / radius + 0.30 * cloud(x.shape, 0.7 * radius, rng)
    body = np.clip(level * 16, 0, 1)
    rim = np.exp(-(((level - 0.16) / 0.10) ** 2))
    opacity = body * np.clip(0.58 + 0.24 * rim, 0, 0.85)
    return _blend(picture, Layer(left, top, np.array([24, 30, 150], np.float32), opacity), spot.contrast)


def _crack(picture: np.ndarray, spot: Spot, rng: np.random.Generator) -> np.ndarray:
    """Paint a jagged black line with branches, wide in the middle."""
    length, width = spot.px(rng.uniform(0.32, 0.44)), spot.px(0.009)
    heading = rng.uniform(0, 2 * np.pi)
    left, top, x, _ = _window(spot, 0.75 * length + 2 * width)
    canvas = np.zeros(x.shape, np.uint8)
    trunk = _path(rng, 14, length, heading, 0.0, 0.8) + np.array([spot.x - left, spot.y - top])
    _stroke(canvas, trunk, width, 255)
    _stroke(canvas, trunk[3:-3], 1.8 * width, 255)
    for knot in (3, 6, 9):
        side = heading + (1 if rng.random() < 0.5 else -1) * rng.uniform(0.6, 1.1)
        branch = _path(rng, 5, length * rng.uniform(0.2, 0.32), side, 0.0, 0.6)
        _stroke(canvas, branch - branch[0] + trunk[knot], width, 255)
    opacity = canvas.astype(np.float32) / 255
    return _blend(picture, Layer(left, top, np.array([10, 8, 8], np.float32), opacity), spot.contrast)


def _contamination(picture: np.ndarray, spot: Spot, rng: np.random.Generator) -> np.ndarray:
    """Paint scattered lime-green granules with a bright and a dark side."""
    reach = spot.px(rng.uniform(0.075, 0.10))
    left, top, x, y = _window(spot, 1.5 * reach)
    opacity = np.zeros(x.shape, np.float32)
    shade = np.ones(x.shape, np.float32)
    for _ in range(int(rng.integers(20, 28))):
        distance, direction = reach * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        grain = spot.px(rng.uniform(0.009, 0.019))
        dx, dy = x - distance * np.cos(direction), y - distance * np.sin(direction)
        cover = np.clip(grain - np.hypot(dx, dy * rng.uniform(0.7, 1.4)) + 0.5, 0, 1)
        shade = np.where(cover > 0, 0.85 - 0.35 * (dx + dy) / grain, shade)
        opacity = np.maximum(opacity, cover)
    colour = np.clip(shade[..., None] * np.array([150, 236, 40], np.float32), 0, 255)
    return _blend(picture, Layer(left, top, colour, opacity), spot.contrast)


def _deformation(picture: np.ndarray, spot: Spot, rng: np.random.Generator) -> np.ndarray:
    """Paint a dent: twist and shrink the print there, and brighten or darken its slopes."""
    radius = spot.px(rng.uniform(0.115, 0.15))
    left, top, x, y = _window(spot, radius)
    distance = np.hypot(x, y) / radius
    depth = np.square(np.clip(1 - np.square(distance), 0, None))
    twist = rng.choice([-1.0, 1.0]) * rng.uniform(0.9, 1.3) * spot.contrast * depth
    pull = 1 - 0.35 * spot.contrast * depth
    c, s = np.cos(twist) * pull, np.sin(twist) * pull
    source_x = (c * x - s * y + spot.x).astype(np.float32)
    source_y = (s * x + c * y + spot.y).astype(np.float32)
    moved = cv2.remap(picture, source_x, source_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101).astype(
        np.float32
    )
    sun = rng.uniform(0, 2 * np.pi)
    slope = 2.6 * distance * np.clip(1 - np.square(distance), 0, None)  # the slope of the bowl, at most about 1
    facing = slope * np.cos(np.arctan2(y, x) - sun) * spot.contrast
    colour = np.clip(moved * (1 + 0.55 * facing[..., None]) + 70 * np.clip(facing, 0, None)[..., None], 0, 255)
    return _blend(picture, Layer(left, top, colour, (distance < 1).astype(np.float32)), 1.0)


PAINTERS: dict[str, Callable[[np.ndarray, Spot, np.random.Generator], np.ndarray]] = {
    DefectKind.SCRATCH: _scratch,
    DefectKind.HOLE: _hole,
    DefectKind.STAIN: _stain,
    DefectKind.CRACK: _crack,
    DefectKind.CONTAMINATION: _contamination,
    DefectKind.DEFORMATION: _deformation,
}
"""Defects that can be anywhere: a function paints on a uint8 RGB picture in place and returns the mask, bool (H, W)."""

ASSEMBLY: frozenset[str] = frozenset({DefectKind.MISSING, DefectKind.MISPLACED})
"""Defects of a component: they are at the place of the component."""


@dataclass(frozen=True)
class Placed:
    """Holds a component and its pose: centre in picture pixels, angle in radians, picture pixels per sprite pixel."""

    component: Component
    x: float
    y: float
    angle: float
    scale: float

    @property
    def side_px(self) -> float:
        return self.component.drawing.shape[0] * self.scale

    def put(self, picture: np.ndarray, drawing: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Stamp `drawing` in this pose on `picture`, in place, and set `mask` where it covers, with its shadow."""
        landing = stamp(picture, drawing, sprite_matrix(drawing, (self.x, self.y), self.angle, self.scale))
        if mask is not None and landing is not None:
            (x0, y0, x1, y1), opacity = landing
            mask[y0:y1, x0:x1] |= opacity > 48


def disturb(kind: str, bare: np.ndarray, placed: Placed, spot: Spot, rng: np.random.Generator) -> np.ndarray:
    """Remove a component from its bed, or slide it from its place on wet sealant, in place; return the mask.

    `bare` is the picture without the component. With a `size` below 1, only that share of a component is missing: the
    rest is broken off along a line. `size` scales how far a misplaced component slides.
    """
    whole = bare.copy()
    mask = np.zeros(bare.shape[:2], bool)
    drawing = placed.component.drawing
    placed.put(whole, drawing, mask)
    direction = rng.uniform(0, 2 * np.pi)
    if kind == DefectKind.MISPLACED:
        slid = placed.side_px * rng.uniform(0.42, 0.52) * spot.size
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0)
        wrong = replace(
            placed,
            x=placed.x + slid * np.cos(direction),
            y=placed.y + slid * np.sin(direction),
            angle=placed.angle + turn,
        )
        for step in np.linspace(0, 1, 6):
            track = replace(
                placed,
                x=placed.x + step * (wrong.x - placed.x),
                y=placed.y + step * (wrong.y - placed.y),
                angle=placed.angle + step * turn,
            )
            track.put(bare, placed.component.smear, mask)
        wrong.put(bare, drawing, mask)
    else:
        placed.put(bare, placed.component.bed)
        if spot.size < 1:
            y, x = np.indices(mask.shape, np.float32)
            along = ((x - placed.x) * np.cos(direction) + (y - placed.y) * np.sin(direction)) / (0.5 * placed.side_px)
            mask &= along < 2 * spot.size - 1
            bare[~mask] = whole[~mask]
    bare[:] = cv2.addWeighted(bare, spot.contrast, whole, 1 - spot.contrast, 0)
    return mask
