"""Ports for tests: nobody else gets a reserved one, and nobody answers on a refusing one."""

from __future__ import annotations

import socket

import pytest

from tests.support import ports


def test_reserved_port_can_be_bound_and_is_not_reserved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    port = ports.reserved_port()
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
    monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
    with pytest.raises(RuntimeError, match="no port"):
        ports.reserved_port()


@pytest.mark.system
def test_port_where_another_server_listens_is_not_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
        with pytest.raises(RuntimeError, match="no port"):
            ports.reserved_port()


def test_refusing_port_refuses_connections_and_cannot_be_bound_by_another(refusing_port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", refusing_port))
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", refusing_port))
