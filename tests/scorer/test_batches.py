"""Batches on a device of PyTorch: the scores of single images, whatever the batch, and no step a GPU waits for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flawline.errors import FlawlineError
from flawline.messages import Decision
from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer import artefact
from scorer import detector as detectors
from scorer.batches import runner as runners
from scorer.batches.runner import BatchRunner
from scorer.batches.scoring import Batch, BatchScoring
from scorer.detector import CoresetDetector
from scorer.features import weights as weight_files
from scorer.features.backbone import DeviceLost
from scorer.features.padding import Padding
from scorer.features.torch_engine import TorchBackbone, batch_size
from scorer.fit import fit_detector
from scorer.load import load_detector
from scorer.scores import Scores
from scorer.search.bank import Int8Index
from scorer.search.torch_index import StackedBanks
from tests.scorer.conftest import SIDE, draw, good_images

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Return parts of both products, every other one with a defect."""
    return [draw(product, 500 + i, bool(i % 2)) for i in range(20) for product in ("cloth", "board")]


@pytest.fixture(scope="module")
def masks() -> list[np.ndarray | None]:
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[:, :20] = False
    return [mask if i % 9 == 4 else np.ones_like(mask) if i % 9 == 5 else None for i in range(40)]


@pytest.fixture(scope="module")
def in_torch(model_path: Path) -> CoresetDetector:
    return load_detector(model_path, runtime="torch", device="cpu", threads=2)


def worst_difference(left: Sequence[Scores], right: Sequence[Scores]) -> float:
    """Return the largest difference of two lists of scores, as share of the raw score and in units of the maps."""
    assert [s.group for s in left] == [s.group for s in right]
    assert [s.decision for s in left] == [s.decision for s in right]
    differences = []
    for a, b in zip(left, right, strict=True):
        differences += [abs(np.log(a.raw / b.raw)), abs(a.aligned - b.aligned)]
        assert a.p_value == pytest.approx(b.p_value, abs=0.02)  # a rank among the 60 good images, or the next one
        differences.append(np.abs(a.heatmap - b.heatmap).max())
        if a.decision is Decision.ACCEPT:
            assert a.patches is a.residuals is b.patches is b.residuals is None
            continue
        assert a.patches is not None and b.patches is not None
        assert a.residuals is not None and b.residuals is not None
        assert a.patches.shape == b.patches.shape == a.residuals.shape
        differences += [np.abs(a.patches - b.patches).max(), np.abs(a.residuals - b.residuals).max()]
    return float(max(differences))


def test_batches_give_the_scores_of_the_cpus_search(
    fitted: CoresetDetector, in_torch: CoresetDetector, images: list[np.ndarray], masks: list[np.ndarray | None]
) -> None:
    assert 5 < sum(s.decision is not Decision.ACCEPT for s in fitted.score(images, masks)) < 35
    assert worst_difference(fitted.score(images, masks), in_torch.score(images, masks)) < 2e-3


def test_the_search_of_a_gpu_gives_the_same_scores(
    in_torch: CoresetDetector, images: list[np.ndarray], masks: list[np.ndarray | None]
) -> None:
    backbone, model = in_torch.backbone, in_torch.model
    assert isinstance(backbone, TorchBackbone)
    for half in (False, True):
        of_layers = [[group[i] for group in model.banks] for i in range(len(model.layers))]
        on_gpu = BatchRunner(model, backbone, [StackedBanks(rows, "cpu", half) for rows in of_layers])
        assert worst_difference(in_torch.score(images, masks), on_gpu.score(images, masks)) < 2e-3


@pytest.mark.parametrize("size", [1, 7, 16, 64])
def test_a_score_depends_on_the_size_of_the_batch_by_rounding_only(
    in_torch: CoresetDetector, images: list[np.ndarray], masks: list[np.ndarray | None], size: int
) -> None:
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    scores = [score for part in parts for score in in_torch.score(images[part], masks[part])]
    assert worst_difference(in_torch.score(images, masks), scores) < 1e-3


def test_a_score_does_not_depend_on_the_other_images_of_its_batch(
    in_torch: CoresetDetector, images: list[np.ndarray], masks: list[np.ndarray | None]
) -> None:
    first = in_torch.score(images[:5], masks[:5])
    others = [*images[10:13], *images[:5]]  # eight, as five are filled up to
    moved = in_torch.score(others, [None] * 3 + masks[:5])[3:]
    assert worst_difference(first, moved) == 0


def test_a_gpu_has_banks_of_its_own_and_those_of_the_cpu_are_made_when_they_are_asked_for(
    in_torch: CoresetDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(Int8Index):
        def __init__(self, rows: np.ndarray) -> None:
            made.append(len(rows))
            super().__init__(rows)

    monkeypatch.setattr(detectors, "Int8Index", Counted)
    monkeypatch.setattr(CoresetDetector, "_batch_runner", lambda self: None)
    backbone = in_torch.backbone
    monkeypatch.setattr(type(backbone), "on_gpu", True)
    detector = CoresetDetector(in_torch.model, [], backbone)
    assert made == []
    features = backbone.features(draw("cloth", 1))
    assert detector.score_features(features).decision is in_torch.score_features(features).decision
    assert len(made) == len(in_torch.model.layers)
    detector.score_features(features)
    assert len(made) == len(in_torch.model.layers)


def test_tiles_are_scored_in_batches_too(settings: ScorerSettings, tmp_path: Path) -> None:
    tiled = settings.model_copy(update={"tile_px": SIDE, "tile_overlap": 0.25})
    wide = [np.concatenate([draw("cloth", i), draw("cloth", 100 + i)], axis=1) for i in range(20)]
    model = fit_detector(wide, tiled)
    model.save(tmp_path / "model")
    other = load_detector(tmp_path / "model", runtime="torch", device="cpu", threads=2)
    bad = np.concatenate([draw("cloth", 300), draw("cloth", 301, defect=True)], axis=1)
    assert worst_difference(model.score([wide[0], bad]), other.score([wide[0], bad])) < 2e-3
    assert other.score([bad])[0].decision is not Decision.ACCEPT


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_a_model_in_half_precision_is_fitted_and_scored_in_it_and_refuses_another(
    settings: ScorerSettings, tmp_path: Path, precision: str
) -> None:
    chosen = settings.model_copy(update={"precision": precision, "runtime": "torch", "device": "cpu"})
    model = fit_detector(good_images(20), chosen)
    model.save(tmp_path / "model")
    loaded = load_detector(tmp_path / "model", runtime="torch", device="cpu", always_check=True)
    assert loaded.runtime == f"torch-{precision}"
    assert loaded.score([draw("cloth", 700, defect=True)])[0].decision is not Decision.ACCEPT
    with pytest.raises(FlawlineError, match=f"calibrated in {precision}"):
        load_detector(tmp_path / "model", precision="f32")


def test_a_precision_that_a_runtime_lacks_names_those_it_has(settings: ScorerSettings) -> None:
    with pytest.raises(FlawlineError, match="'f16' is not served by runtime 'openvino', which has f32 and bf16"):
        fit_detector(good_images(20), settings.model_copy(update={"precision": "f16"}))


def test_a_transformer_is_scored_in_batches(tmp_path: Path) -> None:
    layers = tuple(LayerSettings(size=64, block=block, rows=100, neighbours=5) for block in (4, 8))
    torch.manual_seed(0)
    from safetensors.torch import save_file
    from timm import create_model

    save_file(create_model("test_vit3", pretrained=False).state_dict(), tmp_path / "vit.safetensors")
    layers = tuple(layer.model_copy(update={"block": block}) for layer, block in zip(layers, (1, 2), strict=True))
    model = fit_detector(
        good_images(20),
        ScorerSettings(backbone="test_vit3", weights=tmp_path / "vit.safetensors", layers=layers, threads=2),
    )
    model.save(tmp_path / "model")
    other = load_detector(tmp_path / "model", runtime="torch", device="cpu", weights=tmp_path / "vit.safetensors")
    bad = [draw("board", 800 + i, defect=True) for i in range(3)]
    assert worst_difference(model.score(bad), other.score(bad)) < 2e-3


def scored_without_values(path: Path) -> Batch:
    """Score 64 images with a saved model on tensors without values, as on a GPU.

    Every step that needs a value raises, and so does one that mixes devices. A CUDA graph could hold neither.
    """
    stored = artefact.load(path)
    graphs = [graph for graph, _ in stored.graphs]
    padding = Padding.of([grid for graph in graphs for grid in graph.grids]) if stored.model.shape == "pad" else None
    backbone = TorchBackbone(weight_files.find(graphs[0].backbone), graphs, "cpu", precision="f16", padding=padding)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in (part for extractor in backbone._extractors for part in extractor.modules()):
            for name, values in module._parameters.items():
                if values is not None:
                    on_gpu = mode.from_tensor(values.data).to("cuda")
                    module._parameters[name] = torch.nn.Parameter(on_gpu, requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = mode.from_tensor(buffer).to("cuda")
        backbone.device = torch.device("cuda")
        scoring = BatchScoring(stored.model, backbone)
        return scoring(scoring.inputs(backbone.sizes, 64))


def test_scoring_has_no_step_that_the_cpu_must_decide(model_path: Path) -> None:
    batch = scored_without_values(model_path)
    assert batch.rows.shape == (64, 5)
    assert batch.heatmaps.shape == (64, 8, 8)
    assert {batch.rows.device.type, batch.heatmaps.device.type} == {"cuda"}


@pytest.fixture
def failing(in_torch: CoresetDetector, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[BatchRunner, list[int]]]:
    """Yield a runner whose device has memory for four images, and the sizes of the batches that were tried."""
    runner = BatchRunner(in_torch.model, in_torch.backbone)
    tried: list[int] = []
    scored = runner._scoring.__class__.__call__

    def call(self: BatchScoring, inputs: runners.Inputs) -> runners.Batch:
        tried.append(len(inputs.masked))
        if len(inputs.masked) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scored(self, inputs)

    monkeypatch.setattr(BatchScoring, "__call__", call)
    yield runner, tried


def test_a_batch_that_finds_no_memory_is_halved_and_the_next_ones_are_smaller(
    failing: tuple[BatchRunner, list[int]], in_torch: CoresetDetector, images: list[np.ndarray],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    runner, tried = failing
    with caplog.at_level(logging.WARNING):
        scores = runner.score(images[:16], [None] * 16)
    assert len(scores) == 16
    assert runner.shortages >= 1
    assert runner.limit == 4
    assert "batches hold 4 images from now on" in caplog.text
    tried.clear()
    again = runner.score(images[:16], [None] * 16)
    assert set(tried) == {4}
    assert worst_difference(scores, again) == 0


def test_a_device_without_memory_for_one_image_says_so(
    failing: tuple[BatchRunner, list[int]], images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(self: BatchScoring, inputs: runners.Inputs) -> runners.Batch:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BatchScoring, "__call__", call)
    with pytest.raises(FlawlineError, match="no memory for one image: give the worker a larger share"):
        failing[0].score(images[:3], [None] * 3)


def test_a_lost_device_is_one_line(
    in_torch: CoresetDetector, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(self: BatchScoring, inputs: runners.Inputs) -> runners.Batch:
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(BatchScoring, "__call__", call)
    with pytest.raises(DeviceLost, match=r"the GPU is lost \(CUDA error: unspecified launch failure"):
        in_torch.score(images[:2])


def test_a_failure_that_is_no_loss_of_the_device_stays_what_it_is(
    in_torch: CoresetDetector, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(self: BatchScoring, inputs: runners.Inputs) -> runners.Batch:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(BatchScoring, "__call__", call)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        in_torch.score(images[:2])


def test_batches_are_filled_up_to_a_few_sizes() -> None:
    assert [batch_size(n) for n in (1, 2, 3, 7, 16, 17, 64, 300)] == [1, 2, 4, 8, 16, 32, 64, 300]
