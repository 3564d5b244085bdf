"""The model artefact: a folder of plain arrays, the backbone's graph, and a manifest with the hash of each file.

Nothing in it is code, and nothing is unpickled. It is written beside its place and renamed into it, so that a folder
with the model's name is always whole. Loading verifies every hash and refuses anything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from flawline.errors import FlawlineError, UsageError
from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer.calibration import Threshold
from scorer.evidence import Evidence
from scorer.features.graph import Graph
from scorer.features.weights import sha256_of
from scorer.maps import LayerUnit
from scorer.model import Model, Tiles, embedding_layers
from scorer.shapes import Cutting
from scorer.sub_looks import SubLooks
from scorer.whole_image import WholeUnit

FORMAT = 4
_READ = (2, 3, FORMAT)
"""Formats that are read. Format 2 does not hold the images' depth: those of 16 bits were taken to use them all."""
_PLAIN = 3
"""The format of a model that releases before format 4 score rightly: without sub-looks, with the usual share of the
patches in its score, of images that are squeezed or cut into tiles of one size."""
_DEPTHS_OF_FORMAT_2 = [8, 16]
_USUAL_TOP_SHARE = 0.003
"""What a model has that does not name its share."""
_MANIFEST = "manifest.json"
_ARRAYS = "model.safetensors"
_EVIDENCE = "evidence.safetensors"


@dataclass(frozen=True)
class Artefact:
    """A model as it is on disk: arrays, graphs with their folder, runtime and precision of the fit, and its report."""

    model: Model
    graphs: list[tuple[Graph, Path]]
    runtime: str
    precision: str
    version: str
    report: dict[str, Any]
    folder: Path

    def evidence(self) -> Evidence | None:
        """Return where bank rows came from, and pictures of good images; None for a model saved without them."""
        file = self.folder / _EVIDENCE
        if not file.is_file():
            return None
        arrays = load_file(file)
        layers = range(len(self.model.layers))
        return Evidence(
            sources=[[arrays[f"source.{k}.{i}"] for i in layers] for k in range(len(self.model.banks))],
            look_sources=[
                [[arrays[f"look_source.{k}.{look}.{i}"] for i in layers] for look in range(count)]
                for k, count in enumerate(self.model.look_counts)
            ],
            names=[str(name) for name in self.report.get("names", [])],
            pictures={
                int(name.removeprefix("picture.")): jpeg.tobytes()
                for name, jpeg in arrays.items()
                if name.startswith("picture.")
            },
            sample_bits=self.model.sample_bits,
        )

    def settings(self) -> ScorerSettings:
        """Return the settings of the fit. Raises FlawlineError for a model that does not hold them."""
        try:
            return ScorerSettings(**self.report["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise FlawlineError(f"model {self.version}: does not say how it was fitted: fit it again") from error


def save(
    path: Path,
    model: Model,
    graphs: Sequence[tuple[Graph, Path]],
    runtime: str,
    precision: str,
    report: dict[str, Any],
    evidence: Evidence | None = None,
) -> str:
    """Write the model to folder `path` and return its version; an older model there is replaced.

    `report` (fit seconds, counts) is kept, but is no part of the version: the same data and seed give the same version.
    Raises UsageError for a place that holds something else, FlawlineError when the files cannot be written.
    """
    check_place(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise FlawlineError(f"{path}: cannot be written: {error.strerror}: choose another place") from error
    try:
        if evidence is not None:
            _write_evidence(partial, evidence)
            report = report | {
                "names": evidence.names
            }  # no part of the version, since the model does not depend on names
        version = _write(partial, model, graphs, runtime, precision, report)
        partial.chmod(0o750)
        _put_in_place(partial, path)
    except OSError as error:
        raise FlawlineError(
            f"{path}: cannot be written: {error.strerror}: free space or choose another place"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return version


def check_place(path: Path) -> None:
    """Raise UsageError when no model can be written to folder `path`; ask before the work, not after it."""
    if path.exists() and not (path / _MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path}: exists and is no model: choose another place or remove it")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: cannot be written, since {above} is no writable folder: choose another place")


def _put_in_place(partial: Path, path: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = partial.with_name(f"{partial.name}-old")
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_evidence(folder: Path, evidence: Evidence) -> None:
    arrays: dict[str, np.ndarray] = {
        f"source.{k}.{i}": rows for k, layers in enumerate(evidence.sources) for i, rows in enumerate(layers)
    }
    arrays |= {
        f"look_source.{k}.{look}.{i}": rows
        for k, looks in enumerate(evidence.look_sources)
        for look, layers in enumerate(looks)
        for i, rows in enumerate(layers)
    }
    arrays |= {f"picture.{i}": np.frombuffer(data, np.uint8) for i, data in evidence.pictures.items()}
    save_file(arrays, folder / _EVIDENCE)


def _write(
    folder: Path,
    model: Model,
    graphs: Sequence[tuple[Graph, Path]],
    runtime: str,
    precision: str,
    report: dict[str, Any],
) -> str:
    arrays: dict[str, np.ndarray] = {
        "embeddings": model.embeddings.astype(np.float16),
        "groups": model.groups.astype(np.int32),
        "log_scores": model.log_scores,
        "gates": model.gates,
        "widths": model.widths,
        "standardised": model.standardised,
    }
    arrays |= {f"means.{i}": means for i, means in enumerate(model.means)}
    if model.tiles is not None:
        arrays["tile_sources"] = model.tiles.sources
    if model.copies is not None:
        arrays["copies"] = model.copies
    if model.contents is not None:
        arrays["contents"] = model.contents
    if model.quiet is not None:
        arrays["quiet"] = model.quiet
    for k, banks in enumerate(model.banks):
        arrays |= {f"bank.{k}.{i}": bank.astype(np.float16) for i, bank in enumerate(banks)}
    for k, looks in enumerate(model.sub_looks):
        if looks is not None:
            arrays[f"look_centres.{k}"] = looks.centres.astype(np.float16)
            for look, of_look in enumerate(looks.banks):
                arrays |= {f"look_bank.{k}.{look}.{i}": bank.astype(np.float16) for i, bank in enumerate(of_look)}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / _ARRAYS)
    for graph, source in graphs:
        for suffix in (".xml", ".bin"):
            shutil.copyfile(source / f"{graph.stem}{suffix}", folder / f"{graph.stem}{suffix}")
    content: dict[str, Any] = {
        "format": _PLAIN if _is_plain(model) else FORMAT,
        "layers": [layer.model_dump() for layer in model.layers],
        "units": [[asdict(unit) for unit in units] for units in model.units],
        "wholes": [asdict(unit) for unit in model.wholes],
        "shares": model.shares,
        "review": asdict(model.review),
        "reject": asdict(model.reject),
        "heatmap_range": list(model.heatmap_range),
        "look_alikes": model.look_alikes,
        "shape": model.shape,
        "top_share": model.top_share,
        "tiles": None if model.tiles is None else _cutting(model.tiles.cutting),
        "alarm_rate": model.alarm_rate,
        "sample_bits": list(model.sample_bits),
        "backbone": [asdict(graph) for graph, _ in graphs],
        "runtime": runtime,
        "precision": precision,
        "files": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
    }
    if model.groups_with_looks:
        content["sub_looks"] = [None if looks is None else asdict(looks.unit) for looks in model.sub_looks]
    version = _digest(content)[:12]
    whole = {"version": version, **content, "report": report}
    whole["checksum"] = _digest(whole)
    (folder / _MANIFEST).write_text(json.dumps(whole, indent=1), encoding="utf-8")
    for file in folder.iterdir():
        # It holds images. safetensors writes for the owner only, and workers may run as another user of the group.
        file.chmod(0o640)
    return version


def add_to_report(path: Path, entries: dict[str, Any]) -> None:
    """Add entries to the report of the model in folder `path`, which is no part of its version. Raises FlawlineError.

    The manifest is replaced whole or not at all.
    """
    whole = _manifest(path)
    whole["report"] = whole.get("report", {}) | entries
    del whole["checksum"]
    whole["checksum"] = _digest(whole)
    partial = path / f".{_MANIFEST}.part"
    try:
        partial.write_text(json.dumps(whole, indent=1), encoding="utf-8")
        partial.chmod(0o640)
        partial.replace(path / _MANIFEST)
    except OSError as error:
        raise FlawlineError(f"{path}: cannot be written: {error.strerror}: free space") from error
    finally:
        partial.unlink(missing_ok=True)


def version_of(path: Path) -> str | None:
    """Return the version of the model in folder `path`, None where there is none that this release reads."""
    try:
        return str(_manifest(path)["version"])
    except (FlawlineError, OSError, KeyError):
        return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load(path: Path) -> Artefact:
    """Read and verify the model in folder `path`.

    Raises FlawlineError, which names the file, when one is missing, cannot be read, or has not the manifest's hash.
    """
    manifest = _manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise FlawlineError(f"{file}: is missing from the model: fit it again or copy it whole")
        if sha256_of(file) != expected:
            raise FlawlineError(f"{file}: is damaged (its SHA-256 is not the manifest's): fit or copy it again")
    try:
        arrays = load_file(path / _ARRAYS)
        model = _model(manifest, arrays)
        graphs = [(Graph.from_json(graph), path) for graph in manifest["backbone"]]
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise FlawlineError(f"{path}: is no model of this release ({error!r}): fit it again") from error
    return Artefact(
        model, graphs, manifest["runtime"], manifest["precision"], manifest["version"], manifest.get("report", {}), path
    )


def _manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    if not path.is_dir():
        raise FlawlineError(
            f"{path}: is no folder: give the folder of a model, which flawline fit DATA --out {path} makes"
        )
    if not file.is_file():
        raise FlawlineError(
            f"{path}: holds no {_MANIFEST}, so it is no model: make one with flawline fit DATA --out MODEL"
        )
    manifest: Any = None
    with contextlib.suppress(ValueError):
        manifest = json.loads(file.read_text(encoding="utf-8"))
    whole = manifest if isinstance(manifest, dict) else {}
    if _digest({key: value for key, value in whole.items() if key != "checksum"}) != whole.get("checksum"):
        raise FlawlineError(f"{file}: is damaged (its checksum does not match): fit it again or copy it again")
    version = whole.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise FlawlineError(
            f"{file}: has format {version}, written by a newer release than this one, which reads {FORMAT}: update "
            "flawline, or fit it again"
        )
    if version not in _READ:
        raise FlawlineError(f"{file}: has format {version!r}, this release reads {FORMAT}: fit it again")
    return whole


def _model(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
    layers = tuple(LayerSettings(**layer) for layer in manifest["layers"])
    groups = arrays["groups"].astype(np.int64)
    count = int(groups.max()) + 1
    low, high = manifest["heatmap_range"]
    return Model(
        layers=layers,
        banks=[[arrays[f"bank.{k}.{i}"].astype(np.float32) for i in range(len(layers))] for k in range(count)],
        units=[[LayerUnit(**unit) for unit in units] for units in manifest["units"]],
        wholes=[WholeUnit(**unit) for unit in manifest["wholes"]],
        sub_looks=[
            _sub_looks(unit, arrays, k, len(layers)) for k, unit in enumerate(manifest.get("sub_looks", [None] * count))
        ],
        shares=[float(share) for share in manifest["shares"]],
        means=[arrays[f"means.{i}"] for i in range(1 + max(len(layers) - 1, *embedding_layers(layers)))],
        embeddings=arrays["embeddings"].astype(np.float32),
        groups=groups,
        log_scores=arrays["log_scores"],
        gates=arrays["gates"],
        widths=arrays["widths"],
        standardised=arrays["standardised"],
        review=Threshold(**manifest["review"]),
        reject=Threshold(**manifest["reject"]),
        heatmap_range=(float(low), float(high)),
        look_alikes=int(manifest["look_alikes"]),
        alarm_rate=float(manifest["alarm_rate"]),
        tiles=_tiles(manifest["tiles"], arrays),
        copies=arrays.get("copies"),
        top_share=float(manifest.get("top_share", _USUAL_TOP_SHARE)),
        contents=arrays["contents"] if manifest.get("shape") == "pad" else None,
        quiet=arrays.get("quiet"),
        sample_bits=tuple(manifest.get("sample_bits", _DEPTHS_OF_FORMAT_2)),
    )


def _sub_looks(
    unit: dict[str, float] | None, arrays: dict[str, np.ndarray], group: int, layers: int
) -> SubLooks | None:
    if unit is None:
        return None
    centres = arrays[f"look_centres.{group}"].astype(np.float32)
    banks = [
        [arrays[f"look_bank.{group}.{look}.{i}"].astype(np.float32) for i in range(layers)]
        for look in range(len(centres))
    ]
    return SubLooks(centres, banks, WholeUnit(**unit))


def _is_plain(model: Model) -> bool:
    is_of_old_shape = model.shape == "squeeze" or (model.tiles is not None and model.tiles.cutting.side_px is not None)
    return is_of_old_shape and not model.groups_with_looks and model.top_share == _USUAL_TOP_SHARE


def _cutting(cutting: Cutting) -> dict[str, Any] | list[int]:
    side_px = cutting.side_px
    return asdict(cutting) if side_px is None else [side_px, round(side_px * cutting.overlap)]


def _tiles(stored: dict[str, Any] | list[int] | None, arrays: dict[str, np.ndarray]) -> Tiles | None:
    if stored is None:
        return None
    if isinstance(stored, list):  # both in pixels
        side_px, overlap_px = stored
        return Tiles(Cutting(side_px, overlap_px / side_px), arrays["tile_sources"])
    shapes = stored["shapes"]
    cutting = Cutting(stored["side_px"], stored["overlap"], None if shapes is None else tuple(shapes))
    return Tiles(cutting, arrays["tile_sources"])


def size_bytes(path: Path) -> int:
    """Return the bytes of all files of the model."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
