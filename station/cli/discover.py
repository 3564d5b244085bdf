"""`flawline discover`: the classes of the line's defects, or with `--once` those of a folder of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline.errors import UsageError
from station.cli.options import Config, Json, JsonFile, settings_of, until_stopped

if TYPE_CHECKING:
    from flawline.settings.tree import Settings
    from flawline.stopping import Stop


def discover(
    once: Annotated[
        Path | None, typer.Option("--once", metavar="DATA", help="Only this folder of images: no line, no store.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="With --once: the fitted model that finds the defects.")] = None,
    maps: Annotated[
        Path | None, typer.Option(help="With --once: another detector's maps (.npy, .png), named like the images.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="With --once: the number of classes; default: estimated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --once: folder for report, table and sheet.")] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Group defects into classes and keep them in the store; with --once, group those of a folder of images."""
    if once is not None:
        from station import terminal

        report = _discover_folder(settings_of(config), once, model, maps, k, out)
        if not terminal.emit_json(report, json, json_file):
            _show(report)
        return
    if json or any(value is not None for value in (model, maps, k, out, json_file)):
        raise UsageError(
            "--model, --maps, --k, --out, --json and --json-file belong to discover --once DATA: name the folder"
        )
    settings = settings_of(config, "discover")

    def run(stop: Stop) -> None:
        from discovery import service

        service.run(settings, stop)

    until_stopped(run)


def _discover_folder(
    settings: Settings, data: Path, model: Path | None, maps: Path | None, k: int | None, out: Path | None
) -> dict[str, Any]:
    """Find the classes of a folder of images and return the report."""
    from discovery.offline import discover_folder
    from scorer.load import load_detector
    from station import terminal

    worker = settings.worker
    with terminal.progress("images") as advance:
        detector = (
            load_detector(model, runtime=worker.runtime, precision=worker.precision, weights=worker.weights)
            if model is not None
            else None
        )
        return discover_folder.run(
            data, settings.discovery, detector=detector, maps=maps, k=k, out=out, progress=advance
        )


def _show(report: Mapping[str, Any]) -> None:
    from rich.table import Table

    from station import terminal

    console = terminal.out()
    table = Table()
    for column in ("class", "regions", "images", "folders"):
        table.add_column(column, justify="right" if column in ("regions", "images") else "left")
    for row in report["classes"]:
        kinds = sorted(row["kinds"].items(), key=lambda item: -item[1])
        folders = ", ".join(f"{kind} {count}" for kind, count in kinds)
        table.add_row(row["id"], str(row["regions"]), str(row["images"]), folders)
    console.print(table)
    k = report["k"]
    proposals = ", ".join(f"{name} {count}" for name, count in k["proposals"].items())
    how = "given" if k["given"] else f"estimated, stability {k['stability']:.2f} ({proposals})"
    console.print(
        f"{report['images']} images, {report['images_with_regions']} with a region; k = {k['found']}, {how}; "
        f"{report['seconds']:.1f} s",
        highlight=False,
    )
    for name, figures in report["agreement"].items():
        console.print(
            f"{name:16} NMI {figures['nmi']:.3f}  ARI {figures['ari']:.3f}  accuracy {figures['accuracy']:.3f}  "
            f"({figures['images']} images)",
            highlight=False,
            markup=False,
        )
    if report["skipped_images"]:
        console.print(f"{len(report['skipped_images'])} images could not be read and were left out", highlight=False)
    for path in report.get("artefacts", {}).values():
        console.print(path, highlight=False, markup=False)
