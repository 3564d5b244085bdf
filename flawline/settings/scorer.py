"""Settings of the scorer: which features, how large the banks, which alarm rate."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LayerSettings(BaseModel):
    """One feature map, which gets its own bank in every group."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(
        default=256, ge=32, le=2048, multiple_of=32, description="Side of the square model input in pixels."
    )
    stride: int = Field(ge=2, le=64, description="Input pixels between neighbouring patches.")
    earlier: bool = Field(
        default=False, description="The map from halfway through the backbone's blocks of this stride, not the last."
    )
    weight: float = Field(default=1.0, gt=0, description="Part in the mean over layers, relative to the others'.")
    rows: int = Field(
        default=5000, ge=16, le=200_000, description="Most vectors that a group's bank of this layer may hold,"
    )
    rows_per_image: float = Field(
        default=30, gt=0, description="and how many it may hold for each of the group's images."
    )
    neighbours: int = Field(
        default=1, ge=1, le=64, description="1: distance to the nearest; more: to their soft projection."
    )


_ONE_PASS = (
    LayerSettings(size=256, stride=8, rows=5000, rows_per_image=30, neighbours=1),
    LayerSettings(size=256, stride=16, earlier=True, rows=5000, rows_per_image=30, neighbours=5),
    LayerSettings(size=256, stride=16, rows=5000, rows_per_image=30, neighbours=5),
    LayerSettings(size=256, stride=32, weight=0.5, rows=1500, rows_per_image=9, neighbours=5),
)
PROFILES: dict[str, tuple[LayerSettings, ...]] = {
    "fast": _ONE_PASS,
    "accurate": (
        *_ONE_PASS,
        LayerSettings(size=512, stride=16, earlier=True, rows=5000, rows_per_image=30, neighbours=5),
        LayerSettings(size=512, stride=16, rows=5000, rows_per_image=30, neighbours=5),
    ),
}


class ScorerSettings(BaseModel):
    """How a model is fitted, and on what it runs."""

    model_config = ConfigDict(extra="forbid")

    backbone: str = Field(
        default="tf_efficientnet_lite0", min_length=1, description="Any timm model by name, or hub name (hf-hub:...)."
    )
    weights: Path | None = Field(
        default=None,
        description="Local weights file (.safetensors, .pth); none means packaged weights, else timm's own.",
    )
    profile: Literal["fast", "accurate"] = Field(
        default="fast", description="One pass at 256 px, or a second at 512 px."
    )
    layers: tuple[LayerSettings, ...] | None = Field(default=None, description="Overrides the profile's layers.")
    groups: int | None = Field(
        default=None, ge=1, le=10_000, description="Number of look-alike groups; none: by silhouette."
    )
    minimum_images: int = Field(default=20, ge=8, description="Fewer good images than this are refused.")
    folds: int = Field(default=5, ge=2, le=20, description="Parts of the cross-fit that makes the calibration scores.")
    trim: bool = Field(
        default=False, description="Leave images out of the fit that look like defects among the good ones."
    )
    tile_px: int | None = Field(
        default=None, ge=64, le=4096, description="Side of the tiles that large images are cut into; none: no tiles."
    )
    tile_overlap: float = Field(
        default=0.25, ge=0.1, le=0.5, description="Share of a tile that its neighbours cover too."
    )
    look_alikes: int = Field(
        default=25, ge=1, le=1000, description="Similar good images whose scores align an image's own."
    )
    alarm_rate: float = Field(
        default=0.005, gt=0, lt=0.5, description="Share of good parts that may fail to be accepted."
    )
    reject_rate: float | None = Field(
        default=None,
        gt=0,
        lt=0.5,
        description="Share of good parts that may be rejected; none: a fifth of the alarm rate.",
    )
    runtime: Literal["auto", "openvino", "torch"] = Field(
        default="auto", description="auto: torch with CUDA, else OpenVINO."
    )
    precision: Literal["f32", "bf16"] = Field(
        default="f32",
        description="bf16 is faster on CPUs that have it, but its scores differ by several percent from every other "
        "runtime's: a model fitted in bf16 runs in bf16 only.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=1024, description="Images scored at once; none: one per CPU.")
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.layers is not None and not self.layers:
            raise ValueError("layers is empty: name one layer at least, or leave it out for the profile's")
        places = [(layer.size, layer.stride, layer.earlier) for layer in self.layers or ()]
        if len(set(places)) < len(places):
            raise ValueError("layers names the same map (size, stride, earlier) twice: remove one of them")
        for layer in self.layers or ():
            if layer.earlier and (layer.size, layer.stride, False) not in places:
                raise ValueError(
                    f"layers names the earlier map of stride {layer.stride} at {layer.size} px alone: add the last one"
                )
        if self.reject_rate is not None and self.reject_rate > self.alarm_rate:
            raise ValueError(f"reject_rate {self.reject_rate} is above alarm_rate {self.alarm_rate}: lower it")
        return self

    @property
    def active_layers(self) -> tuple[LayerSettings, ...]:
        """The layers in use, the given ones or those of the profile, in ascending size, stride and depth."""
        return tuple(
            sorted(self.layers or PROFILES[self.profile], key=lambda each: (each.size, each.stride, not each.earlier))
        )

    @property
    def active_reject_rate(self) -> float:
        """The share of good parts that may be rejected outright, the rest of the alarm rate being `review`."""
        return self.reject_rate or self.alarm_rate / 5
