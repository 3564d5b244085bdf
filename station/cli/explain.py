"""`flawline explain`: one image, why it was decided on as it was, and a page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from flawline import imaging
from flawline.errors import FlawlineError, UsageError
from flawline.messages import Decision
from flawline.settings.tree import Settings
from scorer.regions import regions as defect_regions
from station import terminal

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
PAGE_WIDTH_PX = 1240
MARGIN_PX = 20
PANEL_PX = 380
TEXT_PX = 16
LINE_PX = 22
# A patch alone shows nothing; around it, this share of the image's longer side does.
CROP_SHARE = 0.25
# One colour scale for all products and all models, in natural-log units of a good image's hottest patches: at 0 a place
# is as hot as the hottest of its good look-alikes, at 2 seven times as far from what is known.
SCALE = (0.0, 2.0)


@dataclass(frozen=True)
class Place:
    """One region: its box (x, y, width, height) and hottest point in pixels, its peak in aligned units.

    An accepted image has no region; its hottest place has no box.
    """

    box: tuple[int, int, int, int] | None
    hottest: tuple[float, float]
    peak: float


def run(settings: Settings, model: Path, image: Path, out: Path, target: str | None) -> None:
    """Explain the decision on `image` by the model in folder `model`: a page in `out`, and the same as JSON."""
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{out}: is no picture's name: end it in .png, .jpg or .webp")
    from scorer.explain import reasons
    from scorer.load import load_detector

    worker = settings.worker
    loaded = load_detector(model, runtime=worker.runtime, precision=worker.precision, weights=worker.weights)
    pixels = imaging.read_image(image)
    (scores,) = loaded.score([pixels])
    places = _places(pixels, scores, loaded.heatmap_range)
    height, width = pixels.shape[:2]
    found = reasons(loaded, pixels, [(place.hottest[0] / width, place.hottest[1] / height) for place in places])
    page = draw(image.name, pixels, scores, places, found, loaded.version, loaded.field_px)
    try:
        Pictures.fromarray(page).save(out)
    except OSError as error:
        raise FlawlineError(f"{out}: cannot be written: {error.strerror or error}: choose another place") from error
    report = _report(scores, places, found, loaded.version) | {"page": str(out)}
    if target:
        terminal.emit(report, target)
        return
    console = terminal.out()
    console.print(_headline(image.name, scores), highlight=False, markup=False)
    for number, (place, reason) in enumerate(zip(places, found, strict=True), 1):
        text = "; ".join(_lines(number, place, reason))
        console.print(text, highlight=False, markup=False)
    console.print(f"page: {out}", highlight=False, markup=False)


def _places(pixels: np.ndarray, scores: Any, heatmap_range: tuple[float, float]) -> list[Place]:
    """The regions as workers cut them; for an accepted image the hottest place, which is no defect."""
    height, width = pixels.shape[:2]
    if scores.decision is Decision.ACCEPT:
        x, y = _hottest(scores.heatmap, (0, 0, width, height), height, width)
        return [Place(None, (x, y), float(scores.heatmap.max()))]
    low, high = heatmap_range
    cut = defect_regions.extract(pixels, scores.heatmap, scores.patches, scores.residuals, low, high)
    return [Place(each.box, _hottest(scores.heatmap, each.box, height, width), each.peak) for each in cut]


def _hottest(heatmap: np.ndarray, box: tuple[int, int, int, int], height: int, width: int) -> tuple[float, float]:
    """The centre, in image pixels, of the hottest cell that a box covers."""
    high, wide = heatmap.shape
    x, y, w, h = box
    x0, x1 = int(x / width * wide), min(wide, int(np.ceil((x + w) / width * wide)))
    y0, y1 = int(y / height * high), min(high, int(np.ceil((y + h) / height * high)))
    part = heatmap[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    row, column = np.unravel_index(int(part.argmax()), part.shape)
    return (x0 + column + 0.5) / wide * width, (y0 + row + 0.5) / high * height


def _report(scores: Any, places: Sequence[Place], found: Sequence[Any], version: str) -> dict[str, Any]:
    return {
        "decision": str(scores.decision),
        "group": scores.group,
        "aligned": scores.aligned,
        "p_value": scores.p_value,
        "model_version": version,
        "regions": [
            {
                "box": list(place.box) if place.box else None,
                "hottest": list(place.hottest),
                "peak": place.peak,
                "layer": {"size": reason.size_px, "stride": reason.stride_px},
                "nearest": {
                    "image": reason.nearest.name,
                    "box": list(reason.nearest.box),
                    "distance": reason.nearest.distance,
                    "times_usual": reason.nearest.ratio,
                },
                "shown": reason.shown.name if reason.shown.picture is not None else None,
            }
            for place, reason in zip(places, found, strict=True)
        ],
    }


def _headline(name: str, scores: Any) -> str:
    ratio = np.exp(min(scores.aligned, 20.0))
    times = f"{ratio:.2f}" if ratio < 100 else "over 100"
    return (
        f"{name}: {scores.decision}, {times} times the usual score of its look-alikes, "
        f"p-value {scores.p_value:.2g}, group {scores.group}"
    )


def _short(name: str) -> str:
    """A good image's name without its folders, and where in it the part lies, when it is a part."""
    file, _, part = Path(name).name.partition("#xywh=")
    return f"{file}, tile at ({', '.join(part.split(',')[:2])})" if part else file


def _lines(number: int, place: Place, reason: Any) -> list[str]:
    nearest, shown = reason.nearest, reason.shown
    x, y, w, h = place.box or (round(place.hottest[0]), round(place.hottest[1]), 0, 0)
    what = f"{w}x{h} px at" if place.box else "no defect; hottest at"
    lines = [
        f"{number}: {what} ({x}, {y}), peak {place.peak:.2f}",
        f"nearest good patch {nearest.distance:.3f} away, {nearest.ratio:.1f} times the usual",
        f"of {_short(nearest.name)} at ({nearest.box[0] + nearest.box[2] / 2:.0%}, "
        f"{nearest.box[1] + nearest.box[3] / 2:.0%}), stride {reason.stride_px} at {reason.size_px} px",
    ]
    if shown is not nearest:
        lines.append(f"shown is the nearest one with a picture: {_short(shown.name)}, {shown.distance:.3f} away")
    return lines


# The page


def draw(
    name: str,
    pixels: np.ndarray,
    scores: Any,
    places: Sequence[Place],
    found: Sequence[Any],
    version: str,
    field_px: int | None = None,
) -> np.ndarray:
    """The page, uint8 (H, W, 3) RGB: the image, its heat map, and each region beside the nearest good patch.

    `field_px` is the side of a tile, when good patches are shown on tiles.
    """
    row_px = PANEL_PX // 2 + MARGIN_PX
    page = Pictures.new("RGB", (PAGE_WIDTH_PX, 110 + PANEL_PX + 60 + row_px * len(places) + MARGIN_PX), "white")
    pen = ImageDraw.Draw(page)
    font, large = ImageFont.load_default(TEXT_PX), ImageFont.load_default(TEXT_PX + 6)
    pen.text((MARGIN_PX, MARGIN_PX), _headline(name, scores), "black", large)
    pen.text((MARGIN_PX, MARGIN_PX + 32), f"model {version}", "grey", font)
    top = 90
    boxed = _with_boxes(pixels, places)
    panels = [("image", boxed), ("heat map, one scale for all products", _heated(pixels, scores))]
    if found and found[0].shown.picture is not None:
        panels.append((f"good: {_short(found[0].shown.name)}", found[0].shown.picture))
    for i, (caption, picture) in enumerate(panels):
        left = MARGIN_PX + i * (PANEL_PX + MARGIN_PX)
        pen.text((left, top - 2), _fitting(caption, font, PANEL_PX), "black", font)
        page.paste(_fitted(picture, PANEL_PX), (left, top + LINE_PX))
    _draw_scale(pen, page, MARGIN_PX * 2 + PANEL_PX, top + LINE_PX + PANEL_PX + 6, font)
    for i, (place, reason) in enumerate(zip(places, found, strict=True)):
        _draw_reason(page, pen, font, 110 + PANEL_PX + 60 + i * row_px, i + 1, pixels, place, reason, field_px)
    return np.asarray(page)


def _draw_reason(
    page: Pictures.Image, pen: ImageDraw.ImageDraw, font: Any, top: int, number: int, pixels: np.ndarray, place: Place,
    reason: Any, field_px: int | None,
) -> None:  # fmt: skip
    side = PANEL_PX // 2
    height, width = pixels.shape[:2]
    _, _, w, h = place.box or (0, 0, 0, 0)
    wide, high = (min(field_px or each, each) for each in (width, height))  # what the model saw at once
    share = max(CROP_SHARE, 1.2 * w / wide, 1.2 * h / high)
    share = min(share, 0.5)  # the whole is above
    page.paste(_crop(pixels, reason.box, share * max(wide, high) / max(width, height), side), (MARGIN_PX, top))
    if reason.shown.picture is not None:
        page.paste(_crop(reason.shown.picture, reason.shown.box, share, side), (MARGIN_PX * 2 + side, top))
    else:
        pen.rectangle((MARGIN_PX * 2 + side, top, MARGIN_PX * 2 + 2 * side, top + side), outline="grey")
        pen.text((MARGIN_PX * 3 + side, top + side // 2), "no picture kept", "grey", font)
    for i, line in enumerate(["this image, and the nearest good patch:", *_lines(number, place, reason)]):
        pen.text((MARGIN_PX * 3 + 2 * side, top + i * LINE_PX), line, "black" if i else "grey", font)


def _with_boxes(pixels: np.ndarray, places: Sequence[Place]) -> np.ndarray:
    drawn = pixels.copy()
    thick = max(1, round(max(pixels.shape[:2]) / 250))
    for number, place in enumerate(places, 1):
        if place.box is None:
            continue
        x, y, w, h = place.box
        cv2.rectangle(drawn, (x, y), (x + w - 1, y + h - 1), (255, 40, 40), thick)
        where = x + thick, max(y - 2 * thick, 12 * thick)
        cv2.putText(drawn, str(number), where, cv2.FONT_HERSHEY_SIMPLEX, thick * 0.4, (255, 40, 40), thick)
    return drawn


def _heated(pixels: np.ndarray, scores: Any) -> np.ndarray:
    """The image in grey under its heat map; what is not above the scale's lower end stays grey."""
    height, width = pixels.shape[:2]
    heat = cv2.resize(scores.heatmap, (width, height), interpolation=cv2.INTER_LINEAR)
    share = np.clip((heat - SCALE[0]) / (SCALE[1] - SCALE[0]), 0, 1)
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    weight = np.clip(share * 8, 0, 0.75)[:, :, None]
    return (grey * (1 - weight) + _colours(share) * weight).astype(np.uint8)


def _colours(share: np.ndarray) -> np.ndarray:
    return cv2.applyColorMap((share * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]


def _draw_scale(pen: ImageDraw.ImageDraw, page: Pictures.Image, left: int, top: int, font: Any) -> None:
    bar = _colours(np.tile(np.linspace(0, 1, PANEL_PX), (10, 1)))
    page.paste(Pictures.fromarray(np.ascontiguousarray(bar)), (left, top))
    for i in range(5):
        share = i / 4
        text = f"{SCALE[0] + share * (SCALE[1] - SCALE[0]):.1f}"
        pen.text((left + share * (PANEL_PX - 24), top + 12), text, "black", font)


def _crop(pixels: np.ndarray, box: tuple[float, float, float, float], share: float, side: int) -> Pictures.Image:
    """A square of `share` of the longer side around a patch, shifted inside the image, with the patch outlined."""
    height, width = pixels.shape[:2]
    half = share * max(height, width) / 2
    centre_x, centre_y = (box[0] + box[2] / 2) * width, (box[1] + box[3] / 2) * height
    x0 = int(np.clip(centre_x - half, 0, max(0, width - 2 * half)))
    y0 = int(np.clip(centre_y - half, 0, max(0, height - 2 * half)))
    part = pixels[y0 : max(y0 + 1, int(y0 + 2 * half)), x0 : max(x0 + 1, int(x0 + 2 * half))]
    picture = _fitted(part, side)
    scale_x, scale_y = picture.width / part.shape[1], picture.height / part.shape[0]
    corners = (
        (box[0] * width - x0) * scale_x,
        (box[1] * height - y0) * scale_y,
        ((box[0] + box[2]) * width - x0) * scale_x,
        ((box[1] + box[3]) * height - y0) * scale_y,
    )
    ImageDraw.Draw(picture).rectangle(corners, outline=(255, 40, 40))
    return picture


def _fitted(pixels: np.ndarray, side: int) -> Pictures.Image:
    scale = side / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return Pictures.fromarray(np.ascontiguousarray(cv2.resize(pixels, size, interpolation=kind)))


def _fitting(text: str, font: Any, width: int) -> str:
    while len(text) > 8 and font.getlength(text) > width:
        text = text[:-4] + "..."
    return text
