"""What Grafana does to a query before it sends it, for the macros and variables that the dashboards use.

PromQL: `$__rate_interval`, `$__interval`, `$__range` become durations. PostgreSQL, after Grafana's documentation of its
data source: `$__timeFilter(column)` becomes `column BETWEEN 'from' AND 'to'`, `$__unixEpochFrom()` and
`$__unixEpochTo()` the range in seconds since 1970; `$__interval_ms` is the interval in milliseconds. Variables become
their values: several values are quoted and separated by commas for PostgreSQL and joined by `|` for Prometheus; the
custom value of "All" is taken as it is. An unknown macro is an error here, so that the tests cannot
pass over what Grafana would send to the server untouched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(frozen=True)
class View:
    """A dashboard's time range in seconds since 1970, and what is chosen: {variable: values, or All's own value}."""

    start: float
    end: float
    interval_s: int = 60
    rate_interval_s: int = 10
    chosen: Mapping[str, str | Sequence[str]] = field(default_factory=dict)

    def promql(self, expr: str) -> str:
        durations = {
            "$__rate_interval": f"{self.rate_interval_s}s",
            "$__interval": f"{self.interval_s}s",
            "$__range": f"{int(self.end - self.start)}s",
        }
        for macro, duration in durations.items():
            expr = expr.replace(macro, duration)
        for name, value in self.chosen.items():
            text = value if isinstance(value, str) else f"({'|'.join(value)})"
            expr = re.sub(rf"\${name}\b", lambda _, text=text: text, expr)
        return _complete(expr)

    def sql(self, sql: str) -> str:
        between = f"BETWEEN '{_stamp(self.start)}' AND '{_stamp(self.end)}'"
        sql = sql.replace("$__interval_ms", f"{1000 * self.interval_s}")
        sql = sql.replace("$__unixEpochFrom()", f"{int(self.start)}").replace("$__unixEpochTo()", f"{int(self.end)}")
        sql = re.sub(r"\$__timeFilter\(([\w.]+)\)", rf"\1 {between}", sql)
        for name, value in self.chosen.items():
            values = value if isinstance(value, str) else ",".join(f"'{item}'" for item in value)
            sql = re.sub(rf"\${name}\b", lambda _, values=values: values, sql)
        return _complete(sql)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _complete(query: str) -> str:
    if "$" in query:
        raise AssertionError(f"nothing replaces {query[query.index('$') :][:40]!r} in {query}")
    return query
