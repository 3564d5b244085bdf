"""Settings of discovery."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DiscoverySettings(BaseModel):
    """Holds when a round runs, what it looks at, and what makes a class."""

    model_config = ConfigDict(extra="forbid")

    round_regions: int = Field(50, ge=1, description="Number of new regions after which a round starts.")
    round_interval_s: float = Field(
        300.0, gt=0, description="Time after which a round starts when there is at least one new region."
    )
    window_regions: int = Field(
        5_000,
        ge=50,
        description="Number of the latest regions that a round looks at; a larger one costs time and memory.",
    )
    pool_regions: int = Field(
        2_000,
        ge=50,
        description="Number of the latest regions without a class that a round looks at; a larger one costs time and "
        "memory.",
    )
    exemplars: int = Field(
        50, ge=5, description="Number of members that each class keeps for later rounds; a larger one costs disk space."
    )
    class_limit: int = Field(40, ge=1, description="Largest number of clusters that a round may propose.")
    min_members: int = Field(10, ge=2, description="Number of members that a class needs before it is confirmed.")
    confirm_rounds: int = Field(
        2, ge=1, description="Number of rounds, from the one that finds it first, before a class is confirmed."
    )
    false_births_per_month: float = Field(
        0.1,
        gt=0,
        description="Expected number of classes in a month that are born without cause; with a smaller one a class "
        "needs more members.",
    )
    dormant_rounds: int = Field(
        20,
        ge=1,
        description="Number of rounds without a new member after which a class is dormant, if seven were due by then.",
    )
    mode: Literal["centroids", "learned"] = Field(
        "centroids",
        description="How a round finds clusters; learned trains on the crops (AnomalyNCD), which takes minutes or a "
        "GPU.",
    )
    embedding: Literal["worker", "crop"] = Field(
        "worker",
        description="Source of a region's embedding; with crop, discovery computes it from the crop and the mask, "
        "which costs one forward pass for each region.",
    )
    crop_backbone: str = Field(
        "tf_efficientnet_lite0",
        description="Name of the timm model that describes crops and that learned rounds train.",
    )
    crop_weights: Path | None = Field(
        None,
        description="Local weights file of the crop backbone; without one, packaged weights, else those of timm.",
    )
    learning_epochs: int = Field(
        10, ge=1, description="Number of passes over the crops in a learned round; its time grows with this number."
    )
    learning_regions: int = Field(
        1_000,
        ge=30,
        description="Largest number of crops that a learned round trains on; 1,000 take 1.5 GB of temporary files with "
        "the default backbone.",
    )
    learning_correction: bool = Field(
        False,
        description="Whether a learned round has one more cluster for regions that are hardly anomalous and get no "
        "class.",
    )
    learning_timeout_s: float = Field(
        3_600.0, gt=0, description="Time after which a learned round is given up; the classes then stay as they are."
    )
    learning_runner: Literal["auto", "process", "ray"] = Field(
        "auto",
        description="Where a learned round runs; auto takes a Ray task when `worker.ray_address` names a cluster, else "
        "a process.",
    )
    learning_gpus: float = Field(0.0, ge=0, description="Number of GPUs that the Ray task of a learned round asks for.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device that runs the crop backbone; auto takes CUDA where there is a GPU."
    )
    seed: int = Field(0, description="Seed of all random choices of a round.")
