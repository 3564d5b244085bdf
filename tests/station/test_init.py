"""`flawline init`: a line.toml that the line takes, from options or from answers, which replaces nothing in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.errors import UsageError
from flawline.settings.tree import load_settings
from station.line_file import camera_block, line_file
from tests.station.test_cli import flawline, is_one_line


def answered(folder: Path, answers: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLAWLINE_")}
    command = [sys.executable, "-m", "station.cli", "init", *arguments]
    return subprocess.run(command, cwd=folder, env=clean, input=answers, capture_output=True, text=True, timeout=120)


def test_sources_tell_the_kind_of_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "line.mp4").touch()
    texts = [
        "top=rtsp://joe:s=cret@10.0.0.7/x?a=b",
        "usb=2",
        "path=/dev/video7",
        "shelf=images",
        "film=line.mp4",
        "sim=simulated",
    ]
    (tmp_path / "line.toml").write_text(
        line_file("hall-2", [camera_block(text, 5) for text in texts], None, is_fitted=False)
    )
    settings = load_settings(tmp_path / "line.toml")
    assert [camera.kind for camera in settings.cameras] == ["rtsp", "usb", "usb", "folder", "video", "simulated"]
    top, usb, path, shelf, film, _ = settings.cameras
    assert top.url.get_secret_value() == "rtsp://joe:s=cret@10.0.0.7/x?a=b"
    assert (usb.device, path.device, shelf.loop, film.loop) == (2, "/dev/video7", True, True)
    assert settings.line == "hall-2" and {camera.rate_hz for camera in settings.cameras} == {5}


@pytest.mark.parametrize("text", ["top", "=simulated", "top=", "top=nowhere.mp4", "top=http://10.0.0.7/x"])
def test_text_that_is_no_camera_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="camera"):
        camera_block(text, None)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_answer_becomes_a_string_of_the_file_and_no_other_key(text: str) -> None:
    content = tomllib.loads(line_file(text, [camera_block("c=simulated", None)], text, is_fitted=True))
    assert content["line"] == content["worker"]["model"] == text
    assert content.keys() == {"line", "data_dir", "worker", "scorer", "console", "cameras"}


@pytest.mark.system
def test_options_write_a_file_for_this_user_alone_and_a_second_one_replaces_it_only_when_told(tmp_path: Path) -> None:
    camera = ("--camera", "top=rtsp://joe:s3cret@10.0.0.7/x")
    done = flawline(tmp_path, "init", *camera)
    file = tmp_path / "line.toml"
    assert done.returncode == 0 and "s3cret" not in done.stdout + done.stderr and "next: flawline fit" in done.stdout
    assert file.stat().st_mode & 0o077 == 0
    text = file.read_text()
    again = flawline(tmp_path, "init", "--camera", "sim=simulated")
    assert again.returncode == 2 and is_one_line(again.stderr) and "--force" in again.stderr
    assert file.read_text() == text
    forced = flawline(tmp_path, "init", "--camera", "sim=simulated", "--force")
    assert forced.returncode == 0 and "line.toml.old" in forced.stdout
    assert (tmp_path / "line.toml.old").read_text() == text and 'kind = "simulated"' in file.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line.toml", "line.toml.old"]


@pytest.mark.system
def test_questions_are_asked_again_after_a_wrong_answer_and_refused_when_nobody_answers(tmp_path: Path) -> None:
    done = answered(tmp_path, "hall-2\nwrong\nsim=simulated\n\n\n")
    assert done.returncode == 0, done.stderr
    assert "give NAME=SOURCE" in done.stderr and 'line = "hall-2"' in (tmp_path / "line.toml").read_text()
    kept = answered(tmp_path, "n\n")
    assert kept.returncode == 2 and "stays as it is" in kept.stderr
    nobody = answered(tmp_path, "", "--config", "other.toml")
    assert nobody.returncode == 2 and "--camera NAME=SOURCE" in nobody.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["line.toml"]


@pytest.mark.system
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--camera", "a b=simulated"], "cameras.0"),
        (["--camera", "a=simulated", "--good", "nowhere"], "nowhere: no such folder"),
        (["--camera", "a=simulated", "--config", "no/line.toml"], "no/line.toml"),
        (["--camera", "a=simulated", "--line", "no name"], "line = 'no name'"),
    ],
)
def test_wrong_option_is_one_line_and_writes_nothing(tmp_path: Path, arguments: list[str], word: str) -> None:
    done = flawline(tmp_path, "init", *arguments)
    assert done.returncode == 2 and is_one_line(done.stderr) and word in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.system
def test_shell_completes_commands_and_the_cameras_of_the_line(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text('[[cameras]]\nname = "top"\nkind = "usb"\n')

    def completed(*words: str) -> list[str]:
        environment = {
            "_FLAWLINE_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        return flawline(tmp_path, **environment).stdout.split()

    assert completed("flawline", "stat") == ["status"]
    assert completed("flawline", "cameras", "test", "t") == ["top"]
