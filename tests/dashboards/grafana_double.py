"""A stand-in for Grafana's HTTP API, for machines without Grafana: the endpoints as its documentation describes them.

It keeps folders, data sources, dashboards, alert rules and contact points as Grafana does: uids are unique, what is
created twice is refused, a dashboard and a rule name a folder that exists, a dashboard that is saved over a version
that is not the latest is refused with 412, secrets of contact points come back as `[REDACTED]`, each object gets
fields of Grafana's own, and every request needs the token. It is no proof that Grafana renders the dashboards.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "glsa_test"
SECRET_SETTINGS = {"url", "password", "token"}

Answer = tuple[int, Any]


class GrafanaDouble:
    """Serves on a free port of this machine below `prefix` until `stop`.

    `trouble` holds answers that the next requests get: (method, status), or a status for any method. Of a write
    with `has_come_through` the double does what was asked and answers with trouble all the same.
    """

    def __init__(self, prefix: str = "", role: str = "Admin") -> None:
        self.folders: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, dict[str, Any]] = {}
        self.dashboards: dict[str, dict[str, Any]] = {}
        self.rules: dict[str, dict[str, Any]] = {}
        self.points: dict[str, dict[str, Any]] = {}
        self.role = role
        self.requests: list[str] = []
        self.trouble: deque[int | tuple[str, int]] = deque()
        self.has_come_through = False
        self.before_write: Callable[[], None] = lambda: None
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_DELETE(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            do_PUT = do_POST

            def _answer(self, body: dict[str, Any] | None) -> None:
                double.requests.append(f"{self.command} {self.path}")
                parts = urlsplit(self.path)
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    status, answer = 401, {"message": "Invalid API key"}
                elif not parts.path.startswith(f"{prefix}/api/"):
                    status, answer = 404, {"message": "Not found"}
                else:
                    path = parts.path.removeprefix(f"{prefix}/api")
                    status, answer = double._with_trouble(self.command, path, parse_qs(parts.query), body)
                data = b"" if status == 204 else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def writes(self) -> list[str]:
        """The requests that change something."""
        return [request for request in self.requests if not request.startswith("GET ")]

    def _with_trouble(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Answer:
        if self.trouble:
            first = self.trouble[0]
            wanted, status = first if isinstance(first, tuple) else (method, first)
            if wanted == method:
                self.trouble.popleft()
                if self.has_come_through:
                    self._handle(method, path, query, body)
                return status, {"message": "trouble on purpose"}
        return self._handle(method, path, query, body)

    def _handle(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Answer:
        if method == "GET":
            return self._read(path, query)
        if self.role != "Admin":
            return 403, {"message": "You'll need additional permissions to perform this action"}
        self.before_write()
        kind, _, uid = path.removeprefix("/").rpartition("/")
        if path == "/folders":
            return self._create(self.folders, body["uid"], body | {"version": 1})
        if kind == "folders":
            self.folders[uid] |= {"title": body["title"], "version": self.folders[uid]["version"] + 1}
            return 200, self.folders[uid]
        if path == "/datasources":
            return self._create(self.sources, body["uid"], body | {"id": len(self.sources) + 1, "readOnly": False})
        if path == "/dashboards/db":
            return self._save(body)
        if path.startswith("/v1/provisioning/"):
            return self._provision(method, path.removeprefix("/v1/provisioning/"), body)
        return 404, {"message": "Not found"}

    def _read(self, path: str, query: dict[str, list[str]]) -> Answer:
        if path == "/search":
            hits = [{"uid": uid, "type": "dash-db"} for uid in self.dashboards]
            return 200, hits if query.get("type") == ["dash-db"] else []
        if path == "/v1/provisioning/contact-points":
            return 200, [_redacted(point) for point in self.points.values()]
        if path == "/v1/provisioning/alert-rules":
            return 200, list(self.rules.values())
        kind, _, uid = path.removeprefix("/").rpartition("/")
        places = {
            "folders": self.folders,
            "datasources/uid": self.sources,
            "dashboards/uid": self.dashboards,
            "v1/provisioning/alert-rules": self.rules,
        }
        there = places.get(kind, {}).get(uid)
        if there is None:
            return 404, {"message": "not found"}
        if kind == "dashboards/uid":
            return 200, {"dashboard": there, "meta": {"slug": "x", "version": there["version"]}}
        return 200, {key: value for key, value in there.items() if key != "secureJsonData"}

    def _save(self, body: dict[str, Any]) -> Answer:
        board = body["dashboard"]
        if body["folderUid"] not in self.folders:
            return 400, {"message": "folder not found"}
        there = self.dashboards.get(board["uid"])
        if there and not body.get("overwrite") and board.get("version") != there["version"]:
            return 412, {"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}
        version = (there["version"] if there else 0) + 1
        self.dashboards[board["uid"]] = board | {"id": 7, "version": version}
        return 200, {"uid": board["uid"], "url": f"/d/{board['uid']}/x", "status": "success", "version": version}

    def _provision(self, method: str, path: str, body: Any) -> Answer:
        kind, _, uid = path.partition("/")
        places = {"alert-rules": self.rules, "contact-points": self.points}
        if kind not in places:
            return 404, {"message": "Not found"}
        if method == "DELETE":
            places[kind].pop(uid, None)
            return 204, None
        if kind == "alert-rules" and body["folderUID"] not in self.folders:
            return 400, {"message": "folder does not exist"}
        additions = {"provenance": "api"} | ({"id": 3, "orgID": 1, "isPaused": False} if kind == "alert-rules" else {})
        if method == "POST":
            status, answer = self._create(places[kind], body["uid"], additions | body)
            return (201 if kind == "alert-rules" and status == 200 else 202 if status == 200 else status), answer
        if uid not in places[kind]:
            return 404, {"message": "not found"}
        places[kind][uid] = additions | body
        return 200 if kind == "alert-rules" else 202, places[kind][uid]

    @staticmethod
    def _create(things: dict[str, dict[str, Any]], uid: str, body: dict[str, Any]) -> Answer:
        if uid in things:
            return 409, {"message": "the uid is taken"}
        things[uid] = body
        return 200, body

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _redacted(point: dict[str, Any]) -> dict[str, Any]:
    settings = {key: "[REDACTED]" if key in SECRET_SETTINGS else value for key, value in point["settings"].items()}
    return point | {"settings": settings}
