"""Settings of the workers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class WorkerSettings(BaseModel):
    """How many actors, and the bounds of each."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Model artefact; by default what the topic `models` says is active.")
    actors: int = Field(2, ge=1, le=4096)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0, description="Share of a GPU for each actor; 0 means CPU.")
    ray_address: str | None = Field(None, description="Ray cluster; none starts Ray on this machine.")
    runtime: Literal["auto", "openvino", "torch"] = "auto"
    precision: Literal["auto", "f32", "bf16"] = "auto"
    batch_limit: int = Field(16, ge=1, le=1024)
    latency_cap_ms: float = Field(20.0, ge=0, description="Longest wait for a batch to fill.")
    in_flight_limit_bytes: int = Field(
        64 << 20, ge=1 << 20, description="Bytes held per actor; beyond, partitions pause."
    )
    decode_threads: int = Field(1, ge=1, le=64)
    restart_limit: int = Field(5, ge=0, description="Restarts of one actor within restart_window_s before giving up.")
    restart_window_s: float = Field(60.0, gt=0)
