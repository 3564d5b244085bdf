"""The board *Cameras*: does each deliver, as often as it should, sharp and well lit, and without losses?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from discovery.dashboards.boards import board, camera_variable
from discovery.dashboards.line_overview import CAMERA
from discovery.dashboards.panels import GREEN, RED, Panel, lines, names, promql, promql_now, rows, states
from discovery.dashboards.promql import RATE, quantile

UID = "flawline-cameras"
TITLE = "Cameras"


def build(station_url: str) -> dashboard.Dashboard:
    """Return the board's builder."""
    head = board(
        UID,
        TITLE,
        "Every camera: state, rate against its nominal one, picture quality, gaps and losses.",
        begin="now-6h",
        refresh="30s",
        station_url=station_url,
    )
    head.with_variable(camera_variable())
    for name, panels in (("State", _state()), ("Pictures", _pictures()), ("Losses", _losses()), ("Delivery", _way())):
        head.with_row(dashboard.Row(name))
        for panel in panels:
            head.with_panel(panel)
    return head


def _mean(metric: str) -> str:
    """Return the mean of a summary over half a minute at least: a frame of a camera is measured once a second."""
    return (
        f"sum by (camera) (rate({metric}_sum{{{CAMERA}}}{RATE})) / "
        f"(sum by (camera) (rate({metric}_count{{{CAMERA}}}{RATE})) > 0)"
    )


def _state() -> tuple[Panel, ...]:
    return (
        states(
            "State of cameras",
            "Whether each camera delivers.",
            promql(f"max by (camera) (flawline_camera_up{{{CAMERA}}})", "{{camera}}"),
            mappings=names({0: ("away", RED), 1: ("up", GREEN)}),
            width=14,
            height=9,
        ),
        rows(
            "Never seen",
            "Cameras of the settings of which the ledger has no capture at all.",
            promql_now("flawline_configured_camera unless on (camera) sum by (camera) (flawline_ledger_frames) > 0"),
            width=10,
            overrides={name: {"custom.hidden": True} for name in ("Time", "Value", "instance", "job", "__name__")},
        ),
        lines(
            "Rate against nominal",
            "Captures per second as a share of the rate that the camera is set to (rate_hz); cameras without one are "
            "left out. Well below 100 %: the camera, its network or its trigger.",
            promql(
                f"sum by (camera) (rate(flawline_captured_frames_total{{{CAMERA}}}{RATE})) "
                f"/ on (camera) max by (camera) (flawline_camera_nominal_hz{{{CAMERA}}})",
                "{{camera}}",
            ),
            unit="percentunit",
            width=12,
            limits=((None, "transparent"), (0.9, GREEN)),
        ),
        lines(
            "Reconnects",
            "Times a camera was opened again, since the producers started.",
            promql(f"sum by (camera) (flawline_camera_reconnects_total{{{CAMERA}}})", "{{camera}}"),
            unit="short",
            steps=True,
            width=12,
        ),
    )


def _pictures() -> tuple[Panel, ...]:
    return (
        lines(
            "Sharpness",
            "Variance of the Laplacian in the middle of a frame, in grey levels: it falls when a lens slips or gets "
            "dirty. Compare a camera with itself; products differ.",
            promql(_mean("flawline_image_sharpness"), "{{camera}}"),
            unit="short",
        ),
        lines(
            "Brightness",
            "Mean brightness of a camera's frames, 0 to 1. A drift is a lamp that ages, a step one that failed.",
            promql(_mean("flawline_image_brightness"), "{{camera}}"),
            unit="percentunit",
        ),
        lines(
            "Black or white pixels",
            "Share of pixels at the ends of the scale: what they showed is lost. Exposure or light.",
            promql(_mean("flawline_image_clipped_share"), "{{camera}}"),
            unit="percentunit",
        ),
        lines(
            "Frames unlike what is learnt",
            "Share of a camera's frames since when half of its last ones are unlike what the model knows, and not by "
            "defects: its light, lens or place has changed, or the product (the alert says which).",
            promql(
                f'1 - sum by (camera) (rate(flawline_scene_frames_total{{{CAMERA}, scene="as-learnt"}}'
                "[$__rate_interval])) / "
                f"sum by (camera) (rate(flawline_scene_frames_total{{{CAMERA}}}[$__rate_interval]))",
                "{{camera}}",
            ),
            unit="percentunit",
        ),
    )


def _losses() -> tuple[Panel, ...]:
    return (
        lines(
            "Gaps by camera",
            "Captures whose number is missing and that nobody explained, from the ledger. Anything but 0 is an "
            "incident.",
            promql(f'sum by (camera) (flawline_ledger_frames{{{CAMERA}, outcome="gap"}})', "{{camera}}"),
            unit="short",
            steps=True,
        ),
        lines(
            "Drops by reason",
            "Captures that never reached the broker, since the producers started.",
            promql(f"sum by (camera, reason) (flawline_dropped_frames_total{{{CAMERA}}}) > 0", "{{camera}} {{reason}}"),
            unit="short",
            steps=True,
        ),
        lines(
            "Share that is published",
            "Below 100 % captures are thinned while the workers lag (producer.overload).",
            promql(f"min by (camera) (flawline_kept_share{{{CAMERA}}})", "{{camera}}"),
            unit="percentunit",
        ),
    )


def _way() -> tuple[Panel, ...]:
    return (
        lines(
            "Capture to broker",
            "From the capture to the acknowledgement of the broker, by camera: 99 of 100 frames are quicker.",
            promql(quantile(0.99, "flawline_publish_latency_seconds", "camera", CAMERA), "{{camera}}"),
            unit="s",
            width=12,
        ),
        lines(
            "Bytes/s by camera",
            "Encoded bytes that the broker has acknowledged.",
            promql(f"sum by (camera) (rate(flawline_published_bytes_total{{{CAMERA}}}{RATE}))", "{{camera}}"),
            unit="Bps",
            width=12,
        ),
    )
