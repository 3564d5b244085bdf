"""Secrets in files of their own: `sasl_password_file = "/run/secrets/kafka"` stands for the secret in that file."""

from __future__ import annotations

import logging
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flawline.errors import UsageError

log = logging.getLogger(__name__)

SUFFIX = "_file"

LIMIT_BYTES = 64 << 10
"""No password is so long; a device such as /dev/zero never ends."""

DOCKER_SECRETS = Path("/run/secrets")
"""Docker mounts secrets here with mode 0444, in a file system that no other container sees."""


def with_secrets(values: dict[str, Any], secret_keys: Collection[str], place: str = "") -> dict[str, Any]:
    """Return raw settings in which each key `x_file`, with x one of `secret_keys`, is the key x with the file's text.

    `place` is the section of `values`, for errors. Raises UsageError for a file that cannot be used.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{place}.{name}" if place else name
        secret = name.removesuffix(SUFFIX)
        if isinstance(value, dict):
            result[name] = with_secrets(value, secret_keys, key)
        elif isinstance(value, list):
            result[name] = [with_secrets(item, secret_keys, key) if isinstance(item, dict) else item for item in value]
        elif secret == name or secret not in secret_keys:
            result[name] = value
        elif secret in values:
            raise UsageError(f"{key} and {key.removesuffix(SUFFIX)} are both set: keep one of them")
        else:
            result[secret] = _read(key, Path(str(value)))
    return result


def _read(key: str, file: Path) -> str:
    """Return the text of a secret's file without the line's end. Raises UsageError in one line."""
    try:
        with file.open("rb") as stream:
            text = stream.read(LIMIT_BYTES + 1).decode().rstrip("\r\n")
            mode = stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        raise UsageError(f"{key} {file}: no such file: correct the path, or mount the secret there") from None
    except UnicodeDecodeError:
        raise UsageError(f"{key} {file}: is not text: write the secret into it in UTF-8") from None
    except OSError as error:
        raise UsageError(f"{key} {file}: cannot be read: {error.strerror}: correct its path or permissions") from None
    if not text or len(text) > LIMIT_BYTES or "\n" in text:
        raise UsageError(f"{key} {file}: must hold the secret alone, on one line: write it again")
    if mode & 0o004 and DOCKER_SECRETS not in file.parents:
        log.warning("%s %s can be read by every user of this machine: chmod o-r it", key, file)
    return text
