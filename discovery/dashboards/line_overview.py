"""The dashboard *Line overview*: is the line running, is anything lost, how fast is it, what does it decide."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from discovery.dashboards.panels import PROMETHEUS, lines, names, number, promql, promql_annotation, states

UID = "flawline-line-overview"
TITLE = "Line overview"

GREEN, YELLOW, RED = "green", "yellow", "red"
CAMERA = 'camera=~"$camera"'
RATE = "[$__rate_interval]"
# Every role serves every gauge without labels, 0 where it is not its own: what counts is what the ledger says.
BALANCED = "flawline_ledger_balanced and on (job, instance) flawline_ledger_frames"


def _quantile(q: float, metric: str, by: str = "", where: str = "") -> str:
    """Return the query of a quantile of a histogram over the rate interval, in its unit."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{where}}}{RATE})))"


def _alarm_rate(by: str, window: str) -> str:
    """Return the share of verdicts that are no `accept`; 0 and not absent while there are verdicts and no alarm."""
    over = f"sum {by} (increase(flawline_verdicts_total{{{CAMERA}}}{window}))"
    alarms = f'sum {by} (increase(flawline_verdicts_total{{{CAMERA}, decision!="accept"}}{window}))'
    return f"({alarms} or 0 * {over}) / ({over} > 0)"


def build() -> dashboard.Dashboard:
    """Return the dashboard's builder."""
    board = (
        dashboard.Dashboard(TITLE)
        .uid(UID)
        .description(
            "Frames from capture to verdict: rates, decisions, latency, back-pressure, losses and their ledger."
        )
        .tags(["flawline"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.QueryVariable("camera")
            .label("Camera")
            .datasource(PROMETHEUS)
            .query({"query": "label_values(flawline_captured_frames_total, camera)", "refId": "cameras"})
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(model.VariableOption(selected=True, text="All", value="$__all"))
        )
        .annotation(
            promql_annotation(
                "Model changes",
                "purple",
                "max by (role, version) (flawline_model_info == 1) "
                "unless max by (role, version) (flawline_model_info offset 1m == 1)",
                "New {{role}} model",
                "{{version}}",
            )
        )
    )
    for add in (_glance, _frames, _latency, _pressure, _losses, _workers):
        add(board)
    return board


def _glance(board: dashboard.Dashboard) -> None:
    verdicts = f"sum(rate(flawline_verdicts_total{{{CAMERA}}}{RATE}))"
    for panel in (
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
            promql('sum(flawline_ledger_frames{outcome="gap"})', "gaps"),
            limits=((None, GREEN), (1, RED)),
        ),
        number(
            "Cameras away",
            "Cameras that are stalled or cannot be reached.",
            promql("count(flawline_camera_up == 0) or 0 * max(flawline_camera_up)", "away"),
            limits=((None, GREEN), (1, RED)),
        ),
        number("Frames/s", "Verdicts per second.", promql(verdicts, "verdicts"), unit="cps"),
        number(
            "Alarm rate",
            "Share of verdicts in the chosen time range that are not `accept`.",
            promql(_alarm_rate("", "[$__range]"), "alarm rate"),
            unit="percentunit",
        ),
        number(
            "Capture to verdict, p99",
            "99 of 100 frames have their verdict within this time.",
            promql(_quantile(0.99, "flawline_verdict_latency_seconds", where=CAMERA), "p99"),
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
        number(
            "Model",
            "Version of the model in use.",
            promql("max by (role, version) (flawline_model_info == 1)", "{{version}} ({{role}})"),
            show_name=True,
        ),
    ):
        board.with_panel(panel)


def _frames(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Frames and decisions"))
    for panel in (
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
            "Decisions/s",
            "What the model decides, over all chosen cameras.",
            promql(f"sum by (decision) (rate(flawline_verdicts_total{{{CAMERA}}}{RATE}))", "{{decision}}"),
            unit="cps",
            stacked=True,
        ),
        lines(
            "Alarm rate by camera",
            "Share of verdicts that are not `accept`. A camera that leaves the others behind has a problem of its own: "
            "light, focus, or a bad lot.",
            promql(_alarm_rate("by (camera)", RATE), "{{camera}}"),
            unit="percentunit",
        ),
    ):
        board.with_panel(panel)


def _latency(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Latency"))
    for panel in (
        lines(
            "Capture to verdict",
            "From the capture to the verdict that the broker has acknowledged.",
            promql(_quantile(0.5, "flawline_verdict_latency_seconds", where=CAMERA), "p50"),
            promql(_quantile(0.99, "flawline_verdict_latency_seconds", where=CAMERA), "p99"),
            unit="s",
        ),
        lines(
            "Stages of a worker",
            "Where the time of a frame goes.",
            promql(_quantile(0.5, "flawline_stage_latency_seconds", "stage"), "{{stage}} p50"),
            promql(_quantile(0.99, "flawline_stage_latency_seconds", "stage"), "{{stage}} p99"),
            unit="s",
        ),
        lines(
            "Capture to broker",
            "From the capture to the acknowledgement of the broker, by camera.",
            promql(_quantile(0.5, "flawline_publish_latency_seconds", "camera", CAMERA), "{{camera}} p50"),
            promql(_quantile(0.99, "flawline_publish_latency_seconds", "camera", CAMERA), "{{camera}} p99"),
            unit="s",
        ),
    ):
        board.with_panel(panel)


def _pressure(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Back-pressure"))
    for panel in (
        lines(
            "Lag, seconds",
            "Age of the oldest frame without a verdict, by partition. Steadily rising: the workers are too slow for "
            "the cameras.",
            promql("max by (partition) (flawline_lag_seconds)", "partition {{partition}}"),
            unit="s",
        ),
        lines(
            "Lag, records",
            "Frames without a verdict, by partition.",
            promql("max by (partition) (flawline_lag_records)", "partition {{partition}}"),
            unit="short",
        ),
        lines(
            "Bytes in flight",
            "Held in memory: by producers until the broker acknowledges, by workers until there is a verdict.",
            promql("sum(flawline_producer_in_flight_bytes)", "producers"),
            promql("sum(flawline_worker_in_flight_bytes)", "workers"),
            unit="bytes",
        ),
        lines(
            "Spool",
            "Bytes that wait on the producers' disks for the broker.",
            promql(f"sum by (camera) (flawline_spool_bytes{{{CAMERA}}})", "{{camera}}"),
            unit="bytes",
        ),
        lines(
            "Oldest spooled frame",
            "Age of the oldest frame on a producer's disk.",
            promql(f"max by (camera) (flawline_spool_oldest_age_seconds{{{CAMERA}}})", "{{camera}}"),
            unit="s",
        ),
        lines(
            "Worker queues",
            "Items that wait before a stage, and partitions that are paused because the byte bound is reached.",
            promql("sum by (stage) (flawline_queue_depth)", "{{stage}}"),
            promql("sum(flawline_paused_partitions)", "paused partitions"),
            unit="short",
        ),
    ):
        board.with_panel(panel)


def _losses(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Losses and cameras"))
    for panel in (
        lines(
            "Drops by reason",
            "Captures that never reached the broker, since the producers started.",
            promql(f"sum by (reason) (flawline_dropped_frames_total{{{CAMERA}}})", "{{reason}}"),
            unit="short",
            steps=True,
        ),
        lines(
            "Dead letters by reason",
            "Records that reached the workers and have no verdict, since the workers started. Those that name no "
            "camera count for every choice of cameras.",
            promql('sum by (reason) (flawline_dead_letters_total{camera=~"$camera|unknown"})', "{{reason}}"),
            unit="short",
            steps=True,
        ),
        lines(
            "Defects without description by reason",
            "Frames that were not accepted and whose regions were not described, since the workers started: beyond the "
            "budget of `worker.describe_*`, or a description that failed.",
            promql(f"sum by (reason) (flawline_undescribed_defects_total{{{CAMERA}}})", "{{reason}}"),
            unit="short",
            steps=True,
        ),
        lines(
            "Outcomes of captures",
            "What became of every capture, counted from the topics themselves.",
            promql(f"sum by (outcome, reason) (flawline_ledger_frames{{{CAMERA}}}) > 0", "{{outcome}} {{reason}}"),
            unit="short",
            steps=True,
        ),
        states(
            "Cameras",
            "Whether each camera delivers.",
            promql(f"max by (camera) (flawline_camera_up{{{CAMERA}}})", "{{camera}}"),
            mappings=names({0: ("away", RED), 1: ("up", GREEN)}),
            width=16,
            height=8,
        ),
        lines(
            "Reconnects",
            "Times a camera was opened again.",
            promql(f"sum by (camera) (flawline_camera_reconnects_total{{{CAMERA}}})", "{{camera}}"),
            unit="short",
            steps=True,
        ),
    ):
        board.with_panel(panel)


def _workers(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Workers and discovery"))
    for panel in (
        lines(
            "Actors",
            "Ray actors that run, and how often one died and was started again.",
            promql("sum(flawline_actors)", "running"),
            promql("sum(flawline_actor_restarts_total)", "restarts so far"),
            unit="short",
            steps=True,
            width=6,
        ),
        lines(
            "Batch size",
            "Frames that are scored together.",
            promql(_quantile(0.5, "flawline_batch_size"), "p50"),
            promql(_quantile(0.99, "flawline_batch_size"), "p99"),
            unit="short",
            width=6,
        ),
        lines(
            "Discovery",
            "Records that discovery has not read yet, by topic, and those that it could not use.",
            promql("max by (topic) (flawline_discovery_lag_records)", "unread in {{topic}}"),
            promql("sum by (reason) (flawline_rejected_records_total)", "refused: {{reason}}"),
            unit="short",
            width=6,
        ),
        lines(
            "Defect classes",
            "Classes by state, and regions that belong to none yet. The dashboard Defect trends has them in detail.",
            promql("max by (state) (flawline_classes)", "{{state}}"),
            promql("max(flawline_unassigned_regions)", "regions without a class"),
            unit="short",
            steps=True,
            width=6,
        ),
    ):
        board.with_panel(panel)
