"""`flawline models`: what is announced, what runs where, and how the shadow model compares."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline.errors import FlawlineError, UsageError
from station.cli.options import Config, Json, JsonFile, settings_of

if TYPE_CHECKING:
    from flawline.messages import ModelPointer, ModelReport
    from flawline.settings.tree import Settings
    from workers.publish_model import Announced
    from workers.shadow_report import Comparison

SHOWN_FLIPS = 20


def models(
    compare: Annotated[bool, typer.Option("--compare", help="Compare the shadow model with the active one.")] = False,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --compare: write the frames that the two decide differently."),
    ] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Show which models are announced and which actor runs which since when, or compare the shadow model."""
    from station import terminal

    if pictures and not compare:
        raise UsageError("--pictures goes with --compare: add it")
    settings = settings_of(config)
    if compare:
        comparison, counts = _compare(settings, pictures)
        if not terminal.emit_json(comparison.as_dict() | counts, json, json_file):
            _show_comparison(comparison, counts)
        return
    from flawline.clock import utc_ns
    from workers import model_reports, publish_model

    announced, reports, now_ns = publish_model.announced(settings), model_reports.read(settings), utc_ns()
    if not terminal.emit_json(_as_dict(settings, announced, reports, now_ns), json, json_file):
        _show(settings, announced, reports, now_ns)


def _as_dict(settings: Settings, announced: Announced, reports: list[ModelReport], now_ns: int) -> dict[str, Any]:
    def pointer(model: ModelPointer | None) -> dict[str, Any] | None:
        if model is None:
            return None
        published_at = _time(model.published_at)
        return {"version": model.version, "uri": model.uri, "published_at": published_at, "by": model.by}

    return {
        "configured": settings.worker.model,
        "active": pointer(announced.active),
        "shadow": pointer(announced.shadow),
        "history": [pointer(model) for model in announced.history],
        "actors": [
            {
                "actor": report.member,
                "host": report.host,
                "pid": report.pid,
                "active": report.active and {"version": report.active.version, "since": _time(report.active.since)},
                "shadow": report.shadow and {"version": report.shadow.version, "since": _time(report.shadow.since)},
                "problem": report.problem,
                "reported_at": _time(report.at),
                "silent": _is_silent(report, now_ns),
            }
            for report in reports
        ],
    }


def _show(settings: Settings, announced: Announced, reports: list[ModelReport], now_ns: int) -> None:
    from rich.table import Table

    from station import terminal

    out = terminal.out()
    if settings.worker.model:
        out.print(f"worker.model sets the active model: {settings.worker.model}", highlight=False)
    table = Table("role", "version", "published", "by", "address", title="announced")
    rows = [("active", announced.active), ("shadow", announced.shadow), *(("before", old) for old in announced.history)]
    for role, model in rows:
        if model:
            table.add_row(role, model.version, _time(model.published_at), model.by or "", model.uri)
    out.print(table if table.row_count else "no model is announced: flawline publish MODEL", highlight=False)
    table = Table("actor", "process", "active", "since", "shadow", "since", "problem", title="in use")
    for report in reports:
        age_s = (now_ns - report.at) * 1e-9
        problem = f"not heard of for {age_s:.0f} s" if _is_silent(report, now_ns) else report.problem or ""
        running = [
            text
            for model in (report.active, report.shadow)
            for text in ((model.version, _time(model.since)) if model else ("none", ""))
        ]
        table.add_row(report.member, f"{report.host} {report.pid}", *running, problem)
    out.print(table if table.row_count else "no actor runs: flawline work, or flawline up", highlight=False)


def _is_silent(report: ModelReport, now_ns: int) -> bool:
    from workers.model_reports import STALE_S

    return (now_ns - report.at) * 1e-9 > STALE_S


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // 1_000_000_000).astimezone().isoformat(sep=" ")


def _compare(settings: Settings, pictures: Path | None) -> tuple[Comparison, dict[str, int]]:
    """Return the comparison, and how many pictures were written. Raises FlawlineError when there is none."""
    from workers import publish_model, shadow_report

    shadow = publish_model.announced(settings).shadow
    comparison = shadow_report.compare(shadow_report.read(settings), shadow.version if shadow else None)
    if comparison is None:
        raise FlawlineError(
            f"shadow model {shadow.version} has scored nothing yet: `flawline models` shows whether it runs"
            if shadow
            else "no shadow model has scored a frame: `flawline publish MODEL --role shadow` announces one"
        )
    if pictures is None:
        return comparison, {}
    written, missing = shadow_report.write_pictures(settings, comparison.flips, pictures)
    return comparison, {"pictures": written, "pictures_gone": missing}


def _show_comparison(comparison: Comparison, counts: dict[str, int]) -> None:
    from rich.table import Table

    from station import terminal

    out = terminal.out()
    out.print(
        f"shadow {comparison.shadow_version} beside active {comparison.active_version}: {comparison.frames:,} frames, "
        f"{comparison.agreement:.2%} decided alike",
        highlight=False,
    )
    for change, count in comparison.flip_counts.items():
        out.print(f"  {change}: {count:,}", highlight=False)
    if comparison.flips:
        table = Table("frame", "part", "active", "score", "shadow", "score", title="decided differently, newest first")
        for flip in list(comparison.flips)[: -SHOWN_FLIPS - 1 : -1]:
            table.add_row(
                flip.frame_id,
                flip.part or "",
                flip.active_decision,
                f"{flip.active_score:.2f}",
                flip.decision,
                f"{flip.score:.2f}",
            )
        out.print(table)
    if counts:
        out.print(f"{counts['pictures']} pictures written, {counts['pictures_gone']} frames are gone", highlight=False)
