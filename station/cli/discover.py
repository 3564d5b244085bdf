"""What `flawline discover --once` does and shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from flawline.settings.tree import Settings
from station import terminal


def once(
    settings: Settings,
    data: Path,
    model: Path | None,
    maps: Path | None,
    k: int | None,
    out: Path | None,
    target: str | None,
) -> None:
    """Find the classes of a folder of images, and show them."""
    from discovery.offline import offline
    from scorer.load import load_detector

    worker = settings.worker
    with terminal.progress("images") as advance:
        loaded = (
            load_detector(model, runtime=worker.runtime, precision=worker.precision, weights=worker.weights)
            if model is not None
            else None
        )
        report = offline.run(data, settings.discovery, detector=loaded, maps=maps, k=k, out=out, progress=advance)
    if target:
        terminal.emit(report, target)
        return
    _show(report)


def _show(report: Mapping[str, Any]) -> None:
    console = terminal.out()
    table = Table()
    for column in ("class", "regions", "images", "folders"):
        table.add_column(column, justify="right" if column in ("regions", "images") else "left")
    for each in report["classes"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(each["kinds"].items(), key=lambda one: -one[1]))
        table.add_row(each["id"], str(each["regions"]), str(each["images"]), kinds)
    console.print(table)
    k = report["k"]
    said = ", ".join(f"{name} {count}" for name, count in k["proposals"].items())
    how = "given" if k["given"] else f"estimated, stability {k['stability']:.2f} ({said})"
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
