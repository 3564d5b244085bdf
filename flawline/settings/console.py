"""Settings of the console."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ConsoleSettings(BaseModel):
    """Holds where the console listens. It has no log-in: everyone who can reach it may name classes."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field("127.0.0.1", min_length=1, description="Address that the console listens on.")
    port: int = Field(
        8400, ge=0, le=65_535, description="Port that the console listens on, where 0 turns the console off."
    )
    names: list[str] = Field(
        [], description="Host names under which browsers reach the console, besides its addresses and localhost."
    )
