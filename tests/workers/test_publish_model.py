"""A model becomes active only when it verifies and the broker has confirmed it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flawline import kafka_clients
from flawline.errors import FlawlineError, UsageError
from flawline.settings.scorer import LayerSettings, ScorerSettings
from flawline.settings.tree import Settings
from scorer import artefact
from scorer.fit import fit_detector
from workers import publish_model as publishing
from workers.publish_model import active_model, publish_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real artefact, as small as they get."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(20)]
    layers = (LayerSettings(size=64, stride=16, rows=100, rows_per_image=5),)
    path = tmp_path_factory.mktemp("models") / "small"
    fit_detector(images, ScorerSettings(layers=layers, threads=1, runtime="openvino", alarm_rate=0.1)).save(path)
    return path


def test_published_model_is_active_and_the_newest_wins(line_settings: Settings, model: Path) -> None:
    pointer = publish_model(line_settings, model)
    assert pointer.version == artefact.load(model).version and pointer.uri == str(model)
    assert active_model(line_settings) == pointer
    shadow = publish_model(line_settings, model, "shadow")
    assert active_model(line_settings) == pointer and active_model(line_settings, "shadow") == shadow
    second = publish_model(line_settings, model, uri="s3://bucket/models/2")
    assert active_model(line_settings) == second and second.uri == "s3://bucket/models/2"


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
    assert active_model(line_settings) is None


def test_missing_folder_and_folder_without_model(line_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gone"):
        publish_model(line_settings, tmp_path / "gone")
    with pytest.raises(FlawlineError, match=r"manifest\.json"):
        publish_model(line_settings, tmp_path)


def test_no_pointer_without_a_topic(line_settings: Settings) -> None:
    assert active_model(line_settings) is None


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
