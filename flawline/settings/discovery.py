"""Settings of discovery."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DiscoverySettings(BaseModel):
    """When a round runs, what it looks at, and what makes a class."""

    model_config = ConfigDict(extra="forbid")

    round_regions: int = Field(50, ge=1, description="A round starts after this many new regions,")
    round_interval_s: float = Field(300.0, gt=0, description="or after this time when there is anything new.")
    window_regions: int = Field(5_000, ge=50, description="Latest regions that a round looks at,")
    pool_regions: int = Field(2_000, ge=50, description="latest regions without a class that it looks at,")
    exemplars: int = Field(50, ge=5, description="and members that each class keeps for it.")
    class_limit: int = Field(40, ge=1, description="Most clusters that a round may propose.")
    min_members: int = Field(10, ge=2, description="Members a class needs before it is confirmed.")
    confirm_rounds: int = Field(2, ge=1, description="Rounds in a row that must find a class before it is confirmed.")
    dormant_rounds: int = Field(20, ge=1, description="Rounds without a new member after which a class is dormant.")
    mode: Literal["centroids", "learned"] = Field(
        "centroids", description="learned: rounds train on the crops (AnomalyNCD); needs minutes, or a GPU."
    )
    embedding: Literal["worker", "crop"] = Field(
        "worker", description="crop: discovery describes each region itself, by its crop and mask."
    )
    crop_backbone: str = Field("tf_efficientnet_lite0", description="Any timm model; describes crops, and is trained.")
    crop_weights: Path | None = Field(None, description="Local file; default: packaged weights, else timm's own.")
    learning_epochs: int = Field(10, ge=1)
    learning_regions: int = Field(1_000, ge=30, description="Most crops that a learning round trains on.")
    learning_correction: bool = Field(
        False, description="Learn one more kind that takes in what is hardly anomalous, and has no class."
    )
    learning_timeout_s: float = Field(3_600.0, gt=0, description="A learning round that takes longer is given up.")
    learning_runner: Literal["auto", "process", "ray"] = Field(
        "auto", description="auto: a Ray task where worker.ray_address names a cluster, else a process."
    )
    learning_gpus: float = Field(0.0, ge=0, description="GPUs that the Ray task asks for.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Of the crop backbone.")
    keep_images_days: float | None = Field(
        None, gt=0, description="Crops, masks and heat maps are kept so long; exemplars keep theirs."
    )
    keep_defects_days: float | None = Field(
        None, gt=0, description="Defects are kept one by one so long, then only counted."
    )
    seed: int = 0
