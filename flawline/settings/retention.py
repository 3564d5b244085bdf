"""Settings of retention: what goes when, by age, by size, and when a disk is nearly full."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

GIB = 1 << 30
LEAST_TOPIC_BYTES = 256 << 20  # some segments of the largest record, a dead letter


class RetentionSettings(BaseModel):
    """Holds how long everything is kept, and how large it may grow. The defaults are judgements, not measured."""

    model_config = ConfigDict(extra="forbid")

    min_free_bytes: int = Field(
        2 * GIB,
        ge=0,
        description="Free bytes on each disk below which the least valuable goes at once, where 0 turns this off.",
    )
    frames_hours: float = Field(
        6.0, gt=0, description="Hours for which frames stay in their topic, whether they were read or not."
    )
    frames_limit_bytes: int = Field(
        16 * GIB,
        ge=LEAST_TOPIC_BYTES,
        description="Largest size of the topic of frames, which its partitions share in equal parts.",
    )
    verdicts_days: float = Field(
        7.0, gt=0, description="Days for which verdicts stay in their topic, and for which the ledger accounts."
    )
    verdicts_limit_bytes: int = Field(
        16 * GIB,
        ge=LEAST_TOPIC_BYTES,
        description="Largest size of the topic of verdicts, which its partitions share in equal parts.",
    )
    defects_days: float = Field(
        28.0, gt=0, description="Days for which defects stay in their topic, so for which discovery may be away."
    )
    defects_limit_bytes: int = Field(
        16 * GIB,
        ge=LEAST_TOPIC_BYTES,
        description="Largest size of the topic of defects, which its partitions share in equal parts.",
    )
    dead_letters_days: float = Field(
        28.0, gt=0, description="Days for which dead letters can be replayed before they go."
    )
    dead_letters_limit_bytes: int = Field(
        4 * GIB, ge=LEAST_TOPIC_BYTES, description="Largest size of the topic of dead letters."
    )
    objects_limit_bytes: int = Field(
        64 * GIB,
        ge=0,
        description="Size of the object store beyond which objects of frames that have their verdict go, the oldest "
        "first.",
    )
    rejected_pictures_days: float = Field(
        90.0, gt=0, description="Days for which crops, masks and heat maps of rejected frames stay in the store."
    )
    near_miss_pictures_days: float = Field(
        14.0,
        gt=0,
        description="Days for which crops, masks and heat maps of frames for review, and of dismissed classes, stay in "
        "the store.",
    )
    pictures_limit_bytes: int = Field(
        32 * GIB, ge=0, description="Largest size of all crops, masks and heat maps in the store."
    )
    defect_rows_days: float = Field(
        730.0,
        gt=0,
        description="Days for which the store keeps each defect with its embeddings, before it is only counted.",
    )
    parts_days: float = Field(
        90.0,
        gt=0,
        description="Days for which the store keeps each inspection of a part, before it is only counted.",
    )
    minutes_days: float = Field(
        90.0, gt=0, description="Days for which frames are counted by the minute, before they are counted by the hour."
    )
