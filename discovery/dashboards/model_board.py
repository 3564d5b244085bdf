"""The board *Model*: does the model still see what it was fitted on, and what would the next one decide?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from discovery.dashboards.boards import board, group_variable
from discovery.dashboards.panels import GREEN, RED, YELLOW, Panel, bars, lines, number, promql, promql_now
from discovery.dashboards.promql import DRIFT, p_value_distance, quantile

UID = "flawline-model"
TITLE = "Model"

GROUP = 'group=~"$group"'
WINDOW = "[$__range]"


def build(station_url: str) -> dashboard.Dashboard:
    """Return the board's builder."""
    head = board(
        UID,
        TITLE,
        "Scores of good parts by group, p-values, drift, and the shadow model beside the active one.",
        begin="now-24h",
        refresh="1m",
        station_url=station_url,
    )
    head.with_variable(group_variable())
    for panel in _glance():
        head.with_panel(panel)
    for name, panels in (("Good parts", _good_parts()), ("Shadow", _shadow())):
        head.with_row(dashboard.Row(name))
        for panel in panels:
            head.with_panel(panel)
    return head


def _glance() -> tuple[Panel, ...]:
    return (
        number(
            "Model",
            "Version of the models in use.",
            promql("max by (role, version) (flawline_model_info == 1)", "{{version}} ({{role}})"),
            show_name=True,
            width=6,
        ),
        number(
            "Alarm rate asked for",
            "Share of good parts that the model may alarm.",
            promql("max(flawline_alarm_rate_target)", "target"),
            unit="percentunit",
            width=6,
        ),
        number(
            "Largest drift",
            "Of all groups: how far the scores of accepted frames have moved, in standard deviations. Half of one is "
            "worth a look.",
            promql(f"max(abs({DRIFT}{{{GROUP}}}))", "drift"),
            width=6,
            limits=((None, GREEN), (0.5, YELLOW), (1, RED)),
        ),
        number(
            "Distance from uniform",
            "Largest difference between the share of p-values below a tenth, two tenths, ..., and that tenth. "
            "Good parts "
            "as the model knows them make it 0; defects and strange parts raise it.",
            promql(p_value_distance(window=WINDOW), "distance"),
            unit="percentunit",
            width=6,
            limits=((None, GREEN), (0.1, YELLOW), (0.25, RED)),
        ),
    )


def _good_parts() -> tuple[Panel, ...]:
    metric = "flawline_accepted_score"
    return (
        lines(
            "Scores of accepted frames, median",
            "By group of look-alike products; 0 is what the model expects. Groups that move together: light or "
            "focus. One "
            "alone: its product.",
            promql(quantile(0.5, metric, "group", GROUP), "group {{group}}"),
            unit="short",
            least=None,
        ),
        lines(
            "Scores of accepted frames, 95 %",
            "Of 20 accepted frames of a group one lies above.",
            promql(quantile(0.95, metric, "group", GROUP), "group {{group}}"),
            unit="short",
            least=None,
        ),
        lines(
            "Drift by group",
            "How far the median of the last hour lies from that of the last week, in the group's own standard "
            "deviations "
            "(effect size). The number of frames does not make it larger. 0.2 is small, 0.5 medium, 0.8 large.",
            promql(f"{DRIFT}{{{GROUP}}}", "group {{group}}"),
            unit="short",
            least=None,
            limits=((None, "transparent"), (0.5, YELLOW)),
        ),
        bars(
            "P-values",
            "Share of the frames with a p-value of at most this. Good parts alone make a straight line to 100 %; what "
            "lies above it on the left are defects, and parts that the model does not know.",
            promql_now(
                f'sum by (le) (increase(flawline_p_value_bucket{{le!="+Inf"}}{WINDOW})) '
                f"/ on () group_left () sum(increase(flawline_p_value_count{WINDOW}))"
            ),
            "le",
            overrides={"Value": {"unit": "percentunit", "max": 1}, "Time": {"custom.hideFrom": {"viz": True}}},
        ),
        lines(
            "Distance from uniform over time",
            "As above, for each moment: a rise without a rise of the alarm rate is a model that knows the parts "
            "less well.",
            promql(p_value_distance(), "distance"),
            unit="percentunit",
            width=12,
            height=9,
        ),
    )


def _shadow() -> tuple[Panel, ...]:
    pairs = f"sum by (active, shadow) (increase(flawline_shadow_decisions_total{WINDOW}))"
    return (
        lines(
            "Decisions that differ",
            "Share of the frames of which the shadow model decides otherwise than the active one. `flawline "
            "models` lists "
            "them.",
            promql(_disagreement(), "differ"),
            unit="percentunit",
        ),
        bars(
            "Both decisions",
            "Frames that both models have scored, in the chosen time range, by the active and the shadow decision.",
            promql_now(f'label_join({pairs}, "both", " to ", "active", "shadow")'),
            "both",
            width=8,
            height=8,
        ),
        lines(
            "Frames for the shadow",
            "What became of them. `over-share` are those for which worker.shadow_share had no room: the others are a "
            "sample.",
            promql("sum by (outcome) (rate(flawline_shadow_frames_total[$__rate_interval]))", "{{outcome}}"),
            unit="cps",
        ),
    )


def _disagreement() -> str:
    """Return the share of frames with two different decisions; PromQL compares no two labels, so each pair is named."""
    total = "sum(increase(flawline_shadow_decisions_total[1h]))"
    same = " or ".join(
        f'label_replace(sum(increase(flawline_shadow_decisions_total{{active="{name}", shadow="{name}"}}[1h])), '
        f'"decision", "{name}", "", "")'
        for name in ("accept", "review", "reject", "unknown-product")
    )
    return f"1 - sum({same}) / ({total} > 0)"
