"""What all boards share: their head, the links between them and to the station, variables and annotations."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from discovery.dashboards.panels import POSTGRESQL, PROMETHEUS, promql_annotation, sql_annotation
from discovery.dashboards.sql import ANY_LOT, LOT, SHIFT

TAG = "flawline"
STATION_PAGES = {"Live": "/", "Review": "/review", "Classes": "/classes", "Ledger": "/ledger"}

LINE_STOPS = (
    "SELECT minute + INTERVAL '1 minute' AS time, following AS timeend, 'Line stop' AS title, "
    "'No frame of any camera for ' || to_char(following - minute - INTERVAL '1 minute', 'HH24:MI') || ' hours' "
    "AS text, "
    "'stop' AS tags FROM (SELECT minute, lead(minute) OVER (ORDER BY minute) AS following "
    "FROM (SELECT DISTINCT minute FROM verdict_minutes WHERE $__timeFilter(minute)) m) n "
    "WHERE following - minute > INTERVAL '3 minutes' AND $__unixEpochTo() - $__unixEpochFrom() <= 260000 ORDER BY 1"
)
"""A stop is seen by the minute, which takes too long over more than three days."""


def board(uid: str, title: str, text: str, *, begin: str, refresh: str, station_url: str) -> dashboard.Dashboard:
    """Return the head of a board: it links to the other boards, keeping time and variables, and to the station."""
    head = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(text)
        .tags([TAG])
        .timezone("browser")
        .time(begin, "now")
        .refresh(refresh)
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.ConstantVariable("station").value(station_url))
        .with_variable(_line_variable())
        .link(
            dashboard.DashboardLink("Boards")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
    )
    for name, path in STATION_PAGES.items():
        link = dashboard.DashboardLink(f"Station: {name}").type(model.DashboardLinkType.LINK)
        head.link(link.url(f"{station_url}{path}").icon("external link").target_blank(True))
    return _annotated(head)


def _annotated(head: dashboard.Dashboard) -> dashboard.Dashboard:
    """Mark on every board what explains a change of its lines."""
    return (
        head.annotation(
            promql_annotation(
                "Model changes",
                "purple",
                "max by (role, version) (flawline_model_info == 1) "
                "unless max by (role, version) (flawline_model_info offset 1m == 1)",
                "New {{role}} model",
                "{{version}}",
            )
        )
        .annotation(
            sql_annotation(
                "New classes",
                "orange",
                "SELECT at AS time, 'New class ' || class_id AS title, "
                "members || ' regions look alike and like nothing known before' AS text, class_id AS tags "
                "FROM class_events WHERE transition = 'born' AND $__timeFilter(at) ORDER BY at",
            )
        )
        .annotation(
            sql_annotation(
                "Changes of classes",
                "blue",
                "SELECT at AS time, COALESCE(name, class_id) || ': ' || transition AS title, "
                "concat_ws(', ', members || ' members', 'into ' || merged_into, 'from ' || NULLIF(parents, ''), "
                "'by ' || who, why) AS text, class_id AS tags "
                "FROM class_events WHERE transition NOT IN ('born', 'grew') AND $__timeFilter(at) ORDER BY at",
            )
        )
        .annotation(sql_annotation("Line stops", "red", LINE_STOPS))
    )


def _line_variable() -> dashboard.QueryVariable:
    """Return the choice of lines, for a Prometheus that scrapes several: the label `line` of its targets."""
    return _prometheus_choice("line", "Line", "label_values(flawline_ledger_balanced, line)")


def camera_variable() -> dashboard.QueryVariable:
    """Return the choice of cameras."""
    return _prometheus_choice("camera", "Camera", "label_values(flawline_captured_frames_total, camera)")


def group_variable() -> dashboard.QueryVariable:
    """Return the choice of groups of look-alike products that the model knows."""
    return _prometheus_choice("group", "Group of look-alikes", "label_values(flawline_accepted_score_count, group)")


def _prometheus_choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return _choice(name, label, PROMETHEUS, {"query": query, "refId": name}, ".*")


def store_variables() -> tuple[dashboard.QueryVariable, ...]:
    """Return the choices of cameras, groups, lots and shifts that the store knows.

    "All" is the column itself, so that it works on an empty table.
    """
    groups = (
        "SELECT v.group_id AS __value, COALESCE(MAX(g.name), 'group ' || v.group_id) AS __text "
        "FROM (SELECT DISTINCT group_id FROM verdict_hours) v LEFT JOIN groups g ON g.group_id = v.group_id "
        "GROUP BY v.group_id ORDER BY 1"
    )
    lots = f"SELECT DISTINCT lot AS __value, {LOT} AS __text FROM verdict_hours ORDER BY 1"
    shifts = f"SELECT DISTINCT shift AS __value, {SHIFT} AS __text FROM verdict_hours ORDER BY 1"
    return (
        _choice("camera", "Camera", POSTGRESQL, "SELECT DISTINCT camera FROM verdict_hours ORDER BY 1", "camera"),
        _choice("group", "Group of look-alikes", POSTGRESQL, groups, "group_id"),
        _choice("lot", "Lot", POSTGRESQL, lots, ANY_LOT),
        _choice("shift", "Shift", POSTGRESQL, shifts, "shift"),
    )


ANY_CLASS = "COALESCE(class_id, 'none')"


def class_variable() -> dashboard.QueryVariable:
    """Return the choice of classes by name; `none` are the defects without a class."""
    query = (
        "SELECT 'none' AS __value, 'no class yet' AS __text UNION ALL (SELECT id, COALESCE(name, id) FROM classes "
        "WHERE state <> 'merged' ORDER BY number)"
    )
    return _choice("class", "Class", POSTGRESQL, query, ANY_CLASS)


def _choice(name: str, label: str, source: Any, query: Any, everything: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(source)
        .query(query)
        .refresh(model.VariableRefresh.ON_DASHBOARD_LOAD)
        .multi(True)
        .include_all(True)
        .all_value(everything)
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )
