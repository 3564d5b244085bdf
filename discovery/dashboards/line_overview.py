"""The board *Line overview*: does the line run, is anything lost, is it in time, what does it decide?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from discovery.dashboards.boards import board, camera_variable
from discovery.dashboards.panels import (
    ALARM_COLOURS,
    DECISION_COLOURS,
    GREEN,
    RED,
    YELLOW,
    Panel,
    bars_over_time,
    lines,
    names,
    number,
    promql,
)
from discovery.dashboards.promql import RATE, alarm_rate, quantile

UID = "flawline-line-overview"
TITLE = "Line overview"

CAMERA = 'camera=~"$camera"'
# Every role serves every gauge without labels, 0 where it is not its own: what counts is what the ledger says.
BALANCED = "flawline_ledger_balanced and on (job, instance) flawline_ledger_frames"
HOUR = "[1h]"
TARGET = "max(flawline_alarm_rate_target)"


def build(station_url: str) -> dashboard.Dashboard:
    """Return the board's builder."""
    head = board(
        UID,
        TITLE,
        "Frames from capture to verdict: yield, decisions, latency, losses and their ledger.",
        begin="now-1h",
        refresh="10s",
        station_url=station_url,
    )
    head.with_variable(camera_variable())
    for panel in _glance():
        head.with_panel(panel)
    for name, panels in (("Decisions", _decisions()), ("In time", _time()), ("Nothing lost", _losses())):
        head.with_row(dashboard.Row(name))
        for panel in panels:
            head.with_panel(panel)
    return head


def _glance() -> tuple[Panel, ...]:
    verdicts = f"sum(rate(flawline_verdicts_total{{{CAMERA}}}{RATE}))"
    return (
        number(
            "Ledger",
            "Whether every capture ended as exactly one of scored, dropped, dead-lettered or gap.",
            promql(f"min({BALANCED})", "balanced"),
            limits=((None, RED), (1, GREEN)),
            mappings=names({0: ("not balanced", RED), 1: ("balanced", GREEN)}),
        ),
        number(
            "Gaps",
            "Captures whose number is missing and that nobody explained. Anything but 0 is an incident.",
            promql(f'sum(flawline_ledger_frames{{{CAMERA}, outcome="gap"}})', "gaps"),
            limits=((None, GREEN), (1, RED)),
        ),
        number(
            "Cameras away",
            "Cameras that are stalled or cannot be reached, or have never delivered.",
            promql(
                f"count(flawline_camera_up{{{CAMERA}}} == 0 or "
                f"(flawline_configured_camera{{{CAMERA}}} unless on (camera) flawline_camera_up)) "
                f"or 0 * max(flawline_configured_camera)",
                "away",
            ),
            limits=((None, GREEN), (1, RED)),
        ),
        number("Frames/s", "Verdicts per second.", promql(verdicts, "verdicts"), unit="cps"),
        number(
            "Yield",
            "Share of the frames in the chosen time range that were accepted at once.",
            promql(f"1 - {alarm_rate('', '[$__range]', CAMERA)}", "yield"),
            unit="percentunit",
        ),
        number(
            "Alarm rate",
            "Share of verdicts in the chosen time range that are not `accept`, below it what the model may alarm "
            "of good "
            "parts. True defects come on top of that.",
            promql(alarm_rate("", "[$__range]", CAMERA), "alarm rate"),
            unit="percentunit",
        ),
        number(
            "Capture to verdict, p99",
            "99 of 100 frames have their verdict within this time. Compare it with your takt (worker.takt_s).",
            promql(quantile(0.99, "flawline_verdict_latency_seconds", where=CAMERA), "p99"),
            unit="s",
            limits=((None, GREEN), (1, YELLOW), (10, RED)),
        ),
        number(
            "Behind",
            "Age of the oldest frame that has no verdict yet.",
            promql("max(flawline_lag_seconds)", "behind"),
            unit="s",
            limits=((None, GREEN), (5, YELLOW), (30, RED)),
        ),
    )


def _decisions() -> tuple[Panel, ...]:
    frames = f"sum(increase(flawline_verdicts_total{{{CAMERA}}}{HOUR}))"
    return (
        bars_over_time(
            "Decisions/s",
            "What the model decides, over all chosen cameras.",
            promql(f"sum by (decision) (rate(flawline_verdicts_total{{{CAMERA}}}{RATE}))", "{{decision}}"),
            unit="cps",
            width=8,
            height=8,
            colours=DECISION_COLOURS,
        ),
        lines(
            "Alarm rate of an hour",
            "Share of the verdicts of the last hour that are not `accept`, the rate that the model was asked for "
            "on good "
            "parts, and the upper bound of a p-chart for that rate (three sigma). Above it there are defects, or good "
            "parts that look otherwise: judge some on the station's page Review.",
            promql(alarm_rate("", HOUR, CAMERA), "alarm rate"),
            promql(TARGET, "target"),
            promql(f"{TARGET} + 3 * sqrt({TARGET} * (1 - {TARGET}) / ({frames} > 0))", "upper bound"),
            unit="percentunit",
            colours=ALARM_COLOURS,
        ),
        lines(
            "Alarm rate by camera",
            "Share of verdicts that are not `accept`. A camera that leaves the others behind has a problem of its own: "
            "light, focus, or a bad lot.",
            promql(alarm_rate("by (camera)", RATE, CAMERA), "{{camera}}"),
            unit="percentunit",
        ),
    )


def _time() -> tuple[Panel, ...]:
    late = f"sum(rate(flawline_late_verdicts_total{{{CAMERA}}}{RATE}))"
    return (
        lines(
            "Capture to verdict",
            "From the capture to the verdict that the broker has acknowledged, and the takt (worker.takt_s) "
            "where it is "
            "set.",
            promql(quantile(0.5, "flawline_verdict_latency_seconds", where=CAMERA), "p50"),
            promql(quantile(0.99, "flawline_verdict_latency_seconds", where=CAMERA), "p99"),
            promql("max(flawline_takt_seconds)", "takt"),
            unit="s",
            colours={"takt": "#ff9488"},
        ),
        lines(
            "Verdicts after the takt",
            "Share of the verdicts that came later than worker.takt_s allows: the part has left.",
            promql(f"{late} / (sum(rate(flawline_verdicts_total{{{CAMERA}}}{RATE})) > 0)", "late"),
            unit="percentunit",
        ),
        lines(
            "Lag, seconds",
            "Age of the oldest frame without a verdict, by partition. Steadily rising: the workers are too slow for "
            "the cameras.",
            promql("max by (partition) (flawline_lag_seconds)", "partition {{partition}}"),
            unit="s",
        ),
    )


def _losses() -> tuple[Panel, ...]:
    return (
        lines(
            "Frames/s by camera",
            "Captured, and acknowledged by the broker. A lasting difference is spooled to disk or dropped.",
            promql(f"sum by (camera) (rate(flawline_captured_frames_total{{{CAMERA}}}{RATE}))", "{{camera}} captured"),
            promql(
                f"sum by (camera) (rate(flawline_published_frames_total{{{CAMERA}}}{RATE}))", "{{camera}} published"
            ),
            unit="cps",
        ),
        lines(
            "Outcomes of captures",
            "What became of every capture but the scored ones, counted from the topics themselves.",
            promql(
                f'sum by (outcome, reason) (flawline_ledger_frames{{{CAMERA}, outcome!="scored"}}) > 0',
                "{{outcome}} {{reason}}",
            ),
            unit="short",
            steps=True,
        ),
        lines(
            "Scored",
            "Captures with a verdict, counted from the topics themselves.",
            promql(f'sum(flawline_ledger_frames{{{CAMERA}, outcome="scored"}})', "scored"),
            unit="short",
            steps=True,
        ),
    )
