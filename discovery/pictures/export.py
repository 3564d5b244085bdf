"""Kept frames as a folder of images: those that people call false alarms, for `flawline extend`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from discovery.frame_files import SUFFIXES, Exported, stem_of, write_whole
from discovery.pictures.keeper import picture_store
from flawline.errors import FlawlineError
from flawline.messages import Codec
from flawline.object_store import MissingObjectError
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)


def export_pictures(
    settings: Settings, pictures: Sequence[Any], folder: Path, progress: Callable[[float, float], None] | None = None
) -> Exported:
    """Write pictures, rows of `frame_pictures`, into a folder; files that are there stay as they are.

    Raises FlawlineError when the folder or the picture store cannot be used.
    """
    store = picture_store(settings)
    written, gone = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for done, picture in enumerate(pictures, 1):
            target = folder / f"{stem_of(picture.frame_id)}{SUFFIXES[Codec(picture.codec)]}"
            if target.exists() or _is_written(store.get, picture, target):
                written.append(picture.frame_id)
            else:
                gone.append(picture.frame_id)
            if progress:
                progress(done, len(pictures))
    except OSError as error:
        raise FlawlineError(f"export to {folder}: {error.strerror or error}") from error
    return Exported(tuple(written), tuple(gone))


def _is_written(get: Callable[[str, int], bytes], picture: Any, target: Path) -> bool:
    try:
        write_whole(target, get(picture.object_key, picture.size_bytes))
    except MissingObjectError as error:
        log.warning("%s is left out: %s", picture.frame_id, error)
        return False
    return True
