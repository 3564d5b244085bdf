"""Passwords, tokens and credentials in URLs stay out of every output: logs, errors, reports and pages.

Two things hide a secret. `redact` finds credentials by their place in a URL, whatever the URL comes from. And it knows
the secrets that the settings hold, because a library shows them in any form: decoded, quoted, or without their URL.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO
from urllib.parse import quote, unquote

STARS = "***"

LEAST_CHARACTERS = 6
"""A shorter secret is hidden in its URL and under its key only: in other text it would hide half of the words.

A judgement, not measured.
"""

LEAST_TOKEN_CHARACTERS = 16
"""A user name without a password that is at least so long is a token. A judgement, not measured."""

_CREDENTIALS = re.compile(
    r"(?<=://)[^/@\s]*(?:@[^/@\s]*)*@|(?<![^\s'\"=(,])[^\s/@'\"=(,:]{1,256}:[^\s/@'\"]{0,256}@(?=[\w\[])"
)
_SECRET_WORD = r"pass|pwd|token|auth|secret|key|sig|cred"
_QUERY = re.compile(rf"([?&;/][\w.-]{{0,64}}(?:{_SECRET_WORD}|usr|user)[\w.-]{{0,64}}=)[^&;\s'\"]*", re.IGNORECASE)
_PAIR = re.compile(r"(\b\w*(?:password|passwd|pwd|token|secret)=)[^&;\s'\"]+", re.IGNORECASE)
TOKEN_PREFIX = "flt_"
"""How every token that Flawline gives out begins, so that it is known wherever it is shown."""
_TOKEN = re.compile(rf"\b{TOKEN_PREFIX}[\w-]{{16,}}")
_SECRET_KEY = re.compile(r"(?:^|_)(?:password|token|secret|url)$")

_known: tuple[str, ...] = ()
_pattern: re.Pattern[str] | None = None


def redact(text: str) -> str:
    """Return `text` with every secret in it replaced by `***`: credentials of URLs, our tokens, known secrets."""
    if _pattern:  # first, because a known secret may hold a quote, which ends a URL
        text = _pattern.sub(STARS, text)
    text = _PAIR.sub(rf"\1{STARS}", _QUERY.sub(rf"\1{STARS}", _CREDENTIALS.sub(f"{STARS}@", text)))
    return _TOKEN.sub(STARS, text)


def remember(secrets: Iterable[str]) -> None:
    """Let `redact` hide these secrets too, from now on and in every form in which a library may show them."""
    forms = {form for secret in secrets for form in _forms(secret) if len(form) >= LEAST_CHARACTERS}
    _know({*_known, *forms})


def forget() -> None:
    """Know no secret any more."""
    _know(set())


def _know(secrets: set[str]) -> None:
    global _known, _pattern
    _known = tuple(
        sorted(secrets, key=lambda secret: (-len(secret), secret))
    )  # the longest first: one may hold another
    _pattern = re.compile("|".join(map(_literal, _known))) if _known else None


def _literal(secret: str) -> str:
    """Return the pattern of a secret. One of digits alone must not be found inside of a longer number."""
    return rf"(?<!\d){secret}(?!\d)" if secret.isdecimal() else re.escape(secret)


def _forms(secret: str) -> set[str]:
    """Return a secret as it is, decoded from and coded for a URL, and escaped as Python and JSON write it."""
    plain = {secret, unquote(secret), quote(unquote(secret), safe="")}
    return plain | {repr(form)[1:-1] for form in plain} | {json.dumps(form)[1:-1] for form in plain}


def secrets_in(value: Any, key: str = "") -> Iterator[str]:
    """Yield the secrets in settings, checked ones or raw ones, which may be wrong.

    A secret is the value of a secret type or of a key such as `sasl_password`, without the rest of its URL where it is
    one, and the credentials of any other text. A value that should be a URL and is none counts as a secret.
    """
    if hasattr(value, "get_secret_value"):  # pydantic's SecretStr, which would make this module slow to import
        yield from _secrets_in_text(value.get_secret_value(), is_secret=True)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from secrets_in(item, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item, key)
    elif value is not None and not isinstance(value, bool):
        yield from _secrets_in_text(str(value), is_secret=is_secret_key(key))


def is_secret_key(key: str) -> bool:
    """Return whether the setting of this name, or its last part after a dot, may hold a secret in any value."""
    return bool(_SECRET_KEY.search(key.rpartition(".")[2].lower()))


def _secrets_in_text(text: str, *, is_secret: bool) -> Iterator[str]:
    if is_secret and "://" not in text:
        yield text
    for part in {text, *text.split(",")}:  # several brokers are one text
        credentials = part.partition("://")[2] or part
        user, colon, password = credentials.rpartition("@")[0].partition(":")
        if colon:
            yield password
        elif len(user) >= LEAST_TOKEN_CHARACTERS and "/" not in user:
            yield user
    for name, secret in re.findall(r"[?&;]([\w.-]+)=([^&;#\s]*)", text):
        if re.search(_SECRET_WORD, name, re.IGNORECASE):
            yield secret


class RedactedStream:
    """A text stream that writes no secret. Everything but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text with its secrets hidden, and return its length as the writer knows it."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_output() -> None:
    """Let stdout and stderr of this process show no secret: results, log lines, and tracebacks of any thread."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream))
