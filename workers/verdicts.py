"""From scores to the messages that leave: a verdict, and a defect for a frame that was not accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from flawline import messages
from flawline.messages import Decision, Defect, DefectRegion, Frame, Region, Tensor, Timings, Verdict
from scorer.regions import regions as defect_regions
from workers.lane import Outcome, Outgoing

if TYPE_CHECKING:
    from scorer.detector import Detector, Scores

HEATMAP_SIDE_LIMIT = 128
"""The heat map of a defect is for looking at; regions were cut from the full one."""


def find_regions(pixels: np.ndarray, scores: Scores, detector: Detector) -> list[DefectRegion]:
    """Regions of a frame, none when it was accepted. Raises ValueError for scores that no region can be made of."""
    if scores.decision is Decision.ACCEPT:
        return []
    if scores.patches is None or scores.residuals is None:
        raise ValueError(f"scores of a frame to {scores.decision} come without patches")
    lo, hi = detector.heatmap_range
    return defect_regions.extract(
        pixels,
        scores.heatmap,
        scores.patches,
        scores.residuals,
        lo,
        hi,
        closer=getattr(detector, "close_up", None),
        field_px=getattr(detector, "field_px", None),
    )


def verdict(
    frame: Frame, scores: Scores, regions: list[DefectRegion], model_version: str, timings: Timings, decided_at: int
) -> Verdict:
    """The verdict on one frame."""
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
        regions=tuple(Region(region.box, region.area_px, region.peak) for region in regions),
        timings=timings,
        part=frame.part,
        view=frame.view,
        lot=frame.lot,
    )


def defect(frame: Frame, scores: Scores, regions: list[DefectRegion], detector: Detector) -> Defect:
    """What discovery needs of a frame that was not accepted."""
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
        embedding_version=defect_regions.embedding_version(
            detector.embedding_version, closer=hasattr(detector, "close_up")
        ),
        heatmap=Tensor.of(coarse(scores.heatmap), "float16"),
        regions=tuple(regions),
        part=frame.part,
        lot=frame.lot,
    )


def coarse(heatmap: np.ndarray) -> np.ndarray:
    """The heat map with a long side of at most HEATMAP_SIDE_LIMIT; float16 holds values to 65,504, larger are cut."""
    scale = min(1.0, HEATMAP_SIDE_LIMIT / max(heatmap.shape))
    if scale < 1:
        size = max(1, round(heatmap.shape[1] * scale)), max(1, round(heatmap.shape[0] * scale))
        heatmap = cv2.resize(np.ascontiguousarray(heatmap, np.float32), size, interpolation=cv2.INTER_AREA)
    limit = float(np.finfo(np.float16).max)
    return heatmap.clip(-limit, limit)


def outcome(
    record: Any, result: Verdict, found: Defect | None, *, verdicts_topic: str, defects_topic: str, limit_bytes: int
) -> Outcome:
    """The records of one scored frame, for the frame's own partition number and with its key."""
    key = result.camera.encode()
    trace = [(name, value) for name, value in record.headers or () if name == "traceparent"]
    outgoing = [
        Outgoing(verdicts_topic, record.partition, key, messages.encode(result), messages.headers(result) + trace)
    ]
    if found is not None:
        outgoing.append(
            Outgoing(
                defects_topic, record.partition, key, encode_within(found, limit_bytes), messages.headers(found) + trace
            )
        )
    return Outcome(tuple(outgoing), result.camera, result.captured_at, decision=result.decision)


def encode_within(found: Defect, limit_bytes: int) -> bytes:
    """A defect's bytes. Over the limit its last regions, the smallest, are left out so that the rest can leave."""
    data = messages.encode(found)
    while len(data) > limit_bytes and found.regions:
        found = Defect(**{**vars(found), "regions": found.regions[:-1]})
        data = messages.encode(found)
    return data
