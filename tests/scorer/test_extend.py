"""A model learns more good parts without a refit, and refuses what would make it blind or nervous."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from flawline.errors import FlawlineError, UsageError
from flawline.messages import Decision
from flawline.settings.scorer import ScorerSettings
from scorer.detector import CoresetDetector
from scorer.explain import reasons
from scorer.extend.audit import Audit, audit, defective
from scorer.extend.extend import _refuse_worse, extend_model, recalibrated
from scorer.load import load_detector
from station.cli.main import app
from tests.scorer.conftest import SIDE, draw

pytestmark = pytest.mark.system


def marked(seed: int) -> np.ndarray:
    """Return a good board with a new print in the corner: a false alarm."""
    image = draw("board", seed)
    cv2.rectangle(image, (40, 26), (56, 34), (230, 230, 230), -1)
    cv2.line(image, (42, 30), (54, 30), (10, 10, 10), 2)
    return image


def tile(seed: int) -> np.ndarray:
    """Return a product that the model has never seen."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), (40, 170, 60), np.float32) * rng.uniform(0.9, 1.1)
    row, column = rng.integers(0, 4, 2)
    image[row::16] = image[:, column::16] = 250
    image += rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def write(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        cv2.imwrite(str(folder / f"{i:02}.png"), image[:, :, ::-1])
    return folder


def extended(model: Path, images: Path, *more: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, ["extend", str(model), str(images), *more])


def test_confirmed_false_alarms_are_accepted_afterwards_and_defects_still_found(
    model_path: Path, tmp_path: Path
) -> None:
    images = write(tmp_path / "alarms", [marked(800 + i) for i in range(8)])
    target = tmp_path / "report.json"
    done = extended(model_path, images, "--out", str(tmp_path / "new"), "--json-file", str(target))
    assert done.exit_code == 0, done.exception
    report = json.loads(target.read_text())
    assert report["added"] == {"known_products": 8, "new_products": 0, "new_groups": 0}
    assert report["accepted"]["before"] <= 2
    assert report["accepted"]["after"] == 8
    before, after = report["audit"]["before"], report["audit"]["after"]
    assert after["alarm_rate"] <= before["alarm_rate"] + 0.02
    assert after["found_rate"] >= before["found_rate"] - 0.02
    old, new = load_detector(model_path), load_detector(tmp_path / "new")
    assert new.version == report["version"] != old.version == report["extended"]
    fresh = [marked(900 + i) for i in range(10)]
    accepted = [sum(result.decision is Decision.ACCEPT for result in m.score(fresh)) for m in (old, new)]
    assert accepted[0] <= 3
    assert accepted[1] >= 6
    blots = [draw("board", 950 + i, defect=True) for i in range(6)]
    assert all(result.decision is not Decision.ACCEPT for result in new.score(blots))
    assert len(new.model.groups) == len(old.model.groups) + 8
    # Each added image was scored against banks without its own patches.
    assert new.model.log_scores[-8:].min() > np.log([result.raw for result in new.score([marked(800)])]).min()
    (reason,) = reasons(new, marked(800), [(0.75, 0.47)])
    assert Path(reason.nearest.name).parent == images


def test_new_product_gets_its_own_group_and_is_known_afterwards(
    fitted: CoresetDetector, settings: ScorerSettings, tmp_path: Path
) -> None:
    images = [tile(i) for i in range(24)]
    result = extend_model(fitted, images, [f"tile {i}" for i in range(24)], settings)
    assert (result.known, result.new, result.new_groups) == (0, 24, 1)
    assert result.accepted_before == 0
    assert result.accepted_after >= 22
    fresh = result.detector.score([tile(100 + i) for i in range(10)])
    assert {result.group for result in fresh} == {2}
    assert sum(result.decision is Decision.ACCEPT for result in fresh) >= 8
    spoiled = tile(200)
    cv2.circle(spoiled, (30, 30), 7, (250, 60, 200), -1)
    assert result.detector.score([spoiled])[0].decision is not Decision.ACCEPT
    old = [draw(product, 600 + i) for i in range(8) for product in ("cloth", "board")]
    for before, after in zip(fitted.score(old), result.detector.score(old), strict=True):
        assert (before.group, before.raw) == (after.group, after.raw)
    result.detector.save(tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    assert loaded.score([images[0]])[0].group == 2
    assert loaded.evidence is not None
    assert loaded.evidence.names[-1] == "tile 23"


def test_images_that_the_model_has_are_not_added_again(fitted: CoresetDetector, settings: ScorerSettings) -> None:
    old, new = draw("board", 3), marked(820)
    result = extend_model(fitted, [old, new, new], ["old", "new", "again"], settings)
    assert (result.known, result.copies) == (1, 2)
    assert len(result.detector.model.groups) == len(fitted.model.groups) + 1
    with pytest.raises(FlawlineError, match="old: is in the model already, as are all other images"):
        extend_model(fitted, [old, old], ["old", "old"], settings)


def test_too_few_of_a_new_product_and_no_images_are_one_line(
    fitted: CoresetDetector, settings: ScorerSettings, model_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlawlineError, match=r"5 images are of no known product, and at least 20 .*: tile 0, tile 1"):
        extend_model(fitted, [tile(i) for i in range(5)], [f"tile {i}" for i in range(5)], settings)
    (tmp_path / "empty").mkdir()
    assert isinstance(extended(model_path, tmp_path / "empty").exception, UsageError)
    images = write(tmp_path / "one", [marked(1)])
    same = extended(model_path, images, "--out", str(model_path)).exception
    assert isinstance(same, UsageError)
    assert "is the model itself" in str(same)


def test_audit_that_worsens_refuses_and_names_the_figures(
    fitted: CoresetDetector, settings: ScorerSettings, tmp_path: Path
) -> None:
    # The audit's own defects, named good parts: that blinds the model to them.
    assert fitted.evidence is not None
    liars = [
        image
        for image in defective(fitted.evidence, 60)[:48]
        if fitted.score([image])[0].decision is not Decision.UNKNOWN_PRODUCT
    ][::2]
    assert len(liars) > 10
    with pytest.raises(FlawlineError, match=r"refused: .*% of the audit's defects would be found, .*% were"):
        extend_model(fitted, liars, ["liar"] * len(liars), settings)
    good = Audit(alarm_rate=0.01, found_rate=0.9, images=100, defects=50)
    _refuse_worse(good, Audit(0.02, 0.89, 100, 50), bound=0.02)
    with pytest.raises(FlawlineError, match=r"4.0% of the audit's good parts would be alarmed, 1.0% were"):
        _refuse_worse(good, Audit(0.04, 0.9, 100, 50), bound=0.02)
    with pytest.raises(FlawlineError, match=r"80.0% of the audit's defects would be found, 90.0% were"):
        _refuse_worse(good, Audit(0.01, 0.8, 100, 50), bound=0.02)


def test_recalibration_of_an_unchanged_model_changes_nothing(fitted: CoresetDetector) -> None:
    again = recalibrated(fitted.model, np.ones(60, dtype=bool))
    np.testing.assert_array_equal(again.standardised, fitted.model.standardised)
    np.testing.assert_array_equal(again.gates, fitted.model.gates)
    assert (again.review, again.reject) == (fitted.model.review, fitted.model.reject)
    assert fitted.evidence is not None
    same = [audit(fitted, fitted.evidence, 60) for _ in range(2)]
    assert same[0] == same[1]
    assert same[0].defects == 2 * 3 * len(fitted.evidence.pictures)  # 24 pictures, and at least 120 defects
