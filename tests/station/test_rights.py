"""The rights of each role, on a real Apache Kafka with an authoriser: enough for its work, and not for other work."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import AuthorizationError, KafkaError
from kafka.structs import OffsetAndMetadata, TopicPartition

from discovery.topic_reader import TopicReader
from flawline import kafka_clients, topics
from flawline.errors import FlawlineError
from flawline.messages import Decision
from flawline.rights import ROLES, TRANSACTIONAL_ID, Operation, Right, grants
from flawline.settings.tree import Settings
from ledger import reader
from producers import service
from station.cli import doctor_checks, main
from station.cli.finding import Status
from station.outbound.delivery import Filter
from station.outbound.feed import Feed
from tests.producers.doubles import until
from tests.support.brokers import SecuredKafka, unique
from workers.active_model import ModelRef
from workers.inspector import Inspector, member_name

ANSWER_S = 60.0
"""How long an answer of the broker, a record or a refusal, is waited for."""

Login = Callable[..., Settings]


@pytest.fixture
def prefix() -> str:
    return unique("r") + "-"


@pytest.fixture
def root(secured_kafka: SecuredKafka, prefix: str, tmp_path: Path) -> Settings:
    """Return the settings of a user who may do everything, on a line whose topics exist."""
    settings = Settings(
        data_dir=tmp_path,
        kafka={"bootstrap_servers": secured_kafka.bootstrap, "topic_prefix": prefix, "camera_partitions": 2},
    )
    kafka_clients.ensure_topics(settings)
    return settings


@pytest.fixture
def login(secured_kafka: SecuredKafka, root: Settings, prefix: str) -> Login:
    """Give the settings of a new user who has some rights."""

    def login(name: str, rights: Iterable[Right]) -> Settings:
        user = unique(name)
        secured_kafka.add_user(user)
        give(root, user, rights)
        kafka = root.kafka.model_dump() | {
            "bootstrap_servers": secured_kafka.listener("sasl"),
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": secured_kafka.MECHANISM,
            "sasl_username": user,
            "sasl_password": secured_kafka.PASSWORD,
        }
        cameras = [{"name": "cam", "kind": "simulated", "frames": 3, "height": 64, "width": 64}]
        quick = {"metrics": {"producers_port": 0}, "producer": {"drain_timeout_s": 1}}
        return Settings(data_dir=root.data_dir / user, kafka=kafka, cameras=cameras, **quick)

    return login


def give(root: Settings, user: str, rights: Iterable[Right]) -> None:
    """Allow a user what the rights say, and wait until the broker knows it."""
    acls = [
        ACL(
            principal=f"User:{user}",
            host="*",
            operation=ACLOperation[right.operation.name],
            permission_type=ACLPermissionType.ALLOW,
            resource_pattern=ResourcePattern(
                ResourceType[right.kind.upper().replace("-", "_")],
                right.name,
                ACLResourcePatternType.PREFIXED if right.is_prefix else ACLResourcePatternType.LITERAL,
            ),
        )
        for right in rights
    ]
    client = kafka_clients.admin(root)
    try:
        if acls:
            assert not client.create_acls(acls)["failed"]
    finally:
        client.close()


def may_write(settings: Settings, topic: str) -> bool:
    """Tell whether a record can be written; the broker says no for the record, or for any record."""
    client = kafka_clients.producer(settings, max_block_ms=5_000)
    try:
        client.send(topic, key=b"k", value=b"v", partition=0).get(timeout=10)
    except KafkaError as error:
        assert kafka_clients.is_refusal(error), error
        return False
    finally:
        kafka_clients.close_producer(client)
    return True


def may_read(settings: Settings, topic: str) -> bool:
    """Tell whether the first record of a topic can be read; the topic must have one."""
    client = kafka_clients.consumer(settings)
    deadline = time.monotonic() + ANSWER_S
    try:
        client.assign([TopicPartition(topic, 0)])
        client.seek(TopicPartition(topic, 0), 0)
        while not client.poll(timeout_ms=1_000):
            assert time.monotonic() < deadline, f"{topic} gives neither a record nor a refusal"
    except AuthorizationError:
        return False
    finally:
        client.close(autocommit=False)
    return True


@pytest.mark.parametrize("role", ROLES)
def test_role_may_read_and_write_its_topics_and_no_other(role: str, login: Login, root: Settings, prefix: str) -> None:
    settings = login(role, ROLES[role].rights(prefix))
    names = {prefix + topic.name for topic in topics.ALL}
    writer = kafka_clients.producer(root)
    for name in names:  # a topic that may be read and is empty would only be silent
        writer.send(name, key=b"k", value=b"v", partition=0).get(timeout=ANSWER_S)
    kafka_clients.close_producer(writer)
    assert {name for name in names if may_write(settings, name)} == {
        prefix + topic.name for topic in ROLES[role].writes
    }
    assert {name for name in names if may_read(settings, name)} == {prefix + topic.name for topic in ROLES[role].reads}


class _Refusal(logging.Handler):
    """Sets `stop` when producers have told of a refusal and their camera has ended: then they wait for the right."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(logging.INFO)
        self._stop = stop
        self._is_refused = self._has_ended = False

    def emit(self, record: logging.LogRecord) -> None:
        self._is_refused |= "grant " in record.getMessage()
        self._has_ended |= record.getMessage() == "camera cam has ended"
        if self._is_refused and self._has_ended:
            self._stop.set()


def produces(settings: Settings) -> None:
    """Run the producers until three frames are delivered, or until they have told that they are refused."""
    stop, log = threading.Event(), logging.getLogger("producers")
    timer, handler, level = threading.Timer(ANSWER_S, stop.set), _Refusal(stop), log.level
    timer.start()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        assert service.run(settings, stop) == 3
        assert not stop.is_set()
    finally:
        timer.cancel()
        log.removeHandler(handler)
        log.setLevel(level)


def works(settings: Settings) -> None:
    """Do with the broker what workers do: look for topics and the model, take frames, commit, send what comes out."""
    kafka_clients.ensure_topics(settings)
    assert kafka_clients.newest_values(settings, topics.MODELS.name) == {}
    client = kafka_clients.consumer(settings, topics.FRAMES.name, group=topics.WORKERS_GROUP)
    place = TopicPartition(settings.topic(topics.FRAMES.name), 0)
    try:
        while place not in client.assignment():
            client.poll(timeout_ms=200)
        client.commit({place: OffsetAndMetadata(0, "", -1)})
    finally:
        client.close(autocommit=False)
    for topic in ROLES["work"].writes:
        writer = kafka_clients.producer(settings, topic.name)
        writer.send(settings.topic(topic.name), key=b"k", value=b"v", partition=0).get(timeout=10)
        kafka_clients.close_producer(writer)
    admin = kafka_clients.admin(settings)
    try:
        assert admin.list_group_offsets(settings.topic(topics.WORKERS_GROUP))
    finally:
        admin.close()


def discovers(settings: Settings) -> None:
    names = [settings.topic(topics.VERDICTS.name), settings.topic(topics.DEFECTS.name)]
    source = TopicReader(settings, topics.DISCOVERY_GROUP, names, dict)
    try:
        source.poll()
        source.done(TopicPartition(names[0], 0), 0)
        source.commit()
        if source._uncommitted:  # discovery goes on, for its store has the offsets too
            raise FlawlineError("AuthorizationFailedError")
    finally:
        source.close()


def accounts(settings: Settings) -> None:
    assert reader.read(settings).balanced


def notifies(settings: Settings) -> None:
    accounts(settings)  # for what waits of a camera
    wanted = Filter(["verdict", "class"], list(Decision))
    feed = Feed(settings, "mes", wanted, from_all_classes=True, on_lost=lambda *_: None)
    feed.close()
    if feed._reader._uncommitted:  # it goes on, and would tell everything once more after a restart
        raise FlawlineError("AuthorizationFailedError")


@pytest.mark.parametrize(
    ("role", "work"),
    [
        ("notify", notifies),
        ("produce", produces),
        ("work", works),
        ("discover", discovers),
        ("ledger", accounts),
        ("console", accounts),
    ],
)
def test_role_does_its_work_with_its_rights(
    role: str, work: Callable[[Settings], None], login: Login, prefix: str
) -> None:
    work(login(role, ROLES[role].rights(prefix)))


@pytest.mark.parametrize(
    ("role", "work", "operation"),
    [
        ("produce", produces, Operation.WRITE),
        ("work", works, Operation.READ),
        ("discover", discovers, Operation.READ),
        ("ledger", accounts, Operation.READ),
        ("notify", notifies, Operation.READ),
    ],
)
def test_role_without_one_of_its_rights_is_refused(
    role: str, work: Callable[[Settings], None], operation: Operation, login: Login, prefix: str
) -> None:
    produces(login("produce", ROLES["produce"].rights(prefix)))  # so that there is something to read
    rights = [right for right in ROLES[role].rights(prefix) if right.operation is not operation]
    with pytest.raises((FlawlineError, KafkaError)) as raised:
        work(login(role, rights))
    told = str(raised.value)
    assert "AuthorizationFailedError" in told or "grant WRITE" in told or kafka_clients.is_refusal(raised.value)


def test_doctor_tells_each_role_which_rights_it_lacks(login: Login, prefix: str) -> None:
    settings = login("produce", ROLES["produce"].rights(prefix))
    findings = doctor_checks.rights(settings)
    assert findings[0].status is Status.OK and findings[0].text == "this user may produce"
    told = {finding.text.split(":")[0]: finding for finding in findings[1:]}
    assert set(told) == {f"this user may not {role}" for role in ROLES if role != "produce"}
    work = told["this user may not work"]
    assert work.status is Status.WARN and "acls --role work" in work.remedy
    writes = ("verdicts", "defects", "dead-letters", "model-reports", "shadow-verdicts")
    lacking = [*(f"READ on topic {prefix}{name}" for name in ("frames", "verdicts", "models")),
               *(f"WRITE on topic {prefix}{name}" for name in writes)]  # fmt: skip
    # The broker tells the rights on a group to those who may see it, and once it has had members.
    assert work.text.removeprefix("this user may not work: it lacks ").split(", ") == lacking


def test_doctor_tells_the_right_to_join_a_group_that_is_lacking(login: Login, prefix: str) -> None:
    group = Right(Operation.READ, "group", f"{prefix}{topics.WORKERS_GROUP}")
    works(login("work", ROLES["work"].rights(prefix)))
    settings = login("work", [right for right in ROLES["work"].rights(prefix) if right != group])
    told = [finding.text for finding in doctor_checks.rights(settings)]
    assert f"this user may not work: it lacks {group}" in told


@pytest.mark.parametrize("is_granted", [True, False])
def test_workers_write_transactions_with_the_right_to_their_ids_and_doctor_tells_when_it_is_lacking(
    is_granted: bool, login: Login, prefix: str
) -> None:
    rights = ROLES["work"].rights(prefix, exactly_once=True)
    granted = [right for right in rights if is_granted or right.kind != TRANSACTIONAL_ID]
    plain = login("work", granted)
    settings = plain.model_copy(update={"kafka": plain.kafka.model_copy(update={"delivery": "exactly-once"})})
    inspector = Inspector(settings, member_name(settings, 0), ModelRef("nowhere"), lambda path, worker: None)
    told = "".join(finding.text for finding in doctor_checks.rights(settings))
    if is_granted:
        kafka_clients.close_producer(inspector._connect_transactional())
        assert "this user may work" in told
    else:
        with pytest.raises(FlawlineError, match="grant WRITE on the transactional id"):
            inspector._connect_transactional()
        assert f"it lacks WRITE on transactional-id {prefix}workers.*" in told
    assert any(
        f"--transactional-id {prefix}workers. --resource-pattern-type prefixed" in line for line in grants(rights, "U")
    )


def test_doctor_fails_for_a_user_without_any_right_and_for_none_else(login: Login, root: Settings) -> None:
    assert {finding.status for finding in doctor_checks.rights(login("nobody", []))} == {Status.FAIL}
    (everything,) = doctor_checks.rights(root)
    assert everything.status is Status.OK and all(role in everything.text for role in ROLES)


def test_doctor_tries_to_create_topics_creates_none_and_names_the_right_that_is_lacking(
    login: Login, root: Settings, prefix: str
) -> None:
    seen = [right for right in ROLES["produce"].rights(prefix) if right.operation is Operation.DESCRIBE]
    create = [Right(Operation.CREATE, "topic", prefix + topic.name) for topic in topics.ALL]
    user = login("user", seen)
    (finding,) = doctor_checks.topic_creation(user)
    assert finding.status is Status.OK and "may not create topics, which all exist" in finding.text
    client = kafka_clients.admin(root)
    try:
        client.delete_topics([prefix + "frames"])
        until(lambda: prefix + "frames" not in client.list_topics())
        (finding,) = doctor_checks.topic_creation(user)
        assert finding.status is Status.FAIL and "flawline topics create" in finding.remedy
        assert finding.text.endswith(f"it lacks CREATE on topic {prefix}frames")
        (finding,) = doctor_checks.topic_creation(login("creator", [*seen, *create]))
        assert (finding.status, finding.text) == (Status.OK, f"this user may create the {len(topics.ALL)} topics")
        too_many = root.model_copy(update={"kafka": root.kafka.model_copy(update={"replication_factor": 3})})
        (finding,) = doctor_checks.topic_creation(too_many)
        assert finding.status is Status.FAIL and f"{prefix}frames cannot be created: " in finding.text
        assert "replication factor" in finding.text.lower() and "kafka.replication_factor" in finding.remedy
        assert prefix + "frames" not in client.list_topics()
    finally:
        client.close()


def test_doctor_reports_no_right_as_lacking_where_nobody_guards(line_settings: Settings) -> None:
    assert [finding.status for finding in doctor_checks.rights(line_settings)] == [Status.OK]
    assert [finding.status for finding in doctor_checks.topic_creation(line_settings)] == [Status.OK]
    kafka_clients.ensure_topics(line_settings)
    assert [finding.status for finding in doctor_checks.rights(line_settings)] == [Status.OK]


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        (tuple(Operation), "grant DESCRIBE on them"),
        ((Operation.WRITE,), "grant READ and WRITE"),
        (None, "grant WRITE to its user"),
    ],
    ids=["no right at all", "no writing", "no writing of frames"],
)
def test_produce_without_rights_ends_with_an_error_when_it_is_stopped_and_keeps_what_it_could_not_send(
    lacking: tuple[Operation, ...] | None, words: str, login: Login, prefix: str
) -> None:
    rights = ROLES["produce"].rights(prefix)
    frames = Right(Operation.WRITE, "topic", prefix + topics.FRAMES.name)
    settings = login("produce", [right for right in rights if right.operation not in lacking] if lacking
                     else [right for right in rights if right != frames])  # fmt: skip
    with pytest.raises(FlawlineError, match=words) as raised:
        produces(settings)
    if lacking:
        assert "3 frames wait in the spool" in str(raised.value)
    assert len(str(raised.value)) < 600 and "\n" not in str(raised.value)


def test_printed_commands_are_what_kafka_acls_takes(
    secured_kafka: SecuredKafka, login: Login, root: Settings, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = login("produce", [])
    user = settings.kafka.sasl_username
    for name, value in {"BOOTSTRAP_SERVERS": secured_kafka.bootstrap, "TOPIC_PREFIX": prefix}.items():
        os.environ[f"FLAWLINE_KAFKA__{name}"] = value
    try:
        assert main._run(["topics", "acls", "--role", "produce", "--principal", f"User:{user}"]) == 0
    finally:
        for name in ("BOOTSTRAP_SERVERS", "TOPIC_PREFIX"):
            del os.environ[f"FLAWLINE_KAFKA__{name}"]
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == len(grants(ROLES["produce"].rights(prefix), "User:x")) == 5
    java = [
        "java",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        f"{os.environ['KAFKA_HOME']}/libs/*",
        "org.apache.kafka.tools.AclCommand",
    ]
    for line in lines:
        done = subprocess.run([*java, *line.split()[1:]], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr + done.stdout
    produces(settings)


def test_every_topic_is_written_and_read_by_a_role_or_by_browsers() -> None:
    written = {topic for role in ROLES.values() for topic in role.writes}
    read = {topic for role in ROLES.values() for topic in role.reads}
    assert written == set(topics.ALL)
    assert set(topics.ALL) - read == {topics.JUDGEMENTS}  # for consumers outside of the line


def test_documentation_lists_the_rights_of_each_role() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    documented = {row[0]: row[1:] for row in cells if row[0] in ROLES}
    assert documented == {
        name: [
            ", ".join(topic.name for topic in role.reads),
            ", ".join(topic.name for topic in role.writes),
            ", ".join(str(right).replace(" group ", " ") for right in role.rights("") if right.kind == "group"),
        ]
        for name, role in ROLES.items()
    }


def test_unknown_role_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main._run(["topics", "acls", "--role", "star"]) == 2
    told: Any = capsys.readouterr().err
    assert "--role star: choose from produce" in told
