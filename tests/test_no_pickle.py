"""Bytes are never code: nothing in the house reads a pickle, and no message names a place that is not its own."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from discovery.learned import augment
from discovery.offline import anomaly_maps
from flawline import imaging, messages
from flawline.errors import FlawlineError
from flawline.messages import Codec
from flawline.object_store import MissingObjectError, ObjectStore
from flawline.settings.tree import load_settings
from ledger import snapshot
from producers.journal import read_text_journal
from producers.spool import Quota, Spool
from scorer import artefact
from scorer.features import weights
from scorer.features.workfolder import WorkFolder
from tests.support.example_messages import example
from tests.support.later import Later
from tests.test_house import modules

crop_backbone = Later("discovery.learned.crop_backbone")


# In the source

UNPICKLE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
SAFE_ONLY_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
NEVER = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load", "torch.hub.load"}


def unsafe(source: str) -> list[str]:
    """Return the imports and calls of a source text that can run code hidden in data."""
    result = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            result += [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLE:
            result.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).replace("numpy.", "np.")
            keyword, value = SAFE_ONLY_WITH.get(name, (None, None))
            arguments = {item.arg: ast.unparse(item.value) for item in node.keywords}
            if name in NEVER or (keyword and arguments.get(keyword) != str(value)):
                result.append(ast.unparse(node))
    return result


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file)",
        "numpy.load(file, allow_pickle=True)",
        "yaml.load(text, Loader=loader)",
        "eval(text)",
    ],
)
def test_what_unpickles_is_seen(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize("source", ["np.load(f, allow_pickle=False)", "torch.load(f, weights_only=True)", "m.eval()"])
def test_what_is_safe_is_let_pass(source: str) -> None:
    assert not unsafe(source)


@pytest.mark.system
def test_no_room_can_unpickle() -> None:
    sources = {name: file.read_text(encoding="utf-8") for name, file in modules().items()}
    assert not {name: calls for name, source in sources.items() if (calls := unsafe(source))}


# At every place that reads


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def files_of(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """Return what writes bytes to a file of this name and reads it."""

    def run(data: bytes, folder: Path) -> object:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        return read(folder / name)

    return run


def _model(data: bytes, folder: Path) -> object:
    for name in ("manifest.json", "arrays.safetensors", "backbone.xml"):
        (folder / name).write_bytes(data)
    return artefact.load(folder)


def _work_folder(data: bytes, folder: Path) -> object:
    work = WorkFolder(folder, None)
    (work.path / "step.npz").write_bytes(data)
    assert work.get("step") is None
    raise FlawlineError("it is made again")


def _spool(data: bytes, folder: Path) -> object:
    (folder / "1.spool").write_bytes(data)
    assert Spool(folder, Quota(1 << 20)).next() is None
    raise FlawlineError("nothing is in it")


def _journal(path: Path) -> object:
    assert read_text_journal(path) == (0, [])
    raise FlawlineError("nothing is in it")


READERS: dict[str, Callable[[bytes, Path], object]] = {
    **{
        messages.type_name(cls): lambda data, _, cls=cls: messages.decode(cls, data)
        for cls in messages.Message.__args__
    },
    "tensor": lambda data, _: messages.Tensor("object", (1,), data),
    "ledger state": lambda data, _: snapshot.decode_state(data),
    "image of a frame": lambda data, _: imaging.decode(data, Codec.PNG),
    "image file": files_of("a.png", imaging.read_image),
    "tiff file": files_of("a.tiff", imaging.read_image),
    "mask": lambda data, _: imaging.decode_mask(data),
    "mask file": lambda data, _: imaging.decode_mask_file(data),
    "crop of a defect": lambda data, _: augment.decode(data, data),
    "model": _model,
    "weights": files_of("w.pth", lambda path: weights._read_state(weights.Weights("resnet18", path))),
    "weights of timm": files_of("w.pth", lambda path: crop_backbone.load("test_vit", path, "cpu")),
    "safetensors": files_of("w.safetensors", lambda path: weights._read_state(weights.Weights("resnet18", path))),
    "anomaly map": files_of("m.npy", anomaly_maps.read),
    "work folder": _work_folder,
    "spool": _spool,
    "journal of before": files_of("cam.journal", _journal),
    "settings": files_of("line.toml", load_settings),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("wrapped", ["pickle", "pickle in an array"])
def test_a_pickle_is_refused_and_does_not_run(name: str, wrapped: str, tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "input"
    folder.mkdir()
    if wrapped == "pickle":
        data = pickle.dumps(Evil(mark))
    else:
        np.save(tmp_path / "evil.npy", np.array([Evil(mark)], dtype=object), allow_pickle=True)
        data = (tmp_path / "evil.npy").read_bytes()
    with pytest.raises((FlawlineError, ValueError)):
        READERS[name](data, folder)
    assert not mark.exists()


def test_the_pickle_would_run_where_it_is_read(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


# Places that messages name

PLACES = [
    "/etc/passwd",
    "../../../etc/passwd",
    "file:///etc/passwd",
    "http://10.0.0.1/latest",
    "A" * 64,
    "0" * 63 + "/",
    "",
]


@pytest.mark.parametrize("key", PLACES)
def test_no_frame_and_no_store_take_an_object_that_is_no_hash(key: str, tmp_path: Path) -> None:
    frame = example(messages.Frame)
    with pytest.raises(ValueError, match=r"object_key .* is no object key"):
        messages.Frame(**vars(frame) | {"object_key": key, "data": b""})
    store = ObjectStore(f"file://{tmp_path}/objects", "line-1")
    store.create()
    with pytest.raises(MissingObjectError, match="no SHA-256"):
        store.get(key, 4)


@pytest.mark.parametrize(
    "uri",
    ["http://169.254.169.254/latest", "https://a/b", "ssh://host/x", "github://a:b@/x", "simplecache::s3://bucket/m",
     "zip://x::file:///y", "reference://x", "ftp://a", "file://a\n", "", "/m" * 2_000],
)  # fmt: skip
def test_no_model_pointer_names_another_kind_of_place(uri: str) -> None:
    with pytest.raises(ValueError, match="uri"):
        messages.ModelPointer("active", "v1", uri, 5)


@pytest.mark.parametrize(
    "uri", ["/srv/models/1", "models/a:b", "file:///srv/m", "s3://bucket/m", "gs://b/m", "abfss://c@a.net/m"]
)
def test_a_model_pointer_names_a_folder_or_a_bucket(uri: str) -> None:
    assert messages.ModelPointer("active", "v1", uri, 5).uri == uri
