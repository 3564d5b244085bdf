"""More good parts for a fitted model, without fitting it again: confirmed false alarms, or a new product.

Known products: patches that their group's banks do not cover are added to the banks, and the images to the good ones
that others are aligned with, each scored against banks that hold nothing of it. Those that were accepted anyway join
the calibration; false alarms do not, since they were chosen for their scores: a cut-off above all of them would let
defects pass. New products: their images are fitted on their own and joined. Banks
only grow, so distances of good parts can only shrink; what could go wrong is that defects are missed. So both are
audited, on what is frozen in the model: cross-fitted scores of its first good images, and pictures of them with defects
pasted in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from flawline.messages import Decision
from scorer import calibration, hierarchy
from scorer import model as models
from scorer.audit import Audit, audit
from scorer.backbone import Image, Maps
from scorer.coreset import greedy_k_centre, nearest_neighbours, unit
from scorer.detector import HierarchicalCoreset
from scorer.evidence import Evidence, gather
from scorer.features import FeatureStore
from scorer.model import Model
from scorer.settings import ScorerSettings

# A bank that has grown to this many times what a fit allows is to be selected anew.
_MOST_GROWTH = 2.0


@dataclass(frozen=True)
class Extended:
    """The extended detector, not saved yet, and what is to be reported of it."""

    detector: HierarchicalCoreset
    known: int
    new: int
    new_groups: int
    accepted_before: int
    accepted_after: int
    before: Audit
    after: Audit


def extend(
    detector: HierarchicalCoreset,
    images: Sequence[Image],
    names: Sequence[str],
    settings: ScorerSettings,
    *,
    bound: float = 0.02,
) -> Extended:
    """The detector with `images` (uint8 RGB, any size, all good) added to what is normal; it itself stays as it is.

    Raises FlawlineError when the audit's alarm rate would rise, or its share of found defects fall, by more than
    `bound`; when there are too few images of a new product; and for a model without evidence.
    """
    evidence = detector.evidence
    if evidence is None or not evidence.pictures:
        raise FlawlineError(f"model {detector.version}: holds nothing to audit an extension on: fit it again")
    if detector.model.tiles is not None:
        raise FlawlineError(f"model {detector.version}: was fitted on tiles, which cannot be extended: fit it again")
    if not len(images):
        raise FlawlineError("no images to add: give good parts")
    features = [detector.features(image) for image in images]
    looks = [detector.route(each) for each in features]
    gates = detector.model.gates
    is_new = np.asarray([look.distance > gates[look.group] for look in looks], dtype=bool)
    groups = np.asarray([look.group for look in looks], dtype=np.int64)
    known, new = np.flatnonzero(~is_new).tolist(), np.flatnonzero(is_new).tolist()
    if 0 < len(new) < settings.minimum_images:
        raise FlawlineError(
            f"{names[new[0]]}: is one of {len(new)} images of no known product: at least {settings.minimum_images} of "
            "a new one are needed, or leave them out"
        )
    model = detector.model
    evidence = dataclasses.replace(evidence, names=_padded(evidence.names, model))
    if len(known):
        model, evidence = _with_known(
            detector, model, evidence, [features[i] for i in known], groups[known], [names[i] for i in known]
        )
    if len(new):
        part = [features[i] for i in new]
        model, evidence = _with_new(
            detector, model, evidence, part, [images[i] for i in new], [names[i] for i in new], settings
        )
    alarmed = [detector.score_features(features[i]).decision is not Decision.ACCEPT for i in known]
    counted = [
        np.isfinite(detector.model.standardised),
        ~np.asarray(alarmed, dtype=bool),
        np.ones(len(new), dtype=bool),
    ]
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
        accepted_before=_accepted(detector, features),
        accepted_after=_accepted(result, features),
        before=before,
        after=after,
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


def _accepted(detector: HierarchicalCoreset, features: Sequence[Maps]) -> int:
    return sum(detector.score_features(each).decision is Decision.ACCEPT for each in features)


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
    gallery = hierarchy.Gallery(model.embeddings, model.groups)
    look_alikes, within = gallery.neighbours_of_members(model.look_alikes)
    aligned = model.log_scores - model.levels(model.groups, look_alikes)
    widths = calibration.group_widths(aligned[counted], model.groups[counted])
    standardised = np.where(counted, aligned / widths[model.groups], np.nan)
    review, reject = models.cut_offs(np.sort(standardised[counted]), model.review.rate, model.reject.rate)
    return dataclasses.replace(
        model,
        gates=hierarchy.gates(gallery, within),
        widths=widths,
        standardised=standardised,
        review=review,
        reject=reject,
    )


# Known products


def _with_known(
    detector: HierarchicalCoreset,
    model: Model,
    evidence: Evidence,
    features: Sequence[Maps],
    groups: NDArray[np.int64],
    names: Sequence[str],
) -> tuple[Model, Evidence]:
    """The model and its evidence with images of groups it has; gates and cut-offs are still the old ones."""
    novel = [_novel(model, each, int(group)) for each, group in zip(features, groups, strict=True)]
    everything = np.ones(len(features), dtype=bool)
    folds = np.arange(len(features)) % min(5, len(features))
    log_scores = np.empty(len(features))
    for fold in range(int(folds.max()) + 1):
        others = detector.replaced(_grown(model, features, groups, novel, folds != fold), None, {})
        for i in np.flatnonzero(folds == fold).tolist():
            log_scores[i] = np.log(others.score_features(features[i]).raw)
    first = len(model.groups)
    sources = [
        [
            np.concatenate(
                [rows, *(_numbered(novel[i][layer], first + i) for i in np.flatnonzero(groups == k).tolist())]
            )
            for layer, rows in enumerate(each)
        ]
        for k, each in enumerate(evidence.sources)
    ]
    grown = dataclasses.replace(
        _grown(model, features, groups, novel, everything),
        embeddings=np.concatenate([model.embeddings, detector.embeddings(features)]),
        groups=np.concatenate([model.groups, groups]),
        log_scores=np.concatenate([model.log_scores, log_scores]),
    )
    return grown, dataclasses.replace(evidence, sources=sources, names=[*evidence.names, *names])


def _numbered(patches: NDArray[np.intp], image: int) -> NDArray[np.int32]:
    return np.stack([np.full(len(patches), image), patches], axis=1).astype(np.int32)


def _novel(model: Model, features: Maps, group: int) -> list[NDArray[np.intp]]:
    """Per layer the patches that the banks do not cover: farther than usual, as many as a fit takes of an image."""
    chosen = []
    for layer, each, bank, usual in zip(model.layers, features, model.banks[group], model.units[group], strict=True):
        vectors = _kept(each)
        similarity, _ = nearest_neighbours(vectors, bank)
        far = np.flatnonzero(np.sqrt(np.maximum(0, 2 - 2 * similarity[:, 0])) > usual.median)
        chosen.append(far[greedy_k_centre(vectors[far], max(1, round(layer.rows_per_image)))] if len(far) else far)
    return chosen


def _kept(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit patch vectors (h * w, c) as the artefact will keep them, in half precision."""
    return unit(features.reshape(-1, features.shape[-1])).astype(np.float16).astype(np.float32)


def _grown(
    model: Model,
    features: Sequence[Maps],
    groups: NDArray[np.int64],
    novel: Sequence[Sequence[NDArray[np.intp]]],
    chosen: NDArray[np.bool_],
) -> Model:
    """The model with the novel patches of the chosen images in its banks."""
    banks = [list(each) for each in model.banks]
    for k in np.unique(groups):
        for layer, settings in enumerate(model.layers):
            added = [
                _kept(features[i][layer])[novel[i][layer]] for i in np.flatnonzero(chosen & (groups == k)).tolist()
            ]
            banks[k][layer] = np.concatenate([banks[k][layer], *added])
            if len(banks[k][layer]) > _MOST_GROWTH * settings.rows:
                raise FlawlineError(
                    f"group {k} has outgrown its bank ({len(banks[k][layer])} rows of at most "
                    f"{_MOST_GROWTH * settings.rows:.0f}): fit again with all images"
                )
    return dataclasses.replace(model, banks=banks)


# New products


def _with_new(
    detector: HierarchicalCoreset,
    model: Model,
    evidence: Evidence,
    features: Sequence[Maps],
    images: Sequence[Image],
    names: Sequence[str],
    settings: ScorerSettings,
) -> tuple[Model, Evidence]:
    """The model joined with one that is fitted on images of new products, whose groups come after its own."""
    patches = [np.stack([_kept(each[i]).astype(np.float16) for each in features]) for i in range(len(model.layers))]
    means = [np.stack([each[i].mean(axis=(0, 1)) for each in features]) for i in range(len(model.layers))]
    store = FeatureStore(patches, means, [each.shape[0] for each in features[0]])
    part = models.fit(store, settings, detector.threads)
    found = gather(store, part.banks, part.groups, images)
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
    )
    offset = np.asarray([first, 0])
    moved = [[np.where(rows < 0, rows, rows + offset).astype(np.int32) for rows in each] for each in found.sources]
    pictures = evidence.pictures | {first + i: data for i, data in found.pictures.items()}
    return whole, Evidence([*evidence.sources, *moved], [*evidence.names, *names], pictures)
