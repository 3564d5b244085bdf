"""Fit, save, load, score: the seam that workers use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flawline.errors import FlawlineError, UsageError
from flawline.messages import Decision
from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer import detector
from scorer.cache import cache_dir
from scorer.detector import CoresetDetector
from scorer.features.conversion import prepare
from scorer.fit import fit_detector
from scorer.gallery import Gallery
from scorer.load import load_detector
from scorer.scores import Scores
from scorer.search.bank import Int8Index
from tests.scorer.conftest import SIDE, draw, good_images
from tests.support.modes import open_to_others

pytestmark = pytest.mark.system

DEFECTS = [draw(product, 900 + i, defect=True) for i in range(10) for product in ("cloth", "board")]


def values(scores: list[Scores]) -> np.ndarray:
    return np.asarray([(result.group, result.raw, result.aligned, result.p_value) for result in scores])


def test_products_are_told_apart_and_defects_are_found(fitted: CoresetDetector) -> None:
    assert fitted.groups == 2
    good, bad = fitted.score(good_images(20, first=500)), fitted.score(DEFECTS)
    assert max(result.aligned for result in good) < min(result.aligned for result in bad)
    assert np.mean([result.decision is not Decision.ACCEPT for result in good]) <= 0.15
    assert all(result.decision in (Decision.REJECT, Decision.UNKNOWN_PRODUCT) for result in bad)
    assert all(result.p_value == pytest.approx(1 / 61) for result in bad)


def test_heat_map_peaks_on_the_defect_and_region_inputs_come_with_alarms_only(fitted: CoresetDetector) -> None:
    clean, spoiled = draw("board", 700), draw("board", 700)
    spoiled[8:18, 30:40] = (250, 60, 200)
    accepted, rejected = fitted.score([clean, spoiled])
    assert accepted.decision is Decision.ACCEPT
    assert accepted.patches is None
    assert accepted.residuals is None
    row, column = np.unravel_index(rejected.heatmap.argmax(), rejected.heatmap.shape)
    assert (abs(row * 8 + 4 - 13), abs(column * 8 + 4 - 35)) <= (8, 8)
    assert rejected.heatmap.max() > fitted.heatmap_range[0] > accepted.heatmap.max() - 0.5
    assert rejected.patches is not None
    assert rejected.residuals is not None
    assert rejected.patches.shape == rejected.residuals.shape == (*rejected.heatmap.shape, 40 + 112)
    norms = np.linalg.norm(rejected.residuals, axis=2)
    assert norms[row, column] > 2 * np.median(norms)


def test_another_light_is_unusual_throughout_and_a_defect_is_not(fitted: CoresetDetector) -> None:
    good = good_images(20, first=500)
    dark = [(image * 0.6).astype(np.uint8) for image in good]
    shares = [
        np.mean([fitted.is_unusual_throughout(scores) for scores in fitted.score(images)])
        for images in (good, DEFECTS, dark)
    ]
    assert shares[0] <= 0.15
    assert shares[1] < 0.5
    assert shares[2] > 0.9


def test_a_model_of_an_earlier_release_finds_no_light_changed(fitted: CoresetDetector) -> None:
    earlier = fitted.replaced(replace(fitted.model, quiet=None), None, {})
    assert not any(earlier.is_unusual_throughout(scores) for scores in earlier.score(DEFECTS))


def test_region_inputs_made_after_other_images_are_those_of_their_own_image(fitted: CoresetDetector) -> None:
    waiting = fitted.score([DEFECTS[0]])[0].region_inputs
    fitted.score(DEFECTS[1:])
    at_once = fitted.score([DEFECTS[0]])[0].region_inputs
    assert waiting is not None and at_once is not None
    for late, early in zip(waiting.grids, at_once.grids, strict=True):
        np.testing.assert_array_equal(late, early)


def test_scores_do_not_depend_on_batch_threads_or_process(
    fitted: CoresetDetector, model_path: Path, tmp_path: Path
) -> None:
    images = good_images(3, first=300) + DEFECTS[:4]
    together = values(fitted.score(images))
    single = load_detector(model_path, threads=1)
    np.testing.assert_array_equal(values([single.score([image])[0] for image in images]), together)
    np.testing.assert_array_equal(values(single.score(images[::-1])), together[::-1])
    np.save(tmp_path / "images.npy", np.stack(images))
    code = (
        "import numpy, sys; from scorer.load import load_detector;"
        "d = load_detector(sys.argv[1], runtime='openvino');"
        "s = d.score(list(numpy.load(sys.argv[2])));"
        "assert not {'torch', 'timm', 'scipy.stats', 'sklearn'} & set(sys.modules), 'scoring must start fast';"
        "assert not sys.modules['openvino_telemetry'], 'nothing is reported to anybody';"
        "print([[x.group, x.raw, x.aligned, x.p_value] for x in s])"
    )
    arguments = [sys.executable, "-c", code, str(model_path), str(tmp_path / "images.npy")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(np.asarray(json.loads(done.stdout)), together, rtol=1e-6)


def test_loaded_model_equals_the_fitted_one(fitted: CoresetDetector, model_path: Path) -> None:
    loaded = load_detector(model_path)
    assert loaded.version == fitted.version
    assert len(loaded.version) == 12
    assert loaded.heatmap_range == fitted.heatmap_range
    assert loaded.model.quiet is not None and fitted.model.quiet is not None
    np.testing.assert_array_equal(loaded.model.quiet, fitted.model.quiet)
    assert loaded.embedding_version == fitted.embedding_version
    assert (loaded.alarm_rate, loaded.groups) == (0.05, 2)
    first, second = loaded.score(DEFECTS[:3]), fitted.score(DEFECTS[:3])
    np.testing.assert_array_equal(values(first), values(second))
    assert first[0].residuals is not None
    assert second[0].residuals is not None
    np.testing.assert_allclose(first[0].residuals, second[0].residuals, atol=1e-5)


def test_same_images_and_seed_give_the_same_version(
    settings: ScorerSettings, fitted: CoresetDetector, model_path: Path, tmp_path: Path
) -> None:
    again = fit_detector(good_images(), settings.model_copy(update={"threads": 1}))
    assert again.save(tmp_path / "again") == fitted.version
    other = fit_detector(good_images(first=1), settings)
    assert other.save(tmp_path / "other") != fitted.version


def test_openvino_and_torch_give_the_same_scores(model_path: Path, fitted: CoresetDetector) -> None:
    images = good_images(5, first=200) + DEFECTS[:5]
    torch_scores = load_detector(model_path, runtime="torch", device="cpu").score(images)
    openvino_scores = fitted.score(images)
    np.testing.assert_allclose([s.raw for s in torch_scores], [s.raw for s in openvino_scores], rtol=1e-2)
    assert [s.decision for s in torch_scores] == [s.decision for s in openvino_scores]


@pytest.mark.parametrize("name", ["model.safetensors", f"backbone-{SIDE}.xml", f"backbone-{SIDE}.bin", "manifest.json"])
def test_flipped_bit_is_refused_in_one_line_that_names_the_file(model_path: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model_path, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(FlawlineError, match="is damaged") as caught:
        load_detector(copy)
    assert str(copy / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_parts_are_named(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawlineError, match=r"holds no manifest\.json"):
        load_detector(tmp_path)
    copy = tmp_path / "model"
    shutil.copytree(model_path, copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(FlawlineError, match=r"model\.safetensors: is missing"):
        load_detector(copy)


def test_model_of_another_format_says_so(model_path: Path, tmp_path: Path) -> None:
    from scorer import artefact

    copy = tmp_path / "model"
    shutil.copytree(model_path, copy)
    content = json.loads((copy / "manifest.json").read_text())
    content = {**content, "format": 99}
    content["checksum"] = artefact._digest({k: v for k, v in content.items() if k != "checksum"})
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(FlawlineError, match="has format 99"):
        load_detector(copy)


def test_saving_replaces_a_model_but_nothing_else(fitted: CoresetDetector, model_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model_path, copy)
    loaded = load_detector(copy)
    loaded.save(copy)
    assert load_detector(copy).version == fitted.version
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(FlawlineError, match="is no model"):
        loaded.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_saved_model_shows_its_images_to_its_group_only(model_path: Path) -> None:
    assert model_path.stat().st_mode & 0o777 == 0o750
    assert open_to_others(model_path) == []


def test_calibration_in_another_precision_is_refused(model_path: Path) -> None:
    with pytest.raises(FlawlineError, match="calibrated in f32"):
        load_detector(model_path, precision="bf16")


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (3, 7), (SIDE, SIDE), (700, 500), (20_000, 2)])
@pytest.mark.parametrize("value", [0, 255])
def test_odd_and_constant_images_get_finite_scores(fitted: CoresetDetector, shape: tuple[int, int], value: int) -> None:
    (scores,) = fitted.score([np.full((*shape, 3), value, dtype=np.uint8)])
    assert np.isfinite([scores.raw, scores.aligned, scores.p_value]).all()
    assert np.isfinite(scores.heatmap).all()
    assert scores.decision is not Decision.ACCEPT


@pytest.mark.parametrize(("shape", "kind"), [((8, 8), "u1"), ((8, 8, 4), "u1"), ((8, 8, 3), "f4"), ((0, 8, 3), "u1")])
def test_array_that_is_no_rgb_image_is_refused(fitted: CoresetDetector, shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(FlawlineError, match="takes uint8"):
        fitted.score([np.zeros(shape, dtype=kind)])


def test_unseen_product_is_unknown_rather_than_defective(fitted: CoresetDetector) -> None:
    rng = np.random.default_rng(0)
    foliage = [np.clip(rng.normal([30, 160, 40], 60, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8) for _ in range(10)]
    assert {result.decision for result in fitted.score(foliage)} == {Decision.UNKNOWN_PRODUCT}


def test_constant_training_images_give_a_model_that_finds_anything_else(settings: ScorerSettings) -> None:
    model = fit_detector([np.full((SIDE, SIDE, 3), 90, np.uint8)] * 25, settings)
    same, other = model.score([np.full((SIDE, SIDE, 3), 90, np.uint8), draw("board", 1)])
    assert np.isfinite([same.aligned, other.aligned]).all()
    assert same.aligned < 0.05 < 1 < other.aligned  # half precision in the bank leaves a trace of itself


@pytest.mark.parametrize("count", [0, 1, 2, 19])
def test_too_few_images_are_refused(settings: ScorerSettings, count: int) -> None:
    with pytest.raises(FlawlineError, match=f"{count} good images: at least 20 are needed"):
        fit_detector(good_images()[:count], settings)


def test_twenty_images_are_enough(settings: ScorerSettings) -> None:
    model = fit_detector(good_images()[:20], settings)
    assert np.isfinite([result.aligned for result in model.score(DEFECTS[:2])]).all()


def test_second_pass_at_another_size_joins_the_map(settings: ScorerSettings, tmp_path: Path) -> None:
    layers = (
        LayerSettings(size=2 * SIDE, stride=16, rows=200, rows_per_image=20, neighbours=5),
        LayerSettings(size=SIDE, stride=8, rows=200, rows_per_image=20),
    )
    model = fit_detector(good_images(), settings.model_copy(update={"layers": layers}))
    version = model.save(tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    assert loaded.version == version
    good, bad = loaded.score(good_images(5, first=400)), loaded.score(DEFECTS)
    assert max(result.aligned for result in good) < min(result.aligned for result in bad)
    np.testing.assert_array_equal(values(bad), values(model.score(DEFECTS)))
    assert bad[0].patches is not None
    assert bad[0].patches.shape == (8, 8, 40)


def test_unknown_backbone_and_missing_weights_are_one_line(settings: ScorerSettings, tmp_path: Path) -> None:
    with pytest.raises(FlawlineError, match=r"'no_such_net' cannot be made"):
        fit_detector(good_images(), settings.model_copy(update={"backbone": "no_such_net"}))
    with pytest.raises(UsageError, match="no such weights file"):
        fit_detector(good_images(), settings.model_copy(update={"weights": tmp_path / "none.pth"}))
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(FlawlineError, match="cannot be read as weights"):
        fit_detector(good_images(), settings.model_copy(update={"weights": tmp_path / "text.pth"}))
    assert not list((cache_dir() / "backbones").glob(".partial-*"))


def test_any_timm_backbone_with_local_weights_serves_and_broken_ones_are_refused(tmp_path: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = timm.create_model("resnet10t", pretrained=False)
    file = tmp_path / "resnet10t.safetensors"
    save_file(net.state_dict(), file)
    layers = (LayerSettings(size=SIDE, stride=8, rows=100), LayerSettings(size=SIDE, stride=16, rows=100))
    settings = ScorerSettings(backbone="resnet10t", weights=file, layers=layers, runtime="openvino", threads=2)
    model = fit_detector(good_images(), settings)
    assert np.isfinite([result.aligned for result in model.score(DEFECTS[:2])]).all()
    with pytest.raises(FlawlineError, match="give the matching file"):
        fit_detector(good_images(), settings.model_copy(update={"backbone": "resnet14t"}))
    state = net.state_dict()
    state["conv1.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(FlawlineError, match="NaN"):
        fit_detector(good_images(), settings.model_copy(update={"weights": tmp_path / "nan.safetensors"}))


def test_cache_that_cannot_be_written_names_the_remedy(
    settings: ScorerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLAWLINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(FlawlineError, match="set FLAWLINE_CACHE"):
        prepare(settings)


def test_damaged_cache_entry_is_converted_again(settings: ScorerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, folder = prepare(settings)[SIDE]
    (folder / "graph.json").write_text("{")
    again, _ = prepare(settings)[SIDE]
    assert again == graph


def test_banks_are_built_before_the_first_frame(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    class CountedBank(Int8Index):
        def __init__(self, rows: np.ndarray) -> None:
            built.append(len(rows))
            super().__init__(rows)

    monkeypatch.setattr(detector, "Int8Index", CountedBank)
    loaded = load_detector(model_path)
    rows = [len(bank) for banks in loaded.model.banks for bank in banks]
    assert sorted(built) == sorted(rows)
    assert {scores.group for scores in loaded.score(good_images(2, first=300))} == {0, 1}
    assert len(built) == len(rows), "a frame waited for a bank"


def test_galleries_of_known_products_are_built_once_though_many_threads_ask(
    fitted: CoresetDetector, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_detector(model_path)
    features = loaded.features(draw("board", 1))
    built = []

    class CountedGallery(Gallery):
        def __init__(self, embeddings: np.ndarray, groups: np.ndarray) -> None:
            built.append(len(groups))
            super().__init__(embeddings, groups)

    monkeypatch.setattr(detector, "Gallery", CountedGallery)
    with ThreadPoolExecutor(8) as pool:
        looks = list(pool.map(lambda _: loaded.route(features, group=1), range(32)))
    assert built == [30]
    assert {look.group for look in looks} == {1}
