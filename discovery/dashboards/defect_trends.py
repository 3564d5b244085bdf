"""The board *Defect trends*: which kinds of defect there are, how many, where, and since when."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from discovery.dashboards.boards import ANY_CLASS, board, class_variable, store_variables
from discovery.dashboards.panels import DECISION_COLOURS, Panel, Sql, bars, bars_over_time, lines, number, rows
from discovery.dashboards.quality import frame_links
from discovery.dashboards.sql import CHOSEN, CLASS, DEFECTS, GROUP, LOT, NAMED, SHARE, SHIFT, VERDICTS, bucket

UID = "flawline-defect-trends"
TITLE = "Defect trends"

TOP = 10
"""Classes with a line of their own; the others are one, since nobody reads a legend of 40."""
BUCKET = bucket()
OF_CLASS = f"{DEFECTS} AND {ANY_CLASS} IN ($class)"
TAIL = "GROUP BY 1, 2 ORDER BY 1, 2"


def build(station_url: str) -> dashboard.Dashboard:
    """Return the board's builder."""
    head = board(
        UID,
        TITLE,
        "Defect classes over time, found without labels; a class keeps its id. Counts are frames.",
        begin="now-24h",
        refresh="1m",
        station_url=station_url,
    )
    for variable in (*store_variables(), class_variable()):
        head.with_variable(variable)
    for panel in _glance():
        head.with_panel(panel)
    for name, panels in (("Classes", _classes()), ("Where", _places()), ("Registry", _registry())):
        head.with_row(dashboard.Row(name))
        for panel in panels:
            head.with_panel(panel)
    return head


def class_links() -> list[dict[str, object]]:
    """Return the links from a class's id to its page at the station, with its pictures."""
    url = "${station}/classes/${__value.raw}"
    return [{"title": "Pictures at the station", "url": url, "targetBlank": True}]


def _glance() -> tuple[Panel, ...]:
    return (
        number(
            "Inspected",
            "Frames with a verdict.",
            Sql(f"SELECT COALESCE(SUM(frames), 0)::float8 AS frames {VERDICTS}"),
            unit="short",
            width=4,
        ),
        number(
            "Not accepted",
            "Frames that were not accepted: review, reject or unknown product. Those of dismissed classes count.",
            Sql(f"SELECT COALESCE(SUM(frames) FILTER (WHERE decision <> 'accept'), 0)::float8 AS frames {VERDICTS}"),
            unit="short",
            width=4,
        ),
        number(
            "Alarm rate",
            "Share of the inspected frames that were not accepted.",
            Sql(f"SELECT {SHARE} AS share {VERDICTS}"),
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
    )


def _classes() -> tuple[Panel, ...]:
    ranked = (
        f"WITH counts AS (SELECT {BUCKET} AS at, {CLASS} AS class, SUM(frames) AS frames {OF_CLASS} GROUP BY 1, 2), "
        f"top AS (SELECT class FROM counts GROUP BY class ORDER BY SUM(frames) DESC, class LIMIT {TOP}) "
    )
    return (
        bars_over_time(
            "Defects by class",
            f"Frames by the class of their defect and by the time of their capture: the {TOP} most frequent "
            "classes, the "
            "others together. A class that is found later is shown in the past as well. Orange marks: a class "
            "was born.",
            Sql(
                f'{ranked}SELECT at AS "time", CASE WHEN class IN (SELECT class FROM top) THEN class ELSE '
                "'others' END "
                f"AS metric, SUM(frames)::float8 AS defects FROM counts {TAIL}",
                "time_series",
            ),
            unit="short",
            width=14,
            height=10,
        ),
        bars(
            "Pareto",
            "The classes with the most frames, and the share that they make up together.",
            Sql(
                f"WITH counts AS (SELECT {CLASS} AS class, SUM(frames)::float8 AS defects {OF_CLASS} GROUP BY 1) "
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
                    "custom.lineWidth": 2,
                    "custom.fillOpacity": 0,
                    "color": {"mode": "fixed", "fixedColor": "text"},
                }
            },
        ),
    )


def _places() -> tuple[Panel, ...]:
    return (
        lines(
            "Alarm rate by camera",
            "Share of each camera's frames that were not accepted. One camera that leaves the others behind has a "
            "problem of its own: light, focus, dirt.",
            Sql(f'SELECT {BUCKET} AS "time", camera AS metric, {SHARE} AS share {VERDICTS} {TAIL}', "time_series"),
            unit="percentunit",
        ),
        lines(
            "Alarm rate by group",
            "The same by group of look-alike products.",
            Sql(
                f"WITH counts AS (SELECT {BUCKET} AS at, group_id, model_version, decision, SUM(frames) AS frames "
                f'{VERDICTS} GROUP BY 1, 2, 3, 4) SELECT at AS "time", {GROUP} AS metric, {SHARE} AS share '
                f"FROM counts {NAMED} {TAIL}",
                "time_series",
            ),
            unit="percentunit",
        ),
        bars_over_time(
            "Decisions",
            "Inspected frames by decision.",
            Sql(
                f'SELECT {BUCKET} AS "time", decision AS metric, SUM(frames)::float8 AS frames {VERDICTS} {TAIL}',
                "time_series",
            ),
            unit="short",
            width=8,
            height=8,
            colours=DECISION_COLOURS,
        ),
        rows(
            "Classes by camera",
            "Defects of the chosen time range. A class on one camera only is often dirt or light.",
            Sql(
                f"SELECT {CLASS} AS class, camera, SUM(frames)::float8 AS defects {OF_CLASS} "
                "GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
            ),
            width=8,
            overrides={"defects": _bar_cell()},
        ),
        rows(
            "Classes by group",
            "Defects of the chosen time range. A class in one group only comes with the product.",
            Sql(
                f'SELECT {CLASS} AS class, {GROUP} AS "group", SUM(frames)::float8 AS defects '
                "FROM (SELECT class_id, class_name, group_id, model_version, SUM(frames) AS frames "
                f"{OF_CLASS} GROUP BY 1, 2, 3, 4) d {NAMED} GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
            ),
            width=8,
            overrides={"defects": _bar_cell()},
        ),
        rows(
            "Lots",
            "Inspected frames and alarm rate by lot, the worst first. One lot that leaves the others behind is a "
            "delivery.",
            Sql(
                f'SELECT {LOT} AS lot, SUM(frames)::float8 AS inspected, {SHARE} AS "alarm rate" {VERDICTS} '
                "GROUP BY 1 ORDER BY 3 DESC, 2 DESC LIMIT 100"
            ),
            width=8,
            overrides={"alarm rate": {"unit": "percentunit"}},
        ),
        rows(
            "Shifts",
            "Inspected frames and alarm rate by shift, the latest first.",
            Sql(
                f"SELECT shift_day AS day, {SHIFT} AS shift, SUM(frames)::float8 AS inspected, "
                f'{SHARE} AS "alarm rate" {VERDICTS} GROUP BY 1, 2 ORDER BY 1 DESC, 2 LIMIT 100'
            ),
            width=8,
            overrides={"alarm rate": {"unit": "percentunit"}},
        ),
        rows(
            "Classes by lot and shift",
            "Defects of the chosen time range.",
            Sql(
                f"SELECT {CLASS} AS class, {LOT} AS lot, {SHIFT} AS shift, SUM(frames)::float8 AS defects {OF_CLASS} "
                "GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT 200"
            ),
            width=8,
            overrides={"defects": _bar_cell()},
        ),
        rows(
            "Latest defects",
            "A click opens the frame with its picture at the station.",
            Sql(
                "SELECT d.captured_at AS at, d.frame_id AS frame, COALESCE(c.name, d.class_id) AS class, "
                "d.decision, d.score "
                "FROM (SELECT captured_at, frame_id, class_id, decision, score FROM defects "
                f"WHERE $__timeFilter(minute) AND {CHOSEN} AND {ANY_CLASS} IN ($class) ORDER BY minute DESC LIMIT "
                "50) d "
                "LEFT JOIN classes c ON c.id = d.class_id ORDER BY d.captured_at DESC"
            ),
            width=8,
            overrides={"frame": {"links": frame_links()}},
        ),
    )


def _bar_cell() -> dict[str, object]:
    return {"custom.cellOptions": {"type": "gauge", "mode": "basic"}, "min": 0}


def _registry() -> tuple[Panel, ...]:
    return (
        rows(
            "Defect classes",
            "Every class that is not merged away, with when it was first and last seen; a click on its id opens "
            "its pictures "
            "at the station. Members are regions; one frame may hold several.",
            Sql(
                "WITH seen AS (SELECT class_id, SUM(frames) AS frames FROM defect_minutes WHERE $__timeFilter(minute) "
                f"AND {CHOSEN} GROUP BY class_id) "
                "SELECT c.id AS class, c.name, c.state, c.severity, c.members, "
                'COALESCE(seen.frames, 0)::float8 AS "defects in range", c.born_at AS "first seen", '
                'c.last_seen_at AS "last seen" '
                "FROM classes c LEFT JOIN seen ON seen.class_id = c.id "
                "WHERE c.state <> 'merged' ORDER BY 6 DESC, c.number"
            ),
            width=14,
            height=11,
            overrides={"class": {"links": class_links()}},
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
            overrides={"class": {"links": class_links()}},
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
    )
