"""Puts the dashboards and their data sources into Grafana: over its API (`push`) or as provisioning files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from grafana_client import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException, GrafanaTimeoutError, GrafanaUnauthorizedError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from discovery import dashboards
from discovery.dashboards import defect_trends
from discovery.dashboards.panels import POSTGRESQL, PROMETHEUS
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

FOLDER_UID = "flawline"
SCRAPE_INTERVAL = "5s"  # of deploy/prometheus/prometheus.yml; Grafana derives its shortest rate window from it
TIMEOUT_S = 10.0  # a judgement, not measured

# Where the plant's Grafana container sees what docker-compose mounts.
PROVISIONED_DASHBOARDS = "/etc/grafana/dashboards"
PLANT_PROMETHEUS_URL = "http://prometheus:9090"
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


def push(settings: Settings) -> list[str]:
    """Create or update folder, data sources and dashboards; one line of text for each thing done.

    Nothing is duplicated when it runs again: all uids are fixed. A data source that is already there is kept as it is,
    because an operator may have given it another address or a password that this machine does not know. With SQLite as
    store *Defect trends* is left out, since Grafana cannot reach a file of this machine.

    Raises UsageError for settings that cannot work and FlawlineError for a Grafana that is away or refuses.
    """
    if settings.grafana.token is None:
        raise UsageError(
            "grafana.token is not set: create a service account token with role Admin in Grafana, "
            "then set FLAWLINE_GRAFANA__TOKEN"
        )
    store = _store(settings)
    sources = [prometheus_source(settings.grafana.prometheus_url)]
    boards = dashboards.build()
    done = []
    if store.get_backend_name() == "postgresql":
        sources.append(postgresql_source(store))
    else:
        del boards[defect_trends.UID]
        done.append(f"dashboard {defect_trends.TITLE}: left out, the store is no PostgreSQL: set store.url")
    url = settings.grafana.url.rstrip("/")
    try:
        api = _api(url, settings.grafana.token.get_secret_value())
        done += [_ensure_folder(api, settings.grafana.folder)]
        done += [_ensure_source(api, source) for source in sources]
        done += [f"dashboard {board['title']}: {url}{_save(api, board)}" for board in boards.values()]
    except GrafanaUnauthorizedError as error:
        raise FlawlineError(
            f"Grafana {url} does not accept grafana.token: create a new service account token"
        ) from error
    except GrafanaTimeoutError as error:
        raise FlawlineError(f"Grafana {url} does not answer within {TIMEOUT_S:g} s: is grafana.url right?") from error
    except GrafanaException as error:
        raise FlawlineError(f"Grafana {url} refuses ({error.message}): {_remedy(error)}") from error
    except OSError as error:  # the client's network errors are OSErrors, too
        raise FlawlineError(
            f"Grafana {url} cannot be reached ({_short(error)}): start it or correct grafana.url"
        ) from error
    return done


def write_provisioning(folder: Path) -> list[Path]:
    """Write what the plant's Grafana mounts below `folder`, and return the files.

    `provisioning/datasources/flawline.yaml`, `provisioning/dashboards/flawline.yaml` and one
    `dashboards/<uid>.json` each. Passwords stay out: the files name environment variables of the container.
    """
    files = {
        "provisioning/datasources/flawline.yaml": {
            "apiVersion": 1,
            "datasources": [prometheus_source(PLANT_PROMETHEUS_URL), postgresql_source(PLANT_STORE)],
        },
        "provisioning/dashboards/flawline.yaml": {
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
    } | {f"dashboards/{uid}.json": board for uid, board in dashboards.build().items()}
    written = []
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_text(content, path.suffix), encoding="utf-8")
            path.chmod(0o644)  # Grafana runs as another user, and there is no image in it
        except OSError as error:
            raise FlawlineError(f"{path} cannot be written: {error.strerror}") from error
        written.append(path)
    return written


def _text(content: dict[str, Any], suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return "# Generated by `flawline dashboards write`.\n" + yaml.safe_dump(content, sort_keys=False)


def _store(settings: Settings) -> URL:
    store_url = settings.grafana.store_url
    try:
        return make_url(store_url.get_secret_value() if store_url else settings.store_url)
    except ArgumentError as error:
        name = "grafana.store_url" if store_url else "store.url"
        raise UsageError(f"{name} is no database URL: write postgresql://USER:PASSWORD@HOST/DATABASE") from error


def _api(url: str, token: str) -> GrafanaApi:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"grafana.url = {url!r} is no address ({error}): write http://HOST:3000") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"grafana.url = {url!r} is no http(s) address: write http://HOST:3000")
    # The client joins its path prefix and `api` without a slash of its own.
    return GrafanaApi.from_url(f"{url}/" if parts.path else url, credential=token, timeout=TIMEOUT_S)


def _ensure_folder(api: GrafanaApi, title: str) -> str:
    try:
        there = api.folder.get_folder(FOLDER_UID)
    except GrafanaClientError as error:
        if error.status_code != 404:
            raise
        api.folder.create_folder(title, uid=FOLDER_UID)
        return f"folder {title}: created"
    return f"folder {there['title']}: kept"


def _ensure_source(api: GrafanaApi, source: dict[str, Any]) -> str:
    try:
        there = api.datasource.get_datasource_by_uid(source["uid"])
    except GrafanaClientError as error:
        if error.status_code != 404:
            raise
        api.datasource.create_datasource(source)
        return f"data source {source['name']}: created"
    return f"data source {there['name']}: kept"


def _save(api: GrafanaApi, board: dict[str, Any]) -> str:
    saved = api.dashboard.update_dashboard({"dashboard": board, "folderUid": FOLDER_UID, "overwrite": True})
    return saved["url"]


def _remedy(error: GrafanaException) -> str:
    if error.status_code == 403:
        return "give the service account of grafana.token the role Admin"
    if error.status_code == 404:
        return "grafana.url must be the address of Grafana itself, with its sub-path if it has one"
    return "see Grafana's log"


def _short(error: BaseException) -> str:
    """Return the innermost reason of a chain of wrapped network errors, in one line."""
    while error.__context__ is not None:
        error = error.__context__
    return one_line(error)
