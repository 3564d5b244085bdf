"""Batches on a device: images in, scores out, with the next batch on its way while one is computed.

On a GPU the scoring of each batch size is one CUDA graph, which costs a single launch. Images are brought to the input
size by CPU threads, in page-locked memory, and go to the device by a stream of their own. Two batches are in work at
most: so the memory on both sides has a bound, and the device has work while the next images are brought to size.
On "cpu" the same code runs without graphs and streams, on as many batches at once as there are threads.

To import this module imports torch.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from flawline.errors import FlawlineError, one_line
from flawline.messages import Decision
from scorer.batches.banks import LayerBanks
from scorer.batches.scoring import DECISIONS, Batch, BatchScoring, Inputs
from scorer.features.backbone import DeviceLost
from scorer.features.graph import Image
from scorer.features.padding import Padding, squared
from scorer.features.torch_engine import BATCH_SIZES, TorchBackbone, batch_size
from scorer.model import Model
from scorer.regions.masks import Mask, on_grid
from scorer.scores import RegionInputs, Scores

log = logging.getLogger(__name__)

# Batches in work on a GPU: one is computed, one is brought to size.
_IN_WORK = 2
NO_MEMORY = "the GPU has no memory for one image: give the worker a larger share of it, or another GPU"
LOST = "the GPU is lost ({}): see `nvidia-smi` and the kernel's log"
# Runs before a CUDA graph is captured, in which libraries choose their kernels and take their workspaces.
_WARM_RUNS = 2


class BatchRunner:
    """Scores images in batches of at most `limit`, on the device of a backbone.

    `banks` and `banks_of_looks` as for `BatchScoring`. When the device's memory is used up, the batch is halved and the
    work goes on: `shortages` counts that. Raises FlawlineError where not even one image fits.
    """

    def __init__(
        self,
        model: Model,
        backbone: TorchBackbone,
        banks: Sequence[LayerBanks] | None = None,
        banks_of_looks: Sequence[LayerBanks] | None = None,
    ) -> None:
        self.limit = backbone.batch
        self.shortages = 0
        self._scoring = BatchScoring(model, backbone, banks, banks_of_looks)
        self._padding = backbone.padding
        self._is_gpu = backbone.on_gpu
        resizes_in_threads = self._is_gpu and backbone.threads > 1
        self._threads = ThreadPoolExecutor(backbone.threads, "resize") if resizes_in_threads else None
        self._in_work = _IN_WORK if self._is_gpu else backbone.threads
        self._feeders = ThreadPoolExecutor(self._in_work, "batch")
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._device: _Cpu | _Gpu
        with torch.inference_mode():
            for _ in range(self._in_work):
                self._slots.put(_Slot(self._scoring, backbone.sizes, batch_size(self.limit), self._is_gpu))
            if self._is_gpu:
                self._device = _Gpu(self._scoring, backbone.sizes, self.limit)
                if self._device.limit < self.limit:
                    self._halved(self._device.limit)
            else:
                self._device = _Cpu(self._scoring)

    def score(self, images: Sequence[Image], masks: Sequence[Mask | None]) -> list[Scores]:
        """Return the scores of images, in their order; `masks` as for `CoresetDetector.score`."""
        limit = self.limit
        if not self._is_gpu:  # each thread gets its part
            limit = min(limit, batch_size(-(-len(images) // self._in_work)))
        parts = [slice(start, start + limit) for start in range(0, len(images), limit)]
        if len(parts) == 1:
            return self._scores(images, masks)

        def work(part: slice) -> list[Scores]:
            return self._scores(images[part], masks[part])

        batches = self._feeders.map(work, parts)
        return [scores for batch in batches for scores in batch]

    def _scores(self, images: Sequence[Image], masks: Sequence[Mask | None]) -> list[Scores]:
        try:
            return self._batch(images, masks)
        except torch.OutOfMemoryError as error:
            if len(images) == 1:
                raise FlawlineError(NO_MEMORY) from error
        except RuntimeError as error:
            if is_loss(error):
                raise DeviceLost(LOST.format(one_line(error))) from error
            raise
        self._halved(max(1, len(images) // 2))
        middle = len(images) // 2
        return self._scores(images[:middle], masks[:middle]) + self._scores(images[middle:], masks[middle:])

    def _halved(self, limit: int) -> None:
        self.shortages += 1
        self.limit = min(self.limit, limit)
        torch.cuda.empty_cache()
        log.warning("the memory of the GPU is used up: batches hold %d images from now on", self.limit)

    def _batch(self, images: Sequence[Image], masks: Sequence[Mask | None]) -> list[Scores]:
        count, slot = len(images), self._slots.get()
        try:
            size = batch_size(count)
            with torch.inference_mode():
                slot.fill(images, masks, self._threads, self._padding)
                with self._device.computed(slot, size) as batch:
                    rows, heatmaps = slot.rows[:count].numpy().copy(), slot.heatmaps[:count].numpy().copy()
                    alarms = np.flatnonzero(rows[:, -1] != DECISIONS.index(Decision.ACCEPT)).tolist()
                    described = {}
                    if len(alarms):
                        groups = rows[alarms, 0].astype(np.int64).tolist()
                        contents = slot.inputs.contents[alarms]
                        pairs = zip(*self._scoring.describe(batch.features, alarms, groups, contents), strict=True)
                        described = dict(zip(alarms, pairs, strict=True))
        finally:
            self._slots.put(slot)
        shapes = [self._shape(image) for image in images]
        return [
            Scores(
                group=int(row[0]),
                raw=float(np.exp(row[1])),
                aligned=float(row[2]),
                p_value=float(row[3]),
                decision=DECISIONS[int(row[4])],
                heatmap=heatmaps[i][shape],
                region_inputs=RegionInputs.of(*(grid[shape] for grid in described[i])) if i in described else None,
            )
            for i, (row, shape) in enumerate(zip(rows, shapes, strict=True))
        ]

    def _shape(self, image: Image) -> tuple[slice, slice]:
        """Return the part of the finest map that an image fills; the rest is padding."""
        if self._padding is None:
            return slice(None), slice(None)
        rows, columns = self._padding.extent(self._padding.content(*image.shape[:2]), self._scoring.side)
        return slice(rows), slice(columns)


def is_loss(error: RuntimeError) -> bool:
    """Return whether an error says that the GPU, or this process's hold of it, is gone for good."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)


class _Slot:
    """Memory of one batch: what goes to the device, and what comes back. Page-locked for a GPU."""

    def __init__(self, scoring: BatchScoring, sizes: Sequence[int], most: int, is_gpu: bool) -> None:
        def zeros(*shape: int, of: torch.dtype) -> torch.Tensor:
            return torch.zeros(*shape, dtype=of, pin_memory=is_gpu)

        pixels = [zeros(most, size, size, 3, of=torch.uint8) for size in sizes]
        inspected = [zeros(most, grid, grid, of=torch.bool) for grid in scoring.distinct_grids]
        masked = zeros(most, of=torch.bool)
        contents = torch.ones(most, 2, dtype=torch.int64, pin_memory=is_gpu)
        self.inputs = Inputs(pixels, inspected, masked, contents)
        self.rows = zeros(most, 5, of=torch.float64)
        self.heatmaps = zeros(most, scoring.side, scoring.side, of=torch.float32)
        # Arrays of the same memory: threads write into them, which tensors of inference do not allow.
        self._pixels = [tensor.numpy() for tensor in pixels]
        self._inspected = [tensor.numpy() for tensor in inspected]
        self._masked = masked.numpy()
        self._contents = contents.numpy()

    def fill(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask | None],
        threads: ThreadPoolExecutor | None,
        padding: Padding | None,
    ) -> None:
        """Bring images and masks to size. Places beyond them keep what they held: no score depends on it."""

        def work(i: int) -> None:
            for pixels in self._pixels:
                pixels[i] = squared(images[i], pixels.shape[1], padding)
            if padding is not None:
                self._contents[i] = padding.content(*images[i].shape[:2])
            mask = masks[i]
            if mask is not None and mask.all():
                mask = None
            self._masked[i] = mask is not None
            for inspected in self._inspected:
                rows = columns = inspected.shape[1]
                if padding is not None:
                    rows, columns = padding.extent((self._contents[i, 0], self._contents[i, 1]), rows)
                    inspected[i] = False
                inspected[i, :rows, :columns] = True if mask is None else on_grid(mask, rows, columns)

        for _ in threads.map(work, range(len(images))) if threads else map(work, range(len(images))):
            pass


class _Cpu:
    """Computes a batch where it is."""

    def __init__(self, scoring: BatchScoring) -> None:
        self._scoring = scoring

    @contextlib.contextmanager
    def computed(self, slot: _Slot, size: int) -> Iterator[Batch]:
        """Score the first `size` places of a slot into it, and give the batch."""
        batch = self._scoring(slot.inputs.first(size))
        slot.rows[:size], slot.heatmaps[:size] = batch.rows, batch.heatmaps
        yield batch


class _Gpu:
    """Computes one batch at a time on a GPU, each batch size as a CUDA graph; copies go by a stream of their own.

    `limit` is the largest batch for which the memory was enough.
    """

    def __init__(self, scoring: BatchScoring, sizes: Sequence[int], limit: int) -> None:
        self._scoring = scoring
        self._working = threading.Lock()
        self._copies = torch.cuda.Stream()
        self._work = torch.cuda.Stream()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Batch]] = {}
        self.limit = limit
        wanted = [size for size in BATCH_SIZES if size < batch_size(limit)] + [batch_size(limit)]
        most = wanted[-1]
        self._inputs = scoring.inputs(sizes, most)
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(wanted):  # the largest first: the memory of its graph serves the others too
            try:
                self._graphs[size] = self._captured(size, pool)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if size == 1:
                    raise FlawlineError(NO_MEMORY) from None
                self.limit = size // 2
            except RuntimeError as error:
                if is_loss(error) and "captur" not in str(error):
                    raise DeviceLost(LOST.format(one_line(error))) from error
                # Some backbone may do what no graph can hold: it is launched kernel by kernel.
                log.warning("no CUDA graph for batches of %d (%s): they are slower", size, one_line(error))

    @contextlib.contextmanager
    def computed(self, slot: _Slot, size: int) -> Iterator[Batch]:
        """Score the first `size` places of a slot into it, and give the batch, which is overwritten by the next one."""
        staged, arrived, done = slot.inputs.first(size), torch.cuda.Event(), torch.cuda.Event()
        with torch.cuda.stream(self._copies):
            staged = staged.to(self._scoring.device)
            arrived.record()
        with self._working:
            with torch.cuda.stream(self._work):
                self._work.wait_event(arrived)
                inputs = self._inputs.first(size)
                inputs.copy_(staged)
                if captured := self._graphs.get(size):
                    captured[0].replay()
                    batch = captured[1]
                else:
                    batch = self._scoring(inputs)
                slot.rows[:size].copy_(batch.rows, non_blocking=True)
                slot.heatmaps[:size].copy_(batch.heatmaps, non_blocking=True)
                done.record()
            done.synchronize()
            with torch.cuda.stream(self._work):
                yield batch

    def _captured(self, size: int, pool: Any) -> tuple[torch.cuda.CUDAGraph, Batch]:
        inputs = self._inputs.first(size)
        with torch.cuda.stream(self._work):
            for _ in range(_WARM_RUNS):
                self._scoring(inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: a model that is replaced goes on scoring.
        with torch.cuda.graph(graph, pool=pool, stream=self._work, capture_error_mode="thread_local"):
            batch = self._scoring(inputs)
        return graph, batch
