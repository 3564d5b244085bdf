"""Who may connect to the console, and how long it waits for a client that sends no request."""

from __future__ import annotations

import http.client
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from flawline.errors import UsageError
from flawline.settings.console import ConsoleSettings
from station.web import service
from station.web.accounts import Accounts, Role
from station.web.connections import CONNECTION_LIMIT, PatientProtocol
from tests.station.web.conftest import make_certificate

WAIT_S = 1.0


class Impatient(PatientProtocol):
    """Waits shorter, so that the tests do."""

    REQUEST_TIMEOUT_S = WAIT_S


async def app(scope: dict, receive, send) -> None:  # type: ignore[no-untyped-def, type-arg]
    """Answer once the body is here."""
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port() -> Iterator[int]:
    """Serve as the console does, with a shorter wait; give the port."""
    config = uvicorn.Config(app, http=Impatient, limit_concurrency=CONNECTION_LIMIT, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def closed_by_server(connection: socket.socket, timeout_s: float = 10 * WAIT_S) -> bool:
    connection.settimeout(timeout_s)
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.system
def test_three_hundred_connections_without_a_request_are_closed_and_others_are_served(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    try:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        client.request("GET", "/")
        assert client.getresponse().read() == b"ok"
        assert all(closed_by_server(connection) for connection in silent)
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.system
@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n",
    ],
    ids=["half a header", "a body that does not come", "half a second request"],
)
def test_client_that_trickles_is_closed_although_it_sends_now_and_then(start: bytes, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        started = time.monotonic()
        connection.sendall(start)
        if start.count(b"GET") == 2:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        try:
            while time.monotonic() - started < 20 * WAIT_S:
                connection.settimeout(0.1)
                try:
                    if connection.recv(100) == b"":
                        break
                except TimeoutError:
                    connection.sendall(b"a")
        except OSError:
            pass
        assert time.monotonic() - started < 10 * WAIT_S


@pytest.mark.system
def test_one_connection_may_send_many_requests_for_longer_than_the_wait(port: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    deadline = time.monotonic() + 2 * WAIT_S
    client.connect()
    first = client.sock
    while time.monotonic() < deadline:
        client.request("POST", "/", body=b"x" * 1000)
        assert client.getresponse().read() == b"ok"
        time.sleep(WAIT_S / 5)
    assert client.sock is first
    client.close()


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    opened = Accounts(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, Path]:
    """Return the settings of a certificate of 127.0.0.1 that signs itself."""
    files = {"tls_keyfile": tmp_path / "key.pem", "tls_certfile": tmp_path / "certificate.pem"}
    make_certificate(**files)
    return files


@pytest.mark.parametrize(
    "console",
    [{"host": host} for host in ("0.0.0.0", "::", "192.0.2.7", "10.0.0.1")]
    + [{"proxies": ["127.0.0.1"]}, {"host": "0.0.0.0", "proxies": ["10.0.0.0/8"]}],
    ids=str,
)
def test_console_without_users_listens_on_this_machine_only(console: dict[str, Any], accounts: Accounts) -> None:
    with pytest.raises(UsageError, match=r"without a log-in: add a user with `flawline users add"):
        service._listen(ConsoleSettings(**console), accounts)


@pytest.mark.system
def test_certificate_alone_opens_no_door_without_users(accounts: Accounts, certificate: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="without a log-in"):
        service._listen(ConsoleSettings(host="0.0.0.0", **certificate), accounts)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7"])
def test_console_with_users_sends_no_password_in_clear_beyond_this_machine(host: str, accounts: Accounts) -> None:
    accounts.add("ana", Role.VIEW, "correct horse battery")
    with pytest.raises(UsageError, match="passwords would be sent in clear"):
        service._listen(ConsoleSettings(host=host), accounts)


@pytest.mark.system
@pytest.mark.parametrize("by", ["certificate", "proxy"])
def test_console_with_users_and_https_listens_on_every_address(
    by: str, accounts: Accounts, certificate: dict[str, Path]
) -> None:
    accounts.add("ana", Role.VIEW, "correct horse battery")
    door = certificate if by == "certificate" else {"proxies": ["10.0.0.7"]}
    with socket.create_server(("0.0.0.0", 0)) as probe:
        port = probe.getsockname()[1]
    service._listen(ConsoleSettings(host="0.0.0.0", port=port, **door), accounts).close()


@pytest.mark.system
def test_certificate_that_cannot_be_used_is_one_line(accounts: Accounts, certificate: dict[str, Path]) -> None:
    other = certificate["tls_keyfile"].with_name("other.pem")
    subprocess.run(["openssl", "genrsa", "-out", str(other), "2048"], check=True, capture_output=True)
    for key in (other, certificate["tls_keyfile"].with_name("missing.pem")):
        with pytest.raises(UsageError, match=f"{key}: .*name a certificate and its key"):
            service._listen(ConsoleSettings(**certificate | {"tls_keyfile": key}), accounts)


@pytest.mark.parametrize("proxy", ["everybody", "0.0.0.0/0", "::/0", "10.0.0.7:80"])
def test_proxies_are_addresses_and_not_everybody(proxy: str) -> None:
    with pytest.raises(ValueError, match="should be an address or a network"):
        ConsoleSettings(proxies=[proxy])


@pytest.mark.system
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_console_without_users_listens_on_this_machine(host: str, accounts: Accounts) -> None:
    with socket.create_server((host, 0)) as probe:
        port = probe.getsockname()[1]
    service._listen(ConsoleSettings(host=host, port=port), accounts).close()
