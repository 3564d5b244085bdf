"""Passwords and tokens of the console's users: how they are made, kept as hashes, and checked."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from functools import cache

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from flawline.errors import UsageError
from flawline.redaction import TOKEN_PREFIX

LEAST_CHARACTERS = 12
"""NIST SP 800-63B-4 asks for 15 where a password is all that is asked for, and 8 beside another factor.

A judgement between the two: an operator types it with gloves on.
"""
MOST_CHARACTERS = 256

ITERATIONS, MEMORY_KIB, LANES, SALT_BYTES, HASH_BYTES = 3, 64 << 10, 4, 16, 32
"""The second recommendation of RFC 9106 (Argon2id, 64 MiB); 0.15 s on the machine that this was written on."""

PARALLEL_HASHES = 2
"""More at the same time would take 64 MiB each. A judgement: nobody waits long for a log-in then."""

TOKEN_BYTES = 32

_hashing = threading.BoundedSemaphore(PARALLEL_HASHES)


def check_password(password: str) -> None:
    """Raise UsageError for a password that is too short or too long, or that the log-in's form would change."""
    if password != password.strip() or not password.isprintable():
        raise UsageError("the password begins or ends with a blank, or is not printable: choose another")
    if password.startswith(TOKEN_PREFIX):
        raise UsageError(f"the password begins with {TOKEN_PREFIX}, as tokens do: choose another")
    if not LEAST_CHARACTERS <= len(password) <= MOST_CHARACTERS:
        raise UsageError(f"the password has {len(password)} characters: give {LEAST_CHARACTERS} to {MOST_CHARACTERS}")


def hash_password(password: str) -> str:
    """Return the Argon2id hash of a password with its parameters (PHC string)."""
    with _hashing:
        return _derivation().derive_phc_encoded(password.encode("utf-8", "replace"))


def is_password(password: str, hashed: str | None) -> bool:
    """Return whether a password has this hash. Without a hash it takes as long, so that nobody learns who exists."""
    with _hashing:
        try:
            Argon2id.verify_phc_encoded(password.encode("utf-8", "replace"), hashed or _hash_of_nobody())
        except InvalidKey:
            return False
    return hashed is not None


@cache
def _hash_of_nobody() -> str:
    return _derivation().derive_phc_encoded(os.urandom(HASH_BYTES))


def _derivation() -> Argon2id:
    return Argon2id(
        salt=os.urandom(SALT_BYTES), length=HASH_BYTES, iterations=ITERATIONS, lanes=LANES, memory_cost=MEMORY_KIB
    )


def new_token() -> str:
    """Return a new random token; `flawline.redaction` knows it by its prefix."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def digest(token: str) -> str:
    """Return the SHA-256 of a token, which is what is kept: 32 random bytes need no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def form_token(session_token: str) -> str:
    """Return the secret of the forms of a session: who knows it has read a page of that session."""
    return hmac.new(session_token.encode(), b"forms", hashlib.sha256).hexdigest()
