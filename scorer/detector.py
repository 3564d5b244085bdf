"""Scoring against a fitted model: groups of look-alikes, one bank per group and layer, one score for every image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from flawline.errors import FlawlineError
from flawline.messages import Decision
from scorer import artefact, calibration, golden, maps, whole_image
from scorer.coreset import projected
from scorer.evidence import Evidence
from scorer.features.backbone import Backbone
from scorer.features.graph import Graph, Image, Maps
from scorer.features.store import checked
from scorer.gallery import Gallery, Look, image_embeddings
from scorer.model import Model, embedding_layers, picture_layers, region_layers, whole_part
from scorer.regions.components import component_counts
from scorer.regions.masks import Mask, cooled, without_ignored
from scorer.scores import Grid, RegionInputs, Scores
from scorer.search import warm
from scorer.search.bank import Int8Index, trusted_kind, unit_rows
from scorer.search.neighbours import use_one_faiss_thread
from scorer.sub_looks import InLook
from scorer.vectors import Vectors

if TYPE_CHECKING:
    from scorer.batches.runner import BatchRunner


# Another light warms all of an image by so large a share of what its score rises, a defect by less. On eleven products,
# 24 good and 40 defective images each: .12 finds 64 of 72 changes (light, focus, noise, tint, place) that alarm a
# quarter of good parts or more, and at most 4 of 10 defects; 0 finds 71 and up to 97 %, .2 finds 52 and up to 23 %.
_SHARE_OF_SCORE = 0.12


class Detector(Protocol):
    """Any model that gives aligned scores, as workers and `scorer.regions` use it; `CoresetDetector` is one.

    `version` names the model, `alarm_rate` is the share of good parts that may fail to be accepted, `groups` the number
    of look-alike groups. `score` takes uint8 RGB images and their masks, see `CoresetDetector.score`. Regions use the
    rest: `heatmap_range` bounds the threshold of binarising, `field_px` gives the side of what the model sees at once
    of an image, in its pixels (None for the whole image), `sample_bits` are the depths of the images that it takes (8
    to 16, at most one of them above 8), `close_ups` gives feature maps (h, w, c) of enlarged parts of an image, and
    `embedding_version` names these features. `memory_shortages` counts how often a GPU's memory was used up.
    `is_unusual_throughout` tells another light or lens from a defect.
    """

    @property
    def version(self) -> str: ...
    @property
    def alarm_rate(self) -> float: ...
    @property
    def heatmap_range(self) -> tuple[float, float]: ...
    @property
    def embedding_version(self) -> str: ...
    @property
    def groups(self) -> int: ...
    @property
    def sample_bits(self) -> tuple[int, ...]: ...
    @property
    def memory_shortages(self) -> int: ...
    def score(self, images: Sequence[Image], masks: Sequence[Mask | None] | None = None) -> list[Scores]: ...
    def close_ups(self, parts: Sequence[Image]) -> list[Maps]: ...
    def field_px(self, height: int, width: int) -> int | None: ...
    def is_unusual_throughout(self, scores: Scores) -> bool: ...


class CoresetDetector:
    """The detector of Flawline: groups of look-alikes, a bank for each group and layer, and aligned scores.

    The scores of an image depend on the image alone: not on the process or the number of threads, nor on other images.
    With PyTorch they depend on the size of the batch by rounding.
    """

    def __init__(
        self,
        model: Model,
        graphs: Sequence[tuple[Graph, Path]],
        features: Backbone,
        report: dict[str, Any] | None = None,
        version: str = "",
        evidence: Callable[[], Evidence | None] = lambda: None,
    ) -> None:
        self.model = model
        self.report = report or {}
        self._evidence = evidence
        self._graphs = list(graphs)
        self._backbone = features
        self._version = version
        self._gallery = Gallery(model.embeddings, model.groups)
        self._galleries: dict[int, tuple[NDArray[np.intp], Gallery]] = {}
        self._galleries_lock = Lock()
        wholes = whole_part(model.layers, model.means, model.embeddings)
        self._wholes = [wholes[model.groups == k] for k in range(len(model.banks))]
        one_thread_per_image()
        self._pool = ThreadPoolExecutor(features.threads, "score")
        self._banks: dict[int, list[Int8Index]] = {}
        self._banks_of_looks: dict[int, list[list[Int8Index]]] = {}
        self._banks_lock = Lock()
        # All that is slow once happens here, so that no frame waits for it: kernels are compiled, or read, at their
        # first use, and banks are put in the order of the search (5 to 50 ms a group).
        warm.wait()
        component_counts(np.zeros((2, 2), np.float32), np.array([1, 0]))
        if not features.on_gpu:  # which has banks of its own
            trusted_kind()
            list(self._pool.map(self.banks, range(len(model.banks))))
            list(self._pool.map(self.banks_of_looks, model.groups_with_looks))
            self._banks[0][0].project(model.banks[0][0][:1], 1)
        self._batches = self._batch_runner()

    @cached_property
    def evidence(self) -> Evidence | None:
        """Where bank rows came from, and pictures of good images; read at first use, since no score needs it."""
        return self._evidence()

    @property
    def version(self) -> str:
        """Hash of the model's content; empty for a fitted model that is not saved yet."""
        return self._version

    @property
    def alarm_rate(self) -> float:
        """The share of good parts that may fail to be accepted, as the model was fitted."""
        return self.model.alarm_rate

    @property
    def cut_offs(self) -> tuple[calibration.Threshold, calibration.Threshold]:
        """The cut-offs of review and of reject."""
        return self.model.review, self.model.reject

    def is_unusual_throughout(self, scores: Scores) -> bool:
        """Return whether nearly all of an image is less usual than of good images, as under another light.

        A defect is hot itself, and what is around it hardly. Never with a model of an earlier release, which does not
        know how usual good images are.
        """
        if self.model.quiet is None:
            return False
        usual, limit = self.model.quiet[scores.group]
        heat = maps.quiet_heat(scores.heatmap)
        return bool(heat > limit and heat - usual >= _SHARE_OF_SCORE * scores.aligned)

    @property
    def heatmap_range(self) -> tuple[float, float]:
        """The heat map values between which binarising looks for its threshold; good parts rarely reach the first."""
        return self.model.heatmap_range

    @property
    def embedding_version(self) -> str:
        """Names the features of regions: two versions have the same only where their embeddings can be compared."""
        layers = [self.model.layers[i] for i in picture_layers(self.model.layers)]
        names = [f"{self._graphs[0][0].backbone}|{self._graphs[0][0].weights}"]
        names += [layer.name for layer in layers] + ["pad"] * (self.model.shape == "pad")
        return sha256("|".join(names).encode()).hexdigest()[:12]

    @property
    def groups(self) -> int:
        """Number of look-alike groups."""
        return len(self.model.banks)

    @property
    def runtime(self) -> str:
        """What the backbone runs on, with its precision."""
        return f"{self._backbone.runtime}-{self._backbone.precision}"

    def score(self, images: Sequence[Image], masks: Sequence[Mask | None] | None = None) -> list[Scores]:
        """Return the scores of uint8 RGB images (height, width, 3) of any size, in their order.

        `masks` hold for each image None or bool (height, width), False where nothing is inspected: nothing there
        scores, and the heat map is cool. Raises FlawlineError for an array that is no such image, or a mask of another
        size.
        """
        masks = [None] * len(images) if masks is None else masks
        for image, mask in zip(images, masks, strict=True):
            checked(image)
            check_mask(image, mask)
        return self._scored(images, masks)

    def _batch_runner(self) -> BatchRunner | None:
        """Return what scores images in batches, None for a runtime that takes them one by one."""
        if self._backbone.runtime != "torch":
            return None
        from scorer.batches.banks import Int8Banks  # here: torch takes seconds to import
        from scorer.batches.runner import BatchRunner
        from scorer.features.torch_engine import TorchBackbone

        assert isinstance(self._backbone, TorchBackbone)
        if self._backbone.on_gpu:
            return BatchRunner(self.model, self._backbone)
        groups = range(len(self.model.banks))
        banks = [Int8Banks([self.banks(k)[i] for k in groups]) for i in range(len(self.model.layers))]
        of_looks = [looks for k in self.model.groups_with_looks for looks in self.banks_of_looks(k)]
        banks_of_looks = [Int8Banks([bank[i] for bank in of_looks]) for i in range(len(self.model.layers))]
        return BatchRunner(self.model, self._backbone, banks, banks_of_looks if of_looks else None)

    def _scored(self, images: Sequence[Image], masks: Sequence[Mask | None]) -> list[Scores]:
        """Return the scores of images that are checked."""
        if self._batches is not None:
            return self._batches.score(images, masks)
        return list(self._pool.map(self._score_one, images, masks))

    def _score_one(self, image: Image, mask: Mask | None) -> Scores:
        return self.score_features(self._backbone.features(image), mask=None if mask is None or mask.all() else mask)

    @property
    def memory_shortages(self) -> int:
        """How often the memory of the device was used up, so that batches became smaller."""
        return self._batches.shortages if self._batches is not None else 0

    def score_features(self, features: Maps, group: int | None = None, mask: Mask | None = None) -> Scores:
        """Return the scores of one image from its feature maps (h, w, c), one for each layer.

        With `group`, for a known product where groups are products, the image is compared with that group only. `mask`
        as for `score`.
        """
        model = self.model
        means = self._means(features)
        look = self._look(means, group)
        group = look.group
        patches = self._unit_patches(features)
        distances, known = self._searched(patches, self.banks(group), features)
        ratios = self._ratios(distances, group, mask)
        log_score = maps.log_score(ratios, model.top_share)
        if mask is None:
            log_score += self._added_by_whole(means[-1], group)
        heatmap = np.log(ratios)
        if (in_look := self._in_look(features, patches, image_embeddings(means), group, mask)) is not None:
            log_score += in_look.added
            heatmap += in_look.heat
        level = model.level(group, look.neighbours)
        aligned = log_score - level
        standardised = aligned / float(model.widths[group])
        decision = self._decide(look, standardised)
        return Scores(
            group=group,
            raw=float(np.exp(log_score)),
            aligned=aligned,
            p_value=float(calibration.p_values(np.asarray(standardised), model.calibration)),
            decision=decision,
            heatmap=np.asarray(heatmap - level, dtype=np.float32),
            region_inputs=None
            if decision is Decision.ACCEPT
            else self._region_inputs(features, known, group, ratios.shape),
        )

    def in_look(self, features: Maps) -> InLook | None:
        """Return how an image compares with the good images of its own sub-look; None where its group has none."""
        embedding = image_embeddings(self._means(features))
        return self._in_look(features, self._unit_patches(features), embedding, self.route(features).group, None)

    def _in_look(
        self, features: Maps, patches: Sequence[Vectors], embedding: Vectors, group: int, mask: Mask | None
    ) -> InLook | None:
        if (sub_looks := self.model.sub_looks[group]) is None:
            return None
        look = int(sub_looks.of(embedding))
        distances, _ = self._searched(patches, self.banks_of_looks(group)[look], features)
        return sub_looks.compared(look, self._ratios(distances, group, mask), self.model.top_share)

    def _unit_patches(self, features: Maps) -> list[Vectors]:
        """Return the unit patch vectors (h * w, c) of each layer."""
        return [unit_rows(layer.reshape(-1, layer.shape[2])) for layer in self.maps_of(features)]

    def _searched(
        self, patches: Sequence[Vectors], banks: Sequence[Int8Index], features: Maps
    ) -> tuple[list[maps.Map], Maps]:
        """Return the distance maps (h, w) of an image's unit patches to banks, and what the banks know (h, w, c)."""
        distances, known = [], []
        for layer, rows, bank, layer_map in zip(self.model.layers, patches, banks, self.maps_of(features), strict=True):
            distance, nearest = projected(rows, bank, layer.neighbours)
            distances.append(distance.reshape(layer_map.shape[:2]))
            known.append(nearest.reshape(layer_map.shape))
        return distances, known

    def _ratios(self, distances: list[maps.Map], group: int, mask: Mask | None) -> maps.Map:
        """Return the map of all layers in the units of a group, cool where nothing is inspected."""
        units = self.model.units[group]
        if mask is None:
            return maps.combined(distances, units)
        return cooled(maps.combined(without_ignored(distances, units, mask), units), mask)

    def standardised(self, scores: Scores) -> float:
        """Return the aligned score in units of its group's spread, as the cut-offs are."""
        return scores.aligned / float(self.model.widths[scores.group])

    def field_px(self, height: int, width: int) -> int | None:
        """Return the side of the part of an image of this size that the model sees at once; None where it sees all."""
        return None

    @property
    def sample_bits(self) -> tuple[int, ...]:
        """The depths of the images that the model takes, in bits: those of its good images."""
        return self.model.sample_bits

    def close_ups(self, parts: Sequence[Image]) -> list[Maps]:
        """Return feature maps (h, w, c) of enlarged parts of an image: the first pass, from fine to deep."""
        pictures, batch = picture_layers(self.model.layers), self._backbone.batch
        features = [
            maps_of_part
            for start in range(0, len(parts), batch)
            for maps_of_part in self._backbone.features_of([checked(part) for part in parts[start : start + batch]])
        ]
        return [[maps_of_part[i] for i in pictures] for maps_of_part in features]

    def features(self, image: Image) -> Maps:
        """Return the feature maps (h, w, c) of a uint8 RGB image, one for each layer."""
        return self._backbone.features(checked(image))

    def maps_of(self, features: Maps) -> Maps:
        """Return the maps among the features of an image, without the vector of the image that may follow them."""
        return features[: len(self.model.layers)]

    def embeddings(self, features: Sequence[Maps]) -> Vectors:
        """Return the embeddings (n, d) of images from their feature maps, in the precision that a model keeps."""
        layers = embedding_layers(self.model.layers)
        means = [np.stack([maps_of_image[i].mean(axis=(0, 1)) for maps_of_image in features]) for i in layers]
        return np.asarray(image_embeddings(means).astype(np.float16), dtype=np.float32)

    @property
    def backbone(self) -> Backbone:
        """What turns images into features."""
        return self._backbone

    @property
    def threads(self) -> int:
        """Images that are scored at once."""
        return self._backbone.threads

    def replaced(self, model: Model, evidence: Evidence | None, report: dict[str, Any]) -> CoresetDetector:
        """Return a detector with another model on the same backbone."""
        return type(self)(model, self._graphs, self._backbone, report, evidence=lambda: evidence)

    def route(self, features: Maps, group: int | None = None) -> Look:
        """Return what an image with these feature maps resembles, among all good images or those of one group."""
        return self._look(self._means(features), group)

    def _means(self, features: Maps) -> list[NDArray[np.float64]]:
        """Return the mean features (c,) of the layers of the image embedding."""
        rows = (features[i].reshape(-1, features[i].shape[-1]) for i in embedding_layers(self.model.layers))
        # In double precision: as exact as numpy's mean along the first axis, in a third of its time.
        return [cv2.reduce(patches, 0, cv2.REDUCE_AVG, dtype=cv2.CV_64F)[0] for patches in rows]

    def _look(self, means: Sequence[NDArray[np.float64]], group: int | None) -> Look:
        embedding = image_embeddings(means)
        if group is None:
            return self._gallery.look(embedding, self.model.look_alikes)
        members, gallery = self._members(group)
        look = gallery.look(embedding, self.model.look_alikes)
        return Look(group, members[look.neighbours], look.distance)

    def _members(self, group: int) -> tuple[NDArray[np.intp], Gallery]:
        """Return the numbers of a group's good images, and their gallery, which is made once.

        At first use, since no image of a line names its group: only those of a data folder with known products do.
        """
        with self._galleries_lock:
            if group not in self._galleries:
                members = np.flatnonzero(self.model.groups == group)
                gallery = Gallery(self.model.embeddings[members], np.zeros(len(members), dtype=np.int64))
                self._galleries[group] = members, gallery
            return self._galleries[group]

    def _added_by_whole(self, deepest: NDArray[np.float64], group: int) -> float:
        """Return what the image as a whole adds to its log score: 0 unless it is unlike all good ones."""
        distances = whole_image.log_distances(unit_rows(deepest)[None], self._wholes[group])
        return float(self.model.wholes[group].added(distances)[0])

    def banks(self, group: int) -> list[Int8Index]:
        """Return the group's banks on a CPU, one for each layer, in the order that the search wants."""
        if (banks := self._banks.get(group)) is None:
            banks = [Int8Index(rows) for rows in self.model.banks[group]]
            with self._banks_lock:
                banks = self._banks.setdefault(group, banks)
        return banks

    def banks_of_looks(self, group: int) -> list[list[Int8Index]]:
        """Return the banks of each sub-look of a group, one for each layer."""
        sub_looks = self.model.sub_looks[group]
        assert sub_looks is not None
        if (banks := self._banks_of_looks.get(group)) is None:
            banks = [[Int8Index(rows) for rows in of_look] for of_look in sub_looks.banks]
            with self._banks_lock:
                banks = self._banks_of_looks.setdefault(group, banks)
        return banks

    def _decide(self, look: Look, standardised: float) -> Decision:
        if look.distance > self.model.gates[look.group]:
            return Decision.UNKNOWN_PRODUCT
        if standardised > self.model.reject.value:
            return Decision.REJECT
        return Decision.REVIEW if standardised > self.model.review.value else Decision.ACCEPT

    def _region_inputs(self, features: Maps, known: Maps, group: int, shape: tuple[int, ...]) -> RegionInputs:
        """Return the region inputs of a map of that shape; `known` holds what the banks know near each patch."""
        layers = [(features[i], known[i], self.model.means[i][group]) for i in region_layers(self.model.layers)]

        def make() -> tuple[Grid, Grid]:
            patches, residuals = [], []
            for layer, near, mean in layers:
                lengths = np.sqrt(np.einsum("ijk,ijk->ij", layer, layer))[:, :, None]
                patches.append(maps.enlarged(layer - mean, *shape[:2]))
                residuals.append(maps.enlarged(layer - lengths * near, *shape[:2]))
            return np.concatenate(patches, axis=2), np.concatenate(residuals, axis=2)

        return RegionInputs(make, sum(layer.nbytes + near.nbytes for layer, near, _ in layers))

    def raw_scores(self, images: Sequence[Image]) -> list[float]:
        """Return the raw score of each image."""
        return [scores.raw for scores in self.score(images)]

    def save(self, path: Path) -> str:
        """Write the artefact to folder `path`, whole or not at all, and return its version."""
        if self.evidence is not None and "golden" not in self.report:
            self.report["golden"] = golden.reference(self.evidence, self.raw_scores)
        self._version = artefact.save(
            path, self.model, self._graphs, self._backbone.runtime, self._backbone.precision, self.report, self.evidence
        )
        self._graphs = [(graph, path) for graph, _ in self._graphs]
        return self._version


def check_mask(image: Image, mask: Mask | None) -> None:
    """Raise FlawlineError when the mask of an image has another size."""
    if mask is not None and mask.shape != image.shape[:2]:
        raise FlawlineError(
            f"mask of shape {mask.shape} for an image of shape {image.shape[:2]}: draw it at the size of the image"
        )


def one_thread_per_image() -> None:
    """Keep matrix products, and what OpenCV does, on the thread that asks for them.

    Images are the unit of parallelism. Products that start threads of their own would fight over the same CPUs, and
    their sums would depend on the number of threads. The setting holds for the whole process.
    """
    threadpool_limits(limits=1, user_api="blas")
    use_one_faiss_thread()
    cv2.setNumThreads(1)
