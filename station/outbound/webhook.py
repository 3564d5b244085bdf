"""A receiver that is called over HTTP: one POST for each event, signed as Standard Webhooks describes it.

https://github.com/standard-webhooks/standard-webhooks (1.0): libraries in many languages check its signatures.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

import requests

from flawline import __version__
from flawline.clock import UtcNs, utc_ns
from flawline.errors import UsageError, one_line
from flawline.settings.outbound import WebhookSettings
from station.outbound.delivery import Outcome, Result, outcome_of
from station.outbound.events import Event

CONTENT_TYPE = "application/json"
CODED_SECRET = "whsec_"
"""A secret that begins so is base64, as these libraries show theirs."""

LONGEST_PAUSE_S = 60.0
"""A judgement, not measured: who is away for a night is not called more than once a minute."""

ANSWER_BYTES = 64 << 10
"""What is read of an answer's body, so that its connection can be used again; of a longer one it is closed."""


def key_of(secret: str) -> bytes:
    """Return the bytes of a secret. Raises UsageError for one that should be base64 and is not."""
    if not secret.startswith(CODED_SECRET):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(CODED_SECRET), validate=True)
    except binascii.Error:
        raise UsageError(
            f"webhooks: a secret begins with {CODED_SECRET} and is not base64 behind it: correct it"
        ) from None


def signature(key: bytes, identity: str, timestamp_s: int, body: bytes) -> str:
    """Return the header `webhook-signature`: `v1,` and the HMAC-SHA256 of `ID.TIMESTAMP.BODY` in base64."""
    signed = b"%s.%d.%s" % (identity.encode(), timestamp_s, body)
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def headers(event: Event, body: bytes, timestamp_s: int, key: bytes | None, token: str | None) -> dict[str, str]:
    """Return the headers of a call at `timestamp_s` (seconds UTC); the id is the same at each attempt."""
    result = {
        "content-type": CONTENT_TYPE,
        "user-agent": f"flawline/{__version__}",
        "webhook-id": event.id,
        "webhook-timestamp": str(timestamp_s),
    }
    if key is not None:
        result["webhook-signature"] = signature(key, event.id, timestamp_s, body)
    if token is not None:
        result["authorization"] = f"Bearer {token}"
    return result


class Webhook:
    """Calls the address of one receiver. For one thread."""

    window = 1
    longest_pause_s = LONGEST_PAUSE_S
    keeps_state = False

    def __init__(self, settings: WebhookSettings, line: str, now_ns: UtcNs = utc_ns) -> None:
        """Raise UsageError for a secret or a file that cannot be used."""
        self._line, self._now_ns = line, now_ns
        self._url, self._timeout_s = settings.url.get_secret_value(), settings.timeout_s
        self._key = key_of(settings.secret.get_secret_value()) if settings.secret else None
        self._token = settings.token.get_secret_value() if settings.token else None
        if settings.cafile is not None and not settings.cafile.is_file():
            raise UsageError(f"webhooks {settings.name}: cafile {settings.cafile}: no such file: correct the path")
        parts = urlsplit(self._url)
        self.address = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        self._verify: str | bool = str(settings.cafile) if settings.cafile is not None else True
        self._session = requests.Session()
        if self._token is not None:
            self._session.auth = lambda call: call  # else a file .netrc would replace the token

    def open(self) -> None:
        """Do nothing: each call connects where there is no connection."""

    def tend(self) -> None:
        """Do nothing: there is nothing to keep between calls."""

    def send(self, events: Sequence[Event], stop: threading.Event) -> Outcome:
        """Call once for the one event, and return what came of it."""
        (event,) = events
        body = event.body(self._line)
        called = headers(event, body, self._now_ns() // 1_000_000_000, self._key, self._token)
        try:
            with self._session.post(
                self._url, body, headers=called, timeout=self._timeout_s, verify=self._verify, allow_redirects=False,
                stream=True,
            ) as answer:  # fmt: skip
                with contextlib.suppress(requests.RequestException):  # what counts is the status
                    next(answer.iter_content(ANSWER_BYTES), b"")
                return outcome_of(answer.status_code, answer.headers.get("retry-after"))
        except requests.exceptions.InvalidURL:
            return Outcome(Result.REFUSED, "has a url that cannot be used")
        except (requests.RequestException, OSError) as error:
            return Outcome(Result.FAILED, _words(error))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def _words(error: Exception) -> str:
    """Return why there was no answer: the innermost cause, which the library wraps in its own words."""
    if isinstance(error, requests.Timeout):
        return "does not answer in time"
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    return f"cannot be reached ({one_line(cause)})"
