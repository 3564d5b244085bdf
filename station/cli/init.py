"""`flawline init`: a line.toml for a new line, and its model."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawline.errors import FlawlineError, UsageError

if TYPE_CHECKING:
    from flawline.settings.tree import Settings
    from station.line_file import CameraBlock

HOW = (
    "A camera is NAME=SOURCE: the source is an rtsp:// address, the number of a USB camera, a folder of images or a "
    "video file that is replayed, or `simulated`."
)


def init(
    camera: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SOURCE", help="A camera; may be repeated. Without it, the command asks."),
    ] = None,
    good: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Good parts: <product>/train/good/*, or images. A model is fitted on them."
        ),
    ] = None,
    line: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the line; default: line-1.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, metavar="HZ", help="Frames per second of each camera, at most.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder for the model; default: models/LINE.")
    ] = None,
    no_fit: Annotated[bool, typer.Option("--no-fit", help="Only write the file: fit later.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that exists; the old one is kept beside it.")
    ] = False,
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="Settings file to write.")] = Path(
        "line.toml"
    ),
) -> None:
    """Make a line: ask for its cameras and the folder of good parts, fit a model, and write line.toml.

    With --camera nothing is asked, so that a script can use it.
    """
    from station import terminal
    from station.line_file import camera_block, line_file

    asks = not camera
    if not config.absolute().parent.is_dir():
        raise UsageError(f"--config {config}: its folder does not exist: make it first")
    _may_replace(config, force, asks)
    line = line or (_ask("Name of the line", "line-1") if asks else "line-1")
    blocks = [camera_block(text, rate) for text in camera or ()] or _ask_cameras(rate)
    if asks and good is None:
        answer = _ask("Folder of good parts (empty: none yet)", "")
        good = Path(answer) if answer else None
    if good is not None:
        _check_good(good)
        if asks and not no_fit:
            no_fit = not _confirm("Fit the model now? It takes seconds for a hundred images", default=True)
    model = (out or Path("models") / line) if good is not None else None
    fits = model is not None and not no_fit
    text = line_file(line, blocks, None if model is None else str(model), is_fitted=fits)
    draft = _draft(config, text)
    try:
        settings = _loaded(draft, config)
        if fits:
            assert good is not None and model is not None
            _fit(settings, good, model, blocks)
        _put(draft, config)
    finally:
        draft.unlink(missing_ok=True)
    count = len(blocks)
    terminal.out().print(f"{config} is written, with {count} camera{'s' if count > 1 else ''}", highlight=False)
    for step in _next_steps(config, good, model, is_fitted=fits):
        terminal.out().print(f"next: {step}", highlight=False, markup=False)


def _may_replace(file: Path, force: bool, asks: bool) -> None:
    """Raise UsageError for a file that exists, unless a person or `--force` says that it is to be replaced."""
    if not file.exists() or force:
        return
    if not file.is_file():
        raise UsageError(f"--config {file}: is no file: name another")
    if asks and _confirm(f"{file} exists. Replace it? The old one is kept beside it", default=False):
        return
    raise UsageError(f"{file} exists and stays as it is: name another file with --config, or replace it with --force")


def _ask(question: str, default: str) -> str:
    """Return an answer. Raises UsageError when there is nobody to ask."""
    try:
        return str(typer.prompt(question, default=default, show_default=bool(default), err=True)).strip()
    except typer.Abort:
        raise _nobody() from None


def _confirm(question: str, *, default: bool) -> bool:
    try:
        return bool(typer.confirm(question, default=default, err=True))
    except typer.Abort:
        raise _nobody() from None


def _nobody() -> UsageError:
    return UsageError("the questions were not answered: give --camera NAME=SOURCE, and --good FOLDER")


def _ask_cameras(rate_hz: float | None) -> list[CameraBlock]:
    """Return the cameras that a person names; a wrong one is asked again."""
    from station import terminal
    from station.line_file import camera_block

    terminal.err().print(HOW, highlight=False, markup=False)
    blocks: list[CameraBlock] = []
    while True:
        text = _ask(f"Camera {len(blocks) + 1}" + (" (empty: no more)" if blocks else ""), "")
        if not text and blocks:
            return blocks
        try:
            blocks.append(camera_block(text, rate_hz))
        except UsageError as error:
            terminal.fail(str(error))


def _check_good(folder: Path) -> None:
    """Raise UsageError for a folder without good images."""
    from scorer.features.dataset import good_images

    good_images(folder)


def _draft(file: Path, text: str) -> Path:
    """Write the text beside the file, readable for this user alone: an address may hold a password."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=file.absolute().parent, prefix=f".{file.name}.", delete=False, encoding="utf-8"
        ) as part:
            part.write(text)
    except OSError as error:
        raise FlawlineError(f"--config {file}: cannot be written: {error.strerror}") from error
    return Path(part.name)


def _loaded(draft: Path, file: Path) -> Settings:
    """Return the settings of the draft. Raises UsageError for an answer that no setting can be, such as a name."""
    from flawline.logs import configure_logging
    from flawline.settings.tree import load_settings

    try:
        settings = load_settings(draft)
    except UsageError as error:
        raise UsageError(str(error).replace(str(draft), str(file))) from None
    configure_logging(settings)
    return settings


def _fit(settings: Settings, good: Path, model: Path, blocks: list[CameraBlock]) -> None:
    """Fit the model on good parts as the cameras deliver them. One that is there already is used as it is."""
    from flawline.messages import Codec
    from scorer.features.dataset import Delivery
    from station import fit_report, terminal
    from station.cli.fit import fit_model

    if (model / "manifest.json").is_file():
        terminal.out().print(f"model {model} is there already and is used as it is", highlight=False)
        return
    # A codec leaves traces: a model of lossless files takes JPEG frames for defects.
    delivery = Delivery(Codec.JPEG) if any(block.encodes for block in blocks) else None
    model.parent.mkdir(parents=True, exist_ok=True)
    report = fit_model(settings, good, model, delivery)
    fit_report.show(report, f"model {model}")


def _put(draft: Path, file: Path) -> None:
    """Give the draft its name; a file that has it is kept under another."""
    from station import terminal
    from station.line_file import spare_name

    try:
        if file.exists():
            spare = spare_name(file)
            os.link(file, spare)
            terminal.out().print(f"the {file.name} of before is {spare} now", highlight=False)
        draft.replace(file)
    except OSError as error:
        raise FlawlineError(f"--config {file}: cannot be written: {error.strerror}") from error


def _next_steps(config: Path, good: Path | None, model: Path | None, *, is_fitted: bool) -> list[str]:
    option = "" if config == Path("line.toml") else f" --config {config}"
    steps = [f"flawline cameras test{option} tries the cameras"]
    if not is_fitted:
        data, target = good or "DATA", model or "models/line-1"
        steps.append(f"flawline fit {data} --out {target}, then take the # before model in {config} away")
    return [*steps, f"flawline doctor{option} checks the rest; flawline up{option} starts the line"]
