"""The claim check store: large frames as content-addressed objects in a directory or a bucket (fsspec)."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from flawline.errors import FlawlineError, UsageError


class MissingObjectError(FlawlineError):
    """An object that a frame refers to is not in the store."""


class StoreAway(OSError):
    """The store does not answer, refuses or is full: trying again later may help."""


class ObjectStore:
    """Bytes by the SHA-256 of their content. Writing twice is harmless, so retries need no care.

    An object must outlive every record that names it: expire objects after the retention of `frames` plus the longest
    replay, never sooner.
    """

    def __init__(self, url: str) -> None:
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"frames.objects_url {url!r} cannot be used: {error}") from error
        self._filesystem: Any = filesystem
        self._root = root.rstrip("/")

    def _path(self, key: str) -> str:
        return f"{self._root}/{key[:2]}/{key}"

    @contextmanager
    def _away(self) -> Iterator[None]:
        # The libraries of buckets raise errors of their own that are no OSError (botocore's for an endpoint that
        # cannot be reached), so every error that does not concern one object means that the store is away.
        try:
            yield
        except MissingObjectError:
            raise
        except Exception as error:
            raise StoreAway(f"object store {self._root} is away: {type(error).__name__}: {error}") from error

    def put(self, data: bytes) -> str:
        """Store `data` and return its key. Raises StoreAway."""
        key = hashlib.sha256(data).hexdigest()
        path = self._path(key)
        with self._away():
            if not self._filesystem.exists(path):
                self._filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
                # A reader must never see half an object, so it gets its name when it is whole.
                part = f"{path}.{uuid.uuid4().hex}.part"
                with self._filesystem.open(part, "wb") as file:
                    file.write(data)
                self._filesystem.mv(part, path)
        return key

    def get(self, key: str, size_bytes: int) -> bytes:
        """Return the `size_bytes` bytes of `key`.

        Raises MissingObjectError when the object is absent, of another size or altered, and StoreAway.
        """
        if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
            raise MissingObjectError(f"object key {key[:80]!r} is no SHA-256")
        with self._away():
            try:
                stored_bytes = self._filesystem.size(self._path(key))
                if stored_bytes != size_bytes:
                    raise MissingObjectError(f"object {key} has {stored_bytes} bytes instead of {size_bytes}")
                data = self._filesystem.cat_file(self._path(key))
            except FileNotFoundError as error:
                raise MissingObjectError(f"object {key} is not in {self._root}") from error
        if hashlib.sha256(data).hexdigest() != key:
            raise MissingObjectError(f"object {key} was altered in {self._root}")
        return data

    def check(self) -> None:
        """Write an object, read it and remove it. Raises StoreAway or MissingObjectError when a step fails."""
        data = b"flawline doctor"
        key = self.put(data)
        try:
            self.get(key, len(data))
        finally:
            with self._away():
                self._filesystem.rm_file(self._path(key))
