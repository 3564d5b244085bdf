"""What `flawline fit` and `flawline evaluate` show of the scorer's reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flawline.errors import UsageError
from flawline.messages import Codec
from flawline.settings.tree import Settings
from station import terminal

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "aupro")


def fit(
    settings: Settings, data: Path, out: Path, target: str | None, codec: str | None = None, quality: int = 90
) -> None:
    """Fit, evaluate when there are test images, and show the report; `codec` is that of the line's cameras."""
    from scorer import commands
    from scorer.features.dataset import Delivery

    if codec is not None and codec not in list(Codec):
        raise UsageError(f"--codec {codec}: choose from {', '.join(Codec)}")
    delivery = None if codec is None else Delivery(Codec(codec), quality)
    try:
        report = commands.fit(data, out, settings.scorer, delivery=delivery, progress_bar=terminal.stage_progress)
    except KeyboardInterrupt:
        terminal.fail("interrupted, nothing was written: the same command takes the fit up where it was")
        raise
    _show(report, target, f"model {out}")
    if not target:
        _say_next(
            f"flawline publish {out} makes it the one that workers use"
            if "pooled" in report
            else f"flawline evaluate {out} DATA on test images with known defects; flawline publish {out} makes it the "
            "one that workers use"
        )


def evaluate(settings: Settings, model: Path, data: Path, scores: Path | None, target: str | None) -> None:
    """Evaluate and show the report."""
    from scorer import commands

    worker = settings.worker
    report = commands.evaluate(
        model,
        data,
        scores=scores,
        runtime=worker.runtime,
        precision=worker.precision,
        weights=worker.weights,
        progress_bar=terminal.stage_progress,
    )
    _show(report, target, f"model {model} on {data}")
    if not target:
        listed = "" if scores is not None else "--scores FILE.csv lists every image; "
        _say_next(f"{listed}flawline explain {model} IMAGE -o page.png shows why one was decided on as it was")


def extend(settings: Settings, model: Path, data: Path, out: Path | None, bound: float, target: str | None) -> None:
    """Extend a model by good images and show what the audit says."""
    from scorer import commands

    worker = settings.worker
    place = out or model.with_name(f"{model.name}-extended")
    report = commands.extend(
        model,
        data,
        place,
        bound=bound,
        runtime=worker.runtime,
        precision=worker.precision,
        weights=worker.weights,
        progress_bar=terminal.stage_progress,
    )
    if target:
        terminal.emit(report, target)
        return
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
        f"model {place}: version {report['version']}, {report['groups']} groups, extends {report['extended']}; "
        f"use it with flawline publish {place}",
        highlight=False,
    )
    if report["copies"]:
        console.print(f"{report['copies']} images were in the model already, or given twice", highlight=False)
    if skipped := report["skipped_images"]:
        console.print(f"{len(skipped)} images could not be read and were left out", highlight=False)


def compare_scenarios(settings: Settings, model: Path, data: Path, target: str | None) -> None:
    """Compare the four scenarios of HierCore and show the report."""
    from scorer import commands

    report = commands.compare_scenarios(model, data, terminal.stage_progress)
    if target:
        terminal.emit(report, target)
        return
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
        table.add_row(*name.split("-"), *map(_figure, figures))
    console = terminal.out()
    console.print(table)
    console.print(
        f"target alarm rate {_figure(report['alarm_rate_target'])}; {report['groups']} groups found without labels, "
        f"purity {_figure(report['group_purity'])}; image AUROC of {report['images']} images",
        highlight=False,
    )


def _show(report: Mapping[str, Any], target: str | None, title: str) -> None:
    if target:
        terminal.emit(report, target)
        return
    console = terminal.out()
    if "pooled" in report:
        console.print(_metrics(report, title))
        alarm = report["alarm_rate"]
        console.print(
            f"good parts alarmed: {_percent(alarm['mean'])} (worst product {_percent(alarm['worst_product'])}, asked "
            f"for {_percent(alarm['target'])}); defects found at that: {_percent(report['recall_at_alarm_rate'])}; "
            f"{report['images_per_second']:.1f} images/s",
            highlight=False,
        )
        _name(console, report["alarmed_good_parts"], "good parts were alarmed")
        _name(console, report["missed_defects"], "defects were accepted")
    fitted = f", fitted in {report['fit_seconds']:.1f} s" if report.get("fit_seconds") is not None else ""
    size = f"{report['model_bytes'] / 1e6:.1f} MB"
    console.print(f"{title}: version {report['version']}, {report['groups']} groups, {size}{fitted}", highlight=False)
    _show_cut_offs(console, report)
    _name(console, report["left_out"], "training images look defective and were left out")
    _name(
        console,
        report["suspects"],
        f"of {report['good_images']} training images stand out the most: look at them; when they show defects, remove "
        "them, or set scorer.trim = true, and fit again",
    )
    if skipped := report.get("skipped_images"):
        console.print(f"{len(skipped)} images could not be read and were left out", highlight=False)


def _show_cut_offs(console: Console, report: Mapping[str, Any]) -> None:
    """The two cut-offs with what is sure of them, and the finest p-values."""
    for name, cut in report["thresholds"].items():
        console.print(
            f"{name} above {cut['threshold']:.3f}: meant for {_percent(cut['rate'])} of good parts ({cut['method']}), "
            f"with 95 % confidence below {_percent(cut['upper_bound'])}",
            highlight=False,
        )
    groups = report["per_group"]
    few, many = min(groups, key=_size), max(groups, key=_size)
    own = f"{few['finest_p_value']:.2g} (group {few['group']}, {few['good_images']} images)"
    if many["good_images"] > few["good_images"]:
        own += f" to {many['finest_p_value']:.2g} (group {many['group']}, {many['good_images']} images)"
    console.print(f"finest p-value {report['finest_p_value']:.2g}; by a group's own images {own}", highlight=False)
    if any(cut["upper_bound"] > 2 * cut["rate"] for cut in report["thresholds"].values()):
        console.print("more good images would make the alarm rate surer", highlight=False)


def _name(console: Console, images: Sequence[str], what: str) -> None:
    """How many images there are, and the first of them."""
    if images:
        named = ", ".join(images[:5]) + (f", and {len(images) - 5} more (--json has all)" if len(images) > 5 else "")
        console.print(f"{len(images)} {what}: {named}", highlight=False, markup=False)


def _say_next(what: str) -> None:
    terminal.out().print(f"next: {what}", highlight=False, markup=False)


def _percent(share: Any) -> str:
    return f"{share:.2%}".replace("%", " %") if isinstance(share, float) else "none to measure on"


def _size(group: Mapping[str, Any]) -> int:
    return int(group["good_images"])


def _metrics(report: Mapping[str, Any], title: str) -> Table:
    table = Table(title=title)
    table.add_column("")
    for name in METRICS:
        table.add_column(name.replace("_", " "), justify="right")
    for name, values in report["per_product"].items():
        table.add_row(name, *(_figure(values.get(metric)) for metric in METRICS))
    table.add_section()
    for name in ("pooled", "macro"):
        table.add_row(name, *(_figure(report[name].get(metric)) for metric in METRICS), style="bold")
    return table


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
