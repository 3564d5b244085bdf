"""Batch normalisation in the convolution before it: the same maps, and nothing folded that would change them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorer.features import weights as weight_files
from scorer.features.graph import Outputs
from tests.support.later import Later

if TYPE_CHECKING:
    from torch import Tensor, nn

torch, folding, torch_engine = Later("torch"), Later("scorer.features.folding"), Later("scorer.features.torch_engine")


def maps_module(both: bool = False, twice: bool = False) -> nn.Module:
    """Return a convolution and its normalisation; `both` gives out the map before it too, `twice` convolves again."""

    class Maps(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 3, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(3)
            with torch.no_grad():
                self.norm.running_mean.uniform_(-1, 1)
                self.norm.running_var.uniform_(0.5, 2)
                self.norm.weight.uniform_(0.5, 2)
            self.eval()

        def forward(self, pixels: Tensor) -> list[Tensor]:
            output = self.convolution(pixels)
            maps = [self.norm(output)]
            if both:
                maps.append(output)
            if twice:
                maps.append(self.convolution(maps[0]))
            return maps

    return Maps()


def maps_of(extractor: nn.Module, pixels: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return [layer.clone() for layer in extractor(pixels)]


def test_the_packaged_backbone_gives_the_same_maps_with_all_its_norms_folded() -> None:
    extractor = torch_engine.feature_extractor(
        weight_files.find("tf_efficientnet_lite0"), 64, Outputs(strides=(8, 16, 16))
    )
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = maps_of(extractor, pixels)
    assert folding.fold_batch_norms(extractor, pixels[:1]) > 30
    assert not [module for module in extractor.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for left, right in zip(before, maps_of(extractor, pixels), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5 * float(left.abs().max()))


def test_a_norm_is_folded_only_where_nothing_else_takes_the_output_of_its_convolution() -> None:
    pixels = torch.rand(1, 3, 8, 8)
    for options, folded in (({}, 1), ({"both": True}, 0), ({"twice": True}, 0)):
        extractor = maps_module(**options)
        before = maps_of(extractor, pixels)
        assert folding.fold_batch_norms(extractor, pixels) == folded
        for left, right in zip(before, maps_of(extractor, pixels), strict=True):
            torch.testing.assert_close(left, right)
        assert isinstance(extractor.norm, torch.nn.Identity) == bool(folded)
