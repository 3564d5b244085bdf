"""What the queries of Prometheus have in common: shares, quantiles, drift."""

from __future__ import annotations

RATE = "[$__rate_interval]"


def quantile(q: float, metric: str, by: str = "", where: str = "", window: str = RATE) -> str:
    """Return the query of a quantile of a histogram over a window, in its unit."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{where}}}{window})))"


def alarm_rate(by: str, window: str, where: str = "") -> str:
    """Return the share of verdicts that are no `accept`; 0 and not absent while there are verdicts and no alarm."""
    comma = ", " if where else ""
    over = f"sum {by} (increase(flawline_verdicts_total{{{where}}}{window}))"
    alarms = f'sum {by} (increase(flawline_verdicts_total{{{where}{comma}decision!="accept"}}{window}))'
    return f"({alarms} or 0 * {over}) / ({over} > 0)"


RECORD_INTERVAL_S = 60
VERDICT_RATES = "flawline:verdicts:rate5m"
FRAMES_OF_HOUR = "flawline:verdicts:hour"
ALARM_RATE_OF_HOUR, ALARM_RATE_OF_WEEK = "flawline:alarm_rate:hour", "flawline:alarm_rate:week"
SCORE_RATES = "flawline:accepted_scores:rate5m"
SCORES_OF_HOUR = "flawline:accepted_scores:hour"
DRIFT = "flawline:score_drift:effect"
"""What Prometheus records once a minute: windows of a week over raw samples would take it seconds at each look."""


def recorded() -> dict[str, str]:
    """Return the recorded series by name, in the order in which they need each other."""
    return {
        VERDICT_RATES: "sum by (line, camera, decision) (rate(flawline_verdicts_total[5m]))",
        FRAMES_OF_HOUR: f"sum by (line, camera) (sum_over_time({VERDICT_RATES}[1h])) * {RECORD_INTERVAL_S}",
        ALARM_RATE_OF_HOUR: _share_over("[1h]"),
        ALARM_RATE_OF_WEEK: _share_over("[7d]"),
        SCORE_RATES: "sum by (line, model, group, le) (rate(flawline_accepted_score_bucket[5m]))",
        SCORES_OF_HOUR: (
            f'sum by (line, model, group) (sum_over_time({SCORE_RATES}{{le="+Inf"}}[1h])) * {RECORD_INTERVAL_S}'
        ),
        DRIFT: _effect_size("[1h]", "[7d]"),
    }


def _effect_size(now: str, reference: str) -> str:
    """Return how far the scores of accepted frames have moved, by group and model, in their own standard deviations.

    (median now - median of the reference) / (half the distance between the reference's 16 % and 84 % quantiles), which
    is Cohen's d (1988) with robust estimates. The sum of a histogram with negative scores is no counter, so no mean.
    """

    def of(q: float, window: str) -> str:
        return f"histogram_quantile({q}, sum by (le, line, model, group) (sum_over_time({SCORE_RATES}{window})))"

    spread = f"({of(0.84, reference)} - {of(0.16, reference)}) / 2"
    return f"({of(0.5, now)} - {of(0.5, reference)}) / ({spread} > 0)"


def _share_over(window: str) -> str:
    """Return the share of verdicts by camera that are no `accept`, over a long window."""
    frames = f"sum by (line, camera) (sum_over_time({VERDICT_RATES}{window}))"
    alarms = f'sum by (line, camera) (sum_over_time({VERDICT_RATES}{{decision!="accept"}}{window}))'
    return f"({alarms} or 0 * {frames}) / ({frames} > 0)"


P_VALUE_STEPS = tuple(tenth / 10 for tenth in range(1, 10))


def p_value_distance(where: str = "", window: str = RATE) -> str:
    """Return Kolmogorov's distance of the p-values' distribution from the uniform one, at tenths."""
    whole = f"sum(rate(flawline_p_value_count{{{where}}}{window}))"
    comma = ", " if where else ""
    buckets = (f'sum(rate(flawline_p_value_bucket{{{where}{comma}le="{step}"}}{window}))' for step in P_VALUE_STEPS)
    distances = (
        f'label_replace(abs({bucket} / {whole} - {step}), "at", "{step}", "", "")'
        for bucket, step in zip(buckets, P_VALUE_STEPS, strict=True)
    )
    return f"max({' or '.join(distances)})"
