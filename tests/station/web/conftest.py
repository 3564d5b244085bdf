"""A console with a store that discovery has filled."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient
from sqlalchemy import make_url

from discovery.store.store import Batch, Store
from flawline.messages import Decision
from flawline.settings.discovery import DiscoverySettings
from flawline.settings.tree import Settings, load_settings
from station.web.accounts import Accounts
from station.web.app import create
from station.web.ledger_watch import LedgerWatch
from station.web.live import LiveWatch
from station.web.store_watch import StoreWatch
from tests.discovery import factories
from tests.discovery.stream import Stream
from tests.support.ports import reserved_port

ADDRESS = "http://127.0.0.1:8400"
NOW_NS = factories.START_NS + 90 * 1_000_000_000


@pytest.fixture
def settings(tmp_path: Path, refusing_port: int) -> Settings:
    """Return the settings of a line whose broker is away."""
    nothing = tmp_path / "nothing.toml"
    nothing.touch()  # so that no file of the working directory is read
    return load_settings(
        nothing,
        data_dir=str(tmp_path),
        kafka={"bootstrap_servers": f"127.0.0.1:{refusing_port}"},
        metrics={"up_port": 0},
    )


def filled(url: str) -> Store:
    """Return a store with two classes of 28 frames each, and verdicts of two cameras within two minutes."""
    opened = Store(url, utc_ns=lambda: NOW_NS)
    stream = Stream(opened, DiscoverySettings(window_regions=200, class_limit=10), factories.directions(5), spread=0.4)
    for _ in range(2):
        stream.feed([0, 1] * 14)
        stream.round()
    stream.round()  # what the second one finds first is confirmed by the third
    # Other frames than those with defects, of the same minutes.
    accepted = [factories.verdict(100 + n, captured_at=factories.START_NS + n * 1_000_000_000) for n in range(80)]
    rejected = [factories.verdict(n, "cam-2", Decision.REJECT) for n in range(5)]
    opened.ingest(Batch(verdicts=[*accepted, *rejected, *(factories.verdict(n, "cam-2") for n in range(5, 20))]))
    return opened


@pytest.fixture(scope="session")
def filled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a filled store: to copy it takes a hundredth of the time to fill another."""
    file = tmp_path_factory.mktemp("filled") / "store.db"
    filled(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def store(settings: Settings, filled_file: Path) -> Iterator[Store]:
    file = make_url(settings.store_url).database
    assert file is not None
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(filled_file, file)
    opened = Store(settings.store_url, utc_ns=lambda: NOW_NS)
    yield opened
    opened.close()


@pytest.fixture
def watch(settings: Settings) -> Iterator[LedgerWatch]:
    following = LedgerWatch(settings)
    yield following
    following.close()


@pytest.fixture
def accounts(settings: Settings) -> Iterator[Accounts]:
    """Return the users of the console: none."""
    opened = Accounts(settings.data_dir)
    yield opened
    opened.close()


def browser(
    settings: Settings,
    store: Store,
    watch: LedgerWatch,
    accounts: Accounts,
    *,
    is_open: bool = True,
    address: str = ADDRESS,
    client: str = "127.0.0.1",
    live: LiveWatch | None = None,
) -> TestClient:
    """Return a browser on a machine, which gets an error of the console as a response and not as an exception."""
    stores = StoreWatch(lambda: store)
    stores.poll()
    app = create(settings, stores, watch, live or LiveWatch(settings), accounts, is_open)
    return TestClient(
        app, base_url=address, follow_redirects=False, raise_server_exceptions=False, client=(client, 50_000)
    )


@contextmanager
def served(
    settings: Settings,
    store: Store,
    watch: LedgerWatch,
    accounts: Accounts,
    live: LiveWatch | None = None,
) -> Iterator[str]:
    """Serve a console for a real browser, and yield its address."""
    stores = StoreWatch(lambda: store)
    stores.poll()
    app = create(settings, stores, watch, live or LiveWatch(settings), accounts, is_open=True)
    port = reserved_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(settings: Settings, store: Store, watch: LedgerWatch, accounts: Accounts) -> TestClient:
    return browser(settings, store, watch, accounts)


def make_certificate(tls_keyfile: Path | str, tls_certfile: Path | str) -> None:
    """Write a key, and a certificate of 127.0.0.1 that signs itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tls_keyfile, "-out", tls_certfile],
        check=True, capture_output=True,
    )  # fmt: skip


def token(client: TestClient, class_id: str) -> str:
    """Return the token in the forms of a class's page."""
    match = re.search(r'name="token" value="([^"]+)"', client.get(f"/classes/{class_id}").text)
    assert match is not None
    return match[1]
