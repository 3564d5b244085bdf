"""Copies of model artefacts on this machine, and a record of the copy that worked last.

A role loads copies only. So it can start again when the place that a model was published from is away, empty, or holds
another model by now.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from flawline.errors import FlawlineError, one_line
from flawline.redaction import redact
from workers.active_model import ModelRef

log = logging.getLogger(__name__)

COPIES = "model-copies"
"""Folder of the copies in the data directory."""

PRUNE_AGE_S = 3600.0
"""A copy that nobody needs is removed at this age: another actor of the machine may be loading a younger one.

A judgement, not measured: a load takes seconds, a download minutes.
"""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)

_MARKS = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "created")
"""What file systems call the sign that a file has changed; the first one that a file has counts."""


@dataclass(frozen=True)
class StoredModel:
    """A model and the folder of its copy on this machine."""

    model: ModelRef
    folder: Path


class ModelStore:
    """The folder of copies that all actors of a line on this machine share, as one role (`active`, `shadow`) sees it.

    A copy's name is made of the model's address and version. An address without a version stands for what it holds
    now, so its files' sizes and times take the version's place.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self._folder = folder
        self._role = role
        self._record = folder / f"{role}.json"

    def fetch(self, model: ModelRef, *, anew: bool = False) -> Path:
        """Return a local folder with the artefact, which is copied unless this machine has it; `anew` copies it again.

        What is in the folder is verified when it is loaded. A folder of this machine is used as it is when there is no
        room for a copy. Raises FlawlineError when the artefact cannot be fetched.
        """
        try:
            filesystem, root = fsspec.core.url_to_fs(model.uri)
            target = self._folder / _copy_name(model, filesystem, root)
            if anew or not target.is_dir():
                self._copy(filesystem, root, target, anew)
        except Exception as error:  # a library of a remote store raises what it likes
            if isinstance(error, OSError) and error.errno in NO_ROOM and Path(root).is_dir():
                log.warning("model %s is used without a copy: %s: %s", model, self._folder, one_line(error))
                return Path(root)
            raise FlawlineError(f"model {redact(model.uri)} cannot be fetched: {_reason(error)}") from error
        return target

    def last_good(self) -> StoredModel | None:
        """Return the model that worked last on this machine, None when none did or its copy has gone."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            stored = StoredModel(ModelRef(record["uri"], record["version"]), self._folder / record["folder"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is no record of a model: %s", self._record, one_line(error))
            return None
        return stored if stored.folder.is_dir() else None

    def keep(self, model: ModelRef, folder: Path) -> None:
        """Note that a model works, and remove copies that no role needs. A full disk costs the note only."""
        last = self.last_good()
        if last and last.model == model and last.folder == folder:
            return
        record = {"uri": model.uri, "version": model.version, "folder": folder.name}
        part = self._record.with_name(f"{self._record.name}.{uuid.uuid4().hex}.part")
        try:
            part.write_text(json.dumps(record), encoding="utf-8")
            part.replace(self._record)
            self._prune({folder.name} | ({last.folder.name} if last else set()))
        except OSError as error:
            log.warning("model %s works, which cannot be noted in %s: %s", model, self._record, one_line(error))
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _copy(self, filesystem: Any, root: str, target: Path, anew: bool) -> None:
        """Copy a folder to `target`, whole or not at all; `anew` replaces what another actor may have put there."""
        part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
        old = part.with_suffix(".old")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            filesystem.get(root.rstrip("/") + "/", f"{part}/", recursive=True)
            if anew and target.is_dir():
                target.rename(old)
            part.rename(target)
        except OSError:
            if part.is_dir() and target.is_dir():  # another actor was faster
                return
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    def _prune(self, needed: set[str]) -> None:
        """Remove old copies but those in `needed` and those that worked last in a role."""
        for record in self._folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                needed.add(json.loads(record.read_text(encoding="utf-8"))["folder"])
        oldest_s = time.time() - PRUNE_AGE_S
        for copy in self._folder.iterdir():
            if copy.is_dir() and copy.name not in needed and copy.stat().st_mtime < oldest_s:
                shutil.rmtree(copy, ignore_errors=True)
                log.info("copy %s of an earlier model is removed", copy)


def _copy_name(model: ModelRef, filesystem: Any, root: str) -> str:
    """Return the name of a model's copy. Without a version, the files at the address are listed."""
    version = model.version
    if version is None:
        files = filesystem.find(root, detail=True)
        if not files:
            raise FileNotFoundError(f"there is no file in {root}")
        version = repr(sorted((name, info.get("size"), _mark(info)) for name, info in files.items()))
    return hashlib.sha256(f"{model.uri}\n{version}".encode()).hexdigest()[:16]


def _mark(info: dict[str, Any]) -> str:
    return next((str(info[name]) for name in _MARKS if info.get(name) is not None), "")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there: publish another one, or put it back"
    return redact(one_line(error, with_type=True))
