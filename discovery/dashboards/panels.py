"""The few kinds of panel, query and annotation that the dashboards are made of, on Grafana's typed builders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import (
    barchart,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog import builder as cog
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PROMETHEUS: Any = model.DataSourceRef(type_val="prometheus", uid="flawline-prometheus")
POSTGRESQL: Any = model.DataSourceRef(type_val="grafana-postgresql-datasource", uid="flawline-postgresql")

GRID_WIDTH = 24
STORE_INTERVAL = "1m"  # the store's roll-ups are by minute: shorter buckets would be a comb of bars and holes
Panel = cog.Builder[model.Panel]
Query = cog.Builder[variants.Dataquery]
GREEN, YELLOW, RED = "green", "yellow", "red"
ALARM_COLOURS = {"target": "#8ab4ff", "upper bound": "#ff9488", "alarm rate": "text"}
DECISION_COLOURS = {"accept": "#9fe0c3", "review": "#e9b44c", "reject": "#d42a23", "unknown-product": "#b9a2f2"}
"""The station's colours on a dark ground. Accept and reject differ in lightness, so that they can be told apart without
colour vision, and in print."""

_SELECTOR = re.compile(r"\b((?:flawline[_:][\w:]+|up)\b)(?:\{([^}]*)\})?")

Thresholds = Sequence[tuple[float | None, str]]
"""(from this value on, colour); the first value is None, for everything below the second."""


class SqlQuery(variants.Dataquery):
    """A PostgreSQL query as its Grafana plug-in stores it; the SDK has no type for it."""

    def __init__(self, sql: str, shape: str, ref_id: str = "A") -> None:
        self.sql, self.shape, self.ref_id = sql, shape, ref_id

    def to_json(self) -> dict[str, object]:
        return {
            "datasource": POSTGRESQL,
            "editorMode": "code",
            "format": self.shape,
            "rawQuery": True,
            "rawSql": self.sql,
            "refId": self.ref_id,
        }


class Sql(cog.Builder[SqlQuery]):
    """Builds a SqlQuery; `shape` is `time_series` (columns time, metric, value) or `table`."""

    def __init__(self, sql: str, shape: str = "table") -> None:
        self._query = SqlQuery(sql, shape)

    def ref_id(self, ref_id: str) -> Sql:
        self._query.ref_id = ref_id
        return self

    def build(self) -> SqlQuery:
        return self._query


class Annotation(cog.Builder[model.AnnotationQuery]):
    """Marks on the time axis, from any data source; `extra` holds what the SDK's model has no field for."""

    def __init__(self, name: str, source: model.DataSourceRef, color: str, **extra: Any) -> None:
        class Extended(model.AnnotationQuery):
            def to_json(self) -> dict[str, object]:
                return super().to_json() | extra

        self._annotation = Extended(name=name, datasource=source, enable=True, icon_color=color)

    def build(self) -> model.AnnotationQuery:
        return self._annotation


def sql_annotation(name: str, color: str, sql: str) -> Annotation:
    """Return annotations from rows of (time, title, text, tags)."""
    return Annotation(name, POSTGRESQL, color, target=SqlQuery(sql, "table", "Anno"))


def promql_annotation(name: str, color: str, expr: str, title: str, text: str) -> Annotation:
    """Return annotations at the times when a series exists; Grafana asks once a minute."""
    target = {"expr": of_line(expr), "interval": "60s", "refId": "Anno"}
    return Annotation(name, PROMETHEUS, color, target=target, step="60s", titleFormat=title, textFormat=text)


def of_line(expr: str) -> str:
    """Return a query that is limited to the chosen lines: each selector gets the label that Prometheus gives a line."""

    def limited(match: re.Match[str]) -> str:
        matchers = ['line=~"$line"', *([match[2]] if match[2] else [])]
        return f"{match[1]}{{{', '.join(matchers)}}}"

    return _SELECTOR.sub(limited, expr)


def promql(expr: str, legend: str = "") -> prometheus.Dataquery:
    """Return a range query about the chosen lines."""
    query = prometheus.Dataquery().datasource(PROMETHEUS).expr(of_line(expr))
    return query.legend_format(legend or "__auto").range()


def promql_now(expr: str, legend: str = "") -> prometheus.Dataquery:
    """Return an instant query: one row per series, at the end of the dashboard's time range."""
    query = prometheus.Dataquery().datasource(PROMETHEUS).expr(of_line(expr)).legend_format(legend or "__auto")
    return query.instant().format(PromQueryFormat.TABLE if not legend else PromQueryFormat.TIME_SERIES)


def thresholds(steps: Thresholds) -> dashboard.ThresholdsConfig:
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps([model.Threshold(*s) for s in steps])


def names(values: dict[int, tuple[str, str]]) -> list[model.ValueMapping]:
    """Return mappings that show words and colours instead of numbers: {value: (text, colour)}."""
    results = {str(value): model.ValueMappingResult(text=text, color=color) for value, (text, color) in values.items()}
    return [model.ValueMap(options=results)]


def _placed(panel: Any, title: str, text: str, queries: Sequence[Query], width: int, height: int) -> Any:
    """Set title, text, size and queries, which all panels have.

    A panel with queries of both sources would need the `mixed` source; no panel has both.
    """
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        query.ref_id(letter)  # type: ignore[attr-defined]
        panel.with_target(query)
    source = PROMETHEUS
    if isinstance(queries[0], Sql):
        source = POSTGRESQL
        panel.interval(STORE_INTERVAL)
    return panel.title(title).description(text).datasource(source).span(width).height(height)


def lines(
    title: str,
    text: str,
    *queries: Query,
    unit: str,
    width: int = 8,
    height: int = 8,
    stacked: bool = False,
    steps: bool = False,
    least: float | None = 0,
    colours: Mapping[str, str] = {},
    limits: Thresholds = (),
) -> Panel:
    """Return a panel of values over time, from `least` on; `colours` are of series, `limits` are drawn as lines."""
    panel = _placed(timeseries.Panel(), title, text, queries, width, height)
    if least is not None:
        panel.min(least)
    if limits:
        panel.thresholds(thresholds(limits))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(look.GraphThresholdsStyleMode.DASHED))
    for series, colour in colours.items():
        panel.override_by_name(series, [_colour(colour)])
    panel.unit(unit).fill_opacity(60 if stacked else 8).line_width(1).show_points(look.VisibilityMode.NEVER)
    panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(look.LegendDisplayMode.LIST)
        .placement(look.LegendPlacement.BOTTOM)
    )
    panel.tooltip(common.VizTooltipOptions().mode(look.TooltipDisplayMode.MULTI).sort(look.SortOrder.DESCENDING))
    if stacked:
        panel.stacking(common.StackingConfig().mode(look.StackingMode.NORMAL).group("A"))
    if steps:
        panel.line_interpolation(look.LineInterpolation.STEP_AFTER)
    return panel


def _colour(colour: str) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})


def bars_over_time(
    title: str,
    text: str,
    *queries: Query,
    unit: str,
    width: int = 12,
    height: int = 9,
    colours: Mapping[str, str] = {},
) -> Panel:
    """Return a panel of counts per time bucket, stacked."""
    panel = lines(title, text, *queries, unit=unit, width=width, height=height, stacked=True, colours=colours)
    return panel.draw_style(look.GraphDrawStyle.BARS).fill_opacity(80)  # type: ignore[attr-defined]


def number(
    title: str,
    text: str,
    *queries: Query,
    unit: str = "none",
    width: int = 3,
    height: int = 4,
    limits: Thresholds = ((None, "text"),),
    mappings: Sequence[model.ValueMapping] = (),
    show_name: bool = False,
) -> Panel:
    """Return a panel of one number, or with `show_name` the name of its series."""
    panel = _placed(stat.Panel(), title, text, queries, width, height)
    panel.unit(unit).thresholds(thresholds(limits)).mappings(list(mappings)).graph_mode(look.BigValueGraphMode.NONE)
    panel.color_mode(look.BigValueColorMode.VALUE)
    panel.text_mode(look.BigValueTextMode.NAME if show_name else look.BigValueTextMode.VALUE)
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))


def states(
    title: str, text: str, *queries: Query, mappings: Sequence[model.ValueMapping], width: int, height: int
) -> Panel:
    """Return a panel with one coloured band per series."""
    panel = _placed(statetimeline.Panel(), title, text, queries, width, height)
    return panel.mappings(list(mappings)).show_value(look.VisibilityMode.NEVER).row_height(0.8)


def bars(
    title: str,
    text: str,
    query: Query,
    x: str,
    *,
    width: int = 12,
    height: int = 9,
    overrides: dict[str, dict[str, Any]] | None = None,
) -> Panel:
    """Return a panel of bars by category. `overrides` sets properties of columns: {column: {property: value}}."""
    panel = _placed(barchart.Panel(), title, text, [query], width, height)
    panel.x_field(x).unit("short").min(0).legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(look.LegendDisplayMode.LIST)
        .placement(look.LegendPlacement.BOTTOM)
    )
    return _with_overrides(panel, overrides)


def rows(
    title: str,
    text: str,
    query: Query,
    *,
    width: int = 24,
    height: int = 9,
    overrides: dict[str, dict[str, Any]] | None = None,
) -> Panel:
    """Return a panel with a table; `overrides` sets properties of columns, such as `links`."""
    return _with_overrides(_placed(table.Panel(), title, text, [query], width, height), overrides)


def _with_overrides(panel: Any, overrides: dict[str, dict[str, Any]] | None) -> Any:
    for column, properties in (overrides or {}).items():
        panel.override_by_name(
            column, [model.DynamicConfigValue(id_val=key, value=value) for key, value in properties.items()]
        )
    return panel
