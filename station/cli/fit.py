"""`flawline fit`: a model of good parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline.errors import UsageError
from station.cli.options import Config, Json, JsonFile, settings_of

if TYPE_CHECKING:
    from flawline.settings.tree import Settings
    from scorer.features.dataset import Delivery


def fit(
    data: Annotated[Path, typer.Argument(help="Folder with <product>/train/good/*.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model.")],
    codec: Annotated[
        str | None,
        typer.Option(
            help="Pass the images through the codec of the cameras: jpeg, or png and raw, which lose nothing."
        ),
    ] = None,
    quality: Annotated[int, typer.Option(min=30, max=100, help="JPEG quality of the cameras, with --codec jpeg.")] = 90,
    leave_out_odd: Annotated[
        bool,
        typer.Option(
            "--leave-out-odd",
            help="Fit without the images whose shape, depth, colours or look leave the others by far.",
        ),
    ] = False,
    is_defect: Annotated[
        list[Path] | None,
        typer.Option("--is-defect", help="Training image that shows a defect: fit without it. May be repeated."),
    ] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Fit a model on good parts. Product folders are used for reporting only."""
    from station import terminal

    settings = settings_of(config)
    report = fit_model(
        settings, data, out, _delivery(codec, quality), leave_out_odd=leave_out_odd, defects=is_defect or ()
    )
    if not terminal.emit_json(report, json, json_file):
        show(report, out)


def _delivery(codec: str | None, quality: int) -> Delivery | None:
    """Return what the line's cameras do to an image, None for nothing. Raises UsageError for an unknown codec."""
    from flawline.messages import Codec
    from scorer.features.dataset import Delivery

    if codec is None:
        return None
    if codec not in list(Codec):
        raise UsageError(f"--codec {codec}: choose from {', '.join(Codec)}")
    return Delivery(Codec(codec), quality)


def fit_model(
    settings: Settings,
    data: Path,
    out: Path,
    delivery: Delivery | None = None,
    *,
    leave_out_odd: bool = False,
    defects: Sequence[Path] = (),
) -> dict[str, Any]:
    """Fit a model, evaluate it when there are test images, and return the report."""
    from scorer import commands
    from station import terminal

    try:
        return commands.fit(
            data,
            out,
            settings.scorer,
            delivery=delivery,
            progress_bar=terminal.stage_progress,
            leave_out_odd=leave_out_odd,
            defects=defects,
        )
    except KeyboardInterrupt:
        terminal.fail("interrupted, no model was written: the same command continues the fit where it stopped")
        raise


def show(report: dict[str, Any], out: Path) -> None:
    """Print the report of the model in folder `out`, and the next step."""
    from station import fit_report

    fit_report.show(report, f"model {out}")
    if fit_report.finds_nothing(report):
        fit_report.show_next(
            f"flawline fit DATA --out {out} again, with more good images or a higher scorer.alarm_rate"
        )
        return
    publish = f"flawline publish {out} makes it the one that workers use"
    if "pooled" in report:
        fit_report.show_next(publish)
    else:
        fit_report.show_next(f"flawline evaluate {out} DATA on test images with known defects; {publish}")
