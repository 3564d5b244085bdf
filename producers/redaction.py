"""Keeps the credentials of camera URLs out of logs and errors."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*(?:@[^/@\s]*)*@")
# Keys under which cameras take a password in the query of a URL.
_SECRET_QUERY = re.compile(r"((?:password|passwd|pwd|pass|token|auth|key|user|usr|username)=)[^&\s'\"]*", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` with the credentials of every URL in it replaced by `***`."""
    return _SECRET_QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", text))
