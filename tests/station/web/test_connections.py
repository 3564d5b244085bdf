"""Who may connect to the console, and how long it waits for a client that sends no request."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from flawline.errors import UsageError
from station.web import service
from station.web.connections import CONNECTION_LIMIT, PatientProtocol

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


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "10.0.0.1"])
def test_console_cannot_be_started_beyond_this_machine_because_it_has_no_log_in(host: str) -> None:
    with pytest.raises(UsageError, match=f"console.host {host}: the console has no log-in"):
        service._listen(host, 8400)


@pytest.mark.system
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_console_listens_on_this_machine(host: str) -> None:
    with socket.create_server((host, 0)) as probe:
        port = probe.getsockname()[1]
    service._listen(host, port).close()
