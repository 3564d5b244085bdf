"""A model on another runtime than it was calibrated on: the same scores, or a line that says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flawline.errors import FlawlineError
from scorer import artefact, golden
from scorer.detector import CoresetDetector
from scorer.load import load_detector

pytestmark = pytest.mark.system


def with_report(model: Path, copy: Path, **changes: object) -> Path:
    """Return a copy of the model whose report has been changed, vouched for as if it had been saved so."""
    shutil.copytree(model, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["report"] = {k: v for k, v in (manifest["report"] | changes).items() if v is not None}
    manifest["checksum"] = artefact._digest({k: v for k, v in manifest.items() if k != "checksum"})
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_another_runtime_is_checked_on_the_models_own_pictures(model_path: Path, tmp_path: Path) -> None:
    stored = artefact.load(model_path).report["golden"]
    assert 2 <= len(stored["pictures"]) == len(stored["raw"]) <= 8
    assert load_detector(model_path, runtime="torch").runtime == "torch-f32"
    off = {"pictures": stored["pictures"], "raw": [score * 1.1 for score in stored["raw"]]}
    drifted = with_report(model_path, tmp_path / "drifted", golden=off)
    assert load_detector(drifted, runtime="openvino").runtime == "openvino-f32"
    with pytest.raises(
        FlawlineError,
        match=r"drifted: scores on torch here are up to \d+\.\d% off those on openvino, .* set worker.runtime",
    ):
        load_detector(drifted, runtime="torch")
    bare = with_report(model_path, tmp_path / "bare", golden=None)
    with pytest.raises(FlawlineError, match="bare: was calibrated on openvino, and holds no pictures to check"):
        load_detector(bare, runtime="torch")


def test_another_kind_of_processor_is_checked_too(model_path: Path, tmp_path: Path) -> None:
    stored = artefact.load(model_path).report["golden"]
    assert stored["machine"] == golden.machine()
    moved = with_report(model_path, tmp_path / "moved", golden=stored | {"machine": "Abacus 3000"})
    assert load_detector(moved).runtime == "openvino-f32"
    off = stored | {"machine": "Abacus 3000", "raw": [score * 1.1 for score in stored["raw"]]}
    strange = with_report(model_path, tmp_path / "strange", golden=off)
    with pytest.raises(
        FlawlineError,
        match=r"strange: scores on openvino here are up to \d+\.\d% off those on Abacus 3000.*this machine",
    ):
        load_detector(strange)


def test_every_mismatch_says_what_to_set_or_how_to_fit(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawlineError, match=r'calibrated in f32, .* in bf16: set worker.precision = "auto", or fit'):
        load_detector(model_path, precision="bf16")
    bare = with_report(model_path, tmp_path / "bare", golden=None)
    with pytest.raises(FlawlineError, match=r'set worker.runtime = "openvino", or fit it again with scorer.runtime'):
        load_detector(bare, runtime="torch")
    manifest = json.loads((model_path / "manifest.json").read_text())
    coarse = with_report(model_path, tmp_path / "coarse")
    content = {k: v for k, v in manifest.items() if k not in ("version", "report", "checksum")} | {"precision": "bf16"}
    whole = {"version": artefact._digest(content)[:12], **content, "report": manifest["report"]}
    (coarse / "manifest.json").write_text(json.dumps(whole | {"checksum": artefact._digest(whole)}))
    with pytest.raises(FlawlineError, match=r"coarse: scores on torch here are up to .* off those on openvino"):
        load_detector(coarse, runtime="torch")


def test_scores_that_are_not_numbers_do_not_pass(fitted: CoresetDetector) -> None:
    evidence = fitted.evidence
    assert evidence is not None
    stored = golden.reference(evidence, lambda images: [2.0] * len(images))
    golden.check(stored, evidence, lambda images: [2.01] * len(images), "torch", "openvino")
    with pytest.raises(FlawlineError, match="scores on torch"):
        golden.check(stored, evidence, lambda images: [float("nan")] * len(images), "torch", "openvino")


def test_what_was_calibrated_first_is_kept_when_saved_from_another_runtime(model_path: Path, tmp_path: Path) -> None:
    load_detector(model_path, runtime="torch").save(tmp_path / "again")
    assert artefact.load(tmp_path / "again").report["golden"] == artefact.load(model_path).report["golden"]
