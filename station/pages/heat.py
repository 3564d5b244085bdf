"""Colours of heat maps: one scale on every page, so that pages and frames can be compared."""

from __future__ import annotations

import cv2
import numpy as np

HEAT_RANGE = (0.0, 2.0)
"""Aligned units: natural log of a place's score over the normal score of look-alikes. At 0 a place is as hot as the
hottest of good parts, at 2 it is seven times as far from what the model knows. A judgement: defects of the
simulated line peak at 0.3 to 2.8."""


def heat_share(values: np.ndarray) -> np.ndarray:
    """Return where aligned values lie in HEAT_RANGE, float32 from 0 to 1; what is not a number counts as 0."""
    low, high = HEAT_RANGE
    return np.clip((np.nan_to_num(values.astype(np.float32)) - low) / (high - low), 0, 1)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, 3) RGB colours of a heat map (H, W) in aligned units."""
    share = (heat_share(values) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(share, cv2.COLORMAP_INFERNO)[..., ::-1])


def heat_over(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the image (uint8 (H, W, 3) RGB) in grey under its heat map (h, w); what is normal stays grey."""
    height, width = pixels.shape[:2]
    heat = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    weight = np.clip(heat_share(heat) * 2, 0, 0.8)[:, :, None]  # a judgement: faint heat does not hide the image
    return (grey * (1 - weight) + heat_colours(heat) * weight).astype(np.uint8)


def heat_layer(values: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, 4) RGBA of a heat map in aligned units, as opaque as `heat_over` makes it."""
    weight = np.clip(heat_share(values) * 2, 0, 0.8)
    return np.dstack([heat_colours(values), (weight * 255).round().astype(np.uint8)])


def heat_legend(steps: int = 9) -> list[tuple[float, str]]:
    """Return the colours of the scale: offset from 0 to 1, and colour as #rrggbb."""
    low, high = HEAT_RANGE
    offsets = np.linspace(0, 1, steps)
    colours = heat_colours((low + offsets * (high - low))[None])[0]
    return [(float(offset), f"#{r:02x}{g:02x}{b:02x}") for offset, (r, g, b) in zip(offsets, colours, strict=True)]
