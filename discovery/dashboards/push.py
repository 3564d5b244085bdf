"""Puts boards, alert rules and what they need into Grafana: over its API, or as files that it and Prometheus mount."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from discovery import dashboards
from discovery.dashboards import alerts, defect_trends, quality
from discovery.dashboards.grafana import Grafana
from discovery.dashboards.objects import Kind, Wanted
from discovery.dashboards.panels import POSTGRESQL, PROMETHEUS
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

FOLDER_UID = "flawline"
SCRAPE_INTERVAL = "5s"  # of deploy/prometheus/prometheus.yml; Grafana derives its shortest rate window from it

# Where the plant's Grafana container sees what docker-compose mounts.
PROVISIONED_DASHBOARDS = "/etc/grafana/dashboards"
PLANT_PROMETHEUS_URL = "http://prometheus:9090"
PLANT_ALERTMANAGER_URL = "http://alertmanager:9093"
PLANT_STATION_URL = "https://localhost:8400"
PLANT_STORE = URL.create(
    "postgresql", "grafana_reader", "$__env{GRAFANA_READER_PASSWORD}", "postgres", 5432, "flawline"
)


def prometheus_source(url: str) -> dict[str, Any]:
    """Return Grafana's description of the Prometheus that scrapes the line."""
    return {
        "uid": PROMETHEUS.uid,
        "name": "Flawline Prometheus",
        "type": PROMETHEUS.type_val,
        "access": "proxy",
        "url": url,
        "jsonData": {"httpMethod": "POST", "timeInterval": SCRAPE_INTERVAL},
    }


def alertmanager_source(url: str) -> dict[str, Any]:
    """Return Grafana's description of the Alertmanager that Prometheus tells its alerts: to see and silence them."""
    return {
        "uid": "flawline-alertmanager",
        "name": "Flawline Alertmanager",
        "type": "alertmanager",
        "access": "proxy",
        "url": url,
        "jsonData": {"implementation": "prometheus", "handleGrafanaManagedAlerts": False},
    }


def postgresql_source(url: URL) -> dict[str, Any]:
    """Return Grafana's description of the store; `sslmode` comes from the URL's query, `disable` without one."""
    return {
        "uid": POSTGRESQL.uid,
        "name": "Flawline store",
        "type": POSTGRESQL.type_val,
        "access": "proxy",
        "url": f"{url.host}:{url.port or 5432}",
        "user": url.username,
        "jsonData": {
            "database": url.database,
            "sslmode": url.query.get("sslmode", "disable"),
            "maxOpenConns": 5,
            "postgresVersion": 1500,
        },
        "secureJsonData": {"password": url.password or ""},
    }


def wanted(settings: Settings) -> tuple[list[Wanted], list[str]]:
    """Return what is to be in Grafana, in the order in which it is made, and a line for each part that is left out.

    With SQLite as store the boards that read the store are left out, since Grafana cannot reach a file of this machine.
    Raises UsageError for settings that cannot work.
    """
    store, left_out = _store(settings), list[str]()
    sources = [prometheus_source(settings.grafana.prometheus_url)]
    has_store = store.get_backend_name() == "postgresql"
    boards = dashboards.build(settings.grafana.station_url, with_store=has_store)
    if has_store:
        sources.append(postgresql_source(store))
    else:
        left_out.append(
            f"dashboards {defect_trends.TITLE}, {quality.TITLE}: left out, the store is no PostgreSQL: set store.url"
        )
    points = contact_points(settings.grafana.contact_points)
    receiver = points[0]["name"] if points else None
    objects = [Wanted(Kind.FOLDER, FOLDER_UID, settings.grafana.folder, {"title": settings.grafana.folder})]
    # An operator may have given a source another address, or a password that this machine does not know.
    objects += [Wanted(Kind.SOURCE, source["uid"], source["name"], source, is_kept=True) for source in sources]
    objects += [Wanted(Kind.CONTACT_POINT, point["uid"], point["name"], point) for point in points]
    objects += [Wanted(Kind.DASHBOARD, uid, board["title"], board) for uid, board in boards.items()]
    if settings.grafana.alerts:
        rules = alerts.grafana_rules(FOLDER_UID, receiver)
        objects += [Wanted(Kind.RULE, rule["uid"], rule["title"], rule) for rule in rules]
    return objects, left_out


def contact_points(file: Path | None) -> list[dict[str, Any]]:
    """Return the contact points of a file: a list, in YAML or JSON, of `uid`, `name`, `type` and `settings`.

    The alert rules tell the first one. Raises UsageError for a file that holds something else.
    """
    if file is None:
        return []
    try:
        points = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"grafana.contact_points {file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"grafana.contact_points {file}: is no YAML ({one_line(error)})") from error
    if not isinstance(points, list) or not points:
        raise UsageError(f"grafana.contact_points {file}: write a list of contact points")
    for number, point in enumerate(points, start=1):
        if not isinstance(point, dict) or not all(
            isinstance(point.get(key), kind)
            for key, kind in (("uid", str), ("name", str), ("type", str), ("settings", dict))
        ):
            raise UsageError(
                f"grafana.contact_points {file}: entry {number} needs uid, name, type and settings, as Grafana's API "
                "describes them"
            )
    return points


def push(settings: Settings) -> list[str]:
    """Make all in Grafana as it is wanted; return a line for each thing.

    What is as it is wanted is not written. A data source that is there is kept as it is. Alert rules of ours that are
    not wanted any more are deleted. Raises UsageError for settings that cannot work, and FlawlineError for a Grafana
    that is away or refuses.
    """
    objects, lines = wanted(settings)
    grafana = _grafana(settings)
    for item in objects:
        done = grafana.bring(item, FOLDER_UID)
        place = f": {grafana.url}/d/{item.uid}" if item.kind is Kind.DASHBOARD else ""
        lines.append(f"{item.kind} {item.title}: {done}{place}")
    for rule in _extra_rules(grafana, objects):
        grafana.delete_rule(rule["uid"])
        lines.append(f"{Kind.RULE} {rule['title']}: deleted")
    return lines


def diff(settings: Settings) -> list[str]:
    """Return a line for each difference between Grafana and what is wanted; none when a push would change nothing.

    Raises as `push` does.
    """
    objects, _ = wanted(settings)
    grafana = _grafana(settings)
    lines = []
    for item in objects:
        there = grafana.read(item.kind, item.uid)
        name = f"{item.kind} {item.title}"
        if there is None:
            lines.append(f"{name}: is missing")
            continue
        kept = " (a push keeps it)" if item.is_kept else ""
        lines += [f"{name}: {difference}{kept}" for difference in item.differences(there)]
    return [*lines, *(f"{Kind.RULE} {rule['title']}: is not wanted" for rule in _extra_rules(grafana, objects))]


def export(settings: Settings, folder: Path) -> list[Path]:
    """Write what Grafana has of the line into files, so that what was changed by hand is not lost; return the files.

    One file for each dashboard of the folder, one each for its alert rules and for all contact points, without their
    secrets. Raises as `push` does.
    """
    grafana = _grafana(settings)
    files: dict[str, Any] = {}
    for uid in grafana.dashboards(FOLDER_UID):
        files[f"dashboards/{uid}.json"] = grafana.read(Kind.DASHBOARD, uid)
    files["alert-rules.json"] = sorted(grafana.rules(FOLDER_UID), key=lambda rule: rule["uid"])
    files["contact-points.json"] = grafana.contact_points()
    return _write(folder, files)


def write_provisioning(folder: Path) -> list[Path]:
    """Write what the plant's Grafana and Prometheus mount below `folder`, and return the files.

    `grafana/provisioning/datasources/flawline.yaml`, `grafana/provisioning/dashboards/flawline.yaml`, one
    `grafana/dashboards/<uid>.json` each, and `prometheus/alerts.yml`. Passwords stay out: the files name environment
    variables of the container.
    """
    files: dict[str, Any] = {
        "grafana/provisioning/datasources/flawline.yaml": {
            "apiVersion": 1,
            "datasources": [
                prometheus_source(PLANT_PROMETHEUS_URL),
                postgresql_source(PLANT_STORE),
                alertmanager_source(PLANT_ALERTMANAGER_URL),
            ],
        },
        "grafana/provisioning/dashboards/flawline.yaml": {
            "apiVersion": 1,
            "providers": [
                {
                    "name": "flawline",
                    "folder": "Flawline",
                    "folderUid": FOLDER_UID,
                    "type": "file",
                    "allowUiUpdates": False,
                    "options": {"path": PROVISIONED_DASHBOARDS},
                }
            ],
        },
    }
    files |= {f"grafana/dashboards/{uid}.json": board for uid, board in dashboards.build(PLANT_STATION_URL).items()}
    files["prometheus/alerts.yml"] = alerts.prometheus_rules()
    return _write(folder, files)


def _extra_rules(grafana: Grafana, objects: list[Wanted]) -> Iterator[dict[str, Any]]:
    """Yield the alert rules that an earlier push has made and that are not wanted any more."""
    known = {item.uid for item in objects if item.kind is Kind.RULE}
    if known:
        for rule in grafana.rules(FOLDER_UID):
            if rule["uid"].startswith(alerts.UID_PREFIX) and rule["uid"] not in known:
                yield rule


def _write(folder: Path, files: dict[str, Any]) -> list[Path]:
    written = []
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_text(content, path.suffix), encoding="utf-8")
            path.chmod(0o644)  # Grafana and Prometheus run as other users, and there is no image in it
        except OSError as error:
            raise FlawlineError(f"{path} cannot be written: {error.strerror}") from error
        written.append(path)
    return written


def _text(content: Any, suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    text = yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)
    return f"# Generated by `flawline dashboards write deploy`.\n{text}"


def _store(settings: Settings) -> URL:
    store_url = settings.grafana.store_url
    try:
        return make_url(store_url.get_secret_value() if store_url else settings.store_url)
    except ArgumentError as error:
        name = "grafana.store_url" if store_url else "store.url"
        raise UsageError(f"{name} is no database URL: write postgresql://USER:PASSWORD@HOST/DATABASE") from error


def _grafana(settings: Settings) -> Grafana:
    if settings.grafana.token is None:
        raise UsageError(
            "grafana.token is not set: create a service account token with role Admin in Grafana, "
            "then set FLAWLINE_GRAFANA__TOKEN"
        )
    return Grafana(settings.grafana.url, settings.grafana.token.get_secret_value())
