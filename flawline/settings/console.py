"""Settings of the console."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class ConsoleSettings(BaseModel):
    """Holds where the console listens and how long a person stays logged in; `flawline users` adds the persons."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address that the console listens on; any but this machine's own needs users, and TLS or proxies.",
    )
    port: int = Field(
        8400, ge=0, le=65_535, description="Port that the console listens on, where 0 turns the console off."
    )
    names: list[str] = Field(
        [], description="Host names under which browsers reach the console, besides its addresses and localhost."
    )
    language: str = Field(
        "en",
        pattern=r"^[A-Za-z]{2,8}([_-][A-Za-z0-9]{1,8})*$",
        description="Language of reports, and of pages for browsers that ask for none that the console has.",
    )
    tls_certfile: Path | None = Field(
        None, description="File of the certificate, with those that signed it, that the console shows to browsers."
    )
    tls_keyfile: Path | None = Field(None, description="File of the private key of `tls_certfile`.")
    proxies: list[str] = Field(
        [],
        description="Addresses or networks of the proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.",
    )
    session_idle_s: float = Field(
        8 * 3600, ge=60, description="Seconds after which a person who does nothing is logged out."
    )
    session_limit_s: float = Field(
        7 * 86_400, ge=60, description="Seconds after which a person is logged out in any case."
    )

    @field_validator("proxies")
    @classmethod
    def _proxies_are_addresses(cls, proxies: list[str]) -> list[str]:
        for proxy in proxies:
            try:
                if ipaddress.ip_network(proxy).prefixlen == 0:
                    raise ValueError("everybody")
            except ValueError:
                raise ValueError(
                    f"{proxy!r} should be an address or a network, such as 10.0.0.7 or 10.0.0.0/24"
                ) from None
        return proxies

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> ConsoleSettings:
        if (self.tls_certfile is None) != (self.tls_keyfile is None):
            raise ValueError("tls_certfile and tls_keyfile belong together: set both or none of them")
        return self
