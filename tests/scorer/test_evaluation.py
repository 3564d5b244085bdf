"""Accuracy figures against their definitions, and the commands from folder to report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from flawline import imaging
from flawline.errors import FlawlineError, UsageError
from flawline.messages import Codec
from flawline.settings.scorer import ScorerSettings
from scorer import commands
from scorer.evaluate.accuracy import PixelHistogram
from scorer.evaluate.evaluation import Row, summarise, write_scores
from scorer.features import dataset
from scorer.load import load_detector
from tests.scorer.conftest import draw

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder of two products with 24 training and 12 test images each."""
    root = tmp_path_factory.mktemp("data")
    for product in ("cloth", "board"):
        for kind, first, count in (("train/good", 0, 24), ("test/good", 100, 6), ("test/blot", 200, 6)):
            (root / product / kind).mkdir(parents=True)
            for i in range(count):
                image = draw(product, first + i, defect=kind.endswith("blot"))
                cv2.imwrite(str(root / product / kind / f"{i:03}.png"), image[:, :, ::-1])
                if kind.endswith("blot"):
                    (root / product / "ground_truth/blot").mkdir(parents=True, exist_ok=True)
                    mask = (np.abs(image.astype(int) - (250, 60, 200)).max(axis=2) < 5).astype(np.uint8) * 255
                    cv2.imwrite(str(root / product / "ground_truth/blot" / f"{i:03}_mask.png"), mask)
    return root


def test_report_has_the_contracts_keys_and_evaluating_again_gives_the_same(
    data: Path, settings: ScorerSettings, tmp_path: Path
) -> None:
    report = commands.fit(data, tmp_path / "model", settings)
    assert set(report["pooled"]) == set(report["macro"]) == {"image_auroc", "image_ap", "pixel_auroc", "aupro"}
    assert set(report["per_product"]) == {"cloth", "board"}
    assert set(report["alarm_rate"]) == {"target", "mean", "worst_product"}
    assert report["pooled"]["image_auroc"] == 1.0
    assert report["pooled"]["pixel_auroc"] > 0.95
    assert report["recall_at_alarm_rate"] == 1.0
    assert report["images_per_second"] > 0
    assert report["fit_seconds"] > 0
    assert report["model_bytes"] == sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    json.dumps(report, allow_nan=False)
    again = commands.evaluate(tmp_path / "model", data, scores=tmp_path / "scores.csv")
    changing = {"images_per_second"}
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in report.items() if k not in changing
    }
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert set(rows[0]) == {"path", "product", "label", "group", "raw", "aligned", "p_value", "decision"}


def test_model_fitted_through_the_cameras_codec_does_not_take_it_for_a_defect(
    data: Path, settings: ScorerSettings, tmp_path: Path
) -> None:
    coarse = dataset.Delivery(Codec.JPEG, 30)
    lossless = commands.fit(data, tmp_path / "lossless", settings, report=False)
    through = commands.fit(data, tmp_path / "through", settings, delivery=coarse)
    assert through["version"] != lossless["version"]
    good = [sample for sample in dataset.test_samples(data) if not sample.is_defect]
    delivered = list(dataset.LazyImages([sample.path for sample in good], coarse))
    alarms = {
        name: sum(scores.decision != "accept" for scores in load_detector(tmp_path / name).score(delivered))
        for name in ("lossless", "through")
    }
    assert alarms["through"] <= 2 < alarms["lossless"]
    # evaluate reads the codec from the model and takes the test images through it
    assert through["alarm_rate"]["mean"] == alarms["through"] / len(good)
    assert commands.evaluate(tmp_path / "through", data)["pooled"] == through["pooled"]


def test_jpeg_files_are_not_encoded_again(tmp_path: Path) -> None:
    image = draw("cloth", 1)
    (tmp_path / "a.jpg").write_bytes(imaging.encode(image, Codec.JPEG, quality=60))
    (tmp_path / "a.png").write_bytes(imaging.encode(image, Codec.PNG))
    plain = dataset.LazyImages([tmp_path / "a.jpg", tmp_path / "a.png"])
    coarse = dataset.LazyImages(plain.paths, dataset.Delivery(Codec.JPEG, 30))
    np.testing.assert_array_equal(coarse[0], plain[0])
    assert (coarse[1] != plain[1]).any()
    assert coarse.identities() != plain.identities()
    np.testing.assert_array_equal(dataset.LazyImages(plain.paths, dataset.Delivery(Codec.PNG))[1], plain[1])


def test_product_folder_names_do_not_reach_the_model(data: Path, settings: ScorerSettings, tmp_path: Path) -> None:
    mixed = tmp_path / "one" / "train" / "good"
    mixed.mkdir(parents=True)
    for sample in dataset.train_samples(data):
        # Product first in the name keeps the order of the images, which seeds the folds.
        (mixed / f"{sample.product}-{sample.path.name}").symlink_to(sample.path)
    whole = commands.fit(data, tmp_path / "a", settings, report=False)
    assert commands.fit(tmp_path / "one", tmp_path / "b", settings, report=False)["version"] == whole["version"]


def test_unreadable_image_among_good_ones_is_named_counted_and_skipped(
    data: Path, settings: ScorerSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = tmp_path / "train" / "good"
    good.mkdir(parents=True)
    for sample in dataset.train_samples(data)[:24]:
        (good / sample.path.name).symlink_to(sample.path)
    whole = {
        Codec.PNG: imaging.encode(draw("cloth", 1), Codec.PNG),
        Codec.JPEG: imaging.encode(draw("cloth", 1), Codec.JPEG),
    }
    contents = {
        "a-junk.png": b"\x89PNG\r\n\x1a\n junk",
        "b-cut.png": whole[Codec.PNG][: len(whole[Codec.PNG]) // 2],
        "c-cut.jpg": whole[Codec.JPEG][: len(whole[Codec.JPEG]) // 2],
        "d-empty.tif": b"",
    }
    for name, content in contents.items():
        (good / name).write_bytes(content)
    report = commands.fit(tmp_path, tmp_path / "model", settings)
    assert report["skipped_images"] == [str(good / name) for name in contents]
    assert report["good_images"] == 24
    assert all(caplog.text.count(str(good / name)) == 1 for name in contents)
    assert "pooled" not in report


def test_folders_that_hold_nothing_usable_are_one_line_and_leave_nothing(
    tmp_path: Path, settings: ScorerSettings
) -> None:
    out = tmp_path / "model"
    with pytest.raises(UsageError, match="no such folder"):
        commands.fit(tmp_path / "none", out, settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no images"):
        commands.fit(tmp_path / "empty", out, settings)
    (tmp_path / "data" / "gear" / "test" / "good").mkdir(parents=True)
    with pytest.raises(UsageError, match="gear: product without good images"):
        commands.fit(tmp_path / "data", out, settings)
    good = tmp_path / "bad" / "train" / "good"
    good.mkdir(parents=True)
    for i in range(25):
        (good / f"{i}.png").write_bytes(b"junk")
    with pytest.raises(FlawlineError, match="none of the images can be read"):
        commands.fit(tmp_path / "bad", out, settings)
    with pytest.raises(UsageError, match="holds no test images"):
        commands.evaluate(out, tmp_path / "bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "data", "empty"]


def test_grey_transparent_deep_and_cmyk_images_are_read(data: Path, settings: ScorerSettings, tmp_path: Path) -> None:
    from PIL import Image

    good = tmp_path / "train" / "good"
    good.mkdir(parents=True)
    for sample in dataset.train_samples(data)[:20]:
        (good / sample.path.name).symlink_to(sample.path)
    image = draw("board", 0)
    cv2.imwrite(str(good / "grey.png"), image[:, :, 0])
    cv2.imwrite(str(good / "alpha.png"), np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]))
    cv2.imwrite(str(good / "deep.tiff"), image.astype(np.uint16) << 8)
    Image.fromarray(image).convert("CMYK").save(good / "cmyk.jpg")
    report = commands.fit(tmp_path, tmp_path / "model", settings)
    assert (report["good_images"], report["skipped_images"]) == (24, [])


def test_lines_of_one_pixel_and_of_twenty_thousand_are_fitted_and_scored(
    data: Path, settings: ScorerSettings, tmp_path: Path
) -> None:
    good = tmp_path / "train" / "good"
    good.mkdir(parents=True)
    for sample in dataset.train_samples(data)[:24]:
        (good / sample.path.name).symlink_to(sample.path)
    for folder in (good, tmp_path / "test" / "good"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, shape in (("dot", (1, 1)), ("row", (1, 20_000)), ("tall", (20_000, 3))):
            cv2.imwrite(str(folder / f"z-{name}.png"), np.full(shape, 128, np.uint8))
    report = commands.fit(tmp_path, tmp_path / "model", settings)
    assert (report["good_images"], report["images"], report["skipped_images"]) == (27, 3, [])
    json.dumps(report, allow_nan=False)


def test_product_with_one_image_has_no_ranking_and_spoils_no_mean() -> None:
    rows = [row("a", "good", 0.0), row("a", "hole", 1.0), row("b", "good", 0.5)]
    report = summarise(rows, {name: PixelHistogram.empty(0, 1) for name in "ab"}, 0.01)
    assert report["per_product"]["b"]["image_auroc"] is None
    assert report["per_product"]["b"]["recall_at_alarm_rate"] is None
    assert report["macro"]["image_auroc"] == 1.0
    assert report["pooled"]["image_auroc"] == 1.0
    json.dumps(report, allow_nan=False)


def test_pixel_figures_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((4, 64, 64), dtype=bool)
    masks[0, 5:15, 5:15] = masks[1, 40:44, 40:60] = masks[1, 0:3, 0:3] = True
    maps = (rng.random((4, 64, 64)) + 0.6 * masks).astype(np.float32)
    histogram = PixelHistogram.empty(float(maps.min()), float(maps.max()))
    for heatmap, mask in zip(maps, masks, strict=True):
        histogram.add(heatmap, mask)
    accuracy = histogram.accuracy()
    assert accuracy["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-3)
    cuts = np.quantile(maps[~masks], np.linspace(1, 0.7, 400))
    regions = [maps[i][labels == k] for i, (labels, n) in enumerate(map(ndimage.label, masks)) for k in range(1, n + 1)]
    overlap = [np.mean([(region >= cut).mean() for region in regions]) for cut in cuts]
    assert accuracy["aupro"] == pytest.approx(np.trapezoid(overlap, np.linspace(0, 0.3, 400)) / 0.3, abs=5e-3)


def test_perfect_map_gives_one_and_figures_without_meaning_are_none() -> None:
    histogram = PixelHistogram.empty(0, 1)
    mask = np.zeros((8, 8), dtype=bool)
    histogram.add(mask.astype(np.float32), mask)
    assert histogram.accuracy() == {"pixel_auroc": None, "aupro": None}
    mask[2:4, 2:4] = True
    histogram.add(mask.astype(np.float32), mask)
    assert histogram.accuracy() == {"pixel_auroc": pytest.approx(1, abs=1e-6), "aupro": pytest.approx(1, abs=1e-6)}


def row(product: str, label: str, aligned: float, decision: str = "accept") -> Row:
    return Row("x.png", product, label, 0, 1.0, aligned, 0.5, decision)


def test_pooled_compares_across_products_where_macro_does_not() -> None:
    rows = [
        row("a", "good", 0.0),
        row("a", "hole", 1.0),
        row("b", "good", 2.0, "review"),
        row("b", "hole", 3.0, "reject"),
    ]
    report = summarise(rows, {"a": PixelHistogram.empty(0, 1), "b": PixelHistogram.empty(0, 1)}, 0.01)
    assert report["macro"]["image_auroc"] == 1.0
    assert report["pooled"]["image_auroc"] == 0.75
    assert report["alarm_rate"] == {"target": 0.01, "mean": 0.5, "worst_product": 1.0}
    assert report["recall_at_alarm_rate"] == 0.5


def test_scores_file_is_whole_or_absent(tmp_path: Path) -> None:
    write_scores([row("a", "good", 0.25)], tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())[0]["aligned"] == 0.25
    with pytest.raises(FlawlineError, match="cannot be written"):
        write_scores([row("a", "good", 0.25)], tmp_path / "none" / "scores.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_masks_keep_small_defects_when_they_shrink(tmp_path: Path) -> None:
    mask = np.zeros((512, 512), np.uint8)
    mask[100, 100] = 255
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    sample = dataset.Sample(tmp_path / "a.png", "gear", "pore", tmp_path / "m.png")
    small = dataset.read_mask(sample, (128, 128))
    assert small is not None
    assert small.sum() == 1
    assert dataset.read_mask(dataset.Sample(tmp_path / "a.png", "gear", "pore"), (8, 8)) is None
