"""Passwords in URLs stay out of logs, errors and listings."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*(?:@[^/@\s]*)*@")
# Cameras take a password under one of these keys in the query of a URL.
_SECRET_QUERY = re.compile(r"((?:password|passwd|pwd|pass|token|auth|key|user|usr|username)=)[^&\s'\"]*", re.IGNORECASE)


def redact(text: str) -> str:
    """Return `text` with the credentials of every URL in it replaced by `***`."""
    return _SECRET_QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", text))
