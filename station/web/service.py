"""The role `flawline console`: serves the pages until it is told to stop."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from contextlib import closing

import uvicorn

from discovery.store.database import parse_url
from discovery.store.store import Store
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings
from station.web.app import create
from station.web.connections import CONNECTION_LIMIT, PatientProtocol
from station.web.ledger_watch import LedgerWatch
from station.web.store_watch import ANSWER_TIMEOUT_S, StoreWatch

log = logging.getLogger(__name__)

CHECK_S = 0.5
STOP_TIMEOUT_S = 5


def run(settings: Settings, stop: threading.Event) -> None:
    """Serve until `stop`, also while the store is away. Raises UsageError, and FlawlineError for a port in use."""
    parse_url(settings.store_url)
    # While a broker is away the Kafka client logs it many times a minute; the watch logs it once.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    listener = _listen(settings.console.host, settings.console.port)
    stores = StoreWatch(lambda: Store(settings.store_url, answer_timeout_s=ANSWER_TIMEOUT_S))
    with closing(listener), closing(stores):
        _serve(settings, stores, listener, stop)


def _serve(settings: Settings, stores: StoreWatch, listener: socket.socket, stop: threading.Event) -> None:
    watch, ended = LedgerWatch(settings), threading.Event()
    # What does not answer blocks these threads for seconds, and a stop must not wait for that.
    ledger = threading.Thread(target=watch.run, args=(ended,), name="ledger", daemon=True)
    looking = threading.Thread(target=stores.run, args=(ended,), name="store", daemon=True)
    config = uvicorn.Config(
        create(settings, stores, watch),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=PatientProtocol,
        limit_concurrency=CONNECTION_LIMIT,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    server = uvicorn.Server(config)
    # Not in the main thread: there uvicorn would take the signals that set `stop`.
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http")
    looking.start()
    ledger.start()
    serving.start()
    log.info("the console is on http://%s:%d", settings.console.host, settings.console.port)
    try:
        while not stop.wait(CHECK_S):
            for thread in (serving, ledger, looking):
                if not thread.is_alive():
                    raise FlawlineError(
                        f"the console's {thread.name} thread has ended by itself: see what it reports above"
                    )
    finally:
        ended.set()
        server.should_exit = True
        serving.join()
        for thread in (ledger, looking):
            thread.join(STOP_TIMEOUT_S)


def _listen(host: str, port: int) -> socket.socket:
    if port == 0:
        raise UsageError("console.port 0: the console is turned off: set a port, such as 8400")
    _require_loopback(host)
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise FlawlineError(
            f"console {host}:{port} cannot be used ({error.strerror}): choose another console.port or console.host"
        ) from error


def _require_loopback(host: str) -> None:
    """Raise UsageError for a host that others reach: who reaches the console may name classes, and it has no log-in."""
    try:
        addresses = {str(information[4][0]) for information in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise UsageError(f"console.host {host}: no such host ({error.strerror}): set 127.0.0.1") from error
    if not all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        raise UsageError(
            f"console.host {host}: the console has no log-in, so it listens on this machine only: set 127.0.0.1, and "
            "let others in by an SSH tunnel or a proxy that asks who they are"
        )
