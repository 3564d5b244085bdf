"""From scores to the messages that leave: a verdict, and a defect for a frame that was not accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from flawline import messages
from flawline.messages import Decision, Defect, DefectRegion, Frame, Region, Scene, Tensor, Timings, Verdict
from scorer.regions import regions
from scorer.regions.regions import LocalRegions
from workers.lane import Outcome, Outgoing

if TYPE_CHECKING:
    from scorer.detector import Detector
    from scorer.scores import Scores

HEATMAP_SIDE_LIMIT = 128
"""The heat map of a defect is for looking at; regions were cut from the full one."""


def locate(frame: Frame, scores: Scores, detector: Detector) -> LocalRegions | None:
    """Return where a frame's regions are, None for an accepted frame.

    Raises ValueError for scores that no region can be made of.
    """
    if scores.decision is Decision.ACCEPT:
        return None
    if scores.region_inputs is None:
        raise ValueError(f"scores of a frame to {scores.decision} come without the inputs of regions")
    return regions.locate(scores.heatmap, frame.height, frame.width, *detector.heatmap_range)


def verdict(
    frame: Frame,
    scores: Scores,
    located: LocalRegions | None,
    model_version: str,
    timings: Timings,
    decided_at: int,
    scene: Scene | None = None,
) -> Verdict:
    """Return the verdict on one frame; `scene` is what has changed for its camera."""
    return Verdict(
        camera=frame.camera,
        epoch=frame.epoch,
        sequence=frame.sequence,
        captured_at=frame.captured_at,
        decided_at=decided_at,
        model_version=model_version,
        group=int(scores.group),
        raw_score=float(scores.raw),
        score=float(scores.aligned),
        p_value=float(scores.p_value),
        decision=scores.decision,
        regions=tuple(
            Region(region.box.xywh, region.area_px, region.peak) for region in (located.regions if located else ())
        ),
        timings=timings,
        part=frame.part,
        view=frame.view,
        lot=frame.lot,
        scene=scene,
    )


def defect(frame: Frame, scores: Scores, described: Sequence[DefectRegion], detector: Detector) -> Defect:
    """Return what discovery needs of a frame that was not accepted; `described` is empty beyond the budget.

    A frame without described regions names the same embedding version as all others: nothing of another is in it.
    """
    return Defect(
        camera=frame.camera,
        epoch=frame.epoch,
        sequence=frame.sequence,
        captured_at=frame.captured_at,
        model_version=detector.version,
        group=int(scores.group),
        score=float(scores.aligned),
        p_value=float(scores.p_value),
        decision=scores.decision,
        height=frame.height,
        width=frame.width,
        embedding_version=regions.embedding_version(detector.embedding_version, closer=True),
        heatmap=Tensor.of(coarse(scores.heatmap), "float16"),
        regions=tuple(described),
        part=frame.part,
        lot=frame.lot,
    )


def coarse(heatmap: np.ndarray) -> np.ndarray:
    """Return the heat map with a long side of at most HEATMAP_SIDE_LIMIT; values beyond 65,504, float16's, are cut."""
    scale = min(1.0, HEATMAP_SIDE_LIMIT / max(heatmap.shape))
    if scale < 1:
        size = max(1, round(heatmap.shape[1] * scale)), max(1, round(heatmap.shape[0] * scale))
        heatmap = cv2.resize(np.ascontiguousarray(heatmap, np.float32), size, interpolation=cv2.INTER_AREA)
    limit = float(np.finfo(np.float16).max)
    return heatmap.clip(-limit, limit)


def verdict_outcome(record: Any, result: Verdict, topic: str) -> Outcome:
    """Return the outcome that sends a verdict, to the frame's own partition number and with its key.

    A header names the frame's offset, so that the frame can be read again without a search.
    """
    headers = [*_headers(record, result), (messages.FRAME_OFFSET, str(record.offset).encode())]
    return Outcome(
        Outgoing(topic, record.partition, result.camera.encode(), messages.encode(result), headers),
        result.camera,
        result.captured_at,
        decision=result.decision,
        defect_follows=result.decision is not Decision.ACCEPT,
    )


def defect_outcome(record: Any, result: Defect, topic: str, limit_bytes: int) -> Outcome:
    """Return the outcome that sends a defect of at most `limit_bytes`, next to its verdict's partition number."""
    value = encode_within(result, limit_bytes)
    return Outcome(
        Outgoing(topic, record.partition, result.camera.encode(), value, _headers(record, result)),
        result.camera,
        result.captured_at,
    )


def encode_within(result: Defect, limit_bytes: int) -> bytes:
    """Return a defect's bytes. Over the limit its last regions, the smallest, are left out."""
    data = messages.encode(result)
    while len(data) > limit_bytes and result.regions:
        result = replace(result, regions=result.regions[:-1])
        data = messages.encode(result)
    return data


def _headers(record: Any, result: Verdict | Defect) -> list[tuple[str, bytes]]:
    trace = [(name, value) for name, value in record.headers or () if name == "traceparent"]
    return messages.headers(result) + trace
