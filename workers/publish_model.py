"""Makes a model artefact the active (or shadow) one: verified first, then a pointer in the topic `models`."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from kafka.errors import KafkaError

from flawline import kafka_clients, messages, topics
from flawline.clock import UtcNs, utc_ns
from flawline.errors import FlawlineError, UsageError
from flawline.messages import ModelPointer
from flawline.settings.tree import Settings
from flawline.user import user_name

CONFIRM_TIMEOUT_S = 30.0


def publish_model(
    settings: Settings,
    model: Path,
    role: str = "active",
    *,
    copy: bool = False,
    uri: str | None = None,
    clock: UtcNs = utc_ns,
) -> ModelPointer:
    """Verify the artefact in folder `model`, announce it, and return the pointer that was published.

    With `copy`, the artefact is first copied to `<data_dir>/models/<version>`, so that the original may go. `uri` says
    where the workers find it when that is not the same path (a shared volume, a bucket).

    Raises UsageError for a missing folder and FlawlineError for an artefact that does not verify or a broker that
    does not confirm; the active model then stays what it was.
    """
    from scorer import artefact

    if not model.is_dir():
        raise UsageError(f"{model}: no such model folder: make one with `flawline fit DATA --out {model}`")
    version = artefact.load(model).version
    place = _copied(model, settings.data_dir / "models" / version) if copy else model
    pointer = ModelPointer(role, version, uri or str(place.resolve()), clock(), by=user_name())
    kafka_clients.ensure_topics(settings, only=[topics.MODELS.name])
    writer = kafka_clients.producer(settings, topics.MODELS.name)
    try:
        writer.send(
            settings.topic(topics.MODELS.name),
            key=role.encode(),
            value=messages.encode(pointer),
            headers=messages.headers(pointer),
        ).get(timeout=CONFIRM_TIMEOUT_S)
    except KafkaError as error:
        raise FlawlineError(
            f"model {version} was not published ({error}): the broker {settings.bootstrap_servers} did not confirm, "
            "run it again"
        ) from error
    finally:
        kafka_clients.close_producer(writer)
    return pointer


def active_model(settings: Settings, role: str = "active") -> ModelPointer | None:
    """Return the latest pointer of a role, None when there is none. Raises FlawlineError when it cannot be read."""
    newest = kafka_clients.newest_values(settings, topics.MODELS.name).get(role)
    return messages.decode(ModelPointer, newest) if newest else None


def _copied(model: Path, target: Path) -> Path:
    """Copy the artefact to folder `target`, whole or not at all, unless it is there; return the folder."""
    if target.is_dir():
        return target
    part = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(model, part)
        part.rename(target)
    except OSError as error:
        raise FlawlineError(f"{target}: the model cannot be copied there: {error.strerror}: free space") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target
