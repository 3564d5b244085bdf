"""The work of `flawline fit`, `evaluate` and `extend`: data folder in, report out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError, UsageError
from flawline.messages import Codec, Decision
from flawline.settings.scorer import ScorerSettings
from scorer import artefact, calibration, odd_images, operating_points
from scorer.detector import CoresetDetector
from scorer.evaluate import evaluation
from scorer.extend.audit import defective
from scorer.features.dataset import (
    GOOD,
    Delivery,
    LazyImages,
    Sample,
    check_masks,
    good_images,
    test_samples,
    train_samples,
    unread_folders,
)
from scorer.features.store import Progress
from scorer.fit import ODD, fit_detector
from scorer.load import load_detector
from scorer.model import Model
from scorer.tiles import worst

log = logging.getLogger(__name__)

ProgressBar = Callable[[], AbstractContextManager[Progress | None]]
"""Makes the callback that shows the progress of a command; the scorer itself shows nothing."""


def fit(
    data: Path,
    out: Path,
    settings: ScorerSettings | None = None,
    report: bool = True,
    delivery: Delivery | None = None,
    progress_bar: ProgressBar = nullcontext,
    *,
    leave_out_odd: bool = False,
    defects: Sequence[Path] = (),
) -> dict[str, Any]:
    """Fit a model on the good training images under `data`, save it to folder `out`, and return the report.

    With `report` the model is then evaluated on the test images under `data`, if there are any, and the report has the
    keys of `evaluate` as well. `delivery` passes all images through the codec of the line's cameras. Images that cannot
    be read are named in the log, skipped and counted. Images that are odd (`scorer.odd_images`) are named in the log
    before the fit, and left out with `leave_out_odd`; `defects` are training images that show defects, and are left
    out. Nothing is written unless the fit succeeds.
    """
    settings = settings or ScorerSettings()
    samples = _without(train_samples(Path(data)), defects)
    for folder, count in unread_folders(Path(data)):
        log.warning("%s: %d images in this folder are not read: move them to where the good images are", folder, count)
    survey = odd_images.survey([sample.path for sample in samples], settings.sample_bits)
    odd = [(str(samples[item.number].path), item.reason) for item in survey.odd]
    for name, reason in odd:
        log.warning(ODD, name, reason)
    if leave_out_odd:
        odd_numbers = {item.number for item in survey.odd}
        samples = [sample for number, sample in enumerate(samples) if number not in odd_numbers]
    if len(samples) < settings.minimum_images:
        raise UsageError(
            f"{data}: holds {len(samples)} good images: at least {settings.minimum_images} are needed to say what is "
            "normal: add more"
        )
    artefact.check_place(Path(out))
    tests = test_samples(Path(data)) if report and any(_has_tests(Path(data))) else []
    check_masks(tests)
    skipped: list[str] = []

    def on_unreadable(index: int, error: FlawlineError) -> None:
        skipped.append(str(samples[index].path))
        log.warning("skipped: %s", error)

    with progress_bar() as progress:
        fitted = fit_detector(
            LazyImages([sample.path for sample in samples], delivery, survey.sample_bits),
            settings,
            progress,
            on_unreadable,
            leave_out_odd=leave_out_odd,
        )
    named = {name for name, _ in odd}
    fitted.report["odd"] = [list(item) for item in odd] + [
        item for item in fitted.report["odd"] if item[0] not in named
    ]
    fitted.report["odd_left_out"] = leave_out_odd
    if delivery is not None:
        fitted.report["delivery"] = {"codec": str(delivery.codec), "quality": delivery.quality}
    fitted.save(Path(out))
    result = _about(fitted, Path(out)) | {"skipped_images": skipped}
    rows: Sequence[evaluation.Row] = []
    if tests:
        accuracy, rows = _evaluate(fitted, tests, progress_bar)
        result = accuracy | result | {"skipped_images": skipped + accuracy["skipped_images"]}
    if not report:
        return result
    operation = _operation(fitted, rows)
    artefact.add_to_report(Path(out), {"operation": operation})  # no part of the version: the station shows it
    return result | operation | {"model_bytes": artefact.size_bytes(Path(out))}


def evaluate(
    model: Path,
    data: Path,
    *,
    scores: Path | None = None,
    runtime: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    weights: Path | None = None,
    progress_bar: ProgressBar = nullcontext,
) -> dict[str, Any]:
    """Evaluate the model in folder `model` on the test images under `data`, and return the report.

    `scores` names a file (.csv or .json) for the scores of each image.
    """
    samples = test_samples(Path(data))
    check_masks(samples)
    if scores is not None and not (scores.absolute().parent.is_dir() and os.access(scores.absolute().parent, os.W_OK)):
        raise UsageError(f"--scores {scores}: cannot be written: name a file in a writable folder that exists")
    loaded = load_detector(model, runtime=runtime, precision=precision, device=device, threads=threads, weights=weights)
    report, rows = _evaluate(loaded, samples, progress_bar)
    if scores is not None:
        evaluation.write_scores(rows, Path(scores))
    return report | _about(loaded, Path(model)) | _operation(loaded, rows)


def compare_scenarios(model: Path, data: Path, progress_bar: ProgressBar = nullcontext) -> dict[str, Any]:
    """Return the report on the four scenarios of HierCore, see `scorer.evaluate.scenarios`.

    They are fitted anew on `data` with the settings of the model in folder `model`. Raises FlawlineError for a model
    that does not say how it was fitted, and for a model of tiles.
    """
    from scorer.evaluate import scenarios

    stored = artefact.load(Path(model))
    settings = stored.settings()
    if deep := [bits for bits in stored.model.sample_bits if bits > 8]:
        settings = settings.model_copy(update={"sample_bits": deep[0]})
    if stored.model.tiles is not None:
        raise FlawlineError(
            f"{model}: is fitted on tiles, and --scenarios compares whole images only: give a model that is fitted "
            'without scorer.tile_px, with scorer.shape = "squeeze" or "pad"'
        )
    settings = settings.model_copy(update={"shape": stored.model.shape})
    skipped: list[str] = []

    def on_unreadable(sample: Sample, error: FlawlineError) -> None:
        skipped.append(str(sample.path))
        log.warning("skipped: %s", error)

    with progress_bar() as progress:
        report = scenarios.compare(
            train_samples(Path(data)), test_samples(Path(data)), settings, progress, on_unreadable
        )
    return report | {"skipped_images": skipped}


def extend(
    model: Path,
    data: Path,
    out: Path,
    *,
    bound: float = 0.02,
    runtime: str = "auto",
    precision: str = "auto",
    weights: Path | None = None,
    progress_bar: ProgressBar = nullcontext,
) -> dict[str, Any]:
    """Add the good images under `data` to the model in folder `model`, save it to folder `out`, and return the report.

    Nothing is written when the audit refuses, see `scorer.extend`.
    """
    from scorer.extend.extend import extend_model

    if Path(out).resolve() == Path(model).resolve():
        raise UsageError(f"--out {out}: is the model itself: choose another place for the extended model")
    artefact.check_place(Path(out))
    loaded = load_detector(model, runtime=runtime, precision=precision, weights=weights)
    images = LazyImages(good_images(Path(data)), _delivery(loaded), loaded.sample_bits)
    skipped: list[str] = []

    def on_unreadable(index: int, error: FlawlineError) -> None:
        skipped.append(str(images.paths[index]))
        log.warning("skipped: %s", error)

    settings = artefact.load(Path(model)).settings()
    with progress_bar() as progress:
        result = extend_model(
            loaded, images, images.names, settings, bound=bound, progress=progress, on_unreadable=on_unreadable
        )
    result.detector.save(Path(out))
    return {
        **_about(result.detector, Path(out)),
        "extended": loaded.version,
        "added": {"known_products": result.known, "new_products": result.new, "new_groups": result.new_groups},
        "copies": result.copies,
        "accepted": {
            "before": result.accepted_before,
            "after": result.accepted_after,
            "images": result.known + result.new,
        },
        "audit": {"before": asdict(result.before), "after": asdict(result.after), "bound": bound},
        "skipped_images": skipped,
    }


def _delivery(loaded: CoresetDetector) -> Delivery | None:
    """Return the codec of the model's good images; other images have to come through the same."""
    stored = loaded.report.get("delivery")
    return None if stored is None else Delivery(Codec(stored["codec"]), int(stored["quality"]))


def _evaluate(
    loaded: CoresetDetector, samples: list[Sample], progress_bar: ProgressBar
) -> tuple[dict[str, Any], list[evaluation.Row]]:
    skipped: list[str] = []

    def on_unreadable(sample: Sample, error: FlawlineError) -> None:
        skipped.append(str(sample.path))
        log.warning("skipped: %s", error)

    with progress_bar() as progress:
        report, rows = evaluation.evaluate(loaded, samples, progress, on_unreadable, _delivery(loaded))
    return report | _mistakes(rows) | {"skipped_images": skipped}, rows


def _without(samples: Sequence[Sample], defects: Sequence[Path]) -> list[Sample]:
    """Return the samples that are not among `defects`. Raises UsageError for a file that is no training image."""
    paths = {sample.path.resolve() for sample in samples}
    for path in defects:
        if path.resolve() not in paths:
            raise UsageError(f"--is-defect {path}: is none of the training images: give the path that the fit printed")
    left_out = {path.resolve() for path in defects}
    return [sample for sample in samples if sample.path.resolve() not in left_out]


def _operation(fitted: CoresetDetector, rows: Sequence[evaluation.Row]) -> dict[str, Any]:
    """Return the table of operating points: by the defects among the test images, else by defects that are pasted.

    `defects` says which; `found` is the share that the model finds at its own alarm rate.
    """
    defects = [row for row in rows if row.label != GOOD]
    kind = "test"
    if not defects and fitted.evidence is not None:
        kind = "pasted"
        scores = fitted.score(defective(fitted.evidence, len(fitted.model.groups)))
        defects = [evaluation.row(Sample(Path(), "", "pasted"), score) for score in scores]
    standardised = operating_points.standardised(
        [row.aligned for row in defects],
        [row.group for row in defects],
        [row.decision == Decision.UNKNOWN_PRODUCT for row in defects],
        fitted.model.widths,
    )
    good = operating_points.calibration_scores(fitted.model)
    points = operating_points.operating_points(good, calibration.RATES, standardised)
    return {
        "operating_points": [point.report() for point in points],
        "defects": {"kind": kind, "count": len(defects)},
        "found": operating_points.share_above(standardised, fitted.cut_offs[0].value),
        "vouched_rate": calibration.vouched_rate(len(good)),
    }


def _mistakes(rows: Sequence[evaluation.Row]) -> dict[str, list[str]]:
    """Return the good parts that were not accepted, highest scores first, and the accepted defects, lowest first."""
    ordered = sorted(rows, key=lambda row: row.aligned)
    accepted = [row for row in ordered if row.decision == Decision.ACCEPT]
    alarmed = [row for row in reversed(ordered) if row.decision != Decision.ACCEPT]
    return {
        "alarmed_good_parts": [row.path for row in alarmed if row.label == GOOD],
        "missed_defects": [row.path for row in accepted if row.label != GOOD],
    }


def _about(fitted: CoresetDetector, folder: Path) -> dict[str, Any]:
    model = fitted.model
    cuts = {
        name: {"threshold": cut.value, "rate": cut.rate, "method": cut.method, "upper_bound": cut.upper_bound}
        for name, cut in zip(("review", "reject"), fitted.cut_offs, strict=True)
    }
    return {
        "version": fitted.version,
        "runtime": fitted.runtime,
        "groups": fitted.groups,
        "good_images": len(model.groups) if model.tiles is None else len(np.unique(model.tiles.sources)),
        "distinct_images": len(_calibration(model, np.ones(len(model.groups), dtype=bool))),
        "left_out": fitted.report.get("left_out", []),
        "suspects": fitted.report.get("suspects", []),
        "far_out": fitted.report.get("far_out", []),
        "alarm_rate_asked": (fitted.report.get("settings") or {}).get("alarm_rate", model.alarm_rate),
        "odd": fitted.report.get("odd", []),
        "odd_left_out": fitted.report.get("odd_left_out", False),
        "small_parts": fitted.report.get("small_parts", []),
        "sample_bits": list(model.sample_bits),
        "shape": model.shape,
        "thresholds": cuts,
        "finest_p_value": 1 / (len(_calibration(model, np.ones(len(model.groups), dtype=bool))) + 1),
        "per_group": [_about_group(fitted, k) for k in range(fitted.groups)],
        "model_bytes": artefact.size_bytes(folder),
        "fit_seconds": fitted.report.get("fit_seconds"),
    }


def _calibration(model: Model, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the standardised scores of chosen good images (n,), or of the worst tile of each image."""
    scores = model.standardised[chosen]
    if model.tiles is not None:
        scores = worst(scores, model.tiles.sources[chosen])
    return scores[np.isfinite(scores)]


def _about_group(fitted: CoresetDetector, group: int) -> dict[str, Any]:
    """Return what a group's own good images can tell: their finest p-value, alarm rate and its upper bound."""
    scores = _calibration(fitted.model, fitted.model.groups == group)
    alarms = int((scores > fitted.cut_offs[0].value).sum())
    return {
        "group": group,
        "good_images": len(scores),
        "sub_looks": fitted.model.look_counts[group],
        "finest_p_value": 1 / (len(scores) + 1),
        "alarm_rate": alarms / len(scores),
        "alarm_rate_upper_bound": calibration.upper_bound(alarms, len(scores)),
    }


def _has_tests(data: Path) -> Iterator[Path]:
    yield from data.glob("test/*/*")
    yield from data.glob("*/test/*/*")
