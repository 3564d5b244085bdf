"""A model becomes active only when it verifies and the broker has confirmed it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawline import kafka_clients
from flawline.errors import FlawlineError, UsageError
from flawline.messages import ModelHistory, ModelPointer
from flawline.settings.scorer import LayerSettings, ScorerSettings
from flawline.settings.tree import Settings
from scorer import artefact
from scorer.detector import CoresetDetector
from scorer.fit import fit_detector
from station.cli.main import main
from tests.support.brokers import RunningBroker
from workers import publish_model as publishing
from workers.publish_model import announced, promote, publish_model, rollback, withdraw_shadow

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a real artefact, as small as they get."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(20)]
    layers = (LayerSettings(size=64, stride=16, rows=100, rows_per_image=5),)
    path = tmp_path_factory.mktemp("models") / "small"
    fit_detector(images, ScorerSettings(layers=layers, threads=1, runtime="openvino", alarm_rate=0.1)).save(path)
    return path


def test_published_model_is_active_and_the_newest_wins(line_settings: Settings, model: Path) -> None:
    pointer = publish_model(line_settings, model)
    assert pointer.version == artefact.load(model).version and pointer.uri == str(model)
    assert announced(line_settings).active == pointer
    with pytest.raises(FlawlineError, match=f"{pointer.version} is the active model: it cannot be its own shadow"):
        publish_model(line_settings, model, "shadow")
    shadow = publish_model(line_settings, model, "shadow", uri="s3://bucket/models/1")
    assert announced(line_settings).active == pointer and announced(line_settings).shadow == shadow
    second = publish_model(line_settings, model, uri="s3://bucket/models/2")
    assert announced(line_settings).active == second and second.uri == "s3://bucket/models/2"


def test_roll_back_goes_to_the_model_before_and_promote_makes_the_shadow_active(
    line_settings: Settings, either_broker: RunningBroker
) -> None:
    kafka = line_settings.kafka.model_copy(update={"bootstrap_servers": either_broker.bootstrap})
    line_settings = line_settings.model_copy(update={"kafka": kafka})

    def publish(version: str, role: str = "active") -> ModelPointer:
        folder = line_settings.data_dir / version
        folder.mkdir(parents=True, exist_ok=True)
        return publish_model(line_settings, folder, role, verify=lambda path, worker: path.name)

    def active() -> str:
        return announced(line_settings).active.version

    for command in (rollback, promote, withdraw_shadow):
        with pytest.raises(FlawlineError, match=r"flawline (publish|models)"):
            command(line_settings)
    publish("v1")
    publish("v2")
    publish("v2")
    publish("v3", "shadow")
    before = announced(line_settings)
    assert [model.version for model in before.history] == ["v1"], "published twice is active once"
    promoted = promote(line_settings)
    assert (promoted.role, promoted.version, promoted.uri) == ("active", "v3", before.shadow.uri)
    after = announced(line_settings)
    assert (after.active, after.shadow) == (promoted, None)
    assert [model.version for model in after.history] == ["v2", "v1"]
    assert rollback(line_settings).version == active() == "v2"
    assert rollback(line_settings).version == active() == "v1"
    with pytest.raises(FlawlineError, match="no other model was active before"):
        rollback(line_settings)
    publish("v4", "shadow")
    assert withdraw_shadow(line_settings).version == "v4"
    assert announced(line_settings).shadow is None


def test_a_change_that_was_interrupted_between_its_records_loses_no_model(line_settings: Settings) -> None:
    first, second = (ModelPointer("active", version, f"/models/{version}", 5) for version in ("v1", "v2"))
    # A publication of v3 dies after it has written the history.
    publishing._write(line_settings, {"active": second, "active-history": ModelHistory("active", (second, first))})
    assert announced(line_settings).previous == first
    # A promotion dies before it has written the tombstone.
    publishing._write(line_settings, {"shadow": replace(second, role="shadow", published_at=4)})
    assert announced(line_settings).shadow is None
    assert rollback(line_settings).version == "v1"


def test_a_model_that_scores_otherwise_than_when_it_was_fitted_is_not_published(
    line_settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = artefact.load(model)
    assert loaded.report["golden"]["pictures"], "the check has pictures to score"
    original = CoresetDetector.raw_scores
    monkeypatch.setattr(CoresetDetector, "raw_scores", lambda self, images: [2 * s for s in original(self, images)])
    kafka_clients.ensure_topics(line_settings)
    with pytest.raises(FlawlineError, match=r"scores on openvino here are up to 100\.0% off"):
        publish_model(line_settings, model)
    assert announced(line_settings).active is None


def test_copy_outlives_the_original_and_is_made_once(line_settings: Settings, model: Path) -> None:
    pointers = [publish_model(line_settings, model, copy=True) for _ in range(2)]
    copy = line_settings.data_dir / "models" / pointers[0].version
    assert {pointer.uri for pointer in pointers} == {str(copy)}
    assert artefact.load(copy).version == pointers[0].version
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_damaged_model_is_not_published(line_settings: Settings, model: Path, tmp_path: Path) -> None:
    damaged = publishing._copied(model, tmp_path / "damaged")
    file = damaged / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    kafka_clients.ensure_topics(line_settings)
    with pytest.raises(FlawlineError, match=r"model\.safetensors"):
        publish_model(line_settings, damaged)
    assert announced(line_settings).active is None


def test_missing_folder_and_folder_without_model(line_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gone"):
        publish_model(line_settings, tmp_path / "gone")
    with pytest.raises(FlawlineError, match=r"manifest\.json"):
        publish_model(line_settings, tmp_path)


def test_no_pointer_without_a_topic(line_settings: Settings) -> None:
    assert announced(line_settings).active is None


def test_command(line_settings: Settings, model: Path, settings_file: Callable[[Settings], Path]) -> None:
    command = [sys.executable, "-m", "station.cli", "publish", "--json", str(model)]
    command += ["--config", str(settings_file(line_settings))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "role": "active",
        "version": artefact.load(model).version,
        "uri": str(model),
    }


def test_commands_change_and_show_the_models_as_json(
    line_settings: Settings, model: Path, settings_file: Callable[[Settings], Path]
) -> None:
    config = str(settings_file(line_settings))

    def flawline(*arguments: str) -> Any:
        command = [sys.executable, "-m", "station.cli", *arguments, "--json", "--config", config]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    old = ModelPointer("active", "v0", "/models/v0", 5)
    publishing._write(line_settings, {"active": old})
    version = artefact.load(model).version
    flawline("publish", str(model), "--role", "shadow")
    shown = flawline("models")
    assert (shown["active"]["version"], shown["shadow"]["version"], shown["actors"]) == ("v0", version, [])
    assert flawline("promote") == {"role": "active", "version": version, "uri": str(model)}
    shown = flawline("models")
    assert (shown["active"]["version"], shown["shadow"], shown["history"][0]["version"]) == (version, None, "v0")
    assert flawline("rollback")["version"] == "v0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["promote"], "there is no shadow model to promote"),
        (["rollback"], "no other model was active before"),
        (["rollback", "--role", "shadow"], "there is no shadow model to withdraw"),
        (["rollback", "--role", "star"], "--role star: choose from active, shadow"),
        (["models", "--compare"], "no shadow model has scored a frame"),
        (["models", "--pictures", "folder"], "--pictures goes with --compare"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    line_settings: Settings, settings_file: Callable[[Settings], Path], capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", str(settings_file(line_settings))])
    assert ended.value.code in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
