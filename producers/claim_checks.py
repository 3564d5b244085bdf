"""Large frames by claim check: their bytes go to the object store, and the record names the object.

The first producer makes the store, where none was ever seen. A note on this machine says which store was seen, so that
a volume that is not mounted is never taken for a new store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from flawline import telemetry
from flawline.clock import Monotonic, monotonic
from flawline.errors import UsageError, one_line
from flawline.messages import Frame
from flawline.object_store import FRESH_S, Marker, ObjectStore, StoreAway, object_store
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

NOTE = "object-stores.json"


class Opening(Enum):
    """Names what a producer does with the place of the object store."""

    USE = "use"
    CREATE = "create"
    WAIT = "wait"


def opening(seen: str | None, marker: Marker | None, is_empty: bool) -> Opening:
    """Return what to do with the place of the store.

    `seen` is the id of the store that this machine has seen there, `marker` is what lies there now, and `is_empty`
    tells that nothing lies there. A store is made only where none was seen and nothing lies: an empty folder may be the
    place of a volume that is not mounted, and files without a marker belong to somebody.
    """
    if marker is not None:
        return Opening.USE if seen in (None, marker.id) else Opening.WAIT
    return Opening.CREATE if seen is None and is_empty else Opening.WAIT


class Note:
    """Remembers on disk which store lies at which place. Raises StoreAway when the file cannot be used."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / NOTE

    def seen(self, root: str) -> str | None:
        """Return the id of the store that was seen at `root`, None when none was."""
        try:
            return dict(json.loads(self._file.read_bytes())).get(root)
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError) as error:
            raise StoreAway(f"{self._file} cannot be read ({one_line(error)}): correct it or remove it") from error

    def write(self, root: str, store_id: str) -> None:
        """Remember the store at `root`."""
        try:
            content = dict(json.loads(self._file.read_bytes())) if self._file.exists() else {}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = self._file.with_suffix(".part")
            part.write_text(json.dumps(content | {root: store_id}, indent=1) + "\n", encoding="utf-8")
            part.rename(self._file)
        except (OSError, TypeError, ValueError) as error:
            raise StoreAway(f"{self._file} cannot be written: {one_line(error)}") from error


def create(store: ObjectStore, note: Note) -> Marker:
    """Make the store on purpose, or accept the one that lies there, for this machine. Raises StoreAway."""
    marker = store.create()
    note.write(store.root, marker.id)
    return marker


@dataclass(eq=False)
class _Claim:
    """Holds the bytes of a frame that waits for its acknowledgement, and when its object was written (seconds)."""

    data: bytes
    put_at: float


class ClaimChecks:
    """Puts large frames into the object store, and keeps the objects of unacknowledged frames young. Thread-safe.

    An object that no record names is removed at a certain age; the age of a frame that waits long for its
    acknowledgement must not reach it. A store whose library is not installed is away: small frames need none.

    Raises UsageError when the URL of the store can never work.
    """

    def __init__(self, settings: Settings, clock: Monotonic = monotonic) -> None:
        self._settings = settings
        self._store: ObjectStore | None = None
        with contextlib.suppress(StoreAway):  # the first large frame reports it
            self._made()
        self._note = Note(settings.data_dir)
        self._inline_limit_bytes = settings.frames.inline_limit_bytes
        self._clock = clock
        self._lock = threading.Lock()
        # A lock of its own: the client's thread needs the other one, and must not wait for a store.
        self._opening = threading.Lock()
        self._is_open = False
        self._claims: set[_Claim] = set()

    def check(self, frame: Frame) -> tuple[Frame, Callable[..., None]]:
        """Return the frame as it goes into the record, and what to call when its delivery is decided.

        Raises StoreAway.
        """
        if frame.size_bytes <= self._inline_limit_bytes:
            return frame, _nothing
        claim = _Claim(frame.data, self._clock())
        claimed = replace(frame, data=b"", object_key=self._put(claim.data))
        with self._lock:
            self._claims.add(claim)

        def settled(*_: Any) -> None:
            with self._lock:
                self._claims.discard(claim)

        return claimed, settled

    def refresh(self) -> None:
        """Write the objects of frames that wait long again, so that they are not collected. Raises StoreAway."""
        with self._lock:
            due = [claim for claim in self._claims if self._clock() - claim.put_at > FRESH_S]
        for claim in due:
            self._put(claim.data)
            claim.put_at = self._clock()

    def _put(self, data: bytes) -> str:
        try:
            key = self._opened().put(data)
        except StoreAway:
            telemetry.OBJECT_STORE_AWAY.set(1)
            raise
        telemetry.OBJECT_STORE_AWAY.set(0)
        return key

    def _opened(self) -> ObjectStore:
        with self._opening:
            store = self._made()
            if not self._is_open:
                self._open(store)
                self._is_open = True
            return store

    def _made(self) -> ObjectStore:
        try:
            self._store = self._store or object_store(self._settings)
        except UsageError as error:
            if isinstance(error.__cause__, ImportError):
                raise StoreAway(str(error)) from error
            raise
        if self._store is None:
            raise UsageError("frames.objects_url is not set, so there is no object store: set it")
        return self._store

    def _open(self, store: ObjectStore) -> None:
        seen, marker = self._note.seen(store.root), store.marker()
        is_empty = marker is None and seen is None and store.is_empty()
        if opening(seen, marker, is_empty) is Opening.CREATE:
            marker = store.create()
            log.info("object store %s is made, with the id %s", store.root, marker.id)
        if seen is not None:
            store.know(seen)  # another store, or none, is then away
        store.require()
        if seen is None and marker is not None:
            self._note.write(store.root, marker.id)


def _nothing(*_: Any) -> None:
    pass
