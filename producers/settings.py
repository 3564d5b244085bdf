"""Settings of the cameras and of the publisher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from flawline.messages import Codec

CameraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Identity of the camera on the line.")]


class CameraBase(BaseModel):
    """What every kind of camera has."""

    model_config = ConfigDict(extra="forbid")

    name: CameraName
    partition: int | None = Field(None, ge=0, description="Partition of its topics; by default its place in the list.")
    rate_hz: float = Field(0.0, ge=0, le=10_000, description="Frames per second; 0 means as fast as they come.")
    codec: Codec = Field(Codec.JPEG, description="How pixels are encoded when the device gives pixels.")
    jpeg_quality: int = Field(90, ge=30, le=100)
    view: str | None = Field(None, description="Which side of the part it sees; copied into each frame.")


class SimulatedCamera(CameraBase):
    """The procedural line: seeded, any size and rate, with defects of known truth."""

    kind: Literal["simulated"]
    seed: int = Field(0, ge=0)
    frames: int | None = Field(None, ge=1, description="Ends after this many; none never ends.")
    height: int = Field(256, ge=32, le=8192)
    width: int = Field(256, ge=32, le=8192)
    products: list[str] | None = Field(None, description="Product kinds that pass; none means all.")
    defects: list[str] | None = Field(None, description="Defect kinds that occur; none means all.")
    defect_rate: float = Field(0.1, ge=0, le=1)
    size: float = Field(1.0, gt=0, le=4, description="Defect size, relative to the default.")
    contrast: float = Field(1.0, gt=0, le=4, description="Defect contrast, relative to the default.")


class FolderCamera(CameraBase):
    """Replays the images of a folder; the MVTec layout is understood (`test` images of every product, mixed)."""

    kind: Literal["folder"]
    path: Path
    loop: bool = False
    shuffle_seed: int | None = Field(None, description="Mixes the order; none keeps the sorted order.")
    shard: int = Field(0, ge=0, description="With `shards`: this camera replays every shards-th image from `shard` on.")
    shards: int = Field(1, ge=1)


class VideoCamera(CameraBase):
    """Replays a video file."""

    kind: Literal["video"]
    path: Path
    loop: bool = False


class UsbCamera(CameraBase):
    """A camera of this machine, by its number or device path."""

    kind: Literal["usb"]
    device: int | str = 0


class RtspCamera(CameraBase):
    """A network camera."""

    kind: Literal["rtsp"]
    url: str


class ProducerSettings(BaseModel):
    """The publisher's bounds."""

    model_config = ConfigDict(extra="forbid")

    in_flight_limit_bytes: int = Field(
        64 << 20, ge=1 << 20, description="Unacknowledged bytes in memory; beyond, frames go to the spool."
    )
    spool_dir: Path | None = Field(
        None, description="Where frames wait while the broker is away; default <data_dir>/spool."
    )
    spool_limit_bytes: int = Field(
        4 << 30, ge=0, description="Oldest frames are kept; new ones are dropped as spool-full."
    )
    ledger_interval_s: float = Field(1.0, gt=0, description="How often each camera's ledger entry is published.")
    reconnect_backoff_s: tuple[float, float] = Field(
        (0.5, 30.0), description="First and longest wait before reopening."
    )
