"""Settings of the scorer: features, size of the banks, alarm rate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LayerSettings(BaseModel):
    """Holds one feature map, which gets a bank of its own in every group."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(
        default=256,
        ge=32,
        le=2048,
        description="Side of the square model input in pixels: a multiple of 32, or of a transformer's patches.",
    )
    stride: int | None = Field(
        default=None, ge=2, le=64, description="Pixels of the model input between neighbouring patches."
    )
    block: int | None = Field(
        default=None,
        ge=1,
        le=200,
        description="Number of the vision transformer's block, from 1, whose patches are the map; given instead of a "
        "stride.",
    )
    earlier: bool = Field(
        default=False,
        description="Whether to take the map halfway through the backbone's blocks of this stride, not the last one.",
    )
    weight: float = Field(
        default=1.0, gt=0, description="Weight of this layer in the mean over layers, relative to the others."
    )
    rows: int = Field(
        default=5000,
        ge=16,
        le=200_000,
        description="Largest number of vectors in a group's bank of this layer; a larger one costs memory and time per "
        "frame.",
    )
    rows_per_image: float = Field(
        default=30, gt=0, description="Largest number of vectors in a bank for each image of its group."
    )
    neighbours: int = Field(
        default=1, ge=1, le=64, description="Number of nearest rows whose mean distance is the score of a patch."
    )

    @model_validator(mode="after")
    def _names_one_map(self) -> Self:
        if (self.stride is None) == (self.block is None):
            raise ValueError("a layer names its map by stride or by block: give one of the two")
        if self.block is not None and self.earlier:
            raise ValueError("earlier goes with a stride: name the earlier block itself")
        if self.stride is not None and self.size % 32:
            raise ValueError(f"size {self.size} of a layer with a stride is no multiple of 32")
        return self

    @property
    def name(self) -> str:
        """What tells the map from the others of a backbone."""
        return f"{self.size}/{self.stride}" if self.stride else f"{self.size}/block {self.block}"


_ONE_PASS = (
    LayerSettings(size=256, stride=8, rows=5000, rows_per_image=30, neighbours=1),
    LayerSettings(size=256, stride=16, earlier=True, rows=5000, rows_per_image=30, neighbours=5),
    LayerSettings(size=256, stride=16, rows=5000, rows_per_image=30, neighbours=5),
    LayerSettings(size=256, stride=32, weight=0.5, rows=1500, rows_per_image=9, neighbours=5),
)
# Why these layers, rows and weights: docs/scoring.md has the ablations (layers, weight of stride 32) and the quality of
# smaller banks.
DEFAULT_BACKBONE = "tf_efficientnet_lite0"
FOUNDATION_BACKBONE = "vit_small_patch14_reg4_dinov2.lvd142m"
FOUNDATION_DEPTH = 12
"""Blocks of the transformers that the blocks of profile "foundation" are named for."""
PROFILES: dict[str, tuple[LayerSettings, ...]] = {
    "fast": _ONE_PASS,
    "accurate": (
        *_ONE_PASS,
        LayerSettings(size=512, stride=16, earlier=True, rows=5000, rows_per_image=30, neighbours=5),
        LayerSettings(size=512, stride=16, rows=5000, rows_per_image=30, neighbours=5),
    ),
    # Published practice for DINOv2: a bank for each of four blocks, and the mean of five neighbours (ProCon, 2026, with
    # ViT-B/14). Not measured here, where its weights cannot be had.
    "foundation": tuple(
        LayerSettings(size=448, block=block, rows=5000, rows_per_image=30, neighbours=5) for block in (4, 5, 7, 10)
    ),
}
# The share of a map that makes the score: a judgement for the first two, published practice for DINOv2 (as above).
TOP_SHARES = {"fast": 0.003, "accurate": 0.003, "foundation": 0.005}


class ScorerSettings(BaseModel):
    """Holds how a model is fitted and what it runs on."""

    model_config = ConfigDict(extra="forbid")

    backbone: str = Field(
        default=DEFAULT_BACKBONE,
        min_length=1,
        description="Name of the backbone, which is a timm model or a hub name (hf-hub:...).",
    )
    weights: Path | None = Field(
        default=None,
        description="Local weights file (.safetensors, .pth); without one, packaged weights, else those of timm.",
    )
    profile: Literal["fast", "accurate", "foundation"] = Field(
        default="fast",
        description="Set of layers; fast is one pass at 256 px, accurate adds a second pass at 512 px, which costs "
        "time, foundation is the vision transformer DINOv2 at 448 px, which wants a GPU.",
    )
    layers: tuple[LayerSettings, ...] | None = Field(
        default=None, description="Layers to use instead of those of the profile."
    )
    top_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the patches of an image whose mean is its score, the most unusual ones; without it, that "
        "of the profile.",
    )
    shape: Literal["auto", "squeeze", "pad", "tile"] = Field(
        default="auto",
        description="How images that are not square come to the square model input: squeezed to it, with their "
        "proportions and padding beside them, or cut into square tiles; auto decides by the good images, and says so.",
    )
    groups: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Number of look-alike groups; without it, the silhouette decides.",
    )
    minimum_images: int = Field(
        default=20, ge=8, description="Smallest number of good images that a model may be fitted on."
    )
    folds: int = Field(
        default=5,
        ge=2,
        le=20,
        description="Number of parts of the cross-fit that gives the good images their scores; each part costs one "
        "fit.",
    )
    trim: bool = Field(default=False, description="Whether good images that look like defects are left out of the fit.")
    tile_px: int | None = Field(
        default=None,
        ge=64,
        le=4096,
        description="Side of the tiles that large images are cut into, in pixels; without it, only shape decides.",
    )
    tile_overlap: float = Field(
        default=0.25,
        ge=0.1,
        le=0.5,
        description="Share of a tile that its neighbours cover too; a larger one costs more tiles for each image.",
    )
    sample_bits: int | None = Field(
        default=None,
        ge=9,
        le=16,
        description="Bits that the data of 16-bit images uses, as 12 of a 12-bit camera; without it, the good images "
        "tell.",
    )
    look_alikes: int = Field(
        default=25, ge=1, le=1000, description="Number of similar good images whose scores an image is aligned with."
    )
    alarm_rate: Annotated[float, Field(gt=0, lt=0.5)] | Literal["auto"] = Field(
        default="auto",
        description="Share of good parts that may fail to be accepted; auto is 0.005, or the lowest of 0.01, 0.02 and "
        "0.05 that the good images can vouch for.",
    )
    reject_rate: float | None = Field(
        default=None,
        gt=0,
        lt=0.5,
        description="Share of good parts that may be rejected; without it, a fifth of the alarm rate.",
    )
    runtime: Literal["auto", "openvino", "torch"] = Field(
        default="auto", description="Software that runs the backbone; auto takes torch where CUDA is, else OpenVINO."
    )
    precision: Literal["f32", "f16", "bf16"] = Field(
        default="f32",
        description="Number format of the backbone, in which its models run only; f16 is faster on a GPU, bf16 there "
        "and on a CPU that has it.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device that runs the backbone; auto takes CUDA where there is a GPU."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Number of images that are scored at once; without it, one for each CPU.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of all random choices of a fit.")

    @model_validator(mode="after")
    def _foundation_has_its_backbone(self) -> Self:
        # The default backbone has no blocks, so this profile without a backbone means the profile's transformer.
        if self.profile == "foundation" and self.backbone == DEFAULT_BACKBONE:
            self.backbone = FOUNDATION_BACKBONE
        return self

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.layers is not None and not self.layers:
            raise ValueError(
                "layers is empty: name at least one layer, or leave the key out for the layers of the profile"
            )
        places = [(layer.size, layer.stride, layer.block, layer.earlier) for layer in self.layers or ()]
        if len(set(places)) < len(places):
            raise ValueError("layers names the same map (size, stride or block, earlier) twice: remove one of the two")
        if len({layer.block is None for layer in self.layers or ()}) > 1:
            raise ValueError("layers names strides and blocks: a backbone has one or the other")
        for layer in self.layers or ():
            if layer.earlier and (layer.size, layer.stride, None, False) not in places:
                raise ValueError(
                    f"layers names the earlier map of stride {layer.stride} at {layer.size} px alone: add the last map"
                )
        if self.tile_px is not None and self.shape in ("squeeze", "pad"):
            raise ValueError(
                f'tile_px cuts images into tiles, and shape = "{self.shape}" does not: remove one of the two'
            )
        if self.reject_rate is not None and self.alarm_rate != "auto" and self.reject_rate > self.alarm_rate:
            raise ValueError(f"reject_rate {self.reject_rate} is above alarm_rate {self.alarm_rate}: lower it")
        return self

    @property
    def active_layers(self) -> tuple[LayerSettings, ...]:
        """The layers in use, those of `layers` or of the profile, by rising size, stride and depth."""
        return tuple(
            sorted(
                self.layers or PROFILES[self.profile],
                key=lambda layer: (layer.size, layer.stride or 0, layer.block or 0, not layer.earlier),
            )
        )

    @property
    def active_top_share(self) -> float:
        """The share of a map that makes the score, that of `top_share` or of the profile."""
        return self.top_share or TOP_SHARES[self.profile]

    @property
    def profile_is_free(self) -> bool:
        """Whether the layers may follow the backbone: nobody has asked for strides."""
        return self.profile == "foundation" or "profile" not in self.model_fields_set

    def rates(self, vouched_rate: float) -> tuple[float, float]:
        """Return the shares of good parts that may fail to be accepted, and that may be rejected.

        The rest of the first goes to `review`. `vouched_rate` is what the good images vouch for, and "auto" stands for.
        """
        alarm_rate = vouched_rate if self.alarm_rate == "auto" else self.alarm_rate
        return alarm_rate, min(self.reject_rate or alarm_rate / 5, alarm_rate)
