"""One settings tree for every role: defaults, then `line.toml`, then the environment (`FLAWLINE_WORKER__ACTORS=4`).

A key that holds a secret may have the suffix `_file` in both: `FLAWLINE_KAFKA__SASL_PASSWORD_FILE=/run/secrets/kafka`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from flawline.errors import UsageError
from flawline.redaction import STARS, is_secret_key, redact, remember, secrets_in
from flawline.settings.console import ConsoleSettings
from flawline.settings.discovery import DiscoverySettings
from flawline.settings.outbound import OutboundSettings, WebhookSettings, check_names
from flawline.settings.parts import PartSettings
from flawline.settings.pictures import PictureSettings
from flawline.settings.producers import (
    FolderCamera,
    ProducerSettings,
    RtspCamera,
    SimulatedCamera,
    UsbCamera,
    VideoCamera,
)
from flawline.settings.retention import RetentionSettings
from flawline.settings.scorer import ScorerSettings
from flawline.settings.secret_files import with_secrets
from flawline.settings.shifts import ShiftSettings, check_no_overlap, check_time_zone
from flawline.settings.workers import WorkerSettings

DEFAULT_FILE = Path("line.toml")
PREFIX = "FLAWLINE_"
SECRET_KEYS = {"sasl_password", "token", "url", "store_url", "mqtt_url", "mqtt_password", "secret"}
"""Keys of the type SecretStr, at any depth; `grafana.url` shares its name with two of them."""


_BROKER = r" *(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5} *"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KafkaSettings(_Section):
    """Holds how to reach the broker and how the topics of the line are created."""

    bootstrap_servers: str | None = Field(
        None,
        description="Addresses of brokers as host:port[,host:port]; without them the embedded broker serves the line.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Protocol that encrypts and authenticates the connections to the broker."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="Mechanism that proves the password to the broker; the SASL protocols need it."
    )
    sasl_username: str | None = Field(None, description="Name of the user on the broker.")
    sasl_password: SecretStr | None = Field(
        None, description="Password of the user, which belongs in the environment and not in a file."
    )
    ssl_cafile: Path | None = Field(
        None, description="File of the certificates that the broker's certificate is checked with."
    )
    ssl_certfile: Path | None = Field(None, description="File of the certificate that this client shows to the broker.")
    ssl_keyfile: Path | None = Field(None, description="File of the private key of `ssl_certfile`.")
    replication_factor: int = Field(
        1,
        ge=1,
        description="Number of copies of each topic that Flawline creates; use 3 on a cluster, which takes three times "
        "the disk.",
    )
    min_insync_replicas: int = Field(
        1, ge=1, description="Number of copies that must hold a record before it is acknowledged; use 2 on a cluster."
    )
    topic_prefix: str = Field(
        "", pattern=r"^[A-Za-z0-9._-]{0,64}$", description="Prefix of topic names, for lines that share a cluster."
    )
    camera_partitions: int = Field(
        8,
        ge=1,
        le=10_000,
        description="Number of partitions of the topics by camera, four times the largest number of actors; never "
        "lower it.",
    )
    delivery: Literal["at-least-once", "exactly-once"] = Field(
        "at-least-once",
        description="How often a frame may have a verdict in the topics: exactly-once puts verdicts, defects, dead "
        "letters and offsets into one Kafka transaction, which costs some latency and needs an Apache Kafka.",
    )

    @property
    def exactly_once(self) -> bool:
        """Return whether workers write in transactions, and readers skip what is not committed."""
        return self.delivery == "exactly-once"

    @field_validator("delivery")
    @classmethod
    def _the_embedded_broker_has_no_transactions(cls, delivery: str, info: ValidationInfo) -> str:
        if delivery == "exactly-once" and info.data.get("bootstrap_servers") is None:
            raise ValueError(
                "the embedded broker has no transactions: name an Apache Kafka in kafka.bootstrap_servers, or leave "
                "kafka.delivery at at-least-once"
            )
        return delivery

    @field_validator("bootstrap_servers")
    @classmethod
    def _brokers_are_hosts_with_ports(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(rf"{_BROKER}(,{_BROKER})*", text):
            raise ValueError("it should be host:port[,host:port] without a scheme, a user or a password")
        return text


class EmbeddedSettings(_Section):
    """Holds the address of the embedded broker, which is used when `kafka.bootstrap_servers` is not set."""

    host: str = Field("127.0.0.1", description="Address that the broker listens on.")
    port: int = Field(9092, ge=0, le=65_535, description="Port that the broker listens on, where 0 takes a free one.")
    fsync: Literal["never", "interval", "always"] = Field(
        "interval",
        description="When records are synced to the disk; interval can lose the last records at a power cut, always "
        "costs speed.",
    )


class FrameSettings(_Section):
    """Holds the size limits of frames."""

    limit_bytes: int = Field(
        16 << 20, ge=1 << 10, description="Largest frame; a larger one is dropped with the reason oversize."
    )
    decoded_limit_bytes: int = Field(
        256 << 20,
        ge=1 << 10,
        description="Largest memory that decoding one frame may take, as its header tells; a frame that takes more is "
        "dropped, or a dead letter, with the reason oversize.",
    )
    inline_limit_bytes: int = Field(
        1 << 20,
        ge=0,
        description="Largest frame in a Kafka record; a larger one goes to the object store, when there is one (claim "
        "check).",
    )
    objects_url: str | None = Field(
        None, description="Object store as an fsspec URL (file:///..., s3://...), which is the same for all roles."
    )

    objects_min_age_s: float = Field(
        3600.0,
        ge=1800.0,
        description="Age in seconds below which no object is removed, so that the record that refers to it has time to "
        "arrive.",
    )
    objects_collect_s: float = Field(
        600.0,
        ge=0.0,
        description="Pause in seconds between two removals of objects that no record refers to, by the role ledger, "
        "where 0 turns them off.",
    )

    @field_validator("objects_url")
    @classmethod
    def _objects_have_a_url(cls, text: str | None) -> str | None:
        if text is not None and "://" not in text:
            raise ValueError("it should be a URL such as file:///srv/flawline/objects or s3://bucket/folder")
        return text


class StoreSettings(_Section):
    """Holds where discovery keeps classes, defects and counts by minute."""

    url: SecretStr | None = Field(
        None, description="Database as a SQLAlchemy URL; the default is a SQLite file in `data_dir`."
    )


class MetricsSettings(_Section):
    """Holds the addresses of the Prometheus endpoints."""

    host: str = Field("127.0.0.1", description="Address that the endpoints listen on.")
    producers_port: int = Field(
        9401, ge=0, le=65_535, description="Port of the producers' metrics, where 0 turns them off."
    )
    workers_port: int = Field(
        9402, ge=0, le=65_535, description="Port of the workers' metrics, where 0 turns them off."
    )
    discovery_port: int = Field(
        9403, ge=0, le=65_535, description="Port of discovery's metrics, where 0 turns them off."
    )
    ledger_port: int = Field(9404, ge=0, le=65_535, description="Port of the ledger's metrics, where 0 turns them off.")
    up_port: int = Field(
        9405, ge=0, le=65_535, description="Port of the metrics of `flawline up`, where 0 turns them off."
    )
    notify_port: int = Field(
        9406, ge=0, le=65_535, description="Port of the metrics of `flawline notify`, where 0 turns them off."
    )


class GrafanaSettings(_Section):
    """Holds where `flawline dashboards push` sends the dashboards."""

    url: str = Field("http://127.0.0.1:3000", description="Address of Grafana, with its sub-path if it has one.")
    token: SecretStr | None = Field(None, description="Token of a service account with the role Admin.")
    folder: str = Field("Flawline", description="Title of the folder that holds the dashboards.")
    prometheus_url: str = Field("http://prometheus:9090", description="Address of Prometheus as Grafana reaches it.")
    store_url: SecretStr | None = Field(
        None, description="Store as Grafana reaches it, best with a role that only reads; the default is `store.url`."
    )
    station_url: str = Field("http://127.0.0.1:8400", description="Address of the console, for links from dashboards.")
    alerts: bool = Field(
        True, description="Whether Grafana evaluates the alert rules; off where Alertmanager tells them."
    )
    contact_points: Path | None = Field(None, description="File of Grafana's contact points; the first one is told.")


AnyCamera = Annotated[
    SimulatedCamera | FolderCamera | VideoCamera | UsbCamera | RtspCamera, Field(discriminator="kind")
]


class _Environment(EnvSettingsSource):
    """The environment, in which the variable of a secret may end with _FILE and name a file."""

    def __call__(self) -> dict[str, Any]:
        values = with_secrets(super().__call__(), SECRET_KEYS)
        remember(secrets_in(values))
        return values


class Settings(BaseSettings):
    """Holds the settings of the whole line."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", nested_model_default_partial_update=True
    )

    line: str = Field(
        "line-1",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Name of the line, which frames, metrics and logs show.",
    )
    data_dir: Path = Field(Path("data"), description="Folder of everything that Flawline keeps on this machine.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level of the messages that are logged."
    )
    time_zone: str = Field("UTC", description="Time zone of the line, in which the shifts begin and end.")
    shifts: list[ShiftSettings] = Field([], description="Shift calendar of the line, with one block for each shift.")
    kafka: KafkaSettings = KafkaSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    frames: FrameSettings = FrameSettings()
    cameras: list[AnyCamera] = Field([], description="Cameras of the line, with one block for each.")
    producer: ProducerSettings = ProducerSettings()
    worker: WorkerSettings = WorkerSettings()
    scorer: ScorerSettings = ScorerSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    store: StoreSettings = StoreSettings()
    retention: RetentionSettings = RetentionSettings()
    pictures: PictureSettings = PictureSettings()
    parts: PartSettings = PartSettings()
    outbound: OutboundSettings = OutboundSettings()
    webhooks: list[WebhookSettings] = Field(
        [], max_length=16, description="Addresses that are called with events, with one block for each."
    )
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
        return _Environment(settings_cls), init_settings

    @model_validator(mode="after")
    def _camera_names_are_unique(self) -> Settings:
        names = [camera.name for camera in self.cameras]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"camera name {min(twice)!r} is used twice: give every camera a name of its own")
        return self

    @field_validator("time_zone")
    @classmethod
    def _time_zone_is_known(cls, name: str) -> str:
        return check_time_zone(name)

    @field_validator("shifts")
    @classmethod
    def _shifts_do_not_overlap(cls, shifts: list[ShiftSettings]) -> list[ShiftSettings]:
        check_no_overlap(shifts)
        return shifts

    @field_validator("webhooks")
    @classmethod
    def _webhook_names_are_unique(cls, webhooks: list[WebhookSettings]) -> list[WebhookSettings]:
        check_names(webhooks)
        return webhooks

    @model_validator(mode="after")
    def _receivers_are_given_up_before_their_events_are_gone(self) -> Settings:
        limits = {f"webhook {webhook.name}: give_up_after_s": webhook.give_up_after_s for webhook in self.webhooks}
        limits["outbound.mqtt_give_up_after_s"] = self.outbound.mqtt_give_up_after_s
        for name, limit_s in limits.items():
            if self.has_receivers and limit_s > self.retention.verdicts_days * 86_400:
                raise ValueError(
                    f"{name} {limit_s:g} is longer than verdicts are kept: lower it, or raise retention.verdicts_days"
                )
        return self

    @model_validator(mode="after")
    def _pictures_have_a_place_of_their_own(self) -> Settings:
        url = self.frames.objects_url
        if url is not None and self.pictures.url is not None and url.rstrip("/") == self.pictures.url.rstrip("/"):
            raise ValueError(
                f"pictures.url {url} is also frames.objects_url, whose objects go when no frame names them: "
                "give pictures a place of their own"
            )
        return self

    @property
    def bootstrap_servers(self) -> str:
        """Return the addresses of the broker, embedded or not, as host:port[,host:port]."""
        return self.kafka.bootstrap_servers or f"{self.embedded.host}:{self.embedded.port}"

    @property
    def store_url(self) -> str:
        """Return the store as a SQLAlchemy URL."""
        if self.store.url:
            return self.store.url.get_secret_value()
        return f"sqlite:///{self.data_dir.absolute() / 'store.db'}"

    @property
    def pictures_url(self) -> str:
        """Return the place of the kept frames as an fsspec URL."""
        return self.pictures.url or (self.data_dir.absolute() / "pictures").as_uri()

    @property
    def has_receivers(self) -> bool:
        """Return whether somebody is told events, so that the role `flawline notify` has work."""
        return self.outbound.mqtt_url is not None or bool(self.webhooks)

    @property
    def views(self) -> tuple[str, ...]:
        """Return the views that every part has."""
        return tuple(self.parts.views or sorted({camera.view for camera in self.cameras if camera.view}))

    def topic(self, name: str) -> str:
        """Return the name of a topic on the broker."""
        return self.kafka.topic_prefix + name


def load_settings(path: Path | None = None, **overrides: Any) -> Settings:
    """Return the settings of a file, with `overrides` over it and the environment over both.

    The file is `path`, else the one that FLAWLINE_CONFIG names, else `line.toml` where there is one. Raises UsageError
    in one line with the key, its value and what is allowed.
    """
    named = path or (Path(os.environ["FLAWLINE_CONFIG"]) if os.environ.get("FLAWLINE_CONFIG") else None)
    file = named or DEFAULT_FILE
    content: dict[str, Any] = {}
    if file.is_file():
        content = _read(file)
    elif named:
        raise UsageError(f"{file}: no such config file: create it, or leave --config out for the defaults")
    _check_environment()
    remember(secrets_in(content))
    origin = str(file) if content else "configuration"
    content = with_secrets(content, SECRET_KEYS)
    remember(secrets_in(content))
    # An error of pydantic shows the first and last characters of what it refuses, so it is not the cause of ours.
    try:
        return Settings(**_merge(content, overrides))
    except ValidationError as error:
        raise UsageError(f"{origin}: {_first_problem(error)}") from None
    except SettingsError as error:
        raise UsageError(f"environment: {error}: write lists and sections as JSON") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not valid TOML: {error}: correct the file") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}: correct its permissions") from error


def _check_environment() -> None:
    """Know the secrets of the variables, which may be wrong, and raise UsageError for one of an unknown section.

    pydantic-settings passes over such a variable in silence.
    """
    remember(secret for name, value in _variables() for secret in secrets_in(value, name))
    for name, _ in _variables():
        section, nested, _ = name.upper().removeprefix(PREFIX).lower().partition("__")
        if nested and section not in Settings.model_fields:
            raise UsageError(f"environment {name}: unknown section {section}: remove it or correct its spelling")


def _variables() -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each variable of Flawline; lists and sections are JSON."""
    for name, text in os.environ.items():
        if name.upper().startswith(PREFIX):
            try:
                yield name, json.loads(text) if text.lstrip()[:1] in ("{", "[") else text
            except ValueError:
                yield name, text


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def _first_problem(error: ValidationError) -> str:
    """Return the first problem in one line: key, value and what is allowed; a secret is not repeated."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        text = f"unknown key {key}: remove it or correct its spelling"
    else:
        value = "" if isinstance(first.get("input"), dict | list) else f" = {first.get('input')!r}"
        if value and (is_secret_key(key) or key == "kafka.bootstrap_servers"):  # the latter may name a password too
            value = f" = '{STARS}'"
        allowed = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        text = redact(f"{key}{value}: {allowed}")
    return text if len(problems) == 1 else f"{text} (and {len(problems) - 1} more)"
