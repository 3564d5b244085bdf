"""Embeds crops with any timm backbone that is frozen up to its last block and guided by the defect's mask.

AnomalyNCD uses a transformer with a class token (`masked_vit`). For every other backbone the cells of its maps are the
tokens: the class token starts as the mean of the cells inside the mask, and the last block is a transformer block over
the cells that changes nothing before it is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
from scorer.features.torch_engine import MapsOf, configuration

SIZE_PX = 224
BATCH = 16
HEADS = 4
STRIDES = (16, 32)
# Raise this number when the same backbone gives another embedding of the same crop.
EMBEDDING_FORMAT = "crop-1"


class MapBlock(nn.Module):
    """A transformer block in which only the class token asks, and sees only the map cells inside the mask.

    Its output layers start at zero, so that an untrained block returns the class token unchanged.
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
        """Return the class tokens (n, D) after the block.

        `tokens` are (n, 1 + p, D); `patches` bool (n, p) marks the cells inside the mask.
        """
        count, _, dimension = tokens.shape
        normed = self.norm(tokens)
        query = self.query(normed[:, :1])
        key, value = self.key_value(normed).chunk(2, dim=-1)
        query, key, value = (
            part.view(count, -1, HEADS, dimension // HEADS).transpose(1, 2) for part in (query, key, value)
        )
        allowed = functional.pad(patches, (1, 0), value=True)[:, None, None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        token = tokens[:, 0] + self.project(attended.transpose(1, 2).reshape(count, dimension))
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
        side = maps[0].shape[2:]
        return torch.cat([functional.interpolate(layer, side, mode="bilinear") for layer in maps], dim=1)

    def forward(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (n, 1 + p, D) and the cells inside the mask, bool (n, p); the first token is their mean."""
        cells = functional.pad(self._maps(pixels).flatten(2).transpose(1, 2), (0, self.padding))
        patches = inside(masks, self.grid)
        # Without normalisation a layer with large values would decide every cosine alone.
        cells = functional.layer_norm(cells, cells.shape[-1:])
        share = patches.float() / patches.sum(dim=1, keepdim=True)
        return torch.cat([(share[:, None] @ cells), cells], dim=1), patches

    def last_block(self) -> MapBlock:
        """Return a new block to train; before training it returns the mean inside the mask."""
        return MapBlock(self.dimension)


class CropBackbone:
    """A frozen backbone on a device. Its `version` changes when the same crop gets another embedding."""

    def __init__(self, trunk: MaskedVit | MaskedMaps, mean: Sequence[float], std: Sequence[float], device: str) -> None:
        self.device = torch.device(device)
        self.trunk = trunk.to(self.device).eval()
        self._last = trunk.last_block().to(self.device).eval()
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1) * 255
        self.version = ""

    @property
    def dimension(self) -> int:
        """Return the length D of a token."""
        return self.trunk.dimension

    def tokens(self, pixels: np.ndarray, masks: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return tokens before the last block (n, t, D) and the cells inside the masks, bool (n, p).

        `pixels` are uint8 (n, S, S, 3), `masks` float (n, S, S).
        """
        with torch.inference_mode():
            images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
            return self.trunk((images - self._mean) / self._std, torch.from_numpy(masks).to(self.device))

    def last_block(self) -> nn.Module:
        """Return a copy of the last block to train."""
        return self.trunk.last_block().to(self.device)

    def embed(self, crops: Sequence[Crop]) -> np.ndarray:
        """Return unit vectors float32 (n, D) of the pixels inside the crops' masks, from untrained last blocks."""
        embeddings = []
        for start in range(0, len(crops), BATCH):
            pixels, masks = zip(*(augment.plain(crop, SIZE_PX) for crop in crops[start : start + BATCH]), strict=True)
            tokens, patches = self.tokens(np.stack(pixels), np.stack(masks))
            with torch.inference_mode():
                embeddings.append(functional.normalize(self._last(tokens, patches), dim=1).cpu().numpy())
        return np.concatenate(embeddings) if embeddings else np.zeros((0, self.dimension), np.float32)


def load(name: str, weights: Path | None = None, device: str = "auto") -> CropBackbone:
    """Return the backbone of a timm name, with the packaged weights, those of a local file, or timm's.

    Raises FlawlineError when the device, the name or the weights are not available.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise FlawlineError("discovery.device 'cuda' is not available on this machine: choose 'cpu' or 'auto'")
    source = weight_files.find(name, weights, "discovery.crop_weights")
    trunk, config = _trunk(source)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    torch.manual_seed(0)  # the untrained last block of maps ignores its random weights
    backbone = CropBackbone(
        trunk, config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225)), chosen
    )
    identity = "|".join([name, source.key(), str(SIZE_PX), EMBEDDING_FORMAT])
    backbone.version = f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}+{EMBEDDING_FORMAT}"
    return backbone


def _trunk(weights: weight_files.Weights) -> tuple[MaskedVit | MaskedMaps, dict[str, Any]]:
    """Return the backbone that gives tokens, and timm's configuration of it. Raises FlawlineError."""
    from timm.models.vision_transformer import VisionTransformer

    model: Any = weight_files.create(weights, SIZE_PX)
    config = configuration(model, weights.name)
    if isinstance(model, VisionTransformer) and model.has_class_token:
        return MaskedVit(model), config
    strides = [int(info["reduction"]) for info in model.feature_info]
    return MaskedMaps(MapsOf(model, _deepest(strides)), SIZE_PX), config


def _deepest(reductions: Sequence[int]) -> list[int]:
    """Return, in rising order, the number of the last map at each of STRIDES; of the last two maps when one is missing.

    `reductions` are the strides of a backbone's maps. Finer maps do not tell kinds of defects apart.
    """
    last = {stride: place for place, stride in enumerate(reductions)}
    if all(stride in last for stride in STRIDES):
        return sorted(last[stride] for stride in STRIDES)
    return list(range(max(0, len(reductions) - 2), len(reductions)))
