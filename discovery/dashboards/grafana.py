"""Grafana's HTTP API: reads and writes objects, tries again what may go well, and says in one line what does not.

An answer 5xx or 429, and a connection that breaks, is tried again with growing pauses. Whether a write that ended so
has come through is not known, so the object is read and compared anew. An answer 412 says that somebody has changed
the object since it was read; it is read again, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from grafana_client import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException, GrafanaTimeoutError, GrafanaUnauthorizedError

from discovery.dashboards.objects import Kind, Wanted
from flawline.errors import FlawlineError, UsageError, one_line

TIMEOUT_S = 10.0
ATTEMPTS = 4
FIRST_PAUSE_S = 0.5
"""The pause before the second attempt; each later one is twice as long. A judgement, not measured."""

_AGAIN = (412, 429)

Result = TypeVar("Result")


class Grafana:
    """The Grafana at an address. Raises UsageError for an address that is none; all calls raise FlawlineError."""

    def __init__(self, url: str, token: str, pause: Callable[[float], None] = time.sleep) -> None:
        self.url = url.rstrip("/")
        self._api = _api(self.url, token)
        self._pause = pause

    def read(self, kind: Kind, uid: str) -> dict[str, Any] | None:
        """Return an object as Grafana has it, None when it has none."""
        return self._with_retries(lambda: self._read(kind, uid))

    def bring(self, wanted: Wanted, folder_uid: str) -> str:
        """Make an object as it is wanted where it is not; return what was done: created, updated, kept or unchanged."""
        return self._with_retries(lambda: self._bring(wanted, folder_uid))

    def delete_rule(self, uid: str) -> None:
        """Delete an alert rule; one that is not there does no harm."""
        self._with_retries(lambda: _unless_missing(lambda: self._api.alertingprovisioning.delete_alertrule(uid)))

    def dashboards(self, folder_uid: str) -> list[str]:
        """Return the uids of the dashboards of a folder."""
        hits = self._with_retries(lambda: self._api.search.search_dashboards(type_="dash-db", folder_uids=[folder_uid]))
        return [hit["uid"] for hit in hits]

    def rules(self, folder_uid: str) -> list[dict[str, Any]]:
        """Return the alert rules of a folder."""
        rules = self._with_retries(self._api.alertingprovisioning.get_alertrules_all)
        return [rule for rule in rules if rule.get("folderUID") == folder_uid]

    def contact_points(self) -> list[dict[str, Any]]:
        """Return all contact points; their secrets are replaced by stars of Grafana."""
        points: list[dict[str, Any]] = self._with_retries(self._api.alertingprovisioning.get_contactpoints)
        return points

    def _read(self, kind: Kind, uid: str) -> dict[str, Any] | None:
        api = self._api
        if kind is Kind.CONTACT_POINT:
            points = api.alertingprovisioning.get_contactpoints()
            return next((point for point in points if point.get("uid") == uid), None)
        ask: dict[Kind, Callable[[str], Any]] = {
            Kind.FOLDER: api.folder.get_folder,
            Kind.SOURCE: api.datasource.get_datasource_by_uid,
            Kind.DASHBOARD: lambda uid: api.dashboard.get_dashboard(uid)["dashboard"],
            Kind.RULE: api.alertingprovisioning.get_alertrule,
        }
        there: dict[str, Any] | None = _unless_missing(lambda: ask[kind](uid))
        return there

    def _bring(self, wanted: Wanted, folder_uid: str) -> str:
        there = self._read(wanted.kind, wanted.uid)
        if there is None:
            self._create(wanted, folder_uid)
            return "created"
        if not wanted.differences(there):
            return "unchanged"
        if wanted.is_kept:
            return "kept"
        self._update(wanted, there, folder_uid)
        return "updated"

    def _create(self, wanted: Wanted, folder_uid: str) -> None:
        api, body = self._api, dict(wanted.body)
        if wanted.kind is Kind.FOLDER:
            api.folder.create_folder(wanted.title, uid=wanted.uid)
        elif wanted.kind is Kind.SOURCE:
            api.datasource.create_datasource(body)
        elif wanted.kind is Kind.DASHBOARD:
            api.dashboard.update_dashboard({"dashboard": body, "folderUid": folder_uid, "overwrite": False})
        elif wanted.kind is Kind.RULE:
            api.alertingprovisioning.create_alertrule(body)
        else:
            api.alertingprovisioning.create_contactpoint(body)

    def _update(self, wanted: Wanted, there: Mapping[str, Any], folder_uid: str) -> None:
        api, body = self._api, dict(wanted.body)
        if wanted.kind is Kind.FOLDER:
            api.folder.update_folder(wanted.uid, wanted.title, there.get("version"))
        elif wanted.kind is Kind.SOURCE:
            api.datasource.update_datasource_by_uid(wanted.uid, body)
        elif wanted.kind is Kind.DASHBOARD:
            # With the version that was read, Grafana refuses when somebody has saved another one meanwhile.
            board = body | {"id": there.get("id"), "version": there.get("version")}
            api.dashboard.update_dashboard({"dashboard": board, "folderUid": folder_uid, "overwrite": False})
        elif wanted.kind is Kind.RULE:
            api.alertingprovisioning.update_alertrule(wanted.uid, body)
        else:
            api.alertingprovisioning.update_contactpoint(wanted.uid, body)

    def _with_retries(self, act: Callable[[], Result]) -> Result:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return act()
            except (GrafanaException, OSError) as error:  # the client's network errors are OSErrors, too
                if attempt == ATTEMPTS or not _may_pass(error):
                    raise self._refusal(error, attempt) from error
            self._pause(FIRST_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _refusal(self, error: GrafanaException | OSError, attempts: int) -> FlawlineError:
        """Return what to tell a person: the address, what Grafana says, and what to do about it."""
        tried = f", {attempts} times" if attempts > 1 else ""
        if isinstance(error, GrafanaUnauthorizedError):
            return FlawlineError(
                f"Grafana {self.url} does not accept grafana.token: create a new service account token"
            )
        if isinstance(error, GrafanaTimeoutError):
            return FlawlineError(
                f"Grafana {self.url} does not answer within {TIMEOUT_S:g} s{tried}: is grafana.url right?"
            )
        if isinstance(error, GrafanaException):
            return FlawlineError(f"Grafana {self.url} refuses ({one_line(error.message)}{tried}): {_remedy(error)}")
        return FlawlineError(f"Grafana {self.url} cannot be reached ({_short(error)}): start it or correct grafana.url")


def _unless_missing(ask: Callable[[], Result]) -> Result | None:
    try:
        return ask()
    except GrafanaClientError as error:
        if error.status_code != 404:
            raise
        return None


def _may_pass(error: GrafanaException | OSError) -> bool:
    """Return whether the same request may go well in a moment. A server that never answered is not asked again."""
    if isinstance(error, GrafanaException):
        return error.status_code >= 500 or error.status_code in _AGAIN
    return isinstance(_innermost(error), ConnectionResetError | BrokenPipeError)


def _remedy(error: GrafanaException) -> str:
    if error.status_code == 403:
        return "give the service account of grafana.token the role Admin"
    if error.status_code == 404:
        return "grafana.url must be the address of Grafana itself, with its sub-path if it has one"
    if error.status_code == 412:
        return "somebody saves the same object now: run the command again"
    return "see Grafana's log"


def _innermost(error: BaseException) -> BaseException:
    """Return the innermost reason of a chain of wrapped network errors."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _short(error: BaseException) -> str:
    return one_line(_innermost(error))


def _api(url: str, token: str) -> GrafanaApi:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"grafana.url = {url!r} is no address ({error}): write http://HOST:3000") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"grafana.url = {url!r} is no http(s) address: write http://HOST:3000")
    # The client joins its path prefix and `api` without a slash of its own.
    return GrafanaApi.from_url(f"{url}/" if parts.path else url, credential=token, timeout=TIMEOUT_S)
