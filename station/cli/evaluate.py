"""`flawline evaluate`: how good a model is on test images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline.errors import UsageError
from station.cli.options import Config, Json, JsonFile, settings_of

if TYPE_CHECKING:
    from flawline.settings.tree import Settings


def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    data: Annotated[Path, typer.Argument(help="Folder with <product>/test/<good|defect>/*.")],
    scores: Annotated[Path | None, typer.Option(help="File for the scores of each image, .csv or .json.")] = None,
    scenarios: Annotated[
        bool,
        typer.Option(
            "--scenarios",
            help="Compare product labels known or unknown, at fit and at test: fits the model's recipe again on DATA.",
        ),
    ] = False,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Score test images with a model and report how good it is."""
    from station import terminal

    settings = settings_of(config)
    if scenarios:
        from scorer import commands

        if scores is not None:
            raise UsageError("--scores does not go with --scenarios, which has four scores for each image: omit one")
        report = commands.compare_scenarios(model, data, terminal.stage_progress)
        if not terminal.emit_json(report, json, json_file):
            _show_scenarios(report, model, data)
        return
    report = evaluate_model(settings, model, data, scores)
    if not terminal.emit_json(report, json, json_file):
        show(report, model, data, scores)


def evaluate_model(settings: Settings, model: Path, data: Path, scores: Path | None = None) -> dict[str, Any]:
    """Evaluate a model on test images, write the scores of each image to a file if asked, and return the report."""
    from scorer import commands
    from station import terminal

    worker = settings.worker
    return commands.evaluate(
        model,
        data,
        scores=scores,
        runtime=worker.runtime,
        precision=worker.precision,
        weights=worker.weights,
        progress_bar=terminal.stage_progress,
    )


def show(report: dict[str, Any], model: Path, data: Path, scores: Path | None = None) -> None:
    """Print the report, and the next step."""
    from station import fit_report

    fit_report.show(report, f"model {model} on {data}")
    list_images = "" if scores is not None else "--scores FILE.csv lists every image; "
    fit_report.show_next(f"{list_images}flawline explain {model} IMAGE -o page.html shows the reasons for one image")


def _show_scenarios(report: dict[str, Any], model: Path, data: Path) -> None:
    """Print the four scenarios of HierCore, a row each."""
    from rich.table import Table

    from station import terminal
    from station.fit_report import figure

    table = Table(title=f"labels at fit and at test, by the recipe of {model} on {data}")
    for name in ("fit", "test", "macro", "pooled", "worst product", "std", "alarm rate", "worst alarm rate", "recall"):
        table.add_column(name, justify="left" if name in ("fit", "test") else "right")
    for name, cell in report["scenarios"].items():
        figures = (
            cell["macro"]["image_auroc"],
            cell["pooled"]["image_auroc"],
            cell["worst_product"],
            cell["std_over_products"],
            cell["alarm_rate"]["mean"],
            cell["alarm_rate"]["worst_product"],
            cell["recall_at_alarm_rate"],
        )
        table.add_row(*name.split("-"), *map(figure, figures))
    console = terminal.out()
    console.print(table)
    console.print(
        f"target alarm rate {figure(report['alarm_rate_target'])}; {report['groups']} groups found without labels, "
        f"purity {figure(report['group_purity'])}; image AUROC of {report['images']} images",
        highlight=False,
    )
