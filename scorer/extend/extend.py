"""More good parts for a fitted model, without fitting it again: confirmed false alarms, or a new product.

Known products: patches that their group's banks do not cover are added to the banks, and the images to the good ones
that others are aligned with, each scored against banks that hold nothing of it. Those that were accepted anyway join
the calibration; false alarms do not, since they were chosen for their scores: a cut-off above all of them would let
defects pass. New products: their images are fitted on their own and joined. Banks
only grow, so distances of good parts can only shrink; what could go wrong is that defects are missed. So both are
audited, on what is frozen in the model: cross-fitted scores of its first good images, and pictures of them with defects
pasted in.

A tiled model takes images whole: all tiles of one are confirmed, accepted, or of a new product together. Images are
read when they are asked for, three times in all, and what is kept of each is small.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from flawline.messages import Decision
from flawline.settings.scorer import ScorerSettings
from scorer import calibration
from scorer.cache import cache_dir
from scorer.detector import CoresetDetector
from scorer.evidence import Evidence, gather
from scorer.extend.additions import Shown, for_each, look_at, parts_of
from scorer.extend.audit import Audit, audit
from scorer.features.dataset import Chosen
from scorer.features.graph import Image
from scorer.features.store import OnUnreadable, Progress, extract
from scorer.features.workfolder import WorkFolder
from scorer.fit_model import fit_model
from scorer.gallery import Gallery, first_copies, group_gates
from scorer.model import Model, Tiles, cut_offs
from scorer.tiles import TiledImages

# A bank that has grown to this many times what a fit allows is to be selected anew.
_MOST_GROWTH = 2.0


@dataclass(frozen=True)
class Extended:
    """The extended detector, not saved yet, and what is to be reported of it."""

    detector: CoresetDetector
    known: int
    new: int
    new_groups: int
    copies: int
    accepted_before: int
    accepted_after: int
    before: Audit
    after: Audit


def extend_model(
    detector: CoresetDetector,
    images: Sequence[Image],
    names: Sequence[str],
    settings: ScorerSettings,
    *,
    bound: float = 0.02,
    progress: Progress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> Extended:
    """The detector with `images` (uint8 RGB, any size, all good) added to what is normal; it itself stays as it is.

    An image that raises FlawlineError when it is read is handed to `on_unreadable(index, error)` and left out, or,
    without that, ends the work. Raises FlawlineError when the audit's alarm rate would rise, or its share of found
    defects fall, by more than `bound`; when there are too few images of a new product; and for a model without
    evidence.
    """
    evidence = detector.evidence
    if evidence is None or not evidence.pictures:
        raise FlawlineError(f"model {detector.version}: holds nothing to audit an extension on: fit it again")
    if not len(images):
        raise FlawlineError("no images to add: give good parts")
    seen = look_at(detector, images, names, progress, on_unreadable)
    shown = _without_copies(detector.model, seen)
    if not shown:
        raise FlawlineError(f"{names[0]}: is in the model already, as are all that were given: give other good parts")
    known = [each for each in shown if each.decision is not Decision.UNKNOWN_PRODUCT]
    new = [each for each in shown if each.decision is Decision.UNKNOWN_PRODUCT]
    if 0 < len(new) < settings.minimum_images:
        named = ", ".join(names[each.number] for each in new[:5]) + (", ..." if len(new) > 5 else "")
        raise FlawlineError(
            f"{len(new)} images are of no known product, and at least {settings.minimum_images} of a new one are "
            f"needed: give more of them, or leave them out: {named}"
        )
    model = detector.model
    evidence = dataclasses.replace(evidence, names=_padded(evidence.names, model))
    if known:
        model, evidence = _with_known(detector, model, evidence, images, known, progress)
    if new:
        part = Chosen(images, [each.number for each in new])
        model, evidence = _with_new(detector, model, evidence, part, [each.names for each in new], settings, progress)
    counted = [np.isfinite(detector.model.standardised)]
    counted += [np.full(len(each.groups), each.decision is Decision.ACCEPT) for each in known]
    counted += [np.ones(len(each.groups), dtype=bool) for each in new]
    model = recalibrated(model, np.concatenate(counted))
    first = int(detector.report.get("frozen_images", len(detector.model.groups)))
    result = detector.replaced(model, evidence, _without_golden(detector.report) | {"frozen_images": first})
    before, after = audit(detector, evidence, first), audit(result, evidence, first)
    baseline = Audit(**detector.report["audit"]) if "audit" in detector.report else before
    result.report["audit"] = dataclasses.asdict(baseline)
    _refuse_worse(baseline, after, bound)
    return Extended(
        result,
        known=len(known),
        new=len(new),
        new_groups=len(model.banks) - len(detector.model.banks),
        copies=len(seen) - len(shown),
        accepted_before=sum(each.decision is Decision.ACCEPT for each in shown),
        accepted_after=_accepted(result, images, [each.number for each in shown], progress),
        before=before,
        after=after,
    )


def _without_copies(model: Model, shown: Sequence[Shown]) -> list[Shown]:
    """The images that are neither in the model yet nor given twice: a copy would find itself in the banks."""
    have = {each.tobytes() for each in model.embeddings}
    kept = []
    for image in shown:
        own = {each.tobytes() for each in image.embeddings}
        if own - have:
            kept.append(image)
            have |= own
    return kept


def _refuse_worse(baseline: Audit, after: Audit, bound: float) -> None:
    if after.alarm_rate > baseline.alarm_rate + bound:
        raise FlawlineError(
            f"refused: {after.alarm_rate:.1%} of the audit's good parts would be alarmed, {baseline.alarm_rate:.1%} "
            f"were (bound {bound:.1%}): look through the images, or fit again with all"
        )
    if after.found_rate < baseline.found_rate - bound:
        raise FlawlineError(
            f"refused: {after.found_rate:.1%} of the audit's defects would be found, {baseline.found_rate:.1%} "
            f"were (bound {bound:.1%}): look through the images for defects, or fit again with all"
        )


def _accepted(
    detector: CoresetDetector, images: Sequence[Image], numbers: Sequence[int], progress: Progress | None
) -> int:
    accepted = 0
    for done, number in enumerate(numbers, 1):
        accepted += detector.score([images[number]])[0].decision is Decision.ACCEPT
        if progress:
            progress("checking", done, len(numbers))
    return accepted


def _without_golden(report: dict[str, Any]) -> dict[str, Any]:
    """The report for a model whose scores are other ones."""
    return {key: value for key, value in report.items() if key != "golden"}


def _padded(names: Sequence[str], model: Model) -> list[str]:
    """A name for every good image of the model, so that further ones have their number."""
    return [names[i] if i < len(names) else f"good image {i}" for i in range(len(model.groups))]


def recalibrated(model: Model, counted: NDArray[np.bool_]) -> Model:
    """The model with gates, spreads, standardised scores and cut-offs that follow from its good images' log scores.

    Spreads and cut-offs are those of the `counted` (n,) images; the others' standardised scores are NaN.
    """
    gallery = Gallery(model.embeddings, model.groups)
    # Tiles that are alike are no copies, as in a fit.
    copies = first_copies(model.embeddings) if model.tiles is None else None
    look_alikes, within = gallery.neighbours_of_members(model.look_alikes, copies)
    aligned = model.log_scores - model.levels(model.groups, look_alikes)
    widths = calibration.group_widths(aligned[counted], model.groups[counted])
    standardised = np.where(counted, aligned / widths[model.groups], np.nan)
    review, reject = cut_offs(np.sort(standardised[counted]), model.review.rate, model.reject.rate)
    return dataclasses.replace(
        model,
        gates=group_gates(gallery, within),
        widths=widths,
        standardised=standardised,
        review=review,
        reject=reject,
    )


# Known products


def _with_known(
    detector: CoresetDetector,
    model: Model,
    evidence: Evidence,
    images: Sequence[Image],
    shown: Sequence[Shown],
    progress: Progress | None,
) -> tuple[Model, Evidence]:
    """The model and its evidence with images of groups it has; gates and cut-offs are still the old ones."""
    scored: list[list[float]] = [[]] * len(shown)
    folds = min(5, len(shown))
    for fold in range(folds):
        others = detector.replaced(_grown(model, [each for i, each in enumerate(shown) if i % folds != fold]), None, {})
        own = range(fold, len(shown), folds)
        work = partial(_log_scores, others, images, [shown[i].number for i in own])
        for i, found in zip(own, for_each(work, len(own), detector.threads), strict=True):
            scored[i] = found
            if progress:
                progress("scoring", sum(map(bool, scored)), len(shown))
    sources = [[[rows] for rows in each] for each in evidence.sources]
    tile = len(model.groups)
    for each in shown:
        for group, novel in zip(each.groups.tolist(), each.novel, strict=True):
            for layer, rows in enumerate(novel):
                numbered = np.stack([np.full(len(rows.patches), tile), rows.patches], axis=1).astype(np.int32)
                sources[group][layer].append(numbered)
            tile += 1
    grown = dataclasses.replace(
        _grown(model, shown),
        embeddings=np.concatenate([model.embeddings, *(each.embeddings for each in shown)]),
        groups=np.concatenate([model.groups, *(each.groups for each in shown)]),
        log_scores=np.concatenate([model.log_scores, *scored]),
        tiles=_tiles_and(model, [len(each.groups) for each in shown]),
    )
    names = [*evidence.names, *(name for each in shown for name in each.names)]
    joined = [[np.concatenate(rows) for rows in each] for each in sources]
    return grown, dataclasses.replace(evidence, sources=joined, names=names)


def _log_scores(detector: CoresetDetector, images: Sequence[Image], numbers: Sequence[int], i: int) -> list[float]:
    """The log scores of the tiles of an image, the i-th of these numbers."""
    parts, _ = parts_of(detector, images[numbers[i]], "")
    return [float(np.log(detector.score_features(detector.features(part)).raw)) for part in parts]


def _tiles_and(model: Model, counts: Sequence[int]) -> Tiles | None:
    """The model's tiles with those of further images that have so many each."""
    if model.tiles is None:
        return None
    numbers = model.tiles.sources.max() + 1 + np.repeat(np.arange(len(counts)), counts)
    return dataclasses.replace(model.tiles, sources=np.concatenate([model.tiles.sources, numbers]))


def _grown(model: Model, shown: Sequence[Shown]) -> Model:
    """The model with the novel patches of some images in its banks."""
    added: list[list[list[NDArray[np.float32]]]] = [[[rows] for rows in each] for each in model.banks]
    for each in shown:
        for group, novel in zip(each.groups.tolist(), each.novel, strict=True):
            for layer, found in enumerate(novel):
                added[group][layer].append(found.vectors.astype(np.float32))
    banks = [[np.concatenate(rows) if len(rows) > 1 else rows[0] for rows in each] for each in added]
    for k, each_bank in enumerate(banks):
        for settings, rows in zip(model.layers, each_bank, strict=True):
            if len(rows) > _MOST_GROWTH * settings.rows:
                raise FlawlineError(
                    f"group {k} has outgrown its bank ({len(rows)} rows of at most "
                    f"{_MOST_GROWTH * settings.rows:.0f}): fit again with all images"
                )
    return dataclasses.replace(model, banks=banks)


# New products


def _with_new(
    detector: CoresetDetector,
    model: Model,
    evidence: Evidence,
    images: Sequence[Image],
    names: Sequence[Sequence[str]],
    settings: ScorerSettings,
    progress: Progress | None,
) -> tuple[Model, Evidence]:
    """The model joined with one that is fitted on images of new products, whose groups come after its own."""
    tiled = None if model.tiles is None else TiledImages(images, model.tiles.side_px, model.tiles.overlap_px)
    parts: Sequence[Image] = images if tiled is None else tiled
    folder = WorkFolder(cache_dir() / "fits", None)
    try:
        store, _ = extract(parts, detector.backbone, folder, progress)
        part = fit_model(store, settings, detector.threads, progress, sources=None if tiled is None else tiled.sources)
        found = gather(store, part.banks, part.groups, parts)
    finally:
        folder.close()
    first, before = len(model.groups), len(model.banks)
    joined: dict[str, list[object]] = {
        field.name: [*getattr(model, field.name), *getattr(part, field.name)]
        for field in dataclasses.fields(Model)
        if isinstance(getattr(model, field.name), list) and field.name != "means"
    }
    whole = dataclasses.replace(
        model,
        **joined,  # type: ignore[arg-type]  # what a model keeps in lists it keeps by group, its means aside
        means=[np.concatenate(each) for each in zip(model.means, part.means, strict=True)],
        embeddings=np.concatenate([model.embeddings, part.embeddings]),
        groups=np.concatenate([model.groups, part.groups + before]),
        log_scores=np.concatenate([model.log_scores, part.log_scores]),
        tiles=_tiles_and(model, [len(each) for each in names]),
    )
    offset = np.asarray([first, 0])
    moved = [[np.where(rows < 0, rows, rows + offset).astype(np.int32) for rows in each] for each in found.sources]
    pictures = evidence.pictures | {first + i: data for i, data in found.pictures.items()}
    every_name = [*evidence.names, *(name for each in names for name in each)]
    return whole, Evidence([*evidence.sources, *moved], every_name, pictures)
