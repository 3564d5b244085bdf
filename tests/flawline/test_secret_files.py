"""A secret may be in a file of its own, which a key or variable that ends with `_file` names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flawline.errors import UsageError
from flawline.settings import secret_files
from flawline.settings.tree import Settings, load_settings

SECRET = "word-in-a-file"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("FLAWLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    return file


def value(settings: Settings, section: str, key: str) -> str:
    return str(getattr(getattr(settings, section), key).get_secret_value())


@pytest.mark.parametrize(
    ("section", "key"), [("kafka", "sasl_password"), ("grafana", "token"), ("store", "url"), ("grafana", "store_url")]
)
def test_variable_names_the_file_of_a_secret(
    section: str, key: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FLAWLINE_{section.upper()}__{key.upper()}_FILE", str(file))
    assert value(load_settings(), section, key) == SECRET


def test_key_of_the_settings_file_names_the_file_of_a_secret_also_of_a_camera(file: Path, tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text(
        f'[kafka]\nsasl_password_file = "{file}"\n[[cameras]]\nname = "c"\nkind = "rtsp"\nurl_file = "{file}"\n'
    )
    settings = load_settings()
    camera: Any = settings.cameras[0]
    assert value(settings, "kafka", "sasl_password") == SECRET == camera.url.get_secret_value()


def test_environment_overrides_the_settings_file_in_both_ways(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "line.toml").write_text('[kafka]\nsasl_password = "old"\n')
    monkeypatch.setenv("FLAWLINE_KAFKA__SASL_PASSWORD_FILE", str(file))
    assert value(load_settings(), "kafka", "sasl_password") == SECRET
    (tmp_path / "line.toml").write_text(f'[kafka]\nsasl_password_file = "{file}"\n')
    monkeypatch.delenv("FLAWLINE_KAFKA__SASL_PASSWORD_FILE")
    monkeypatch.setenv("FLAWLINE_KAFKA__SASL_PASSWORD", "new")
    assert value(load_settings(), "kafka", "sasl_password") == "new"


def refusal(monkeypatch: pytest.MonkeyPatch, file: Path) -> str:
    monkeypatch.setenv("FLAWLINE_KAFKA__SASL_PASSWORD_FILE", str(file))
    with pytest.raises(UsageError) as raised:
        load_settings()
    assert "\n" not in str(raised.value) and SECRET not in str(raised.value)
    return str(raised.value)


def test_file_that_is_missing_or_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kafka.sasl_password_file nowhere: no such file" in refusal(monkeypatch, Path("nowhere"))
    assert f"{tmp_path}: cannot be read" in refusal(monkeypatch, tmp_path)


def test_file_without_permission_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read any file
    assert f"{file}: cannot be read: Permission denied" in refusal(monkeypatch, file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the secret alone"),
        (b"\n", "the secret alone"),
        (SECRET.encode() + b"\nsecond line\n", "the secret alone"),
        (b"x" * (secret_files.LIMIT_BYTES + 1), "the secret alone"),
        (b"\xff\xfe", "is not text"),
    ],
)
def test_file_that_holds_no_secret_is_refused(
    content: bytes, words: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(content)
    assert words in refusal(monkeypatch, file)


def test_secret_and_its_file_at_the_same_place_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWLINE_KAFKA__SASL_PASSWORD", "other-word")
    text = refusal(monkeypatch, file)
    assert "kafka.sasl_password_file and kafka.sasl_password are both set" in text and "other-word" not in text


def test_file_that_others_can_read_is_remarked_and_a_docker_secret_is_not(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLAWLINE_KAFKA__SASL_PASSWORD_FILE", str(file))
    load_settings()
    assert not caplog.records
    file.chmod(0o644)
    load_settings()
    assert f"{file} can be read by every user" in caplog.text
    caplog.clear()
    monkeypatch.setattr(secret_files, "DOCKER_SECRETS", tmp_path)
    load_settings()
    assert not caplog.records


def test_key_that_is_no_secret_has_no_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWLINE_KAFKA__SASL_USERNAME_FILE", str(file))
    with pytest.raises(UsageError, match=r"unknown key kafka\.sasl_username_file"):
        load_settings()
