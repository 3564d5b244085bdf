"""The settings of a simulated line: products, defects, their visibility and the size of the pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from flawline.errors import UsageError


class ProductKind(StrEnum):
    BRICK = "brick"
    GRAVEL = "gravel"
    COFFEE = "coffee"
    DISC = "disc"
    BOARD = "board"
    LABEL = "label"
    FABRIC = "fabric"
    BOTTLE = "bottle"


class DefectKind(StrEnum):
    SCRATCH = "scratch"
    HOLE = "hole"
    STAIN = "stain"
    CRACK = "crack"
    CONTAMINATION = "contamination"
    DEFORMATION = "deformation"
    MISSING = "missing"
    MISPLACED = "misplaced"
    MISMATCH = "mismatch"


VARIED_PRODUCTS: tuple[str, ...] = (ProductKind.BOTTLE.value,)
"""Products that come in variants. Only they can have the defect `mismatch`, and a line shows them when it names them:
what a seed shows by default stays as it is."""
PRODUCTS: tuple[str, ...] = tuple(kind.value for kind in ProductKind if kind.value not in VARIED_PRODUCTS)
"""The products of a line by default."""
DEFECTS: tuple[str, ...] = tuple(kind.value for kind in DefectKind if kind is not DefectKind.MISMATCH)
"""The defects of a line by default."""

LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "height": (64, 8192),  # below 64 px the thinnest scratch is less than half a pixel wide
    "width": (64, 8192),
    "defect_rate": (0, 1),
    "size": (0.25, 4),
    "contrast": (0.05, 1),
    "variation": (0, 2),
}


@dataclass(frozen=True)
class LineSettings:
    """Holds everything that decides the pictures of a simulated line.

    `size` scales a defect's lengths (1: about 0.3 to 5 % of the picture; not those of `mismatch`), `contrast` is its
    opacity (1: full), and `variation` scales the natural spread of pose, light, blur and noise of every part.

    Raises UsageError, in one line, for a value outside its limits or an unknown product or defect.
    """

    seed: int = 0
    products: tuple[str, ...] = PRODUCTS
    defects: tuple[str, ...] = DEFECTS
    defect_rate: float = 0.2
    size: float = 1.0
    contrast: float = 1.0
    height: int = 256
    width: int = 256
    variation: float = 1.0

    def __post_init__(self) -> None:
        for field, (low, high) in LIMITS.items():
            value = getattr(self, field)
            if not math.isfinite(value) or not low <= value <= high:
                raise UsageError(f"simulated line: {field} is {value}: give a value from {low} to {high}")
        kinds = (("products", PRODUCTS + VARIED_PRODUCTS), ("defects", (*DEFECTS, DefectKind.MISMATCH.value)))
        for field, known in kinds:
            names = tuple(str(name) for name in getattr(self, field))
            object.__setattr__(self, field, names)
            if not names:
                raise UsageError(f"simulated line: {field} is empty: name at least one of {', '.join(known)}")
            for name in names:
                if name not in known:
                    raise UsageError(
                        f"simulated line: unknown name {name!r} in {field}: choose from {', '.join(known)}"
                    )
            if len(set(names)) < len(names):
                raise UsageError(f"simulated line: {field} names one kind twice: {', '.join(names)}: name it once")
        uniform = [name for name in self.products if name not in VARIED_PRODUCTS]
        if DefectKind.MISMATCH in self.defects and uniform:
            raise UsageError(
                f"simulated line: {uniform[0]} has no variants, and mismatch needs them: leave one of the two out; "
                f"{', '.join(VARIED_PRODUCTS)} has variants"
            )
