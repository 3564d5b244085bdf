"""Why a broker refuses a client. The Kafka client tells it to its log only, and tries until its time is over."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka.errors import IllegalSaslStateError, SaslAuthenticationFailedError, for_code
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse
from kafka.protocol.sasl import (
    SaslAuthenticateRequest,
    SaslAuthenticateResponse,
    SaslHandshakeRequest,
    SaslHandshakeResponse,
)

from flawline.errors import one_line
from flawline.settings.tree import KafkaSettings

STEP_TIMEOUT_S = 3.0  # a judgement, not measured
LARGEST_ANSWER_BYTES = 1 << 20  # a judgement, not measured

UNSUPPORTED_MECHANISM = 33
EXPIRED, WRONG_HOST = 10, 62
"""Codes of OpenSSL's certificate check; the others mean that no known authority has signed the certificate."""

Address = tuple[str, int]


class Refusal(Exception):
    """The broker will never take this client with these settings; the message says why and what to change."""


def check(kafka: KafkaSettings, bootstrap_servers: str) -> None:
    """Try each step of a connection at the first broker of the list that answers.

    Raises Refusal at the step that fails, and OSError when no broker answers. When it returns, the broker takes
    clients with these settings.
    """
    address = first_that_answers(bootstrap_servers)
    tls = _tls_context(kafka) if kafka.security_protocol in ("SSL", "SASL_SSL") else None
    try:
        with _connection(address, tls) as connection:
            answer = _ask(connection, ApiVersionsRequest(version=0), ApiVersionsResponse)
            if any(api.api_key == SaslHandshakeRequest.API_KEY for api in answer.api_keys):
                _check_password(kafka, connection)
            elif kafka.security_protocol.startswith("SASL"):
                raise Refusal(_not_asked(kafka))
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise Refusal(_cause(kafka, address, error)) from error


def first_that_answers(bootstrap_servers: str) -> Address:
    """Return the first address that takes a connection. Raises OSError with the reason of the last one."""
    last: OSError = OSError("no address is set")
    for text in bootstrap_servers.split(","):
        host, _, port = text.strip().rpartition(":")
        address = (host.strip("[]"), int(port))
        try:
            socket.create_connection(address, STEP_TIMEOUT_S).close()
            return address
        except OSError as error:
            last = error
    raise last


def _tls_context(kafka: KafkaSettings, *, checked: bool = True) -> ssl.SSLContext:
    """Return the client's side of TLS. Raises Refusal for files that hold no certificate or key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not checked:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    try:
        if kafka.ssl_cafile:
            context.load_verify_locations(kafka.ssl_cafile)
        else:
            context.load_default_certs()
    except OSError as error:
        raise Refusal(f"kafka.ssl_cafile {kafka.ssl_cafile} holds no certificates: give a PEM file") from error
    if kafka.ssl_certfile:
        try:
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile, password=lambda: "")
        except OSError as error:
            raise Refusal(
                f"kafka.ssl_certfile {kafka.ssl_certfile} and ssl_keyfile {kafka.ssl_keyfile} are no pair of "
                f"certificate and key without a password ({one_line(error)}): give PEM files that belong together"
            ) from error
    return context


@contextmanager
def _connection(address: Address, tls: ssl.SSLContext | None) -> Iterator[socket.socket]:
    """Give a connection, through TLS where there is a context. Raises OSError."""
    with socket.create_connection(address, STEP_TIMEOUT_S) as plain:
        if tls is None:
            yield plain
        else:
            with tls.wrap_socket(plain, server_hostname=address[0]) as encrypted:
                yield encrypted


def _ask(connection: socket.socket, request: Any, response: Any) -> Any:
    """Send a request of kafka-python's schemas and return the answer. Raises OSError, EOFError, ValueError."""
    request.with_header(correlation_id=1, client_id="flawline")
    connection.sendall(request.encode(framed=True, header=True))
    (size,) = struct.unpack(">i", _read(connection, 4))
    if not 4 <= size <= LARGEST_ANSWER_BYTES:
        raise ValueError(f"the answer is not of Kafka ({size} bytes)")
    return response.decode(_read(connection, size), version=request.API_VERSION, header=True)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the connection was closed")
        data += part
    return data


def _check_password(kafka: KafkaSettings, connection: socket.socket) -> None:
    """Log in with SASL where the settings say so. Raises Refusal when one side wants it and the other does not."""
    wants = kafka.security_protocol.startswith("SASL")
    mechanism = kafka.sasl_mechanism if wants else "PLAIN"
    answer = _ask(connection, SaslHandshakeRequest(version=1, mechanism=mechanism), SaslHandshakeResponse)
    asked = for_code(answer.error_code) is not IllegalSaslStateError
    offered = ", ".join(answer.mechanisms)
    tls = "SSL" in kafka.security_protocol
    if not wants:
        if asked:
            raise Refusal(
                f"the broker asks for a password ({offered}): set kafka.security_protocol = "
                f'"{"SASL_SSL" if tls else "SASL_PLAINTEXT"}" with sasl_mechanism, sasl_username and sasl_password'
            )
        return
    if not asked:
        raise Refusal(_not_asked(kafka))
    if answer.error_code == UNSUPPORTED_MECHANISM or mechanism not in answer.mechanisms:
        raise Refusal(f"the broker does not know kafka.sasl_mechanism {mechanism}: choose one of {offered}")
    _log_in(kafka, connection)


def _not_asked(kafka: KafkaSettings) -> str:
    return (
        "the broker does not ask for a password on this port: set kafka.security_protocol = "
        f'"{"SSL" if "SSL" in kafka.security_protocol else "PLAINTEXT"}", or use the port of its SASL listener'
    )


def _log_in(kafka: KafkaSettings, connection: socket.socket) -> None:
    password = kafka.sasl_password.get_secret_value() if kafka.sasl_password else ""
    client = get_sasl_mechanism(kafka.sasl_mechanism)(
        sasl_mechanism=kafka.sasl_mechanism, sasl_plain_username=kafka.sasl_username, sasl_plain_password=password
    )
    while not client.is_done():
        request = SaslAuthenticateRequest(version=0, auth_bytes=client.auth_bytes())
        answer = _ask(connection, request, SaslAuthenticateResponse)
        if for_code(answer.error_code) is SaslAuthenticationFailedError:
            raise Refusal(
                f"the broker does not know the user {kafka.sasl_username} with this password: correct "
                "kafka.sasl_username and kafka.sasl_password, or create the user on the broker for "
                f"{kafka.sasl_mechanism}"
            )
        client.receive(answer.auth_bytes)


def _cause(kafka: KafkaSettings, address: Address, error: Exception) -> str:
    """Return why a step has failed with this error: it speaks of the settings that must change."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _cause_of_certificate(kafka, address[0], error)
    sasl = kafka.security_protocol.startswith("SASL")
    if kafka.security_protocol in ("SSL", "SASL_SSL"):
        if _works(address, None):
            return (
                "the port speaks plain text and kafka.security_protocol is "
                f'{kafka.security_protocol}: set "{"SASL_PLAINTEXT" if sasl else "PLAINTEXT"}", or use the TLS port'
            )
        reason = getattr(error, "reason", None) or ""
        if kafka.ssl_certfile is None and (reason.endswith(("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE"))):
            return "the broker asks for a certificate of the client: set kafka.ssl_certfile and kafka.ssl_keyfile"
        if kafka.ssl_certfile is not None and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            return (
                f"the broker does not accept kafka.ssl_certfile {kafka.ssl_certfile} ({one_line(error)}): give one "
                "that an authority of the broker's truststore has signed and that has not expired"
            )
        return f"TLS with the broker fails ({one_line(error)}): see the broker's log"
    if _works(address, _tls_context(kafka, checked=False), handshake_only=True):
        return (
            f"the port speaks TLS and kafka.security_protocol is {kafka.security_protocol}: set "
            f'"{"SASL_SSL" if sasl else "SSL"}" and kafka.ssl_cafile, or use the port for plain text'
        )
    return f"what listens there does not answer as a Kafka broker does ({one_line(error)}): correct the port"


def _cause_of_certificate(kafka: KafkaSettings, host: str, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == EXPIRED:
        return "the broker's certificate has expired: renew it, or correct this machine's clock"
    if error.verify_code == WRONG_HOST or "ostname mismatch" in str(error) or "IP address mismatch" in str(error):
        return (
            f"the broker's certificate is not for {host} ({error.verify_message}): use the name that it is for in "
            "kafka.bootstrap_servers"
        )
    if kafka.ssl_cafile is None:
        return (
            f"no authority that this machine knows has signed the broker's certificate ({error.verify_message}): set "
            "kafka.ssl_cafile to the certificate of its authority"
        )
    return (
        f"no authority in kafka.ssl_cafile {kafka.ssl_cafile} has signed the broker's certificate "
        f"({error.verify_message}): give the certificate of its authority"
    )


def _works(address: Address, tls: ssl.SSLContext | None, *, handshake_only: bool = False) -> bool:
    """Return whether the port answers in plain text, or through TLS."""
    try:
        with _connection(address, tls) as connection:
            if not handshake_only:
                _ask(connection, ApiVersionsRequest(version=0), ApiVersionsResponse)
    except ssl.SSLError as error:
        # Only who speaks TLS sends an alert.
        return "ALERT" in (error.reason or "")
    except (OSError, EOFError, ValueError, struct.error):
        return False
    return True
