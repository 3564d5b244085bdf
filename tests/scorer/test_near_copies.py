"""Flips, turns and shots of one part are one image to a calibration."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline import imaging
from flawline.messages import Codec
from flawline.settings.scorer import ScorerSettings
from producers.simulation import LineSettings, SimulatedLine
from scorer import artefact, commands
from scorer import near_copies as module
from scorer.extend.extend import recalibrated
from scorer.near_copies import detail, near_copies

PARTS = 12


def parts(product: str, count: int = PARTS) -> list[np.ndarray]:
    line = SimulatedLine(LineSettings(seed=3, height=192, width=192, products=(product,)))
    return [part.image for part in line.good_parts(count)]


def copies_of(image: np.ndarray) -> list[np.ndarray]:
    """Return a flipped, a turned and a brighter copy through the codec of a camera, and a shot a moment later."""
    noise = np.random.default_rng(0).normal(0, 2, image.shape)
    later = np.clip(image + noise, 0, 255).astype(np.uint8)
    brighter = np.clip(image * 1.05, 0, 255).astype(np.uint8)
    shots = [np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(np.rot90(image)), brighter, later]
    return [imaging.decode(imaging.encode(shot, Codec.JPEG), Codec.JPEG) for shot in shots]


@pytest.mark.parametrize("product", ["brick", "gravel", "fabric", "coffee", "disc"])
def test_mirrored_turned_and_repeated_shots_are_copies_and_other_parts_are_not(product: str) -> None:
    originals = parts(product)
    images = originals + [copy for image in originals[:4] for copy in copies_of(image)]
    groups = np.zeros(len(images), dtype=np.int64)
    numbers = near_copies(np.stack([detail(image) for image in images]), groups, np.arange(len(images)))
    assert numbers.tolist() == [*range(PARTS), *np.repeat(range(4), 4).tolist()]


def test_copies_are_the_same_ones_whatever_is_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    details = rng.integers(-127, 128, (30, 64, 64), dtype=np.int8)
    details[20], details[29] = details[3][:, ::-1], np.rot90(details[7])
    groups = np.zeros(30, dtype=np.int64)
    expected = [3 if i == 20 else 7 if i == 29 else i for i in range(30)]
    for block, others in ((512, 4096), (7, 11), (1, 1)):
        monkeypatch.setattr(module, "_BLOCK", block)
        monkeypatch.setattr(module, "_OTHERS", others)
        assert near_copies(details, groups, np.arange(30)).tolist() == expected


def test_copies_are_looked_for_inside_a_group_and_a_scene_that_never_changes_is_none() -> None:
    image = parts("brick", 1)[0]
    details = np.stack([detail(image)] * 6)
    assert near_copies(details, np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 3, 5])).tolist() == [
        0,
        1,
        2,
        3,
        3,
        5,
    ]
    assert detail(np.full((32, 32, 3), 7, np.uint8)).tolist() == np.zeros((64, 64)).tolist()


@pytest.mark.system
def test_fit_counts_copies_once_keeps_them_in_the_model_and_says_so(tmp_path: Path, settings: ScorerSettings) -> None:
    good = tmp_path / "data"
    good.mkdir()
    for i, image in enumerate(parts("brick", 23)):
        flipped, _, brighter, later = copies_of(image)
        for k, copy in enumerate([image, flipped, brighter, later]):
            cv2.imwrite(str(good / f"{i:02}-{k}.png"), copy[:, :, ::-1])
    report = commands.fit(good, tmp_path / "model", settings)
    assert (report["good_images"], report["distinct_images"]) == (92, 23)
    assert {point["images"] for point in report["operating_points"]} == {23}
    assert report["finest_p_value"] == pytest.approx(1 / 24)
    model = artefact.load(tmp_path / "model").model
    assert model.copies is not None and np.isfinite(model.standardised).sum() == 23
    np.testing.assert_array_equal(np.isfinite(model.standardised), model.copies == np.arange(92))
    again = recalibrated(model, np.isfinite(model.standardised))
    assert again.review.value == pytest.approx(model.review.value, rel=1e-9)
