"""Why a model decides on an image as it does: its regions beside the nearest good patches, as JSON, text and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.messages import Codec, Decision
from flawline.settings.workers import WorkerSettings
from scorer import explain
from scorer.detector import CoresetDetector
from scorer.load import load_detector
from scorer.regions import regions
from scorer.scores import Scores
from station.pages.heat import HEAT_RANGE, heat_legend, heat_over
from station.pages.rendering import data_uri, render_alone

PICTURE_LIMIT_PX = 1200
"""Longer side of a picture in the page; larger images are shrunk. A judgement: twice what a browser shows."""

CROP_SHARE = 0.25
"""Side of a crop in shares of the image's longer side. A patch alone shows nothing; its surroundings do."""

CROP_SHARE_LIMIT = 0.5
"""The whole image stands above the crops, so no crop needs more of it."""

LABEL_SHARE = 0.045
"""Height of the number at a region, in shares of the image's longer side."""


@dataclass(frozen=True)
class Place:
    """One region: its box (x, y, width, height) and hottest point in pixels, its peak in aligned units.

    An accepted image has no region; its hottest place has no box.
    """

    box: tuple[int, int, int, int] | None
    hottest: tuple[float, float]
    peak: float


@dataclass(frozen=True)
class Explanation:
    """An image (uint8 (H, W, 3) RGB), its scores, and the reason for each of its places.

    `field_px` is the side of a tile, for a model that looks at large images in tiles.
    """

    name: str
    pixels: np.ndarray
    scores: Scores
    places: tuple[Place, ...]
    reasons: tuple[explain.Reason, ...]
    version: str
    field_px: int | None = None


def explain_image(model: Path, image: Path, worker: WorkerSettings) -> Explanation:
    """Score an image file with the model in a folder, as workers do, and return the reasons.

    Raises FlawlineError for an image or a model that cannot be read.
    """
    detector = load_detector(model, runtime=worker.runtime, precision=worker.precision, weights=worker.weights)
    pixels = imaging.at_depth(imaging.read_samples(image), detector.sample_bits)
    return explain_pixels(detector, image.name, pixels)


def explain_pixels(detector: CoresetDetector, name: str, pixels: np.ndarray) -> Explanation:
    """Score pixels (uint8 (H, W, 3) RGB), as workers do, and return the reasons. Raises FlawlineError."""
    (scores,) = detector.score([pixels])
    places = _places(pixels, scores, detector.heatmap_range)
    height, width = pixels.shape[:2]
    points = [(place.hottest[0] / width, place.hottest[1] / height) for place in places]
    reasons = explain.reasons(detector, pixels, points)
    field_px = detector.field_px(height, width)
    return Explanation(name, pixels, scores, tuple(places), tuple(reasons), detector.version, field_px)


def _places(pixels: np.ndarray, scores: Scores, heatmap_range: tuple[float, float]) -> list[Place]:
    """Return the regions as workers cut them; for an accepted image the hottest place, which is no defect."""
    height, width = pixels.shape[:2]
    if scores.decision is Decision.ACCEPT:
        point = hottest(scores.heatmap, (0, 0, width, height), height, width)
        return [Place(None, point, float(scores.heatmap.max()))]
    low, high = heatmap_range
    assert scores.region_inputs is not None  # every frame that is not accepted has them
    extracted = regions.extract(pixels, scores.heatmap, *scores.region_inputs.grids, low, high)
    return [Place(region.box, hottest(scores.heatmap, region.box, height, width), region.peak) for region in extracted]


def hottest(heatmap: np.ndarray, box: tuple[int, int, int, int], height: int, width: int) -> tuple[float, float]:
    """Return the centre, in image pixels, of the hottest cell that a box covers."""
    rows, columns = heatmap.shape
    x, y, w, h = box
    x0, x1 = int(x / width * columns), min(columns, int(np.ceil((x + w) / width * columns)))
    y0, y1 = int(y / height * rows), min(rows, int(np.ceil((y + h) / height * rows)))
    part = heatmap[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    row, column = np.unravel_index(int(part.argmax()), part.shape)
    return (x0 + column + 0.5) / columns * width, (y0 + row + 0.5) / rows * height


def as_dict(explanation: Explanation) -> dict[str, Any]:
    """Return what `flawline explain --json` prints, without the page's file."""
    scores = explanation.scores
    return {
        "decision": str(scores.decision),
        "group": scores.group,
        "aligned": scores.aligned,
        "p_value": scores.p_value,
        "model_version": explanation.version,
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
                "sub_look": None if reason.sub_look is None else asdict(reason.sub_look),
                "shown": reason.shown.name if reason.shown.picture is not None else None,
            }
            for place, reason in zip(explanation.places, explanation.reasons, strict=True)
        ],
    }


def text_lines(explanation: Explanation) -> list[str]:
    """Return the explanation as text: the decision, and a line for each place."""
    scores = explanation.scores
    pairs = zip(explanation.places, explanation.reasons, strict=True)
    places = [f"{number}: {'; '.join(_place_lines(place, reason))}" for number, (place, reason) in enumerate(pairs, 1)]
    return [f"{explanation.name}: {scores.decision}, {_verdict(scores)}", *places]


def _verdict(scores: Scores) -> str:
    ratio = np.exp(min(scores.aligned, 20.0))
    times = f"{ratio:.2f}" if ratio < 100 else "over 100"
    return f"{times} times the usual score of its look-alikes, p-value {scores.p_value:.2g}, group {scores.group}"


def _place_lines(place: Place, reason: explain.Reason) -> list[str]:
    nearest, shown = reason.nearest, reason.shown
    x, y, w, h = place.box or (round(place.hottest[0]), round(place.hottest[1]), 0, 0)
    what = f"{w}x{h} px at" if place.box else "no defect; hottest at"
    centre_x, centre_y = nearest.box[0] + nearest.box[2] / 2, nearest.box[1] + nearest.box[3] / 2
    lines = [
        f"{what} ({x}, {y}), peak {place.peak:.2f}",
        f"nearest good patch {nearest.distance:.3f} away, {nearest.ratio:.1f} times the usual",
        f"of {short_name(nearest.name)} at ({centre_x:.0%}, {centre_y:.0%}), stride {reason.stride_px} at "
        f"{reason.size_px} px",
    ]
    if (look := reason.sub_look) is not None:
        lines.append(
            f"none of the {look.images} good images that look like this one as a whole (sub-look {look.number} of "
            f"{look.count}) has this here: compared with them alone"
        )
    if shown is not nearest:
        lines.append(f"shown is the nearest one with a picture: {short_name(shown.name)}, {shown.distance:.3f} away")
    return lines


def short_name(name: str) -> str:
    """Return a good image's name without its folders, and the place of the part in it, if it is a part."""
    file, _, part = Path(name).name.partition("#xywh=")
    return f"{file}, tile at ({', '.join(part.split(',')[:2])})" if part else file


# The page


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its address, the size of its coordinates, and the height of its labels."""

    uri: str
    width: int
    height: int
    label_px: float


@dataclass(frozen=True)
class Crop:
    """A square part of an image around a patch, uint8 (H, W, 3) RGB, and the box (x, y, width, height) of the patch."""

    pixels: np.ndarray
    box: tuple[float, float, float, float]


def write_page(file: Path, explanation: Explanation) -> None:
    """Write the explanation as one HTML file that needs no other. Raises FlawlineError."""
    try:
        file.write_text(page(explanation), encoding="utf-8")
    except OSError as error:
        raise FlawlineError(f"--out {file}: cannot be written: {error.strerror}: choose another place") from error


def page(explanation: Explanation) -> str:
    """Return the explanation as HTML: the image, its heat map, and each place beside the nearest good patch."""
    pixels, scores = explanation.pixels, explanation.scores
    pairs = list(zip(explanation.places, explanation.reasons, strict=True))
    shown = pairs[0][1].shown if pairs else None
    return render_alone(
        "explain.html",
        name=explanation.name,
        decision=str(scores.decision),
        verdict=_verdict(scores),
        version=explanation.version,
        whole=picture_of(pixels),
        heat=picture_of(heat_over(pixels, scores.heatmap)),
        boxes=[(*place.box, str(number)) for number, (place, _) in enumerate(pairs, 1) if place.box is not None],
        good=None if shown is None or shown.picture is None else picture_of(shown.picture),
        good_name=None if shown is None else short_name(shown.name),
        legend=heat_legend(),
        heat_range=HEAT_RANGE,
        regions=[_region(explanation, number, place, reason) for number, (place, reason) in enumerate(pairs, 1)],
    )


def _region(explanation: Explanation, number: int, place: Place, reason: explain.Reason) -> dict[str, Any]:
    """Return what the page shows of one place: both crops with their patches outlined, and the text."""
    here, good = crops(explanation.pixels, explanation.field_px, place, reason)
    return {
        "number": number,
        "here": picture_of(here.pixels),
        "here_box": (*here.box, ""),
        "good": None if good is None else picture_of(good.pixels),
        "good_box": None if good is None else (*good.box, ""),
        "lines": _place_lines(place, reason),
    }


def crops(pixels: np.ndarray, field_px: int | None, place: Place, reason: explain.Reason) -> tuple[Crop, Crop | None]:
    """Return the place in the image and the good patch, at one scale; None for the latter without a picture.

    Where the model looks at tiles, the good picture is a tile, and the shares are of what the model sees at once.
    """
    height, width = pixels.shape[:2]
    _, _, w, h = place.box or (0, 0, 0, 0)
    seen_width = min(field_px or width, width)
    seen_height = min(field_px or height, height)
    share = min(CROP_SHARE_LIMIT, max(CROP_SHARE, 1.2 * w / seen_width, 1.2 * h / seen_height))
    here = _crop(pixels, reason.box, share * max(seen_width, seen_height) / max(width, height))
    shown = reason.shown
    return here, None if shown.picture is None else _crop(shown.picture, shown.box, share)


def _crop(pixels: np.ndarray, box: Sequence[float], share: float) -> Crop:
    """Return a square, `share` of the longer side, around a box in fractions of the sides, moved inside the image."""
    height, width = pixels.shape[:2]
    half = share * max(height, width) / 2
    centre_x, centre_y = (box[0] + box[2] / 2) * width, (box[1] + box[3] / 2) * height
    x0 = int(np.clip(centre_x - half, 0, max(0, width - 2 * half)))
    y0 = int(np.clip(centre_y - half, 0, max(0, height - 2 * half)))
    part = pixels[y0 : max(y0 + 1, int(y0 + 2 * half)), x0 : max(x0 + 1, int(x0 + 2 * half))]
    return Crop(part, (box[0] * width - x0, box[1] * height - y0, box[2] * width, box[3] * height))


def picture_of(pixels: np.ndarray, limit_px: int = PICTURE_LIMIT_PX) -> Picture:
    """Return pixels as a picture of a page whose longer side is `limit_px` at most."""
    height, width = pixels.shape[:2]
    scale = min(1.0, limit_px / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    uri = data_uri(imaging.encode(pixels, Codec.JPEG), "image/jpeg")
    return Picture(uri, width, height, round(LABEL_SHARE * max(height, width), 1))
