"""A frame as bytes of a file: those that its camera gave, or a PNG of its pixels when it gave no file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flawline import imaging, messages
from flawline.errors import FlawlineError
from flawline.messages import Codec, Frame
from flawline.object_store import MissingObjectError, ObjectStore

SUFFIXES = {Codec.JPEG: ".jpg", Codec.PNG: ".png", Codec.RAW: ".png"}


@dataclass(frozen=True)
class Exported:
    """Frames that are in a folder now, and frames that cannot be had any more."""

    written: tuple[str, ...]
    gone: tuple[str, ...]


class DamagedFrame(FlawlineError):
    """The bytes of a frame are not those that its camera gave."""


def file_of(frame: Frame, objects: ObjectStore | None) -> bytes:
    """Return the bytes of a frame as a file, with the suffix SUFFIXES[frame.codec].

    Raises DamagedFrame, MissingObjectError (also when frames.objects_url is not set) and StoreAway.
    """
    data = bytes_of(frame, objects)
    if messages.checksum(data) != frame.checksum:
        raise DamagedFrame(f"{frame.frame_id}: its checksum does not fit its bytes")
    if frame.codec is not Codec.RAW:
        return data
    shape = frame.height, frame.width, frame.channels
    try:
        return imaging.encode(imaging.decode(data, frame.codec, shape=shape), Codec.PNG)
    except imaging.ImageError as error:
        raise DamagedFrame(f"{frame.frame_id}: {error}") from error


def stem_of(frame_id: str) -> str:
    """Return the name of a frame's file without its suffix."""
    return frame_id.replace(":", "-")


def write_whole(target: Path, data: bytes) -> None:
    """Write a file that has its name only when it is whole. Raises OSError."""
    part = target.with_suffix(".part")
    part.write_bytes(data)
    part.rename(target)


def bytes_of(frame: Frame, objects: ObjectStore | None) -> bytes:
    """Return the bytes that a camera gave.

    Raises MissingObjectError (also when frames.objects_url is not set) and StoreAway.
    """
    if frame.object_key is None:
        return frame.data
    if objects is None:
        raise MissingObjectError(f"{frame.frame_id} is object {frame.object_key} and frames.objects_url is not set")
    return objects.get(frame.object_key, frame.size_bytes)
