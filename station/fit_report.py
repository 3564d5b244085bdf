"""What `flawline fit` and `flawline evaluate` show of the scorer's reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from station import terminal

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "aupro")
SHOWN_IMAGES = 5
FINDS_NOTHING = 0.05
"""A model that finds a smaller share of the defects is not proposed to be published. A judgement, not measured."""


def show(report: Mapping[str, Any], title: str) -> None:
    """Print a report of a fit or an evaluation: metrics, cut-offs, and the images to look at."""
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
        _show_images(console, report["alarmed_good_parts"], "good parts were alarmed")
        _show_images(console, report["missed_defects"], "defects were accepted")
    fitted = f", fitted in {report['fit_seconds']:.1f} s" if report.get("fit_seconds") is not None else ""
    size = f"{report['model_bytes'] / 1e6:.1f} MB"
    console.print(f"{title}: version {report['version']}, {report['groups']} groups, {size}{fitted}", highlight=False)
    _show_cut_offs(console, report)
    if "operating_points" in report:
        _show_operating_points(console, report)
    _show_images(
        console,
        report["far_out"],
        "good images lie far out, and set no cut-off: look at them; fit with --is-defect FILE where one shows a defect",
    )
    _show_images(console, report["left_out"], "training images look defective and were left out")
    _show_images(
        console,
        report["suspects"],
        f"of {report['good_images']} training images stand out the most: look at them; when they show defects, remove "
        "them, or set scorer.trim = true, and fit again",
    )
    _show_what_was_read(console, report)
    if skipped := report.get("skipped_images"):
        console.print(f"{len(skipped)} images could not be read and were left out", highlight=False)


def _show_what_was_read(console: Console, report: Mapping[str, Any]) -> None:
    """Print the depth of 16-bit images, the odd ones among the good images, and parts that fill little of the frame."""
    for bits in report["sample_bits"]:
        if bits > 8:
            console.print(
                f"images of 16 bits are read as of {bits} bits, as the good ones are; others: set scorer.sample_bits",
                highlight=False,
            )
    if (distinct := report["distinct_images"]) < report["good_images"]:
        console.print(
            f"{report['good_images']} good images, about {distinct} different ones: copies (mirrored, turned, shots of "
            "one part) count once",
            highlight=False,
        )
    names = [f"{name} {reason}" for name, reason in report["odd"]]
    if report["odd_left_out"]:
        _show_images(console, names, "training images are odd and were left out")
    else:
        _show_images(
            console, names, "training images are odd and are part of the model (--leave-out-odd fits without them)"
        )
    for part in report["small_parts"]:
        console.print(
            f"group {part['group']}: the part fills {part['share']:.0%} of its frame, so that little of it is left at "
            f"the model's input: crop the camera, or set tile_px; inspect = [{part['inspect']}] keeps the rest out",
            highlight=False,
            markup=False,
        )


def _show_cut_offs(console: Console, report: Mapping[str, Any]) -> None:
    """Print the two cut-offs with their confidence bounds, and the finest p-values."""
    for name, cut in report["thresholds"].items():
        console.print(
            f"{name} above {cut['threshold']:.3f}: meant for {_percent(cut['rate'])} of good parts ({cut['method']}), "
            f"with 95 % confidence below {_percent(cut['upper_bound'])}",
            highlight=False,
        )
    groups = report["per_group"]
    few, many = min(groups, key=_size), max(groups, key=_size)
    by_group = f"{few['finest_p_value']:.2g} (group {few['group']}, {few['good_images']} images)"
    if many["good_images"] > few["good_images"]:
        by_group += f" to {many['finest_p_value']:.2g} (group {many['group']}, {many['good_images']} images)"
    console.print(f"finest p-value {report['finest_p_value']:.2g}; by a group's own images {by_group}", highlight=False)
    for group in groups:
        if group.get("sub_looks"):
            console.print(
                f"group {group['group']} falls into {group['sub_looks']} sub-looks: its parts are also compared with "
                "good parts of their own sub-look alone",
                highlight=False,
            )
    if any(cut["upper_bound"] > 2 * cut["rate"] for cut in report["thresholds"].values()):
        console.print("more good images would narrow the range of the alarm rate", highlight=False)


def _show_operating_points(console: Console, report: Mapping[str, Any]) -> None:
    """Print what each alarm rate costs and finds, and the lowest that the good images vouch for."""
    kind, count = report["defects"]["kind"], report["defects"]["count"]
    of = f"of {count} test defects" if kind == "test" else f"of {count} defects pasted into good images"
    table = Table(title="alarm rate asked, alarms expected, defects found")
    for name in ("alarm rate", "good images above", "true rate below (95 %)", f"found {of}", "images"):
        table.add_column(name, justify="right")
    for point in report["operating_points"]:
        table.add_row(
            _percent(point["rate"]),
            f"{point['above']} of {point['images']}",
            _percent(point["upper_bound"]),
            "" if point["found"] is None else f"{point['found']:.0%}",
            "enough" if point["vouched"] else "too few",
        )
    console.print(table)
    used, vouched = report["thresholds"]["review"]["rate"], report["vouched_rate"]
    if report["alarm_rate_asked"] == "auto":
        console.print(f'alarm_rate = "auto" is {_percent(used)} here', highlight=False)
    elif used < vouched:
        console.print(
            f"the good images vouch for {_percent(vouched)}, not for the {_percent(used)} asked for: add images, or "
            f'set scorer.alarm_rate = {vouched:g} or "auto"',
            highlight=False,
        )
    if finds_nothing(report):
        console.print(
            f"this model finds {report['found']:.0%} {of} at {_percent(used)}: raise scorer.alarm_rate by the table, "
            "or add good images",
            highlight=False,
        )


def finds_nothing(report: Mapping[str, Any]) -> bool:
    """Return whether a model finds hardly any defect at its alarm rate, so that publishing it is no next step."""
    return report.get("found") is not None and report["found"] < FINDS_NOTHING


def _show_images(console: Console, images: Sequence[str], what: str) -> None:
    """Print how many images there are, and the first of them."""
    if images:
        rest = len(images) - SHOWN_IMAGES
        names = ", ".join(images[:SHOWN_IMAGES]) + (f", and {rest} more (--json has all)" if rest > 0 else "")
        console.print(f"{len(images)} {what}: {names}", highlight=False, markup=False)


def show_next(step: str) -> None:
    """Print what a person does next."""
    terminal.out().print(f"next: {step}", highlight=False, markup=False)


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
        table.add_row(name, *(figure(values.get(metric)) for metric in METRICS))
    table.add_section()
    for name in ("pooled", "macro"):
        table.add_row(name, *(figure(report[name].get(metric)) for metric in METRICS), style="bold")
    return table


def figure(value: Any) -> str:
    """Return a figure as text, empty for one that does not exist."""
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
