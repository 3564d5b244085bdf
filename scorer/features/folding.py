"""Batch normalisation folded into the convolution before it: the same numbers with a pass over the maps less.

On a GPU a quarter of EfficientNet-Lite0's time goes into these passes. OpenVINO folds them when it converts a graph.

To import this module imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

log = logging.getLogger(__name__)

# Largest difference of maps, by their largest value, that is rounding: a judgement, tens of times what was seen.
_ROUNDING = 1e-4


def fold_batch_norms(extractor: torch.nn.Module, example: torch.Tensor) -> int:
    """Fold each batch normalisation that follows a convolution into it, and return how many there were.

    `extractor` is in evaluation mode and gives a sequence of maps for `example`. What follows what is seen while the
    example passes through. Where the maps change by more than rounding, everything stays as it was.
    """
    with torch.inference_mode():
        before = [layer.clone() for layer in extractor(example)]
    pairs = _pairs(extractor, example)
    parents = {child: (parent, name) for parent in extractor.modules() for name, child in parent.named_children()}
    kept = [(convolution, convolution.weight, convolution.bias) for convolution, _ in pairs]
    for convolution, norm in pairs:
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, name = parents[norm]
        setattr(parent, name, _without_norm(norm))
    with torch.inference_mode():
        if _is_same(before, extractor(example)):
            return len(pairs)
    log.debug("batch normalisation is not folded: the maps would change")
    for (convolution, weight, bias), (_, norm) in zip(kept, pairs, strict=True):
        convolution.weight, convolution.bias = weight, bias
        parent, name = parents[norm]
        setattr(parent, name, norm)
    return 0


def _pairs(extractor: torch.nn.Module, example: torch.Tensor) -> list[tuple[torch.nn.Conv2d, Any]]:
    """Return convolutions with the batch normalisation that takes their output, each used once for the example."""
    outputs: list[tuple[torch.Tensor, torch.nn.Conv2d]] = []
    pairs: list[tuple[torch.nn.Conv2d, Any]] = []

    def note(module: torch.nn.Conv2d, _inputs: Any, output: torch.Tensor) -> None:
        outputs.append((output, module))

    def match(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        pairs.extend((convolution, module) for output, convolution in outputs if output is inputs[0])

    hooks = []
    for module in extractor.modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_hook(note))
        elif isinstance(module, torch.nn.BatchNorm2d) and module.track_running_stats and module.affine:
            hooks.append(module.register_forward_pre_hook(match))
    try:
        with torch.inference_mode():
            extractor(example)
    finally:
        for hook in hooks:
            hook.remove()
    used = [convolution for _, convolution in outputs]
    return [(convolution, norm) for convolution, norm in pairs if used.count(convolution) == 1]


def _without_norm(norm: torch.nn.Module) -> torch.nn.Module:
    """Return what is left of a normalisation: timm's has an activation of its own."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, torch.nn.Module) else torch.nn.Identity()


def _is_same(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> bool:
    return all(
        float((left - right).abs().max()) <= _ROUNDING * float(left.abs().max())
        for left, right in zip(before, after, strict=True)
    )
