"""Attempts to connect to a broker: one that fails leaves no socket behind, and none lasts for ever.

kafka-python 3.0.12 leaves the socket of each attempt that fails to the garbage collector, which does not come because
files run out: discovery held 12 descriptors, and up to 21 while its broker was away for 90 s (10 with this). And it
waits without end for a server that takes a connection and then does not answer to TLS, as a balancer without a broker
behind it does.
"""

from __future__ import annotations

import ssl
from typing import Any

from kafka.net.inet import KafkaNetSocket
from kafka.net.transport import KafkaSSLTransport

from flawline.clock import monotonic

HANDSHAKE_S = 10.0
"""Longest wait for TLS. A judgement, not measured: a busy broker answers within a second."""

_connect = KafkaNetSocket.sock_connect
_begin_tls = KafkaSSLTransport.__init__


def mend_connections() -> None:
    """Make every client of this process connect so."""
    KafkaNetSocket.sock_connect = _sock_connect
    KafkaSSLTransport.__init__ = _init_tls
    KafkaSSLTransport.handshake = _handshake


async def _sock_connect(connector: Any, net: Any, sock: Any, address: Any, timeout_at: float | None = None) -> Any:
    try:
        return await _connect(connector, net, sock, address, timeout_at=timeout_at)
    except BaseException:
        sock.close()
        raise


def _init_tls(transport: Any, net: Any, sock: Any, *arguments: Any, **options: Any) -> None:
    try:
        _begin_tls(transport, net, sock, *arguments, **options)
    except BaseException:  # files that are no certificate or no key
        sock.close()
        raise


async def _handshake(transport: Any) -> None:
    timeout_at = monotonic() + HANDSHAKE_S
    try:
        while True:
            try:
                return transport._sock.do_handshake()
            except ssl.SSLWantReadError:
                await transport._net.wait_read(transport._sock, timeout_at=timeout_at)
            except ssl.SSLWantWriteError:
                await transport._net.wait_write(transport._sock, timeout_at=timeout_at)
    except BaseException:
        transport.close()
        raise
