"""What webhooks and MQTT are told (`station/outbound/`), for the interface's description: nothing here is served."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field

router = APIRouter()


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ToldRegion(_Told):
    box: list[int] = Field(description="x, y, width, height in pixels.")
    area_px: int
    peak: float | None


class ToldVerdict(_Told):
    frame: str
    camera: str
    captured_at: datetime
    decided_at: datetime
    decision: str
    score: float | None
    p_value: float | None
    group: int
    model: str
    part: str | None
    lot: str | None
    view: str | None
    scene: str | None = Field(description="What has changed for the camera: camera-changed, product-changed.")
    shift: str | None
    shift_day: str | None
    regions: list[ToldRegion]


class ToldClass(_Told):
    id: str
    name: str | None
    severity: str | None
    state: str
    regions: int
    merged_into: str | None
    parents: list[str]
    transition: str = Field(description="What has changed; a new class is `born`, then `confirmed`.")
    at: datetime
    round: int
    who: str | None
    why: str | None
    selected: int


class ToldCamera(_Told):
    camera: str
    kind: str = Field(description="live, silent, away, never or waiting.")
    words: str = Field(description="`{since}` stands for that time.")
    scene: str = Field(description="What has changed for the camera; empty: nothing.")
    since: datetime | None


class _Event(_Told):
    id: str = Field(description="The same each time that the event is told.")
    timestamp: datetime
    line: str


class VerdictEvent(_Event):
    type: Literal["verdict"]
    data: ToldVerdict


class ClassChangeEvent(_Event):
    type: Literal["class"]
    data: ToldClass


class CameraEvent(_Event):
    type: Literal["camera"]
    data: ToldCamera


Id = Annotated[str, Header(alias="webhook-id", description="`id` of the event.")]
Timestamp = Annotated[int, Header(alias="webhook-timestamp", description="Seconds UTC of this call.")]
Signature = Annotated[
    str | None,
    Header(alias="webhook-signature", description="`v1,` and the base64 of HMAC-SHA256 over `ID.TIMESTAMP.BODY`."),
]


@router.post("verdict", status_code=204)
def verdict(event: VerdictEvent, identity: Id, timestamp: Timestamp, signature: Signature = None) -> None:
    """Take the verdict on a frame."""


@router.post("class", status_code=204)
def change_of_class(event: ClassChangeEvent, identity: Id, timestamp: Timestamp, signature: Signature = None) -> None:
    """Take a change of a defect class, with its whole state afterwards."""


@router.post("camera", status_code=204)
def camera(event: CameraEvent, identity: Id, timestamp: Timestamp, signature: Signature = None) -> None:
    """Take the state of a camera."""
