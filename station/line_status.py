"""What runs on a line and how it is, gathered from what answers: roles, broker, cameras, model, ledger, discovery.

Nothing here waits for long or fails because a part is away: that part is then a problem in words.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from discovery.store import schema
from discovery.store.database import nanoseconds, parse_url, stamp
from discovery.store.store import Store
from flawline import kafka_clients, messages, topics
from flawline.clock import NS, monotonic, utc_ns
from flawline.errors import FlawlineError, one_line
from flawline.kafka_refusal import first_that_answers
from flawline.messages import SchemaError, Verdict
from flawline.settings.producers import CameraBase, ReplayCamera, SimulatedCamera
from flawline.settings.tree import Settings
from ledger import reader
from ledger.accounting import Report
from station import probe, role_states
from station.up import listens, station_url
from station.web.camera_states import SINCE, Kind, camera_state
from workers import model_reports
from workers.publish_model import announced

ANSWER_TIMEOUT_S = 3.0
TAIL_RECORDS = 200
"""Verdicts that are read from the end of each partition, to see when each camera last had one. Judgements, both."""

ROLE_PORTS = {
    "producers": "producers_port",
    "workers": "workers_port",
    "discovery": "discovery_port",
    "ledger": "ledger_port",
}
NOTIFY_PORT = {"notify": "notify_port"}
MISSING = "does not run on this machine"


@dataclass(frozen=True)
class Stored:
    """What the store says: classes by state, regions without a class, the last round, the last minute of each camera.

    Times are UTC ns.
    """

    classes: Mapping[str, int]
    unassigned: int
    last_round_ns: int | None
    last_frames_ns: Mapping[str, int]


def status(settings: Settings, now_ns: int | None = None) -> dict[str, Any]:
    """Return the state of the line as plain values: the JSON of `flawline status`. Times are ISO in UTC."""
    now = utc_ns() if now_ns is None else now_ns
    problems: list[str] = []
    pages = {role: _page(settings, getattr(settings.metrics, port)) for role, port in _role_ports(settings).items()}
    roles = _roles(settings, pages)
    problems += [f"role {role['name']} {role['state']}" for role in roles if not role["well"]]
    if not roles and settings.kafka.bootstrap_servers is None:
        problems.append("no role of this line runs: `flawline up` starts them")
    away = _broker_problem(settings)
    report: Report | None = None
    model: dict[str, Any] | None = None
    last_ns: dict[str, int] = {}
    if away is None:
        report = _attempt(lambda: reader.read(settings), problems)
        model = _attempt(lambda: _model(settings), problems)
        last_ns = _attempt(lambda: last_captures(settings), problems) or {}
    else:
        problems.append(away)
    stored = _attempt(lambda: _stored(settings), problems)
    cameras = [_camera(camera, report, pages["producers"], last_ns, stored, now) for camera in settings.cameras]
    problems += [f"camera {camera['camera']}: {camera['state']}" for camera in cameras if not camera["well"]]
    if not cameras:
        problems.append("no cameras are configured: add a [[cameras]] section to line.toml")
    ledger = report and report.total.as_dict() | {"balanced": report.balanced}
    if report is not None and not report.balanced:
        problems.append("the ledger does not balance: see `flawline ledger`")
    if report is not None and report.total.gaps:
        problems.append(f"{report.total.gaps:,} captures have no outcome (gaps): see `flawline ledger`")
    if away is None and model is not None and model["version"] is None:
        uri = model["uri"]
        none = "no model is active: `flawline fit DATA --out MODEL`, then `flawline publish MODEL`"
        problems.append(f"no worker uses the model {uri} yet: they start, or see what they report" if uri else none)
    lags, behind = (
        pages["workers"].values("flawline_lag_seconds"),
        pages["discovery"].values("flawline_discovery_lag_records"),
    )
    console = settings.console
    return {
        "line": settings.line,
        "healthy": not problems,
        "problems": problems,
        "roles": [{"name": role["name"], "state": role["state"]} for role in roles],
        "broker": {"address": settings.bootstrap_servers, "answers": away is None},
        "cameras": cameras,
        "model": model,
        "ledger": ledger,
        "lag": {"frames": report.total.in_flight if report else None, "seconds": max(lags, default=None)},
        "discovery": stored
        and {
            "classes": dict(stored.classes),
            "unassigned_regions": stored.unassigned,
            "last_round_at": _iso(stored.last_round_ns),
            "behind_records": sum(behind) if behind else None,
        },
        "station": (
            console.port
            and {
                "url": station_url(settings),
                "answers": listens(console.host, console.port),
            }
        )
        or None,
    }


def _attempt(ask: Callable[[], Any], problems: list[str]) -> Any:
    """Return what `ask` returns, or None and a problem in words."""
    try:
        return ask()
    except (FlawlineError, KafkaError, SQLAlchemyError, OSError) as error:
        problems.append(one_line(error))
        return None


@dataclass(frozen=True)
class Page:
    """The metrics of one role of this machine: the text, empty where none answers, and its series by name."""

    text: str
    series: Mapping[str, Sequence[tuple[Mapping[str, str], float]]]

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Return the values of a metric by one of its labels."""
        return {labels[label]: value for labels, value in self.series.get(name, ()) if label in labels}

    def values(self, name: str) -> list[float]:
        """Return the values of all series of a metric."""
        return [value for _, value in self.series.get(name, ())]


def _page(settings: Settings, port: int) -> Page:
    text = role_states.metrics_text(settings.metrics.host, port, ANSWER_TIMEOUT_S) if port else None
    series: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families(text or ""):
        for sample in family.samples:
            series[sample.name].append((sample.labels, sample.value))
    return Page(text or "", series)


def _role_ports(settings: Settings) -> dict[str, str]:
    """Return the setting of the port of each role that the line has."""
    return ROLE_PORTS | (NOTIFY_PORT if settings.has_receivers else {})


def _roles(settings: Settings, pages: Mapping[str, Page]) -> list[dict[str, Any]]:
    """Return name and state in words of each role, as `flawline up` says, or else as their metrics say."""
    states = role_states.read(settings)
    if states is not None:
        return [{"name": state.name, "state": state.text, "well": not state.failing_s} for state in states]
    asked = {name: pages[name].text for name, port in _role_ports(settings).items() if getattr(settings.metrics, port)}
    if not any(asked.values()):
        return []
    may_be_elsewhere = settings.kafka.bootstrap_servers is not None
    roles = []
    for name, text in asked.items():
        problem = probe.problem(name, text) if text else None
        state = problem or "runs" if text else MISSING
        roles.append({"name": name, "state": state, "well": problem is None and (bool(text) or may_be_elsewhere)})
    return roles


def _broker_problem(settings: Settings) -> str | None:
    """Return why there is no broker to ask, None when one takes connections."""
    try:
        first_that_answers(settings.bootstrap_servers)
    except OSError as error:
        remedy = "`flawline up` starts it" if settings.kafka.bootstrap_servers is None else "start it"
        return (
            f"broker {settings.bootstrap_servers} is away ({error.strerror or one_line(error)}), so ledger and model "
            f"are not known, and cameras as far as the store knows them: {remedy}"
        )
    return None


def _model(settings: Settings) -> dict[str, Any]:
    """Return the model that the workers use, and how many of the actors that reported do. Raises FlawlineError."""
    pointer = announced(settings).active
    reports = model_reports.read(settings)
    running = Counter(report.active.version for report in reports if report.active)
    wanted = settings.worker.model
    version = pointer.version if pointer and wanted is None else running.most_common(1)[0][0] if running else None
    return {
        "version": version,
        "uri": wanted or (pointer.uri if pointer else None),
        "published_at": _iso(pointer.published_at) if pointer and wanted is None else None,
        "actors_using_it": running[version] if version else 0,
        "actors": len(reports),
        "problem": next((report.problem for report in reports if report.problem), None),
    }


def last_captures(settings: Settings) -> dict[str, int]:
    """Return by camera the capture (UTC ns) of the latest frame among the last verdicts. Raises FlawlineError."""
    name = settings.topic(topics.VERDICTS.name)
    client = kafka_clients.consumer(settings, max_poll_records=500, isolation_level="read_committed")
    latest: dict[str, int] = {}
    try:
        places = [TopicPartition(name, number) for number in sorted(client.partitions_for_topic(name) or ())]
        if not places:
            return {}
        client.assign(places)
        firsts, ends = client.beginning_offsets(places), client.end_offsets(places)
        for place, end in ends.items():
            client.seek(place, max(firsts[place], end - TAIL_RECORDS))
        deadline_s = monotonic() + ANSWER_TIMEOUT_S
        while monotonic() < deadline_s and any(client.position(place) < end for place, end in ends.items()):
            for records in client.poll(timeout_ms=250).values():
                for record in records:
                    try:
                        verdict = messages.decode(Verdict, record.value or b"")
                    except SchemaError:
                        continue  # the ledger counts it
                    latest[verdict.camera] = max(latest.get(verdict.camera, 0), verdict.captured_at)
    finally:
        client.close(autocommit=False)
    return latest


def _stored(settings: Settings) -> Stored | None:
    """Return what the store says, None when there is none yet. Raises FlawlineError."""
    url = parse_url(settings.store_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return None  # opening would make the file
    store = Store(settings.store_url, answer_timeout_s=ANSWER_TIMEOUT_S)
    try:
        with store.reading() as connection:
            states = select(schema.classes.c.state, func.count()).group_by(schema.classes.c.state)
            minutes = schema.verdict_minutes.c
            last = select(minutes.camera, func.max(minutes.minute)).group_by(minutes.camera)
            last_round = connection.scalar(select(func.max(schema.rounds.c.at)))
            unassigned = select(func.count()).select_from(schema.regions).where(schema.regions.c.class_id.is_(None))
            return Stored(
                classes={row[0]: row[1] for row in connection.execute(states)},
                unassigned=connection.scalar(unassigned) or 0,
                last_round_ns=nanoseconds(last_round) if last_round else None,
                last_frames_ns={row[0]: nanoseconds(row[1]) for row in connection.execute(last)},
            )
    finally:
        store.close()


def _camera(
    camera: CameraBase,
    report: Report | None,
    producers: Page,
    last_ns: Mapping[str, int],
    stored: Stored | None,
    now_ns: int,
) -> dict[str, Any]:
    """Return the state of one camera. Without a broker the store tells its last frame, to the minute."""
    account = report.cameras.get(camera.name) if report else None
    last = max(last_ns.get(camera.name, 0), stored.last_frames_ns.get(camera.name, 0) if stored else 0) or None
    up = producers.by_label("flawline_camera_up", "camera").get(camera.name)
    in_flight = account.in_flight if account else 0
    state = camera_state(
        last, now_ns, rate_hz=camera.rate_hz or None, is_up=None if up is None else up > 0, in_flight=in_flight
    )
    words, is_well = state.words.format(**{SINCE.strip("{}"): _clock(last)}), state.kind is Kind.LIVE
    if is_well:
        words = "delivers"
    elif up is None and account and account.captured and not in_flight and has_end(camera):
        words, is_well = f"has ended at {_clock(last)}", True
    return {
        "camera": camera.name,
        "kind": getattr(camera, "kind", None),
        "state": words,
        "well": is_well,
        "last_frame_at": _iso(last),
        "seconds_since_last_frame": None if last is None else max(0.0, (now_ns - last) * NS),
        "captured": account.captured if account else None,
        "in_flight": account.in_flight if account else None,
        "gaps": account.gaps if account else None,
        "frames_on_disk": producers.by_label("flawline_spool_frames", "camera").get(camera.name),
    }


def has_end(camera: CameraBase) -> bool:
    """Return whether a camera ends by itself: a replay that is not in a loop, a simulation of so many frames."""
    if isinstance(camera, ReplayCamera):
        return not camera.loop
    return isinstance(camera, SimulatedCamera) and camera.frames is not None


def _iso(at_ns: int | None) -> str | None:
    return None if at_ns is None else stamp(at_ns).isoformat(timespec="seconds")


def _clock(at_ns: int | None) -> str:
    """Return a time of this machine's zone in words, with its day when that is not today."""
    if at_ns is None:
        return "never"
    at, today = stamp(at_ns).astimezone(), datetime.now().astimezone().date()
    return f"{at:%H:%M:%S}" if at.date() == today else f"{at:%Y-%m-%d %H:%M}"
