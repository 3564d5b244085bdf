"""Settings of pictures: which whole frames are kept beside the line, for how long, and where."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

GIB = 1 << 30


class PictureSettings(BaseModel):
    """Holds which whole frames are kept for people to judge. The defaults are judgements, not measured."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = Field(
        None,
        description="Place of the pictures as an fsspec URL (file:///..., s3://...), which discovery and console "
        "share; the default is a folder in `data_dir`.",
    )
    limit_bytes: int = Field(
        64 * GIB,
        ge=0,
        description="Largest size of all kept frames, beyond which samples go first, then near misses, then the "
        "oldest; 0 keeps none.",
    )
    rejected_days: float = Field(90.0, gt=0, description="Days for which frames that were not accepted are kept.")
    near_miss_days: float = Field(14.0, gt=0, description="Days for which near misses are kept.")
    near_miss_p_value: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Highest p-value of an accepted frame that is a near miss; about twice the alarm rate is sensible, "
        "and 0 keeps none.",
    )
    sample_days: float = Field(7.0, gt=0, description="Days for which the random sample of accepted frames is kept.")
    sample_one_in: int = Field(
        500, ge=1, description="Number of accepted frames of which one is kept on average, drawn at random."
    )
    sample_every_minute: bool = Field(
        True, description="Whether each camera keeps at least one accepted frame of every minute."
    )

    @field_validator("url")
    @classmethod
    def _pictures_have_a_url(cls, text: str | None) -> str | None:
        if text is not None and "://" not in text:
            raise ValueError("it should be a URL such as file:///srv/flawline/pictures or s3://bucket/pictures")
        return text
