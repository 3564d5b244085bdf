"""More good parts for a fitted model, without fitting it again: confirmed false alarms, or a new product.

Known products: the patches of an image that its group's banks do not cover join the banks. The image joins the good
ones that others are aligned with, scored against banks that hold nothing of it. Images that were accepted anyway join
the calibration too. False alarms do not: they were chosen for their high scores, and a cut-off above all of them would
let defects pass.

New products: their images are fitted alone, and the two models are joined.

Banks only grow, so distances of good parts can only shrink; the danger is that defects are missed. Both are audited on
what is frozen in the model: cross-fitted scores of its first good images, and pictures of them with defects pasted in.

A tiled model takes images whole: all tiles of one image are false alarms, calibration, or a new product together. An
image is read three times in all, each time it is asked for, and what is stored of it is small.
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
from scorer.extend.additions import Candidate, examine, map_in_order, parts_of
from scorer.extend.audit import Audit, audit
from scorer.features.dataset import Chosen
from scorer.features.graph import Image
from scorer.features.store import OnUnreadable, Progress, extract
from scorer.features.workfolder import WorkFolder
from scorer.fit_model import fit_model
from scorer.gallery import Gallery, first_copies, group_gates
from scorer.model import Model, Tiles, cut_offs
from scorer.tiles import TiledImages
from scorer.vectors import Vectors

# A bank that has grown to this many times what a fit allows has to be selected anew. A judgement, not measured.
_MOST_GROWTH = 2.0
# The images of known products are scored against banks that hold the others only, in this many parts: as
# many as a fit has by default. A judgement.
_FOLDS = 5
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Extended:
    """The extended detector, which is not saved yet, and the figures of its report.

    Of the added images `known` are of known products and `new` of new ones, in `new_groups` groups; `copies` were in
    the model already. `accepted_before` and `accepted_after` count the added images that the model accepts.
    """

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
    """Return the detector with good `images` (uint8 RGB, any size) added; `detector` itself does not change.

    An image that raises FlawlineError when it is read is handed to `on_unreadable(number, error)` and left out; without
    `on_unreadable` it ends the work. Raises FlawlineError when the audit's alarm rate would rise, or its share of found
    defects fall, by more than `bound`; when there are too few images of a new product; when a bank has outgrown what a
    fit allows; and for a model without evidence.
    """
    evidence = detector.evidence
    if evidence is None or not evidence.pictures:
        raise FlawlineError(f"model {detector.version}: holds nothing to audit an extension on: fit it again")
    if not len(images):
        raise FlawlineError("no images to add: give good parts")

    # Step 1: what the model says of the images, and which of them are of known products.
    examined = examine(detector, images, names, progress, on_unreadable)
    candidates = _without_copies(detector.model, examined)
    if not candidates:
        raise FlawlineError(f"{names[0]}: is in the model already, as are all other images: give other good parts")
    known = [candidate for candidate in candidates if candidate.decision is not Decision.UNKNOWN_PRODUCT]
    new = [candidate for candidate in candidates if candidate.decision is Decision.UNKNOWN_PRODUCT]
    _refuse_too_few(new, names, settings.minimum_images)

    # Step 2: the model with these images.
    model = detector.model
    evidence = dataclasses.replace(evidence, names=_padded(evidence.names, model))
    if known:
        model, evidence = _with_known(detector, model, evidence, images, known, progress)
    if new:
        model, evidence = _with_new(detector, model, evidence, images, new, settings, progress)
    model = recalibrated(model, _is_calibration(detector.model, known, new))

    # Step 3: the audit of the new model beside that of the old one.
    first = int(detector.report.get("frozen_images", len(detector.model.groups)))
    result = detector.replaced(model, evidence, _without_golden(detector.report) | {"frozen_images": first})
    before, after = audit(detector, evidence, first), audit(result, evidence, first)
    # The first audit of a model is the baseline of all its extensions, so that small losses do not add up unnoticed.
    baseline = Audit(**detector.report["audit"]) if "audit" in detector.report else before
    result.report["audit"] = dataclasses.asdict(baseline)
    _refuse_worse(baseline, after, bound)
    return Extended(
        result,
        known=len(known),
        new=len(new),
        new_groups=len(model.banks) - len(detector.model.banks),
        copies=len(examined) - len(candidates),
        accepted_before=sum(candidate.decision is Decision.ACCEPT for candidate in candidates),
        accepted_after=_accepted(result, images, [candidate.number for candidate in candidates], progress),
        before=before,
        after=after,
    )


def _without_copies(model: Model, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that are not in the model yet, each once: a copy would find itself in the banks."""
    known = {embedding.tobytes() for embedding in model.embeddings}
    remaining = []
    for candidate in candidates:
        embeddings = {embedding.tobytes() for embedding in candidate.embeddings}
        if embeddings - known:
            remaining.append(candidate)
            known |= embeddings
    return remaining


def _refuse_too_few(new: Sequence[Candidate], names: Sequence[str], minimum: int) -> None:
    if 0 < len(new) < minimum:
        listed = ", ".join(names[candidate.number] for candidate in new[:_NAMES_SHOWN])
        raise FlawlineError(
            f"{len(new)} images are of no known product, and at least {minimum} of a new one are needed: "
            f"give more of them, or leave them out: {listed}{', ...' if len(new) > _NAMES_SHOWN else ''}"
        )


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


def _is_calibration(model: Model, known: Sequence[Candidate], new: Sequence[Candidate]) -> NDArray[np.bool_]:
    """Return which good images (n,) of the extended model are a sample of good parts to come.

    Images of known products are when the old model accepted them; those of new products all are.
    """
    flags = [np.isfinite(model.standardised)]
    flags += [np.full(len(candidate.groups), candidate.decision is Decision.ACCEPT) for candidate in known]
    flags += [np.ones(len(candidate.groups), dtype=bool) for candidate in new]
    return np.concatenate(flags)


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
    """Return the report without the golden scores, which the changed model no longer has."""
    return {key: value for key, value in report.items() if key != "golden"}


def _padded(names: Sequence[str], model: Model) -> list[str]:
    """Return a name for every good image of the model, so that the names of further ones are in their places."""
    return [names[i] if i < len(names) else f"good image {i}" for i in range(len(model.groups))]


def recalibrated(model: Model, is_calibration: NDArray[np.bool_]) -> Model:
    """Return the model with gates, widths, standardised scores and cut-offs from its good images' log scores.

    Widths and cut-offs are those of the images (n,) where `is_calibration`; the standardised scores of the others are
    NaN.
    """
    gallery = Gallery(model.embeddings, model.groups)
    # Tiles that are alike are no copies, as in a fit.
    copies = first_copies(model.embeddings) if model.tiles is None and model.copies is None else model.copies
    look_alikes, within = gallery.neighbours_of_members(model.look_alikes, copies)
    aligned = model.log_scores - model.levels(model.groups, look_alikes)
    widths, widths_of_others = calibration.decision_widths(aligned[is_calibration], model.groups[is_calibration])
    standardised = np.full(len(aligned), np.nan)
    standardised[is_calibration] = aligned[is_calibration] / widths_of_others
    review, reject = cut_offs(np.sort(standardised[is_calibration]), model.review.rate, model.reject.rate)
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
    candidates: Sequence[Candidate],
    progress: Progress | None,
) -> tuple[Model, Evidence]:
    """Return the model and its evidence with images of its groups; gates and cut-offs are still the old ones."""
    log_scores = _cross_fitted(detector, model, images, candidates, progress)
    extended = dataclasses.replace(
        _grown(model, candidates),
        embeddings=np.concatenate([model.embeddings, *(candidate.embeddings for candidate in candidates)]),
        groups=np.concatenate([model.groups, *(candidate.groups for candidate in candidates)]),
        log_scores=np.concatenate([model.log_scores, *log_scores]),
        copies=_copies_and(model, np.arange(sum(map(len, log_scores)))),
        tiles=_tiles_and(model, [len(candidate.groups) for candidate in candidates]),
        contents=_joined_contents(model.contents, [candidate.contents for candidate in candidates]),
    )
    names = [*evidence.names, *(name for candidate in candidates for name in candidate.names)]
    sources, look_sources = _grown_sources(evidence, model, candidates)
    return extended, dataclasses.replace(evidence, sources=sources, look_sources=look_sources, names=names)


def _cross_fitted(
    detector: CoresetDetector,
    model: Model,
    images: Sequence[Image],
    candidates: Sequence[Candidate],
    progress: Progress | None,
) -> list[list[float]]:
    """Return the log scores of each candidate's parts, against banks with the patches of other candidates only."""
    log_scores: list[list[float]] = [[]] * len(candidates)
    folds = min(_FOLDS, len(candidates))
    for fold in range(folds):
        others = [candidate for i, candidate in enumerate(candidates) if i % folds != fold]
        scorer = detector.replaced(_grown(model, others), None, {})
        members = range(fold, len(candidates), folds)
        work = partial(_log_scores, scorer, images, [candidates[i].number for i in members])
        for i, scores in zip(members, map_in_order(work, len(members), detector.threads), strict=True):
            log_scores[i] = scores
            if progress:
                progress("scoring", sum(map(bool, log_scores)), len(candidates))
    return log_scores


def _log_scores(detector: CoresetDetector, images: Sequence[Image], numbers: Sequence[int], i: int) -> list[float]:
    """Return the log scores of the parts of image `numbers[i]`."""
    parts, _ = parts_of(detector, images[numbers[i]], "")
    return [float(np.log(detector.score_features(detector.features(part)).raw)) for part in parts]


def _tiles_and(model: Model, counts: Sequence[int]) -> Tiles | None:
    """Return the model's tiles with those of further images, which have `counts` tiles each; None without tiles."""
    if model.tiles is None:
        return None
    numbers = model.tiles.sources.max() + 1 + np.repeat(np.arange(len(counts)), counts)
    return dataclasses.replace(model.tiles, sources=np.concatenate([model.tiles.sources, numbers]))


def _joined_contents(
    contents: NDArray[np.int64] | None, others: Sequence[NDArray[np.int64] | None]
) -> NDArray[np.int64] | None:
    """Return what the good images (n, 2) and further ones fill of the model input; None where images are squeezed."""
    known = [of_images for of_images in others if of_images is not None]
    return None if contents is None else np.concatenate([contents, *known])


def _copies_and(model: Model, copies: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the copies of the model and those of further images, numbered from 0; None for tiles of one size."""
    if model.tiles is not None and model.copies is None:
        return None
    known = first_copies(model.embeddings) if model.copies is None else model.copies
    return np.concatenate([known, len(known) + copies])


def _grown(model: Model, candidates: Sequence[Candidate]) -> Model:
    """Return the model with the novel patches of the candidates in its banks, and in those of their sub-looks.

    Raises FlawlineError when a bank has grown beyond `_MOST_GROWTH`.
    """
    pieces: list[list[list[Vectors]]] = [[[bank] for bank in layers] for layers in model.banks]
    sub_looks = list(model.sub_looks)
    for candidate in candidates:
        for part, (group, novel) in enumerate(candidate.novel_by_group()):
            for layer, patches in enumerate(novel):
                pieces[group][layer].append(patches.vectors.astype(np.float32))
            if (looks := sub_looks[group]) is not None:
                rows = [patches.vectors.astype(np.float32) for patches in novel]
                sub_looks[group] = looks.grown(int(looks.of(candidate.embeddings[part])), rows)
    banks = [[np.concatenate(bank) if len(bank) > 1 else bank[0] for bank in layers] for layers in pieces]
    for group, layers in enumerate(banks):
        for settings, bank in zip(model.layers, layers, strict=True):
            limit = _MOST_GROWTH * settings.rows
            if len(bank) > limit:
                raise FlawlineError(
                    f"group {group} has outgrown its bank ({len(bank)} rows of at most {limit:.0f}): "
                    "fit again with all images"
                )
    return dataclasses.replace(model, banks=banks, sub_looks=sub_looks)


def _grown_sources(
    evidence: Evidence, model: Model, candidates: Sequence[Candidate]
) -> tuple[list[list[NDArray[np.int32]]], list[list[list[NDArray[np.int32]]]]]:
    """Return the sources of bank rows, and of those of sub-looks, see `Evidence`, with the rows that `_grown` adds.

    The parts of the candidates follow the good images of the model.
    """
    sources = [list(layers) for layers in evidence.sources]
    look_sources = [[list(layers) for layers in looks] for looks in evidence.look_sources]
    number = len(model.groups)
    for candidate in candidates:
        for part, (group, novel) in enumerate(candidate.novel_by_group()):
            grown = [sources[group]]
            if (looks := model.sub_looks[group]) is not None:
                grown.append(look_sources[group][int(looks.of(candidate.embeddings[part]))])
            for layer, patches in enumerate(novel):
                image = np.full(len(patches.patches), number)
                rows = np.stack([image, patches.patches], axis=1).astype(np.int32)
                for layers in grown:
                    layers[layer] = np.concatenate([layers[layer], rows])
            number += 1
    return sources, look_sources


# New products


def _with_new(
    detector: CoresetDetector,
    model: Model,
    evidence: Evidence,
    images: Sequence[Image],
    candidates: Sequence[Candidate],
    settings: ScorerSettings,
    progress: Progress | None,
) -> tuple[Model, Evidence]:
    """Return the model and its evidence with new products, fitted alone: their groups come after those of the model."""
    whole_images = Chosen(images, [candidate.number for candidate in candidates])
    tiled = None if model.tiles is None else TiledImages(whole_images, model.tiles.cutting)
    parts: Sequence[Image] = whole_images if tiled is None else tiled
    folder = WorkFolder(cache_dir() / "fits", None)
    try:
        store, _ = extract(parts, detector.backbone, folder, progress)
        sources = None if tiled is None else tiled.sources
        new_model = fit_model(store, settings, detector.threads, progress, sources=sources)
        new_evidence = gather(store, new_model, parts)
    finally:
        folder.close()
    new_names = [name for candidate in candidates for name in candidate.names]
    joined = _joined(model, new_model, _tiles_and(model, [len(candidate.groups) for candidate in candidates]))
    return joined, _joined_evidence(evidence, new_evidence, new_names, len(model.groups))


def _joined(model: Model, new: Model, tiles: Tiles | None) -> Model:
    """Return the groups and good images of two models in one, with the cut-offs and settings of the first."""
    by_group: dict[str, list[object]] = {
        field.name: [*getattr(model, field.name), *getattr(new, field.name)]
        for field in dataclasses.fields(Model)
        if isinstance(getattr(model, field.name), list) and field.name != "means"
    }
    return dataclasses.replace(
        model,
        **by_group,  # type: ignore[arg-type]  # every list of a model, except its means, has one entry for each group
        means=[np.concatenate(means) for means in zip(model.means, new.means, strict=True)],
        embeddings=np.concatenate([model.embeddings, new.embeddings]),
        groups=np.concatenate([model.groups, new.groups + len(model.banks)]),
        log_scores=np.concatenate([model.log_scores, new.log_scores]),
        copies=_copies_and(model, np.arange(len(new.groups)) if new.copies is None else new.copies),
        tiles=tiles,
        contents=_joined_contents(model.contents, [new.contents]),
    )


def _joined_evidence(evidence: Evidence, new: Evidence, new_names: Sequence[str], first: int) -> Evidence:
    """Return the evidence of two models in one; the good images of the second have the numbers from `first` on."""
    offset = np.asarray([first, 0])

    def moved(layers: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
        return [np.where(rows < 0, rows, rows + offset).astype(np.int32) for rows in layers]

    pictures = {first + number: picture for number, picture in new.pictures.items()}
    return dataclasses.replace(
        evidence,
        sources=[*evidence.sources, *map(moved, new.sources)],
        look_sources=[*evidence.look_sources, *([moved(layers) for layers in looks] for looks in new.look_sources)],
        names=[*evidence.names, *new_names],
        pictures=evidence.pictures | pictures,
    )
