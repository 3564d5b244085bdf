"""Any timm backbone as a describer of crops: frozen up to its last block, guided by the defect's mask.

A transformer with a class token is AnomalyNCD's own form (`masked_vit`). For every other backbone the cells of its maps
are the tokens: the class token starts as the mean of those inside the mask, and the last block is a transformer block
over them that changes nothing before it is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from discovery.learned import augment
from discovery.learned.augment import Crop
from discovery.learned.masked_vit import MaskedVit, inside
from flawline.errors import FlawlineError
from scorer.features import weights as weight_files
from scorer.features.torch_engine import MapsOf

SIZE_PX = 224
BATCH = 16
HEADS = 4
STRIDES = (16, 32)
# Raise it whenever the same backbone would give another embedding of the same crop.
EMBEDDING_FORMAT = "crop-1"


class MapBlock(nn.Module):
    """A transformer block for map cells in which the class token alone asks, and only sees what is inside the mask.

    Its output layers start at zero, so that an untrained one hands the class token on.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)
        self.query, self.key_value = nn.Linear(dimension, dimension), nn.Linear(dimension, 2 * dimension)
        self.project = nn.Linear(dimension, dimension)
        self.mlp_norm = nn.LayerNorm(dimension)
        last = nn.Linear(2 * dimension, dimension)
        self.mlp = nn.Sequential(nn.Linear(dimension, 2 * dimension), nn.GELU(), last)
        for layer in (self.project, last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        count, _, dimension = tokens.shape
        normed = self.norm(tokens)
        query = self.query(normed[:, :1])
        key, value = self.key_value(normed).chunk(2, dim=-1)
        query, key, value = (
            each.view(count, -1, HEADS, dimension // HEADS).transpose(1, 2) for each in (query, key, value)
        )
        allowed = functional.pad(patches, (1, 0), value=True)[:, None, None]
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        token = tokens[:, 0] + self.project(seen.transpose(1, 2).reshape(count, dimension))
        return token + self.mlp(self.mlp_norm(token))


class MaskedMaps(nn.Module):
    """A backbone's maps as tokens, frozen."""

    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        with torch.inference_mode():
            maps = self._maps(torch.zeros(1, 3, size, size))
        self.grid = (maps.shape[2], maps.shape[3])
        channels = int(maps.shape[1])
        self.padding = -channels % HEADS
        self.dimension = channels + self.padding

    def _maps(self, pixels: Tensor) -> Tensor:
        maps = self.model(pixels)
        return torch.cat([functional.interpolate(each, maps[0].shape[2:], mode="bilinear") for each in maps], dim=1)

    def forward(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n, 1 + p, D), the first being the mean inside the mask, and cells inside (n, p)."""
        cells = functional.pad(self._maps(pixels).flatten(2).transpose(1, 2), (0, self.padding))
        patches = inside(masks, self.grid)
        # Layers of large values would drown the others in every cosine.
        cells = functional.layer_norm(cells, cells.shape[-1:])
        share = patches.float() / patches.sum(dim=1, keepdim=True)
        return torch.cat([(share[:, None] @ cells), cells], dim=1), patches

    def last_block(self) -> MapBlock:
        """A block that may be trained; as it is, it hands on the mean inside the mask."""
        return MapBlock(self.dimension)


class CropBackbone:
    """A frozen backbone on a device, with the version of what it says of a crop."""

    def __init__(self, trunk: MaskedVit | MaskedMaps, mean: Sequence[float], std: Sequence[float], device: str) -> None:
        self.device = torch.device(device)
        self.trunk = trunk.to(self.device).eval()
        self._last = trunk.last_block().to(self.device).eval()
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1) * 255
        self.version = ""

    @property
    def dimension(self) -> int:
        return self.trunk.dimension

    def tokens(self, pixels: np.ndarray, masks: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens before the last block (n, t, D) and cells inside (n, p), of uint8 (n, S, S, 3), float (n, S, S)."""
        with torch.inference_mode():
            images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
            return self.trunk((images - self._mean) / self._std, torch.from_numpy(masks).to(self.device))

    def last_block(self) -> nn.Module:
        """A copy of the last block that may be trained."""
        return self.trunk.last_block().to(self.device)

    def embed(self, crops: Sequence[Crop]) -> np.ndarray:
        """Unit vectors float32 (n, D) of crops: what is inside of their masks, nothing trained."""
        found = []
        for start in range(0, len(crops), BATCH):
            shown = [augment.plain(crop, SIZE_PX) for crop in crops[start : start + BATCH]]
            tokens, patches = self.tokens(np.stack([one for one, _ in shown]), np.stack([one for _, one in shown]))
            with torch.inference_mode():
                found.append(functional.normalize(self._last(tokens, patches), dim=1).cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, self.dimension), np.float32)


def load(name: str, weights: Path | None = None, device: str = "auto") -> CropBackbone:
    """The backbone of a timm name with its packaged, given or (over the network) timm's own weights.

    Raises FlawlineError in one line when it cannot be had.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise FlawlineError("discovery.device 'cuda' is not available on this machine: choose 'cpu' or 'auto'")
    found = _found(name, weights)
    trunk, config = _trunk(found)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    torch.manual_seed(0)  # an untrained last block of maps hands its input on, whatever it was made of
    backbone = CropBackbone(
        trunk, config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225)), chosen
    )
    identity = "|".join([name, found.key(), str(SIZE_PX), EMBEDDING_FORMAT])
    backbone.version = f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}+{EMBEDDING_FORMAT}"
    return backbone


def _found(name: str, weights: Path | None) -> weight_files.Weights:
    if weights is not None and not weights.is_file():
        raise FlawlineError(f"{weights}: no such weights file: correct discovery.crop_weights or leave it out")
    return weight_files.find(name, weights)


def _trunk(weights: weight_files.Weights) -> tuple[MaskedVit | MaskedMaps, dict[str, Any]]:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    config = timm.get_pretrained_cfg(weights.name) if timm.is_model(weights.name) else None
    values = config.to_dict() if config else {}
    model: Any = weight_files.create(weights, SIZE_PX)
    if isinstance(model, VisionTransformer) and model.has_class_token:
        return MaskedVit(model), values
    strides = [int(info["reduction"]) for info in model.feature_info]
    taken = sorted(_deepest(strides))
    return MaskedMaps(MapsOf(model, taken), SIZE_PX), values


def _deepest(reductions: Sequence[int]) -> Iterator[int]:
    """Outputs of the two finest strides that are coarse enough to know kinds of defects; the last two otherwise."""
    known = [len(reductions) - 1 - list(reductions)[::-1].index(each) for each in STRIDES if each in reductions]
    yield from known if len(known) == len(STRIDES) else range(max(0, len(reductions) - 2), len(reductions))
