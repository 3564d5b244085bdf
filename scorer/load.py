"""Loads a saved detector, and checks that it scores here as it did where it was fitted."""

from __future__ import annotations

from pathlib import Path

from flawline.errors import FlawlineError
from scorer import artefact, golden
from scorer.detector import CoresetDetector
from scorer.features import backbone
from scorer.tiles import detector_class


def load_detector(
    path: str | Path,
    *,
    runtime: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    weights: Path | None = None,
    batch: int | None = None,
    device_share: float = 1.0,
    always_check: bool = False,
) -> CoresetDetector:
    """Return the detector saved in folder `path`, verified and ready to score.

    `runtime`, `precision` and `device` say what the backbone runs on, `threads` how many images are scored at once;
    `weights` is a weights file, `batch` the most images at once and `device_share` the share of a GPU's memory, for
    PyTorch alone. In f32 all runtimes give nearly the same scores: that is checked on pictures in the model when it was
    calibrated on another runtime or kind of processor. The thresholds of a model fitted in f16 or bf16 hold in that
    precision only. `always_check` checks the pictures, if there are any, in any case.
    Raises FlawlineError, in one line that names the file, for a model that is missing, damaged or of another release.
    """
    stored = artefact.load(Path(path))
    if precision == "auto":
        precision = stored.precision
    if precision != stored.precision:
        raise FlawlineError(
            f"{path}: was calibrated in {stored.precision}, so that its thresholds do not hold in {precision}: set "
            f'worker.precision = "auto", or fit it again with scorer.precision = "{precision}"'
        )
    try:
        features = backbone.load(
            stored.graphs,
            runtime=runtime,
            precision=precision,
            device=device,
            threads=threads,
            weights=weights,
            batch=batch,
            device_share=device_share,
            pads=stored.model.shape == "pad",
        )
    except FlawlineError as error:
        raise FlawlineError(f"{path}: {error}") from error
    loaded = detector_class(stored.model)(
        stored.model, stored.graphs, features, stored.report, stored.version, stored.evidence
    )
    has_pictures = stored.report.get("golden") is not None and loaded.evidence is not None
    if golden.must_check(stored.report.get("golden"), features.runtime, stored.runtime) or (
        always_check and has_pictures
    ):
        try:
            golden.check(
                stored.report.get("golden"), loaded.evidence, loaded.raw_scores, features.runtime, stored.runtime
            )
        except FlawlineError as error:
            raise FlawlineError(f"{path}: {error}") from error
    return loaded
