"""Settings of the cameras and of the publisher. Every role imports this module, so it imports no camera library."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from flawline.field_limits import NAME
from flawline.messages import CAMERA_NAME, Codec

CameraName = Annotated[
    str, Field(pattern=f"^{CAMERA_NAME.pattern}$", description="Name that identifies the camera on the line.")
]


def _sendable(text: str) -> str:
    NAME.check(text, "text")
    return text


def names_pattern(text: str, allowed: tuple[str, ...]) -> str:
    """Return a regular expression that names parts. Raises ValueError when it is none, or has other groups."""
    try:
        groups = re.compile(text).groupindex
    except re.error as error:
        raise ValueError(f"it should be a regular expression: {error}") from None
    if not groups or groups.keys() - set(allowed):
        wrong = "".join(f", and not {name}" for name in sorted(groups.keys() - set(allowed))[:1])
        raise ValueError(f"it should have named groups such as (?P<part>.+), of {', '.join(allowed)}{wrong}")
    return text


def _file_names(text: str) -> str:
    return names_pattern(text, ("part", "lot", "view"))


def _code_names(text: str) -> str:
    return names_pattern(text, ("part", "lot"))


KIND = Field(description="Kind of the camera, which decides what other keys it has.")


class WhenFull(StrEnum):
    """The policy for a capture when the unacknowledged bytes in memory are at their limit."""

    WAIT = "wait"
    SPOOL = "spool"
    DROP = "drop"


Fraction = Annotated[float, Field(ge=0, le=1)]
Point = tuple[Fraction, Fraction]
Polygon = Annotated[list[Point], Field(min_length=3)]


class CameraBase(BaseModel):
    """Holds the settings that every kind of camera has."""

    model_config = ConfigDict(extra="forbid")

    name: CameraName
    partition: int | None = Field(
        None,
        ge=0,
        description="Partition of the camera's topics; by default the emptiest one at its first start, which it keeps.",
    )
    rate_hz: float = Field(
        0.0, ge=0, le=10_000, description="Highest number of frames per second, where 0 means that there is no limit."
    )
    codec: Codec = Field(Codec.JPEG, description="Codec that encodes the frames of a source that delivers pixels.")
    jpeg_quality: int = Field(90, ge=30, le=100, description="JPEG quality when `codec` is jpeg.")
    view: Annotated[str, AfterValidator(_sendable)] | None = Field(
        None, description="Side of the part that the camera sees, which is copied into each frame."
    )
    priority: int = Field(
        0,
        ge=0,
        le=9,
        description="Rank of the camera in an overload: each step doubles `producer.overload_after_s` for it, so it "
        "loses frames later.",
    )
    inspect: list[Polygon] = Field(
        [],
        description="Polygons of points [x, y], in fractions of width and height, inside which frames are inspected; "
        "without a polygon the whole frame is inspected.",
    )
    ignore: list[Polygon] = Field([], description="Polygons, as in `inspect`, inside which nothing is a defect.")
    mask: Path | None = Field(
        None, description="Image file of the size of the frames, white where they are inspected and black elsewhere."
    )
    code: tuple[Fraction, Fraction, Fraction, Fraction] | None = Field(
        None,
        description="Rectangle x, y, width, height, in fractions of the frame, in which the camera sees the part's "
        "code (QR, Data Matrix, bar code).",
    )
    code_names: Annotated[str, AfterValidator(_code_names)] = Field(
        "(?P<part>.+)",
        description="Regular expression with the named groups part and lot that the whole text of the code matches.",
    )
    when_full: WhenFull | None = Field(
        None,
        description="Policy when the broker is too slow: wait (the source waits), spool (frames go to disk) or drop "
        "(counted as in-flight-full); the default is spool, but wait for a replay or simulation without a rate.",
    )

    @field_validator("code")
    @classmethod
    def _code_lies_in_the_frame(cls, code: tuple[float, float, float, float] | None) -> Any:
        if code is not None:
            x, y, width, height = code
            if min(width, height) <= 0 or x + width > 1 or y + height > 1:
                raise ValueError("it should be a rectangle inside the frame: [x, y, width, height] in fractions")
        return code

    @property
    def full_policy(self) -> WhenFull:
        """Return the policy in force. A source without a rate would fill the disk, so it waits by default."""
        if self.when_full is not None:
            return self.when_full
        return WhenFull.SPOOL if self.is_live or self.rate_hz > 0 else WhenFull.WAIT

    @property
    def is_live(self) -> bool:
        """Return whether this is a device, which does not wait for its reader and is opened again when it goes away."""
        return False

    @property
    def is_repeatable(self) -> bool:
        """Return whether the source delivers its frames again and again: a replay in a loop."""
        return False


class SimulatedCamera(CameraBase):
    """Renders the procedural line from a seed, with any size and rate and with defects of known truth."""

    kind: Annotated[Literal["simulated"], KIND]
    seed: int = Field(0, ge=0, description="Seed of the line; the same seed renders the same parts.")
    frames: int | None = Field(
        None, ge=1, description="Number of frames after which the camera ends; by default it never ends."
    )
    height: int = Field(256, ge=64, le=8192, description="Height of a frame in pixels.")
    width: int = Field(256, ge=64, le=8192, description="Width of a frame in pixels.")
    products: list[str] | None = Field(None, description="Product kinds on the line; by default all but bottle.")
    defects: list[str] | None = Field(
        None, description="Defect kinds that occur; by default all but mismatch, which is of bottles."
    )
    defect_rate: float = Field(0.1, ge=0, le=1, description="Probability that a part has a defect.")
    size: float = Field(1.0, ge=0.25, le=4, description="Factor on the default size of defects.")
    contrast: float = Field(1.0, ge=0.05, le=1, description="Opacity of defects, where 1 is opaque.")


class ReplayCamera(CameraBase):
    """Holds the settings of the cameras that replay files."""

    loop: bool = Field(False, description="Whether the replay starts again at its end.")

    @property
    def is_repeatable(self) -> bool:
        return self.loop


class FolderCamera(ReplayCamera):
    """Replays the images of a folder; in the MVTec layout, the `test` images of every product in a shuffled order."""

    kind: Annotated[Literal["folder"], KIND]
    path: Path = Field(description="Folder of the images.")
    shuffle_seed: int | None = Field(
        None,
        ge=0,
        description="Seed that shuffles the images; by default the order is sorted, but seed 0 for the MVTec layout.",
    )
    shard: int = Field(
        0,
        ge=0,
        description="Number of this camera's shard: it replays every `shards`-th image, starting at image `shard`.",
    )
    shards: int = Field(1, ge=1, description="Number of shards that the images of the folder are divided into.")
    file_names: Annotated[str, AfterValidator(_file_names)] | None = Field(
        None,
        description="Regular expression with the named groups part, lot and view that the path of each file in the "
        "folder matches.",
    )

    @model_validator(mode="after")
    def _shard_is_one_of_shards(self) -> FolderCamera:
        if self.shard >= self.shards:
            raise ValueError(f"shard {self.shard} of {self.shards}: shards are numbered from 0 to {self.shards - 1}")
        return self


class VideoCamera(ReplayCamera):
    """Replays a video file."""

    kind: Annotated[Literal["video"], KIND]
    path: Path = Field(description="Video file that FFmpeg can read.")


class DeviceCamera(CameraBase):
    """Holds the settings of the cameras that can go away."""

    open_timeout_s: float = Field(
        10.0, gt=0, le=300, description="Longest wait for the device to open, and then for its first frame."
    )

    @property
    def is_live(self) -> bool:
        return True


class UsbCamera(DeviceCamera):
    """Reads a camera that is connected to this machine."""

    kind: Annotated[Literal["usb"], KIND]
    device: int | str = Field(0, description="Number or device path of the camera.")


class RtspCamera(DeviceCamera):
    """Reads a network camera. The URL can hold credentials, so it is a secret and is never shown."""

    kind: Annotated[Literal["rtsp"], KIND]
    url: SecretStr = Field(description="RTSP URL of the camera, with its credentials.")
    transport: Literal["tcp", "udp"] = Field("tcp", description="Transport protocol of the stream.")


class Overload(StrEnum):
    """What happens to captures while the workers are too slow."""

    KEEP = "keep"
    THIN = "thin"
    OLDEST_FIRST = "oldest-first"


class Durability(StrEnum):
    """Where a frame is before its capture counts."""

    MEMORY = "memory"
    DISK = "disk"


class ProducerSettings(BaseModel):
    """Holds the limits and intervals of the publisher."""

    model_config = ConfigDict(extra="forbid")

    in_flight_limit_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        description="Limit of unacknowledged bytes in memory, of which the Kafka client holds a second copy; at the "
        "limit, each camera's `when_full` decides.",
    )
    spool_dir: Path | None = Field(
        None, description="Folder where frames wait while the broker is away; the default is <data_dir>/spool."
    )
    spool_limit_bytes: int = Field(
        4 << 30,
        ge=0,
        description="Limit of the spools of all cameras together; at the limit, old frames stay and new ones are "
        "dropped as spool-full.",
    )
    replay_limit_bytes_per_s: int = Field(
        32 << 20,
        ge=1 << 16,
        description="Rate at which one camera's spool is sent, which must be higher than the rate of the camera.",
    )
    durability: Durability = Field(
        Durability.MEMORY,
        description="Where a frame is before its capture counts: memory, where a kill of the process loses the frames "
        "that the broker has not acknowledged; or disk, where each frame is synced to the spool first.",
    )
    away_after_s: float = Field(
        3.0,
        gt=0,
        description="Wait for an acknowledgement after which the broker counts as away and new frames are spooled.",
    )
    overload: Overload = Field(
        Overload.KEEP,
        description="What happens while the workers are too slow: keep publishes all, thin keeps every n-th capture "
        "(the others are dropped as overload), oldest-first drops what cannot be in time as overload-oldest.",
    )
    overload_after_s: float = Field(
        30.0,
        gt=0,
        description="Age in seconds of a camera's oldest frame without a verdict from which thin acts, and by which "
        "oldest-first wants every verdict; it must be well below the retention of the topic frames.",
    )
    drain_timeout_s: float = Field(
        10.0, ge=0, description="Longest wait for acknowledgements at a stop; the other frames go to the spool."
    )
    ledger_interval_s: float = Field(
        1.0, gt=0, description="Interval at which each camera's ledger entry is published."
    )
    reconnect_backoff_s: tuple[float, float] = Field(
        (0.5, 30.0), description="First and longest wait before a camera is opened again."
    )

    @model_validator(mode="after")
    def _backoff_grows(self) -> ProducerSettings:
        first, longest = self.reconnect_backoff_s
        if not 0 < first <= longest:
            raise ValueError(f"reconnect_backoff_s {first}, {longest}: give the first wait, then a longer one")
        return self
