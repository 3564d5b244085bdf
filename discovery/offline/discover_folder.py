"""`flawline discover --once`: classes of a folder of images in one go, without a line, to see and to evaluate.

Masks come from a fitted model, or from anomaly maps that any other detector has left beside the images. Names of
folders are the truth that the result is compared with; discovery itself never sees them.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from discovery.frame_class import frame_class
from discovery.learned import augment
from discovery.offline import agreement, anomaly_maps, example_page
from discovery.round import clustering
from flawline import imaging
from flawline.errors import FlawlineError, UsageError
from flawline.messages import DefectRegion
from flawline.settings.discovery import DiscoverySettings
from scorer.features import dataset
from scorer.regions import regions
from scorer.search.neighbours import faiss_module
from scorer.vectors import unit

if TYPE_CHECKING:
    from discovery.learned.crop_backbone import CropBackbone
    from scorer.detector import Detector

log = logging.getLogger(__name__)

NORMAL_PEAK_QUANTILE = 0.99
BATCH = 16
NONE = "none"
WITHOUT_MODEL = (8, 16)
"""Depths of images where no model says how many bits of a 16-bit file are used."""

Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Picture:
    """An image, and the name of the folder that says what it shows; None when no folder says so."""

    path: Path
    product: str
    kind: str | None

    @property
    def is_good(self) -> bool:
        return self.kind == dataset.GOOD


@dataclass
class Described:
    """Pictures and the regions of all of them, each with its picture's number and an embedding.

    `groups` are the look-alike groups of the regions' pictures, all 0 where no model has told.
    """

    pictures: list[Picture] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    regions: list[DefectRegion] = field(default_factory=list)
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    skipped: list[str] = field(default_factory=list)

    def add(self, picture: Picture, regions: Sequence[DefectRegion], group: int = 0) -> None:
        """Add a picture and its regions."""
        self.owners += [len(self.pictures)] * len(regions)
        self.groups += [group] * len(regions)
        self.pictures.append(picture)
        self.regions += regions


@dataclass(frozen=True, eq=False)
class Classes:
    """The class of each region (n) and of each picture, None for none; k, and how it was found."""

    by_region: list[str | None]
    by_picture: list[str | None]
    count: int
    proposals: dict[str, int]
    stability: float | None


def run(
    data: Path,
    settings: DiscoverySettings,
    *,
    detector: Detector | None = None,
    maps: Path | None = None,
    k: int | None = None,
    out: Path | None = None,
    progress: Progress = lambda done, total, stage: None,
) -> dict[str, Any]:
    """Return the classes of the images under `data` and their agreement with the folders' names; files go to `out`.

    Give either a fitted `detector` or a folder of `maps` with the images' relative paths. `k` classes are made, or as
    many as are estimated. Raises UsageError and FlawlineError in one line.
    """
    started = time.monotonic()
    if (detector is None) == (maps is None):
        raise UsageError("discover --once: give either --model MODEL, or --maps DIR with an anomaly map of each image")
    if k is not None and k < 1:
        raise UsageError(f"--k {k}: give 1 or more classes, or leave it out to have their number estimated")
    faiss_module()  # before the work
    shown = pictures(data)
    if out is not None:
        with _writing(out):  # before the work, so that hours of it are not lost to a wrong place
            out.mkdir(parents=True, exist_ok=True)
    needed = clustering.REGIONS_MIN if k is None else 0
    _require(needed, 0, len(shown))
    backbone = _backbone(settings, detector is None)
    if detector is not None:
        described = by_model(shown, detector, progress, needed)
    else:
        assert maps is not None
        described = by_maps(shown, data, maps, progress, needed)
    described.vectors = _vectors(described, backbone if detector is None or settings.embedding == "crop" else None)
    classes = classify(described, settings, k, backbone, progress)
    report = summary(described, classes, settings, k)
    report["seconds"] = time.monotonic() - started
    if out is not None:
        report["artefacts"] = write(out, described, classes, report)
    return report


def pictures(data: Path) -> list[Picture]:
    """Return the images under a folder: `<product>/test/<kind>/*`, else `<kind>/*`, else loose images of no kind."""
    if not data.is_dir():
        raise UsageError(f"{data}: no such folder: give the folder that holds the images")
    if any(data.glob("test/*/*")) or any(data.glob("*/test/*/*")):
        return [Picture(sample.path, sample.product, sample.label) for sample in dataset.test_samples(data)]
    loose = [
        Picture(path, data.name, path.parent.name if path.parent != data else None)
        for path in sorted([*data.glob("*"), *data.glob("*/*")])
        if path.is_file() and path.suffix.lower() in dataset.SUFFIXES
    ]
    if not loose:
        raise UsageError(f"{data}: holds no images: expected <product>/test/<kind>/*, <kind>/* or images")
    return loose


def by_model(shown: Sequence[Picture], detector: Detector, progress: Progress, needed: int = 0) -> Described:
    """Return the regions that a fitted model finds; images that it accepts have none.

    Raises FlawlineError as soon as all the images together can give fewer than `needed` regions.
    """
    described = Described()
    lo, hi = detector.heatmap_range
    for start in range(0, len(shown), BATCH):
        readable = _readable(shown[start : start + BATCH], described, detector.sample_bits)
        scored = detector.score([image for _, image in readable])
        for (picture, image), scores in zip(readable, scored, strict=True):
            extracted: list[DefectRegion] = []
            if scores.region_inputs is not None:
                maps = scores.heatmap, *scores.region_inputs.grids
                field_px = detector.field_px(*image.shape[:2])
                extracted = regions.extract(image, *maps, lo, hi, closer=detector.close_ups, field_px=field_px)
            described.add(picture, extracted, scores.group)
        done = min(start + BATCH, len(shown))
        _require(needed, len(described.regions), len(shown) - done)
        progress(done, len(shown), "images")
    return described


def by_maps(shown: Sequence[Picture], data: Path, folder: Path, progress: Progress, needed: int = 0) -> Described:
    """Return the regions in another detector's anomaly maps, on one scale over the whole set, as in AnomalyNCD.

    The range of thresholds starts where the maps of good images end, if there are any, else at the lowest peak.
    Raises FlawlineError as soon as all the images together can give fewer than `needed` regions.
    """
    paths = [anomaly_maps.path_of(picture.path, data, folder) for picture in shown]
    peaks = np.array([float(anomaly_maps.read(path).max()) for path in paths])
    good = np.array([picture.is_good for picture in shown])
    lo = float(np.quantile(peaks[good], NORMAL_PEAK_QUANTILE)) if good.any() else float(peaks.min())
    hi = float(peaks.max())
    above = peaks > lo
    if not lo < hi:
        raise FlawlineError(f"{folder}: all maps peak at {hi:g}: scale them over the whole set, not one by one")
    described = Described()
    # Regions want features too; here they are described by their crops afterwards.
    nothing = np.ones((8, 8, 1), np.float32)
    for number, (picture, path) in enumerate(zip(shown, paths, strict=True)):
        for _, image in _readable([picture], described, WITHOUT_MODEL):
            extracted = (
                regions.extract(image, anomaly_maps.read(path) - lo, nothing, nothing, 0.0, hi - lo)
                if above[number]
                else []
            )
            described.add(picture, extracted)
        _require(needed, len(described.regions), int(above[number + 1 :].sum()))
        progress(number + 1, len(shown), "images")
    return described


def classify(
    described: Described,
    settings: DiscoverySettings,
    k: int | None,
    backbone: CropBackbone | None = None,
    progress: Progress = lambda done, total, stage: None,
) -> Classes:
    """Return classes of regions and pictures, the largest first (`D-0001`). Raises FlawlineError for too few."""
    count = len(described.regions)
    if count == 0:
        raise FlawlineError("no image has a region to group: the model accepts them all, or the maps are empty")
    if k is not None and k > count:
        raise UsageError(f"--k {k}: only {count} regions were found: give fewer classes")
    vectors = unit(described.vectors)
    proposals: dict[str, int] = {}
    stability = None
    if k is None:
        groups = np.array(described.groups)
        clusters = clustering.cluster(vectors, groups=groups, limit=settings.class_limit, seed=settings.seed)
        if clusters is None:
            raise _too_few(f"{count} regions are")
        labels, proposals, stability = clusters.labels, dict(clusters.proposals), clusters.stability
    else:
        labels = clustering.fit(clustering.reduced(vectors), k, seed=settings.seed) if k > 1 else np.zeros(count, int)
    if settings.mode == "learned" and labels.max() > 0:
        labels = _learned(described, labels, settings, backbone, progress)
    return _named(described, labels, proposals, stability)


def _require(needed: int, count: int, left: int) -> None:
    """Raise FlawlineError when `count` regions and the most of the `left` images are fewer than `needed`."""
    if left and count + left * regions.REGION_LIMIT < needed:
        images = f"{left} images (at most {regions.REGION_LIMIT} regions each)"
        raise _too_few(f"{count} regions so far, and {images} to come, are" if count else f"{images} are")


def _too_few(what: str) -> FlawlineError:
    needed = clustering.REGIONS_MIN
    return FlawlineError(
        f"{what} too few to tell how many kinds there are ({needed} are needed): add images of defects, or give --k"
    )


def _learned(
    described: Described, labels: np.ndarray, settings: DiscoverySettings, backbone: CropBackbone | None, say: Progress
) -> np.ndarray:
    from discovery.learned import learned_round, learning

    assert backbone is not None
    labels = np.unique(labels, return_inverse=True)[1]
    scores = learned_round.anomaly_scores([region.peak for region in described.regions])
    task = learning.Task(
        crops=[augment.decode(region.crop, region.mask) for region in described.regions],
        vectors=unit(described.vectors),
        start=labels,
        confirmed=np.zeros(len(labels), bool),
        scores=scores if settings.learning_correction else None,
        epochs=settings.learning_epochs,
        seed=settings.seed,
    )
    return learning.learn(task, backbone, lambda stage, done, total: say(done, total, stage)).labels


def _named(described: Described, labels: np.ndarray, proposals: dict[str, int], stability: float | None) -> Classes:
    """Return the classes with names by size, and the class of each picture by its regions."""
    sizes = Counter(labels[labels >= 0].tolist())
    order = sorted(sizes, key=lambda label: (-sizes[label], label))
    names = {label: f"D-{number:04d}" for number, label in enumerate(order, start=1)}
    by_region = [names.get(int(label)) for label in labels]  # none for what learning calls nothing
    rows: dict[int, list[int]] = {}
    for row, owner in enumerate(described.owners):
        rows.setdefault(owner, []).append(row)
    by_picture: list[str | None] = []
    for number in range(len(described.pictures)):
        mine = rows.get(number, [])
        by_picture.append(frame_class([by_region[row] for row in mine], [described.regions[row].peak for row in mine]))
    return Classes(by_region, by_picture, len(order), proposals, stability)


def summary(described: Described, classes: Classes, settings: DiscoverySettings, k: int | None) -> dict[str, Any]:
    """Return the content of the printed and the JSON report."""
    kinds: dict[str, Counter[str]] = {}
    for picture, name in zip(described.pictures, classes.by_picture, strict=True):
        if name is not None:
            kinds.setdefault(name, Counter())[picture.kind or "?"] += 1
    members = Counter(name for name in classes.by_region if name is not None)
    return {
        "images": len(described.pictures),
        "images_with_regions": len(set(described.owners)),
        "regions": len(described.regions),
        "skipped_images": described.skipped,
        "mode": settings.mode,
        "k": {
            "found": classes.count,
            "given": k,
            "true": len({picture.kind for picture in described.pictures if picture.kind and not picture.is_good}),
            "proposals": classes.proposals,
            "stability": classes.stability,
        },
        "agreement": _agreement(described, classes),
        "classes": [
            {
                "id": name,
                "regions": size,
                "images": sum(kinds.get(name, Counter()).values()),
                "kinds": kinds.get(name, {}),
            }
            for name, size in sorted(members.items())
        ],
    }


def _agreement(described: Described, classes: Classes) -> dict[str, Any]:
    """Return the three figures over the defective images, over all images, and over the defective ones by product."""
    rows = [
        (picture, name or NONE)
        for picture, name in zip(described.pictures, classes.by_picture, strict=True)
        if picture.kind is not None
    ]
    parts = {"defects": [row for row in rows if not row[0].is_good], "all": rows}
    products = sorted({picture.product for picture, _ in rows})
    if len(products) > 1:
        parts |= {product: [row for row in parts["defects"] if row[0].product == product] for product in products}
    return {
        name: {"images": len(part)}
        | agreement.agreement([_truth(picture, products) for picture, _ in part], [name for _, name in part])
        for name, part in parts.items()
        if part
    }


def _truth(picture: Picture, products: Sequence[str]) -> str:
    return f"{picture.product}/{picture.kind}" if len(products) > 1 and not picture.is_good else str(picture.kind)


def write(out: Path, described: Described, classes: Classes, report: dict[str, Any]) -> dict[str, str]:
    """Write `classes.json`, `images.csv` and `classes.html` to folder `out`; return their paths."""
    places = {
        name: out / f for name, f in (("report", "classes.json"), ("table", "images.csv"), ("sheet", "classes.html"))
    }
    examples: dict[str, list[example_page.Example]] = {}
    for row, name in enumerate(classes.by_region):
        picture = described.pictures[described.owners[row]]
        if name is not None:
            title = f"{picture.product}/{picture.kind or ''}/{picture.path.name}"
            examples.setdefault(name, []).append(example_page.Example(described.regions[row].crop, title))
    with _writing(out):
        places["report"].write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        with places["table"].open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["image", "product", "kind", "class", "regions"])
            counts = Counter(described.owners)
            for number, picture in enumerate(described.pictures):
                name = classes.by_picture[number] or ""
                table.writerow([picture.path, picture.product, picture.kind or "", name, counts[number]])
        places["sheet"].write_text(example_page.page(examples), encoding="utf-8")
    return {name: str(path) for name, path in places.items()}


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FlawlineError(f"--out {out}: cannot be written: {error.strerror}: choose another folder") from error


def _backbone(settings: DiscoverySettings, needed: bool) -> CropBackbone | None:
    if not needed and settings.mode == "centroids" and settings.embedding == "worker":
        return None  # torch need not be imported
    from discovery.learned import crop_backbone

    return crop_backbone.load(settings.crop_backbone, settings.crop_weights, settings.device)


def _vectors(described: Described, backbone: CropBackbone | None) -> np.ndarray:
    if backbone is not None:
        return backbone.embed([augment.decode(region.crop, region.mask) for region in described.regions])
    if not described.regions:
        return described.vectors
    return np.stack([region.embedding.array().astype(np.float32) for region in described.regions])


def _readable(
    shown: Sequence[Picture], described: Described, depths: Sequence[int]
) -> list[tuple[Picture, np.ndarray]]:
    readable = []
    for picture in shown:
        try:
            readable.append((picture, imaging.at_depth(imaging.read_samples(picture.path), depths)))
        except FlawlineError as error:
            log.warning("skipped: %s", error)
            described.skipped.append(str(picture.path))
    return readable
