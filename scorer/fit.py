"""Fits a detector on good images; a fit that was interrupted goes on where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline import __version__
from flawline.errors import FlawlineError
from flawline.settings.scorer import ScorerSettings
from scorer import calibration, shapes, trimming
from scorer.cache import cache_dir
from scorer.detector import CoresetDetector, one_thread_per_image
from scorer.evidence import Evidence, gather
from scorer.features import backbone
from scorer.features.backbone import Backbone
from scorer.features.dataset import Chosen
from scorer.features.graph import Graph, Image
from scorer.features.store import FeatureStore, OnUnreadable, Progress, extract
from scorer.features.structure import resolved
from scorer.features.workfolder import WorkFolder
from scorer.fit_model import fit_model
from scorer.gallery import image_embeddings
from scorer.groups import find_groups
from scorer.model import Model, Tiles, embedding_layers
from scorer.odd_images import Odd, odd_looks
from scorer.search.neighbours import faiss_module
from scorer.small_parts import small_part
from scorer.tiles import TiledImages, detector_class, worst

log = logging.getLogger(__name__)

ODD = "odd among the good images: %s: %s"
"""Names an image and why it is odd, in the log."""

# Part of the key by which a killed fit is recognised: raise it whenever features or banks change their meaning.
_WORK_FORMAT = 2


def fit_detector(
    images: Sequence[Image],
    settings: ScorerSettings,
    progress: Progress | None = None,
    on_unreadable: OnUnreadable | None = None,
    *,
    leave_out_odd: bool = False,
) -> CoresetDetector:
    """Return a detector fitted on good images (uint8 RGB, any size), without labels.

    `progress(stage, done, total)` is called as the work goes on. `images` may read each image when it is asked for. An
    image that raises FlawlineError is handed to `on_unreadable(index, error)` and left out; without `on_unreadable` it
    ends the fit. Images whose look is odd are named in the log, and left out with `leave_out_odd`. Raises FlawlineError
    for too few images, and where faiss is missing.
    """
    if len(images) < settings.minimum_images:
        raise FlawlineError(
            f"{len(images)} good images: at least {settings.minimum_images} are needed to say what is normal: add more"
        )
    faiss_module()  # before the work: groups are formed after the features of all images
    started = time.monotonic()
    settings = resolved(settings)
    one_thread_per_image()

    # Step 1: how images come to the square input: as tiles, or whole. Both are called parts here.
    settings, cutting = shapes.decided(settings, images)
    parts, sources = images, None
    if cutting is not None:
        parts = TiledImages(images, cutting, on_unreadable, progress)
        sources = parts.sources

    # Step 2: the backbone, which is converted the first time.
    if progress:
        progress("backbone", 0, 1)
    graphs, features = backbone.of_settings(settings)
    if progress:
        progress("backbone", 1, 1)

    folder = WorkFolder(cache_dir() / "fits", _work_key(images, settings, graphs, features))
    finished = False
    try:
        # Step 3: features of all parts that can be read, and the number of each part's whole image.
        store, readable = extract(
            parts, features, folder, progress, on_unreadable, with_details=cutting is None or cutting.side_px is None
        )
        sources = None if sources is None else sources[readable]
        read = np.asarray(readable) if sources is None else sources
        odd = [] if sources is not None else _odd_looks(store, images, readable, settings)
        if leave_out_odd and odd:
            staying = np.setdiff1d(np.arange(len(readable)), [item.number for item in odd])
            store, readable = trimming.only(store, staying), [readable[i] for i in staying]
        image_numbers = np.asarray(readable) if sources is None else sources

        # Step 4: the model; once more without the parts that stand out, where the settings ask for it.
        model = fit_model(store, settings, features.threads, progress, sources=sources)
        first_scores = model.standardised if model.copies is None else model.standardised[model.copies]
        suspects = trimming.suspicious_images(first_scores, model.groups, sources)
        left_out = np.zeros(len(readable), dtype=bool)
        if settings.trim and suspects.any() and len(set(image_numbers[~suspects])) >= settings.minimum_images:
            left_out = suspects
            store = trimming.only(store, np.flatnonzero(~left_out))
            sources = None if sources is None else sources[~left_out]
            model = fit_model(store, settings, features.threads, progress, sources=sources)
        model = replace(model, sample_bits=getattr(images, "depths_of_frames", (8,)))
        if sources is not None and cutting is not None:
            model = replace(model, tiles=Tiles(cutting, sources))

        # Step 5: where the rows of the banks came from, and pictures.
        used = Chosen(parts, [i for i, out in zip(readable, left_out, strict=True) if not out])
        evidence = gather(store, model, used)
        finished = True
    finally:
        folder.close(remove=finished)

    report = {
        "fit_seconds": round(time.monotonic() - started, 3),
        "images": len(set(image_numbers[~left_out])),
        "left_out": _named(images, image_numbers[left_out], first_scores[left_out]),
        "suspects": _named(images, image_numbers[suspects & ~left_out], first_scores[suspects & ~left_out]),
        "skipped": len(images) - len(set(read)),
        "far_out": _far_out(images, model, image_numbers[~left_out]),
        "odd": [[_name(images, int(read[item.number])), item.reason] for item in odd],
        "odd_left_out": leave_out_odd,
        "small_parts": _small_parts(evidence, model.groups),
        "settings": settings.model_dump(mode="json"),
    }
    return detector_class(model)(model, graphs, features, report, evidence=lambda: evidence)


def _named(images: Sequence[Image], numbers: NDArray[np.integer], scores: NDArray[np.float64]) -> list[str]:
    """Return the names of some images by number, each once, those with the highest scores first."""
    ordered = dict.fromkeys(numbers[np.argsort(-scores, kind="stable")].tolist())
    return [_name(images, i) for i in ordered]


def _name(images: Sequence[Image], number: int) -> str:
    names = getattr(images, "names", [])
    return names[number] if names else f"image {number}"


def _far_out(images: Sequence[Image], model: Model, numbers: NDArray[np.integer]) -> list[str]:
    """Return the names of the good images that are far out, those with the highest scores first."""
    scores = model.standardised if model.tiles is None else worst(model.standardised, model.tiles.sources)
    counts = np.isfinite(scores)
    distinct, scores = (numbers if model.tiles is None else np.unique(numbers))[counts], scores[counts]
    is_far = calibration.far_out(scores)
    return _named(images, distinct[is_far], scores[is_far])


def _odd_looks(
    store: FeatureStore, images: Sequence[Image], readable: Sequence[int], settings: ScorerSettings
) -> list[Odd]:
    """Return the images of a store whose look is odd, named in the log."""
    embeddings = image_embeddings([store.means[i] for i in embedding_layers(settings.active_layers)])
    odd = odd_looks(embeddings, find_groups(embeddings, settings.groups, settings.seed))
    for item in odd:
        log.warning(ODD, _name(images, readable[item.number]), item.reason)
    return odd


def _small_parts(evidence: Evidence, groups: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return for each group whose parts fill a small share of the frame the share, and the polygon around them."""
    pictures: dict[int, list[Image]] = {}
    for number in evidence.pictures:
        pictures.setdefault(int(groups[number]), []).append(evidence.stored_picture(number))
    parts = [small_part(pictures[group], group) for group in sorted(pictures)]
    return [{"group": part.group, "share": part.share, "inspect": part.polygon} for part in parts if part is not None]


def _work_key(
    images: Sequence[Image], settings: ScorerSettings, graphs: Sequence[tuple[Graph, Path]], features: Backbone
) -> object | None:
    """Return what a killed fit is recognised by: images, settings, backbone; None for images without names."""
    identities = getattr(images, "identities", None)
    if identities is None:
        return None
    return [
        _WORK_FORMAT,
        __version__,
        settings.model_dump(mode="json", exclude={"threads"}),
        [asdict(graph) for graph, _ in graphs],
        features.runtime,
        features.precision,
        identities(),
    ]
