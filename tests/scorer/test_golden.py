"""A model on another runtime than it was calibrated on: the same scores, or a line that says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flawline.errors import FlawlineError
from scorer import artefact, detector, golden


def with_report(model: Path, copy: Path, **changes: object) -> Path:
    """A copy of the model whose report has been changed, vouched for as if it had been saved so."""
    shutil.copytree(model, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["report"] = {k: v for k, v in (manifest["report"] | changes).items() if v is not None}
    manifest["checksum"] = artefact._digest({k: v for k, v in manifest.items() if k != "checksum"})
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_another_runtime_is_checked_on_the_models_own_pictures(model_path: Path, tmp_path: Path) -> None:
    stored = artefact.load(model_path).report["golden"]
    assert 2 <= len(stored["pictures"]) == len(stored["raw"]) <= 8
    assert detector.load(model_path, runtime="torch").runtime == "torch-f32"
    off = {"pictures": stored["pictures"], "raw": [each * 1.1 for each in stored["raw"]]}
    drifted = with_report(model_path, tmp_path / "drifted", golden=off)
    assert detector.load(drifted, runtime="openvino").runtime == "openvino-f32"
    with pytest.raises(FlawlineError, match=r"drifted: scores on torch are up to \d+\.\d% off those on openvino"):
        detector.load(drifted, runtime="torch")
    bare = with_report(model_path, tmp_path / "bare", golden=None)
    with pytest.raises(FlawlineError, match="bare: calibrated on openvino, and carries no pictures to check"):
        detector.load(bare, runtime="torch")


def test_scores_that_are_not_numbers_do_not_pass(fitted: detector.HierarchicalCoreset) -> None:
    evidence = fitted.evidence
    assert evidence is not None
    stored = golden.golden(evidence, lambda images: [2.0] * len(images))
    golden.check(stored, evidence, lambda images: [2.01] * len(images), "torch", "openvino")
    with pytest.raises(FlawlineError, match="scores on torch"):
        golden.check(stored, evidence, lambda images: [float("nan")] * len(images), "torch", "openvino")


def test_what_was_calibrated_first_is_kept_when_saved_from_another_runtime(model_path: Path, tmp_path: Path) -> None:
    detector.load(model_path, runtime="torch").save(tmp_path / "again")
    assert artefact.load(tmp_path / "again").report["golden"] == artefact.load(model_path).report["golden"]
