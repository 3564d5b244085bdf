"""The good patch that the worst place of a frame was compared with, as pages show it: made when somebody looks.

The station computes it from the artefact, its own picture of the frame and the stored heat map, in one thread that
gives way to everything else: no worker does anything for it. What was made is kept, within a limit in bytes. Nothing is
made for accepted frames, which have no worst place.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from discovery.pictures.keeper import picture_store
from discovery.store import judgements
from discovery.store.store import Store
from flawline import clock, imaging
from flawline.errors import FlawlineError, one_line
from flawline.messages import Codec
from flawline.object_store import MissingObjectError
from flawline.settings.tree import Settings
from scorer import explain
from scorer.detector import CoresetDetector
from scorer.load import load_detector
from station.explanation import Crop, Place, crops, hottest, short_name
from station.language.languages import N_
from station.web import queries
from station.web.live import Pictures
from station.web.models import Models, QuietThread

log = logging.getLogger(__name__)

SIDE_PX, GAP_PX = 240, 6
LIMIT_BYTES = 16 << 20
"""Room for some 500 pairs of pictures."""
WAITING_LIMIT = 8
"""Frames that wait at once; more are asked for again. A judgement: what a page of live tiles asks for."""
AGAIN_S = 30.0
"""What could not be made is tried again after this time: a picture may come, or a model."""
INK = (255, 40, 40)


@dataclass(frozen=True)
class GoodPatch:
    """The worst place of a frame beside the nearest good patch: one JPEG of both, or in words why there is none.

    `distance` is between unit vectors (0 to 2), `times_usual` it over the usual distance of good patches; `image` names
    the good image. `is_shown` says that the picture is of this patch, and not of the nearest one that has a picture.
    """

    jpeg: bytes | None = None
    problem: str | None = None
    distance: float = 0.0
    times_usual: float = 0.0
    image: str = ""
    is_shown: bool = True


@dataclass(frozen=True)
class _Kept:
    patch: GoodPatch
    at: float


class GoodPatches:
    """Makes and keeps them. Safe for several threads."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        live: Pictures,
        monotonic: clock.Monotonic = clock.monotonic,
    ) -> None:
        self._settings, self._models, self._live, self._monotonic = settings, models, live, monotonic
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._waiting: set[str] = set()
        self._detector: CoresetDetector | None = None
        self.thread = QuietThread("good patches")

    def of(self, store: Store, frame_id: str) -> GoodPatch | None:
        """Return what there is for a frame; None while it is being made."""
        with self._lock:
            known = self._kept.get(frame_id)
            if known is not None and (known.patch.jpeg or self._monotonic() - known.at < AGAIN_S):
                self._kept.move_to_end(frame_id)
                return known.patch
            if frame_id in self._waiting or len(self._waiting) >= WAITING_LIMIT:
                return None
            self._waiting.add(frame_id)
        self.thread.submit(lambda: self._make(store, frame_id))
        return None

    def _make(self, store: Store, frame_id: str) -> None:
        try:
            patch = self._made(store, frame_id)
        except FlawlineError as error:
            patch = GoodPatch(problem=str(error))
        except Exception as error:  # of a library below: the page says so, and the station goes on
            log.exception("the good patch of %s cannot be made", frame_id)
            patch = GoodPatch(problem=one_line(error, with_type=True))
        with self._lock:
            self._waiting.discard(frame_id)
            before = self._kept.pop(frame_id, None)
            self._bytes += _size(patch) - (_size(before.patch) if before else 0)
            self._kept[frame_id] = _Kept(patch, self._monotonic())
            while self._bytes > LIMIT_BYTES and len(self._kept) > 1:
                self._bytes -= _size(self._kept.popitem(last=False)[1].patch)

    def _made(self, store: Store, frame_id: str) -> GoodPatch:
        row = queries.defect(store, frame_id)
        if row is None or not row.heatmap:
            return GoodPatch(problem=N_("no heat map of this frame is stored, so its worst place is not known"))
        detector = self._loaded(row.model_version)
        pixels = self._pixels(store, frame_id, detector)
        if pixels is None:
            return GoodPatch(problem=N_("the picture of this frame is not at hand"))
        place = _worst(row, queries.regions_of(store, [row.id]).get(row.id, []), pixels)
        height, width = pixels.shape[:2]
        (reason,) = explain.reasons(detector, pixels, [(place.hottest[0] / width, place.hottest[1] / height)])
        here, good = crops(pixels, detector.field_px(height, width), place, reason)
        if good is None:
            return GoodPatch(problem=N_("the model holds no picture of the good parts that are nearest"))
        nearest = reason.nearest
        return GoodPatch(
            jpeg=_pair(here, good),
            distance=nearest.distance,
            times_usual=nearest.ratio,
            image=short_name(reason.shown.name),
            is_shown=reason.shown is nearest,
        )

    def _loaded(self, version: str) -> CoresetDetector:
        """Return the model of a frame; one is held at a time, since each takes hundreds of megabytes."""
        if self._detector is None or self._detector.version != version:
            folder, worker = self._models.folder(version), self._settings.worker
            self._detector = None
            self._detector = load_detector(
                folder, runtime=worker.runtime, precision=worker.precision, device="cpu", threads=1,
                weights=worker.weights,
            )  # fmt: skip
        return self._detector

    def _pixels(self, store: Store, frame_id: str, detector: CoresetDetector) -> np.ndarray | None:
        """Return the picture that is kept of a frame, else the one of the live page, else None."""
        row = judgements.picture(store, frame_id)
        if row is not None:
            try:
                data, codec = picture_store(self._settings).get(row.object_key, row.size_bytes), Codec(row.codec)
            except MissingObjectError:
                return None
            shape = (row.height, row.width, len(data) // (row.height * row.width)) if codec is Codec.RAW else None
        else:
            shown = self._live.get(frame_id)
            if shown is None:
                return None
            data, codec, shape = shown.jpeg, Codec.JPEG, None
        limit_bytes = self._settings.frames.decoded_limit_bytes
        planned = imaging.plan(data, codec, shape=shape, memory_limit_bytes=limit_bytes)
        return imaging.at_depth(imaging.pixels(planned), detector.sample_bits)


def _size(patch: GoodPatch) -> int:
    return len(patch.jpeg or b"") + 512


def _worst(row: Any, regions: list[Any], pixels: np.ndarray) -> Place:
    """Return the region with the highest peak, with its hottest point; of a frame without regions the whole of it.

    Regions are in pixels of the frame, whose picture may be smaller.
    """
    height, width = pixels.shape[:2]
    heat = np.frombuffer(row.heatmap, "<f2").reshape(row.heatmap_height, row.heatmap_width)
    local = [region for region in regions if region.area_px]
    if not local:
        return Place(None, hottest(heat, (0, 0, width, height), height, width), float(heat.max()))
    region = max(local, key=lambda region: region.peak)
    across, down = width / row.width, height / row.height
    box = (round(region.x * across), round(region.y * down), round(region.width * across), round(region.height * down))
    return Place(box, hottest(heat, box, height, width), float(region.peak))


def _pair(here: Crop, good: Crop) -> bytes:
    """Return a JPEG of two crops side by side, each with its patch outlined."""
    gap = np.full((SIDE_PX, GAP_PX, 3), 255, np.uint8)
    return imaging.encode(np.hstack([_outlined(here), gap, _outlined(good)]), Codec.JPEG)


def _outlined(crop: Crop) -> np.ndarray:
    height, width = crop.pixels.shape[:2]
    scaled = cv2.resize(crop.pixels, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    x, y, w, h = crop.box
    across, down = SIDE_PX / width, SIDE_PX / height
    corner = round(x * across), round(y * down)
    end = round((x + w) * across), round((y + h) * down)
    return np.asarray(cv2.rectangle(np.ascontiguousarray(scaled), corner, end, INK, 2), np.uint8)
