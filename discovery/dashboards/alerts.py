"""The alerts as code: rules for Prometheus, whose alerts go to Alertmanager, and the same ones for Grafana.

What must wake somebody (critical), what somebody should look at today (warning), and what is news (info). Every alert
says what is wrong, how it is known, and where to look; `docs/alerts.md` has more of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from discovery.dashboards.panels import PROMETHEUS
from discovery.dashboards.promql import (
    ALARM_RATE_OF_HOUR,
    ALARM_RATE_OF_WEEK,
    DRIFT,
    FRAMES_OF_HOUR,
    RECORD_INTERVAL_S,
    SCORES_OF_HOUR,
    recorded,
)

CRITICAL, WARNING, INFO = "critical", "warning", "info"

GROUP: Final = "flawline"
UID_PREFIX: Final = "flawline-"
RUNBOOK: Final = "docs/alerts.md"
_LOOKBACK_S: Final = 600


@dataclass(frozen=True)
class Alert:
    """An alert. `expr` returns a series for each thing that is wrong, and nothing when all is well.

    In the texts, `$value` is the value of the series. `lasting` is how long it must be so before the alert sounds.
    """

    name: str
    expr: str
    summary: str
    description: str
    severity: str = WARNING
    lasting: str = "0s"

    @property
    def annotations(self) -> dict[str, str]:
        """What people read."""
        return {"summary": self.summary, "description": self.description, "runbook": f"{RUNBOOK}#{self.name.lower()}"}


_SIGMA = f"sqrt({ALARM_RATE_OF_WEEK} * (1 - {ALARM_RATE_OF_WEEK}) / {FRAMES_OF_HOUR})"

ALERTS: Final = (
    Alert(
        "FlawlineGaps",
        'sum by (camera) (flawline_ledger_frames{outcome="gap"}) > 0',
        "{{ $value }} captures of {{ $labels.camera }} are unaccounted for",
        "Sequence numbers are missing and nobody explained them. `flawline ledger` names them.",
        severity=CRITICAL,
        lasting="1m",
    ),
    # Half an hour to act; a judgement, not measured.
    Alert(
        "FlawlineFramesExpireSoon",
        "min by (partition) (flawline_unread_frames_expire_seconds) < 1800",
        "Frames of partition {{ $labels.partition }} are deleted in {{ $value | humanizeDuration }}, unread",
        "The workers are too far behind: start them, raise worker.actors, or raise the retention of frames.",
        severity=CRITICAL,
        lasting="1m",
    ),
    Alert(
        "FlawlineFramesExpired",
        'sum by (camera) (delta(flawline_ledger_frames{outcome="dropped",reason="expired"}[10m])) > 0',
        "Frames of {{ $labels.camera }} were deleted before a worker read them",
        "They have no verdict and get none. The workers were too far behind; `flawline ledger` counts them.",
        severity=CRITICAL,
    ),
    # Every role serves this gauge, 0 where it is not its own: what counts is what the ledger says.
    Alert(
        "FlawlineLedgerNotBalanced",
        "min(flawline_ledger_balanced and on (job, instance) flawline_ledger_frames) < 1",
        "The ledger does not balance",
        "Captured is not scored + dropped + dead-lettered + gaps. See `flawline ledger`.",
        severity=CRITICAL,
        lasting="2m",
    ),
    Alert(
        "FlawlineLagging",
        "max by (partition) (flawline_lag_seconds) > 30",
        "Verdicts of partition {{ $labels.partition }} are {{ $value | humanizeDuration }} behind",
        "The workers are slower than the cameras: raise worker.actors, or see the stages on Line overview.",
        lasting="1m",
    ),
    # Longer than an outage that clients ride out alone. The workers replace their client by themselves after 60 s.
    Alert(
        "FlawlineUnacknowledged",
        "max(flawline_unacknowledged_seconds) > 30",
        "The broker has not answered an actor for {{ $value | humanizeDuration }}",
        "Frames are scored and their verdicts do not arrive. See the broker, and the workers' log.",
        severity=CRITICAL,
    ),
    Alert(
        "FlawlinePaused",
        "max(flawline_paused_seconds) > 120",
        "An actor has taken no frames for {{ $value | humanizeDuration }}",
        "What it holds does not leave: the broker, the object store or one frame holds it up. See the workers' log.",
        severity=CRITICAL,
    ),
    Alert(
        "FlawlineCameraAway",
        "flawline_camera_up == 0",
        "Camera {{ $labels.camera }} is away or stalled",
        "It delivers no frames. The producers keep trying; see their log for the cause.",
        severity=CRITICAL,
        lasting="15s",
    ),
    # The second half sees a series that has just appeared: its first increment is invisible to increase().
    Alert(
        "FlawlineDropping",
        'sum by (camera, reason) (increase(flawline_dropped_frames_total{reason!="stopped"}[5m])) > 0 or sum '
        'by (camera, reason) (flawline_dropped_frames_total{reason!="stopped"} > 0 unless '
        'flawline_dropped_frames_total{reason!="stopped"} offset 5m)',
        "Camera {{ $labels.camera }} loses frames: {{ $labels.reason }}",
        "Captures are dropped before they reach the broker.",
    ),
    Alert(
        "FlawlineDeadLetters",
        "sum by (camera, reason) (increase(flawline_dead_letters_total[5m])) > 0 or sum by (camera, reason) "
        "(flawline_dead_letters_total > 0 unless flawline_dead_letters_total offset 5m)",
        "Frames of {{ $labels.camera }} have no verdict: {{ $labels.reason }}",
        "They lie in the topic dead-letters with the error; `flawline replay` sends them again.",
    ),
    Alert(
        "FlawlineNoVerdicts",
        "sum(rate(flawline_published_frames_total[1m])) > 0 unless sum(rate(flawline_verdicts_total[1m])) > 0",
        "Frames arrive and no verdict leaves",
        "The workers are down or stuck; see their log and the panel Actors.",
        severity=CRITICAL,
        lasting="1m",
    ),
    Alert(
        "FlawlineModelNotLoaded",
        "increase(flawline_model_load_failures_total[10m]) > 0",
        "A published model could not be loaded",
        "The workers go on with the previous one; their log names the reason.",
    ),
    Alert(
        "FlawlineObjectStoreAway",
        "max by (job) (flawline_object_store_away) > 0",
        "{{ $labels.job }} cannot use the object store",
        "Large frames wait, none is lost while the spool has room. Mount or start the store; the log names the reason.",
        severity=CRITICAL,
        lasting="30s",
    ),
    Alert(
        "FlawlineModelProblem",
        "max by (role) (flawline_model_problem) == 1",
        "The {{ $labels.role }} model cannot be used",
        "Active: frames are scored with the last good model, or with none. The workers' log names the reason; "
        "publish a model that works.",
        lasting="1m",
    ),
    Alert(
        "FlawlineRoleDown",
        'up{job=~"producers|workers|discovery|ledger"} == 0',
        "{{ $labels.job }} does not answer Prometheus",
        "The role is down or hangs: `docker compose ps`, then its log.",
        severity=CRITICAL,
        lasting="30s",
    ),
    # Of `flawline up`. A role that died once is well again after a minute; one that dies now and then is caught by the
    # second half.
    Alert(
        "FlawlineRoleFailing",
        "max by (role) (flawline_role_failing_seconds) > 120 or max by (role) "
        "(increase(flawline_role_restarts_total[30m])) > 5",
        "The role {{ $labels.role }} dies again and again",
        "It is started again with growing pauses, the others go on. See what `flawline up` reports about it.",
        severity=CRITICAL,
    ),
    Alert(
        "FlawlineStoreAway",
        "flawline_store_away_seconds > 60",
        "Discovery has not reached its store for {{ $value | humanizeDuration }}",
        "Verdicts go on, and defects wait in Kafka for as long as it keeps them. See that the database runs "
        "and has room.",
    ),
    Alert(
        "FlawlineBrokerAway",
        "max by (job) (flawline_broker_wait_seconds) > 60",
        "{{ $labels.job }} has waited for the broker for {{ $value | humanizeDuration }}",
        "The role cannot begin its work. Frames wait on the producers' disk or in Kafka. See that the broker "
        "runs; the role's log names the reason.",
        severity=CRITICAL,
    ),
    Alert(
        "FlawlinePicturesLost",
        "sum by (reason) (increase(flawline_lost_frames_total[30m])) > 10 or sum by (reason) "
        "(flawline_lost_frames_total > 10 unless flawline_lost_frames_total offset 30m)",
        "{{ $value | humanize }} frames that people should judge have no picture ({{ $labels.reason }})",
        "Their verdicts stand. backlog, expired: the picture store is away or too slow; no-object, damaged: "
        "the frame itself cannot be had.",
    ),
    # Retention makes room within seconds (Kafka, pictures) or minutes (objects), where it may.
    Alert(
        "FlawlineDiskShort",
        "max by (job, disk) (flawline_disk_short) > 0",
        "The disk of the {{ $labels.disk }} stays nearly full",
        "Less than retention.min_free_bytes is free, and nothing more may go before its time. See what else "
        "fills it, or lower the limits in [retention].",
        severity=CRITICAL,
        lasting="15m",
    ),
    # The p-chart of the last hour against the last week, with limits of three sigma, widened by half of the rate: parts
    # of one lot are alike, so hours differ more than the binomial says. A judgement, not measured.
    Alert(
        "FlawlineAlarmRate",
        f"({ALARM_RATE_OF_HOUR} > 1.5 * {ALARM_RATE_OF_WEEK} + 3 * {_SIGMA} "
        f"or {ALARM_RATE_OF_HOUR} < 0.5 * {ALARM_RATE_OF_WEEK} - 3 * {_SIGMA}) and {FRAMES_OF_HOUR} > 200",
        "{{ $value | humanizePercentage }} of the frames of {{ $labels.camera }} were not accepted in the last hour",
        "That is not what the last week lets expect. Light, focus, a bad lot, or a part that the model does not "
        "know: see "
        "Defect trends and Model.",
        lasting="10m",
    ),
    Alert(
        "FlawlineNewClass",
        'sum(increase(flawline_class_events_total{transition="confirmed"}[15m])) > 0',
        "A new kind of defect is confirmed",
        "Frames of it look alike and like nothing known before. Name it on the station's page of classes.",
        severity=INFO,
    ),
    Alert(
        "FlawlineCameraNeverSeen",
        "max by (camera) (flawline_configured_camera) unless on (camera) sum by (camera) (flawline_ledger_frames) > 0",
        "Camera {{ $labels.camera }} is configured and has never delivered a frame",
        "Its producer does not run, or it cannot open the camera: see the producers' log, and `flawline doctor`.",
        severity=CRITICAL,
        lasting="5m",
    ),
    # While the others go on, and the camera answers: a trigger that does not come, or a part that never arrives.
    Alert(
        "FlawlineCameraSilent",
        "max by (camera) (flawline_camera_up) == 1 "
        "unless on (camera) sum by (camera) (rate(flawline_captured_frames_total[5m])) > 0 "
        "and on () sum(rate(flawline_captured_frames_total[5m])) > 0",
        "Camera {{ $labels.camera }} is connected and has delivered nothing for 5 minutes",
        "Other cameras deliver. See its trigger and the parts in front of it.",
        lasting="1m",
    ),
    Alert(
        "FlawlineTaktMissed",
        "sum by (camera) (rate(flawline_late_verdicts_total[5m])) / sum by (camera) "
        "(rate(flawline_verdicts_total[5m])) "
        "> 0.01",
        "{{ $value | humanizePercentage }} of the verdicts of {{ $labels.camera }} come after worker.takt_s",
        "Such a part has left before its verdict is there. See the stages on Line overview; raise worker.actors.",
        lasting="2m",
    ),
    Alert(
        "FlawlineSceneChanged",
        'sum by (camera, scene) (rate(flawline_scene_frames_total{scene!="as-learnt"}[5m])) '
        "/ on (camera) group_left () sum by (camera) (rate(flawline_scene_frames_total[5m])) > 0.5",
        "{{ $labels.camera }}: {{ $labels.scene }}",
        "Half of its last frames are unlike what the model has learnt, and not by defects. camera-changed: light, "
        "lens, place. product-changed: a product that is not learnt.",
        lasting="1m",
    ),
    # Half a standard deviation is a medium effect (Cohen 1988). A judgement, not measured.
    Alert(
        "FlawlineDrift",
        f"abs({DRIFT}) > 0.5 and {SCORES_OF_HOUR} > 200",
        "The scores of good parts of group {{ $labels.group }} have moved by {{ $value | humanize }} deviations",
        "Accepted parts look otherwise than in the last week: light, focus, a new supplier. See Model and "
        "Cameras; then "
        "`flawline extend`, or fit anew.",
        lasting="30m",
    ),
    Alert(
        "FlawlineDiskFilling",
        "predict_linear(flawline_disk_free_bytes[6h], 86400) < 0",
        "The disk of the {{ $labels.disk }} of {{ $labels.job }} is full within a day, if it goes on so",
        "See what fills it on Operations; lower the limits in [retention], or make room.",
        lasting="1h",
    ),
    Alert(
        "FlawlineSpooling",
        "max by (camera) (flawline_spool_oldest_age_seconds) > 120",
        "Frames of {{ $labels.camera }} have waited on the producer's disk for {{ $value | humanizeDuration }}",
        "The broker takes them not, or too slowly. Nothing is lost until producer.spool_limit_bytes is reached.",
        lasting="1m",
    ),
    # A minute of a fast line. A judgement, not measured.
    Alert(
        "FlawlineDiscoveryBehind",
        "max by (topic) (flawline_discovery_lag_records) > 5000",
        "Discovery has {{ $value }} records of the topic {{ $labels.topic }} to read",
        "Verdicts go on; classes and dashboards are late. See that discovery runs and that the store is quick.",
        lasting="10m",
    ),
    Alert(
        "FlawlineActorRestarts",
        "sum(increase(flawline_actor_restarts_total[30m])) > 3",
        "Actors died and were started again {{ $value | humanize }} times within half an hour",
        "Their cameras stand still meanwhile. See the workers' log: memory, GPU, or a frame that kills them.",
    ),
    # As long as a restart of a machine takes. A judgement, not measured.
    Alert(
        "FlawlineReceiverAway",
        "max by (receiver) (flawline_outbound_failing_seconds) > 900",
        "The receiver {{ $labels.receiver }} has not taken events for {{ $value | humanizeDuration }}",
        "The line does not wait for it, and tells it what is not too old when it is back. The log of `flawline notify` "
        "names the reason.",
    ),
    Alert(
        "FlawlineEventsGivenUp",
        "sum by (receiver, reason) (increase(flawline_outbound_given_up_total[30m])) > 0",
        "The receiver {{ $labels.receiver }} is not told {{ $value | humanize }} events any more: {{ $labels.reason }}",
        "too-old: it was away, or is too slow; refused: it answers 3xx or 4xx; expired: the topics are kept for too "
        "short a time.",
    ),
    # A quarter of an hour of judging at one a second. A judgement, not measured.
    Alert(
        "FlawlineReviewBacklog",
        "flawline_unjudged_frames > 1000",
        "{{ $value }} frames that were not accepted wait for somebody to judge them",
        "Without judgements nobody knows overkill and escapes. Judge on the station's page Review.",
        severity=INFO,
        lasting="1h",
    ),
)


def prometheus_rules() -> dict[str, Any]:
    """Return the content of Prometheus's rule file."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            **({"for": alert.lasting} if alert.lasting != "0s" else {}),
            "labels": {"severity": alert.severity},
            "annotations": alert.annotations,
        }
        for alert in ALERTS
    ]
    records = [{"record": name, "expr": expr} for name, expr in recorded().items()]
    return {
        "groups": [
            {"name": f"{GROUP}-recorded", "interval": f"{RECORD_INTERVAL_S}s", "rules": records},
            {"name": GROUP, "rules": rules},
        ]
    }


def grafana_rules(folder_uid: str, receiver: str | None = None) -> list[dict[str, Any]]:
    """Return the alerts as rules that Grafana evaluates, in the form of its provisioning API.

    With the name of a contact point as `receiver` it is told; without one, Grafana's own policies decide.
    """
    return [_grafana_rule(alert, folder_uid, receiver) for alert in ALERTS]


def _grafana_rule(alert: Alert, folder_uid: str, receiver: str | None) -> dict[str, Any]:
    # A holds the series that are wrong, with any value, also 0: B makes 1 of each.
    window = {"from": _LOOKBACK_S, "to": 0}
    source = {"type": PROMETHEUS.type_val, "uid": PROMETHEUS.uid}
    query = {"refId": "A", "datasource": source, "expr": alert.expr, "instant": True, "range": False}
    check = {
        "refId": "B",
        "type": "math",
        "datasource": {"type": "__expr__", "uid": "__expr__"},
        "expression": "is_number($A)",
    }
    rule: dict[str, Any] = {
        "uid": f"{UID_PREFIX}{alert.name.removeprefix('Flawline').lower()}",
        "title": alert.name,
        "folderUID": folder_uid,
        "ruleGroup": GROUP,
        "condition": "B",
        "data": [
            {"refId": "A", "datasourceUid": PROMETHEUS.uid, "relativeTimeRange": window, "model": query},
            {"refId": "B", "datasourceUid": "__expr__", "relativeTimeRange": window, "model": check},
        ],
        "noDataState": "OK",
        "execErrState": "Error",
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {key: text.replace("$value", "$values.A.Value") for key, text in alert.annotations.items()},
    }
    if receiver is not None:
        rule["notification_settings"] = {"receiver": receiver}
    return rule
