"""`flawline extend`: more good parts for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from station.cli.options import Config, Json, JsonFile, settings_of


def extend(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    images: Annotated[Path, typer.Argument(help="Good parts: an image, a folder of images, or of products.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the extended model; default: MODEL-extended.")
    ] = None,
    bound: Annotated[
        float, typer.Option(min=0, max=1, help="How much worse the audit may become before the extension is refused.")
    ] = 0.02,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Add confirmed good parts (false alarms, a new product) to a model without fitting it again."""
    from scorer import commands
    from station import terminal

    worker = settings_of(config).worker
    folder = out or model.with_name(f"{model.name}-extended")
    report = commands.extend(
        model,
        images,
        folder,
        bound=bound,
        runtime=worker.runtime,
        precision=worker.precision,
        weights=worker.weights,
        progress_bar=terminal.stage_progress,
    )
    if not terminal.emit_json(report, json, json_file):
        _show(report, folder)


def _show(report: dict[str, Any], folder: Path) -> None:
    from station import terminal

    console = terminal.out()
    added, accepted, audit = report["added"], report["accepted"], report["audit"]
    console.print(
        f"added {added['known_products']} images of known products and {added['new_products']} of new ones "
        f"({added['new_groups']} new groups); of them accepted: {accepted['before']} before, {accepted['after']} after",
        highlight=False,
    )
    for name, text in (("alarm_rate", "good parts alarmed"), ("found_rate", "pasted defects found")):
        before, after = audit["before"][name], audit["after"][name]
        console.print(f"audit: {text}: {before:.2%} before, {after:.2%} after", highlight=False)
    console.print(
        f"model {folder}: version {report['version']}, {report['groups']} groups, extends {report['extended']}; "
        f"use it with flawline publish {folder}",
        highlight=False,
    )
    if report["copies"]:
        console.print(f"{report['copies']} images were in the model already, or given twice", highlight=False)
    if skipped := report["skipped_images"]:
        console.print(f"{len(skipped)} images could not be read and were left out", highlight=False)
