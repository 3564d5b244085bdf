"""Settings of discovery."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DiscoverySettings(BaseModel):
    """When a round runs, and what makes a class."""

    model_config = ConfigDict(extra="forbid")

    round_regions: int = Field(50, ge=1, description="A round starts after this many new regions,")
    round_interval_s: float = Field(300.0, gt=0, description="or after this time when there is anything new.")
    min_members: int = Field(10, ge=2, description="Members a class needs before it is confirmed.")
    confirm_rounds: int = Field(
        2, ge=1, description="Rounds in a row that a class must be seen before it is confirmed."
    )
    seed: int = 0
