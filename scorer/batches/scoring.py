"""Scores a batch of images on a device of PyTorch, from pixels to decisions, without a step on the CPU.

It computes what `detector.CoresetDetector.score_features` computes for one image, in the same order, with all shapes
fixed by the size of the batch: so that a CUDA graph can replay it, and no image's score depends on its neighbours.

To import this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from flawline.messages import Decision
from scorer import maps, whole_image
from scorer.batches.banks import LayerBanks, layer_banks
from scorer.features.padding import Padding
from scorer.features.torch_engine import TorchBackbone
from scorer.gallery import VOTES
from scorer.model import Model, embedding_layers, region_layers, whole_part
from scorer.search.torch_index import unit_rows
from scorer.whole_image import WholeUnit

DECISIONS = (Decision.ACCEPT, Decision.REVIEW, Decision.REJECT, Decision.UNKNOWN_PRODUCT)
"""Decisions by their number in a score row."""


@dataclass(frozen=True)
class Inputs:
    """What b images are scored from.

    `pixels` uint8 (b, size, size, 3) for each pass of the backbone. `inspected` bool (b, g, g) for each grid that the
    layers have, in rising order, True where patches count; `masked` bool (b,), True where some of an image's do not.
    `contents` int64 (b, 2) are the rows and columns of cells that images fill, of use with padding only.
    """

    pixels: list[torch.Tensor]
    inspected: list[torch.Tensor]
    masked: torch.Tensor
    contents: torch.Tensor

    def first(self, count: int) -> Inputs:
        """Return the first images, without a copy."""
        return Inputs(
            [tensor[:count] for tensor in self.pixels],
            [tensor[:count] for tensor in self.inspected],
            self.masked[:count],
            self.contents[:count],
        )

    def to(self, device: torch.device) -> Inputs:
        """Return the same on a device; from page-locked memory nobody waits for the copy."""
        return Inputs(
            [tensor.to(device, non_blocking=True) for tensor in self.pixels],
            [tensor.to(device, non_blocking=True) for tensor in self.inspected],
            self.masked.to(device, non_blocking=True),
            self.contents.to(device, non_blocking=True),
        )

    def copy_(self, source: Inputs) -> None:
        """Overwrite the images with those of `source`."""
        for target, values in zip(self.pixels, source.pixels, strict=True):
            target.copy_(values, non_blocking=True)
        for target, values in zip(self.inspected, source.inspected, strict=True):
            target.copy_(values, non_blocking=True)
        self.masked.copy_(source.masked, non_blocking=True)
        self.contents.copy_(source.contents, non_blocking=True)


@dataclass(frozen=True)
class Batch:
    """The scores of b images, on the device.

    `rows` float64 (b, 5): group, log score, aligned score, p-value, and the number of the decision. `heatmaps` float32
    (b, s, s). `features` are the maps (b, h, w, c) that the scores were made of. Maps have their padding still.
    """

    rows: torch.Tensor
    heatmaps: torch.Tensor
    features: list[torch.Tensor]


class BatchScoring:
    """A fitted model on the device of its backbone.

    `banks` are those of each layer, and `banks_of_looks` those of each layer for all sub-looks of all groups in turn,
    where they are made already.
    """

    def __init__(
        self,
        model: Model,
        backbone: TorchBackbone,
        banks: Sequence[LayerBanks] | None = None,
        banks_of_looks: Sequence[LayerBanks] | None = None,
    ) -> None:
        self.device = backbone.device
        self._model = model
        self._backbone = backbone
        self._banks = banks or [
            layer_banks([of_group[i] for of_group in model.banks], self.device) for i in range(len(model.layers))
        ]
        self._looks = None
        if model.groups_with_looks:
            self._looks = _Looks(model, self.device, banks_of_looks)
        self.grids = backbone.grids
        self.distinct_grids = sorted(set(self.grids))
        self.side = max(self.grids)
        self._enlarging = [self._tensor(_enlarging(grid, self.side)) for grid in self.grids]
        self._blurring = self._tensor(_blurring(self.side))
        self._top = max(1, round(model.top_share * self.side**2))
        padding = backbone.padding
        self._padded = None if padding is None else _PaddedMaps(padding, self.grids, model.top_share, self.device)
        self._medians = self._tensor([[unit.median for unit in units] for units in model.units])
        self._factors = self._tensor(
            [[unit.weight / unit.width / sum(u.weight for u in units) for unit in units] for units in model.units]
        )
        self._means = [self._tensor(means) for means in model.means]
        self._embeddings = self._tensor(model.embeddings)
        self._groups = torch.tensor(model.groups, device=self.device)
        sizes = np.bincount(model.groups, minlength=len(model.banks))
        self._sizes = torch.tensor(sizes, device=self.device)
        self._wholes = self._tensor(whole_part(model.layers, model.means, model.embeddings))
        self._whole_units = self._exact([[unit.median, unit.reach, unit.gain] for unit in model.wholes])
        self._log_scores = self._exact(model.log_scores)
        self._shares = self._exact(model.shares)
        self._levels = self._exact(model.group_levels)
        self._widths = self._exact(model.widths)
        self._gates = self._exact(model.gates)
        self._calibration = self._exact(model.calibration)

    def __call__(self, inputs: Inputs) -> Batch:
        """Return the scores of b images."""
        features = self._backbone.forward(inputs.pixels)
        means = [self._mean(features[i].double(), inputs.contents) for i in embedding_layers(self._model.layers)]
        embeddings = unit_rows(torch.cat([unit_rows(layer) for layer in means], dim=1))
        groups, neighbours, distance = self._look(embeddings)
        patches = [unit_rows(features[i].flatten(1, 2)) for i in range(len(self._model.layers))]
        ratios = self._ratios(patches, self._banks, groups, groups, inputs)
        log_score = self._log_score(ratios, inputs.contents)
        log_score = log_score + torch.where(inputs.masked, 0.0, self._added_by_whole(means[-1], groups))
        heat = ratios.log()
        if self._looks is not None:
            numbers = self._looks.of(embeddings, groups)
            in_look = self._ratios(patches, self._looks.banks, numbers, groups, inputs)
            log_score = log_score + self._looks.added(self._log_score(in_look, inputs.contents), groups)
            heat = heat + self._looks.added(in_look.log().double(), groups)
        level = self._level(groups, neighbours)
        aligned = log_score - level
        standardised = aligned / self._widths[groups]
        rows = torch.stack(
            [
                groups.double(),
                log_score,
                aligned,
                self._p_values(standardised),
                self._decisions(standardised, distance > self._gates[groups]),
            ],
            dim=1,
        )
        return Batch(rows, (heat - level[:, None, None]).float(), features)

    def inputs(self, sizes: Sequence[int], most: int) -> Inputs:
        """Return empty inputs on the device for up to `most` images, with passes of these sizes; nothing is masked."""
        return Inputs(
            [torch.zeros(most, size, size, 3, dtype=torch.uint8, device=self.device) for size in sizes],
            [torch.ones(most, grid, grid, dtype=torch.bool, device=self.device) for grid in self.distinct_grids],
            torch.zeros(most, dtype=torch.bool, device=self.device),
            torch.full((most, 2), self._padded.cells if self._padded else 1, device=self.device),
        )

    def describe(
        self, features: Sequence[torch.Tensor], images: Sequence[int], groups: Sequence[int], contents: torch.Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the patches and residuals (n, s, s, D) of some images of a batch, with their padding.

        See `detector.Scores`. `features` are the batch's, `images` the numbers of the images in it, `groups` their
        groups, and `contents` (n, 2) as in `Inputs`.
        """
        contents = contents.to(self.device)
        numbers = torch.tensor(images, device=self.device)
        of_groups = torch.tensor(groups, device=self.device)
        patches, residuals = [], []
        for i in region_layers(self._model.layers):
            layer = features[i][numbers].float()
            rows = layer.flatten(1, 2)
            _, known = self._banks[i].project(unit_rows(rows), of_groups, self._model.layers[i].neighbours)
            rest = rows - rows.square().sum(-1, keepdim=True).sqrt() * known
            patches.append(self._enlarged(layer - self._means[i][of_groups][:, None, None, :], i, contents))
            residuals.append(self._enlarged(rest.view_as(layer), i, contents))
        return torch.cat(patches, dim=3).cpu().numpy(), torch.cat(residuals, dim=3).cpu().numpy()

    @property
    def size_bytes(self) -> int:
        """The memory of the banks on the device."""
        of_looks = [] if self._looks is None else self._looks.banks
        return sum(banks.size_bytes for banks in [*self._banks, *of_looks])

    def _look(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the groups (b,) of images, their most similar good images (b, k), and the distance to the first.

        The twin of `gallery.Gallery.look`. Where fewer than k of them count, the others are -1.
        """
        count = min(max(self._model.look_alikes, VOTES), len(self._embeddings))
        similarity, numbers = (embeddings @ self._embeddings.T).topk(count, dim=1)
        votes = self._groups[numbers[:, :VOTES]]
        times = (votes[:, :, None] == votes[:, None, :]).sum(2)
        # Of groups with equally many votes, the group of the most similar image wins.
        place = torch.arange(votes.shape[1], device=self.device)
        groups = votes.gather(1, (times * votes.shape[1] - place).argmax(1, keepdim=True))[:, 0]
        most = (self._sizes[groups] - 1).clamp(1, self._model.look_alikes)
        counts = torch.arange(count, device=self.device) < most[:, None]
        distance = (2 - 2 * similarity[:, 0].double()).clamp_min(0).sqrt()
        return groups, numbers.where(counts, -1)[:, : self._model.look_alikes], distance

    def _log_score(self, ratios: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Return the log scores (b,) of maps (b, s, s): the twin of `maps.log_score`."""
        highest = ratios.flatten(1).topk(self._top, dim=1).values.double()
        return (highest.mean(1) if self._padded is None else self._padded.mean_of_top(highest, contents)).log()

    def _ratios(
        self,
        patches: Sequence[torch.Tensor],
        layers: Sequence[LayerBanks],
        banks: torch.Tensor,
        groups: torch.Tensor,
        inputs: Inputs,
    ) -> torch.Tensor:
        """Return the combined map (b, s, s) of images: the twin of `maps.combined`.

        `patches` (b, p, c) of each layer are compared with the banks (b,) by number in `layers`, in the units of
        `groups` (b,).
        """
        inspected = inputs.inspected
        total = torch.zeros(len(groups), self.side, self.side, device=self.device)
        for i, layer in enumerate(self._model.layers):
            distances = layers[i].distances(patches[i], banks, layer.neighbours)
            grid, median = self.grids[i], self._medians[groups, i, None, None]
            distances = torch.where(inspected[self.distinct_grids.index(grid)], distances.view(-1, grid, grid), median)
            logs = (distances.clamp_min(maps.FLOOR) / median).log() * self._factors[groups, i, None, None]
            if self._padded is not None:
                logs = self._padded.continued(logs, inputs.contents)
            total = total + self._enlarging[i] @ logs @ self._enlarging[i].T
        ratios = total.clamp_max(maps.FARTHEST).exp()
        if self._padded is not None:
            ratios = self._padded.mirrored(ratios, inputs.contents)
        ratios = self._blurring @ ratios @ self._blurring.T
        whole = inspected[-1]
        lowest = ratios.masked_fill(~whole, torch.inf).amin(dim=(1, 2), keepdim=True)
        return torch.where(whole, ratios, lowest)

    def _mean(self, layer: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Return the mean features (b, c) of a layer's maps (b, h, w, c), of what images fill of them."""
        if self._padded is None or layer.shape[1] == 1:
            return layer.mean(dim=(1, 2))
        return self._padded.mean(layer, contents)

    def _enlarged(self, layer: torch.Tensor, number: int, contents: torch.Tensor) -> torch.Tensor:
        matrix = self._enlarging[number]
        if self._padded is not None:
            layer = self._padded.continued(layer, contents)
        return torch.einsum("sh,bhwc,tw->bstc", matrix, layer, matrix) if layer.shape[1] != self.side else layer

    def _added_by_whole(self, deepest: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Return what images as wholes (b, c) add to their log scores: the twin of `whole_image.log_distances`."""
        similarity = (unit_rows(deepest) @ self._wholes.T).double()
        similarity = similarity.masked_fill(self._groups != groups[:, None], -torch.inf)
        nearest = similarity.topk(min(whole_image.NEAREST, similarity.shape[1]), dim=1).values
        is_known = nearest.isfinite()
        distance = (2 - 2 * nearest).clamp_min(whole_image.FLOOR**2).sqrt()
        log_distance = (distance.where(is_known, 0).sum(1) / is_known.sum(1)).log()
        median, reach, gain = self._whole_units[groups].unbind(1)
        return gain * ((log_distance - median) / reach - 1).clamp_min(0)

    def _level(self, groups: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        """Return the normal log scores (b,) of images: the twin of `model.Model.level`."""
        known = neighbours >= 0
        values = self._log_scores[neighbours].masked_fill(~known, torch.inf).sort(1).values
        count = known.sum(1, keepdim=True)
        near = (values.gather(1, (count - 1) // 2) + values.gather(1, count // 2))[:, 0] / 2
        share = self._shares[groups]
        return share * near + (1 - share) * self._levels[groups]

    def _p_values(self, standardised: torch.Tensor) -> torch.Tensor:
        n = len(self._calibration)
        return (1 + n - torch.searchsorted(self._calibration, standardised.contiguous())).double() / (n + 1)

    def _decisions(self, standardised: torch.Tensor, is_unknown: torch.Tensor) -> torch.Tensor:
        """Return the numbers of the decisions in `DECISIONS`."""
        is_alarm = (standardised > self._model.review.value) | (standardised > self._model.reject.value)
        number = is_alarm.double() + (standardised > self._model.reject.value)
        return number.masked_fill(is_unknown, DECISIONS.index(Decision.UNKNOWN_PRODUCT))

    def _tensor(self, values: object) -> torch.Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float32), device=self.device)

    def _exact(self, values: object) -> torch.Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float64), device=self.device)


class _Looks:
    """The sub-looks of all groups that have any, one after the other, on a device; `banks` are those of each layer."""

    def __init__(self, model: Model, device: torch.device, banks: Sequence[LayerBanks] | None) -> None:
        looks = {group: looks for group, looks in enumerate(model.sub_looks) if looks is not None}
        of_looks = [of_look for of_group in looks.values() for of_look in of_group.banks]
        self.banks = banks or [
            layer_banks([of_look[i] for of_look in of_looks], device) for i in range(len(model.layers))
        ]
        self._centres = torch.from_numpy(np.concatenate([of_group.centres for of_group in looks.values()])).to(device)
        owners = np.repeat(list(looks), [len(of_group.centres) for of_group in looks.values()])
        self._owners = torch.from_numpy(owners).to(device)
        # A group without sub-looks adds nothing, wherever its images are compared: its gain is 0.
        units = [WholeUnit(0.0, 1.0, 0.0) if of is None else of.unit for of in model.sub_looks]
        rows = [[unit.median, unit.reach, unit.gain] for unit in units]
        self._units = torch.tensor(rows, dtype=torch.float64, device=device)

    def of(self, embeddings: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Return the numbers (b,) of the images' sub-looks among all of them; any for groups without."""
        similarity = embeddings @ self._centres.T
        return similarity.masked_fill(self._owners != groups[:, None], -torch.inf).argmax(1)

    def added(self, logs: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Return what log scores, or the logs of maps, (b, ...) add: the twin of `whole_image.WholeUnit.added`."""
        median, reach, gain = self._units[groups].view(len(groups), 3, *[1] * (logs.ndim - 1)).unbind(1)
        return gain * ((logs - median) / reach - 1).clamp_min(0)


class _PaddedMaps:
    """What lies beyond the content of maps (b, h, h, ...), so that maps with padding give what those without it give.

    `contents` (b, 2) are the rows and columns of cells that images fill. Everything is looked up in tables by them.
    """

    def __init__(self, padding: Padding, grids: Sequence[int], top_share: float, device: torch.device) -> None:
        self.cells = padding.cells
        side, sizes = max(grids), range(self.cells + 1)
        cell = side // self.cells
        self._borders = {
            grid: torch.tensor(
                [np.minimum(np.arange(grid), max(size * grid // self.cells - 1, 0)).tolist() for size in sizes],
                device=device,
            )
            for grid in set(grids)
        }
        self._mirrors = torch.tensor([_mirror(side, size * cell).tolist() for size in sizes], device=device)
        counts = [[max(1, round(top_share * rows * columns * cell**2)) for columns in sizes] for rows in sizes]
        self._counts = torch.tensor(counts, device=device)

    def continued(self, layer: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Return maps whose content goes on beyond its border as it is there: enlarging shows no padding then."""
        return _picked(layer, self._borders[layer.shape[1]], contents)

    def mirrored(self, layer: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Return maps of the finest grid whose content goes on as in a mirror, as `maps.combined` smooths it."""
        return _picked(layer, self._mirrors, contents)

    def mean(self, layer: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Return the mean (b, c) of the content of maps (b, h, h, c)."""
        place = torch.arange(layer.shape[1], device=layer.device)
        extents = contents * (layer.shape[1] // self.cells)
        inside = (place < extents[:, :1])[:, :, None] & (place < extents[:, 1:])[:, None, :]
        return (layer * inside[..., None]).sum(dim=(1, 2)) / extents.prod(dim=1, keepdim=True)

    def mean_of_top(self, highest: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Return the mean (b,) of the highest values (b, k), in falling order, that make the score of an image."""
        counts = self._counts[contents[:, 0], contents[:, 1]]
        counted = torch.arange(highest.shape[1], device=highest.device) < counts[:, None]
        return (highest * counted).sum(1) / counts


def _picked(layer: torch.Tensor, table: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
    """Return maps (b, h, h, ...) whose rows and columns are those that `table` (sizes, h) names for each content."""
    rows, columns = table[contents[:, 0]], table[contents[:, 1]]
    images = torch.arange(len(layer), device=layer.device)
    return layer[images[:, None, None], rows[:, :, None], columns[:, None, :]]


def _mirror(side: int, extent: int) -> NDArray[np.int64]:
    """Return for each place (side,) the one before `extent` that OpenCV's BORDER_REFLECT_101 shows there."""
    if extent < 2:
        return np.zeros(side, dtype=np.int64)
    place = np.arange(side) % (2 * extent - 2)
    return np.minimum(place, 2 * extent - 2 - place)


def _enlarging(grid: int, side: int) -> NDArray[np.float32]:
    """Return the matrix (side, grid) by which `maps.enlarged` brings the rows of a map to another side."""
    identity = np.eye(grid, dtype=np.float32)
    if grid == side:
        return identity
    return np.asarray(cv2.resize(identity, (grid, side), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _blurring(side: int) -> NDArray[np.float32]:
    """Return the matrix (side, side) by which `maps.combined` smooths the rows of a map."""
    identity, alone = np.eye(side, dtype=np.float32), np.ones(1, dtype=np.float32)
    blurred = cv2.sepFilter2D(identity, -1, alone, maps.KERNEL, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(blurred, dtype=np.float32)
