"""Real brokers for tests: the embedded one in a child process, and Apache Kafka where KAFKA_HOME is set."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

from embedded_broker import EmbeddedBroker
from tests.support.ports import reserved_port

_KAFKA_START_TIMEOUT_S = 60.0


class RunningBroker(Protocol):
    """Is what a test needs of a broker, embedded or Apache Kafka."""

    @property
    def bootstrap(self) -> str: ...
    @property
    def pid(self) -> int: ...
    def start(self) -> RunningBroker: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def restart(self) -> RunningBroker: ...


def kafka_home() -> Path | None:
    """Return the folder of Apache Kafka, None when the environment does not name one that can be used."""
    home = os.environ.get("KAFKA_HOME")
    if home and next(Path(home).glob("libs/kafka-clients-*.jar"), None) and shutil.which("java"):
        return Path(home)
    return None


def unique(name: str) -> str:
    """Return a topic or group name that no other test uses."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


class ApacheKafka:
    """Runs one KRaft node of Apache Kafka from KAFKA_HOME, on a port of its own, with timings fit for tests."""

    def __init__(self, home: Path, data_dir: Path, advertised_port: int | None = None) -> None:
        self._classpath = f"{home}/libs/*"
        self._data_dir = data_dir
        self._port = reserved_port()
        self._advertised_port = advertised_port or self._port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._advertised_port}"

    @property
    def port(self) -> int:
        """Return the port that the node itself listens on."""
        return self._port

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the node's process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> ApacheKafka:
        """Format the data folder at the first start, start the node, and return when clients can connect."""
        properties = self._data_dir / "server.properties"
        if not properties.exists():
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._write(properties)
            tool = ["java", "-cp", self._classpath, "kafka.tools.StorageTool"]
            cluster = subprocess.run([*tool, "random-uuid"], check=True, capture_output=True, text=True).stdout
            format_ = [*tool, "format", "--standalone", "-t", cluster.split()[-1], "-c", str(properties)]
            subprocess.run(format_, check=True, capture_output=True)
        java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        java += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", self._classpath, "kafka.Kafka"]
        with (self._data_dir / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen([*java, str(properties)], stdout=log, stderr=log, start_new_session=True)
        self._wait_until_listening()
        return self

    def _write(self, properties: Path) -> None:
        controller = reserved_port()
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._advertised_port},CONTROLLER://127.0.0.1:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self._data_dir / "data",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 2,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "message.max.bytes": 16 << 20,
            "log.retention.check.interval.ms": 500,
            "log.cleaner.backoff.ms": 300,
            # A killed node may register again only when its old session is over.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 500,
            "log.flush.start.offset.checkpoint.interval.ms": 100,
            "log.initial.task.delay.ms": 500,
            "log.segment.delete.delay.ms": 0,
            "socket.request.max.bytes": 128 << 20,
        }
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + _KAFKA_START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        log = (self._data_dir / "kafka.log").read_text(errors="replace")[-2000:]
        self.kill()
        raise RuntimeError(f"Apache Kafka did not start: {log}")

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
        self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self) -> ApacheKafka:
        self.stop()
        return self.start()


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """Run one embedded broker for the whole session; a test uses unique names and does not stop it."""
    with EmbeddedBroker(tmp_path_factory.mktemp("broker"), options=("--housekeeping-interval", "0.5")) as broker:
        yield broker


@pytest.fixture
def fresh_broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """Run an embedded broker for one test, which may kill and restart it."""
    options = ("--housekeeping-interval", "0.5")
    with EmbeddedBroker(tmp_path / "broker", port=reserved_port(), options=options) as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """Run one Apache Kafka node for the whole session; skip where KAFKA_HOME is not set."""
    home = kafka_home()
    if home is None:
        pytest.skip("set KAFKA_HOME to a folder of Apache Kafka 4 (and have java) to run this")
    kafka = ApacheKafka(home, tmp_path_factory.mktemp("kafka"))
    kafka.start()
    yield kafka
    kafka.stop()


class SecuredKafka(ApacheKafka):
    """Apache Kafka with a listener for each way to connect, an authoriser, and users that SCRAM knows.

    `listener(name)` gives the address of tls, mutual_tls, sasl or sasl_tls. Who comes in by `bootstrap`, in plain text
    and without a name, may do anything.
    """

    PASSWORD = "word-of-a-test"
    MECHANISM = "SCRAM-SHA-512"

    def __init__(self, home: Path, data_dir: Path) -> None:
        super().__init__(home, data_dir)
        self._ports = {name: reserved_port() for name in ("tls", "mutual_tls", "sasl", "sasl_tls")}
        self.certificates = Certificates(data_dir / "certificates")

    def listener(self, name: str) -> str:
        """Return host:port of a listener."""
        return f"127.0.0.1:{self._ports[name]}"

    def _write(self, properties: Path) -> None:
        super()._write(properties)
        text = properties.read_text()
        inside = next(line for line in text.splitlines() if line.startswith("listeners=")).partition("=")[2]
        protocols = {"tls": "SSL", "mutual_tls": "SSL", "sasl": "SASL_PLAINTEXT", "sasl_tls": "SASL_SSL"}
        listeners = ",".join([inside, *(f"{name}://{self.listener(name)}" for name in protocols)])
        protocol_map = ["PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", *map(":".join, protocols.items())]
        jaas = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        settings = {
            "listeners": listeners,
            "advertised.listeners": listeners,
            "listener.security.protocol.map": ",".join(protocol_map),
            "listener.name.mutual_tls.ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.certificates.pair("broker"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.certificates.authority,
            "sasl.enabled.mechanisms": self.MECHANISM,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }
        settings |= {
            f"listener.name.{name}.{self.MECHANISM.lower()}.sasl.jaas.config": jaas for name in ("sasl", "sasl_tls")
        }
        properties.write_text(text + "".join(f"{name}={value}\n" for name, value in settings.items()))

    def add_user(self, name: str) -> None:
        """Let SCRAM know a user, with the password of all of them."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(name, ScramMechanism.SCRAM_SHA_512, self.PASSWORD, iterations=4096)]
            )
        finally:
            admin.close()


class Certificates:
    """Certificates that OpenSSL makes: an authority, what it has signed, and another authority that signed nothing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.authority = self._authority("authority")
        self.other_authority = self._authority("other")
        for name in ("broker", "client"):
            self._signed(name, self.authority)
        self._signed("stranger", self.other_authority)

    def certificate(self, name: str) -> Path:
        """Return the certificate of broker, client or stranger (whom the other authority has signed)."""
        return self._folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        """Return the private key of broker, client or stranger."""
        return self._folder / f"{name}.key"

    def pair(self, name: str) -> Path:
        """Return key and certificate in one file, as Kafka reads them."""
        file = self._folder / f"{name}-pair.pem"
        file.write_text(self.key(name).read_text() + self.certificate(name).read_text())
        return file

    def _authority(self, name: str) -> Path:
        self._openssl("req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}", *self._new_key(name),
                      "-out", str(self.certificate(name)))  # fmt: skip
        return self.certificate(name)

    def _signed(self, name: str, authority: Path) -> None:
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1")
        self._openssl("req", "-new", "-nodes", "-subj", f"/CN={name}", *self._new_key(name), "-out", str(request))
        self._openssl("x509", "-req", "-days", "2", "-in", str(request), "-CA", str(authority), "-CAkey",
                      str(authority.with_suffix(".key")), "-CAcreateserial", "-extfile", str(extensions),
                      "-out", str(self.certificate(name)))  # fmt: skip

    def _new_key(self, name: str) -> tuple[str, ...]:
        return "-newkey", "rsa:2048", "-keyout", str(self.key(name))

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def secured_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """Run an Apache Kafka with TLS, SASL and an authoriser for the session; skip where KAFKA_HOME is not set."""
    home = kafka_home()
    if home is None or not shutil.which("openssl"):
        pytest.skip("set KAFKA_HOME to a folder of Apache Kafka 4 (and have java and openssl) to run this")
    kafka = SecuredKafka(home, tmp_path_factory.mktemp("secured"))
    kafka.start()
    yield kafka
    kafka.stop()
