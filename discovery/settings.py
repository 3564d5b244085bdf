"""Settings of discovery."""

from __future__ import annotations

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
    seed: int = 0
