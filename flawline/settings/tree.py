"""One settings tree for every role: defaults, then `line.toml`, then the environment (`FLAWLINE_WORKER__ACTORS=4`)."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from flawline.errors import UsageError
from flawline.settings.console import ConsoleSettings
from flawline.settings.discovery import DiscoverySettings
from flawline.settings.producers import (
    FolderCamera,
    ProducerSettings,
    RtspCamera,
    SimulatedCamera,
    UsbCamera,
    VideoCamera,
)
from flawline.settings.scorer import ScorerSettings
from flawline.settings.workers import WorkerSettings

DEFAULT_FILE = Path("line.toml")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KafkaSettings(_Section):
    """How to reach the broker. Without `bootstrap_servers` the embedded broker serves the line."""

    bootstrap_servers: str | None = Field(None, description="host:port[,host:port]; none means the embedded broker.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    replication_factor: int = Field(1, ge=1, description="Of topics that Flawline creates; 3 on a cluster.")
    min_insync_replicas: int = Field(1, ge=1)
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$", description="Lets several lines share a cluster.")
    camera_partitions: int = Field(
        8, ge=1, le=10_000, description="Partitions of the per-camera topics; 4x the most actors there will ever be."
    )


class EmbeddedSettings(_Section):
    """The embedded broker, used when `kafka.bootstrap_servers` is not set."""

    host: str = "127.0.0.1"
    port: int = Field(9092, ge=0, le=65_535)
    fsync: Literal["never", "interval", "always"] = "interval"


class FrameSettings(_Section):
    """Size limits of frames."""

    limit_bytes: int = Field(16 << 20, ge=1 << 10, description="Larger frames are dropped as oversize.")
    inline_limit_bytes: int = Field(
        1 << 20, ge=0, description="Larger frames go by claim check, when there is a store."
    )
    objects_url: str | None = Field(None, description="fsspec URL (file:///..., s3://...) of the claim check store.")


class StoreSettings(_Section):
    """Where discovery keeps classes, defects and roll-ups."""

    url: SecretStr | None = Field(None, description="SQLAlchemy URL; default a SQLite file in the data directory.")


class MetricsSettings(_Section):
    """Prometheus endpoints; port 0 turns one off."""

    host: str = "127.0.0.1"
    producers_port: int = Field(9401, ge=0, le=65_535)
    workers_port: int = Field(9402, ge=0, le=65_535)
    discovery_port: int = Field(9403, ge=0, le=65_535)
    ledger_port: int = Field(9404, ge=0, le=65_535)


class GrafanaSettings(_Section):
    """Where `flawline dashboards push` sends the dashboards."""

    url: str = "http://127.0.0.1:3000"
    token: SecretStr | None = None
    folder: str = "Flawline"
    prometheus_url: str = "http://prometheus:9090"
    store_url: SecretStr | None = Field(
        None, description="The store as Grafana reaches it; default store.url. A role that can only read is enough."
    )


AnyCamera = Annotated[
    SimulatedCamera | FolderCamera | VideoCamera | UsbCamera | RtspCamera, Field(discriminator="kind")
]


class Settings(BaseSettings):
    """The whole line."""

    model_config = SettingsConfigDict(
        env_prefix="FLAWLINE_", env_nested_delimiter="__", extra="forbid", nested_model_default_partial_update=True
    )

    line: str = Field("line-1", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Name of the line.")
    data_dir: Path = Field(Path("data"), description="Everything Flawline keeps on this machine.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    kafka: KafkaSettings = KafkaSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    frames: FrameSettings = FrameSettings()
    cameras: list[AnyCamera] = []
    producer: ProducerSettings = ProducerSettings()
    worker: WorkerSettings = WorkerSettings()
    scorer: ScorerSettings = ScorerSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    store: StoreSettings = StoreSettings()
    metrics: MetricsSettings = MetricsSettings()
    console: ConsoleSettings = ConsoleSettings()
    grafana: GrafanaSettings = GrafanaSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's content arrives as init arguments, and the environment overrides it.
        return env_settings, init_settings

    @model_validator(mode="after")
    def _camera_names_are_unique(self) -> Settings:
        names = [camera.name for camera in self.cameras]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"camera name {min(twice)!r} is used twice: every camera needs its own")
        return self

    @property
    def bootstrap_servers(self) -> str:
        """The broker's address, embedded or not."""
        return self.kafka.bootstrap_servers or f"{self.embedded.host}:{self.embedded.port}"

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the store."""
        if self.store.url:
            return self.store.url.get_secret_value()
        return f"sqlite:///{self.data_dir.absolute() / 'store.db'}"

    def topic(self, name: str) -> str:
        """A topic's name on the broker."""
        return self.kafka.topic_prefix + name

    def partition(self, camera: str) -> int | None:
        """The partition of a configured camera, None (hash of its name) for a camera that is not in the config.

        Explicit because hashing a handful of names leaves partitions idle and others doubly used.
        """
        for index, known in enumerate(self.cameras):
            if known.name == camera:
                return (index if known.partition is None else known.partition) % self.kafka.camera_partitions
        return None


def load_settings(path: Path | None = None, **overrides: Any) -> Settings:
    """Settings from `path` (default `line.toml` when it exists, or FLAWLINE_CONFIG), environment and overrides.

    Raises UsageError in one line that names the key, its value and what is allowed.
    """
    given = path or (Path(os.environ["FLAWLINE_CONFIG"]) if os.environ.get("FLAWLINE_CONFIG") else None)
    file = given or DEFAULT_FILE
    content: dict[str, Any] = {}
    if file.is_file():
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: not valid TOML: {error}") from error
        except OSError as error:
            raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    elif given:
        raise UsageError(f"{file}: no such config file: create it or leave --config out for the defaults")
    _check_environment()
    origin = str(file) if content else "configuration"
    try:
        return Settings(**_merge(content, overrides))
    except ValidationError as error:
        raise UsageError(f"{origin}: {_first_problem(error)}") from error


def _check_environment() -> None:
    """A variable for a section that does not exist would be passed over in silence, and the line run on a default."""
    for name in os.environ:
        section, nested, _ = name.upper().removeprefix("FLAWLINE_").lower().partition("__")
        if name.upper().startswith("FLAWLINE_") and nested and section not in Settings.model_fields:
            raise UsageError(f"environment {name}: unknown section {section}: remove it or correct its spelling")


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = (
            _merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        text = f"unknown key {key}: remove it or correct its spelling"
    else:
        shown = "" if isinstance(first.get("input"), dict | list) else f" = {first.get('input')!r}"
        hidden = " = '***'" if any(word in key for word in ("password", "token", "url")) and shown else shown
        text = f"{key}{hidden}: {first['msg']}"
    return text if len(problems) == 1 else f"{text} (and {len(problems) - 1} more)"
