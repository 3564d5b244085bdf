"""Sub-looks: a wrong combination of good pieces is found, has a place and a reason, and costs other models nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.settings.scorer import ScorerSettings
from flawline.settings.workers import WorkerSettings
from scorer import artefact
from scorer.detector import CoresetDetector
from scorer.evidence import Evidence
from scorer.explain import reasons
from scorer.extend.extend import extend_model
from scorer.features.graph import Image
from scorer.fit import fit_detector
from scorer.groups import parts_of_group
from scorer.load import load_detector
from scorer.model import Model
from scorer.search.bank import unit_rows
from scorer.sub_looks import find_sub_looks
from scorer.tiles import TiledCoreset
from station import explanation
from tests.scorer.conftest import SIDE

pytestmark = pytest.mark.system

COLOURS = ((230, 140, 30), (60, 170, 60), (150, 40, 170))
ICON = slice(40, 56), slice(22, 42)
"""Rows and columns of the icon in an image."""


def juice(flavour: int, seed: int, icon: int | None = None) -> Image:
    """A bottle of the flavour's colour; on the white label below is the icon of flavour `icon`, by default its own."""
    rng = np.random.default_rng([seed, flavour])
    icon = flavour if icon is None else icon
    image = np.full((SIDE, SIDE, 3), 235.0)
    image[:26] = np.asarray(COLOURS[flavour]) * (1 - 0.2 * np.linspace(0, 1, 26)[:, None, None])
    centre = int(rng.integers(31, 34)), int(rng.integers(47, 50))
    colour = COLOURS[icon]
    if icon == 0:
        cv2.circle(image, centre, 7, colour, -1)
    elif icon == 1:
        cv2.rectangle(image, (centre[0] - 7, centre[1] - 5), (centre[0] + 7, centre[1] + 5), colour, -1)
    else:
        cv2.drawMarker(image, centre, colour, cv2.MARKER_TILTED_CROSS, 13, 4)
    return np.clip(image * rng.uniform(0.95, 1.05) + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


GOOD = [juice(flavour, seed) for seed in range(20) for flavour in range(3)]
FRESH = [juice(flavour, 100 + seed) for seed in range(8) for flavour in range(3)]
WRONG = [juice(flavour, 200 + seed, (flavour + 1 + seed % 2) % 3) for seed in range(4) for flavour in range(3)]


@pytest.fixture(scope="module")
def one_group(settings: ScorerSettings) -> ScorerSettings:
    return settings.model_copy(update={"groups": 1})


@pytest.fixture(scope="module")
def bottles(one_group: ScorerSettings) -> CoresetDetector:
    return fit_detector(GOOD, one_group)


def without_looks(model: Model) -> Model:
    return dataclasses.replace(model, sub_looks=[None] * len(model.banks))


def aligned(detector: CoresetDetector, images: list[Image]) -> np.ndarray:
    return np.asarray([scores.aligned for scores in detector.score(images)])


def test_wrong_combination_scores_above_good_parts_only_where_its_sub_look_is_asked(bottles: CoresetDetector) -> None:
    plain = bottles.replaced(without_looks(bottles.model), None, {})
    good, wrong = aligned(bottles, FRESH), aligned(bottles, WRONG)
    assert bottles.model.look_counts == [3]
    assert np.median(wrong) > good.max() + 0.3
    assert np.median(wrong - aligned(plain, WRONG)) > 0.3
    # What is good stays as it is, apart from few.
    assert (np.abs(good - aligned(plain, FRESH)) > 1e-9).mean() < 0.2


def test_heat_map_shows_where_the_combination_is_wrong(bottles: CoresetDetector) -> None:
    inside = 0
    for scores in bottles.score(WRONG):
        row, column = np.divmod(int(scores.heatmap.argmax()), scores.heatmap.shape[1])
        y, x = (row + 0.5) / scores.heatmap.shape[0] * SIDE, (column + 0.5) / scores.heatmap.shape[1] * SIDE
        inside += ICON[0].start - 8 <= y < ICON[0].stop + 8 and ICON[1].start - 8 <= x < ICON[1].stop + 8
    assert inside >= 10


def test_ignoring_the_wrong_piece_leaves_a_good_part(bottles: CoresetDetector) -> None:
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[30:] = False
    seen, ignored = bottles.score(WRONG), bottles.score(WRONG, [mask] * len(WRONG))
    assert np.median([s.aligned for s in ignored]) < np.median([s.aligned for s in seen]) - 0.3
    assert all(s.heatmap[4:].max() == s.heatmap.min() for s in ignored)


def test_saved_model_scores_the_same_and_older_releases_refuse_it(bottles: CoresetDetector, tmp_path: Path) -> None:
    version = bottles.save(tmp_path / "model")
    loaded = load_detector(tmp_path / "model", runtime="openvino", threads=2, always_check=True)
    np.testing.assert_array_equal(aligned(loaded, WRONG), aligned(bottles, WRONG))
    assert loaded.version == version
    manifest = json.loads((tmp_path / "model/manifest.json").read_text())
    assert manifest["format"] == artefact.FORMAT == 4


def test_model_without_sub_looks_is_written_as_before(model_path: Path) -> None:
    manifest = json.loads((model_path / "manifest.json").read_text())
    assert manifest["format"] == 3
    assert "sub_looks" not in manifest
    assert artefact.load(model_path).model.look_counts == [0, 0]


def test_batches_agree_with_single_images(bottles: CoresetDetector, tmp_path: Path) -> None:
    bottles.save(tmp_path / "model")
    in_torch = load_detector(tmp_path / "model", runtime="torch", device="cpu", threads=2)
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[:, :20] = False
    images, masks = WRONG + FRESH[:6], [mask if i % 5 == 0 else None for i in range(len(WRONG) + 6)]
    for single, batched in zip(bottles.score(images, masks), in_torch.score(images, masks), strict=True):
        assert single.decision == batched.decision
        assert single.aligned == pytest.approx(batched.aligned, abs=1e-3)
        np.testing.assert_allclose(single.heatmap, batched.heatmap, atol=1e-2)


def test_reason_names_the_sub_look_and_one_of_its_good_images(bottles: CoresetDetector) -> None:
    place = (32 / SIDE, 48 / SIDE)
    (wrong,) = reasons(bottles, WRONG[0], [place])
    assert wrong.sub_look is not None
    assert (wrong.sub_look.count, wrong.sub_look.images) == (3, 20)
    assert wrong.nearest.image % 3 == 0  # images come in the order of their flavours, and this one's juice is the first
    (good,) = reasons(bottles, FRESH[0], [place])
    assert good.sub_look is None


def test_false_alarm_of_a_sub_look_joins_its_bank(bottles: CoresetDetector, one_group: ScorerSettings) -> None:
    # The images are so much alike that a wrong icon counts as another product: not here.
    wide = bottles.replaced(dataclasses.replace(bottles.model, gates=3 * bottles.model.gates), bottles.evidence, {})
    new = [juice(0, 300 + seed, 1) for seed in range(6)]
    before = aligned(wide, new)
    extended = extend_model(wide, new, [f"new {i}" for i in range(6)], one_group, bound=1.0).detector
    again = [juice(0, 400 + seed, 1) for seed in range(6)]
    assert np.median(aligned(extended, again)) < np.median(before) - 0.3
    evidence, looks = extended.evidence, extended.model.sub_looks[0]
    assert isinstance(evidence, Evidence) and looks is not None
    rows = [[len(bank) for bank in of_look] for of_look in looks.banks]
    assert rows == [[len(sources) for sources in of_look] for of_look in evidence.look_sources[0]]
    (reason,) = reasons(extended, again[0], [(32 / SIDE, 48 / SIDE)])
    assert reason.nearest.distance < 1


def test_tiles_have_sub_looks_too(one_group: ScorerSettings) -> None:
    wide = [np.concatenate([juice(f, s), juice(f, s + 50)], axis=1) for s in range(10) for f in range(3)]
    detector = fit_detector(wide, one_group.model_copy(update={"tile_px": SIDE, "tile_overlap": 0.1}))
    assert isinstance(detector, TiledCoreset)
    assert detector.model.look_counts[0] >= 2
    wrong = np.concatenate([juice(0, 500), juice(0, 501, 1)], axis=1)
    good = np.concatenate([juice(0, 500), juice(0, 501)], axis=1)
    (bad, fine) = detector.score([wrong, good])
    assert bad.aligned > fine.aligned + 0.3
    column = int(bad.heatmap.argmax()) % bad.heatmap.shape[1]
    assert column >= bad.heatmap.shape[1] // 2
    (reason,) = reasons(detector, wrong, [(0.75, 0.75)])
    assert reason.sub_look is not None


def test_images_that_vary_evenly_have_no_sub_looks_and_those_of_three_kinds_have_three() -> None:
    rng = np.random.default_rng(0)
    even = unit_rows(rng.normal(size=24) * 3 + rng.normal(size=(90, 24)))
    kinds = unit_rows(np.repeat(rng.normal(size=(3, 24)), 30, axis=0) + 0.3 * rng.normal(size=(90, 24)))
    assert parts_of_group(even, 0) is None
    both = np.concatenate([even, kinds])
    centres = find_sub_looks(both, [np.arange(90), np.arange(90, 180)], 0)
    assert {group: len(of) for group, of in centres.items()} == {1: 3}


def test_explanation_says_in_words_which_sub_look_lacks_the_place(bottles: CoresetDetector, tmp_path: Path) -> None:
    bottles.save(tmp_path / "model")
    cv2.imwrite(str(tmp_path / "wrong.png"), WRONG[0][:, :, ::-1])
    explained = explanation.explain_image(tmp_path / "model", tmp_path / "wrong.png", WorkerSettings())
    assert "none of the 20 good images that look like this one as a whole" in "".join(explanation.text_lines(explained))
    looks = [region["sub_look"] for region in explanation.as_dict(explained)["regions"]]
    assert any(look is not None and (look["count"], look["images"]) == (3, 20) for look in looks)
