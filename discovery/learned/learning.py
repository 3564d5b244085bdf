"""Learns kinds of defects from crops, starting at the known clusters, after AnomalyNCD (arXiv 2410.14379).

Training changes the last block of a frozen, mask-guided backbone and four classifiers, so that two random views of a
crop agree on its kind (SimGCD's self-distillation); a further term keeps all kinds in use. The classifiers start at the
current clusters, so that a known kind keeps its place. The frozen part's output for a fixed set of random views is
computed once. On a CPU the same task always gives the same result.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from discovery.learned import augment
from discovery.learned.augment import Crop
from discovery.learned.crop_backbone import BATCH, SIZE_PX, CropBackbone
from flawline.errors import FlawlineError

# From AnomalyNCD and its code, as far as nothing else is said.
HEADS: Final = 4
VIEWS: Final = 8  # made once, of which a step takes two; a judgement, not measured
BATCH_CROPS: Final = 32
STUDENT_TEMPERATURE: Final = 0.1
TEACHER_TEMPERATURES: Final = (0.07, 0.04)
TEACHER_STEPS: Final = 10
WARMING_SHARE: Final = 0.8  # the share of the epochs in which the teacher's temperature falls
REPRESENTATION_TEMPERATURE: Final = 1.0
LABELLED_TEMPERATURE: Final = 0.07
LABELLED_WEIGHT: Final = 0.3  # lambda
ENTROPY_WEIGHT: Final = 4.0  # mu
LEARNING_RATES: Final = (3e-3, 3e-6)
MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 5e-5
PROJECTED: Final = 256
HIDDEN: Final = 2048
CORRECTED_BELOW: Final = 0.5
# Heads that start equal stay equal. The size is a judgement, not measured.
HEAD_NOISE: Final = 0.05
# Dropout makes two views of the embedding that workers send: without it both views of a crop would contain the same
# answer. 0.3 is a judgement, not measured.
VECTOR_DROPOUT: Final = 0.3

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Task:
    """The input of a round: n crops, the workers' embeddings float32 (n, E) and the clusters to start from.

    `start` int (n) is the cluster 0..k-1 of each crop; `confirmed` bool (n) marks those that a person has confirmed.
    `scores` float (n) from 0 to 1 say how anomalous a crop is; with them the round learns one more kind, "no defect"
    (pseudo-label correction). None turns that off.
    """

    crops: Sequence[Crop]
    vectors: np.ndarray
    start: np.ndarray
    confirmed: np.ndarray
    scores: np.ndarray | None = None
    epochs: int = 10
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Learned:
    """The result: `posteriors` float32 (n, k) over the starting clusters, `nothing` float32 (n) for "no defect"."""

    posteriors: np.ndarray
    nothing: np.ndarray
    loss: float

    @property
    def labels(self) -> np.ndarray:
        """Return the most probable kind of each crop, int (n), -1 for no defect."""
        return np.where(self.nothing > self.posteriors.max(axis=1), -1, self.posteriors.argmax(axis=1))


def learn(task: Task, backbone: CropBackbone, progress: Progress | None = None) -> Learned:
    """Train on a task's crops and return the kind of each. Raises FlawlineError when the loss is not finite."""
    torch.manual_seed(task.seed)
    with tempfile.TemporaryDirectory(prefix="flawline-learning-") as folder:
        cache = _cached(task, backbone, Path(folder), progress)
        student = Student(backbone, task, cache).to(backbone.device)
        losses = _train(student, task, cache, progress)
        logits = student.of_plain_views(cache)
    best = int(losses.argmin())
    posteriors = functional.softmax(logits[best] / STUDENT_TEMPERATURE, dim=1).cpu().numpy()
    extra = 0 if task.scores is None else 1
    nothing = posteriors[:, 0] if extra else np.zeros(len(posteriors), np.float32)
    return Learned(posteriors[:, extra:], nothing, float(losses[best]))


@dataclass(frozen=True, eq=False)
class Cache:
    """The frozen part's output: `tokens` float16 (views, n, t, D), `inside` bool (views, n, p); view 0 is plain."""

    tokens: np.ndarray
    inside: np.ndarray

    def batch(self, view: np.ndarray, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return tokens (m, t, D) and cells inside (m, p) of the crops `rows` (m), each in its `view` (m)."""
        tokens = torch.from_numpy(self.tokens[view, rows].astype(np.float32)).to(device)
        return tokens, torch.from_numpy(self.inside[view, rows]).to(device)


class Student(nn.Module):
    """Everything that learns: last block, projector and classifiers."""

    def __init__(self, backbone: CropBackbone, task: Task, cache: Cache) -> None:
        super().__init__()
        self.device = backbone.device
        self.block = backbone.last_block()
        self.projector = nn.Sequential(
            nn.Linear(backbone.dimension, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, PROJECTED),
        )
        self.vectors: Tensor
        self.register_buffer("vectors", torch.from_numpy(np.asarray(task.vectors, np.float32)))
        self.to(self.device)
        self.prototypes = nn.Parameter(_prototypes(self._plain(cache), task).to(self.device))

    def forward(self, tokens: Tensor, cells: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit projections (n, 256) to contrast, and cosines to the prototypes of each head (heads, n, k)."""
        description = self.block(tokens, cells)
        joined = self._joined(description, rows)
        return functional.normalize(self.projector(description), dim=1), self._cosines(joined)

    def of_plain_views(self, cache: Cache) -> Tensor:
        """Return the cosines (heads, n, k) of the plain views of all crops."""
        with torch.no_grad():
            return self._cosines(self._plain(cache).to(self.device))

    def _cosines(self, joined: Tensor) -> Tensor:
        return torch.einsum("hkd,nd->hnk", functional.normalize(self.prototypes, dim=2), joined)

    def _joined(self, description: Tensor, rows: Tensor) -> Tensor:
        """Return the learned description beside the workers' embedding as unit vectors (n, D + E)."""
        vectors = functional.dropout(self.vectors[rows], VECTOR_DROPOUT, self.training)
        return functional.normalize(torch.cat([functional.normalize(description, dim=1), vectors], dim=1), dim=1)

    def _plain(self, cache: Cache) -> Tensor:
        was_training = self.training
        self.eval()
        joined = []
        for rows in np.array_split(np.arange(cache.tokens.shape[1]), -(-cache.tokens.shape[1] // BATCH)):
            with torch.no_grad():
                tokens, cells = cache.batch(np.zeros_like(rows), rows, self.device)
                joined.append(self._joined(self.block(tokens, cells), torch.from_numpy(rows).to(self.device)).cpu())
        self.train(was_training)
        return torch.cat(joined)


def _cached(task: Task, backbone: CropBackbone, folder: Path, progress: Progress | None) -> Cache:
    """Run the frozen part over every view into a file: a transformer's tokens of a thousand crops are gigabytes."""
    rng = np.random.default_rng(task.seed)
    count = len(task.crops)
    cache: Cache | None = None
    for view in range(VIEWS + 1):
        for start in range(0, count, BATCH):
            crops = task.crops[start : start + BATCH]
            views = [augment.augmented(crop, SIZE_PX, rng) if view else augment.plain(crop, SIZE_PX) for crop in crops]
            pixels, masks = zip(*views, strict=True)
            tokens, cells = backbone.tokens(np.stack(pixels), np.stack(masks))
            if cache is None:
                _check_room(folder, (VIEWS + 1) * count * int(np.prod(tokens.shape[1:])) * 2)
                cache = Cache(
                    np.lib.format.open_memmap(
                        folder / "tokens.npy", "w+", np.float16, (VIEWS + 1, count, *tokens.shape[1:])
                    ),
                    np.zeros((VIEWS + 1, count, cells.shape[1]), bool),
                )
            cache.tokens[view, start : start + BATCH] = tokens.cpu().numpy()
            cache.inside[view, start : start + BATCH] = cells.cpu().numpy()
            if progress:
                progress("views", view * count + start + len(crops), (VIEWS + 1) * count)
    assert cache is not None
    return cache


def _check_room(folder: Path, needed_bytes: int) -> None:
    """Raise FlawlineError when the disk lacks room: a mapped file on a full disk kills the process with no message."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise FlawlineError(
            f"learning needs {needed_bytes / 1e9:.1f} GB in {folder.parent}, which has {free_bytes / 1e9:.1f}: "
            "set TMPDIR, or lower discovery.learning_regions"
        )


def _prototypes(plain: Tensor, task: Task) -> Tensor:
    """Return the starting weights (heads, k, D): each cluster's mean; for "no defect", the least anomalous tenth's."""
    count = int(task.start.max()) + 1
    means = [plain[torch.from_numpy(task.start == cluster)].mean(dim=0) for cluster in range(count)]
    if task.scores is not None:
        least = np.argsort(task.scores, kind="stable")[: max(1, len(task.scores) // 10)]
        means.insert(0, plain[torch.from_numpy(least)].mean(dim=0))
    rows = functional.normalize(torch.stack(means), dim=1)
    noise = torch.randn(HEADS, *rows.shape) * HEAD_NOISE / rows.shape[1] ** 0.5
    return rows + noise


def _train(student: Student, task: Task, cache: Cache, progress: Progress | None) -> np.ndarray:
    """Train the student in place and return the mean loss of each head in the last epoch (heads)."""
    rng = np.random.default_rng((task.seed, 1))
    decayed = [p for p in student.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in student.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=LEARNING_RATES[0], momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, task.epochs, LEARNING_RATES[1])
    student.train()
    losses = np.zeros(HEADS)
    for epoch in range(task.epochs):
        last = []
        for rows in _batches(task, rng):
            loss, per_head = _loss(student, task, cache, rows, teacher_temperature(epoch, task.epochs), rng)
            if not torch.isfinite(loss):
                raise FlawlineError(f"learning diverged in epoch {epoch + 1}: the loss is {float(loss)}")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            last.append(per_head.detach().cpu().numpy())
        schedule.step()
        losses = np.mean(last, axis=0) if last else losses
        if progress:
            progress("learning", epoch + 1, task.epochs)
    return losses


def teacher_temperature(epoch: int, epochs: int) -> float:
    """Return the teacher's temperature: ten steps from 0.07 to 0.04 over four fifths of the epochs, then 0.04."""
    warming = max(1.0, WARMING_SHARE * epochs)
    step = min(TEACHER_STEPS - 1, int(epoch / warming * TEACHER_STEPS))
    first, last = TEACHER_TEMPERATURES
    return first + (last - first) * step / (TEACHER_STEPS - 1)


def _batches(task: Task, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the batches of rows of an epoch.

    When a person has confirmed some crops, confirmed and other crops are drawn equally often.
    """
    count = len(task.crops)
    confirmed = int(task.confirmed.sum())
    if 0 < confirmed < count:
        weights = np.where(task.confirmed, 0.5 / confirmed, 0.5 / (count - confirmed))
        order = rng.choice(count, count, p=weights)
    else:
        order = rng.permutation(count)
    parts = [order[start : start + BATCH_CROPS] for start in range(0, count, BATCH_CROPS)]
    return [part for part in parts if len(part) > 1]


def _loss(
    student: Student, task: Task, cache: Cache, rows: np.ndarray, temperature: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch, and its part for each head (heads), by which the best head is chosen."""
    pairs = np.array([rng.choice(VIEWS, 2, replace=False) + 1 for _ in rows])
    index = torch.from_numpy(rows).to(student.device)
    contrasted, logits = [], []
    for view in pairs.T:
        projected, cosines = student(*cache.batch(view, rows, student.device), index)
        contrasted.append(projected)
        logits.append(cosines)
    confirmed = torch.from_numpy(task.confirmed[rows]).to(student.device)
    scores = None if task.scores is None else torch.from_numpy(task.scores[rows].astype(np.float32)).to(student.device)
    free = ~confirmed
    per_head = torch.zeros(HEADS, device=student.device)
    if free.any():
        first, second = (view[:, free] for view in logits)
        picked = None if scores is None else scores[free]
        per_head = 0.5 * (
            agreement(first, second, temperature, picked) + agreement(second, first, temperature, picked)
        ) + ENTROPY_WEIGHT * concentration(torch.cat([first, second], dim=1))
    unlabelled = per_head.mean() + contrast(contrasted[0], contrasted[1])
    if not confirmed.any():
        return unlabelled, per_head
    extra = 0 if task.scores is None else 1
    kinds = torch.from_numpy(task.start[rows] + extra).to(student.device)[confirmed]
    labelled = torch.stack(
        [functional.cross_entropy(head / STUDENT_TEMPERATURE, kinds) for view in logits for head in view[:, confirmed]]
    ).mean() + supervised_contrast(contrasted[0][confirmed], contrasted[1][confirmed], kinds)
    return (1 - LABELLED_WEIGHT) * unlabelled + LABELLED_WEIGHT * labelled, per_head


def agreement(teacher: Tensor, student: Tensor, temperature: float, scores: Tensor | None = None) -> Tensor:
    """Return the cross entropy (heads) of two views: the sharpened kinds of `teacher` are the targets of `student`.

    Both are logits (heads, n, k). With `scores` (n), the targets of crops that are hardly anomalous move towards kind 0
    by up to a half: the pseudo-label correction of AnomalyNCD.
    """
    target = functional.softmax(teacher.detach() / temperature, dim=2)
    if scores is not None:
        weight = torch.clamp(CORRECTED_BELOW - scores, min=0)[None, :, None]
        nothing = functional.one_hot(torch.zeros(len(scores), dtype=torch.long, device=target.device), target.shape[2])
        target = weight * nothing + (1 - weight) * target
    return -(target * functional.log_softmax(student / STUDENT_TEMPERATURE, dim=2)).sum(dim=2).mean(dim=1)


def concentration(logits: Tensor) -> Tensor:
    """Return how far each head (heads) is from using all kinds alike: log k minus the entropy of its mean posterior."""
    mean = functional.softmax(logits / STUDENT_TEMPERATURE, dim=2).mean(dim=1)
    entropy = -(mean * torch.log(mean.clamp(min=1e-12))).sum(dim=1)
    return float(np.log(logits.shape[2])) - entropy


def contrast(first: Tensor, second: Tensor, temperature: float = REPRESENTATION_TEMPERATURE) -> Tensor:
    """Return InfoNCE over unit vectors (n, D): only the two views of the same crop are alike."""
    both = torch.cat([first, second])
    logits = both @ both.T / temperature
    logits.fill_diagonal_(-torch.inf)
    count = len(first)
    positives = torch.arange(2 * count, device=both.device).roll(count)
    return functional.cross_entropy(logits, positives)


def supervised_contrast(
    first: Tensor, second: Tensor, kinds: Tensor, temperature: float = LABELLED_TEMPERATURE
) -> Tensor:
    """Return SupCon over unit vectors (n, D): all views of crops of the same kind (n) are alike."""
    both, labels = torch.cat([first, second]), torch.cat([kinds, kinds])
    itself = torch.eye(len(both), dtype=torch.bool, device=both.device)
    logits = (both @ both.T / temperature).masked_fill(itself, -torch.inf)
    alike = (labels[:, None] == labels[None, :]) & ~itself
    chances = functional.log_softmax(logits, dim=1).masked_fill(~alike, 0.0)
    return -(chances.sum(dim=1) / alike.sum(dim=1)).mean()
