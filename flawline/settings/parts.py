"""Settings of parts: how their names come to the frames, and when views of a part belong together."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator

from flawline.field_limits import NAME
from flawline.settings.outbound import check_mqtt_url


def _view(name: str) -> str:
    NAME.check(name, "view")
    if not name:
        raise ValueError("a view has a name")
    return name


class PartSettings(BaseModel):
    """Holds where messages name the part in front of the cameras, and what makes the verdict on a part."""

    model_config = ConfigDict(extra="forbid")

    views: list[Annotated[str, AfterValidator(_view)]] = Field(
        [],
        max_length=32,
        description="Views that every part has, by which missing ones are told; without any, the views of the cameras.",
    )
    gap_s: float = Field(
        60.0,
        gt=0,
        description="Seconds between two captures of a part beyond which the later one begins another inspection of "
        "it; a judgement, not measured.",
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address on which producers take messages that name the part in front of the cameras.",
    )
    port: int = Field(
        0, ge=0, le=65_535, description="Port on which producers take these messages by HTTP, where 0 turns it off."
    )
    token: SecretStr | None = Field(
        None, description="Secret that these messages carry as a bearer token; without one `host` is this machine only."
    )
    hold_s: float = Field(
        60.0,
        gt=0,
        description="Seconds after which a part's name is given to no more captures, so that a message that fails to "
        "come names no wrong part; a judgement, not measured.",
    )
    mqtt_url: SecretStr | None = Field(
        None,
        description="MQTT broker that brings these messages, as mqtt://USER:PASSWORD@HOST:PORT or mqtts://; it needs "
        "the extra mqtt.",
    )
    mqtt_topic: str = Field(
        "flawline/parts",
        min_length=1,
        max_length=256,
        description="MQTT topic of these messages, which may hold wildcards.",
    )

    @field_validator("mqtt_url")
    @classmethod
    def _broker_is_an_address(cls, url: SecretStr | None) -> SecretStr | None:
        return check_mqtt_url(url)
