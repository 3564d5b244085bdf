"""The shapes of what the interface gives and takes, from which its OpenAPI description is made."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flawline.messages import Judgement
from station.web.forms import WHO_LENGTH, WHY_LENGTH


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds a character that cannot be printed: leave it out")
    return text.strip()


Who = Annotated[str, AfterValidator(_printable), Field(max_length=WHO_LENGTH)]
Why = Annotated[str, AfterValidator(_printable), Field(max_length=WHY_LENGTH)]
Name = Annotated[str, AfterValidator(_printable), Field(min_length=1, max_length=64)]
FrameId = Annotated[str, AfterValidator(_printable), Field(min_length=1, max_length=256)]


class _Output(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    who: Who = Field("", description="Who says it; needed only where no users exist.")
    why: Why = Field("", description="Reason, which is kept.")


class Statement(_Input):
    """What a person says, without more."""


class Split(_Input):
    """How a class is parted: by looks, or with `regions` by what a person has picked out."""

    regions: list[Annotated[int, Field(ge=1, lt=2**63)]] = Field(
        [], max_length=20_000, description="Ids of members that the new class shall have; none: parted by looks."
    )
    alike: bool = Field(True, description="With `regions`: also the members that look like them.")


class Assigned(_Input):
    """Which regions without a class go to which class: to `into`, or to a new one."""

    regions: list[Annotated[int, Field(ge=1, lt=2**63)]] = Field(min_length=1, max_length=20_000)
    into: Name | None = Field(None, description="Id or name of the class that gets them; without it, a new one.")
    name: Name | None = Field(None, description="Name of the new class.")


class Hidden(_Input):
    """What hides frames from people's eyes, and so is confirmed."""

    confirmed: bool = Field(False, description="Without it the answer is 409, and says how many frames are hidden.")


class NewName(_Input):
    name: Name


class NewSeverity(_Input):
    severity: Literal["minor", "major", "critical"]


class Merge(Hidden):
    into: Name = Field(description="Id or name of the class that takes the frames.")


class NewJudgement(_Input):
    frame: FrameId
    judgement: Judgement
    is_offered: bool = Field(False, description="The frame came from a queue, so it counts in the rates.")


class Undone(_Input):
    frame: FrameId | None = Field(None, description="Frame whose last judgement is taken back; default: your last one.")


class Carried(_Input):
    old: Annotated[str, AfterValidator(_printable), Field(max_length=256)]
    new: Annotated[str, AfterValidator(_printable), Field(max_length=256)]


class Line(_Output):
    line: str
    cameras: list[str]
    views: list[str]
    time_zone: str
    shifts: list[dict[str, Any]]
    you: str | None
    role: str


class Camera(_Output):
    camera: str
    kind: str = Field(description="live, silent, away, never or waiting.")
    words: str
    scene: str = Field(description="What has changed for the camera, its light or its product; empty: nothing.")
    since: datetime | None
    shown: dict[str, Any] | None
    strip: list[list[Any]]


class Ledger(_Output):
    read_at: datetime | None
    error: str | None
    ledger: dict[str, Any] | None


class DefectClass(_Output):
    id: str
    name: str | None
    severity: str | None
    state: str
    frames: int
    regions: int
    born_at: datetime
    last_seen_at: datetime
    confirmed_at: datetime | None
    merged_into: str | None


class WholeClass(DefectClass):
    parents: list[str]
    children: list[str]
    merged_from: list[str]
    places: list[dict[str, Any]]
    events: list[dict[str, Any]]
    audit: list[dict[str, Any]]


class Member(_Output):
    region: int
    frame: str
    camera: str
    captured_at: datetime
    peak: float
    crop: str


class Region(_Output):
    region: int
    box: list[int] = Field(description="x, y, width, height in pixels.")
    area_px: int
    peak: float
    class_id: str | None
    class_name: str | None
    crop: str


class Defect(_Output):
    frame: str
    camera: str
    captured_at: datetime
    decision: str
    score: float
    p_value: float
    class_id: str | None
    class_name: str | None
    group: int
    group_name: str | None
    model: str
    part: str | None
    lot: str | None
    shift: str | None
    shift_day: str | None
    regions: list[Region]
    heat_map: str


class Frame(_Output):
    frame: str
    camera: str
    captured_at: datetime
    stratum: str
    decision: str
    score: float
    p_value: float
    group: int
    group_name: str | None
    model: str
    part: str | None
    lot: str | None
    shift: str | None
    shift_day: str | None
    class_id: str | None
    size: list[int]
    picture: str


class FrameWithJudgements(Frame):
    judgements: list[dict[str, Any]]


class GoodPatch(_Output):
    state: str = Field(description="ready; pending: ask again; or none, and `words` say why.")
    words: str
    distance: float | None = Field(description="Between unit vectors, 0 to 2.")
    times_usual: float | None
    image: str | None = Field(description="Good image that the shown patch is of.")
    picture: str | None


class JudgementEntry(_Output):
    frame: str
    judgement: str
    who: str
    at: datetime
    why: str | None
    camera: str
    captured_at: datetime
    stratum: str
    is_offered: bool
    decision: str
    score: float
    p_value: float
    model_version: str
    lot: str | None
    shift: str | None
    shift_day: str | None


class Rates(_Output):
    rates: dict[str, dict[str, float | None]]
    strata: list[dict[str, Any]]
    confidence: float


class Estimate(_Output):
    value: float | None = Field(description="null where nothing was judged.")
    low: float
    high: float


class Measured(_Output):
    frames: int
    alarms: int
    share: Estimate = Field(description="Share of all frames that were not accepted.")
    overkill: Estimate | None
    recall: Estimate | None = Field(description="Share of the defective parts that were not accepted.")
    judged: int | None


class FoundInGroup(_Output):
    group: int
    name: str | None
    recall: Estimate


class RatePoint(_Output):
    rate: float
    is_asked: bool
    is_tried: bool
    cut_off: float
    good_above: int = Field(description="Good images of the fit above the cut-off, of `images`.")
    images: int
    upper_bound: float
    vouched: bool
    alarms: Estimate = Field(description="Stored frames that would not have been accepted.")
    share: Estimate | None
    overkill: Estimate
    recall: Estimate
    recall_at_fit: float | None
    groups: list[FoundInGroup]


class OperatingPoint(_Output):
    model: str | None
    since: datetime | None
    until: datetime | None
    confidence: float
    measured: Measured
    problem: str | None = Field(description="Why there is no more than `measured`.")
    asked: dict[str, Any] | None
    points: list[RatePoint]
    what_if: dict[str, Any] | None
    stored: dict[str, Any] | None = None


class Group(_Output):
    model: str
    group: int
    name: str | None
    frames: int
    first_at: datetime
    last_at: datetime


class View(_Output):
    view: str
    frame: str
    camera: str
    decision: str
    p_value: float
    score: float


class Part(_Output):
    id: int
    part: str
    lot: str | None
    shift: str | None
    shift_day: str | None
    decision: str
    p_value: float
    captured_at: datetime
    frames: int
    views: list[View]
    missing: list[str]
    is_open: bool = Field(description="A missing view may still come.")


class Count(_Output):
    camera: str | None = None
    lot: str | None = None
    shift: str | None = None
    shift_day: str | None = None
    model: str | None = None
    group: int | None = None
    hour: datetime | None = None
    decision: str
    frames: int


class Lot(_Output):
    lot: str
    first_at: datetime
    last_at: datetime
