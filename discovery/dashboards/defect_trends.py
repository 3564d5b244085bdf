"""The dashboard *Defect trends*: which kinds of defect there are, how many, where, and since when."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from discovery.dashboards.panels import POSTGRESQL, Sql, bars, bars_over_time, lines, number, rows, sql_annotation

UID = "flawline-defect-trends"
TITLE = "Defect trends"

BUCKET = "$__timeGroup(minute, $__interval)"
CHOSEN = "$__timeFilter(minute) AND camera IN ($camera) AND group_id IN ($group)"
# A dismissed class is one of which a person has said that it is no defect.
DEFECTS = f"FROM defect_minutes WHERE {CHOSEN} AND class_state IS DISTINCT FROM 'dismissed'"
VERDICTS = f"FROM verdict_minutes WHERE {CHOSEN}"
CLASS = "COALESCE(class_name, class_id, 'no class yet')"


def build() -> dashboard.Dashboard:
    """Return the dashboard's builder."""
    board = (
        dashboard.Dashboard(TITLE)
        .uid(UID)
        .description("Defect classes over time, found without labels; a class keeps its id. Counts are frames.")
        .tags(["flawline"])
        .timezone("browser")
        .time("now-24h", "now")
        .refresh("1m")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(_choice("camera", "Camera", "camera"))
        .with_variable(_choice("group", "Group of look-alikes", "group_id"))
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
    )
    for add in (_glance, _classes, _places, _registry):
        add(board)
    return board


def _choice(name: str, label: str, column: str) -> dashboard.QueryVariable:
    """Return a variable with the values of a column. "All" is the column itself, so that it works on an empty table."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(POSTGRESQL)
        .query(f"SELECT DISTINCT {column} FROM verdict_minutes ORDER BY {column}")
        .refresh(model.VariableRefresh.ON_DASHBOARD_LOAD)
        .multi(True)
        .include_all(True)
        .all_value(column)
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def _glance(board: dashboard.Dashboard) -> None:
    for panel in (
        number(
            "Inspected",
            "Frames with a verdict.",
            Sql(f"SELECT COALESCE(SUM(frames), 0)::float8 AS frames {VERDICTS}"),
            unit="short",
            width=4,
        ),
        number(
            "Not accepted",
            "Frames that were not accepted: review, reject or unknown product.",
            Sql(f"SELECT COALESCE(SUM(frames) FILTER (WHERE decision <> 'accept'), 0)::float8 AS frames {VERDICTS}"),
            unit="short",
            width=4,
        ),
        number(
            "Alarm rate",
            "Share of the inspected frames that were not accepted.",
            Sql(
                "SELECT (SUM(frames) FILTER (WHERE decision <> 'accept'))::float8 / NULLIF(SUM(frames), 0) AS share "
                f"{VERDICTS}"
            ),
            unit="percentunit",
            width=4,
        ),
        number(
            "Open classes",
            "Candidates and confirmed classes, at any time.",
            Sql("SELECT COUNT(*) AS classes FROM classes WHERE state IN ('candidate', 'confirmed')"),
            width=4,
        ),
        number(
            "New classes",
            "Classes that were born in the chosen time range.",
            Sql("SELECT COUNT(*) AS classes FROM class_events WHERE transition = 'born' AND $__timeFilter(at)"),
            width=4,
            limits=((None, "text"), (1, "orange")),
        ),
        number(
            "Without a class",
            "Share of the defects that belong to no class yet: single findings, and kinds that are too rare so far.",
            Sql(
                "SELECT COALESCE(SUM(frames) FILTER (WHERE class_id IS NULL), 0)::float8 / NULLIF(SUM(frames), 0) "
                f"AS share {DEFECTS}"
            ),
            unit="percentunit",
            width=4,
        ),
    ):
        board.with_panel(panel)


def _classes(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Classes"))
    board.with_panel(
        bars_over_time(
            "Defects by class",
            "Frames by the class of their defect and by the time of their capture. A class that is found later is "
            "shown in the past as well. Orange marks: a class was born.",
            Sql(
                f'SELECT {BUCKET} AS "time", {CLASS} AS metric, SUM(frames)::float8 AS defects {DEFECTS} '
                "GROUP BY 1, 2 ORDER BY 1, 2",
                "time_series",
            ),
            unit="short",
            width=14,
            height=10,
        )
    )
    board.with_panel(
        bars(
            "Pareto",
            "The classes with the most frames, and the share that they make up together.",
            Sql(
                f"WITH counts AS (SELECT {CLASS} AS class, SUM(frames)::float8 AS defects {DEFECTS} GROUP BY 1) "
                "SELECT class, defects, SUM(defects) OVER (ORDER BY defects DESC, class) / SUM(defects) OVER () "
                'AS "together" FROM counts ORDER BY defects DESC, class LIMIT 20'
            ),
            "class",
            width=10,
            height=10,
            overrides={
                "together": {
                    "unit": "percentunit",
                    "max": 1,
                    "custom.axisPlacement": "right",
                    "color": {"mode": "fixed", "fixedColor": "text"},
                }
            },
        )
    )


def _places(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Where"))
    by_camera = f'SELECT {BUCKET} AS "time", camera AS metric, '
    by_group = f"SELECT {BUCKET} AS \"time\", 'group ' || group_id AS metric, "
    share = "COALESCE((SUM(frames) FILTER (WHERE decision <> 'accept'))::float8 / SUM(frames), 0) AS share"
    tail = "GROUP BY 1, 2 ORDER BY 1, 2"
    for panel in (
        lines(
            "Alarm rate by camera",
            "Share of each camera's frames that were not accepted. One camera that leaves the others behind has a "
            "problem of its own: light, focus, dirt.",
            Sql(f"{by_camera}{share} {VERDICTS} {tail}", "time_series"),
            unit="percentunit",
        ),
        lines(
            "Alarm rate by group",
            "The same by group of look-alike products.",
            Sql(f"{by_group}{share} {VERDICTS} {tail}", "time_series"),
            unit="percentunit",
        ),
        bars_over_time(
            "Decisions",
            "Inspected frames by decision.",
            Sql(
                f'SELECT {BUCKET} AS "time", decision AS metric, SUM(frames)::float8 AS frames {VERDICTS} {tail}',
                "time_series",
            ),
            unit="short",
            width=8,
            height=8,
        ),
        rows(
            "Classes by camera",
            "Defects of the chosen time range.",
            Sql(
                f"SELECT {CLASS} AS class, camera, SUM(frames)::float8 AS defects {DEFECTS} "
                "GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
            ),
            width=12,
        ),
        rows(
            "Classes by group",
            "Defects of the chosen time range.",
            Sql(
                f'SELECT {CLASS} AS class, group_id AS "group", SUM(frames)::float8 AS defects {DEFECTS} '
                "GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
            ),
            width=12,
        ),
    ):
        board.with_panel(panel)


def _registry(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Registry"))
    for panel in (
        rows(
            "Defect classes",
            "Every class that is not merged away. Members are regions; one frame may hold several.",
            Sql(
                "SELECT c.id AS class, c.name, c.state, c.severity, c.members, "
                'COALESCE(SUM(d.frames), 0)::float8 AS "defects in range", c.born_at AS born, '
                'c.last_seen_at AS "last seen" '
                "FROM classes c LEFT JOIN defect_minutes d ON d.class_id = c.id AND $__timeFilter(d.minute) "
                "AND d.camera IN ($camera) AND d.group_id IN ($group) "
                "WHERE c.state <> 'merged' GROUP BY c.id ORDER BY 6 DESC, c.number"
            ),
            width=14,
            height=11,
        ),
        rows(
            "What happened to classes",
            "The latest changes, by rounds and by people.",
            Sql(
                'SELECT at AS "when", class_id AS class, name, transition, members, merged_into AS "merged into", '
                'parents AS "from", who, why FROM class_events '
                "WHERE transition <> 'grew' AND $__timeFilter(at) ORDER BY at DESC LIMIT 200"
            ),
            width=10,
            height=11,
        ),
        lines(
            "Rounds: classes",
            "How many classes each round of clustering saw, and the range of the proposals that it chose from.",
            Sql(
                'SELECT at AS "time", clusters AS "chosen", clusters_low AS "lowest proposal", '
                'clusters_high AS "highest proposal" FROM rounds WHERE $__timeFilter(at) ORDER BY at',
                "time_series",
            ),
            unit="short",
            width=12,
            steps=True,
        ),
        lines(
            "Rounds: stability and churn",
            "Agreement between clusterings of subsamples (1 is perfect), and the share of members that changed "
            "their class.",
            Sql('SELECT at AS "time", stability, churn FROM rounds WHERE $__timeFilter(at) ORDER BY at', "time_series"),
            unit="percentunit",
            width=12,
        ),
    ):
        board.with_panel(panel)
