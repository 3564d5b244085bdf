"""Regions of interest per camera, from line.toml to the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.errors import FlawlineError, UsageError
from flawline.messages import DeadLetter, DeadLetterReason, Decision, Verdict
from flawline.settings.producers import FolderCamera
from flawline.settings.tree import load_settings
from scorer.scores import Scores
from tests.support.brokers import RunningBroker
from tests.workers.line import FULL, SIDE, PlainDetector, feeding, frame, inspecting, line_settings, read
from workers.camera_masks import CameraMasks

EVERYTHING = [[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]]
TOP = [[(0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)]]


@dataclass
class MaskedDetector(PlainDetector):
    """Takes what is not inspected for black."""

    def score(self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray | None] | None = None) -> list[Scores]:
        masks = masks or [None] * len(images)
        return super().score(
            [
                i if mask is None else i * mask[:, :, None].astype(np.uint8)
                for i, mask in zip(images, masks, strict=True)
            ]
        )


def folder(name: str, **region: object) -> FolderCamera:
    return FolderCamera(name=name, kind="folder", path=Path("x"), **region)  # type: ignore[arg-type]


def test_each_camera_has_its_own_region_and_a_mask_that_does_not_fit_is_a_letter(
    embedded_broker: RunningBroker, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "small.png"), np.full((4, 4), 255, np.uint8))
    cameras = [folder("whole-0"), folder("half-1", ignore=TOP), folder("wrong-2", mask=tmp_path / "small.png")]
    settings = line_settings(embedded_broker.bootstrap, tmp_path).model_copy(update={"cameras": cameras})
    with feeding(settings) as feeder:
        feeder.send(*(frame(camera, 0, level=FULL) for camera in ("whole-0", "half-1", "wrong-2")))
        feeder.flush()
        with inspecting(settings, detector=MaskedDetector()):
            verdicts = {verdict.camera: verdict for verdict in read(settings, "verdicts", Verdict, 2)}
            (letter,) = read(settings, "dead-letters", DeadLetter, 1)
    assert verdicts["whole-0"].decision is Decision.REJECT
    assert verdicts["half-1"].decision is Decision.ACCEPT
    assert letter.reason is DeadLetterReason.SCORING_FAILED
    assert letter.error == f"camera wrong-2: mask of 4x4 px does not fit frames of {SIDE}x{SIDE} px: draw it anew"


def test_camera_without_regions_has_no_mask_and_masks_are_made_once_a_size() -> None:
    masks = CameraMasks([folder("a"), folder("b", inspect=TOP)])
    assert masks.mask("a", 10, 10) is None
    assert masks.mask("elsewhere", 10, 10) is None
    first = masks.mask("b", 10, 20)
    assert first is not None
    assert first[:5].all()
    assert not first[5:].any()
    assert masks.mask("b", 10, 20) is first
    assert masks.mask("b", 20, 20) is not first


def test_regions_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlawlineError, match=r"none\.png: mask cannot be read"):
        CameraMasks([folder("a", mask=tmp_path / "none.png")])
    with pytest.raises(FlawlineError, match="camera a: nothing of a 8x8 px frame is left to inspect"):
        CameraMasks([folder("a", ignore=EVERYTHING)]).mask("a", 8, 8)
    start = "[[cameras]]\nname = 'a'\nkind = 'simulated'\n"
    for line, words in (
        ("ignore = [[[0.1, 0.1], [0.5, 0.1]]]", "ignore"),
        ("inspect = [[[0.1, 0.1], [1.5, 0.1], [0.2, 0.9]]]", "less than or equal to 1"),
        ("mask = 3", "mask"),
    ):
        (tmp_path / "line.toml").write_text(start + line)
        with pytest.raises(UsageError, match=words):
            load_settings(tmp_path / "line.toml")
