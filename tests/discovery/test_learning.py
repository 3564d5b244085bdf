"""The losses against their formulas, and what a learning round makes of crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from discovery.learned import crop_backbone, learning
from discovery.learned.learning import Task
from discovery.offline import agreement
from flawline.errors import FlawlineError
from tests.discovery.drawings import KINDS, crops, draw

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def backbone(vit_weights):
    return crop_backbone.load("test_vit", vit_weights, "cpu")


def softmax(values):
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def test_agreement_is_the_cross_entropy_with_the_corrected_sharper_view():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 1, 6, 4))
    scores = np.array([0.0, 0.2, 0.5, 0.7, 0.4, 1.0])
    target = softmax(teacher[0] / 0.05)
    weight = np.maximum(0, 0.5 - scores)[:, None]
    target = weight * np.eye(4)[0] + (1 - weight) * target
    expected = -(target * np.log(softmax(student[0] / 0.1))).sum(axis=1).mean()
    loss = learning.agreement(torch.tensor(teacher), torch.tensor(student), 0.05, torch.tensor(scores))
    assert loss.item() == pytest.approx(expected)


def test_concentration_is_nought_for_kinds_in_equal_use_and_log_k_for_one_alone():
    even = torch.eye(5)[None] * 100
    assert learning.concentration(even).item() == pytest.approx(0, abs=1e-5)
    alone = torch.zeros(1, 7, 5)
    alone[..., 2] = 100
    assert learning.concentration(alone).item() == pytest.approx(np.log(5), rel=1e-5)


def test_contrast_is_info_nce_over_all_other_views():
    rng = np.random.default_rng(1)
    first, second = (torch.nn.functional.normalize(torch.tensor(rng.normal(size=(5, 8))), dim=1) for _ in range(2))
    both = torch.cat([first, second]).numpy()
    total = 0.0
    for row in range(10):
        cosines = both @ both[row]
        others = [i for i in range(10) if i != row]
        total -= np.log(np.exp(cosines[(row + 5) % 10]) / np.exp(cosines[others]).sum())
    assert learning.contrast(first, second).item() == pytest.approx(total / 10)


def test_supervised_contrast_with_every_crop_of_its_own_kind_is_contrast():
    rng = np.random.default_rng(2)
    first, second = (torch.nn.functional.normalize(torch.tensor(rng.normal(size=(5, 8))), dim=1) for _ in range(2))
    loss = learning.supervised_contrast(first, second, torch.arange(5), temperature=0.3)
    assert loss.item() == pytest.approx(learning.contrast(first, second, temperature=0.3).item())


def test_teacher_gets_sharper_for_four_fifths_of_the_epochs():
    temperatures = [learning.teacher_temperature(epoch, 50) for epoch in range(50)]
    assert temperatures[0] == pytest.approx(0.07)
    assert temperatures[40:] == pytest.approx([0.04] * 10)
    assert temperatures == sorted(temperatures, reverse=True)
    assert len(set(temperatures)) == learning.TEACHER_STEPS


def test_learning_corrects_clusters_that_are_partly_wrong(backbone):
    made, kinds = crops(36)
    truth = np.array([KINDS.index(kind) for kind in kinds])
    start = truth.copy()
    start[::6] = (start[::6] + 1) % 3
    task = Task(made, np.zeros((36, 1), np.float32), start, np.zeros(36, bool), epochs=4)
    learned = learning.learn(task, backbone)
    assert (learned.labels == truth).mean() > (start == truth).mean()
    assert agreement.accuracy(truth, learned.labels) >= 0.9
    assert learned.posteriors.sum(axis=1) == pytest.approx(np.ones(36), abs=1e-4)
    again = learning.learn(task, backbone)
    assert (again.posteriors == learned.posteriors).all()


def test_what_people_confirmed_is_learned_with_its_number(backbone):
    made, kinds = crops(24)
    truth = np.array([KINDS.index(kind) for kind in kinds])
    told = np.arange(24) < 12
    learned = learning.learn(Task(made, np.zeros((24, 1), np.float32), truth, told, epochs=2), backbone)
    assert (learned.labels[told] == truth[told]).mean() >= 0.9


def test_crops_that_are_hardly_anomalous_go_to_nothing(backbone):
    made, kinds = crops(24)
    truth = np.array([KINDS.index(kind) for kind in kinds])
    rng = np.random.default_rng(4)
    for _ in range(8):
        image, _ = draw("good", rng)
        mask = np.zeros(image.shape[:2], bool)
        mask[30:60, 30:60] = True
        made.append(crop_backbone.Crop(image, mask))
    scores = np.r_[np.full(24, 0.9), np.full(8, 0.05)]
    start = np.r_[truth, rng.integers(3, size=8)]
    task = Task(made, np.zeros((32, 1), np.float32), start, np.zeros(32, bool), scores, epochs=6)
    learned = learning.learn(task, backbone)
    assert (learned.labels[24:] == -1).mean() >= 0.75
    assert (learned.labels[:24] == -1).mean() <= 0.1


def test_disk_without_room_is_said_before_it_is_filled(backbone, monkeypatch):
    made, _ = crops(6)
    monkeypatch.setattr(learning.shutil, "disk_usage", lambda folder: Usage(1000))
    task = Task(made, np.zeros((6, 1), np.float32), np.arange(6) % 3, np.zeros(6, bool), epochs=1)
    with pytest.raises(FlawlineError, match=r"learning needs .* GB in .* lower discovery\.learning_regions"):
        learning.learn(task, backbone)


class Usage:
    """What is left of a disk."""

    def __init__(self, free):
        self.free = free
