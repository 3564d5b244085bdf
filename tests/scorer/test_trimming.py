"""Defects among the training images are left out, good ones stay."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.settings.scorer import ScorerSettings
from scorer import commands, trimming
from scorer.features.store import FeatureStore
from tests.scorer.conftest import draw

pytestmark = pytest.mark.system


@given(st.integers(0, 10_000), st.sampled_from(["normal", "skewed"]))
def test_clean_scores_lose_next_to_nothing(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(3), 150)
    scores = rng.normal(size=450) if kind == "normal" else np.log(rng.gamma(40, size=450)) * 8
    assert trimming.suspects(scores, groups).mean() <= 0.05


def test_one_image_in_ten_that_is_far_above_goes_from_every_group() -> None:
    rng = np.random.default_rng(0)
    groups = np.tile(np.arange(3), 100)
    scores = rng.normal(size=300)
    bad = rng.choice(300, 30, replace=False)
    scores[bad] += 6
    out = trimming.suspects(scores, groups)
    assert out[bad].all()
    assert out.mean() <= trimming._MOST
    sizes = [out[groups == k].mean() for k in range(3)]
    assert max(sizes) - min(sizes) < 0.1


def test_a_few_strange_images_among_few_are_no_contamination() -> None:
    scores = np.random.default_rng(0).normal(size=48)
    scores[:5] += 4
    assert not trimming.suspects(scores, np.repeat([0, 1], 24)).any()


def test_features_of_some_images_are_renumbered() -> None:
    whole = FeatureStore([np.arange(24, dtype=np.float16).reshape(4, 3, 2)], [np.arange(4.0)[:, None]], [1])
    part = trimming.only(whole, np.asarray([3, 1]))
    assert len(part) == 2
    assert part.patches[0].shape == (2, 3, 2)
    np.testing.assert_array_equal(part.pool(0, np.asarray([1])), whole.pool(0, np.asarray([1])))
    np.testing.assert_array_equal(part.pool(0, np.asarray([0])), whole.pool(0, np.asarray([3])))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 48 good images of each of two products and 6 with a blot each, all called good."""
    root = tmp_path_factory.mktemp("spoiled")
    for product in ("cloth", "board"):
        (root / product / "train/good").mkdir(parents=True)
        for i in range(54):
            image = draw(product, i, defect=i >= 48)
            name = f"{'blot' if i >= 48 else 'good'}-{i:02}.png"
            cv2.imwrite(str(root / product / "train/good" / name), image[:, :, ::-1])
    return root


def test_blots_among_the_good_images_are_named_and_left_out(
    spoiled: Path, settings: ScorerSettings, tmp_path: Path
) -> None:
    report = commands.fit(spoiled, tmp_path / "model", settings.model_copy(update={"trim": True}), report=False)
    blots = {str(path) for path in spoiled.glob("*/train/good/blot-*")}
    assert len(blots & set(report["left_out"])) >= 10
    assert len(report["left_out"]) <= 0.25 * 108 + 2
    assert report["good_images"] == 108 - len(report["left_out"])
    assert report["suspects"] == []
    whole = commands.fit(spoiled, tmp_path / "whole", settings, report=False)
    assert whole["left_out"] == []
    assert whole["suspects"] == report["left_out"]
    assert whole["good_images"] == 108
