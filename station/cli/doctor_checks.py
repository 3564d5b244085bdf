"""The checks of `flawline doctor`: each looks at one thing, changes nothing, and gives its findings with a remedy."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from kafka import TopicPartition
from kafka.admin import ACLOperation, ConfigResource, ConfigResourceType
from kafka.errors import (
    AuthorizationError,
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailedError,
    for_code,
)

from flawline import kafka_clients, topics
from flawline.clock import utc_ns
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.kafka_refusal import first_that_answers
from flawline.rights import ROLES, TRANSACTIONAL_ID, Operation, Right, transactional_id
from flawline.settings.tree import Settings
from ledger import topic_retention
from ledger.retention import deleted_records
from station import role_states
from station.cli import device_checks
from station.cli.finding import Finding, Status
from workers.autoscale import bounds

CONNECT_TIMEOUT_S = 3.0  # a judgement, not measured
CLOCK_TOLERANCE_MS = 60_000  # a judgement, not measured
RELEASED_NS = 1_735_689_600 * 1_000_000_000  # 2025-01-01: no frame can be older than this project
LEAST_FREE_BYTES = 1 << 30  # a judgement, not measured
PARTITIONS_PER_ACTOR = 4


def checksum_library(settings: Settings) -> list[Finding]:
    """Check that the Kafka client has the C implementation of CRC-32C, which frames need."""
    kafka_clients.require_fast_checksum()
    return [Finding("crc32c", Status.OK, "the C library is in use")]


def broker_answers(settings: Settings) -> list[Finding]:
    """Check that the broker answers; the embedded one may still be off."""
    name, address = "broker", settings.bootstrap_servers
    if not _reachable(settings):
        if settings.kafka.bootstrap_servers is None:
            text = f"the embedded broker does not run on {address}"
            return [Finding(name, Status.WARN, text, "`flawline up` or `flawline broker` starts it")]
        text = f"{address} does not answer"
        return [Finding(name, Status.FAIL, text, "start it, or correct kafka.bootstrap_servers")]
    client = kafka_clients.admin(settings)  # its error names the remedy
    client.close()
    return [Finding(name, Status.OK, f"{address} answers")]


def topic_limits(settings: Settings) -> list[Finding]:
    """Check that the topics exist with the partitions and size limits of the settings."""
    findings = _limits_of_settings(settings)
    if not _reachable(settings):
        return [*findings, Finding("topics", Status.WARN, "not checked: no broker answers", "start it first")]
    client = kafka_clients.admin(settings)
    try:
        wanted = dict(topics.named(settings.kafka.topic_prefix))
        existing = set(client.list_topics())
        for name in sorted(wanted.keys() - existing):
            findings.append(Finding("topics", Status.WARN, f"{name} is missing", "create it: `flawline topics create`"))
        present = sorted(wanted.keys() & existing)
        limits = _max_message_bytes(client, present)
        for name in present:
            findings += _compare_limit(settings, name, wanted[name], limits.get(name))
        findings += _partitions(settings, client, [name for name in present if wanted[name].per_camera])
        if present and all(finding.name != "topics" for finding in findings):
            findings.append(Finding("topics", Status.OK, f"{len(present)} topics agree with the settings"))
    finally:
        client.close()
    return findings


def topic_creation(settings: Settings) -> list[Finding]:
    """Check that this user may create the line's topics, and that the broker takes their settings; none is created.

    A user who may not is in order where all topics exist.
    """
    if not _reachable(settings):
        return []
    specs = kafka_clients.topic_specs(settings)
    client = kafka_clients.admin(settings)
    try:
        missing = specs.keys() - set(client.list_topics())
        tried = client.create_topics(specs, validate_only=True, raise_errors=False)["topics"]
    finally:
        client.close()
    refused, findings = [], []
    for topic in tried:
        error = for_code(topic["error_code"])
        if issubclass(error, AuthorizationError):
            refused.append(topic["name"])
        elif error not in (NoError, TopicAlreadyExistsError):
            text = f"{topic['name']} cannot be created: {topic['error_message'] or error.__name__}"
            remedy = "correct kafka.replication_factor and frames.limit_bytes, or the broker's policy"
            findings.append(Finding("creation", Status.FAIL, text, remedy))
    if lacking := sorted(missing.intersection(refused)):
        rights = ", ".join(str(Right(Operation.CREATE, "topic", name)) for name in lacking)
        text = f"topics are missing, or this user may not see them, and it lacks {rights}"
        remedy = "grant them, or run `flawline topics create` once as a user who has them"
        findings.append(Finding("creation", Status.FAIL, text, remedy))
    elif refused:
        text = "this user may not create topics, which all exist: one that the broker loses is not made again"
        findings.append(Finding("creation", Status.OK, text))
    elif not findings:
        findings.append(Finding("creation", Status.OK, f"this user may create the {len(specs)} topics"))
    return findings


def cameras(settings: Settings) -> list[Finding]:
    """Check that the configured cameras have a source, and that their frames fit the limits."""
    if not settings.cameras:
        return [Finding("cameras", Status.WARN, "none is configured", "add a [[cameras]] section to line.toml")]
    findings = []
    for camera in settings.cameras:
        where = getattr(camera, "path", None)
        if where is not None and not Path(where).exists():
            findings.append(
                Finding("cameras", Status.FAIL, f"{camera.name}: {where} does not exist", "correct its path")
            )
            continue
        findings += [*_frame_size(settings, camera), *_inspected(camera)]
    return findings or [Finding("cameras", Status.OK, f"{len(settings.cameras)} configured")]


def weights(settings: Settings) -> list[Finding]:
    """Check that the backbone's weights are on this machine."""
    from scorer.features import weights as files

    weights_file = files.find(settings.scorer.backbone, settings.scorer.weights)
    if weights_file.file is None:
        text = f"{settings.scorer.backbone} has no weights on this machine, timm downloads them at the first use"
        return [Finding("weights", Status.WARN, text, "name a local file in scorer.weights for a line without network")]
    size = weights_file.file.stat().st_size
    if size == 0:
        return [Finding("weights", Status.FAIL, f"{weights_file.file} is empty", "install or copy it again")]
    return [Finding("weights", Status.OK, f"{weights_file.name}: {weights_file.file} ({size / 1e6:.1f} MB)")]


def model(settings: Settings) -> list[Finding]:
    """Check that the artefact which the workers will use verifies."""
    from scorer import artefact
    from workers.publish_model import announced

    address = settings.worker.model
    if address is None:
        if not _reachable(settings):
            text = "worker.model is not set and there is no broker to ask for the active one"
            return [Finding("model", Status.WARN, text, "fit one, then `flawline publish MODEL`")]
        pointer = announced(settings).active
        if pointer is None:
            return [
                Finding(
                    "model", Status.WARN, "none is active", "`flawline fit DATA --out MODEL`, then `flawline publish`"
                )
            ]
        address = pointer.uri
    if "://" in address:
        return [Finding("model", Status.OK, f"{address} is verified by each worker that fetches it")]
    return [Finding("model", Status.OK, f"{address}: version {artefact.load(Path(address)).version} verifies")]


def store(settings: Settings) -> list[Finding]:
    """Check that the database of classes and roll-ups answers."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    from discovery.store.database import parse_url, remedy_of

    try:
        url = parse_url(settings.store_url)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            # Connecting would create the file, and a check leaves nothing behind.
            return [_writable("store", Path(url.database or "."), "the SQLite file is created at the first use")]
        engine = create_engine(url, connect_args={"connect_timeout": 5} if url.get_backend_name() != "sqlite" else {})
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        engine.dispose()
    except UsageError as error:
        what, _, remedy = str(error).partition(": ")
        return [Finding("store", Status.FAIL, what, remedy)]
    except (SQLAlchemyError, ImportError) as error:
        problem = f"{url.render_as_string()} cannot be used: {one_line(getattr(error, 'orig', None) or error)}"
        return [Finding("store", Status.FAIL, problem, remedy_of(error) or "start it, or correct store.url")]
    return [Finding("store", Status.OK, f"{url.render_as_string()} answers")]


def objects(settings: Settings) -> list[Finding]:
    """Check that the claim check store takes, returns and removes an object, or that it can be made."""
    from flawline.object_store import MissingObjectError, StoreAway, object_store

    store = object_store(settings)
    if store is None:
        text = f"no claim check store: frames over {settings.frames.inline_limit_bytes} bytes travel inline"
        return [Finding("objects", Status.OK, text)]
    try:
        if store.marker() is None and store.is_empty():  # a check leaves nothing behind
            text = f"{store.root} holds no store yet: the first producer makes it"
            return [Finding("objects", Status.WARN, text, "mount the store if there is one, then start the producers")]
        store.check()
    except (StoreAway, MissingObjectError) as error:
        return [Finding("objects", Status.FAIL, str(error), "bring it back, or correct frames.objects_url")]
    return [Finding("objects", Status.OK, f"{store.root} takes and returns objects")]


def disk(settings: Settings) -> list[Finding]:
    """Check that the disks of the data and of the objects have room for all that the settings let grow there."""
    findings = []
    for folder, limits in _growing(settings).items():
        place = _writable("disk", folder / "x", "")
        if place.status is Status.FAIL:
            findings.append(place)
            continue
        free = shutil.disk_usage(_existing(folder)).free
        growth = max(0, sum(limits.values()) - _size_of(folder))
        floor = settings.retention.min_free_bytes
        text = f"{folder}: {free / 1e9:.1f} GB free, {', '.join(limits)} may grow by {growth / 1e9:.1f} GB"
        if free < LEAST_FREE_BYTES:
            findings.append(Finding("disk", Status.FAIL, text, "free at least 1 GB or move data_dir"))
        elif free < growth + floor:
            text = f"{text}; below {floor / 1e9:.1f} GB the least valuable goes before its time"
            remedy = "free space, or lower the limits in [retention] and producer.spool_limit_bytes"
            findings.append(Finding("disk", Status.WARN, text, remedy))
        else:
            findings.append(Finding("disk", Status.OK, text))
    return findings


def _growing(settings: Settings) -> dict[Path, dict[str, int]]:
    """Return the folders that grow, with what grows there and to how many bytes."""
    keep, data = settings.retention, settings.data_dir.absolute()
    here: dict[str, int] = {}
    if settings.cameras and settings.producer.spool_dir is None:
        here["spool"] = settings.producer.spool_limit_bytes
    if settings.kafka.bootstrap_servers is None:
        here["topics"] = sum(topic.retention(keep).limit_bytes for topic in topics.ALL if topic.retention)
    if settings.store_url.startswith("sqlite"):
        here["pictures"] = keep.pictures_limit_bytes
    result = {data: here}
    for name, url, limit_bytes in (
        ("objects", settings.frames.objects_url or "", keep.objects_limit_bytes),
        ("kept frames", settings.pictures_url, settings.pictures.limit_bytes),
    ):
        if url.startswith("file://"):
            folder = Path(unquote(url.removeprefix("file://")))
            result.setdefault(data if folder.is_relative_to(data) else folder, {})[name] = limit_bytes
    return result


def _size_of(folder: Path) -> int:
    size_bytes = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a running line deletes files meanwhile
            size_bytes += file.stat().st_size if file.is_file() else 0
    return size_bytes


def retention(settings: Settings) -> list[Finding]:
    """Check that the topics have the retention of the settings, and show how far back they reach and what has gone."""
    if not _reachable(settings):
        return []
    findings = []
    for name, configs in topic_retention.differences(settings).items():
        text = f"{name} has not {', '.join(f'{key}={value}' for key, value in configs.items())}"
        findings.append(
            Finding(
                "retention", Status.WARN, text, "`flawline topics create` gives topics the retention of [retention]"
            )
        )
    names = [name for name, topic in topics.named(settings.kafka.topic_prefix) if topic.retention]
    with contextlib.closing(kafka_clients.consumer(settings)) as client:
        deleted = deleted_records(client, names)
    gone = [f"{count:,} of {name}" for name, count in deleted.items() if count]
    if deleted:
        text = f"{len(deleted)} topics; records that have gone: {', '.join(gone) or 'none'}"
        findings.append(Finding("retention", Status.OK, text))
    return findings


def forgotten(settings: Settings) -> list[Finding]:
    """Show what retention has taken from the store of classes."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import SQLAlchemyError

    from discovery.store import frame_pictures, pruning, schema
    from discovery.store.database import parse_url

    url = parse_url(settings.store_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return []
    engine = create_engine(url, connect_args={"connect_timeout": 5} if url.get_backend_name() != "sqlite" else {})
    try:  # a Store would create what is missing
        with engine.connect() as connection:
            if not inspect(connection).has_table(schema.pictures.name):
                return []
            sizes, gone = pruning.picture_bytes(connection), pruning.forgotten(connection)
            has_frames = inspect(connection).has_table(schema.frame_pictures.name)
            frames = frame_pictures.report(connection) if has_frames else None
    except SQLAlchemyError:
        return []  # the check of the store names the reason
    finally:
        engine.dispose()
    limit = settings.retention.pictures_limit_bytes
    text = f"pictures in the store take {sum(sizes.values()) / 1e9:.2f} GB of {limit / 1e9:.1f} GB"
    if gone:
        text += "; forgotten: " + ", ".join(f"{count:,} {what}" for what, count in gone.items())
    findings = [Finding("retention", Status.OK, text)]
    if frames is not None:
        limit = settings.pictures.limit_bytes
        text = f"{frames.kept:,} whole frames take {frames.size_bytes / 1e9:.2f} GB of {limit / 1e9:.1f} GB"
        text += f", {frames.waiting:,} wait"
        if frames.lost:
            text += "; lost: " + ", ".join(f"{count:,} {reason}" for reason, count in frames.lost.items())
        findings.append(Finding("retention", Status.OK, text))
    return findings


def ports(settings: Settings) -> list[Finding]:
    """Check that the metrics ports are free, or used by this line."""
    findings = []
    metrics = settings.metrics
    for name in ("producers_port", "workers_port", "discovery_port", "ledger_port", "up_port", "notify_port"):
        port = getattr(metrics, name)
        if port and not _can_bind(metrics.host, port):
            text = f"metrics.{name} {metrics.host}:{port} is in use"
            if _serves_our_metrics(metrics.host, port):
                findings.append(Finding("ports", Status.OK, f"{text} by a role that runs"))
            else:
                findings.append(Finding("ports", Status.FAIL, text, "choose another, or 0 for no endpoint"))
    return findings or [Finding("ports", Status.OK, "the metrics ports are free")]


def roles(settings: Settings) -> list[Finding]:
    """Show what the `flawline up` of this machine says about its roles; nothing where none runs."""
    states = role_states.read(settings)
    findings = []
    for state in states or ():
        if state.failing_s:
            text = f"{state.name} {state.text}, {state.restarts} restarts"
            findings.append(Finding("roles", Status.FAIL, text, "see what `flawline up` reports about it"))
    if states and not findings:
        findings.append(Finding("roles", Status.OK, ", ".join(f"{state.name} {state.text}" for state in states)))
    return findings


def receivers(settings: Settings) -> list[Finding]:
    """Check that the settings of who is told events can be used, and that each answers; nothing is told."""
    if not settings.has_receivers:
        return []
    from station.outbound.service import make_receivers

    findings = []
    for receiver in make_receivers(settings):
        problem = receiver.problem(CONNECT_TIMEOUT_S)
        if problem is None:
            findings.append(Finding("receivers", Status.OK, f"{receiver.name} can be reached"))
        else:
            remedy = "the line does not wait for it, and tells it later; start it, or correct its address"
            findings.append(Finding("receivers", Status.WARN, f"{receiver.name} {problem}", remedy))
    return findings


def clock(settings: Settings) -> list[Finding]:
    """Check that this machine's time is plausible, and agrees with the times that other machines have written."""
    now_ns = utc_ns()
    if now_ns < RELEASED_NS:
        return [Finding("clock", Status.FAIL, "the system time is before 2025", "set it, and run a time service")]
    newest_ms = _newest_stamp_ms(settings) if _reachable(settings) else None
    if newest_ms is not None and newest_ms > now_ns // 1_000_000 + CLOCK_TOLERANCE_MS:
        ahead_s = (newest_ms - now_ns // 1_000_000) / 1000
        text = f"the newest ledger record is {ahead_s:.0f} s in this machine's future"
        return [Finding("clock", Status.WARN, text, "run a time service (NTP, PTP) on every machine")]
    return [Finding("clock", Status.OK, "the system time is plausible")]


def camera_partitions(settings: Settings) -> list[Finding]:
    """Show the partition of each camera, as the topic `partitions` holds it, and which of them share one."""
    from producers import partitions

    if not _reachable(settings):
        return []
    known = partitions.read(settings)
    if not known:
        return [Finding("cameras", Status.OK, "no camera has a partition yet: the first start of producers gives it")]
    shared = sum(count > 1 for count in Counter(known.values()).values())
    text = ", ".join(f"{camera}: {known[camera]}" for camera in sorted(known))
    findings = [Finding("cameras", Status.OK, f"partitions are {text}; {shared} of them serve several cameras")]
    for camera in settings.cameras:
        stored = known.get(camera.name)
        wanted = None if camera.partition is None else camera.partition % settings.kafka.camera_partitions
        if wanted is not None and stored is not None and wanted != stored:
            text = f"{camera.name} has partition {stored} and its setting says {wanted}: the next start moves it"
            remedy = "take the setting out, or let the workers finish its frames before that start"
            findings.append(Finding("cameras", Status.WARN, text, remedy))
    return findings


def rights(settings: Settings) -> list[Finding]:
    """Check for each role that the broker allows what it does; the broker tells, so nothing is tried or changed."""
    if not _reachable(settings):
        return []
    client = kafka_clients.admin(settings)
    try:
        prefix = settings.kafka.topic_prefix
        allowed = _allowed_on_topics(client, [name for name, _ in topics.named(prefix)])
        groups = (topics.WORKERS_GROUP, topics.DISCOVERY_GROUP, topics.NOTIFY_GROUPS)
        allowed |= _allowed_on_groups(client, [prefix + group for group in groups])
    finally:
        client.close()
    exactly_once = settings.kafka.exactly_once
    if exactly_once:
        allowed |= _allowed_on_transactional_ids(settings)
    lacking = {
        name: [
            right
            for right in role.rights(prefix, exactly_once=exactly_once)
            if right.operation.upper() not in allowed[right.kind, right.name]
        ]
        for name, role in ROLES.items()
    }
    able = [name for name, missing in lacking.items() if not missing]
    findings = [Finding("rights", Status.OK, f"this user may {', '.join(able)}")] if able else []
    # A user of one role lacks the rights of the others, as it should.
    status = Status.WARN if able else Status.FAIL
    for name, missing in lacking.items():
        if missing:
            text = f"this user may not {name}: it lacks {', '.join(map(str, missing))}"
            remedy = f"if it should, grant what `flawline topics acls --role {name}` prints"
            findings.append(Finding("rights", status, text, remedy))
    return findings


ALL = (
    device_checks.gpu,
    device_checks.faiss,
    checksum_library,
    broker_answers,
    rights,
    topic_limits,
    topic_creation,
    camera_partitions,
    cameras,
    weights,
    model,
    store,
    objects,
    disk,
    retention,
    forgotten,
    ports,
    roles,
    receivers,
    clock,
)


def _reachable(settings: Settings) -> bool:
    """Return whether something listens at one of the broker's addresses; fast also when the broker is away."""
    try:
        first_that_answers(settings.bootstrap_servers)
    except OSError:
        return False
    return True


EVERYTHING = frozenset(operation.name.replace("_", "") for operation in ACLOperation)
"""What counts as allowed on a broker that does not say: the embedded one has no authoriser."""


def _allowed_on_topics(client: Any, names: list[str]) -> dict[tuple[str, str], frozenset[str]]:
    """Return the operations that are allowed on each topic, in capitals; all on one that is missing."""
    return {
        ("topic", topic["name"]): frozenset()
        if topic["error_code"] == TopicAuthorizationFailedError.errno
        else _operations(topic)
        for topic in client.describe_topics(names)
    }


def _allowed_on_groups(client: Any, names: list[str]) -> dict[tuple[str, str], frozenset[str]]:
    allowed: dict[tuple[str, str], frozenset[str]] = {}
    for name in names:
        try:
            allowed["group", name] = _operations(client.describe_groups([name])[name])
        except GroupAuthorizationFailedError:
            allowed["group", name] = frozenset()
        except CoordinatorNotAvailableError:  # no group has ever been on this broker
            allowed["group", name] = EVERYTHING
    return allowed


def _allowed_on_transactional_ids(settings: Settings) -> dict[tuple[str, str], frozenset[str]]:
    """Tell whether workers may write transactions. The broker tells only who asks for an id, which begins none."""
    prefix = transactional_id(settings.kafka.topic_prefix, "")
    client = kafka_clients.producer(settings, transactional_id=prefix + "doctor")
    try:
        client.init_transactions()
    except TransactionalIdAuthorizationFailedError:
        return {(TRANSACTIONAL_ID, prefix): frozenset()}
    finally:
        kafka_clients.close_producer(client)
    return {(TRANSACTIONAL_ID, prefix): EVERYTHING}


def _operations(described: dict[str, Any]) -> frozenset[str]:
    operations = described.get("authorized_operations")
    return frozenset(name.replace("_", "") for name in operations) if operations else EVERYTHING


def _limits_of_settings(settings: Settings) -> list[Finding]:
    """Compare the limits with each other, without a broker."""
    findings = []
    limit = settings.frames.limit_bytes
    letter = topics.DEAD_LETTERS.max_message_bytes or 0
    if limit + 2 * topics.ENVELOPE_BYTES > letter:
        text = f"a frame of frames.limit_bytes {limit} does not fit into a dead letter of {letter} bytes"
        findings.append(Finding("limits", Status.FAIL, text, f"lower it to {letter - 2 * topics.ENVELOPE_BYTES}"))
    client = kafka_clients.largest_message_bytes(settings)
    frame_record = topics.FRAMES.message_limit_bytes(limit)
    if client < frame_record:
        text = f"clients send at most {client} bytes, a frame record may have {frame_record}"
        findings.append(Finding("limits", Status.FAIL, text, "lower frames.limit_bytes"))
    if not findings:
        text = f"frame {limit} <= topic {frame_record} <= client {client} bytes"
        findings.append(Finding("limits", Status.OK, text))
    return findings


def _max_message_bytes(client: Any, names: list[str]) -> dict[str, int]:
    if not names:
        return {}
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name, {"max.message.bytes": None}) for name in names]
    described = client.describe_configs(wanted, config_filter="all")
    return {name: _int_config(configs, "max.message.bytes") for name, configs in described["topic"].items()}


def _int_config(configs: Any, key: str) -> int:
    value = configs[key]
    return int(value["value"] if isinstance(value, dict) else value)


def _compare_limit(settings: Settings, name: str, topic: topics.Topic, limit: int | None) -> list[Finding]:
    wanted = topic.message_limit_bytes(settings.frames.limit_bytes)
    if limit is None or limit >= wanted:
        return []
    text = f"{name} takes records of {limit} bytes, the settings need {wanted}"
    remedy = f"kafka-configs --alter --entity-type topics --entity-name {name} --add-config max.message.bytes={wanted}"
    return [Finding("topics", Status.FAIL, text, remedy)]


def _partitions(settings: Settings, client: Any, names: list[str]) -> list[Finding]:
    findings = []
    actors, wanted = bounds(settings).most, settings.kafka.camera_partitions
    for described in client.describe_topics(names) if names else []:
        name, count = described["name"], len(described["partitions"])
        if count < wanted:
            text = f"{name} has {count} partitions, kafka.camera_partitions is {wanted}"
            remedy = "set it to that number: a camera's partition must not change while frames of it are in the log"
            findings.append(Finding("topics", Status.FAIL, text, remedy))
    if wanted < actors:
        text = f"{actors} actors share {wanted} partitions: {actors - wanted} will be idle"
        findings.append(
            Finding("partitions", Status.WARN, text, "raise kafka.camera_partitions before the first start")
        )
    elif wanted < PARTITIONS_PER_ACTOR * actors:
        text = f"{wanted} partitions for {actors} actors leave little room to spread cameras"
        findings.append(Finding("partitions", Status.WARN, text, f"{PARTITIONS_PER_ACTOR * actors} are better"))
    return findings


def _frame_size(settings: Settings, camera: Any) -> list[Finding]:
    """Check the size of a camera's frames, which only simulated cameras tell before they are opened."""
    height, width = getattr(camera, "height", None), getattr(camera, "width", None)
    if height is None or width is None:
        return []
    raw, limit = 3 * height * width, settings.frames.limit_bytes
    if raw <= limit:
        return []
    text = f"{camera.name}: {height}x{width} px are {raw} bytes raw, frames.limit_bytes is {limit}"
    if camera.codec == "raw":
        return [Finding("cameras", Status.FAIL, text, f"raise it to {raw}, or encode as jpeg")]
    return [Finding("cameras", Status.WARN, text, "a frame that does not compress well is dropped as oversize")]


def _inspected(camera: Any) -> list[Finding]:
    """Check that the camera's mask can be read, and that its regions leave something to inspect."""
    from workers.camera_masks import CameraMasks

    try:
        masks = CameraMasks([camera])
        if camera.mask is None:  # polygons are in fractions of any frame
            masks.mask(camera.name, 1000, 1000)
    except FlawlineError as error:
        return [Finding("cameras", Status.FAIL, str(error), f"correct mask, inspect or ignore of {camera.name}")]
    return []


def _newest_stamp_ms(settings: Settings) -> int | None:
    client = kafka_clients.consumer(settings, max_poll_records=1)
    try:
        place = TopicPartition(settings.topic(topics.LEDGER.name), 0)
        if place.topic not in client.topics():
            return None
        end = client.end_offsets([place])[place]
        if end <= client.beginning_offsets([place])[place]:
            return None
        client.assign([place])
        client.seek(place, end - 1)
        records = client.poll(timeout_ms=int(1000 * CONNECT_TIMEOUT_S)).get(place, [])
        return records[0].timestamp if records else None
    finally:
        client.close()


def _writable(name: str, file: Path, text: str) -> Finding:
    """Check that `file` could be created, without creating it."""
    parent = _existing(file.absolute().parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        return Finding(name, Status.FAIL, f"{parent} cannot be written", "make it writable or choose another place")
    return Finding(name, Status.OK, f"{file}: {text}" if text else f"{parent} is writable")


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest folder above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _can_bind(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _serves_our_metrics(host: str, port: int) -> bool:
    return "flawline_" in (role_states.metrics_text(host, port, CONNECT_TIMEOUT_S) or "")
