"""The role `console`: the ledger of a real broker, a clean stop, a port in use."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from fastapi.testclient import TestClient

from discovery.store.store import Store
from embedded_broker import EmbeddedBroker
from flawline import kafka_clients
from flawline.settings.tree import Settings, load_settings
from station import role_states, up
from station.role_states import RoleState
from station.web import service
from station.web.accounts import Accounts, Role
from station.web.ledger_watch import LedgerWatch
from tests.station.web.conftest import make_certificate
from tests.support.ports import reserved_port
from tests.support.postgres import PostgresServer
from tests.support.talking_line import TalkingLine


def command(tmp_path: Path, port: int, bootstrap: str, **sections: Any) -> tuple[list[str], Settings]:
    file = tmp_path / "line.toml"
    kafka = {"bootstrap_servers": bootstrap, "topic_prefix": f"t{uuid.uuid4().hex[:10]}-", "camera_partitions": 2}
    file.write_text(tomli_w.dumps({"data_dir": str(tmp_path), "kafka": kafka, "console": {"port": port}} | sections))
    return [sys.executable, "-m", "station.cli", "console", "--config", str(file)], load_settings(file)


def ledger_when(port: int, wanted: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/ledger", timeout=10) as answer:
                page: dict[str, Any] = json.load(answer)
                if wanted(page["ledger"]):
                    return page
        except OSError:  # not yet listening, or 503 while the ledger is being read
            pass
        time.sleep(0.1)
    raise AssertionError("the ledger did not come")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_console_follows_the_ledger_of_a_real_broker_until_it_is_stopped(
    tmp_path: Path, embedded_broker: EmbeddedBroker, number: signal.Signals, code: int
) -> None:
    port = reserved_port()
    arguments, settings = command(tmp_path, port, embedded_broker.bootstrap)
    kafka_clients.ensure_topics(settings)
    line = TalkingLine(settings)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        line.scored(0, 1)
        line.captured(2)
        page = ledger_when(port, lambda ledger: ledger["captured"] == 2)
        assert page["error"] is None and page["ledger"]["cameras"]["cam"]["scored"] == 2
        line.captured(4, closed=True)
        assert ledger_when(port, lambda ledger: ledger["gaps"] == 2)["ledger"]["balanced"]
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        line.close()
    assert process.returncode == code and "Traceback" not in stderr


def answer_of(port: int, path: str = "/ledger") -> tuple[int, str]:
    """Return the status and the text of a page; 0 while nothing listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_for_status(port: int, status: int) -> str:
    deadline = time.monotonic() + 60
    while (answer := answer_of(port))[0] != status:
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer[1]


def test_console_says_that_the_store_is_away_or_silent_and_recovers(
    tmp_path: Path, embedded_broker: EmbeddedBroker, own_postgres: PostgresServer
) -> None:
    port, store = reserved_port(), {"url": own_postgres.new_database()}
    arguments, _ = command(tmp_path, port, embedded_broker.bootstrap, store=store, metrics={"up_port": 0})
    own_postgres.shut_down()
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        page = wait_for_status(port, 503)
        assert "<h1>The store is away</h1>" in page and 'data-refresh="5"' in page
        assert answer_of(port, "/healthz")[0] == 503 and "error" in json.loads(answer_of(port, "/api/classes")[1])
        assert answer_of(port, "/static/style.css")[0] == 200
        own_postgres.start()
        assert "Decisions per minute" in wait_for_status(port, 200)
        own_postgres.freeze()
        assert "<h1>The store is away</h1>" in wait_for_status(port, 503)
        started = time.monotonic()
        for _ in range(20):
            assert answer_of(port)[0] == 503
        assert time.monotonic() - started < 10, "a page does not wait for a store that is known to be away"
        own_postgres.thaw()
        wait_for_status(port, 200)
        own_postgres.freeze()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in stderr
    assert stderr.count("trying again") == stderr.count("well again") == 2


def test_roles_of_up_are_shown(
    client: TestClient, settings: Settings, store: Store, watch: LedgerWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/api/roles").json() == {"roles": None}
    states = [RoleState("discover", True, 3, 95.0), RoleState("work", True, 0, 0.0)]
    monkeypatch.setattr(role_states, "read", lambda settings: states)
    text = client.get("/ledger").text
    assert "has been failing for 95 s" in text and "<td>runs</td>" in text
    assert [role["restarts"] for role in client.get("/api/roles").json()["roles"]] == [3, 0]


@pytest.mark.system
def test_port_in_use_is_one_line_and_exit_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments, _ = command(tmp_path, port, "127.0.0.1:1")
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert str(port) in done.stderr and "console.port" in done.stderr


def test_up_runs_the_console_unless_its_port_is_0(tmp_path: Path) -> None:
    _, on = command(tmp_path, 8400, "127.0.0.1:1")
    _, off = command(tmp_path, 0, "127.0.0.1:1")
    assert "console" in [role.name for role in up.roles(on)]
    assert "console" not in [role.name for role in up.roles(off)]


@contextmanager
def console_in_this_process(settings: Settings) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(settings, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def fetch(url: str, data: dict[str, str] | None = None, **headers: str) -> tuple[int, str, str]:
    """Return status, text and the cookie that is set, of the first answer and not of one that it leads to."""
    opener = urllib.request.build_opener(
        _NoRedirect, urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
    )
    body = urllib.parse.urlencode(data).encode() if data else None
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with opener.open(urllib.request.Request(url, body, names), timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers.get("set-cookie", "")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers.get("set-cookie", "")
    except OSError as error:  # not listening yet
        return 0, str(error), ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


def wait_for_page(url: str, **headers: str) -> str:
    deadline = time.monotonic() + 60
    while (answer := fetch(url, **headers))[0] != 200:
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer[1]


def with_a_user(tmp_path: Path, console: dict[str, Any]) -> Settings:
    _, settings = command(tmp_path, reserved_port(), "127.0.0.1:1", console=console, metrics={"up_port": 0})
    with closing(Accounts(settings.data_dir)) as accounts:
        accounts.add("ana", Role.VIEW, "correct horse battery")
    return settings


@pytest.mark.system
def test_person_logs_in_over_https(tmp_path: Path) -> None:
    files = {"tls_keyfile": str(tmp_path / "key.pem"), "tls_certfile": str(tmp_path / "certificate.pem")}
    make_certificate(**files)
    settings = with_a_user(tmp_path, {"port": reserved_port(), **files})
    address = f"https://127.0.0.1:{settings.console.port}"
    with console_in_this_process(settings):
        page = wait_for_page(f"{address}/login")
        secret = re.search(r'name="token" value="([^"]+)"', page)
        assert secret is not None
        form = {"token": secret[1], "name": "ana", "password": "correct horse battery"}
        status, _, cookie = fetch(f"{address}/login", form)
        assert status == 303 and cookie.startswith("__Host-flawline_session=") and "Secure" in cookie
        assert fetch(f"{address}/api/ledger")[0] == 401
        assert fetch(f"{address}/api/roles", Cookie=cookie.partition(";")[0])[0] == 200


@pytest.mark.system
def test_proxy_is_believed_when_it_is_configured(tmp_path: Path) -> None:
    settings = with_a_user(tmp_path, {"port": reserved_port(), "proxies": ["127.0.0.1"]})
    address = f"http://127.0.0.1:{settings.console.port}"
    from_afar = {"X_Forwarded_For": "192.0.2.9", "X_Forwarded_Proto": "https"}
    with console_in_this_process(settings):
        wait_for_page(f"{address}/login", **from_afar)
        status, text, _ = fetch(f"{address}/login", **from_afar | {"X_Forwarded_Proto": "http"})
        assert status == 403 and "HTTPS only" in text
