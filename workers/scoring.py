"""Scores a batch so that one bad frame costs no other frame its verdict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from flawline.errors import one_line
from scorer.features.backbone import DeviceLost

if TYPE_CHECKING:
    from scorer.detector import Detector
    from scorer.scores import Scores

CANARY_SIDE_PX = 64


class DetectorBroken(Exception):
    """The model fails on an image that is known to be fine, so the frames are not to blame."""


def canary() -> np.ndarray:
    """Return a plain image that every model can score: for warming up, and to tell a bad frame from a broken model."""
    ramp = np.linspace(0, 255, CANARY_SIDE_PX).astype(np.uint8)
    return np.repeat(np.tile(ramp, (CANARY_SIDE_PX, 1))[:, :, None], 3, axis=2)


def score_each(
    detector: Detector, images: list[np.ndarray], masks: list[np.ndarray | None]
) -> list[Scores | Exception]:
    """Return the scores of each image or, in its place, the exception that only this image causes.

    `masks` say for each image where it is inspected, see the scorer. A failing batch is halved until the bad images
    stand alone. Raises DetectorBroken when the model fails on the canary as well, or the GPU is lost: then none of the
    frames may be given up.
    """
    try:
        scores = list(detector.score(images, masks))
        if len(scores) != len(images):
            raise ValueError(f"{len(scores)} scores for {len(images)} images")
    except DeviceLost as error:
        raise DetectorBroken(str(error)) from error
    except Exception as error:
        if len(images) > 1:
            middle = len(images) // 2
            first = score_each(detector, images[:middle], masks[:middle])
            return first + score_each(detector, images[middle:], masks[middle:])
        check_canary(detector)
        return [error]
    return [_finite(score) for score in scores]


def check_canary(detector: Detector) -> None:
    """Raise DetectorBroken when the model fails on an image that is known to be fine."""
    try:
        detector.score([canary()])
        detector.close_ups([canary()])
    except Exception as error:
        raise DetectorBroken(f"model {detector.version} fails on a plain image: {one_line(error)}") from error


def _finite(score: Scores) -> Scores | Exception:
    values = (score.raw, score.aligned, score.p_value)
    return score if all(map(math.isfinite, values)) else ValueError(f"score {values} is not finite")
