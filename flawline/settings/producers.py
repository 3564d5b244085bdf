"""Settings of the cameras and of the publisher. Light on purpose: every role reads them, few open a camera."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from flawline.messages import Codec

CameraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Identity of the camera on the line.")]


class WhenFull(StrEnum):
    """What happens to a capture for which the unacknowledged bytes leave no room."""

    WAIT = "wait"
    SPOOL = "spool"
    DROP = "drop"


Point = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]]
Polygon = Annotated[list[Point], Field(min_length=3)]


class CameraBase(BaseModel):
    """What every kind of camera has."""

    model_config = ConfigDict(extra="forbid")

    name: CameraName
    partition: int | None = Field(
        None,
        ge=0,
        description="Partition of its topics; by default it gets the emptiest one at first sight, and keeps it.",
    )
    rate_hz: float = Field(
        0.0, ge=0, le=10_000, description="Frames per second, at most; 0 means as fast as they come."
    )
    codec: Codec = Field(Codec.JPEG, description="How pixels are encoded when the device gives pixels.")
    jpeg_quality: int = Field(90, ge=30, le=100)
    view: str | None = Field(None, description="Which side of the part it sees; copied into each frame.")
    inspect: list[Polygon] = Field(
        [],
        description="Polygons of points [x, y], in fractions of width and height, inside which frames are inspected; "
        "none: everywhere.",
    )
    ignore: list[Polygon] = Field([], description="Polygons inside which nothing is a defect.")
    mask: Path | None = Field(
        None, description="Image file of the frames' size, white where they are inspected, black where not."
    )
    when_full: WhenFull | None = Field(
        None,
        description="When the broker does not keep up: wait (hold the source back), spool (to disk) or drop (counted "
        "as in-flight-full). Default: spool, but wait for a replay or simulation without a rate.",
    )

    @property
    def full_policy(self) -> WhenFull:
        """The policy in force. A source that is read as fast as it goes would fill the disk, so it waits."""
        if self.when_full is not None:
            return self.when_full
        return WhenFull.SPOOL if self.is_live or self.rate_hz > 0 else WhenFull.WAIT

    @property
    def is_live(self) -> bool:
        """Whether this is a device: it does not wait for its reader, and it is opened again when it goes away."""
        return False


class SimulatedCamera(CameraBase):
    """The procedural line: seeded, any size and rate, with defects of known truth."""

    kind: Literal["simulated"]
    seed: int = Field(0, ge=0)
    frames: int | None = Field(None, ge=1, description="Ends after this many; none never ends.")
    height: int = Field(256, ge=64, le=8192)
    width: int = Field(256, ge=64, le=8192)
    products: list[str] | None = Field(None, description="Product kinds that pass; none means all.")
    defects: list[str] | None = Field(None, description="Defect kinds that occur; none means all.")
    defect_rate: float = Field(0.1, ge=0, le=1)
    size: float = Field(1.0, ge=0.25, le=4, description="Defect size, relative to the default.")
    contrast: float = Field(1.0, ge=0.05, le=1, description="Opacity of defects; 1 is full.")


class FolderCamera(CameraBase):
    """Replays the images of a folder; of one in the MVTec layout, the `test` images of every product, mixed."""

    kind: Literal["folder"]
    path: Path
    loop: bool = False
    shuffle_seed: int | None = Field(
        None, ge=0, description="Mixes the order. Default: sorted order, but seed 0 for the MVTec layout."
    )
    shard: int = Field(0, ge=0, description="With `shards`: this camera replays every shards-th image from `shard` on.")
    shards: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _shard_is_one_of_shards(self) -> FolderCamera:
        if self.shard >= self.shards:
            raise ValueError(f"shard {self.shard} of {self.shards}: shards are numbered from 0 to {self.shards - 1}")
        return self


class VideoCamera(CameraBase):
    """Replays a video file."""

    kind: Literal["video"]
    path: Path
    loop: bool = False


class DeviceCamera(CameraBase):
    """What the cameras that can go away have."""

    open_timeout_s: float = Field(
        10.0, gt=0, le=300, description="Longest wait for the device to answer and to give its first frame."
    )

    @property
    def is_live(self) -> bool:
        return True


class UsbCamera(DeviceCamera):
    """A camera of this machine, by its number or device path."""

    kind: Literal["usb"]
    device: int | str = 0


class RtspCamera(DeviceCamera):
    """A network camera. The URL may hold credentials, so it is never shown."""

    kind: Literal["rtsp"]
    url: SecretStr
    transport: Literal["tcp", "udp"] = "tcp"


class ProducerSettings(BaseModel):
    """The publisher's bounds."""

    model_config = ConfigDict(extra="forbid")

    in_flight_limit_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        description="Unacknowledged bytes in memory, of which the Kafka client holds a second copy; beyond, each "
        "camera's `when_full` decides.",
    )
    spool_dir: Path | None = Field(
        None, description="Where frames wait while the broker is away; default <data_dir>/spool."
    )
    spool_limit_bytes: int = Field(
        4 << 30, ge=0, description="Of all cameras. Oldest frames are kept; new ones are dropped as spool-full."
    )
    replay_limit_bytes_per_s: int = Field(
        32 << 20, ge=1 << 16, description="How fast one camera's spool is sent; must be more than the camera gives."
    )
    away_after_s: float = Field(
        3.0, gt=0, description="A frame unacknowledged for so long means that the broker is away: new ones are spooled."
    )
    drain_timeout_s: float = Field(
        10.0, ge=0, description="Longest wait for acknowledgements at a stop; the rest goes to the spool."
    )
    ledger_interval_s: float = Field(1.0, gt=0, description="How often each camera's ledger entry is published.")
    reconnect_backoff_s: tuple[float, float] = Field(
        (0.5, 30.0), description="First and longest wait before reopening."
    )

    @model_validator(mode="after")
    def _backoff_grows(self) -> ProducerSettings:
        first, longest = self.reconnect_backoff_s
        if not 0 < first <= longest:
            raise ValueError(f"reconnect_backoff_s {first}, {longest}: give the first wait, then a longer one")
        return self
