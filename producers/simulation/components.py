"""The components on products, and the bed of old adhesive that shows when a component is not in its place."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from producers.simulation.drawing import polar, sprite

Drawing = tuple[np.ndarray, np.ndarray]
"""RGB (0..255) and opacity (0..1), larger than in the picture, so that edges are smooth."""

DRAWN_PX = 256
"""Side of the square that components are drawn on before they are scaled down; the outer tenth is for the shadow."""

RIM = 0.86
"""Radius of a round body in its drawing, whose half side is 1; its shadow is outside of it."""


def _round_body() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the radius and angle of every pixel, and the opacity of a round body with its soft shadow."""
    radius, angle = polar(DRAWN_PX)
    body = np.clip((RIM - radius) * 60, 0, 1)
    shadow = np.clip((1.0 - radius) / (1.0 - RIM), 0, 1) * 0.5
    return radius, angle, np.maximum(body, shadow)


def _tinted(shade: np.ndarray, colour: tuple[int, int, int], inside: np.ndarray) -> np.ndarray:
    return np.where(inside[..., None], np.clip(shade[..., None] * np.asarray(colour, np.float32), 0, 255), 12)


def _bolt() -> Drawing:
    """Draw a black socket cap screw."""
    radius, angle, alpha = _round_body()
    shade = 0.9 + 0.35 * np.cos(angle + 2.2) * (radius > 0.62) + 0.3 * np.exp(-(((radius - 0.62) / 0.05) ** 2))
    hexagon = radius * np.cos(np.mod(angle, np.pi / 3) - np.pi / 6) < 0.36
    shade = np.where(hexagon, 0.15, shade)
    return _tinted(shade, (74, 76, 84), radius < RIM), alpha


def _rosette() -> Drawing:
    """Draw a zinc anchor plate with a hexagon head."""
    radius, angle, alpha = _round_body()
    shade = 0.72 + 0.16 * np.cos(angle + 2.2) + 0.2 * np.exp(-(((radius - 0.8) / 0.04) ** 2))
    hexagon = radius * np.cos(np.mod(angle, np.pi / 3) - np.pi / 6)
    shade = np.where(hexagon < 0.42, 0.95 + 0.2 * np.cos(angle + 2.2), shade)
    shade = np.where(np.abs(hexagon - 0.43) < 0.025, 0.3, shade)
    return _tinted(shade, (198, 206, 214), radius < RIM), alpha


def _plug() -> Drawing:
    """Draw a blue plastic plug with a cross slot."""
    radius, angle, alpha = _round_body()
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    shade = 0.85 + 0.3 * np.cos(angle + 2.2) * (radius > 0.66) + 0.25 * np.exp(-(((radius - 0.66) / 0.04) ** 2))
    slot = ((np.abs(x) < 0.08) | (np.abs(y) < 0.08)) & (radius < 0.5)
    return _tinted(np.where(slot, 0.3, shade), (52, 98, 178), radius < RIM), alpha


def _snap() -> Drawing:
    """Draw a copper snap fastener."""
    radius, angle, alpha = _round_body()
    dome = 0.75 + 0.35 * np.cos(angle + 2.2) * radius
    ring = -0.4 * np.exp(-(((radius - 0.5) / 0.05) ** 2)) + 0.25 * np.exp(-(((radius - 0.7) / 0.05) ** 2))
    return _tinted(dome + ring, (206, 124, 84), radius < RIM), alpha


def _seal() -> Drawing:
    """Draw a red paper seal with a star and a serrated rim."""
    radius, angle, _ = _round_body()
    rim = 0.84 + 0.04 * np.cos(24 * angle)
    alpha = np.clip((rim - radius) * 60, 0, 1)
    star = radius < 0.34 + 0.16 * np.cos(5 * angle)
    ring = np.abs(radius - 0.66) < 0.03
    rgb = np.where((star | ring)[..., None], (246, 214, 120), (186, 34, 38)).astype(np.float32)
    return rgb, alpha


def _can() -> Drawing:
    """Draw an aluminium capacitor from above, with a dark polarity segment and a scored cross."""
    radius, angle, alpha = _round_body()
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    shade = 0.85 + 0.12 * np.cos(angle + 2.2) + 0.2 * np.exp(-(((radius - 0.78) / 0.04) ** 2))
    shade = np.where((x < -0.45), 0.2, shade)
    shade = np.where(((np.abs(x) < 0.03) | (np.abs(y) < 0.03)) & (radius < 0.4), 0.55, shade)
    return _tinted(shade, (206, 208, 212), radius < RIM), alpha


def _card(body: tuple[int, int, int], half_height: float, half_width: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a rectangle with a soft shadow; the half sides are fractions of half the drawing."""
    rgb = np.full((DRAWN_PX, DRAWN_PX, 3), body, np.uint8)
    axis = np.abs((np.arange(DRAWN_PX, dtype=np.float32) + 0.5) / DRAWN_PX * 2 - 1)
    out = np.maximum(axis[None, :] - half_width, axis[:, None] - half_height)
    solid = out < 0
    rgb[~solid] = 12
    return rgb, np.where(solid, 1, np.clip(0.5 * (1 - out / 0.1), 0, 1)).astype(np.float32)


def _chip() -> Drawing:
    """Draw a dual in-line chip: black epoxy, tin pins, a notch and a printed mark."""
    rgb, alpha = _card((38, 38, 42), 0.84, 0.58)
    mid = DRAWN_PX // 2
    for row in range(6):
        top = int(DRAWN_PX * (0.12 + row * 0.135))
        for left, right in ((0.06, 0.21), (0.79, 0.94)):
            x0, x1 = int(DRAWN_PX * left), int(DRAWN_PX * right)
            rgb[top : top + 16, x0:x1] = (198, 200, 204)
            alpha[top : top + 16, x0:x1] = 1
    cv2.circle(rgb, (mid, 24), 14, (90, 90, 94), -1, cv2.LINE_AA)
    for row, text in enumerate(("FL", "07")):
        cv2.putText(
            rgb, text, (mid - 40, mid + 10 + row * 66), cv2.FONT_HERSHEY_SIMPLEX, 1.9, (190, 190, 190), 6, cv2.LINE_AA
        )
    return rgb, alpha


def _sachet() -> Drawing:
    """Draw a sugar sachet: white paper with blue stripes and crimped ends."""
    rgb, alpha = _card((240, 240, 236), 0.52, 0.86)
    inside = alpha >= 1
    columns = np.arange(DRAWN_PX)
    stripes = (np.mod(columns, 40) < 14)[None, :] & (columns > 50)[None, :] & (columns < 206)[None, :] & inside
    rgb[stripes] = (42, 88, 168)
    crimp = (np.mod(columns, 8) < 3)[None, :] & ((columns < 44) | (columns > 212))[None, :] & inside
    rgb[crimp] = (186, 186, 180)
    return rgb, alpha


def _hologram() -> Drawing:
    """Draw a silver security foil with bands of spectral colour."""
    rgb, alpha = _card((206, 212, 220), 0.8, 0.8)
    yy, xx = np.mgrid[:DRAWN_PX, :DRAWN_PX].astype(np.float32) / DRAWN_PX
    for channel, phase in enumerate((0.0, 2.1, 4.2)):
        band = 190 + 50 * np.sin((xx + yy) * 2 * np.pi * 1.6 + phase)
        rgb[..., channel] = np.where(alpha >= 1, band, rgb[..., channel])
    cv2.circle(rgb, (128, 128), 52, (120, 126, 140), 8, cv2.LINE_AA)
    return rgb, alpha


def _fruit(skin: tuple[int, int, int], ribs: int) -> Drawing:
    """Draw a cut fruit: a skin, a paler rim, and so many segments."""
    radius, angle, _ = _round_body()
    alpha = np.clip((RIM - radius) * 60, 0, 1)
    colour = np.asarray(skin, np.float32)
    flesh = colour * (0.86 + 0.14 * np.cos(ribs * angle))[..., None]
    rgb = np.where((radius > 0.68)[..., None], 0.8 * colour, flesh)
    rgb = np.where((np.abs(radius - 0.68) < 0.05)[..., None], 0.4 * colour + 0.6 * 255, rgb)
    return np.clip(rgb, 0, 255), alpha


def _cap() -> Drawing:
    """Draw a screw cap from the side: white plastic with ribs."""
    rgb, alpha = _card((226, 228, 230), 0.5, 0.8)
    ribs = (np.mod(np.arange(DRAWN_PX), 16) < 6)[None, :] & (alpha >= 1)
    rgb[ribs] = (190, 194, 198)
    return rgb, alpha


FLAVOURS: dict[str, tuple[int, int, int]] = {"orange": (240, 150, 36), "lime": (132, 190, 60), "cherry": (196, 36, 58)}
"""The flavours of a bottle, and the colour of their fruit and juice."""

_COMPONENTS: dict[str, tuple[Callable[[], Drawing], float]] = {
    # name: (drawing, side in units)
    "bolt": (_bolt, 0.135),
    "rosette": (_rosette, 0.16),
    "plug": (_plug, 0.15),
    "snap": (_snap, 0.15),
    "seal": (_seal, 0.20),
    "can": (_can, 0.16),
    "chip": (_chip, 0.20),
    "sachet": (_sachet, 0.22),
    "hologram": (_hologram, 0.14),
    "cap": (_cap, 0.20),
    "orange": (lambda: _fruit(FLAVOURS["orange"], 11), 0.20),
    "lime": (lambda: _fruit(FLAVOURS["lime"], 5), 0.20),
    "cherry": (lambda: _fruit(FLAVOURS["cherry"], 2), 0.20),
}


def _bed(alpha: np.ndarray) -> Drawing:
    """Draw the bed: pale yellow adhesive in the component's outline, a darker bead in turns, a dirty edge."""
    outline = (alpha >= 0.95).astype(np.uint8)
    inner = cv2.erode(outline, np.ones((15, 15), np.uint8))
    rgb = np.full((DRAWN_PX, DRAWN_PX, 3), (226, 214, 150), np.uint8)
    turns = [(x, 56 if k % 2 else 200) for k, x in enumerate(range(48, 212, 20))]
    cv2.polylines(rgb, [np.array(turns, np.int32)], False, (176, 150, 62), 9, cv2.LINE_AA)
    rgb[inner == 0] = (70, 60, 38)
    return rgb, outline.astype(np.float32)


def _smear(alpha: np.ndarray) -> Drawing:
    """Draw wet pink sealant in the component's outline, with streaks and a dark edge."""
    outline = (alpha >= 0.95).astype(np.uint8)
    inner = cv2.erode(outline, np.ones((9, 9), np.uint8))
    streaks = 1 + 0.16 * np.sin(np.arange(DRAWN_PX) * 2 * np.pi / 26)
    rgb = np.clip(streaks[None, :, None] * np.array([236, 90, 150], np.float32), 0, 255).repeat(DRAWN_PX, axis=0)
    rgb[inner == 0] = (120, 26, 70)
    return rgb, outline.astype(np.float32)


@lru_cache(maxsize=256)
def draw(kind: str, unit_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a component, its empty bed and its sealant: premultiplied RGBA uint8 sprites, `unit_px` to a unit."""
    drawing, side = _COMPONENTS[kind]
    rgb, alpha = drawing()
    side_px = side * unit_px
    return sprite(rgb, alpha, side_px), sprite(*_bed(alpha), side_px), sprite(*_smear(alpha), side_px)
