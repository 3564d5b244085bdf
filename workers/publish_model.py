"""Which model plays which role: publish, promote and roll back, by pointers in the topic `models`.

Every change of the active model is one record, so that workers see the old model or the new one and nothing between.
The history of a role is a record beside it. It is written so that an interruption between the two loses no model: the
history may then begin with the model that is active, which a rollback passes over.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kafka.errors import KafkaError

from flawline import kafka_clients, messages, topics
from flawline.clock import UtcNs, utc_ns
from flawline.errors import FlawlineError, UsageError
from flawline.messages import MODEL_HISTORY_LIMIT, ModelHistory, ModelPointer
from flawline.redaction import redact
from flawline.settings.tree import Settings
from flawline.settings.workers import WorkerSettings
from flawline.user import user_name
from workers import scoring
from workers.active_model import ACTIVE, SHADOW

CONFIRM_TIMEOUT_S = 30.0  # a judgement, not measured
HISTORY = f"{ACTIVE}-history"

Records = dict[str, ModelPointer | ModelHistory | None]
Verify = Callable[[Path, WorkerSettings], str]


@dataclass(frozen=True)
class Announced:
    """What the topic `models` says: the active model, the shadow model, and those that were active before."""

    active: ModelPointer | None
    shadow: ModelPointer | None
    history: tuple[ModelPointer, ...]

    @property
    def previous(self) -> ModelPointer | None:
        """The model that a rollback makes active."""
        return next((model for model in self.history if self.active is None or not same(model, self.active)), None)


def same(first: ModelPointer, second: ModelPointer) -> bool:
    """Tell whether two pointers name the same artefact."""
    return (first.version, first.uri) == (second.version, second.uri)


def announced(settings: Settings) -> Announced:
    """Return what the topic `models` says. A shadow model that is active by now is none. Raises FlawlineError."""
    newest = kafka_clients.newest_values(settings, topics.MODELS.name)
    active, shadow = (
        messages.decode(ModelPointer, newest[role]) if role in newest else None for role in (ACTIVE, SHADOW)
    )
    history = messages.decode(ModelHistory, newest[HISTORY]).models if HISTORY in newest else ()
    if active and shadow and same(active, shadow):
        shadow = None
    return Announced(active, shadow, history)


def verify(model: Path, settings: WorkerSettings) -> str:
    """Return the version of the model in a folder, after it has scored here as it did where it was fitted.

    Its hashes, its own pictures and a plain image are checked, on what the workers' settings say. Raises FlawlineError.
    """
    from scorer import load

    detector = load.load_detector(
        model,
        runtime=settings.runtime,
        precision=settings.precision,
        device="auto" if settings.num_gpus > 0 else "cpu",
        threads=settings.threads,
        weights=settings.weights,
        always_check=True,
    )
    try:
        scoring.check_canary(detector)
    except scoring.DetectorBroken as error:
        raise FlawlineError(f"{model}: {error}: fit it again") from error
    return detector.version


def publish_model(
    settings: Settings,
    model: Path,
    role: str = ACTIVE,
    *,
    copy: bool = False,
    uri: str | None = None,
    clock: UtcNs = utc_ns,
    verify: Verify = verify,
) -> ModelPointer:
    """Verify the artefact in folder `model`, announce it, and return the pointer that was published.

    With `copy`, the artefact is first copied to `<data_dir>/models/<version>`, so that the original may go. `uri` says
    where the workers find it when that is not the same path (a shared volume, a bucket).

    Raises UsageError for a missing folder and FlawlineError for an artefact that does not verify or a broker that
    does not confirm; the active model then stays what it was.
    """
    if not model.is_dir():
        raise UsageError(f"{model}: no such model folder: make one with `flawline fit DATA --out {model}`")
    version = verify(model, settings.worker)
    place = _copied(model, settings.data_dir / "models" / version) if copy else model
    try:
        pointer = ModelPointer(role, version, uri or str(place.resolve()), clock(), by=user_name())
    except ValueError as error:
        raise UsageError(f"model {version} cannot be announced: {error}") from error
    if role == ACTIVE:
        _activate(settings, pointer)
        return pointer
    active = announced(settings).active
    if active and same(active, pointer):
        raise FlawlineError(f"{version} is the active model: it cannot be its own shadow, publish another one")
    _write(settings, {role: pointer})
    return pointer


def promote(settings: Settings, *, clock: UtcNs = utc_ns) -> ModelPointer:
    """Make the shadow model the active one, and return its pointer. Raises FlawlineError when there is no shadow."""
    shadow = announced(settings).shadow
    if shadow is None:
        raise FlawlineError("there is no shadow model to promote: `flawline publish MODEL --role shadow` announces one")
    pointer = replace(shadow, role=ACTIVE, published_at=clock(), by=user_name())
    # Workers take a shadow model that is the active one for none: its tombstone only tidies up.
    _activate(settings, pointer, then={SHADOW: None})
    return pointer


def withdraw_shadow(settings: Settings) -> ModelPointer:
    """End the shadow role, and return what played it. Raises FlawlineError when there is no shadow."""
    shadow = announced(settings).shadow
    if shadow is None:
        raise FlawlineError("there is no shadow model to withdraw: `flawline models` shows what is announced")
    _write(settings, {SHADOW: None})
    return shadow


def rollback(settings: Settings, *, clock: UtcNs = utc_ns) -> ModelPointer:
    """Make the model active that was so before, and return its pointer. The one that was active is forgotten.

    Raises FlawlineError when no model was active before.
    """
    now = announced(settings)
    previous = now.previous
    if previous is None:
        raise FlawlineError("no other model was active before: `flawline publish MODEL` announces one")
    pointer = replace(previous, published_at=clock(), by=user_name())
    left = now.history[now.history.index(previous) + 1 :]
    _write(settings, {ACTIVE: pointer, HISTORY: ModelHistory(ACTIVE, left)})
    return pointer


def _activate(settings: Settings, pointer: ModelPointer, then: Records | None = None) -> None:
    """Write the history, then the pointer of the active role, then what follows."""
    now = announced(settings)
    history = [model for model in now.history if not same(model, pointer)]
    if now.active and not same(now.active, pointer):
        history = [now.active, *(model for model in history if not same(model, now.active))]
    records: Records = {HISTORY: ModelHistory(ACTIVE, tuple(history[:MODEL_HISTORY_LIMIT])), ACTIVE: pointer}
    _write(settings, records | (then or {}))


def _write(settings: Settings, records: Records) -> None:
    """Write records of the topic `models` in their order; None is a tombstone. Raises FlawlineError."""
    kafka_clients.ensure_topics(settings, only=[topics.MODELS.name])
    writer = kafka_clients.producer(settings, topics.MODELS.name)
    try:
        for key, message in records.items():
            writer.send(
                settings.topic(topics.MODELS.name),
                key=key.encode(),
                value=messages.encode(message) if message else None,
                headers=messages.headers(message) if message else [],
            ).get(timeout=CONFIRM_TIMEOUT_S)
    except KafkaError as error:
        raise FlawlineError(
            f"models were not changed ({error}): the broker {redact(settings.bootstrap_servers)} did not confirm, "
            "run it again"
        ) from error
    finally:
        kafka_clients.close_producer(writer)


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
