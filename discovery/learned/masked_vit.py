"""A vision transformer whose class token sees a defect only: AnomalyNCD's mask guidance (arXiv 2410.14379).

In the last nine blocks the class token's row of the attention is closed to patches outside of the mask; the patches
themselves go on seeing everything. That needs no training and no new parameters, so it serves any timm transformer
with a class token, as an embedding of crops as it is, or with its last block trained.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawline.errors import FlawlineError

MASKED_BLOCKS = 9
INSIDE = 0.5


def inside(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches are half covered at least, bool (n, h * w), from masks float (n, H, W); never none of a crop.

    A defect finer than a patch covers none of them by half; then the one that it covers most stands for it. An empty
    mask, which a whole image without anything local has, takes every patch.
    """
    covered = functional.adaptive_avg_pool2d(masks[:, None], grid).flatten(1)
    best = covered.max(dim=1, keepdim=True).values
    return covered >= torch.clamp(best, max=INSIDE)


def class_row(patches: Tensor, prefix: int) -> Tensor:
    """What attends to what, bool (n, 1, t, t): the class token (row 0) to the given patches, all others to everything.

    `patches` bool (n, p) and `prefix` tokens before them (the class token and registers), which all may be seen.
    """
    count, size = len(patches), prefix + patches.shape[1]
    allowed = torch.ones(count, 1, size, size, dtype=torch.bool, device=patches.device)
    allowed[:, 0, 0, prefix:] = patches
    return allowed


class LastBlock(nn.Module):
    """The transformer's last block and norm: tokens (n, t, D) and patches inside (n, p) to class tokens (n, D)."""

    def __init__(self, block: nn.Module, norm: nn.Module, prefix: int) -> None:
        super().__init__()
        self.block, self.norm, self.prefix = block, norm.requires_grad_(False), prefix

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        return self.norm(self.block(tokens, attn_mask=class_row(patches, self.prefix)))[:, 0]


class MaskedVit(nn.Module):
    """A timm transformer up to its last block, frozen."""

    def __init__(self, model: Any) -> None:
        """`model` is a timm VisionTransformer with a class token. Raises FlawlineError for a timm that is too old."""
        super().__init__()
        if "attn_mask" not in inspect.signature(model.blocks[0].forward).parameters:
            raise FlawlineError("this timm's transformer blocks take no attention mask: install timm 1.0.16 or newer")
        self.model = model.eval().requires_grad_(False)
        self.prefix = int(model.num_prefix_tokens)
        self.dimension = int(model.embed_dim)
        self.grid = tuple(model.patch_embed.grid_size)

    def forward(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n, t, D) before the last block and patches inside (n, p), of normalised pixels (n, 3, S, S)."""
        model, patches = self.model, inside(masks, self.grid)
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
        allowed = class_row(patches, self.prefix)
        last = len(model.blocks) - 1
        for number, block in enumerate(model.blocks[:last]):
            masked = number >= len(model.blocks) - MASKED_BLOCKS
            tokens = block(tokens, attn_mask=allowed) if masked else block(tokens)
        return tokens, patches

    def last_block(self) -> LastBlock:
        """A copy of the last block that may be trained; as it is, it completes the embedding."""
        return LastBlock(copy.deepcopy(self.model.blocks[-1]).requires_grad_(True), self.model.norm, self.prefix)
