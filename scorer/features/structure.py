"""Which maps a backbone can give, and the layers that a fit takes from it: strides of a pyramid, or numbered blocks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from flawline.errors import FlawlineError
from flawline.settings.scorer import FOUNDATION_DEPTH, PROFILES, TOP_SHARES, LayerSettings, ScorerSettings
from scorer.features import weights as weight_files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Structure:
    """The maps of a backbone by stride, from fine to deep; a vision transformer has one for each block."""

    backbone: str
    strides: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """Return the number of blocks of a vision transformer, all of one stride; 0 for a pyramid."""
        return len(self.strides) if len(self.strides) > 1 and len(set(self.strides)) == 1 else 0

    @property
    def text(self) -> str:
        """Return what layers may name."""
        if self.blocks:
            return f"blocks 1 to {self.blocks} (patches of {self.strides[0]} px)"
        return f"strides {', '.join(map(str, sorted(set(self.strides))))}"


def structure_of(backbone: str) -> Structure:
    """Return the structure of a timm backbone. Raises FlawlineError for an unknown one, and for one without maps."""
    model: Any = weight_files.outline(backbone)
    if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
        raise FlawlineError(f"backbone {backbone!r} gives no maps of its layers: choose another one")
    return Structure(backbone, tuple(int(info["reduction"]) for info in model.feature_info))


def resolved(settings: ScorerSettings) -> ScorerSettings:
    """Return the settings with the layers that their backbone can give.

    A vision transformer gets those of profile "foundation", brought to its depth, and its top share, where no layers
    and no other profile are named. The sides of its inputs are rounded to whole patches, which is logged. Raises
    FlawlineError for layers that the backbone lacks.
    """
    layers = settings.active_layers
    if weight_files.is_packaged(settings.backbone) and not any(layer.block for layer in layers):
        return settings  # known, without the seconds that timm's import takes
    structure = structure_of(settings.backbone)
    top_share = settings.top_share
    if settings.layers is None and structure.blocks and settings.profile_is_free:
        layers = _scaled(PROFILES["foundation"], structure)
        top_share = top_share or TOP_SHARES["foundation"]
    for layer in layers:
        _require(layer, structure)
    if structure.blocks:
        layers = _whole_patches(layers, structure)
    return settings.model_copy(update={"layers": tuple(layers), "top_share": top_share})


def _scaled(layers: tuple[LayerSettings, ...], structure: Structure) -> tuple[LayerSettings, ...]:
    """Return the layers of a transformer of `FOUNDATION_DEPTH` blocks brought to another depth, each block once."""
    at: dict[int, LayerSettings] = {}
    for layer in layers:
        block = max(1, round((layer.block or 1) * structure.blocks / FOUNDATION_DEPTH))
        at[block] = layer.model_copy(update={"block": block})
    return tuple(at.values())


def _require(layer: LayerSettings, structure: Structure) -> None:
    name = f"stride {layer.stride}" if layer.stride else f"block {layer.block}"
    is_known = layer.block <= structure.blocks if layer.block else layer.stride in structure.strides
    if structure.blocks and layer.stride:
        is_known = False  # one stride, and many blocks of it
    if not is_known:
        remedy = 'take scorer.profile "foundation", or name blocks' if structure.blocks else "name strides"
        raise FlawlineError(
            f"the scorer's layers name {name}, which backbone {structure.backbone!r} lacks: it has {structure.text}: "
            f"{remedy} in scorer.layers"
        )


def _whole_patches(layers: tuple[LayerSettings, ...], structure: Structure) -> tuple[LayerSettings, ...]:
    patch_px = structure.strides[0]
    sizes = {layer.size: max(1, round(layer.size / patch_px)) * patch_px for layer in layers}
    for size, rounded in sizes.items():
        if rounded != size:
            log.warning(
                "backbone %s has patches of %d px: inputs of %d px become %d px",
                structure.backbone,
                patch_px,
                size,
                rounded,
            )
    return tuple(layer.model_copy(update={"size": sizes[layer.size]}) for layer in layers)
