"""Images that are not square: squeezed, with padding, or cut into squares."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.errors import FlawlineError
from flawline.messages import Decision
from flawline.settings.scorer import ScorerSettings
from scorer import artefact, commands
from scorer.batches.runner import BatchRunner
from scorer.detector import CoresetDetector
from scorer.explain import reasons
from scorer.extend.extend import extend_model
from scorer.features.dataset import LazyImages
from scorer.features.padding import Padding
from scorer.features.torch_engine import TorchBackbone
from scorer.fit import fit_detector
from scorer.load import load_detector
from scorer.regions.regions import extract
from scorer.scores import Scores
from scorer.search.torch_index import StackedBanks
from scorer.shapes import Cutting, decided, strip_shapes
from scorer.tiles import cut
from tests.scorer.conftest import SIDE, draw, good_images
from tests.scorer.test_batches import scored_without_values, worst_difference

pytestmark = pytest.mark.system

HEIGHT, WIDTH = 100, 400


def strip(seed: int, crack_at: int | None = None) -> np.ndarray:
    """Return a strip of brushed metal; a crack is a dark line of two pixels across a part of it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    wave = 120 + 15 * np.sin(x / 11 + rng.uniform(0, 6)) + 8 * np.sin(y / 13 + rng.uniform(0, 6))
    grain = cv2.GaussianBlur(rng.normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32), (0, 0), 1.0) * 16
    image = wave + grain
    if crack_at is not None:
        image[30:70, crack_at : crack_at + 2] -= 45
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def wide(seed: int, defect: bool = False) -> np.ndarray:
    """Return a cloth twice as wide as high, a defect in its right half."""
    return np.concatenate([draw("cloth", seed), draw("cloth", seed + 1000, defect)], axis=1)


def tall(seed: int, defect: bool = False) -> np.ndarray:
    """Return a board twice as high as wide, a defect in its lower half."""
    return np.concatenate([draw("board", seed), draw("board", seed + 1000, defect)], axis=0)


@pytest.fixture(scope="module")
def squeezing(settings: ScorerSettings) -> ScorerSettings:
    return settings.model_copy(update={"shape": "squeeze"})


@pytest.fixture(scope="module")
def padding_settings(settings: ScorerSettings) -> ScorerSettings:
    return settings.model_copy(update={"shape": "pad"})


@pytest.fixture(scope="module")
def padded(padding_settings: ScorerSettings) -> CoresetDetector:
    """A model of wide cloths, tall boards and square cloths, each with its proportions."""
    images = [part for i in range(24) for part in (wide(i), tall(i), draw("cloth", i))]
    return fit_detector(images, padding_settings)


@pytest.fixture(scope="module")
def padded_path(padded: CoresetDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("padded") / "model"
    padded.save(path)
    return path


@pytest.fixture(scope="module")
def mixed() -> list[np.ndarray]:
    """Parts of all shapes, every other one with a defect."""
    return [part for i in range(6) for part in (wide(500 + i, bool(i % 2)), tall(500 + i, bool(i % 2)),
                                                draw("cloth", 500 + i, bool(i % 2)))]  # fmt: skip


def alarms(model: CoresetDetector, images: Sequence[np.ndarray]) -> int:
    return sum(scores.decision is not Decision.ACCEPT for scores in model.score(images))


def test_a_crack_that_is_lost_in_a_squeezed_strip_is_found_by_default_and_that_is_said(
    settings: ScorerSettings, squeezing: ScorerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    good = [strip(i) for i in range(30)]
    cracked = [strip(200 + i, 40 + 30 * i) for i in range(10)]
    squeezed = fit_detector(good, squeezing)
    caplog.clear()
    model = fit_detector(good, settings)
    assert model.model.shape == "tile"
    assert "30 of 30 good images are strips, such as 400x100 px" in caplog.text
    assert alarms(squeezed, cracked) <= 3
    assert alarms(model, cracked) >= 8
    assert alarms(model, [strip(400 + i) for i in range(20)]) <= 4
    scores = model.score(cracked)
    assert scores[0].heatmap.shape == (8, 32)
    places = [int(score.heatmap.max(axis=0).argmax() * WIDTH / 32) for score in scores]
    assert sum(abs(place - (40 + 30 * i)) < 30 for i, place in enumerate(places)) >= 8
    assert model.field_px(HEIGHT, WIDTH) == HEIGHT
    assert squeezed.field_px(HEIGHT, WIDTH) is None


def test_only_strips_are_cut_and_by_default_only_those_of_a_camera() -> None:
    all_strips, like_ours = Cutting(None, 0.25), Cutting(None, 0.25, (4.0,))
    assert len(cut(100, 400, all_strips)) == len(cut(100, 396, like_ours)) == 5
    assert len(cut(640, 256, all_strips)) == 3
    for height, width, cutting in ((480, 640, all_strips), (640, 256, like_ours), (400, 100, like_ours)):
        (whole,) = cut(height, width, cutting)
        assert (whole.x1, whole.y1) == (width, height)
    (tile, *_) = cut(400, 100, all_strips)
    assert (tile.x1, tile.y1) == (100, 100)
    crops = [(100, round(230 * 1.013**i)) for i in range(40)]
    assert strip_shapes([*crops, (480, 640), (256, 256)]) == ()
    assert strip_shapes([(256, 640 + i % 8) for i in range(20)] + [(640, 256)] * 9) == (pytest.approx(2.513, abs=0.01),)
    assert strip_shapes([(640, 256)] * 10 + [(100, 400)] * 12 + [(100, 800)]) == (0.4, 4.0)


def test_the_default_squeezes_where_strips_are_few_or_none(settings: ScorerSettings, tmp_path: Path) -> None:
    def shape(images: Sequence[np.ndarray], **changes: object) -> str:
        return decided(settings.model_copy(update=changes), images)[0].shape

    square, strips = [draw("cloth", i) for i in range(20)], [strip(i) for i in range(10)]
    assert shape(square) == shape(square + strips[:9]) == "squeeze"
    assert shape(square + strips) == "tile"
    assert shape([image[:, :, 0] for image in strips]) == "squeeze"  # unreadable, they say nothing
    assert shape(strips, shape="pad") == "pad"
    assert shape(square, tile_px=64) == "tile"
    for i, image in enumerate(strips):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    (tmp_path / "text.png").write_text("no image")
    files = LazyImages(sorted(tmp_path.iterdir()))
    assert files.sizes() == [(HEIGHT, WIDTH)] * 10
    assert shape(files) == "tile"


def test_tiles_of_a_size_and_another_shape_are_one_line() -> None:
    with pytest.raises(ValueError, match='tile_px cuts images into tiles, and shape = "pad" does not'):
        ScorerSettings(tile_px=512, shape="pad")
    assert ScorerSettings(tile_px=512).shape == "auto"


@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([4, 7, 8, 32]))
def test_an_image_keeps_its_proportions_to_half_a_cell_and_fills_one_side(height: int, width: int, cells: int) -> None:
    padding = Padding(cells)
    rows, columns = padding.content(height, width)
    assert max(rows, columns) == cells
    assert min(rows, columns) >= 1
    exact = cells * min(height, width) / max(height, width)
    assert abs(min(rows, columns) - exact) <= 0.5 or min(rows, columns) == 1
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    square = padding.resized(image, cells * 8)
    assert square.shape == (cells * 8, cells * 8, 3)
    maps = [np.arange(side * side, dtype=np.float32).reshape(side, side, 1) for side in (cells * 2, cells)]
    vector = np.ones((1, 1, 5), np.float32)
    fine, coarse, same = padding.cropped([*maps, vector], height, width)
    assert fine.shape == (2 * rows, 2 * columns, 1)
    assert coarse.shape == (rows, columns, 1)
    assert same is vector
    assert padding.whole(fine.shape[0] * fine.shape[1], (rows, columns)) == 4 * cells**2


def test_layers_whose_maps_share_no_cells_are_one_line() -> None:
    with pytest.raises(FlawlineError, match=r'"pad" needs maps .* sides of 8, 9 patches: choose other sizes'):
        Padding.of([8, 9])


def test_maps_regions_and_reasons_of_padded_images_are_in_the_pixels_of_the_image(padded: CoresetDetector) -> None:
    assert padded.model.shape == "pad"
    for part, shape in ((wide, (4, 8)), (tall, (8, 4))):
        good, image = part(700), part(700, defect=True)
        clean, rejected = padded.score([good, image])
        assert clean.decision is Decision.ACCEPT
        assert rejected.decision is not Decision.ACCEPT
        assert clean.heatmap.shape == rejected.heatmap.shape == shape
        assert rejected.patches is not None and rejected.residuals is not None
        assert rejected.patches.shape[:2] == rejected.residuals.shape[:2] == shape
        rows, columns = np.nonzero(np.abs(image.astype(int) - good).max(axis=2) > 60)
        centre = float(columns.mean()), float(rows.mean())
        regions = extract(image, rejected.heatmap, rejected.patches, rejected.residuals, *padded.heatmap_range,
                          closer=padded.close_ups, field_px=padded.field_px(*image.shape[:2]))  # fmt: skip
        x, y, width, height = regions[0].box
        assert x - 8 < centre[0] < x + width + 8
        assert y - 8 < centre[1] < y + height + 8
        assert x + width <= image.shape[1] and y + height <= image.shape[0]
        place = centre[0] / image.shape[1], centre[1] / image.shape[0]
        (reason,) = reasons(padded, image, [place])
        left, top, across, down = reason.box
        assert left <= place[0] <= left + across and top <= place[1] <= top + down
        assert reason.stride_px in (8, 16)
        assert across / down == pytest.approx(shape[0] / shape[1])
        for good_patch in (reason.nearest, reason.shown):
            left, top, across, down = good_patch.box
            assert 0 <= left < 1 and 0 <= top < 1 and left + across <= 1 + 1e-9 and top + down <= 1 + 1e-9


def test_no_patch_of_a_padding_is_part_of_a_bank(padded: CoresetDetector) -> None:
    evidence, contents = padded.evidence, padded.model.contents
    assert evidence is not None and contents is not None
    assert sorted({tuple(content) for content in contents.tolist()}) == [(2, 4), (4, 2), (4, 4)]
    for layers in evidence.sources:
        for grid, rows in zip(padded.backbone.grids, layers, strict=True):
            assert (rows[:, 0] >= 0).all()
            patches = (contents[rows[:, 0]] * (grid // 4)).prod(axis=1)
            assert (rows[:, 1] < patches).all()


def test_what_lies_in_the_padding_changes_no_score(padded: CoresetDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror continues the image there; with black instead, only what the network sees beyond its border changes."""
    images = [wide(800), wide(801, defect=True)]
    before = padded.score(images)
    resized = Padding.resized

    def blackened(self: Padding, image: np.ndarray, size: int) -> np.ndarray:
        square = resized(self, image, size)
        rows, columns = (count * size // self.cells for count in self.content(*image.shape[:2]))
        square[rows:], square[:, columns:] = 0, 0
        return square

    monkeypatch.setattr(Padding, "resized", blackened)
    for left, right in zip(before, padded.score(images), strict=True):
        assert left.heatmap.shape == right.heatmap.shape
        assert right.heatmap.argmax() == left.heatmap.argmax() or left.decision is Decision.ACCEPT


def test_square_images_score_alike_squeezed_and_padded(
    fitted: CoresetDetector, padding_settings: ScorerSettings
) -> None:
    model = fit_detector(good_images(), padding_settings)
    images = [draw("cloth", 300), draw("board", 301, defect=True)]
    for left, right in zip(fitted.score(images), model.score(images), strict=True):
        np.testing.assert_array_equal(left.heatmap, right.heatmap)
        assert (left.raw, left.decision) == (right.raw, right.decision)
    assert model.embedding_version != fitted.embedding_version


def test_a_mask_on_a_padded_image_hides_a_defect(padded: CoresetDetector) -> None:
    image = wide(900, defect=True)
    mask = np.ones(image.shape[:2], dtype=bool)
    mask[:, SIDE:] = False
    hidden, seen, whole = padded.score([image] * 3, [mask, ~mask, np.ones_like(mask)])
    assert hidden.decision is Decision.ACCEPT
    assert seen.decision is not Decision.ACCEPT
    assert hidden.heatmap[:, 4:].max() == hidden.heatmap.min()
    np.testing.assert_array_equal(whole.heatmap, padded.score([image])[0].heatmap)


def test_a_saved_padded_model_scores_alike_on_all_runtimes_and_in_all_batches(
    padded: CoresetDetector, padded_path: Path, mixed: list[np.ndarray]
) -> None:
    masks = [None] * 15 + [np.pad(np.ones((20, 20), dtype=bool), ((0, image.shape[0] - 20), (0, image.shape[1] - 20)))
                           for image in mixed[15:]]  # fmt: skip
    loaded = load_detector(padded_path)
    expected = padded.score(mixed, masks)
    assert worst_difference(expected, loaded.score(mixed, masks)) == 0
    assert 4 <= sum(scores.decision is not Decision.ACCEPT for scores in expected) <= 14
    in_torch = load_detector(padded_path, runtime="torch", device="cpu", threads=2)
    assert worst_difference(expected, in_torch.score(mixed, masks)) < 2e-3
    single: list[Scores] = [in_torch.score([image], [mask])[0] for image, mask in zip(mixed, masks, strict=True)]
    assert worst_difference(single, in_torch.score(mixed, masks)) < 1e-3
    backbone, model = in_torch.backbone, in_torch.model
    assert isinstance(backbone, TorchBackbone)
    of_layers = [[group[i] for group in model.banks] for i in range(len(model.layers))]
    on_gpu = BatchRunner(model, backbone, [StackedBanks(rows, "cpu", True) for rows in of_layers])
    assert worst_difference(expected, on_gpu.score(mixed, masks)) < 2e-3


def test_padding_has_no_step_that_the_cpu_must_decide(padded_path: Path) -> None:
    batch = scored_without_values(padded_path)
    assert batch.heatmaps.shape == (64, 8, 8)
    assert batch.heatmaps.device.type == "cuda"


def test_a_padded_model_is_extended_with_known_and_new_shapes(
    padded: CoresetDetector, padding_settings: ScorerSettings
) -> None:
    more = [wide(2000 + i) for i in range(6)]
    result = extend_model(padded, more, [f"{i}.png" for i in range(6)], padding_settings, bound=1)
    contents = result.detector.model.contents
    assert contents is not None
    assert len(contents) == len(result.detector.model.groups) == 78
    assert contents[-6:].tolist() == [[2, 4]] * 6
    assert alarms(result.detector, [wide(2100, defect=True)]) == 1


def test_a_model_of_an_older_release_is_squeezed_or_cut_as_it_was(model_path: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(model_path, old)
    manifest = json.loads((old / "manifest.json").read_text())
    assert manifest.pop("shape") == "squeeze"
    assert manifest.pop("top_share") == 0.003
    assert manifest["format"] == 3  # an older release scores it rightly
    manifest.pop("checksum")
    manifest["checksum"] = artefact._digest(manifest)
    (old / "manifest.json").write_text(json.dumps(manifest))
    model = artefact.load(old).model
    assert (model.shape, model.top_share) == ("squeeze", 0.003)
    images = [wide(0), draw("board", 3, defect=True)]
    assert worst_difference(load_detector(old).score(images), load_detector(model_path).score(images)) == 0
    tiles = artefact._tiles([500, 123], {"tile_sources": np.zeros(3, dtype=np.int64)})
    assert tiles is not None
    assert tiles.cutting.tile_px(2000, 3000) == (500, 123)


def test_fit_and_evaluate_tell_the_shape_and_scenarios_follow_it(
    padding_settings: ScorerSettings, tmp_path: Path
) -> None:
    for kind, first, count in (("train/good", 0, 24), ("test/good", 50, 4), ("test/blot", 60, 4)):
        folder = tmp_path / "data" / "cloth" / kind
        folder.mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(folder / f"{i}.png"), wide(first + i, kind == "test/blot"))
    report = commands.fit(tmp_path / "data", tmp_path / "model", padding_settings)
    assert report["shape"] == "pad"
    assert report["pooled"]["image_auroc"] == 1
    again = commands.evaluate(tmp_path / "model", tmp_path / "data")
    assert again["pooled"] == report["pooled"]
    scenarios = commands.compare_scenarios(tmp_path / "model", tmp_path / "data")["scenarios"]
    assert scenarios["unknown-unknown"]["pooled"]["image_auroc"] == 1


def test_the_share_of_patches_that_scores_is_the_profiles_or_the_settings_and_is_kept(
    settings: ScorerSettings, tmp_path: Path
) -> None:
    assert ScorerSettings().active_top_share == 0.003
    assert ScorerSettings(profile="foundation").active_top_share == 0.005
    assert ScorerSettings(profile="foundation", top_share=0.01).active_top_share == 0.01
    wider = fit_detector(good_images(12), settings.model_copy(update={"top_share": 0.1}))
    wider.save(tmp_path / "model")
    image, mask = draw("cloth", 77, defect=True), np.ones((SIDE, SIDE), dtype=bool)
    mask[0, 0] = False  # so that the image as a whole adds nothing
    (scores,) = wider.score([image], [mask])
    level = float(np.log(scores.raw)) - scores.aligned
    highest = np.sort(np.exp(scores.heatmap + level), axis=None)[-6:]  # of 8 x 8 patches
    assert scores.raw == pytest.approx(highest.mean(), rel=1e-3)
    for runtime in ("openvino", "torch"):
        loaded = load_detector(tmp_path / "model", runtime=runtime, device="cpu")
        assert loaded.model.top_share == 0.1
        assert worst_difference([scores], loaded.score([image], [mask])) < 2e-3


def test_copies_of_square_parts_count_once_beside_strips(settings: ScorerSettings) -> None:
    square = [draw("board", i) for i in range(12)]
    detector = fit_detector([strip(i) for i in range(12)] + square + square[:4], settings)
    (rejected,) = detector.score([draw("board", 70, defect=True)])
    assert rejected.patches is not None
    assert rejected.patches.shape[:2] == rejected.heatmap.shape == (8, 8)
    model = detector.model
    assert model.tiles is not None and model.copies is not None
    assert model.copies[-4:].tolist() == [60, 61, 62, 63]  # after five tiles of each strip
    assert (model.copies[:-4] == np.arange(len(model.groups) - 4)).all()
    assert np.isnan(model.standardised[-4:]).all() and np.isfinite(model.standardised[:-4]).all()
