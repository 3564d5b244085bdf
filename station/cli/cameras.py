"""`flawline cameras`: the configured cameras, tried one by one before the line uses them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawline.errors import FlawlineError, UsageError
from station.cli.options import Config, Json, JsonFile, debuggable, settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flawline.settings.producers import CameraBase
    from flawline.settings.tree import Settings
    from station.camera_trial import Trial

app = typer.Typer(help="The configured cameras: try them.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `test` a command of its own: typer makes a group's only command the group itself."""


def camera_names(incomplete: str) -> list[str]:
    """Return the configured cameras whose names begin so, for the shell's completion; none without a usable file."""
    from flawline.settings.tree import load_settings

    try:
        return [camera.name for camera in load_settings().cameras if camera.name.startswith(incomplete)]
    except FlawlineError:
        return []


@app.command("test")
@debuggable
def test_cameras(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Only these cameras; default: all.", autocompletion=camera_names),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=100, help="Frames to read from each camera.")] = 5,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the last frame of each camera there, as NAME.png.")
    ] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Open each camera, read a few frames, and say what they are like. Exit 1 when a camera gives none.

    Nothing is sent anywhere. A device that only one program may open must not be in use by the line.
    """
    from station import terminal
    from station.camera_trial import try_cameras

    settings = settings_of(config)
    chosen = _chosen(settings, names or [])
    if pictures is not None:
        _make(pictures)
    trials = try_cameras(chosen, frames)
    files = {trial.camera: _write(pictures, trial) for trial in trials} if pictures is not None else {}
    report = [
        {
            "camera": trial.camera,
            "kind": trial.kind,
            "works": trial.error is None,
            "error": trial.error,
            "picture": files.get(trial.camera),
            **(asdict(trial.look) if trial.look else {}),
        }
        for trial in trials
    ]
    if not terminal.emit_json({"cameras": report}, json, json_file):
        _show(trials, files)
    if any(trial.error for trial in trials):
        raise typer.Exit(1)


def _chosen(settings: Settings, names: list[str]) -> list[CameraBase]:
    """Return the cameras to try. Raises UsageError for an unknown name, and when none is configured."""
    known = {camera.name: camera for camera in settings.cameras}
    if not known:
        raise UsageError("no cameras are configured: add a [[cameras]] section to line.toml, or run `flawline init`")
    for name in names:
        if name not in known:
            raise UsageError(f"camera {name}: is not in the configuration: choose from {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] if names else list(known.values())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--pictures {folder}: cannot be made: {error.strerror}: name another folder") from error


def _write(folder: Path, trial: Trial) -> str | None:
    """Write the picture of a camera and return its file, None without one. Raises FlawlineError."""
    from flawline import imaging
    from flawline.messages import Codec

    if trial.picture is None:
        return None
    file = folder / f"{trial.camera}.png"
    try:
        file.write_bytes(imaging.encode(trial.picture, Codec.PNG))
    except OSError as error:
        raise FlawlineError(f"--pictures {file}: cannot be written: {error.strerror}") from error
    return str(file)


def _show(trials: Sequence[Trial], files: dict[str, str | None]) -> None:
    from rich.markup import escape

    from station import terminal

    console = terminal.out()
    for trial in trials:
        look = trial.look
        style, word = ("red", "fail") if look is None else ("yellow", "warn") if look.remarks else ("green", "ok")
        text = str(trial.error) if look is None else _line(trial)
        if file := files.get(trial.camera):
            text += f"; {file}"
        console.print(f"[{style}]{word:<4}[/] {trial.camera:<16} {escape(text)}", highlight=False)


def _line(trial: Trial) -> str:
    """Return a camera's look in one line."""
    look = trial.look
    assert look is not None
    rate = "as fast as it is read" if look.rate_hz is None else f"{look.rate_hz:.1f} frames/s"
    if look.rate_hz is None and trial.kind in ("usb", "rtsp"):
        rate = "one frame"
    facts = (
        f"{trial.kind} {look.width}x{look.height} px, {look.bits} bits, {look.format}; {rate}, the first after "
        f"{look.first_frame_s:.1f} s; brightness {look.brightness:.0f}, contrast {look.contrast:.0f}, "
        f"sharpness {look.sharpness:.0f}"
    )
    return "; ".join([facts, *look.remarks])
