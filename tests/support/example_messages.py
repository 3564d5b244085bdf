"""One message of each type, the same each time."""

from __future__ import annotations

from typing import Any

from flawline.messages import (
    CameraPartition,
    ClassEvent,
    ClassState,
    Codec,
    DeadLetter,
    DeadLetterReason,
    Decision,
    Defect,
    DefectRegion,
    DroppedRange,
    DropReason,
    ExpiredFrames,
    Frame,
    Judgement,
    JudgementEvent,
    LedgerEntry,
    LedgerSnapshot,
    ModelHistory,
    ModelPointer,
    ModelReport,
    ReadPosition,
    Region,
    RunningModel,
    ShadowVerdict,
    Tensor,
    Timings,
    Transition,
    Verdict,
)


def example(cls: type) -> Any:
    """Return the same message of a type each time."""
    ident = {"camera": "cam-1", "epoch": 1, "sequence": 2}
    judged = {"captured_at": 3, "model_version": "m", "group": 0, "score": 1.0, "p_value": 0.5}
    made = {
        Frame: lambda: Frame(
            **ident,
            captured_at=3,
            codec=Codec.PNG,
            height=1,
            width=2,
            channels=3,
            data=b"abcd",
            checksum=1,
            size_bytes=4,
        ),
        Verdict: lambda: Verdict(
            **ident,
            **judged,
            decided_at=4,
            raw_score=0.1,
            decision=Decision.REJECT,
            regions=(Region((1, 2, 3, 4), 12, 0.5),),
            timings=Timings(0.1, 0.2, 0.3, 0.4),
        ),
        Defect: lambda: Defect(
            **ident,
            **judged,
            decision=Decision.REJECT,
            height=4,
            width=4,
            embedding_version="e",
            heatmap=Tensor("float16", (1, 1), b"ab"),
            regions=(
                DefectRegion((0, 0, 2, 2), 4, 0.5, (0, 0, 4, 4), b"mask", b"crop", Tensor("float16", (1,), b"ab")),
            ),
        ),
        ClassEvent: lambda: ClassEvent("e1", "c1", Transition.BORN, 1, 2, ClassState.CANDIDATE, 10, parents=("c0",)),
        JudgementEvent: lambda: JudgementEvent(
            "cam:1:2:j1", "cam:1:2", "cam", 1, Decision.REJECT, "m", Judgement.FALSE, True, "ana", 3, "oil"
        ),
        DeadLetter: lambda: DeadLetter(
            DeadLetterReason.CHECKSUM,
            "why",
            "frames",
            0,
            7,
            b"cam-1",
            b"value",
            (("h", b"v"),),
            9,
            frame_id="cam-1:1:2",
        ),
        ModelPointer: lambda: ModelPointer("active", "v1", "/models/v1", 5),
        ModelHistory: lambda: ModelHistory("active", (ModelPointer("active", "v0", "/models/v0", 4),)),
        ModelReport: lambda: ModelReport("line.host.0", "host", 7, 8, RunningModel("v1", 5), None, "v2 is damaged"),
        ShadowVerdict: lambda: ShadowVerdict(
            "cam-1", 1, 2, 3, 9, 0, 6, "v2", 1.5, 0.01, Decision.REVIEW, "v1", 0.5, Decision.ACCEPT, "bolt"
        ),
        CameraPartition: lambda: CameraPartition("cam-1", 3, 8),
        ExpiredFrames: lambda: ExpiredFrames("cam-1", 1, 9, 0, 100, 140, 8),
        LedgerSnapshot: lambda: LedgerSnapshot(8, (ReadPosition("verdicts", 0, 7, 6, 5, 4),), b"state", 3),
        LedgerEntry: lambda: LedgerEntry("cam-1", 1, 9, (DroppedRange(3, 4, DropReason.OVERSIZE),), 8),
    }
    return made[cls]()
