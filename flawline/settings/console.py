"""Settings of the console."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ConsoleSettings(BaseModel):
    """Where the console listens. It knows no log-in: whoever reaches it may name classes."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(8400, ge=0, le=65_535, description="0 turns it off.")
    names: list[str] = Field([], description="Host names it is reached by, besides its addresses and localhost.")
