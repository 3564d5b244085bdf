"""A commented line.toml for a new line, from what a person answers: cameras by their sources, and a model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.errors import UsageError

PROBED_RATE_HZ = 2.0
"""A replay or a simulation is shown at this rate, so that a person can watch it. A judgement, not measured."""


@dataclass(frozen=True)
class CameraBlock:
    """One block of cameras: its keys with their values, and a comment on each of some keys."""

    values: dict[str, Any]
    comments: dict[str, str]

    @property
    def encodes(self) -> bool:
        """Whether the line encodes the pixels of this camera, so that a codec changes them."""
        return self.values["kind"] != "folder"


def camera_block(text: str, rate_hz: float | None) -> CameraBlock:
    """Return the block of a camera `NAME=SOURCE`.

    A source is an RTSP address, the number or path of a USB camera, a folder of images, a video file, or `simulated`.
    Raises UsageError for anything else.
    """
    name, equals, source = text.partition("=")
    name, source = name.strip(), source.strip()
    if not equals or not name or not source:
        raise UsageError(f"camera {text!r}: give NAME=SOURCE, such as top=rtsp://10.0.0.7/stream")
    kind, key, value = _kind_of(name, source)
    values: dict[str, Any] = {"name": name, "kind": kind}
    comments = {"name": "its identity for ever: do not change it later"}
    if key is not None:
        values[key] = value
    if kind in ("folder", "video"):
        values["loop"] = True
        comments["loop"] = "begins again at the end; false: ends"
    if kind == "folder":
        comments["path"] = "of a folder with <product>/test/, its test images"
    rate = rate_hz if rate_hz is not None else PROBED_RATE_HZ if kind in ("folder", "video", "simulated") else 0.0
    values["rate_hz"] = rate
    comments["rate_hz"] = "frames per second, at most; 0: as fast as they come"
    return CameraBlock(values, comments)


def _kind_of(name: str, source: str) -> tuple[str, str | None, Any]:
    """Return the kind of camera that a source means, and the key and value that name the source."""
    if re.match(r"rtsps?://", source):
        return "rtsp", "url", source
    if source == "simulated":
        return "simulated", None, None
    if source.isdigit() or source.startswith("/dev/"):
        return "usb", "device", int(source) if source.isdigit() else source
    path = Path(source)
    if path.is_dir():
        return "folder", "path", source
    if path.is_file():
        return "video", "path", source
    raise UsageError(
        f"camera {name}: {source} is no folder and no file that exists, no rtsp:// address, no number or /dev path of "
        "a USB camera, and not `simulated`: correct it"
    )


def line_file(line: str, cameras: list[CameraBlock], model: str | None, *, is_fitted: bool) -> str:
    """Return the text of a line.toml. A model that is not fitted yet stands behind a "#"."""
    if model is None:
        model_line = (
            '# model = "models/line-1"               # what `flawline fit DATA --out models/line-1` has written'
        )
    elif is_fitted:
        model_line = f"{f'model = {_toml(model)}':<40}# what the workers score with"
    else:
        model_line = f"# model = {_toml(model)}   # take the # away after `flawline fit DATA --out {model}`"
    blocks = "\n\n".join(_block(camera) for camera in cameras)
    return f"""\
# The settings of this line, made by `flawline init`. Keys that are not here have their defaults: `flawline doctor`
# prints all of them with their values, and checks them. The environment overrides the file: FLAWLINE_WORKER__ACTORS=4.

{f"line = {_toml(line)}":<40}# name of the line, in logs, metrics and messages
data_dir = "data"                       # everything that is kept on this machine: broker, spool, store, pictures

[worker]
{model_line}
actors = 2                              # processes that score; "auto" follows the load

[scorer]                                # for `flawline fit`; a model keeps what it was fitted with
alarm_rate = "auto"                     # share of good parts that may be alarmed; auto: 0.005, or more for few images

[console]                               # the station in a browser
host = "127.0.0.1"                      # any other address needs users (`flawline users add`) and HTTPS
port = 8400

# [kafka]                               # without it the line runs a broker of its own
# bootstrap_servers = "kafka:9092"

# Cameras, one block each. `flawline cameras test` tries them.

{blocks}
"""


def _block(camera: CameraBlock) -> str:
    lines = ["[[cameras]]"]
    for key, value in camera.values.items():
        assignment = f"{key} = {_toml(value)}"
        comment = camera.comments.get(key)
        lines.append(f"{assignment:<40}# {comment}" if comment else assignment)
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """Return a value as TOML: JSON's strings and numbers are TOML too, but for DEL, which TOML wants escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def spare_name(file: Path) -> Path:
    """Return a name beside a file that does not exist: `line.toml.old`, `line.toml.old2`, ..."""
    names = (file.with_name(f"{file.name}.old{number if number > 1 else ''}") for number in range(1, 10_000))
    return next(name for name in names if not name.exists())
