"""Which maps a backbone gives out: the last of each stride, and the one halfway through a stride's blocks."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer.features import backbone
from scorer.features.conversion import prepare
from scorer.features.graph import Outputs, passes
from tests.support.later import Later

torch, torch_engine = Later("torch"), Later("scorer.features.torch_engine")


SIDE = 64
LAYERS = (
    LayerSettings(size=SIDE, stride=16),
    LayerSettings(size=SIDE, stride=16, earlier=True),
    LayerSettings(size=SIDE, stride=8),
)


def test_layers_come_in_order_of_size_stride_and_depth() -> None:
    layers = ScorerSettings(layers=LAYERS).active_layers
    assert [(layer.stride, layer.earlier) for layer in layers] == [(8, False), (16, True), (16, False)]
    assert passes(layers) == {SIDE: Outputs(strides=(8, 16, 16))}


def test_an_earlier_map_goes_with_the_last_one() -> None:
    with pytest.raises(ValidationError, match="earlier map of stride 16 at 64 px alone"):
        ScorerSettings(layers=LAYERS[1:])
    with pytest.raises(ValidationError, match="same map"):
        ScorerSettings(layers=(*LAYERS, LAYERS[1]))


@pytest.mark.system
def test_the_earlier_map_is_another_one_and_leaves_the_last_as_it_is(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    maps = {}
    for name, layers in {"both": LAYERS, "last": LAYERS[::2]}.items():
        graphs = list(prepare(ScorerSettings(layers=layers), tmp_path).values())
        maps[name] = backbone.load(graphs, runtime="openvino", threads=1).features(image)
        maps_of_torch = backbone.load(graphs, runtime="torch", device="cpu", threads=1).features(image)
        for openvino_map, torch_map in zip(maps[name], maps_of_torch, strict=True):
            np.testing.assert_allclose(openvino_map, torch_map, atol=1e-3 * np.abs(openvino_map).max())
    assert [layer.shape for layer in maps["both"]] == [(8, 8, 40), (4, 4, 80), (4, 4, 112)]
    np.testing.assert_allclose(maps["both"][2], maps["last"][1], atol=1e-4 * np.abs(maps["last"][1]).max())


@pytest.mark.parametrize(
    ("reductions", "strides", "expected"),
    [
        ([2, 4, 8, 16, 32], (8, 16, 16, 32), [2, None, 3, 4]),
        ([4, 8, 16, 16, 16, 32], (16, 16, 32), [3, 4, 5]),
    ],
)
def test_outputs_that_serve_the_strides(
    reductions: list[int], strides: tuple[int, ...], expected: list[int | None]
) -> None:
    assert torch_engine.outputs_for(reductions, strides) == expected


def test_halfway_is_a_middle_block_where_there_are_several(caplog: pytest.LogCaptureFixture) -> None:
    def block() -> torch.nn.Module:
        return torch.nn.Conv2d(3, 3, 1)

    stage = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 2, stride=2), *(block() for _ in range(4)))
    body = torch.nn.ModuleDict({"stage": stage})
    body.forward = lambda x: [body["stage"](x)]  # type: ignore[method-assign]
    assert torch_engine.halfway_block(body, 16, 2) == (stage[2], False)
    with caplog.at_level(logging.WARNING):
        assert torch_engine.halfway_block(body, 16, 4) is None
    assert "one map of stride 4 only" in caplog.text
