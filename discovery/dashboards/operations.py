"""The board *Operations*: actors, queues, spool, dead letters, discovery, and what the machines have left."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from discovery.dashboards.boards import board, camera_variable
from discovery.dashboards.line_overview import CAMERA
from discovery.dashboards.panels import Panel, lines, promql
from discovery.dashboards.promql import RATE, quantile

UID = "flawline-operations"
TITLE = "Operations"


def build(station_url: str) -> dashboard.Dashboard:
    """Return the board's builder."""
    head = board(
        UID,
        TITLE,
        "Actors, queues, spool, dead letters, discovery, and the machines: processors, memory, disks, GPU.",
        begin="now-3h",
        refresh="30s",
        station_url=station_url,
    )
    head.with_variable(camera_variable())
    for name, panels in (
        ("Workers", _workers()),
        ("Back-pressure", _pressure()),
        ("Losses and outages", _losses()),
        ("Discovery", _discovery()),
        ("Machines", _machines()),
    ):
        head.with_row(dashboard.Row(name))
        for panel in panels:
            head.with_panel(panel)
    return head


def _workers() -> tuple[Panel, ...]:
    return (
        lines(
            "Actors",
            "Ray actors that run.",
            promql("sum(flawline_actors)", "running"),
            unit="short",
            steps=True,
            width=6,
        ),
        lines(
            "Restarts",
            "How often an actor died and was started again, since the workers started.",
            promql("sum(flawline_actor_restarts_total)", "restarts"),
            unit="short",
            steps=True,
            width=6,
        ),
        lines(
            "Scoring busy",
            "Share of the last seconds in which an actor scored. Near 100 %: it has no room left for more cameras.",
            promql("max by (actor) (flawline_scoring_busy)", "actor {{actor}}"),
            unit="percentunit",
            width=6,
        ),
        lines(
            "Batch size",
            "Frames that are scored together.",
            promql(quantile(0.5, "flawline_batch_size"), "p50"),
            promql(quantile(0.99, "flawline_batch_size"), "p99"),
            unit="short",
            width=6,
        ),
        lines(
            "Stages of a worker, p50",
            "Where the time of a frame goes.",
            promql(quantile(0.5, "flawline_stage_latency_seconds", "stage"), "{{stage}}"),
            unit="s",
        ),
        lines(
            "Stages of a worker, p99",
            "Where the time of the slowest of 100 frames goes.",
            promql(quantile(0.99, "flawline_stage_latency_seconds", "stage"), "{{stage}}"),
            unit="s",
        ),
        lines(
            "Worker queues",
            "Items that wait before a stage, and partitions that are paused because the byte bound is reached.",
            promql("sum by (stage) (flawline_queue_depth)", "{{stage}}"),
            promql("sum(flawline_paused_partitions)", "paused partitions"),
            unit="short",
        ),
    )


def _pressure() -> tuple[Panel, ...]:
    return (
        lines(
            "Lag, records",
            "Frames without a verdict, by partition.",
            promql("max by (partition) (flawline_lag_records)", "partition {{partition}}"),
            unit="short",
            width=6,
        ),
        lines(
            "Bytes in flight",
            "Held in memory: by producers until the broker acknowledges, by workers until there is a verdict.",
            promql("sum(flawline_producer_in_flight_bytes)", "producers"),
            promql("sum(flawline_worker_in_flight_bytes)", "workers"),
            unit="bytes",
            width=6,
        ),
        lines(
            "Spool",
            "Bytes that wait on the producers' disks for the broker, and their limit for all cameras together.",
            promql(f"sum by (camera) (flawline_spool_bytes{{{CAMERA}}})", "{{camera}}"),
            promql("sum(flawline_spool_limit_bytes)", "limit"),
            unit="bytes",
            width=6,
            colours={"limit": "#ff9488"},
        ),
        lines(
            "Oldest spooled frame",
            "Age of the oldest frame on a producer's disk.",
            promql(f"max by (camera) (flawline_spool_oldest_age_seconds{{{CAMERA}}})", "{{camera}}"),
            unit="s",
            width=6,
        ),
    )


def _losses() -> tuple[Panel, ...]:
    return (
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
            "Waiting for others",
            "How long a role has waited for the broker, and discovery for its store: 0 while all is well.",
            promql("max by (job) (flawline_broker_wait_seconds)", "{{job}} for the broker"),
            promql("max(flawline_store_away_seconds)", "discovery for the store"),
            unit="s",
        ),
    )


def _discovery() -> tuple[Panel, ...]:
    return (
        lines(
            "Unread records",
            "Records that discovery has not read yet, by topic.",
            promql("max by (topic) (flawline_discovery_lag_records)", "{{topic}}"),
            unit="short",
            width=6,
        ),
        lines(
            "Refused records",
            "Records that discovery could not use, since it started.",
            promql("sum by (reason) (flawline_rejected_records_total)", "{{reason}}"),
            unit="short",
            steps=True,
            width=6,
        ),
        lines(
            "Defect classes",
            "Classes by state, and regions that belong to none yet. The board Defect trends has them in detail.",
            promql("max by (state) (flawline_classes)", "{{state}}"),
            promql("max(flawline_unassigned_regions)", "regions without a class"),
            unit="short",
            steps=True,
            width=6,
        ),
        lines(
            "Pictures",
            "Whole frames that wait to be kept, and those that somebody should judge.",
            promql("max(flawline_waiting_frames)", "wait to be kept"),
            promql("max(flawline_unjudged_frames)", "not judged"),
            unit="short",
            steps=True,
            width=6,
        ),
    )


def _machines() -> tuple[Panel, ...]:
    return (
        lines(
            "Processors",
            "Cores that each role keeps busy, with all its processes.",
            promql(f"sum by (job) (rate(flawline_process_cpu_seconds_total{RATE}))", "{{job}}"),
            unit="short",
            width=6,
        ),
        lines(
            "Memory",
            "Resident memory of each role, with all its processes; what they share is counted in each.",
            promql("sum by (job) (flawline_process_resident_memory_bytes)", "{{job}}"),
            unit="bytes",
            width=6,
        ),
        lines(
            "Free on disks",
            "Free bytes of the disks that hold spool, data and store.",
            promql("min by (job, disk) (flawline_disk_free_bytes)", "{{disk}} of {{job}}"),
            unit="bytes",
            width=6,
        ),
        lines(
            "GPU memory",
            "Used and total memory of the GPU of each actor; empty on a line that scores on CPUs.",
            promql("max by (actor, what) (flawline_gpu_memory_bytes)", "actor {{actor}} {{what}}"),
            unit="bytes",
            width=6,
        ),
    )
