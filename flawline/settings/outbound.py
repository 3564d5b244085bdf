"""Settings of what the line tells other systems by itself: an MQTT broker, and addresses that are called (webhooks)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from flawline.messages import Decision

EventKind = Literal["verdict", "class", "camera"]
"""What is told: the verdict on a frame, a change of a defect class, the state of a camera."""

NOT_ACCEPTED = [Decision.REVIEW, Decision.REJECT, Decision.UNKNOWN_PRODUCT]
LATEST_S = 86_400.0
"""A judgement, not measured: a receiver that is away over night gets everything; topics keep verdicts for longer."""


def check_mqtt_url(url: SecretStr | None) -> SecretStr | None:
    """Return the address of an MQTT broker. Raises ValueError for one that is none."""
    if url is not None and not url.get_secret_value().startswith(("mqtt://", "mqtts://")):
        raise ValueError("it should be mqtt://HOST:PORT or mqtts://HOST:PORT")
    return url


class OutboundSettings(BaseModel):
    """Holds the MQTT broker that is told verdicts, changes of classes and states of cameras."""

    model_config = ConfigDict(extra="forbid")

    mqtt_url: SecretStr | None = Field(
        None,
        description="MQTT broker that is told, as mqtt://HOST:PORT or mqtts://; it needs the extra mqtt, and turns the "
        "role `flawline notify` on.",
    )
    mqtt_username: str | None = Field(None, min_length=1, description="Name of the user on the MQTT broker.")
    mqtt_password: SecretStr | None = Field(
        None, description="Password of this user, best in a file of its own: mqtt_password_file."
    )
    mqtt_cafile: Path | None = Field(
        None, description="File of the certificates that the MQTT broker's certificate is checked with."
    )
    mqtt_certfile: Path | None = Field(
        None, description="File of the certificate that this client shows to the MQTT broker."
    )
    mqtt_keyfile: Path | None = Field(None, description="File of the private key of `mqtt_certfile`.")
    mqtt_prefix: str = Field(
        "flawline",
        pattern=r"^[^$+#\x00-\x1f/][^+#\x00-\x1f]{0,127}$",
        description="What the names of the MQTT topics begin with, which may have several levels.",
    )
    mqtt_events: list[EventKind] = Field(
        ["verdict", "class", "camera"], min_length=1, description="What the MQTT broker is told."
    )
    mqtt_decisions: list[Decision] = Field(
        list(Decision), min_length=1, description="Decisions whose verdicts the MQTT broker is told."
    )
    mqtt_give_up_after_s: float = Field(
        LATEST_S,
        gt=0,
        description="Age in seconds beyond which a verdict is not told any more; a judgement, not measured.",
    )

    @field_validator("mqtt_url")
    @classmethod
    def _broker_is_an_address(cls, url: SecretStr | None) -> SecretStr | None:
        return check_mqtt_url(url)

    @field_validator("mqtt_prefix")
    @classmethod
    def _prefix_ends_with_a_name(cls, prefix: str) -> str:
        if prefix.endswith("/"):
            raise ValueError("it should not end with a slash, which is set behind it")
        return prefix


class WebhookSettings(BaseModel):
    """Holds an address that is called with each event, what it is called for, and for how long it is tried."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,32}$",
        description="Name of the receiver for ever: metrics show it, and the broker keeps how far it has been told.",
    )
    url: SecretStr = Field(description="Address that gets a POST for each event, which may hold a token.")
    secret: SecretStr | None = Field(
        None, description="Secret of the signature by which the receiver knows that a call is ours."
    )
    token: SecretStr | None = Field(None, description="Token that each call carries: Authorization: Bearer.")
    events: list[EventKind] = Field(
        ["verdict", "class", "camera"], min_length=1, description="What the receiver is told."
    )
    decisions: list[Decision] = Field(
        NOT_ACCEPTED,
        min_length=1,
        description="Decisions whose verdicts the receiver is told; by default all but accept.",
    )
    timeout_s: float = Field(
        10.0, gt=0, le=300, description="Seconds in which a call is answered; a judgement, not measured."
    )
    give_up_after_s: float = Field(
        LATEST_S,
        gt=0,
        description="Age in seconds beyond which an event is not told any more; a judgement, not measured.",
    )
    cafile: Path | None = Field(
        None, description="File of the certificates that the receiver's certificate is checked with."
    )

    @field_validator("url")
    @classmethod
    def _receiver_is_an_address(cls, url: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            raise ValueError("it should be http://HOST/PATH or https://HOST/PATH")
        return url


def check_names(webhooks: list[WebhookSettings]) -> None:
    """Raise ValueError for a name that two receivers have, or that the MQTT broker has."""
    names = [webhook.name for webhook in webhooks] + ["mqtt"]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"webhook name {min(twice)!r} is used twice, or is mqtt: give every receiver its own name")
