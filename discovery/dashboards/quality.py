"""The board *Quality*: how many good parts are refused, how many defective ones pass, and how sure that is."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from discovery.dashboards.boards import board, store_variables
from discovery.dashboards.panels import DECISION_COLOURS, Panel, Sql, bars_over_time, lines, number, rows
from discovery.dashboards.sql import SHARE, SHIFT, VERDICTS, bucket

UID = "flawline-quality"
TITLE = "Quality"

DAYS = "FROM quality_days WHERE $__timeFilter(day)"
LATEST = "FROM quality_days ORDER BY day DESC LIMIT 1"


def build(station_url: str) -> dashboard.Dashboard:
    """Return the board's builder."""
    head = board(
        UID,
        TITLE,
        "Overkill, escapes and parts per million with 95 % intervals, from people's judgements; yield.",
        begin="now-30d",
        refresh="5m",
        station_url=station_url,
    )
    for variable in store_variables():
        head.with_variable(variable)
    for name, panels in (("Rates", _rates()), ("Accepted at once", _yield()), ("Judgements", _judgements())):
        head.with_row(dashboard.Row(name))
        for panel in panels:
            head.with_panel(panel)
    return head


def _interval(name: str, factor: int = 1) -> str:
    columns = ((name, "estimate"), (f"{name}_low", "lower limit"), (f"{name}_high", "upper limit"))
    return ", ".join(f'{factor} * {column} AS "{title}"' for column, title in columns)


def _rates() -> tuple[Panel, ...]:
    of_days = (
        ("Overkill", "overkill", "Share of the good parts that were not accepted.", "percentunit", 1),
        ("Escape rate", "escape", "Share of the defective parts that were accepted.", "percentunit", 1),
        (
            "Escapes, parts per million",
            "escapes_per_accepted",
            "Defective parts among a million accepted ones.",
            "short",
            1_000_000,
        ),
    )
    panels: list[Panel] = []
    for title, column, text, unit, factor in of_days:
        panels.append(
            lines(
                title,
                f"{text} By day, with 95 % limits from the judgements of that day's frames: without any the "
                "limits are all "
                "that is possible. Judge what the station's page Review offers; what somebody looks up does not count.",
                Sql(f'SELECT day AS "time", {_interval(column, factor)} {DAYS} ORDER BY day', "time_series"),
                unit=unit,
                colours={"estimate": "text", "lower limit": "#8ab4ff", "upper limit": "#ff9488"},
            )
        )
    return tuple(panels)


def _yield() -> tuple[Panel, ...]:
    tail = "GROUP BY 1, 2 ORDER BY 1, 2"
    return (
        number(
            "Yield",
            "Share of the frames of the chosen time range that were accepted at once.",
            Sql(f"SELECT 1 - {SHARE} AS share {VERDICTS}"),
            unit="percentunit",
            width=4,
            height=8,
        ),
        lines(
            "Yield by camera",
            "Share of each camera's frames that were accepted at once.",
            Sql(
                f'SELECT {bucket()} AS "time", camera AS metric, 1 - {SHARE} AS share {VERDICTS} {tail}', "time_series"
            ),
            unit="percentunit",
            width=7,
        ),
        rows(
            "Yield by shift",
            "Inspected frames and yield of each shift, the latest first.",
            Sql(
                f"SELECT shift_day AS day, {SHIFT} AS shift, SUM(frames)::float8 AS inspected, "
                f"1 - {SHARE} AS yield {VERDICTS} GROUP BY 1, 2 ORDER BY 1 DESC, 2 LIMIT 100"
            ),
            width=6,
            height=8,
            overrides={"yield": {"unit": "percentunit"}},
        ),
        bars_over_time(
            "Decisions over time",
            "Inspected frames by decision.",
            Sql(
                f'SELECT {bucket()} AS "time", decision AS metric, SUM(frames)::float8 AS frames {VERDICTS} {tail}',
                "time_series",
            ),
            unit="short",
            width=7,
            height=8,
            colours=DECISION_COLOURS,
        ),
    )


def _judgements() -> tuple[Panel, ...]:
    held = "undone_at IS NULL AND camera IN ($camera) AND shift IN ($shift) AND $__timeFilter(captured_at)"
    rates = ("overkill", "overkill_low", "overkill_high", "escape", "escape_low", "escape_high")
    columns = f"frames, judgements, {', '.join(rates)}"
    shares = {name: {"unit": "percentunit"} for name in rates}
    return (
        rows(
            "Rates by shift",
            "Frames, judgements that count, overkill and escape rate of each shift with 95 % limits, the latest first; "
            "shifts are those of [[shifts]] in line.toml.",
            Sql(
                f"SELECT shift_day AS day, {SHIFT} AS shift, {columns}, 1000000 * escapes_per_accepted AS ppm, "
                "1000000 * escapes_per_accepted_low AS ppm_low, 1000000 * escapes_per_accepted_high AS ppm_high "
                "FROM quality_shifts WHERE shift IN ($shift) AND $__timeFilter(first_at) "
                "ORDER BY shift_day DESC, first_at DESC LIMIT 200"
            ),
            overrides=shares,
        ),
        rows(
            "Days",
            "Frames, judgements that count, and the rates of each day.",
            Sql(f"SELECT day, {columns} {DAYS} ORDER BY day DESC"),
            width=14,
            overrides=shares,
        ),
        rows(
            "Who judged",
            "Judgements that hold, by person.",
            Sql(
                "SELECT who, COUNT(*) FILTER (WHERE judgement = 'real') AS \"real defects\", "
                "COUNT(*) FILTER (WHERE judgement = 'false') AS \"false alarms\", "
                f"COUNT(*) FILTER (WHERE judgement = 'unsure') AS unsure FROM judgements WHERE {held} "
                "GROUP BY who ORDER BY COUNT(*) DESC, who"
            ),
            width=5,
        ),
        rows(
            "Judged last",
            "The latest judgements; a click opens the frame at the station.",
            Sql(
                f"SELECT at, frame_id AS frame, judgement, who, why FROM judgements WHERE {held} ORDER BY id DESC "
                "LIMIT 50"
            ),
            width=5,
            overrides={"frame": {"links": frame_links()}},
        ),
    )


def frame_links() -> list[dict[str, object]]:
    """Return the links from a frame's id to its page at the station."""
    url = "${station}/review?frame=${__value.raw}"
    return [{"title": "Picture at the station", "url": url, "targetBlank": True}]
