"""Which good images show one and the same part: flips, turns, shots of a burst, neighbours in a video.

To a calibration they are one image: a copy in another fold would find itself in the bank, and counted twice it would
make every bound too narrow. They are found by their fine detail, which two parts of one product do not share though
their whole look does, in all eight ways in which a square can be mirrored and turned.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from scorer.features.graph import Image
from scorer.gallery import Labels

SIDE_PX = 64
"""Side of the picture that details are taken from. A judgement, as the next one."""
# The blur that is taken away from it: sigma in pixels.
_BLUR_PX = 1.5
# Copies differ by less than this (1 - correlation of their details), and by less than a tenth of what the image's
# twentieth nearest differs by, as the median over the group: a fixture or a grid that all images share is no sign of
# one part. Copies of simulated parts, mirrored, turned, brighter or with fresh noise and through a JPEG, differ by
# 0.001 to 0.003, other parts by 0.006 and more. Of 1,859 good images of linebench, linebench2 and the simulated line
# the rule finds seven: a screw and a toothbrush that are shown twice, and solar cells that are neighbours by number.
_DIFFERENCE = 0.005
_SHARE_OF_USUAL = 0.1
_USUAL = 20
# Images that are compared at once, with so many others: bounds memory, also of a group of ten thousands. Judgements.
_BLOCK, _OTHERS = 512, 4096


def detail(image: Image) -> NDArray[np.int8]:
    """Return the fine detail of an image as int8 (64, 64): a small grey picture without its blur, of one length."""
    grey = cv2.cvtColor(cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    fine = grey.astype(np.float32) - cv2.GaussianBlur(grey.astype(np.float32), (0, 0), _BLUR_PX)
    return np.asarray(np.clip(fine * (16 * SIDE_PX / max(float(np.linalg.norm(fine)), 1.0)), -127, 127), dtype=np.int8)


def near_copies(details: NDArray[np.int8], groups: Labels, same: Labels) -> Labels:
    """Return for each image (n,) the number of the first image that it is a copy of: its own unless it is one.

    `details` (n, 64, 64) as `detail` returns them; copies are looked for within each of `groups` (n,). `same` (n,) have
    the same number where images are the same for another reason.
    """
    result = np.arange(len(groups), dtype=np.int64)
    for k in np.unique(groups):
        members = np.flatnonzero(groups == k)
        labels = _joined(_pairs(details[members]), np.unique(same[members], return_inverse=True)[1].reshape(-1))
        if labels.any():
            result[members] = members[labels]
    return result


def _pairs(details: NDArray[np.int8]) -> NDArray[np.intp]:
    """Return the pairs (m, 2) of images that are copies of each other."""
    place = min(_USUAL, len(details) - 1)
    near, usual = [], []
    for start in range(0, len(details), _BLOCK):
        difference = _differences(details[start : start + _BLOCK], details)
        usual.append(np.partition(difference, place, axis=1)[:, place])  # the nearest of all is the image itself
        first, second = np.nonzero(difference < _DIFFERENCE)
        near.append((first + start, second, difference[first, second]))
    limit = _SHARE_OF_USUAL * float(np.median(np.concatenate(usual)))
    first, second, differences = (np.concatenate(parts) for parts in zip(*near, strict=True))
    return np.stack([first, second], axis=1)[differences < limit]


def _differences(block: NDArray[np.int8], details: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return 1 - correlation (m, n) of details (m, 64, 64) and others (n, 64, 64), the least of all eight ways."""
    turned = [_unit(np.rot90(side, turn, axes=(1, 2))) for side in (block, block[:, :, ::-1]) for turn in range(4)]
    difference = np.empty((len(block), len(details)), dtype=np.float32)
    for start in range(0, len(details), _OTHERS):
        others = _unit(details[start : start + _OTHERS]).T
        likeness = turned[0] @ others
        for way in turned[1:]:
            np.maximum(likeness, way @ others, out=likeness)
        difference[:, start : start + _OTHERS] = np.maximum(1 - likeness, 0)
    return difference


def _unit(details: NDArray[np.int8]) -> NDArray[np.float32]:
    rows = details.reshape(len(details), -1).astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0), dtype=np.float32)


def _joined(pairs: NDArray[np.intp], labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return for each image (n,) the first image that pairs, or equal `labels`, join it to, however many steps away."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components  # here: scoring needs no scipy

    n = len(labels)
    first_of_label = np.unique(labels, return_index=True)[1][labels]
    rows = np.concatenate([pairs[:, 0], np.arange(n)])
    columns = np.concatenate([pairs[:, 1], first_of_label])
    components = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n)), directed=False)[1]
    return np.asarray(np.unique(components, return_index=True)[1][components])
