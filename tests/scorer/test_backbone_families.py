"""Backbones as people know them: vision transformers by block, pyramids by stride, from files with random weights."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from pydantic import ValidationError

from flawline.errors import FlawlineError
from flawline.settings.scorer import FOUNDATION_BACKBONE, LayerSettings, ScorerSettings
from scorer.detector import Maps
from scorer.explain import reasons
from scorer.features import backbone, weights
from scorer.features.conversion import prepare
from scorer.features.structure import resolved, structure_of
from scorer.fit import fit_detector
from scorer.load import load_detector
from tests.scorer.conftest import draw, good_images
from tests.support.later import Later

timm, torch, tensor_files = Later("timm"), Later("torch"), Later("safetensors.torch")
torch_engine = Later("scorer.features.torch_engine")


IMAGE = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)
BLOCKS = tuple(LayerSettings(size=96, block=block, rows=200) for block in (2, 4))


def file_of(name: str, folder: Path, **options: object) -> Path:
    """Return a file of seeded random weights of a timm model, by timm's own names."""
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    tensor_files.save_file(timm.create_model(name, pretrained=False, **options).state_dict(), path)
    return path


def maps_of(settings: ScorerSettings, runtime: str) -> Maps:
    graphs = list(prepare(settings).values())
    return backbone.load(graphs, runtime=runtime, device="cpu", threads=1, weights=settings.weights).features(IMAGE)


@pytest.mark.system
@pytest.mark.parametrize(
    ("name", "layers", "shapes"),
    [
        ("test_vit", BLOCKS, [(6, 6, 64), (6, 6, 64), (1, 1, 64)]),
        ("eva02_tiny_patch14_224", None, None),
        ("test_convnext", None, [(8, 8, 32), (4, 4, 48), (4, 4, 48), (2, 2, 64)]),
        ("test_resnet", None, [(8, 8, 48), (4, 4, 192), (4, 4, 192), (2, 2, 96)]),
        ("swin_tiny_patch4_window7_224", None, [(8, 8, 192), (4, 4, 384), (4, 4, 384), (2, 2, 768)]),
    ],
)
def test_both_runtimes_give_the_maps_of_a_family_from_a_plain_file(
    name: str, layers: tuple[LayerSettings, ...] | None, shapes: list[tuple[int, ...]] | None, tmp_path: Path
) -> None:
    pyramid = tuple(
        LayerSettings(size=64, stride=stride, earlier=earlier)
        for stride, earlier in ((8, False), (16, True), (16, False), (32, False))
    )
    blocks = (LayerSettings(size=98, block=3), LayerSettings(size=98, block=7))
    is_transformer = structure_of(name).blocks > 0
    settings = resolved(
        ScorerSettings(
            backbone=name,
            weights=file_of(name, tmp_path),
            layers=layers or (blocks if is_transformer else pyramid),
        )
    )
    maps, maps_of_torch = maps_of(settings, "openvino"), maps_of(settings, "torch")
    assert shapes is None or [layer.shape for layer in maps] == shapes
    assert len(maps) == len(settings.active_layers) + is_transformer
    for openvino_map, torch_map in zip(maps, maps_of_torch, strict=True):
        assert openvino_map.std() > 0
        np.testing.assert_allclose(openvino_map, torch_map, atol=1e-3 * np.abs(openvino_map).max())


@pytest.mark.system
def test_position_embeddings_are_brought_to_the_size_of_the_input(tmp_path: Path) -> None:
    file = file_of("test_vit", tmp_path)  # made for 160 px
    model = weights.create(weights.Weights("test_vit", file), 96)
    expected = timm.create_model("test_vit", pretrained=False, img_size=96)
    assert model.pos_embed.shape == expected.pos_embed.shape != tensor_files.load_file(file)["pos_embed"].shape


def test_vector_of_the_image_is_the_class_token_or_the_mean_of_the_patches() -> None:
    pixels = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    for options, has_class_token in (({}, True), ({"class_token": False, "global_pool": "avg"}, False)):
        torch.manual_seed(0)
        maps = torch_engine.TransformerMaps(timm.create_model("test_vit", pretrained=False, **options).eval(), (2, 4))
        with torch.inference_mode():
            first, last, vector = maps(pixels)
        assert first.shape == last.shape == (1, 64, 10, 10) and vector.shape == (1, 64, 1, 1)
        assert torch.allclose(vector, last.mean(dim=(2, 3), keepdim=True), rtol=1e-3) != has_class_token


@pytest.mark.system
def test_model_on_a_transformer_fits_saves_extends_explains_and_tells_defects(tmp_path: Path) -> None:
    settings = ScorerSettings(
        backbone="test_vit", weights=file_of("test_vit", tmp_path), layers=BLOCKS, threads=2, alarm_rate=0.05
    )
    detector = fit_detector(good_images(), settings)
    detector.save(tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    images = [draw(product, 700 + i, defect=i % 2 == 1) for i in range(4) for product in ("cloth", "board")]
    scores = loaded.score(images)
    np.testing.assert_array_equal([s.raw for s in scores], [s.raw for s in detector.score(images)])
    good, bad = scores[0:2] + scores[4:6], scores[2:4] + scores[6:8]
    assert max(s.aligned for s in good) < min(s.aligned for s in bad)
    assert {s.group for s in scores[::2]}.isdisjoint({s.group for s in scores[1::2]}), "each product has its groups"
    assert loaded.embedding_version == detector.embedding_version
    [reason] = reasons(loaded, images[2], [(0.5, 0.5)])
    assert (reason.size_px, reason.stride_px) == (96, 16)
    assert [part.shape for part in loaded.close_ups([images[2]])[0]] == [(6, 6, 64), (6, 6, 64)]
    on_torch = load_detector(tmp_path / "model", runtime="torch", device="cpu", weights=settings.weights)
    np.testing.assert_allclose([s.raw for s in on_torch.score(images)], [s.raw for s in scores], rtol=1e-2)


def test_layers_name_a_stride_or_a_block() -> None:
    with pytest.raises(ValidationError, match="by stride or by block"):
        LayerSettings(size=256)
    with pytest.raises(ValidationError, match="by stride or by block"):
        LayerSettings(size=256, stride=8, block=4)
    with pytest.raises(ValidationError, match="no multiple of 32"):
        LayerSettings(size=250, stride=8)
    with pytest.raises(ValidationError, match="strides and blocks"):
        ScorerSettings(layers=(LayerSettings(stride=8), LayerSettings(block=4)))


@pytest.mark.parametrize(
    ("backbone_name", "layers", "message"),
    [
        (
            "test_vit",
            (LayerSettings(stride=8),),
            r"stride 8, which .*test_vit.* has blocks 1 to 6 \(patches of 16 px\)",
        ),
        ("test_vit", (LayerSettings(block=7),), "block 7, which .* has blocks 1 to 6"),
        ("test_resnet", (LayerSettings(block=2),), "block 2, which .* has strides 2, 4, 8, 16, 32"),
        ("test_convnext", (LayerSettings(stride=2),), "stride 2, which .* has strides 4, 8, 16, 32"),
    ],
)
def test_layer_that_the_backbone_lacks_is_one_line_that_lists_what_it_has(
    backbone_name: str, layers: tuple[LayerSettings, ...], message: str
) -> None:
    with pytest.raises(FlawlineError, match=message):
        resolved(ScorerSettings(backbone=backbone_name, layers=layers))


def test_profile_that_names_strides_is_refused_for_a_transformer() -> None:
    with pytest.raises(FlawlineError, match="stride 8, which"):
        resolved(ScorerSettings(backbone="test_vit", profile="accurate"))


def test_foundation_has_its_backbone_and_follows_the_depth_of_another(caplog: pytest.LogCaptureFixture) -> None:
    foundation = ScorerSettings(profile="foundation")
    assert foundation.backbone == FOUNDATION_BACKBONE
    layers = resolved(foundation).active_layers
    assert [(layer.size, layer.block) for layer in layers] == [(448, 4), (448, 5), (448, 7), (448, 10)]
    large = resolved(ScorerSettings(backbone="vit_large_patch14_dinov2", profile="foundation"))
    assert [layer.block for layer in large.active_layers] == [8, 10, 14, 20]
    assert [layer.block for layer in resolved(ScorerSettings(backbone="test_vit")).active_layers] == [2, 4, 5]
    assert not caplog.records


def test_sides_are_rounded_to_whole_patches_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        settings = resolved(ScorerSettings(backbone="test_vit", layers=(LayerSettings(size=518, block=2),)))
    assert settings.active_layers[0].size == 512
    assert "patches of 16 px: inputs of 518 px become 512 px" in caplog.text


@pytest.mark.system
def test_file_that_is_not_the_backbones_is_one_line(tmp_path: Path) -> None:
    state = tensor_files.load_file(file_of("test_vit", tmp_path))
    file = tmp_path / "broken.safetensors"
    without = {name: tensor for name, tensor in state.items() if name != "blocks.1.norm1.weight"}
    for tensors, message in (
        (without, 'no tensor "blocks.1.norm1.weight" for .*: give the matching file'),
        ({**state, "blocks.9.x": torch.ones(1)}, 'a tensor too many, "blocks.9.x" for'),
        ({**state, "norm.weight": torch.ones(7)}, "another shape of norm.weight"),
    ):
        tensor_files.save_file(tensors, file)
        with pytest.raises(FlawlineError, match=message) as error:
            weights.create(weights.Weights("test_vit", file), 96)
        assert "\n" not in str(error.value)


def test_weights_of_the_hub_without_a_network_are_one_line_with_the_remedy(
    refusing_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{refusing_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    remedy = r"does not answer: fetch them .* `hf download timm/vit_small_patch14_reg4_dinov2.lvd142m .* scorer.weights"
    with pytest.raises(FlawlineError, match=remedy):
        weights.create(weights.find(FOUNDATION_BACKBONE), 448)


@pytest.mark.system
def test_hub_that_is_silent_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_HUB_ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        for ask in (lambda name: weights.create(weights.find(name), 448), structure_of):
            with pytest.raises(FlawlineError, match="does not answer"):
                ask("hf-hub:timm/no-such-model")
        assert time.monotonic() - start < 30, "the hub's own client tries for minutes"
