"""Whether a camera still sees what the model has learnt, or its light, its lens or the product has changed.

A defect is hot in few places of a few frames. Under another light or a slipped lens nearly all of every frame is a
little unusual; another product has a look that is unknown. So the last frames of a camera vote.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flawline.messages import Decision, Scene
from workers import metrics

if TYPE_CHECKING:
    from scorer.detector import Detector
    from scorer.scores import Scores

log = logging.getLogger(__name__)

WINDOW = 32
"""Frames of a camera that vote, and how many there must be. Judgements: a second or two of a usual line. Of good images
one in a hundred is unusual throughout, so that half of them are not by chance."""
LEAST = 16

CAMERA_LIMIT = 4096
"""Cameras that are remembered, so that a stream of invented names cannot take all memory."""

ADVICE = {
    Scene.CAMERA_CHANGED: "all of its frames is a little unusual: look at the light, the lens and the camera's place",
    Scene.PRODUCT_CHANGED: "most of its frames are of a product that the model has not learnt: fit or extend it",
}


@dataclass
class _Camera:
    votes: deque[Scene | None] = field(default_factory=lambda: deque(maxlen=WINDOW))
    scene: Scene | None = None
    model_version: str = ""


class SceneWatch:
    """Lets the last frames of each camera vote. For one thread."""

    def __init__(self) -> None:
        self._cameras: dict[str, _Camera] = {}

    def look(self, camera: str, scores: Scores, detector: Detector) -> Scene | None:
        """Count a frame and return what its camera's last frames say: None while they are as the model knows them.

        Another model begins anew.
        """
        if camera not in self._cameras and len(self._cameras) >= CAMERA_LIMIT:
            self._cameras.clear()
        watched = self._cameras.setdefault(camera, _Camera(model_version=detector.version))
        if watched.model_version != detector.version:
            watched.votes.clear()
            watched.model_version = detector.version
        watched.votes.append(_vote(scores, detector))
        scene = winner(watched.votes)
        if scene is not watched.scene:
            if scene is not None:
                log.warning("camera %s: %s: %s", camera, scene, ADVICE[scene])
            else:
                log.info("camera %s: its frames are as the model knows them again", camera)
            watched.scene = scene
        metrics.SCENE_FRAMES.labels(camera, scene or "as-learnt").inc()
        return scene


def winner(votes: deque[Scene | None]) -> Scene | None:
    """Return what at least half of the votes say, None without such a half and of too few votes."""
    if len(votes) < LEAST:
        return None
    counts = {scene: votes.count(scene) for scene in Scene}
    scene = max(counts, key=lambda known: counts[known])
    return scene if 2 * counts[scene] >= len(votes) else None


def _vote(scores: Scores, detector: Detector) -> Scene | None:
    if scores.decision is Decision.UNKNOWN_PRODUCT:
        return Scene.PRODUCT_CHANGED
    return Scene.CAMERA_CHANGED if detector.is_unusual_throughout(scores) else None
