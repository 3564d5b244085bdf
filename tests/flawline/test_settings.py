"""Settings: the shipped file, the order of sources, and the errors of wrong keys."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flawline.errors import UsageError
from flawline.settings import producers as cameras
from flawline.settings.outbound import WebhookSettings
from flawline.settings.tree import Settings, load_settings, os
from station.cli import doctor

SHIPPED = Path(__file__).parents[2] / "line.toml"
CAMERA_KINDS = (
    cameras.SimulatedCamera,
    cameras.FolderCamera,
    cameras.VideoCamera,
    cameras.UsbCamera,
    cameras.RtspCamera,
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("FLAWLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def keys_of(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted path and the field of every key below `section`, also of the models in its lists and unions."""
    for key, field in section.model_fields.items():
        inner = list(models_in(field.annotation))
        if not inner or field.description is not None:  # a list of models is a key itself
            yield f"{path}{key}", field
        for model in inner:
            name = f"{path}{key}" if len(inner) == 1 else f"{path}{key}[{model.__name__}]"
            yield from keys_of(model, f"{name}.")


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models that a type annotation names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def written(folder: Path, text: str) -> Path:
    file = folder / "test.toml"
    file.write_text(text)
    return file


def sections(text: str) -> dict[str, str]:
    """Return the text of each section of the shipped file; the top has the empty name."""
    parts = re.split(r"^\[(\w+)\].*$", text.split("# Cameras,")[0], flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def settings_fields() -> Iterator[tuple[str, str]]:
    """Return section and key of every setting but the cameras."""
    for name, field in Settings.model_fields.items():
        if name in ("cameras", "shifts", "webhooks"):
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from ((name, key) for key in field.annotation.model_fields)
        else:
            yield "", name


def test_shipped_file_equals_the_defaults_and_has_four_simulated_cameras() -> None:
    shipped, defaults = load_settings(SHIPPED), load_settings()
    assert shipped.model_copy(update={"cameras": []}) == defaults
    assert [camera.kind for camera in shipped.cameras] == ["simulated"] * 4


def test_shipped_file_sets_every_default_explicitly() -> None:
    content = tomllib.loads(SHIPPED.read_text())
    defaults = load_settings().model_dump(mode="json", exclude={"cameras", "shifts", "webhooks"})
    for section, key in settings_fields():
        default = defaults[section][key] if section else defaults[key]
        if default is not None:
            assert (content[section] if section else content)[key] == default, f"{section}.{key}"


@pytest.mark.parametrize(("section", "key"), list(settings_fields()))
def test_shipped_file_mentions_every_key(section: str, key: str) -> None:
    assert re.search(rf"^(# )?{key} = ", sections(SHIPPED.read_text())[section], re.MULTILINE)


DESCRIPTIONS = {path: field.description for path, field in keys_of(Settings)}


def test_walk_of_the_settings_reaches_every_section_and_every_camera_kind() -> None:
    sections = {path.split(".")[0] for path in DESCRIPTIONS}
    assert {path.split("[")[0] for path in sections} == set(Settings.model_fields)
    assert {f"cameras[{kind.__name__}]" for kind in CAMERA_KINDS} < sections
    assert "scorer.layers.stride" in DESCRIPTIONS


@pytest.mark.parametrize("path", DESCRIPTIONS)
def test_every_key_is_described_in_one_sentence(path: str) -> None:
    description = DESCRIPTIONS[path] or ""
    assert re.fullmatch(r"[A-Z][^\n]{10,200}[^.,;:]\.", description), f"{path}: {description}"
    assert ". " not in description, f"{path} has more than one sentence: {description}"


@pytest.mark.parametrize("kind", CAMERA_KINDS)
def test_shipped_file_names_every_key_of_every_camera_kind(kind: type[BaseModel]) -> None:
    text = SHIPPED.read_text().split("# Cameras,")[1]
    assert all(re.search(rf"\b{key}\b", text) for key in kind.model_fields)


def test_shipped_file_names_every_key_of_a_webhook() -> None:
    text = SHIPPED.read_text().split("# Addresses that get a POST")[1].split("# Cameras,")[0]
    assert all(re.search(rf"\b{key}(_file)?\b", text) for key in WebhookSettings.model_fields)


def test_defaults_hold_without_any_file() -> None:
    assert load_settings() == Settings()


def test_file_in_the_working_directory_is_read_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text('line = "here"')
    assert load_settings().line == "here"


def test_environment_overrides_one_key_and_leaves_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "[worker]\nactors = 3\ndecode_threads = 7\n")
    monkeypatch.setenv("FLAWLINE_WORKER__ACTORS", "4")
    loaded = load_settings(file)
    assert (loaded.worker.actors, loaded.worker.decode_threads) == (4, 7)


def test_environment_overrides_defaults_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWLINE_KAFKA__BOOTSTRAP_SERVERS", "kafka:9092")
    monkeypatch.setenv("FLAWLINE_KAFKA__SASL_PASSWORD", "hunter2")
    loaded = load_settings()
    assert loaded.bootstrap_servers == "kafka:9092"
    assert loaded.kafka.sasl_password is not None and loaded.kafka.sasl_password.get_secret_value() == "hunter2"


def test_config_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWLINE_CONFIG", str(written(tmp_path, 'line = "from-variable"')))
    assert load_settings().line == "from-variable"


def test_arguments_override_the_file(tmp_path: Path) -> None:
    loaded = load_settings(written(tmp_path, "[kafka]\ncamera_partitions = 3\n"), kafka={"topic_prefix": "x-"})
    assert (loaded.kafka.camera_partitions, loaded.topic("frames")) == (3, "x-frames")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wroker = 1", ["wroker", "unknown key"]),
        ("[worker]\nactor = 2", ["worker.actor", "unknown key"]),
        ("[worker]\nactors = 0", ["worker.actors", "0"]),
        ("[worker]\nactors = 'many'", ["worker.actors", "many"]),
        ("line = 'two words'", ["line", "two words"]),
        ("[[cameras]]\nname = 'a'\nkind = 'webcam'", ["cameras", "webcam"]),
        ("[[cameras]]\nname = 'a'", ["cameras", "kind"]),
        ("[[cameras]]\nname = 'a'\nkind = 'simulated'\n" * 2, ["'a'", "twice"]),
        ("[[cameras]]\nname = 'a'\nkind = 'simulated'\npahts = 'x'", ["pahts", "unknown key"]),
        ("line = ", ["not valid TOML"]),
        ("[kafka]\ndelivery = 'exactly-once'", ["kafka.delivery", "the embedded broker has no transactions"]),
        ("[kafka]\ndelivery = 'at-most-once'", ["kafka.delivery", "'at-least-once' or 'exactly-once'"]),
    ],
)
def test_wrong_setting_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_settings(file)
    message = str(caught.value)
    assert "\n" not in message and str(file) in message
    assert all(word in message for word in words), message


def test_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml: no such config file"):
        load_settings(Path("nowhere.toml"))


def test_misspelled_section_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWLINE_WROKER__ACTORS", "4")
    with pytest.raises(UsageError, match="FLAWLINE_WROKER__ACTORS"):
        load_settings()


def test_misspelled_key_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWLINE_WORKER__ACTOR", "4")
    with pytest.raises(UsageError, match=r"worker\.actor"):
        load_settings()


def test_wrong_secret_is_not_repeated_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(written(tmp_path, "[kafka]\nsasl_password = 12345678\n"))
    assert "12345678" not in str(caught.value)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    secrets = ["pass-one", "pass-two", "pass-three", "pass-four", "pass-five"]
    file = written(
        tmp_path,
        f"""
        [kafka]
        sasl_password = "{secrets[0]}"
        [grafana]
        token = "{secrets[1]}"
        url = "http://admin:{secrets[2]}@grafana:3000"
        [store]
        url = "postgresql+psycopg://flawline:{secrets[3]}@db/flawline"
        [[cameras]]
        name = "c"
        kind = "rtsp"
        url = "rtsp://user:{secrets[4]}@10.0.0.7/stream"
        """,
    )
    loaded = load_settings(file)
    shown = str(doctor.masked(loaded)) + repr(loaded) + str(loaded.model_dump(mode="json"))
    # The Grafana address is no secret type: only what is printed masks it.
    assert not [secret for secret in secrets if secret in str(doctor.masked(loaded))]
    assert not [secret for secret in (*secrets[:2], *secrets[3:]) if secret in shown]
    assert doctor.masked(loaded)["store"]["url"] == "postgresql+psycopg://***@db/flawline"


def test_store_is_a_file_in_the_data_directory_by_default(tmp_path: Path) -> None:
    loaded: Any = load_settings(None, data_dir=str(tmp_path / "d"))
    assert loaded.store_url == f"sqlite:///{tmp_path / 'd' / 'store.db'}"
