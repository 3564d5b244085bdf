"""A broker that refuses: each cause has an error of its own, soon, with what to change. On a real Apache Kafka."""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flawline import kafka_clients, kafka_refusal
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import KafkaSettings, Settings
from tests.support.brokers import SecuredKafka

SOON_S = 5.0
"""A refusal is named within this time; a broker that is away is waited for twice as long."""


@pytest.fixture(autouse=True)
def _no_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Let pytest keep no log record of the client: its error holds the client's files open."""
    caplog.set_level(logging.CRITICAL, "kafka")


@pytest.fixture
def broker(secured_kafka: SecuredKafka) -> SecuredKafka:
    secured_kafka.add_user("somebody")
    return secured_kafka


def open_things() -> tuple[int, int]:
    """Return the number of threads and of open files."""
    return threading.active_count(), sum(1 for _ in Path("/proc/self/fd").iterdir())


def settings(broker: SecuredKafka, listener: str, **kafka: Any) -> Settings:
    address = broker.bootstrap if listener == "plain" else broker.listener(listener)
    return Settings(kafka=KafkaSettings(bootstrap_servers=address, **kafka))


def sasl(broker: SecuredKafka, **changed: Any) -> dict[str, Any]:
    values = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": broker.MECHANISM,
        "sasl_username": "somebody",
        "sasl_password": broker.PASSWORD,
    }
    return values | changed


def client_certificate(broker: SecuredKafka, name: str) -> dict[str, Any]:
    files = broker.certificates
    return {
        "security_protocol": "SSL",
        "ssl_cafile": files.authority,
        "ssl_certfile": files.certificate(name),
        "ssl_keyfile": files.key(name),
    }


def cases(broker: SecuredKafka) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Return for each cause the listener, the settings, and words of the error."""
    files = broker.certificates
    tls = {"security_protocol": "SSL", "ssl_cafile": files.authority}
    sasl_tls = sasl(broker, security_protocol="SASL_SSL", ssl_cafile=files.authority)
    return {
        "wrong password": (
            "sasl",
            sasl(broker, sasl_password="wrong-word"),
            "does not know the user somebody with this password",
        ),
        "unknown user": ("sasl", sasl(broker, sasl_username="nobody"), "does not know the user nobody"),
        "wrong password through TLS": (
            "sasl_tls",
            sasl_tls | {"sasl_password": "wrong-word"},
            "does not know the user",
        ),
        "mechanism that the broker lacks": (
            "sasl",
            sasl(broker, sasl_mechanism="PLAIN"),
            "does not know kafka.sasl_mechanism PLAIN: choose one of SCRAM-SHA-512",
        ),
        "no authority": ("tls", {"security_protocol": "SSL"}, "set kafka.ssl_cafile"),
        "wrong authority": ("tls", tls | {"ssl_cafile": files.other_authority}, "no authority in kafka.ssl_cafile"),
        "authority that is no certificate": ("tls", tls | {"ssl_cafile": files.key("client")}, "holds no certificates"),
        "plain text on the TLS port": ("tls", {}, 'speaks TLS and kafka.security_protocol is PLAINTEXT: set "SSL"'),
        "SASL in plain text on the TLS port": ("sasl_tls", sasl(broker), 'speaks TLS.*set "SASL_SSL"'),
        "TLS on the plain port": ("plain", tls, 'speaks plain text and .* is SSL: set "PLAINTEXT"'),
        "SASL with TLS on the plain SASL port": ("sasl", sasl_tls, 'speaks plain text.*set "SASL_PLAINTEXT"'),
        "no password where one is asked": ("sasl", {}, r'asks for a password \(SCRAM-SHA-512\).*"SASL_PLAINTEXT"'),
        "TLS alone where a password is asked": ("sasl_tls", tls, 'asks for a password.*"SASL_SSL"'),
        "password where none is asked": ("plain", sasl(broker), 'does not ask for a password.*"PLAINTEXT"'),
        "no certificate of the client": ("mutual_tls", tls, "asks for a certificate of the client"),
        "client's certificate of another authority": (
            "mutual_tls",
            client_certificate(broker, "stranger"),
            "does not accept kafka.ssl_certfile",
        ),
        "key of another certificate": (
            "mutual_tls",
            client_certificate(broker, "client") | {"ssl_keyfile": files.key("stranger")},
            "are no pair of certificate and key",
        ),
    }


NAMES = [
    "wrong password", "unknown user", "wrong password through TLS", "mechanism that the broker lacks", "no authority",
    "wrong authority", "authority that is no certificate", "plain text on the TLS port",
    "SASL in plain text on the TLS port", "TLS on the plain port", "SASL with TLS on the plain SASL port",
    "no password where one is asked", "TLS alone where a password is asked", "password where none is asked",
    "no certificate of the client", "client's certificate of another authority", "key of another certificate",
]  # fmt: skip


def test_every_case_has_its_test(broker: SecuredKafka) -> None:
    assert list(cases(broker)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_refusal_names_its_cause_and_remedy_soon_and_leaves_nothing_open(name: str, broker: SecuredKafka) -> None:
    listener, kafka, words = cases(broker)[name]
    wrong = settings(broker, listener, **kafka)
    before = open_things()
    started = time.monotonic()
    with pytest.raises(FlawlineError, match=words) as raised:
        kafka_clients.admin(wrong)
    assert time.monotonic() - started < SOON_S
    text = str(raised.value)
    assert "\n" not in text and wrong.bootstrap_servers in text and "wrong-word" not in text
    del raised
    assert open_things() <= before


@pytest.mark.parametrize("name", ["plain", "tls", "mutual_tls", "sasl", "sasl_tls"])
def test_right_settings_come_in(name: str, broker: SecuredKafka) -> None:
    tls = {"security_protocol": "SSL", "ssl_cafile": broker.certificates.authority}
    right = {
        "plain": {},
        "tls": tls,
        "mutual_tls": client_certificate(broker, "client"),
        "sasl": sasl(broker),
        "sasl_tls": sasl(broker, **tls | {"security_protocol": "SASL_SSL"}),
    }[name]
    loaded = settings(broker, name, **right)
    kafka_refusal.check(loaded.kafka, loaded.bootstrap_servers)
    client = kafka_clients.admin(loaded)
    client.close()


@pytest.mark.system
def test_certificate_for_another_name_is_told(broker: SecuredKafka) -> None:
    files = broker.certificates
    port = broker.listener("tls").rpartition(":")[2]
    wrong = Settings(
        kafka={"bootstrap_servers": f"localhost:{port}", "security_protocol": "SSL", "ssl_cafile": files.authority}
    )
    with pytest.raises(FlawlineError, match="certificate is not for localhost"):
        kafka_clients.admin(wrong)


@pytest.mark.system
def test_something_that_is_no_broker_is_told() -> None:
    answers = Answers(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with answers as address, pytest.raises(kafka_refusal.Refusal, match="does not answer as a Kafka broker"):
        kafka_refusal.check(KafkaSettings(), address)


@pytest.mark.system
@pytest.mark.parametrize("kind", ["consumer", "admin"])
def test_broker_that_is_away_is_waited_for_and_leaves_nothing_open(
    kind: str, refusing_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_clients, "BOOTSTRAP_TIMEOUT_MS", 2_000)
    away = Settings(kafka={"bootstrap_servers": f"127.0.0.1:{refusing_port}"})
    before = open_things()
    started = time.monotonic()
    with pytest.raises(FlawlineError, match=r"is away .*Connection refused.*start it") as raised:
        getattr(kafka_clients, kind)(away)
    assert time.monotonic() - started >= 1.9
    del raised
    assert open_things() <= before


@pytest.mark.parametrize("missing", ["sasl_mechanism", "sasl_username", "sasl_password"])
def test_protocol_with_a_password_and_a_part_missing_is_told_before_any_connection(missing: str) -> None:
    values = {"sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": "p"} | {missing: None}
    with pytest.raises(UsageError, match=rf"kafka\.{missing} is not set"):
        kafka_clients.admin(Settings(kafka={"security_protocol": "SASL_SSL"} | values))


class Answers:
    """A server on a port that gives the same answer to everything."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> str:
        self._thread.start()
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.recv(1000)
                connection.sendall(self._answer)
