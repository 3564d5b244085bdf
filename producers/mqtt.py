"""MQTT clients made from settings: which library, where the broker is, who we are to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flawline.errors import UsageError, one_line
from flawline.redaction import redact

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1, 30  # of paho, in whole seconds; judgements, not measured


def client_of(
    key: str,
    address: str,
    *,
    client_id: str = "",
    username: str | None = None,
    password: str | None = None,
    cafile: Path | None = None,
    certfile: Path | None = None,
    keyfile: Path | None = None,
) -> tuple[Any, str, int]:
    """Return a client that is not connected yet, and host and port of its broker, of mqtt:// or mqtts:// `address`.

    `key` is the setting of the address. A user of the address counts where `username` is None. Raises UsageError.
    """
    try:
        from paho.mqtt import client as mqtt
    except ImportError as error:
        raise UsageError(f"{key} needs a library that is not installed: pip install 'flawline[mqtt]'") from error

    form = "write mqtt://USER:PASSWORD@HOST:PORT"
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port or (8883 if url.scheme == "mqtts" else 1883)
    except ValueError as error:
        raise UsageError(f"{key}: {redact(str(error))}: {form}") from None
    if not host:
        raise UsageError(f"{key} names no host: {form}")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id)
    if username is not None:
        client.username_pw_set(username, password)
    elif url.username:
        client.username_pw_set(unquote(url.username), unquote(url.password) if url.password else None)
    if url.scheme == "mqtts":
        try:
            client.tls_set(ca_certs=_path(cafile), certfile=_path(certfile), keyfile=_path(keyfile))
        except (OSError, ValueError) as error:
            raise UsageError(f"{key}: its certificates cannot be used ({one_line(error)}): correct them") from error
    elif cafile or certfile or keyfile:
        raise UsageError(f"{key} is mqtt://, which takes no certificates: write mqtts://, or leave them out")
    client.reconnect_delay_set(FIRST_PAUSE_S, LONGEST_PAUSE_S)
    return client, host, port


def _path(file: Path | None) -> str | None:
    return None if file is None else str(file)
