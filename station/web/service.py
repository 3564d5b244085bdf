"""The role `flawline console`: serves the pages until it is told to stop."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from contextlib import closing

import uvicorn

from discovery.store.database import parse_url
from discovery.store.store import Store
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.settings.console import ConsoleSettings
from flawline.settings.tree import Settings
from station.language import languages
from station.web.accounts import Accounts
from station.web.app import create
from station.web.connections import CONNECTION_LIMIT, PatientProtocol
from station.web.ledger_watch import LedgerWatch
from station.web.live import LiveWatch
from station.web.security import is_loopback
from station.web.store_watch import ANSWER_TIMEOUT_S, StoreWatch

log = logging.getLogger(__name__)

CHECK_S = 0.5  # a judgement, not measured
STOP_TIMEOUT_S = 5  # a judgement, not measured


def run(settings: Settings, stop: threading.Event) -> None:
    """Serve until `stop`, also while the store is away. Raises UsageError, and FlawlineError for a port in use."""
    parse_url(settings.store_url)
    languages.of_code(settings.console.language, "console.language")
    # While a broker is away the Kafka client logs it many times a minute; the watch logs it once.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    with closing(Accounts(settings.data_dir)) as accounts:
        listener = _listen(settings.console, accounts)
        stores = StoreWatch(lambda: Store(settings.store_url, answer_timeout_s=ANSWER_TIMEOUT_S))
        with closing(listener), closing(stores):
            _serve(settings, stores, accounts, listener, stop)


def _serve(
    settings: Settings, stores: StoreWatch, accounts: Accounts, listener: socket.socket, stop: threading.Event
) -> None:
    console = settings.console
    watch, live, ended = LedgerWatch(settings), LiveWatch(settings), threading.Event()
    # What does not answer blocks these threads for seconds, and a stop must not wait for that.
    ledger = threading.Thread(target=watch.run, args=(ended,), name="ledger", daemon=True)
    verdicts = threading.Thread(target=live.run, args=(ended,), name="verdicts", daemon=True)
    looking = threading.Thread(target=stores.run, args=(ended,), name="store", daemon=True)
    config = uvicorn.Config(
        create(
            settings, stores, watch, live, accounts, is_open=_is_loopback_host(console.host) and not console.proxies
        ),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=PatientProtocol,
        # uvicorn believes every proxy of this machine by default.
        proxy_headers=bool(console.proxies),
        forwarded_allow_ips=console.proxies,
        ssl_certfile=console.tls_certfile,
        ssl_keyfile=console.tls_keyfile,
        limit_concurrency=CONNECTION_LIMIT,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    server = uvicorn.Server(config)
    # Not in the main thread: there uvicorn would take the signals that set `stop`.
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http")
    looking.start()
    ledger.start()
    verdicts.start()
    serving.start()
    log.info("the console is on %s://%s:%d", "https" if console.tls_certfile else "http", console.host, console.port)
    try:
        while not stop.wait(CHECK_S):
            for thread in (serving, ledger, verdicts, looking):
                if not thread.is_alive():
                    raise FlawlineError(
                        f"the console's {thread.name} thread has ended by itself: see what it reports above"
                    )
    finally:
        ended.set()
        server.should_exit = True
        serving.join()
        for thread in (ledger, verdicts, looking):
            thread.join(STOP_TIMEOUT_S)


def _listen(console: ConsoleSettings, accounts: Accounts) -> socket.socket:
    """Return the listening socket. Raises UsageError where strangers could come in, FlawlineError for a port in use."""
    host, port = console.host, console.port
    if port == 0:
        raise UsageError("console.port 0: the console is turned off: set a port, such as 8400")
    _check_certificate(console)
    _check_doors(console, accounts)
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise FlawlineError(
            f"console {host}:{port} cannot be used ({error.strerror}): choose another console.port or console.host"
        ) from error


def _check_doors(console: ConsoleSettings, accounts: Accounts) -> None:
    """Raise UsageError for a console that other machines reach without users, or with passwords in clear."""
    is_for_others = not _is_loopback_host(console.host)
    setting = f"console.host {console.host}" if is_for_others else f"console.proxies {', '.join(console.proxies)}"
    if (is_for_others or console.proxies) and not accounts.are_there():
        raise UsageError(
            f"{setting}: others would come in without a log-in: add a user with "
            "`flawline users add NAME --role admin`, or set console.host 127.0.0.1 without console.proxies"
        )
    if is_for_others and not console.tls_certfile and not console.proxies:
        raise UsageError(
            f"{setting}: passwords would be sent in clear: set console.tls_certfile and console.tls_keyfile, or "
            "console.proxies for a proxy that speaks HTTPS"
        )


def _is_loopback_host(host: str) -> bool:
    """Return whether a host is this machine alone. Raises UsageError for one that does not exist."""
    try:
        return all(is_loopback(str(information[4][0])) for information in socket.getaddrinfo(host, None))
    except OSError as error:
        raise UsageError(f"console.host {host}: no such host ({error.strerror}): set 127.0.0.1") from error


def _check_certificate(console: ConsoleSettings) -> None:
    """Raise UsageError for a certificate or a key that cannot be used."""
    if console.tls_certfile is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            console.tls_certfile,
            console.tls_keyfile,
            password=lambda: "",  # or OpenSSL would ask the terminal
        )
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"console.tls_certfile {console.tls_certfile}, tls_keyfile {console.tls_keyfile}: {one_line(error)}: "
            "name a certificate and its key (PEM) that this user may read"
        ) from error
