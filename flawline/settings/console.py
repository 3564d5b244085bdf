"""Settings of the console."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ConsoleSettings(BaseModel):
    """Where the console listens. It has no log-in: everyone who can reach it may name classes."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field("127.0.0.1", min_length=1, description="The address that the console listens on.")
    port: int = Field(
        8400, ge=0, le=65_535, description="The port that the console listens on; 0 turns the console off."
    )
    names: list[str] = Field(
        [], description="Host names under which browsers reach the console, besides its addresses and localhost."
    )
