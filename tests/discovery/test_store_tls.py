"""A PostgreSQL that takes TLS only: the right authority opens the store, and a refusal names its cause on one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from discovery.store.database import DatabaseAway
from discovery.store.store import Store
from flawline.settings.tree import Settings
from station.cli import doctor_checks
from station.cli.finding import Status
from tests.support.brokers import Certificates
from tests.support.postgres import PostgresServer, running_postgres

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates of this test")
    return Certificates(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[PostgresServer]:
    with running_postgres(certificates) as running:
        yield running


def full(authority: Path) -> str:
    return f"?sslmode=verify-full&sslrootcert={authority}"


def refusal(url: str) -> str:
    """Return why a store cannot be opened."""
    with pytest.raises(DatabaseAway) as raised:
        Store(url)
    told = str(raised.value)
    assert "\n" not in told and len(told) < 700
    return told


def test_store_is_opened_through_tls_when_the_authority_of_the_server_is_known(
    server: PostgresServer, certificates: Certificates
) -> None:
    store = Store(server.new_database() + full(certificates.authority))
    try:
        with store.reading() as connection:
            query = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            is_encrypted, version = connection.execute(text(query)).one()
        assert is_encrypted and version >= "TLSv1.2"
    finally:
        store.close()


def test_refusals_name_the_cause_and_what_to_change(
    server: PostgresServer, postgres_server: PostgresServer, certificates: Certificates, tmp_path: Path
) -> None:
    url, right = server.new_database(), full(certificates.authority)
    told = refusal(url + full(certificates.other_authority))
    assert "certificate verify failed: set sslrootcert in store.url" in told
    told = refusal(url.replace("127.0.0.1", "localhost") + right + "&hostaddr=127.0.0.1")
    assert "does not match host name" in told and told.endswith("certificate is for in store.url")
    told = refusal(url + full(tmp_path / "missing.pem"))
    assert "missing.pem" in told and told.endswith("correct sslrootcert in store.url")
    told = refusal(url + "?sslmode=disable")
    assert "no encryption" in told and told.endswith("set sslmode=verify-full and sslrootcert in store.url")
    told = refusal(url.replace("postgres@", "guarded:wrong-word@") + right)
    assert "password authentication failed" in told and told.endswith("correct user and password in store.url")
    assert "wrong-word" not in told
    told = refusal(postgres_server.new_database() + right)
    assert "does not support SSL" in told and "ssl = on" in told


def test_doctor_names_the_cause(server: PostgresServer, certificates: Certificates) -> None:
    settings = Settings(store={"url": server.new_database() + full(certificates.other_authority)})
    (finding,) = doctor_checks.store(settings)
    assert finding.status is Status.FAIL and "certificate verify failed" in finding.text
    assert finding.remedy.startswith("set sslrootcert in store.url")
    settings = Settings(store={"url": server.new_database() + full(certificates.authority)})
    assert {finding.status for finding in doctor_checks.store(settings)} == {Status.OK}
