"""A vision transformer whose class token sees only the defect: AnomalyNCD's mask guidance (arXiv 2410.14379).

In the last nine blocks the class token does not attend to patches outside the mask; the patches still attend to
everything. This needs no training and no new parameters, so it works with any timm transformer that has a class token:
untrained as an embedding of crops, or with its last block trained.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawline.errors import FlawlineError

# AnomalyNCD's: the number of last blocks whose class token sees the defect only, and the cover that makes a patch part
# of the defect.
MASKED_BLOCKS = 9
INSIDE = 0.5


def inside(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return which patches the mask covers by at least a half, bool (n, h * w); every crop has at least one patch.

    `masks` are float (n, H, W), `grid` is (h, w). A defect that is finer than a patch covers no patch by half; then the
    patch that it covers most represents it. An empty mask (a whole image without a local defect) selects every patch.
    """
    covered = functional.adaptive_avg_pool2d(masks[:, None], grid).flatten(1)
    best = covered.max(dim=1, keepdim=True).values
    return covered >= torch.clamp(best, max=INSIDE)


def class_row(patches: Tensor, prefix: int) -> Tensor:
    """Return the attention mask, bool (n, 1, t, t): the class token (row 0) sees `patches` only, the others everything.

    `patches` is bool (n, p). `prefix` counts the tokens before the patches (class token and registers); every token
    sees them.
    """
    count, size = len(patches), prefix + patches.shape[1]
    allowed = torch.ones(count, 1, size, size, dtype=torch.bool, device=patches.device)
    allowed[:, 0, 0, prefix:] = patches
    return allowed


class LastBlock(nn.Module):
    """The transformer's last block and norm."""

    def __init__(self, block: nn.Module, norm: nn.Module, prefix: int) -> None:
        super().__init__()
        self.block, self.norm, self.prefix = block, norm.requires_grad_(False), prefix

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Return the class tokens (n, D) of tokens (n, t, D) and patches inside the mask, bool (n, p)."""
        return self.norm(self.block(tokens, attn_mask=class_row(patches, self.prefix)))[:, 0]


class MaskedVit(nn.Module):
    """A timm transformer up to its last block, frozen."""

    def __init__(self, model: Any) -> None:
        """Freeze `model`, a timm VisionTransformer with a class token. Raises FlawlineError when timm is too old."""
        super().__init__()
        if "attn_mask" not in inspect.signature(model.blocks[0].forward).parameters:
            raise FlawlineError("this timm's transformer blocks take no attention mask: install timm 1.0.16 or newer")
        self.model = model.eval().requires_grad_(False)
        self.prefix = int(model.num_prefix_tokens)
        self.dimension = int(model.embed_dim)
        self.grid = tuple(model.patch_embed.grid_size)

    def forward(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (n, t, D) before the last block and patches inside the mask, bool (n, p).

        `pixels` are normalised (n, 3, S, S), `masks` float (n, S, S).
        """
        model, patches = self.model, inside(masks, self.grid)
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
        allowed = class_row(patches, self.prefix)
        last = len(model.blocks) - 1
        for number, block in enumerate(model.blocks[:last]):
            masked = number >= len(model.blocks) - MASKED_BLOCKS
            tokens = block(tokens, attn_mask=allowed) if masked else block(tokens)
        return tokens, patches

    def last_block(self) -> LastBlock:
        """Return a copy of the last block to train; untrained it completes the embedding."""
        return LastBlock(copy.deepcopy(self.model.blocks[-1]).requires_grad_(True), self.model.norm, self.prefix)
