"""The claim check store: large frames as content-addressed objects in a folder or a bucket (fsspec).

A store is made once, on purpose, and then holds a marker, the object `.flawline-store`. The marker tells a store that
is there from a place where none is: a volume that is not mounted, an emptied folder, a deleted bucket. Only in a store
that is there can an object be missing; everything else means that the store is away, and costs time instead of frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from flawline.errors import FlawlineError, UsageError, one_line
from flawline.redaction import redact
from flawline.settings.tree import Settings

MARKER = ".flawline-store"
CLOCK = ".flawline-clock"

FRESH_S = 600.0
"""An object older than this is written again when the same content is put, so that it counts as new for the collection
of unused objects. Far below the smallest `frames.objects_min_age_s`. A judgement, not measured."""

BUCKET_TRUST_S = 5.0
"""How long the marker of a bucket is trusted. A folder's is read before and after each write (0.07 ms each, measured on
an SSD): a volume can go away at any time, and a write into the empty folder below it would be lost. A bucket that is
gone says so itself. The 5 s are a judgement, not measured."""

BUCKET_ANSWER_S = 10.0
"""How long a bucket may be silent in the middle of a request, which is then repeated once. Left to themselves the
libraries try a server that hangs 25 times, for 15 s each: 405 s (measured) until anybody learns that the store is away.
The 10 s are a judgement, not measured."""

MARKER_WRITE_S = 2.0
"""How long the one who makes a store has for the few bytes of its marker. A judgement, not measured."""

NAMES_OF_AN_EMPTY_STORE = {MARKER, CLOCK, "lost+found"}
"""Names that a folder without objects may hold; a new ext4 volume has `lost+found`."""

HEX = frozenset("0123456789abcdef")


class MissingObjectError(FlawlineError):
    """An object that a frame refers to is not in the store, though the store is there."""


class StoreAway(OSError):
    """The store is not there, does not answer, refuses or is full: trying again later may help."""


@dataclass(frozen=True)
class Marker:
    """Says which store this is: an id that was drawn when it was made, and the line that it belongs to."""

    id: str
    line: str


@dataclass(frozen=True)
class StoredObject:
    """An object as the store lists it; `written_at_s` is the time of its last writing by the clock of the store."""

    key: str
    size_bytes: int
    written_at_s: float


def line_name(settings: Settings) -> str:
    """Return the name by which the marker of a store knows the line."""
    return f"{settings.kafka.topic_prefix}{settings.line}"


def object_store(settings: Settings) -> ObjectStore | None:
    """Return the line's object store, None when `frames.objects_url` is not set. Raises UsageError."""
    url = settings.frames.objects_url
    return ObjectStore(url, line_name(settings)) if url else None


class ObjectStore:
    """Bytes by the SHA-256 of their content. Writing twice is harmless, so retries need no care.

    A process knows its store by the id that it has seen first; a store with another id in the same place is away.
    Errors name `setting`, the key that holds the URL.
    """

    def __init__(self, url: str, line: str, setting: str = "frames.objects_url") -> None:
        try:
            # A listing must show what other machines write, and a new process may have another environment.
            filesystem, root = fsspec.core.url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True, **_options(url)
            )
        except (ImportError, ValueError) as error:
            raise UsageError(f"{setting} {redact(url)!r} cannot be used: {redact(one_line(error))}") from error
        self._filesystem: Any = filesystem
        if hasattr(filesystem, "retries"):
            filesystem.retries = 1  # of s3fs; it would repeat what its client has repeated, five times more
        self.root = root.rstrip("/")
        self.line = line
        self._setting = setting
        is_made = setting == "frames.objects_url"
        self._remedy = "make one with `flawline objects create`" if is_made else f"give {setting} a new place"
        # A bucket has no folders, and an upload appears in it whole.
        self._is_bucket = isinstance(filesystem, AsyncFileSystem)
        self._id: str | None = None
        self._seen_at = -BUCKET_TRUST_S

    def _path(self, key: str) -> str:
        return f"{self.root}/{key[:2]}/{key}"

    @contextmanager
    def _away(self) -> Iterator[None]:
        # The libraries of buckets raise errors of their own that are no OSError (botocore's for an endpoint that
        # cannot be reached), so every error that does not concern one object means that the store is away.
        try:
            yield
        except (MissingObjectError, StoreAway):
            raise
        except Exception as error:
            text = f"object store {self.root} is away: {redact(one_line(error, with_type=True))}"
            raise StoreAway(f"{text}{_remedy(error, self._setting)}") from error

    # The store itself

    def marker(self) -> Marker | None:
        """Return the marker, None where there is none. Raises StoreAway."""
        with self._away():
            try:
                content = self._filesystem.cat_file(f"{self.root}/{MARKER}")
            except FileNotFoundError:
                return None
            try:
                return Marker(**json.loads(content))
            except (TypeError, ValueError) as error:
                raise StoreAway(
                    f"object store {self.root} is away: its marker {MARKER} is damaged: remove that file and run "
                    "`flawline objects create`"
                ) from error

    def is_empty(self) -> bool:
        """Return whether the place of the store is absent or holds nothing. Raises StoreAway."""
        with self._away():
            try:
                entries = self._filesystem.ls(self.root, detail=False)
            except FileNotFoundError:
                self._require_bucket()
                return True
            return all(entry.rstrip("/").rpartition("/")[2] in NAMES_OF_AN_EMPTY_STORE for entry in entries)

    def _require_bucket(self) -> None:
        """Raise FileNotFoundError when the bucket itself does not exist; a folder in it exists with its objects."""
        if self._is_bucket:
            self._filesystem.ls(self.root.partition("/")[0], detail=False)

    def create(self) -> Marker:
        """Make the store, or take the one that is there, and return its marker. Raises StoreAway."""
        with self._away(), suppress(FileExistsError):
            self._write_marker(Marker(uuid.uuid4().hex, self.line))
        marker = self._settled_marker()  # another machine may have been first
        self.know(marker.id)
        return marker

    def _settled_marker(self) -> Marker:
        """Return the marker; another machine may have made its file and not have filled it yet."""
        deadline = time.monotonic() + MARKER_WRITE_S
        while True:
            try:
                if (marker := self.marker()) is not None:
                    return marker
                raise self._unusable(f"its marker {MARKER} cannot be read back")
            except StoreAway:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _write_marker(self, marker: Marker) -> None:
        content = json.dumps(asdict(marker)).encode()
        for is_last in (False, True):
            try:
                with self._filesystem.open(f"{self.root}/{MARKER}", "xb") as file:
                    file.write(content)
                return
            except FileNotFoundError:
                if is_last or self._is_bucket:  # a bucket is made by the one who pays for it
                    raise
                self._filesystem.makedirs(self.root, exist_ok=True)

    def know(self, store_id: str) -> None:
        """Accept from now on no store but the one with this id."""
        self._id = store_id
        self._seen_at = -BUCKET_TRUST_S

    def require(self, *, look: bool = True) -> None:
        """Return when the store exists and belongs to this line; without `look`, a recent check of a bucket is enough.

        Raises StoreAway.
        """
        if not look and self._is_bucket and time.monotonic() - self._seen_at < BUCKET_TRUST_S:
            return
        marker = self.marker()
        if marker is None:
            with self._away():
                self._require_bucket()
            raise self._unusable(f"there is no marker {MARKER}")
        if self._id not in (None, marker.id):
            raise StoreAway(
                f"object store {self.root} is away: another store ({marker.id[:8]}) lies in its place: mount the one "
                f"of before, or if it is lost, {self._remedy} and restart"
            )
        if marker.line != self.line:
            raise StoreAway(
                f"object store {self.root} belongs to line {marker.line!r}, this is {self.line!r}: give each line a "
                f"store of its own in {self._setting}"
            )
        self._id, self._seen_at = marker.id, time.monotonic()

    def _unusable(self, reason: str) -> StoreAway:
        return StoreAway(
            f"object store {self.root} is away: {reason}: mount it, or if it is new or lost, {self._remedy}"
        )

    # Objects

    def put(self, data: bytes) -> str:
        """Store `data` and return its key. Raises StoreAway."""
        key = hashlib.sha256(data).hexdigest()
        path = self._path(key)
        with self._away():
            self.require(look=False)
            if not self._is_fresh(path, len(data)):
                self._write(path, data)
            self.require(look=False)  # else the volume went away meanwhile, and the object lies in the folder below it
        return key

    def _is_fresh(self, path: str, size_bytes: int) -> bool:
        try:
            entry = self._filesystem.info(path)
        except FileNotFoundError:
            return False
        return entry["size"] == size_bytes and time.time() - self._written_at_s(entry) < FRESH_S

    def _written_at_s(self, entry: dict[str, Any]) -> float:
        at = entry.get("mtime") or entry.get("LastModified") or self._filesystem.modified(entry["name"])
        return float(at if isinstance(at, int | float) else at.timestamp())

    def _write(self, path: str, data: bytes) -> None:
        if self._is_bucket:
            self._filesystem.pipe_file(path, data)
            return
        # A reader must never see half an object, so it gets its name when it is whole.
        part = f"{path}.{uuid.uuid4().hex}.part"
        try:
            file = self._filesystem.open(part, "wb")
        except FileNotFoundError:
            with suppress(FileExistsError):
                # Never the folders above: where they are missing, the store is.
                self._filesystem.mkdir(path.rpartition("/")[0], create_parents=False)
            file = self._filesystem.open(part, "wb")
        with file:
            file.write(data)
        self._filesystem.mv(part, path)

    def get(self, key: str, size_bytes: int) -> bytes:
        """Return the `size_bytes` bytes of `key`.

        Raises MissingObjectError when the object is absent, of another size or altered, and StoreAway.
        """
        if not is_key(key):
            raise MissingObjectError(f"object key {key[:80]!r} is no SHA-256")
        with self._away():
            try:
                data = self._read(key, size_bytes)
            except FileNotFoundError:
                self.require()
                try:
                    data = self._read(key, size_bytes)  # the store may have come back between the two looks
                except FileNotFoundError as error:
                    raise MissingObjectError(f"object {key} is not in {self.root}") from error
        if hashlib.sha256(data).hexdigest() != key:
            raise MissingObjectError(f"object {key} was altered in {self.root}")
        return data

    def _read(self, key: str, size_bytes: int) -> bytes:
        stored_bytes = self._filesystem.size(self._path(key))
        if stored_bytes != size_bytes:
            raise MissingObjectError(f"object {key} has {stored_bytes} bytes instead of {size_bytes}")
        data: bytes = self._filesystem.cat_file(self._path(key))
        return data

    def check(self) -> None:
        """Write an object, read it and remove it. Raises StoreAway or MissingObjectError when a step fails."""
        data = f"flawline doctor {uuid.uuid4().hex}".encode()
        key = self.put(data)
        try:
            self.get(key, len(data))
        finally:
            self.remove(key)

    # Upkeep

    def now_s(self) -> float:
        """Return the time by the clock of the store, which dates the objects. Raises StoreAway."""
        with self._away():
            self.require()
            path = f"{self.root}/{CLOCK}"
            self._filesystem.pipe_file(path, uuid.uuid4().hex.encode())
            return self._written_at_s(self._filesystem.info(path))

    def objects(self) -> Iterator[StoredObject]:
        """Yield every object, and every part of one whose writer died (its key then ends in `.part`)."""
        with self._away():
            self.require()
            folders = sorted(self._filesystem.ls(self.root, detail=False))
        for folder in folders:  # one by one, to hold the entries of one of them in memory
            name = folder.rstrip("/").rpartition("/")[2]
            if len(name) == 2 and set(name) <= HEX:
                yield from self._objects_in(folder)

    def _objects_in(self, folder: str) -> list[StoredObject]:
        with self._away():
            try:
                entries = self._filesystem.ls(folder, detail=True)
            except FileNotFoundError:
                return []
            objects = []
            for entry in entries:
                name = entry["name"].rpartition("/")[2]
                if entry["type"] == "file" and (is_key(name) or (is_key(name[:64]) and name.endswith(".part"))):
                    objects.append(StoredObject(name, entry["size"], self._written_at_s(entry)))
            return objects

    def remove(self, key: str, *, written_before_s: float | None = None) -> bool:
        """Remove an object, unless it was written since; return whether it is gone now. Raises StoreAway.

        An object that is put again while it is about to be removed stays: its age is looked at once more, directly
        before the removal.
        """
        path = self._path(key)
        with self._away():
            try:
                if written_before_s is not None:
                    entry = self._filesystem.info(path)
                    if self._written_at_s(entry) >= written_before_s:
                        return False
                self._filesystem.rm_file(path)
            except FileNotFoundError:
                return True
        return True


def is_key(text: str) -> bool:
    """Return whether a text is a key of an object: 64 hexadecimal digits."""
    return len(text) == 64 and set(text) <= HEX


def _options(url: str) -> dict[str, Any]:
    """Return the options of the filesystem: those of S3's client, under what a user has configured for fsspec."""
    protocol = url.partition("://")[0]
    if protocol not in ("s3", "s3a"):
        return {}
    configured = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    patience = {"read_timeout": BUCKET_ANSWER_S, "retries": {"total_max_attempts": 2}}
    return {"config_kwargs": patience | configured}


def _remedy(error: BaseException, setting: str) -> str:
    """Return what a person can do about an error of a store, as the end of a line; "" when the error says it all."""
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return ": set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for every role"
    if isinstance(error, PermissionError):
        return ": check its rights and the credentials of this role"
    if isinstance(error, FileNotFoundError):
        return f": make it, or correct {setting}"
    if (authorities := os.environ.get("AWS_CA_BUNDLE")) and not Path(authorities).exists():
        return f": AWS_CA_BUNDLE names {authorities}, which is not there"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ": name the certificate of its authority in AWS_CA_BUNDLE for every role"
    return ""
