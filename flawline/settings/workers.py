"""Settings of the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

GPU_BATCH_LIMIT = 16
GPU_LATENCY_CAP_MS = 20.0


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
    weights: Path | None = Field(None, description="Local backbone weights, for a model fitted on such, on PyTorch.")
    batch_limit: int | None = Field(
        None, ge=1, le=1024, description="Most frames scored together on a GPU, by default 16; CPUs score one by one."
    )
    latency_cap_ms: float | None = Field(
        None, ge=0, description="Longest wait for a batch to fill on a GPU, by default 20; on CPUs no frame waits."
    )
    describe_cpu_share: float = Field(
        0.05, gt=0, le=1, description="Share of one CPU for describing rejects while other frames wait for scores."
    )
    describe_frames_per_s: float = Field(
        10.0, gt=0, description="Most rejects of one camera that are described in a second."
    )
    describe_queue_bytes: int = Field(
        32 << 20, ge=1 << 20, description="Bytes of rejects per actor that wait for their description."
    )
    in_flight_limit_bytes: int = Field(
        64 << 20, ge=1 << 20, description="Bytes held per actor; beyond, partitions pause."
    )
    decode_threads: int = Field(1, ge=1, le=64)
    commit_interval_s: float = Field(0.2, gt=0, le=60, description="How often finished frames are committed.")
    session_timeout_s: float = Field(
        10.0, ge=6, le=300, description="A dead actor's cameras move to the others after this time, unless it is back."
    )
    revoke_timeout_s: float = Field(
        5.0, gt=0, le=30, description="How long a camera that moves away may keep its frames in work."
    )
    stop_timeout_s: float = Field(15.0, gt=0, le=300, description="How long a stop waits for the frames in work.")
    start_timeout_s: float = Field(180.0, gt=0, description="How long an actor may take to load its model and join.")
    hang_timeout_s: float = Field(60.0, ge=5, description="An actor that does not answer for so long is replaced.")
    restart_limit: int = Field(
        5, ge=0, description="Restarts of one actor within restart_window_s, without a step forward, before giving up."
    )
    restart_window_s: float = Field(60.0, gt=0)

    @property
    def threads(self) -> int:
        """Images that one actor scores at a time on CPUs."""
        return max(1, int(self.num_cpus))

    @property
    def score_threads(self) -> int:
        """Batches that one actor scores at a time: one on a GPU, a single frame per thread on CPUs."""
        return 1 if self.num_gpus > 0 else self.threads

    @property
    def active_batch_limit(self) -> int:
        """The batch limit in use."""
        return (self.batch_limit or GPU_BATCH_LIMIT) if self.num_gpus > 0 else 1

    @property
    def active_latency_cap_s(self) -> float:
        """The longest wait for a batch in use."""
        if self.num_gpus == 0:
            return 0.0
        return (GPU_LATENCY_CAP_MS if self.latency_cap_ms is None else self.latency_cap_ms) / 1000

    @model_validator(mode="after")
    def _batches_need_a_gpu(self) -> Self:
        for name in ("batch_limit", "latency_cap_ms"):
            if self.num_gpus == 0 and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect without a GPU: remove it, or set num_gpus")
        return self

    @model_validator(mode="after")
    def _revocation_ends_within_the_session(self) -> Self:
        if self.revoke_timeout_s >= self.session_timeout_s:
            raise ValueError(
                f"revoke_timeout_s {self.revoke_timeout_s} is not below "
                f"session_timeout_s {self.session_timeout_s}: lower it"
            )
        return self
