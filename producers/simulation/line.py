"""The simulated line: a pure function from (settings, camera, index) to a picture and its ground truth.

No state goes from part to part: a part has counter-based random streams (Philox), with the seed and the camera as key
and the index as counter. So any process can render any part, in any order, with the same result. The truth is the same
on every machine; pixels are the same with the same build of OpenCV, and can differ by one level with another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b

import cv2
import numpy as np

from producers.simulation.defects import ASSEMBLY, PAINTERS, Placed, Spot, disturb
from producers.simulation.products import Product, product
from producers.simulation.settings import DefectKind, LineSettings


@dataclass(frozen=True)
class Truth:
    """Holds the product of a part, and its defect or None."""

    product: str
    defect: str | None


@dataclass(frozen=True, eq=False)
class Part:
    """Holds a picture, uint8 (H, W, 3) RGB, and its truth; `mask`, bool (H, W), is the area of the defect."""

    image: np.ndarray
    product: str
    defect: str | None
    mask: np.ndarray


class _Stream(IntEnum):
    """Names the independent random streams of a part, so that a defect changes nothing else of its part."""

    TRUTH = 0
    LOOK = 1
    DEFECT = 2
    VARIANT = 3


@dataclass(frozen=True)
class _Look:
    """Holds the natural variation of a part."""

    shift: tuple[float, float]
    turn: float
    zoom: float
    drift: tuple[float, float]
    tint: np.ndarray
    gradient: tuple[float, float]
    blur: float
    noise: float
    noise_at: tuple[float, float]


class SimulatedLine:
    """Renders the parts that pass the cameras of one line."""

    def __init__(self, settings: LineSettings) -> None:
        self.settings = settings

    def truth(self, camera: str | int, index: int) -> Truth:
        """Return the truth of part `index` (from 0) of a camera, without rendering the part."""
        return self._truth(_key(self.settings.seed, f"camera/{camera}"), index)

    def render(self, camera: str | int, index: int) -> Part:
        """Render part `index` (from 0) of a camera."""
        key = _key(self.settings.seed, f"camera/{camera}")
        return self._render(key, index, self._truth(key, index))

    def flawless(self, camera: str | int, index: int) -> Part:
        """Render the same part as `render` does, but without its defect."""
        key = _key(self.settings.seed, f"camera/{camera}")
        return self._render(key, index, replace(self._truth(key, index), defect=None))

    def part(self, truth: Truth, index: int, stream: str = "parts") -> Part:
        """Render a part with the product and the defect of `truth`; `stream` names an independent series of parts."""
        return self._render(_key(self.settings.seed, f"parts/{stream}"), index, truth)

    def good_parts(self, count: int, start: int = 0, seed: int | None = None) -> Iterator[Part]:
        """Render `count` good parts, the products in turn, from a series that no camera shows.

        `seed` (default: the line's) draws another series.
        """
        key = _key(self.settings.seed if seed is None else seed, "good")
        products = self.settings.products
        for index in range(start, start + count):
            yield self._render(key, index, Truth(products[index % len(products)], None))

    def _truth(self, key: int, index: int) -> Truth:
        which, faulty, kind = _random(key, index, _Stream.TRUTH).random(3)
        products, defects = self.settings.products, self.settings.defects
        defect = defects[int(kind * len(defects))] if faulty < self.settings.defect_rate else None
        return Truth(products[int(which * len(products))], defect)

    def _render(self, key: int, index: int, truth: Truth) -> Part:
        settings = self.settings
        drawn = product(truth.product, settings.height, settings.width)
        if drawn.variants > 1:
            variant = int(_random(key, index, _Stream.VARIANT).integers(drawn.variants))
            drawn = product(truth.product, settings.height, settings.width, variant)
        look = _look(_random(key, index, _Stream.LOOK), drawn, settings.variation)
        picture = _lay(drawn, look, settings.height, settings.width)
        components = [_placed(drawn, look, k, picture.shape) for k in range(len(drawn.components))]
        if truth.defect is None:
            mask = np.zeros(picture.shape[:2], bool)
            for placed in components:
                placed.put(picture, placed.component.drawing)
        else:
            mask = self._spoil(truth.defect, picture, drawn, components, _random(key, index, _Stream.DEFECT))
        return Part(_expose(picture, look, drawn.unit_px), truth.product, truth.defect, mask)

    def _spoil(
        self, kind: str, picture: np.ndarray, drawn: Product, components: list[Placed], rng: np.random.Generator
    ) -> np.ndarray:
        """Draw the components and the defect on the picture, in place; return the mask."""
        if kind == DefectKind.MISMATCH:
            return self._mismatched(picture, drawn, components, rng)
        chosen = components[int(rng.integers(len(components)))] if kind in ASSEMBLY else None
        for placed in components:
            if placed is not chosen:
                placed.put(picture, placed.component.drawing)
        inner, outer = drawn.surface
        distance = np.sqrt(rng.uniform(inner**2, outer**2))
        direction = rng.uniform(0, 2 * np.pi)
        height, width = picture.shape[:2]
        spot = Spot(
            x=(width - 1) / 2 + distance * np.cos(direction) * drawn.unit_px,
            y=(height - 1) / 2 + distance * np.sin(direction) * drawn.unit_px,
            unit_px=drawn.unit_px,
            size=self.settings.size,
            contrast=self.settings.contrast,
        )
        if chosen is not None:
            return disturb(kind, picture, chosen, spot, rng)
        return PAINTERS[kind](picture, spot, rng)

    def _mismatched(
        self, picture: np.ndarray, drawn: Product, components: list[Placed], rng: np.random.Generator
    ) -> np.ndarray:
        """Draw the components in place, the first one as another variant has it; return its mask.

        Each is good by itself: only their combination is wrong.
        """
        for placed in components:
            placed.put(picture, placed.component.drawing)
        others = [variant for variant in range(drawn.variants) if variant != drawn.variant]
        height, width = picture.shape[:2]
        other_variant = product(drawn.name, height, width, others[int(rng.integers(len(others)))])
        other = replace(components[0], component=other_variant.components[0])
        wrong, mask = picture.copy(), np.zeros(picture.shape[:2], bool)
        other.put(wrong, other.component.drawing, mask)
        picture[:] = cv2.addWeighted(wrong, self.settings.contrast, picture, 1 - self.settings.contrast, 0)
        return mask


def _key(seed: int, name: str) -> int:
    """Return the 128-bit Philox key of a series; Python's `hash` would differ between processes."""
    return (seed << 64) | int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


def _random(key: int, index: int, stream: _Stream) -> np.random.Generator:
    """Return the generator of one stream of one part; Philox itself uses the low word of the counter."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, index, stream, 0]))


def _look(rng: np.random.Generator, drawn: Product, variation: float) -> _Look:
    u = rng.random(14) * 2 - 1
    v = u * variation
    return _Look(
        shift=(drawn.shift * v[0], drawn.shift * v[1]),
        turn=drawn.turn * v[2],
        zoom=1 + drawn.zoom * v[3],
        drift=(drawn.drift * u[4], drawn.drift * u[5]),
        tint=(1 + 0.08 * v[6] + 0.015 * v[7:10]).astype(np.float32),
        gradient=(0.07 * v[10], 0.07 * v[11]),
        blur=(0.55 + 0.2 * u[12]) * variation,
        noise=2.5 * variation,
        noise_at=((u[13] + 1) / 2, float(rng.random())),
    )


def _pose(look: _Look) -> np.ndarray:
    """Return the turn and zoom of the part, (2, 2)."""
    c, s = look.zoom * np.cos(look.turn), look.zoom * np.sin(look.turn)
    return np.array([[c, -s], [s, c]])


def _lay(drawn: Product, look: _Look, height: int, width: int) -> np.ndarray:
    """Return the bare part in its pose, uint8 (H, W, 3)."""
    turn = _pose(look)
    middle = np.array([(drawn.sheet.shape[1] - 1) / 2, (drawn.sheet.shape[0] - 1) / 2])
    origin = middle + np.asarray(look.drift) * drawn.unit_px
    target = np.array([(width - 1) / 2, (height - 1) / 2]) + np.asarray(look.shift) * drawn.unit_px
    matrix = np.column_stack([turn, target - turn @ origin])
    return cv2.warpAffine(
        drawn.sheet, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )


def _placed(drawn: Product, look: _Look, index: int, shape: tuple[int, ...]) -> Placed:
    """Return a component with its pose in the picture."""
    component = drawn.components[index]
    x, y = _pose(look) @ (component.x, component.y) + np.asarray(look.shift)
    return Placed(
        component,
        x=(shape[1] - 1) / 2 + x * drawn.unit_px,
        y=(shape[0] - 1) / 2 + y * drawn.unit_px,
        angle=component.angle + look.turn,
        scale=look.zoom,
    )


_NOISE_SPARE = 61
"""Rows and columns of noise more than the picture has: every part takes the noise of the sensor at another offset."""


@lru_cache(maxsize=4)
def _noise(height: int, width: int) -> np.ndarray:
    """Return unit normal noise, float32 (H + spare, W + spare, 3); drawn once, since that is slow."""
    rng = np.random.Generator(np.random.Philox(key=0))
    return rng.standard_normal((height + _NOISE_SPARE, width + _NOISE_SPARE, 3), dtype=np.float32)


@lru_cache(maxsize=4)
def _ramps(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of the columns and of the rows in the picture, -1..1, as float32 (1, W, 1) and (H, 1, 1)."""
    return (
        np.linspace(-1, 1, width, dtype=np.float32)[None, :, None],
        np.linspace(-1, 1, height, dtype=np.float32)[:, None, None],
    )


def _expose(picture: np.ndarray, look: _Look, unit_px: int) -> np.ndarray:
    """Return the picture as the camera sees it: lens blur, uneven tinted light, sensor noise."""
    height, width = picture.shape[:2]
    sigma = look.blur * unit_px / 256
    if sigma > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    x, y = _ramps(height, width)
    light = (1 + look.gradient[0] * x + look.gradient[1] * y) * look.tint
    seen = picture * light
    if look.noise > 0:
        row, column = (int(at * _NOISE_SPARE) for at in look.noise_at)
        seen += _noise(height, width)[row : row + height, column : column + width] * np.float32(look.noise)
    np.rint(seen, out=seen)
    return np.clip(seen, 0, 255, out=seen).astype(np.uint8)
