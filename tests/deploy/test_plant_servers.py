"""What compose tells Kafka and PostgreSQL works on the real servers, outside containers."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from discovery.store.store import Store
from flawline import kafka_clients
from flawline.errors import FlawlineError
from flawline.settings.tree import Settings, load_settings
from tests.deploy import compose
from tests.support.brokers import kafka_home
from tests.support.ports import reserved_port
from tests.support.postgres import PostgresServer

PASSWORD = "correct"
KAFKA_PORTS = ("9091", "9092", "9093", "9094")


@pytest.fixture(scope="module")
def plant_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Run Apache Kafka as the image's wrapper does with compose's environment; yield its ports here, by compose's."""
    home = kafka_home()
    if home is None:
        pytest.skip("set KAFKA_HOME to a folder of Apache Kafka 4 (and have java) to run this")
    folder = tmp_path_factory.mktemp("kafka")
    ports = {port: reserved_port() for port in KAFKA_PORTS}
    passwords = dict.fromkeys(compose.example_variables(), PASSWORD)
    java = ["java", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{home}/libs/*"]
    for name in ("default", "mounted", "final"):
        (folder / name).mkdir()
    for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
        (folder / "default" / name).touch()
    environment = {"PATH": os.environ["PATH"]} | _here(_kafka_environment(passwords), ports, folder / "data")
    setup = ["kafka.docker.KafkaDockerWrapper", "setup"]
    for name in ("default", "mounted", "final"):
        setup += [f"--{name}-configs-dir", str(folder / name)]
    subprocess.run([*java, *setup], check=True, env=environment, cwd=folder, capture_output=True, timeout=120)
    with (folder / "log").open("wb") as log:
        server = [*java, "kafka.Kafka", str(folder / "final" / "server.properties")]
        process = subprocess.Popen(server, cwd=folder, stdout=log, stderr=log)
    try:
        _wait_until_listening(process, ports["9092"], folder / "log")
        yield {port: ports[port] for port in ("9091", "9092", "9094")}
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _kafka_environment(passwords: dict[str, str]) -> dict[str, str]:
    return compose.load(environment=passwords)["services"]["kafka"]["environment"]


def _here(environment: dict[str, str], ports: dict[str, int], data: Path) -> dict[str, str]:
    """Return the container's environment with this machine's addresses; everything else stays as it is."""
    moved = {}
    for key, value in environment.items():
        for port, here in ports.items():
            value = value.replace(f"kafka:{port}", f"localhost:{here}").replace(f":{port}", f":{here}")
        moved[key] = value.replace("CLIENT://:", "CLIENT://localhost:").replace("EXTERNAL://:", "EXTERNAL://localhost:")
    return moved | {"KAFKA_LOG_DIRS": str(data)}


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"Kafka does not start: {log.read_text()[-3000:]}")


def plant_settings(port: int, password: str) -> Settings:
    """Return the plant's own settings, for a broker on this machine."""
    settings = load_settings(compose.ROOT / "deploy/line.plant.toml", kafka={"sasl_password": password})
    return settings.model_copy(
        update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": f"localhost:{port}"})}
    )


@pytest.mark.parametrize("port", ["9092", "9094"])
def test_the_roles_settings_reach_the_plants_kafka_with_the_password(plant_kafka, port):
    settings = plant_settings(plant_kafka[port], PASSWORD)
    kafka_clients.ensure_topics(settings)
    producer = kafka_clients.producer(settings)
    try:
        producer.send(settings.topic("ledger"), key=b"camera", value=b"value").get(timeout=30)
    finally:
        producer.close(5)


def test_a_wrong_password_is_refused(plant_kafka, monkeypatch):
    monkeypatch.setattr(kafka_clients, "BOOTSTRAP_TIMEOUT_MS", 3000)
    with pytest.raises(FlawlineError):
        kafka_clients.admin(plant_settings(plant_kafka["9092"], "wrong"))


def test_only_the_health_check_inside_the_container_needs_no_password(plant_kafka):
    listeners = _kafka_environment(dict.fromkeys(compose.example_variables(), "x"))["KAFKA_LISTENERS"].split(",")
    open_to_others = [listener for listener in listeners if "//localhost:" not in listener]
    assert sorted(listener.split(":")[0] for listener in open_to_others) == ["CLIENT", "EXTERNAL"]
    check = compose.load()["services"]["kafka"]["healthcheck"]["test"]
    assert check[-1] == "localhost:9091"
    settings = plant_settings(plant_kafka["9091"], "")
    plain = settings.kafka.model_copy(update={"security_protocol": "PLAINTEXT", "sasl_mechanism": None})
    kafka_clients.admin(settings.model_copy(update={"kafka": plain})).close()


@pytest.fixture
def plant_store(postgres_server: PostgresServer) -> Iterator[tuple[str, str]]:
    """Make a database as the plant's container does; yield the addresses for discovery and for Grafana."""
    url = make_url(postgres_server.new_database("flawline"))
    script = compose.ROOT / "deploy/postgres/grafana-reader.sh"
    environment = {
        "PATH": os.environ["PATH"],
        "PGHOST": str(url.host),
        "PGPORT": str(url.port),
        "POSTGRES_USER": str(url.username),
        "POSTGRES_DB": str(url.database),
        "GRAFANA_READER_PASSWORD": 'it\'s "odd"',
    }
    result = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    owner = url.render_as_string(hide_password=False)
    reader = url.set(drivername="postgresql", username="grafana_reader")
    yield owner, reader.render_as_string(hide_password=False)
    with psycopg.connect(owner.replace("+psycopg", "")) as connection:
        connection.execute("DROP OWNED BY grafana_reader")
        connection.execute("DROP ROLE grafana_reader")


def test_grafana_reads_the_tables_that_discovery_makes_later_and_changes_none(plant_store):
    owner, reader = plant_store
    Store(owner).close()
    with psycopg.connect(reader, autocommit=True) as connection:
        tables = [row[0] for row in connection.execute("SELECT relname FROM pg_stat_user_tables")]
        assert "defects" in tables
        for table in [*tables, "defect_minutes"]:
            connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
        for statement in ("DELETE FROM facts", "SET default_transaction_read_only = off; DELETE FROM facts"):
            with pytest.raises((psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege)):
                connection.execute(statement)
        with pytest.raises((psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege)):
            connection.execute("CREATE TABLE mine (id int)")
