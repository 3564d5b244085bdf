"""Settings of the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

GPU_BATCH_LIMIT = 64
GPU_LATENCY_CAP_MS = 20.0


class WorkerSettings(BaseModel):
    """Holds the number of actors and the limits of each."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None, description="Folder of the model artefact; by default the model that the topic `models` says is active."
    )
    actors: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        2,
        description="Number of Ray actors that score, each with the model in memory; auto follows the load between "
        "`fewest_actors` and `most_actors`.",
    )
    fewest_actors: int = Field(
        1, ge=1, le=4096, description='Smallest number of actors with `actors = "auto"`, which is the first one too.'
    )
    most_actors: int | None = Field(
        None,
        ge=1,
        le=4096,
        description='Largest number of actors with `actors = "auto"`; by default half the number of partitions and, '
        "without a cluster, as many as the CPUs have room for.",
    )
    takt_s: float | None = Field(
        None, gt=0, description="Longest time from capture to verdict that the line allows; later verdicts are counted."
    )
    num_cpus: float = Field(
        1.0, ge=0, description="Number of CPUs for each actor, which scores as many frames at a time."
    )
    num_gpus: float = Field(0.0, ge=0, description="Share of a GPU for each actor, where 0 means that CPUs score.")
    ray_address: str | None = Field(
        None, description="Address of the Ray cluster; without one, Ray starts on this machine."
    )
    runtime: Literal["auto", "openvino", "torch"] = Field(
        "auto", description="Software that runs the backbone; auto takes torch where CUDA is, else OpenVINO."
    )
    precision: Literal["auto", "f32", "f16", "bf16"] = Field(
        "auto", description="Number format of the backbone; auto takes that of the model, which refuses any other one."
    )
    weights: Path | None = Field(
        None,
        description="Local weights file of the backbone, for PyTorch and a model that was fitted with such a file.",
    )
    batch_limit: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Largest number of frames that a GPU scores together, 64 by default; CPUs score them one by one.",
    )
    latency_cap_ms: float | None = Field(
        None,
        ge=0,
        description="Longest wait for a batch to fill on a GPU, 20 by default, which a frame pays in latency; on CPUs "
        "no frame waits.",
    )
    describe_cpu_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Share of one CPU that describes rejects while other frames wait for scores; a larger share delays "
        "these frames.",
    )
    shadow_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of one CPU of each actor that scores frames with the shadow model; frames beyond it are not "
        "scored, and 0 scores none.",
    )
    describe_frames_per_s: float = Field(
        10.0,
        gt=0,
        description="Largest number of rejects of one camera that are described in a second; the others get no "
        "regions.",
    )
    describe_queue_bytes: int = Field(
        32 << 20, ge=1 << 20, description="Memory of one actor for rejects that wait for their description."
    )
    in_flight_limit_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        description="Memory of one actor for fetched frames, beyond which its partitions pause, and as much again "
        "for decoded ones.",
    )
    decode_threads: int = Field(
        1, ge=1, le=64, description="Number of threads of one actor that decode images; each one uses up to one CPU."
    )
    commit_interval_s: float = Field(
        0.2,
        gt=0,
        le=60,
        description="Interval at which finished frames are committed; after a crash the frames of one interval are "
        "scored again.",
    )
    session_timeout_s: float = Field(
        10.0,
        ge=6,
        le=300,
        description="Time after which the cameras of a dead actor move to the others, unless it is back; they wait for "
        "so long.",
    )
    revoke_timeout_s: float = Field(
        5.0, gt=0, le=30, description="Longest time that a camera that moves away may keep its frames in work."
    )
    stop_timeout_s: float = Field(15.0, gt=0, le=300, description="Longest wait for the frames in work at a stop.")
    start_timeout_s: float = Field(
        180.0, gt=0, description="Longest time that an actor may take to load its model and join the group."
    )
    hang_timeout_s: float = Field(
        60.0, ge=5, description="Time without an answer after which an actor is replaced; its cameras wait for so long."
    )
    restart_limit: int = Field(
        5,
        ge=0,
        description="Number of restarts of one actor within `restart_window_s`, without any progress, before the "
        "workers give up.",
    )
    restart_window_s: float = Field(60.0, gt=0, description="Time within which the restarts of an actor are counted.")

    @property
    def threads(self) -> int:
        """Images that one actor scores at a time on CPUs."""
        return max(1, int(self.num_cpus))

    @property
    def score_threads(self) -> int:
        """Batches in work at a time: on a GPU one is scored and one made ready; on CPUs a frame for each thread."""
        return 2 if self.num_gpus > 0 else self.threads

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
    def _bounds_of_actors(self) -> Self:
        if self.actors != "auto" and (self.most_actors is not None or self.fewest_actors != 1):
            raise ValueError('fewest_actors and most_actors have an effect with actors = "auto" only: remove them')
        if self.most_actors is not None and self.most_actors < self.fewest_actors:
            raise ValueError(f"most_actors {self.most_actors} is below fewest_actors {self.fewest_actors}: raise it")
        return self

    @model_validator(mode="after")
    def _revocation_ends_within_the_session(self) -> Self:
        if self.revoke_timeout_s >= self.session_timeout_s:
            raise ValueError(
                f"revoke_timeout_s {self.revoke_timeout_s} is not below "
                f"session_timeout_s {self.session_timeout_s}: lower it"
            )
        return self
