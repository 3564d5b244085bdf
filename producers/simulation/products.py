"""The products of the simulated line: a sheet (the picture of the bare part) and the components on it.

Lengths are in units: one unit is the shorter side of the picture, the origin is its centre. Products are drawn once per
picture size; a part is then one warp of the sheet plus its few components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from zlib import crc32

import cv2
import numpy as np

from producers.simulation import components as parts
from producers.simulation.drawing import cloud, photograph, ramp
from producers.simulation.settings import ProductKind

Rgb = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Component:
    """Holds a component of a product, which can be missing or misplaced.

    `bed` shows when the component is missing, `smear` when it has moved.
    """

    drawing: np.ndarray
    bed: np.ndarray
    smear: np.ndarray
    x: float
    y: float
    angle: float = 0.0


@dataclass(frozen=True, eq=False)
class Product:
    """Holds a product, or one variant of it, at one picture size.

    `sheet` is uint8 RGB at `unit_px` pixels per unit; `drift` is how far it can move below the components (a texture
    has no fixed origin); `shift`, `turn` (radians) and `zoom` are the limits of the pose. Defects are between the radii
    `surface` around the centre. The first
    component shows which `variant` of so many it is.
    """

    name: str
    unit_px: int
    sheet: np.ndarray
    components: tuple[Component, ...]
    drift: float
    shift: float
    turn: float
    zoom: float
    surface: tuple[float, float]
    variant: int
    variants: int


@dataclass(frozen=True)
class Canvas:
    """Holds the size of the sheet to draw, in pixels, and the pixels per unit."""

    height: int
    width: int
    unit_px: int

    def polar(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return x, y, radius (units) and angle of every pixel, float32."""
        x = (np.arange(self.width, dtype=np.float32) - (self.width - 1) / 2) / self.unit_px
        y = (np.arange(self.height, dtype=np.float32) - (self.height - 1) / 2) / self.unit_px
        xx, yy = np.meshgrid(x, y)
        return xx, yy, np.hypot(xx, yy), np.arctan2(yy, xx)

    def point(self, x: float, y: float) -> tuple[int, int]:
        """Return the pixel of a point in units."""
        return (
            round((self.width - 1) / 2 + x * self.unit_px),
            round((self.height - 1) / 2 + y * self.unit_px),
        )

    def px(self, units: float) -> int:
        """Return a length in whole pixels, at least one."""
        return max(1, round(units * self.unit_px))


def _photo_sheet(canvas: Canvas, photo: np.ndarray, px_per_unit: float, centre: tuple[float, float]) -> np.ndarray:
    """Scale a photograph so that `px_per_unit` of it fill one unit, mirrored where it ends."""
    scale = px_per_unit / canvas.unit_px
    x = (np.arange(canvas.width, dtype=np.float32) - (canvas.width - 1) / 2) * scale + centre[0]
    y = (np.arange(canvas.height, dtype=np.float32) - (canvas.height - 1) / 2) * scale + centre[1]
    if scale > 1.5:  # without this, downscaling by remap aliases
        photo = cv2.GaussianBlur(photo, (0, 0), scale / 2.5)
    xx, yy = np.meshgrid(x, y)
    return cv2.remap(photo, xx, yy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def _shaded(colour: Rgb, shade: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(colour, np.float32) * shade[..., None], 0, 255)


def _brick(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    grey = photograph("brick.png")[..., 0]
    colours = [
        (50, (70, 30, 24)),
        (95, (150, 74, 54)),
        (120, (176, 96, 70)),
        (165, (216, 204, 186)),
        (220, (245, 240, 230)),
    ]
    return _photo_sheet(canvas, ramp(grey, colours), 256, (256, 256))


def _gravel(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    grey = photograph("gravel.png")[..., 0]
    colours = [(20, (40, 36, 34)), (110, (128, 120, 108)), (180, (196, 188, 172)), (250, (250, 246, 238))]
    return _photo_sheet(canvas, ramp(grey, colours), 256, (256, 256))


def _coffee(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    return _photo_sheet(canvas, photograph("coffee.png"), 384, (291, 200))


def _belt(canvas: Canvas, colour: Rgb, rng: np.random.Generator) -> np.ndarray:
    """Draw a dull conveyor belt with a faint diagonal rib."""
    x, y, _, _ = canvas.polar()
    rib = 0.04 * np.sin((x + y) * 2 * np.pi * 22)
    return _shaded(colour, 1 + rib + 0.05 * cloud(x.shape, 0.02 * canvas.unit_px, rng))


def _disc(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Draw a turned metal flange: fine tool marks, grooves, a bore, and the fan-shaped reflection of turned metal."""
    x, _, radius, angle = canvas.polar()
    gleam = 0.16 * np.cos(2 * angle - 0.7) + 0.06 * np.cos(4 * angle + 0.4)
    marks = 0.05 * np.sin(radius * 2 * np.pi * 46) + 0.03 * np.sin(radius * 2 * np.pi * 31 + 1)
    shade = 0.78 + gleam + marks + 0.02 * cloud(x.shape, 0.01 * canvas.unit_px, rng)
    for groove, width in ((0.41, 0.008), (0.215, 0.006), (0.16, 0.012)):
        edge = (radius - groove) / width
        shade += -0.45 * np.exp(-(edge**2)) + 0.25 * np.exp(-((edge - 1.6) ** 2))
    metal = _shaded((214, 219, 226), shade)
    belt = _belt(canvas, (44, 50, 62), rng)
    soft = 1.2 / canvas.unit_px
    body = np.clip((0.455 - radius) / soft + 0.5, 0, 1) * np.clip((radius - 0.085) / soft + 0.5, 0, 1)
    shadow = 1 - 0.5 * np.exp(-(np.maximum(radius - 0.455, 0) / 0.02)) * (radius > 0.455)
    return metal * body[..., None] + (belt * shadow[..., None]) * (1 - body[..., None])


def _board(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Draw a printed circuit board: copper traces below green mask, vias, gold pads, white print."""
    x, _, _, _ = canvas.polar()
    board = _shaded((22, 104, 62), 1 + 0.05 * cloud(x.shape, 0.15 * canvas.unit_px, rng)).astype(np.uint8)
    pitch = 0.045
    reach_x, reach_y = canvas.width / canvas.unit_px / 2, canvas.height / canvas.unit_px / 2
    for _ in range(round(70 * reach_x * reach_y * 4)):
        px, py = rng.uniform(-reach_x, reach_x), rng.uniform(-reach_y, reach_y)
        route = [(round(px / pitch) * pitch, round(py / pitch) * pitch)]
        for _ in range(3):
            direction = rng.integers(0, 8) * np.pi / 4
            reach = pitch * rng.integers(2, 6)
            route.append((route[-1][0] + reach * np.cos(direction), route[-1][1] + reach * np.sin(direction)))
        points = np.array([canvas.point(*p) for p in route], np.int32)
        cv2.polylines(board, [points], False, (52, 146, 88), canvas.px(0.011), cv2.LINE_AA)
        for end in (points[0], points[-1]):
            cv2.circle(board, tuple(map(int, end)), canvas.px(0.013), (196, 168, 84), -1, cv2.LINE_AA)
            cv2.circle(board, tuple(map(int, end)), canvas.px(0.006), (16, 40, 28), -1, cv2.LINE_AA)
    for column in range(9):
        left, top = canvas.point(-0.40 + column * 0.1, 0.40)
        right, bottom = canvas.point(-0.40 + column * 0.1 + 0.055, 0.47)
        cv2.rectangle(board, (left, top), (right, bottom), (214, 182, 96), -1, cv2.LINE_AA)
    size = canvas.unit_px / 256
    for text, place in (
        ("FL-7 R3", (-0.42, -0.41)),
        ("C12", (0.24, 0.06)),
        ("U1", (-0.40, 0.16)),
        ("U2", (0.30, -0.42)),
    ):
        origin = canvas.point(*place)
        cv2.putText(
            board, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.36 * size, (228, 232, 226), canvas.px(0.005), cv2.LINE_AA
        )
    return board


def _label(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Draw a printed label on a carton: header band, lines of text, a bar code."""
    x, y, _, _ = canvas.polar()
    carton = _shaded(
        (176, 134, 88), 1 + 0.05 * np.sin(y * 2 * np.pi * 40) + 0.04 * cloud(x.shape, 0.03 * canvas.unit_px, rng)
    )
    paper = _shaded((244, 240, 226), 1 + 0.012 * cloud(x.shape, 0.01 * canvas.unit_px, rng)).astype(np.uint8)
    ink = (34, 34, 40)
    cv2.rectangle(paper, canvas.point(-0.44, -0.44), canvas.point(0.44, -0.27), (24, 78, 150), -1)
    size = canvas.unit_px / 256
    font, thin = cv2.FONT_HERSHEY_SIMPLEX, canvas.px(0.006)
    cv2.putText(
        paper, "FLAWLINE", canvas.point(-0.40, -0.32), font, 0.72 * size, (250, 250, 250), canvas.px(0.009), cv2.LINE_AA
    )
    for row, text in enumerate(("Batch 2417-A", "Net 750 g  Lot 5", "Keep dry, 5-25 C", "Made for tests")):
        cv2.putText(paper, text, canvas.point(-0.40, -0.18 + row * 0.085), font, 0.40 * size, ink, thin, cv2.LINE_AA)
    left = -0.40
    while left < 0.10:
        width = 0.006 * int(rng.integers(1, 4))
        cv2.rectangle(paper, canvas.point(left, 0.18), canvas.point(left + width, 0.37), ink, -1)
        left += width + 0.006 * int(rng.integers(1, 4))
    cv2.putText(paper, "4 018077 683015", canvas.point(-0.40, 0.42), font, 0.33 * size, ink, thin, cv2.LINE_AA)
    inside = ((np.abs(x) < 0.455) & (np.abs(y) < 0.455))[..., None]
    return np.where(inside, paper, carton)


def _fabric(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Draw a 2/2 twill of light and dark teal threads, which are small cylinders in light from above.

    The contrast of the weave is low on purpose: with more of it, its threads would hide defects.
    """
    x, y, _, _ = canvas.polar()
    pitch = 0.026
    u, v = x / pitch, y / pitch
    column, row = np.floor(u), np.floor(v)
    warp_on_top = np.mod(column + row, 4) < 2
    across = np.where(warp_on_top, u - column, v - row)
    shade = 0.80 + 0.24 * np.sin(np.pi * across) + 0.05 * cloud(x.shape, 0.05 * canvas.unit_px, rng)
    warp = _shaded((96, 152, 156), shade)
    weft = _shaded((62, 118, 128), shade)
    return np.where(warp_on_top[..., None], warp, weft)


def _bottle(flavour: str, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Draw a bottle of juice that lies on a belt: the juice has the flavour's colour, the label is white."""
    x, y, _, _ = canvas.polar()
    width = np.where(y < -0.2, 0.12 + 0.2 / (1 + np.exp(-(y + 0.26) / 0.015)), 0.32)
    soft = 1.5 / canvas.unit_px
    body = np.clip((width - np.abs(x)) / soft + 0.5, 0, 1) * np.clip((0.46 - np.abs(y)) / soft + 0.5, 0, 1)
    round_shade = 0.62 + 0.38 * np.sqrt(np.clip(1 - np.square(x / width), 0, 1))
    gleam = 0.35 * np.exp(-np.square((x + 0.6 * width) / 0.02))
    glass = 1 + 0.02 * cloud(x.shape, 0.05 * canvas.unit_px, rng)
    juice = _shaded(parts.FLAVOURS[flavour], round_shade * glass)
    air = _shaded((206, 214, 216), round_shade * glass)
    filled = np.clip((y + 0.24) / soft + 0.5, 0, 1)[..., None]
    drawn = juice * filled + air * (1 - filled) + 255 * gleam[..., None]
    label = (np.clip((0.19 - np.abs(y - 0.12)) / soft + 0.5, 0, 1) * (np.abs(x) < width))[..., None]
    drawn = drawn * (1 - label) + _shaded((238, 236, 228), 0.5 + 0.5 * round_shade) * label
    belt = _belt(canvas, (64, 66, 72), rng)
    return np.clip(drawn, 0, 255) * body[..., None] + belt * (1 - body[..., None])


@dataclass(frozen=True)
class _Recipe:
    """Holds how a product is drawn, the limits of its pose, and its components: (component, x, y, angle)."""

    sheet: Callable[[Canvas, np.random.Generator], np.ndarray]
    components: tuple[tuple[str, float, float, float], ...]
    surface: tuple[float, float] = (0.0, 0.36)
    drift: float = 0.0
    shift: float = 0.015
    turn_deg: float = 3.0
    zoom: float = 0.02


_RECIPES: dict[str, _Recipe | tuple[_Recipe, ...]] = {
    ProductKind.BRICK: _Recipe(_brick, (("rosette", -0.24, -0.22, 0.2), ("rosette", 0.24, 0.22, 0.5)), drift=0.4),
    ProductKind.GRAVEL: _Recipe(_gravel, (("plug", 0.22, -0.22, 0.3), ("plug", -0.22, 0.22, 1.0)), drift=0.4),
    ProductKind.COFFEE: _Recipe(_coffee, (("sachet", 0.33, 0.31, -0.6), ("sachet", -0.34, 0.33, 0.5))),
    ProductKind.DISC: _Recipe(
        _disc,
        tuple(("bolt", 0.31 * float(np.cos(a)), 0.31 * float(np.sin(a)), a) for a in (0.4, 1.971, 3.542, 5.112)),
        surface=(0.2, 0.32),
        turn_deg=8.0,
    ),
    ProductKind.BOARD: _Recipe(
        _board, (("chip", -0.2, -0.12, 0.0), ("chip", 0.22, 0.24, 1.571), ("can", 0.24, -0.18, 0.0))
    ),
    ProductKind.LABEL: _Recipe(_label, (("seal", 0.28, 0.27, 0.2), ("hologram", 0.31, -0.07, 0.0))),
    ProductKind.FABRIC: _Recipe(_fabric, (("snap", -0.22, 0.2, 0.0), ("snap", 0.22, -0.2, 0.0)), drift=0.05),
    ProductKind.BOTTLE: tuple(
        _Recipe(partial(_bottle, flavour), ((flavour, 0.0, 0.12, 0.0), ("cap", 0.0, -0.41, 0.0)), surface=(0.0, 0.28))
        for flavour in parts.FLAVOURS
    ),
}
"""How products are drawn; those that come in variants have a recipe for each."""

_MARGIN = 0.12
"""Units of sheet around the picture, for shift, turn and zoom of the part; outside of it the sheet is mirrored."""


@lru_cache(maxsize=64)
def product(name: str, height: int, width: int, variant: int = 0) -> Product:
    """Return a product for a picture size in pixels, drawn once in a process and the same in every process."""
    recipes = _RECIPES[name]
    recipes = recipes if isinstance(recipes, tuple) else (recipes,)
    recipe = recipes[variant]
    unit_px = min(height, width)
    border_px = 2 * round((_MARGIN + recipe.drift) * unit_px)
    canvas = Canvas(height + border_px, width + border_px, unit_px)
    drawn = recipe.sheet(canvas, np.random.Generator(np.random.Philox(key=crc32(name.encode()))))
    return Product(
        name=name,
        unit_px=unit_px,
        sheet=np.ascontiguousarray(np.clip(np.rint(drawn), 0, 255).astype(np.uint8)),
        components=tuple(Component(*parts.draw(kind, unit_px), x, y, angle) for kind, x, y, angle in recipe.components),
        drift=recipe.drift,
        shift=recipe.shift,
        turn=float(np.deg2rad(recipe.turn_deg)),
        zoom=recipe.zoom,
        surface=recipe.surface,
        variant=variant,
        variants=len(recipes),
    )
