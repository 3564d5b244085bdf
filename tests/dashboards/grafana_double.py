"""A small stand-in for Grafana's HTTP API, for machines without Grafana.

It keeps folders, data sources and dashboards as Grafana does: uids are unique, a second create of the same is refused,
a dashboard names a folder that exists, every request needs the token. It is no proof that Grafana renders the
dashboards.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "glsa_test"


class GrafanaDouble:
    """Serves on a free port of this machine below `prefix` until `stop`."""

    def __init__(self, prefix: str = "", role: str = "Admin") -> None:
        self.folders: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, dict[str, Any]] = {}
        self.dashboards: dict[str, dict[str, Any]] = {}
        self.role = role
        self.requests: list[str] = []
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any] | None) -> None:
                double.requests.append(f"{self.command} {self.path}")
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    status, answer = 401, {"message": "Invalid API key"}
                elif not self.path.startswith(f"{prefix}/api/"):
                    status, answer = 404, {"message": "Not found"}
                else:
                    status, answer = double.handle(self.command, self.path.removeprefix(f"{prefix}/api"), body)
                data = json.dumps(answer).encode()
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

    def handle(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        if method == "GET":
            kind, _, uid = path.removeprefix("/").rpartition("/")
            there = {"folders": self.folders, "datasources/uid": self.sources}.get(kind, {}).get(uid)
            return (200, there) if there else (404, {"message": "not found"})
        if self.role != "Admin":
            return 403, {"message": "You'll need additional permissions to perform this action"}
        assert body is not None
        if path == "/folders":
            return self._create(self.folders, body["uid"], body)
        if path == "/datasources":
            return self._create(self.sources, body["uid"], body)
        if path == "/dashboards/db":
            board = body["dashboard"]
            if body["folderUid"] not in self.folders:
                return 400, {"message": "folder not found"}
            if board["uid"] in self.dashboards and not body.get("overwrite"):
                return 412, {"message": "The dashboard has been changed by someone else"}
            self.dashboards[board["uid"]] = board
            return 200, {"uid": board["uid"], "url": f"/d/{board['uid']}/x", "status": "success"}
        return 404, {"message": "Not found"}

    @staticmethod
    def _create(things: dict[str, dict[str, Any]], uid: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if uid in things:
            return 409, {"message": "the uid is taken"}
        things[uid] = body
        return 200, body

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
